"""Peak memory of a process that measures a vocabulary-parallel head, beside one process that has the whole head.

    python benchmarks/vocabulary.py --write

takes K = 128,000 classes in d = 4,096 dimensions, float32, over 1 and 2 processes, and writes vocabulary.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
import warnings
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

import torch
import torch.distributed
import torch.multiprocessing
from torch import Tensor

import neuralcollapse as nc

PAIRS = 10_000  # pairs of classes that the pairwise measures look at
BLOCK = 1_000  # classes of a batch, and of a block of the weight
SAMPLES = 2  # of each class


def weight_rows(first: int, last: int, dim: int) -> Tensor:
    """The rows of the classes from `first` to before `last`, multiples of BLOCK, which are always the same."""
    rows = torch.empty(last - first, dim)
    for start in range(first, last, BLOCK):
        rows[start - first : start - first + BLOCK].normal_(generator=torch.Generator().manual_seed(start))
    return rows


def batches(num_classes: int, dim: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Features and labels: the row of the class, and noise of the same size."""
    for start in range(0, num_classes, BLOCK):
        labels = torch.arange(start, start + BLOCK).repeat(SAMPLES)
        generator = torch.Generator().manual_seed(num_classes + start)
        features = torch.empty(len(labels), dim).normal_(generator=generator)
        yield features.add_(weight_rows(start, start + BLOCK, dim).repeat(SAMPLES, 1)), labels


def peak() -> float:
    """GB that this process has held at most; unlike `getrusage`, it starts anew in a child process."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e9


def work(rank: int, world: int, num_classes: int, dim: int, folder: str) -> None:
    """Moments and measures in one of the processes, and what they took."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", nc.NeuralCollapseWarning)  # more classes than a simplex holds
    peaks, started = {"before": peak()}, time.time()
    moments: nc.ClassMoments | nc.ClassShard = nc.ClassMoments.zeros(1, 1)
    classes = range(num_classes)
    if world == 1:
        moments = nc.ClassMoments.zeros(num_classes, dim, means_dtype=torch.float32)
    else:
        torch.distributed.init_process_group(
            "gloo", f"file://{folder}/meeting{world}", timedelta(hours=1), rank=rank, world_size=world
        )
        moments = nc.ClassShard.zeros(num_classes, dim, means_dtype=torch.float32)
        classes = moments.classes
    for features, labels in batches(num_classes, dim):
        moments.update(features, labels)
    peaks["moments"] = peak()
    print(
        f"rank {rank} of {world} has its moments: {peaks['moments']:.2f} GB, {time.time() - started:.0f} s", flush=True
    )
    weight = weight_rows(classes.start, classes.stop, dim)
    values = nc.measures(moments, weight, torch.zeros(len(classes)), pairwise=PAIRS)
    peaks["measures"] = peak()
    found = {"peaks": peaks, "values": values, "seconds": time.time() - started}
    (Path(folder) / f"{world}-{rank}.json").write_text(json.dumps(found))
    if world > 1:
        torch.distributed.destroy_process_group()


def main() -> None:
    """Measure over 1 and more processes; print the table, or write it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--classes", type=int, default=128_000, help="K, a multiple of 1,000 times the processes")
    parser.add_argument("--dim", type=int, default=4_096, help="d")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="how many, the first as the reference")
    parser.add_argument("--write", action="store_true", help="write vocabulary.md")
    given = parser.parse_args()
    rows, reference = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for world in given.processes:
            torch.multiprocessing.spawn(work, (world, given.classes, given.dim, folder), nprocs=world)
            ranks = [json.loads((Path(folder) / f"{world}-{rank}.json").read_text()) for rank in range(world)]
            values, reference = ranks[0]["values"], reference or ranks[0]["values"]
            far = max(abs(values[name] - value) / abs(value) for name, value in reference.items() if value)
            held = [max(each["peaks"][when] for each in ranks) for when in ("before", "moments", "measures")]
            rows.append(f"| {world} | " + " | ".join(f"{each:.2f} GB" for each in held) + f" | {far:.0e} |")
            print(rows[-1], f"{ranks[0]['seconds']:.0f} s", flush=True)
    text = f"""# Vocabulary-parallel heads

Written by `python benchmarks/vocabulary.py --write`: K={given.classes:,}, d={given.dim:,}, {SAMPLES} samples a class
in batches of {BLOCK * SAMPLES:,}, features, weight and class means in float32, {PAIRS:,} sampled pairs. What a process
holds at most: before it has moments, with those of all samples, and at the end of `measures` with its rows of the
weight beside them. The last column is how far the measure that differs most is from the first row that was taken.

| processes | before | moments | weight and measures | relative difference |
| --- | --- | --- | --- | --- |
"""
    text += "\n".join(sorted(rows))
    text += f"\n\n{date.today()}: {platform.machine()}, 1 thread a process, torch {torch.__version__}.\n"
    if given.write:
        (Path(__file__).parent / "vocabulary.md").write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
