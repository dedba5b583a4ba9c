"""What several test files need alike: small networks and data, records and runs made by hand, refusals, damage."""

from __future__ import annotations

import gzip
import json
import random
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

import neuralcollapse as nc
from neuralcollapse.cli import main
from neuralcollapse.geometry.measures import WEIGHT_MEASURES
from neuralcollapse.runs.reading import Run
from neuralcollapse.runs.records import Record

# Networks and data


class SmallNet(nn.Module):
    """(N, 4) inputs to logits: a body of one layer and a head `fc`."""

    def __init__(self, classes: int = 3, *, seed: int | None = None):
        super().__init__()
        with torch.random.fork_rng(enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            self.body = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU())
            self.fc = nn.Linear(6, classes)

    def forward(self, inputs):
        return self.fc(self.body(inputs))


def small_set(count: int = 30, classes: int = 3) -> TensorDataset:
    """Normal inputs (count, 4) with labels 0, 1, 2, 0, 1, 2, ..., the same at each call."""
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(count, 4, generator=generator), torch.arange(count) % classes)


def small_loader(count: int = 30, **options: Any) -> DataLoader:
    return DataLoader(small_set(count), **({"batch_size": 8} | options))


def write_idx(file: Path, array: np.ndarray, *, kind: int = 8, header: bytes | None = None) -> None:
    """An IDX file of unsigned bytes, compressed if it is called .gz."""
    if header is None:
        header = bytes((0, 0, kind, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    content = header + array.astype("u1").tobytes()
    file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)


# What torch does


class Dispatched(TorchDispatchMode):
    """Inside, keeps the name of every operation that torch dispatches, as `aten.mm.default`."""

    # Their results, or the shapes of these, depend on values: on an accelerator they wait for it.
    WAITING = ("_local_scalar_dense", "item", "nonzero", "unique", "bincount", "equal", "is_nonzero", "masked_select")

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.waits: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        self.names.append(name)
        plain = name.split(".")[1].strip("_")
        masked = plain.startswith("index") and any(
            isinstance(each, torch.Tensor) and each.dtype in (torch.bool, torch.uint8)
            for given in args[1:]
            for each in (given if isinstance(given, list | tuple) else [given])
        )
        if masked or any(plain.startswith(each.strip("_")) for each in self.WAITING):
            self.waits.append(name)
        return func(*args, **(kwargs or {}))


# Records and runs


def made_record(epoch: int = 1, *, train=None, test=None, nc1: float | None = 0.5, **more: Any) -> Record:
    """A record with one measure; `more` are its other parts, such as layers."""
    measures = more.pop("measures", {} if nc1 is None else {"nc1": nc1})
    return Record(epoch, 0.0, 0.1, train or {"accuracy": 1.0, "loss": 1.0}, test or {}, measures, **more)


def as_held_out(record: Record) -> dict[str, float]:
    """What a record says of a test set that is the training set."""
    values = record.train | record.measures
    return {name: x for name, x in values.items() if name not in WEIGHT_MEASURES}


def made_run(name: str, records: Sequence[Record], config: Mapping[str, Any] | None = None, **more: Any) -> Run:
    return Run(name, config or {}, {}, records, **more)


def record_lines(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's records.jsonl, as they are in the file."""
    return [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]


# Refusals and damage


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line in which the command refuses these arguments, with exit code 2 and nothing on stdout."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    out, message = capsys.readouterr()
    assert out == ""
    assert message.startswith("neuralcollapse: error: ")
    assert message.count("\n") == 1
    return message


def files_in(path: str | Path) -> dict[str, bytes]:
    """Every file of a folder with its content, but for the lock."""
    return {str(file): file.read_bytes() for file in Path(path).rglob("*") if file.is_file() and file.name != ".lock"}


class Bomb:
    """Fails the test when it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


def changed_somewhere(value: Any, source: random.Random, values: Sequence[Any]) -> Any:
    """The value with a random place of it replaced by one of `values`, or removed from its mapping."""
    if not isinstance(value, dict | list) or not value or source.random() < 0.2:
        return source.choice(values)
    value = value.copy()
    key = source.choice(list(value) if isinstance(value, dict) else range(len(value)))
    if isinstance(value, dict) and source.random() < 0.2:
        del value[key]
    else:
        value[key] = changed_somewhere(value[key], source, values)
    return value


# Heads


def etf_layer(num_classes, dim, **options):
    """A float64 ETFClassifier with a bias that is not zero."""
    torch.manual_seed(0)
    layer = nc.ETFClassifier(dim, num_classes, dtype=torch.float64, **options)
    if layer.bias is not None:
        torch.nn.init.normal_(layer.bias)
    return layer
