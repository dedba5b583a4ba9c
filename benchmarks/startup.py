"""How long a new process takes until it can be used."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial

from harness import Row, Table

Done = subprocess.CompletedProcess[str]

COMMANDS = ("measure", "landscape", "reproduce", "report")

TWO_CALLS = """
import time
import torch
from torch.utils.data import DataLoader, TensorDataset
import neuralcollapse as nc
model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
loader = DataLoader(TensorDataset(torch.randn(2000, 64), torch.arange(2000) % 10), batch_size=100)
for _ in range(2):
    start = time.perf_counter()
    nc.measure(model, loader)
    print(time.perf_counter() - start)
"""


def startup(quick: bool) -> Table:
    """Whole processes, from start to end."""
    more, help_at_most = "at most 0.3 s more", "at most 1 s"
    return Table(
        "Start-up: whole processes",
        [
            Row("`import torch`", _python("-c", "import torch")),
            Row("`import torch, neuralcollapse`", _python("-c", "import torch, neuralcollapse"), more),
            Row("and `nc.measure`", _python("-c", "import torch, neuralcollapse as nc; nc.measure"), more),
            Row("and `nc.Recorder`", _python("-c", "import torch, neuralcollapse as nc; nc.Recorder"), more),
            Row(
                "and two calls of `nc.measure`",
                _python("-c", TWO_CALLS),
                "the first at most 1 s longer than the second",
                note=_first_and_second,
            ),
            Row("`neuralcollapse --help`", _command("--help"), help_at_most),
            Row("`neuralcollapse train --help`", _command("train", "--help"), help_at_most),
            *(Row(f"`neuralcollapse {name} --help`", _command(name, "--help"), help_at_most) for name in COMMANDS),
            Row("`neuralcollapse train --epohcs 3`", _command("train", "--epohcs", "3", code=2), help_at_most),
        ],
        rounds=1 if quick else 9,
    )


def _command(*arguments: str, code: int = 0) -> Callable[[], Done]:
    return _python("-m", "neuralcollapse", *arguments, code=code)


def _python(*arguments: str, code: int = 0) -> Callable[[], Done]:
    return partial(_process, [sys.executable, *arguments], code)


def _process(command: list[str], code: int) -> Done:
    # As pip installs a package: with its bytecode, which some machines forbid Python to write.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != code:
        raise RuntimeError(f"{command[1:]} ended with {done.returncode}, expected {code}: {done.stderr}")
    return done


def _first_and_second(done: Done) -> str:
    first, second = map(float, done.stdout.split())
    return f"first call {first:.2f} s, second {second:.2f} s"
