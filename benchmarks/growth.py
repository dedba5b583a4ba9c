"""How costs grow: each row at some size and at ten times that size, in alternation. Nothing should be a square.

    python benchmarks/growth.py            # prints the table, a minute or two
    python benchmarks/growth.py --write    # and writes it to benchmarks/growth.md
    python benchmarks/growth.py --quick    # tiny sizes, to see that all runs: times mean nothing

Ends with 1 when a row grew too fast.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import neuralcollapse as nc
import page as facts
from neuralcollapse.checkpoints.order import training_order
from neuralcollapse.data.label_changes import choose_per_class, label_noise
from neuralcollapse.geometry.moments import ClassMoments
from neuralcollapse.heads.search import find_head
from neuralcollapse.report.comparison import comparison_page
from neuralcollapse.report.single import single_page
from neuralcollapse.reproduce.experiment import parse
from neuralcollapse.runs.folder import RunFolder
from neuralcollapse.runs.reading import Run, read_run, read_runs
from neuralcollapse.runs.records import MEASURES, Record

TIMES = 10
MOST = 12.0  # times as long for ten times as much, which leaves room for noise
SECONDS = 0.02  # a shorter call is repeated
ROUNDS = 5

Prepared = Callable[[], Any]


class Row(NamedTuple):
    """What grows: `prepare(folder, n)` gives what is timed; `flat` rows should not grow at all."""

    what: str
    size: int
    prepare: Callable[[Path, int], Prepared]
    flat: bool = False
    rounds: int = ROUNDS


class Grown(NamedTuple):
    """A row's seconds at its size and at ten times that."""

    row: Row
    small: float
    large: float

    @property
    def ratio(self) -> float:
        return self.large / self.small

    @property
    def fine(self) -> bool:
        return self.ratio <= (2.0 if self.row.flat else MOST)


def record(epoch: int) -> Record:
    """A record as large as a Recorder's."""
    source = random.Random(epoch)
    numbers = {name: source.random() for name in MEASURES}
    ends = {"loss": source.random(), "accuracy": source.random()}
    return Record(epoch, epoch * 1.5, 0.1, ends, ends, numbers, minimizer=dict.fromkeys(MEASURES, 0.0))


def folder_of(path: Path, records: int) -> RunFolder:
    """A run folder with so many records."""
    run = RunFolder.create(path)
    run.write_text("config.yaml", json.dumps({"data": "mine", "network": "Net", "unit": "step", "layer": "2"}))
    run.write_text("environment.json", json.dumps({"neuralcollapse": "0"}))
    (path / "records.jsonl").write_text("".join(f"{record(epoch).to_json()}\n" for epoch in range(records)))
    return run


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def loader(samples: int = 30, dim: int = 4, classes: int = 3) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(samples, dim, generator=generator), torch.arange(samples) % classes)
    return DataLoader(data, batch_size=512)


def append(path: Path, n: int) -> Prepared:
    run, found = folder_of(path, n), record(n)
    return lambda: run.append(found)


def measure_one(path: Path, n: int) -> Prepared:
    folder_of(path, n).unlock()
    recorder, model = nc.Recorder(loader(), out=path, resume=True, progress=False), network()
    epochs = iter(range(n, 10**9))
    return lambda: recorder.measure(model, next(epochs))


def measure_again(path: Path, n: int) -> Prepared:
    folder_of(path, n).unlock()
    recorder, model = nc.Recorder(loader(), out=path, resume=True, progress=False), network()
    return lambda: recorder.measure(model, n // 2)


def resume(path: Path, n: int) -> Prepared:
    folder_of(path, n).unlock()
    return lambda: nc.Recorder(loader(), out=path, resume=True).folder.unlock()  # type: ignore[union-attr]


def read(path: Path, n: int) -> Prepared:
    folder_of(path, n)
    return lambda: read_run(path)


def run_page(path: Path, n: int) -> Prepared:
    folder_of(path, n)
    run = read_run(path)
    return lambda: single_page(run).html()


def runs_read(path: Path, n: int) -> Prepared:
    path.mkdir()
    folders = [folder_of(path / f"run{i}", 20).path for i in range(n)]
    return lambda: read_runs(folders)


def runs_page(path: Path, n: int) -> Prepared:
    records = [record(epoch) for epoch in range(20)]
    runs = [Run(f"run{i}", {"seed": i % 3}, {}, records, labels={"x": str(i // 3)}) for i in range(n)]
    return lambda: comparison_page(runs).html()


def series(path: Path, n: int) -> Prepared:
    path.mkdir()
    for epoch in range(n):
        torch.save(network().state_dict(), path / f"epoch-{epoch}.pt")
    outs = iter(range(10**6))

    def run() -> None:
        nc.measure_checkpoints(network(), f"{path}/*.pt", loader(), out=path / f"run{next(outs)}", progress=False)

    return run


def series_again(path: Path, n: int) -> Prepared:
    run = series(path, n)
    run()
    return lambda: nc.measure_checkpoints(network(), f"{path}/*.pt", loader(), out=path / "run0", progress=False)


def order(path: Path, n: int) -> Prepared:
    names = [f"ckpts/epoch={i}-step={100 * i}.ckpt" for i in range(n)]
    return lambda: training_order(names)


def layers(path: Path, n: int) -> Prepared:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(n)), nn.Linear(64, 4))
    names, batches = [str(i) for i in range(n)], loader(1024, 64, 4)
    return lambda: nc.measure(model, batches, str(n), layers=names, progress=False)


def modules(path: Path, n: int) -> Prepared:
    model = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(n)), nn.Linear(4, 3))
    return lambda: find_head(model)


def moments_of(classes: int, dim: int) -> ClassMoments:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(2 * classes) % classes
    return ClassMoments.from_batch(torch.randn(2 * classes, dim, generator=generator), labels, classes)


def classes(path: Path, n: int) -> Prepared:
    moments, weight = moments_of(n, 64), torch.randn(n, 64)
    return lambda: nc.measures(moments, weight, pairwise=False)


def sampled(path: Path, n: int) -> Prepared:
    moments, weight = moments_of(n, 64), torch.randn(n, 64)
    return lambda: nc.measures(moments, weight, pairwise=10_000)


def chosen(path: Path, n: int) -> Prepared:
    given = torch.arange(3 * n) % n
    return lambda: choose_per_class(given, [2] * n, seed=0)


def noisy(path: Path, n: int) -> Prepared:
    given = torch.arange(3 * n) % n
    return lambda: label_noise(given, 0.1, n, seed=0)


def experiment(path: Path, n: int) -> Prepared:
    values = "".join(f"      v{i}: {{width: {i + 1}}}\n" for i in range(n))
    text = f"title: t\nvary:\n    w:\n{values}scales:\n  smoke: {{}}\n"
    return lambda: parse(text, "grown", "smoke")


ROWS = [
    Row("append a record to a run of n", 2_000, append, flat=True, rounds=40),
    Row("measure and record in a run of n records", 2_000, measure_one, flat=True, rounds=15),
    Row("measure an epoch again in a run of n records", 2_000, measure_again, flat=True, rounds=15),
    Row("read a run of n records", 2_000, read, rounds=10),
    Row("go on with a run of n records", 1_000, resume),
    Row("the page of a run of n records", 2_000, run_page, rounds=3),
    Row("read n runs", 20, runs_read),
    Row("the page of n runs", 20, runs_page, rounds=3),
    Row("measure a series of n checkpoints", 10, series, rounds=2),
    Row("go on with a series of n checkpoints, all measured", 20, series_again, rounds=3),
    Row("put n checkpoints in order", 500, order),
    Row("measure n inner layers", 5, layers, rounds=3),
    Row("find the head among n blocks", 30, modules),
    Row("measures of n classes, without pairs", 300, classes),
    Row("measures of n classes, 10,000 pairs", 300, sampled),
    Row("choose samples of n classes", 300, chosen),
    Row("label noise of n classes", 3_000, noisy),
    Row("plan an experiment of n runs", 50, experiment, rounds=3),
]


def main(arguments: list[str] | None = None) -> int:
    """Time, print, perhaps write; 1 when a row grew too fast."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write growth.md beside this file")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, nothing judged")
    parser.add_argument("--only", metavar="TEXT", default="", help="the rows with this text in them")
    options = parser.parse_args(arguments)
    found = [grown(row, quick=options.quick) for row in ROWS if options.only in row.what]
    text = table(found)
    print(text)
    if options.write:
        (Path(__file__).parent / "growth.md").write_text(text, encoding="utf-8")
    return 0 if options.quick or all(each.fine for each in found) else 1


def grown(row: Row, *, quick: bool = False) -> Grown:
    """A row at both sizes: the shortest of some rounds, as anything else on the machine only adds."""
    size, rounds = (2, 1) if quick else (row.size, row.rounds)
    with _quiet(), tempfile.TemporaryDirectory() as place:
        runs = [row.prepare(Path(place, name), n) for name, n in (("small", size), ("large", TIMES * size))]
        best = [float("inf")] * 2
        for run in runs:
            run()
        for _ in range(rounds):
            for which, run in enumerate(runs):
                best[which] = min(best[which], _seconds(run, quick))
    return Grown(row, *best)


def _seconds(run: Prepared, quick: bool) -> float:
    """The processor's seconds for one call: other work on the machine makes long calls wait more than short ones."""
    start, calls = time.process_time(), 0
    while True:
        run()
        calls += 1
        spent = time.process_time() - start
        if quick or spent >= SECONDS:
            return spent / calls


@contextmanager
def _quiet() -> Iterator[None]:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nc.NeuralCollapseWarning)
        yield


def table(found: list[Grown]) -> str:
    """The rows as Markdown, with the machine."""
    lines = [
        "# Growth",
        "",
        "Written by `python benchmarks/growth.py --write`: the processor's time of each row at n and at 10 n, the",
        "shortest of some rounds in alternation. Asked are at most so many times as long for ten times as much; flat",
        "is at most twice.",
        "",
        "| what | n | at n | at 10 n | times | asked |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for each in found:
        asked = "flat" if each.row.flat else f"at most {MOST:g}"
        lines.append(
            f"| {each.row.what} | {each.row.size:,} | {_shown(each.small)} | {_shown(each.large)} | {each.ratio:.2f} | "
            f"{asked}{'' if each.fine else ': **missed**'} |"
        )
    machine = facts.machine()
    place = ", ".join([machine["processor"], f"{machine['threads']} threads", f"torch {machine['torch']}"])
    return "\n".join([*lines, "", f"{machine['date']}: {place}."]) + "\n"


def _shown(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


if __name__ == "__main__":
    sys.exit(main())
