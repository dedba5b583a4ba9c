"""The fixed simplex in blocks of features beside the other frames: what it costs, and what a ReLU network learns.

    python benchmarks/blocks.py [RUN ...]     # a few minutes on one thread; writes docs/results/blocks/README.md

RUN: folders of `neuralcollapse train`, of which the last record is shown.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from torch import nn
from torch.nn import functional as F

import neuralcollapse as nc

sys.path.insert(0, str(Path(__file__).parent))
from run import processor

OUT = Path(__file__).parent.parent / "docs" / "results" / "blocks"
SIZES = ((10, 10), (10, 64), (10, 512), (100, 1_024), (1_000, 1_000), (1_000, 2_048), (1_000, 4_096))  # K, d
KINDS = ("none", "blocks", "fast", "learned")
BATCH, EPOCHS, SEEDS = 256, 40, (0, 1, 2)


def head_of(kind: str, dim: int, num_classes: int) -> nn.Module:
    """A last layer: learned, or the simplex with that rotation."""
    return nn.Linear(dim, num_classes) if kind == "learned" else nc.ETFClassifier(dim, num_classes, rotation=kind)


def costs(num_classes: int, dim: int, rounds: int) -> dict[str, float]:
    """Lower quartile of the seconds of a forward and a backward pass, the layers timed in turns."""
    torch.manual_seed(0)
    heads = {kind: head_of(kind, dim, num_classes) for kind in KINDS}
    features, upstream = torch.randn(BATCH, dim, requires_grad=True), torch.randn(BATCH, num_classes)
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(rounds + 3):
        for kind, head in heads.items():
            features.grad = None
            head.zero_grad()
            started = time.perf_counter()
            head(features).backward(upstream)
            times[kind].append(time.perf_counter() - started)
    return {kind: statistics.quantiles(values[3:])[0] for kind, values in times.items()}


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """The digits, pixels from -1 to 1."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images / 8 - 1, dtype=torch.float32), torch.tensor(labels)


def accuracy(kind: str, dim: int, seed: int, epochs: int) -> float:
    """The training accuracy of 64 -> 64 -> d, ReLU after each and no normalisation, on the digits."""
    images, labels = digits()
    torch.manual_seed(seed)
    layers = [nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, dim), nn.ReLU()]
    network = nn.Sequential(*layers, head_of(kind, dim, 10))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(network(images[batch]), labels[batch]).backward()
            optimizer.step()
    return float((network(images).argmax(1) == labels).double().mean())


def of_runs(folders: list[Path]) -> list[str]:
    """Rows of a table: the last record of each run."""
    lines = []
    for folder in folders:
        config = yaml.safe_load((folder / "config.yaml").read_text())
        record = json.loads((folder / "records.jsonl").read_text().splitlines()[-1])
        measures = [record["measures"][key] for key in ("nc1", "nc2_means", "nc3")]
        accuracies = [record[part]["accuracy"] for part in ("train", "test")]
        shown = [record["train"]["loss"], *accuracies, *measures]
        lines.append(f"| {config['rotation']} | {record['epoch']} | " + " | ".join(f"{x:.3f}" for x in shown) + " |")
    return lines


def page(runs: list[Path], quick: bool, say: Callable[[str], None]) -> str:
    """The results as Markdown."""
    lines = [
        "# The fixed simplex in blocks of features",
        "",
        "Written by `python benchmarks/blocks.py`, with the run folders below as arguments.",
        "",
        f"{processor()}, one thread. Python {sys.version.split()[0]}, torch {torch.__version__}.",
        "",
        f"## What it costs: forward and backward, batch {BATCH}, layers in turns, lower quartiles",
        "",
        "| K | d | none | blocks | fast | `nn.Linear` | blocks / none | blocks / `nn.Linear` |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for num_classes, dim in SIZES[:2] if quick else SIZES:
        found = costs(num_classes, dim, 3 if quick else 60)
        cells = [f"{found[kind] * 1e6:,.0f} us" for kind in KINDS]
        cells += [f"{found['blocks'] / found[kind]:.2f}" for kind in ("none", "learned")]
        lines.append(f"| {num_classes:,} | {dim:,} | " + " | ".join(cells) + " |")
        say(lines[-1])
    epochs, seeds = (1, SEEDS[:1]) if quick else (EPOCHS, SEEDS)
    lines += [
        "",
        f"## A small ReLU network without normalisation on the digits: training accuracy after {epochs} epochs",
        "",
        "64 inputs, 64 units, d features, ReLU after each; SGD, learning rate 0.05, momentum 0.9, batches of 64. Seeds "
        f"{', '.join(map(str, seeds))}.",
        "",
        "| d | " + " | ".join(KINDS) + " |",
        "| --- |" + " --- |" * len(KINDS),
    ]
    for dim in (64,) if quick else (10, 64, 256):
        cells = []
        for kind in KINDS:
            cells.append(" ".join(f"{accuracy(kind, dim, seed, epochs):.4f}" for seed in seeds))
            say(f"d={dim} {kind}: {cells[-1]}")
        lines.append(f"| {dim} | " + " | ".join(cells) + " |")
    if runs:
        lines += [
            "",
            "## ResNet18 with d = K = 10 on 2,000 images of Fashion-MNIST, one seed",
            "",
            "The settings of the experiment `fixed-etf` at laptop scale, but 16 epochs for its 40, to finish in time:",
            "",
            "    neuralcollapse train --data fashion-mnist --samples-per-class 200 --image-size 32 --channels 3 "
            "--network resnet18 --channels-last --frame simplex --feature-dim 10 --rotation ROTATION "
            "--optimizer sgd --learning-rate 0.01 --momentum 0.9 --weight-decay 5e-4 --schedule step --decay-every 6 "
            "--epochs 16 --batch-size 64 --measure-at 1,5,10 --checkpoint-every 16 --loggers csv --seed 0",
            "",
            "| rotation | epoch | training loss | training accuracy | test accuracy | NC1 | NC2 of the means | NC3 |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
            *of_runs(runs),
        ]
    return "\n".join([*lines, ""])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN")
    parser.add_argument("--quick", action="store_true", help="little of everything, printed and not written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    text = page(options.runs, options.quick, lambda line: print(line, file=sys.stderr, flush=True))
    if options.quick:
        print(text)
    else:
        OUT.mkdir(parents=True, exist_ok=True)
        (OUT / "README.md").write_text(text)


if __name__ == "__main__":
    main()
