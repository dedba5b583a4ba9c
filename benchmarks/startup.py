"""How long a new process takes until it can be used."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

from harness import Row, Table


def startup(quick: bool) -> Table:
    """Whole processes, from start to end."""
    return Table(
        "Start-up: whole processes",
        [
            Row("`import torch`", _process("-c", "import torch")),
            Row("`import torch, neuralcollapse`", _process("-c", "import torch, neuralcollapse"), "at most 0.3 s more"),
            Row("`neuralcollapse --help`", _process("-m", "neuralcollapse", "--help"), "at most 1 s"),
        ],
        rounds=1 if quick else 9,
    )


def _process(*arguments: str) -> partial[subprocess.CompletedProcess[bytes]]:
    return partial(subprocess.run, [sys.executable, *arguments], check=True, capture_output=True)
