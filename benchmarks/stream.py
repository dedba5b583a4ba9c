"""A language model's head in small: a million token features of 50,000 classes, streamed and measured."""

from __future__ import annotations

import json
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed
import torch.multiprocessing
from torch import Tensor

import neuralcollapse as nc
from harness import Round, Row, Table
from neuralcollapse.capture.processes import merged

PAIRS = 10_000  # pairs of classes that the pairwise measures look at
BARE = "bare float32 products F'F"
UPDATE, SMALL = "`ClassMoments.update`", "the same, `means_dtype=torch.float32`"
WHOLE, WHOLE_SMALL = f"`update` and `measures(..., pairwise={PAIRS:_})`", "the same, float32 means"


class Stream:
    """Batches of features and labels, each made when it is asked for, always the same.

    Labels follow Zipf's law, as the tokens of a language do, but for two samples that every class has.
    """

    def __init__(self, num_classes: int, dim: int, batches: int, size: int) -> None:
        self.batches, self.size, self.num_classes, self.dim = batches, size, num_classes, dim
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(num_classes, dim, generator=generator)
        frequencies = 1 / torch.arange(3, num_classes + 3, dtype=torch.float64)
        drawn = torch.multinomial(frequencies, batches * size - 2 * num_classes, True, generator=generator)
        labels = torch.cat([torch.arange(num_classes).repeat(2), drawn])
        self.labels = labels[torch.randperm(len(labels), generator=generator)].split(size)

    def batch(self, number: int) -> tuple[Tensor, Tensor]:
        """Class mean and noise of the same size."""
        labels = self.labels[number]
        noise = torch.randn(len(labels), self.dim, generator=torch.Generator().manual_seed(1 + number))
        return noise.add_(self.weight[labels]), labels

    def moments(self, means_dtype: torch.dtype = torch.float64, rank: int = 0, world: int = 1) -> nc.ClassMoments:
        """Of every `world`-th batch from that of number `rank` on."""
        found = nc.ClassMoments.zeros(self.num_classes, self.dim, means_dtype=means_dtype)
        for number in range(rank, self.batches, world):
            found.update(*self.batch(number))
        return found

    def measures(self, found: nc.ClassMoments) -> dict[str, float]:
        """All of them, the pairwise ones on a sample."""
        return nc.measures(found, self.weight, torch.zeros(self.num_classes), pairwise=PAIRS)


def stream(quick: bool) -> Table:
    """The whole, batch by batch in alternation with the bare products."""
    shape = (500, 256, 20, 200) if quick else (50_000, 1_024, 250, 4_000)
    data, parts = Stream(*shape), 10
    num_classes, dim, batches, size = shape

    def take(count: int) -> list[Round]:
        return [part for _ in range(count) for part in _alternate(data, parts)]

    def alone(means_dtype: torch.dtype, measured: bool) -> Callable[[], object]:
        def run() -> object:
            found = data.moments(means_dtype)
            return data.measures(found) if measured else found

        return run

    return Table(
        f"Stream: N={batches * size:,} token features, K={num_classes:,}, d={dim:,}, batches of {size:,}",
        [
            Row(BARE, lambda: _products(data), peak=True),
            Row(UPDATE, alone(torch.float64, False)),
            Row(SMALL, alone(torch.float32, False)),
            Row(WHOLE, alone(torch.float64, True), "at most 2, under 1.5 GB", peak=True),
            Row(WHOLE_SMALL, alone(torch.float32, True), "at most 2, under 1.5 GB", peak=True),
        ],
        rounds=1,
        take=take,
        parts=parts,
        remarks=lambda: [_two_processes((500, 256, 20, 200) if quick else (50_000, 1_024, 50, 4_000))],
    )


def _products(data: Stream) -> None:
    for number in range(data.batches):
        features, _ = data.batch(number)
        features.T @ features


def _alternate(data: Stream, parts: int) -> Iterator[Round]:
    """The times of as many parts of the stream; what measuring takes at the end is shared out among them."""
    kinds = {UPDATE: torch.float64, SMALL: torch.float32}
    found = {
        label: nc.ClassMoments.zeros(data.num_classes, data.dim, means_dtype=dtype) for label, dtype in kinds.items()
    }
    rounds: list[Round] = [dict.fromkeys((BARE, UPDATE, SMALL), 0.0) for _ in range(parts)]
    for number in range(data.batches):
        features, labels = data.batch(number)
        times = rounds[number * parts // data.batches]
        started = time.perf_counter()
        features.T @ features
        times[BARE] += time.perf_counter() - started
        for label, moments in found.items():
            started = time.perf_counter()
            moments.update(features, labels)
            times[label] += time.perf_counter() - started
    for label, whole in ((UPDATE, WHOLE), (SMALL, WHOLE_SMALL)):
        started = time.perf_counter()
        data.measures(found[label])
        seconds = time.perf_counter() - started
        for times in rounds:
            times[whole] = times[label] + seconds / parts
    yield from rounds


def _two_processes(shape: tuple[int, int, int, int]) -> str:
    """How far the measures of two processes that share a stream are from one process's."""
    data = Stream(*shape)
    one = data.measures(data.moments())
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_share, (shape, folder), nprocs=2)
        two = json.loads((Path(folder) / "measures.json").read_text())
    far = {name: abs(two[name] - value) / abs(value) for name, value in one.items()}
    num_samples = shape[2] * shape[3]
    worst = max(far, key=lambda name: far[name])
    assert far[worst] < (1e-10 if num_samples >= 100_000 else 1e-8), f"{worst}: {far[worst]:.1e}"
    return (
        f"Two processes that take every other batch of N={num_samples:,} such features and join their moments give one "
        f"process's measures to {far[worst]:.0e} of their size (asked 1e-10; the furthest is `{worst}`, NC1 is at "
        f"{far['nc1']:.0e})."
    )


def _share(rank: int, shape: tuple[int, int, int, int], folder: str) -> None:
    """One of the two."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    try:
        warnings.simplefilter("ignore", nc.NeuralCollapseWarning)  # more classes than a simplex holds
        data = Stream(*shape)
        found = merged(data.moments(rank=rank, world=2))
        if rank == 0:
            (Path(folder) / "measures.json").write_text(json.dumps(data.measures(found)))
    finally:
        torch.distributed.destroy_process_group()
