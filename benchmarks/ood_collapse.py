"""Does collapse help to tell outliers? AUROC of every score before and after it, with a learned and a fixed head.

    python benchmarks/ood_collapse.py --mnist FOLDER   # 20 minutes on one thread; writes docs/results/outliers
    python benchmarks/ood_collapse.py --from-results   # writes the page again from results.json

FOLDER holds the IDX files of MNIST; those of Fashion-MNIST are found, or given by --fashion. Each network is an MLP,
trained by SGD with decay. "Before" is the first epoch after which it has 95 % of its training set right, "after" is the
end of training.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import neuralcollapse as nc
from neuralcollapse.data.load import load_data
from neuralcollapse.ood.page import NAMES
from neuralcollapse.report.figure import COLORS, Axis, Bars, Figure
from neuralcollapse.report.paper import save_figures

sys.path.insert(0, str(Path(__file__).parent))
from run import processor

OUT = Path(__file__).parent.parent / "docs" / "results" / "outliers"
HEADS, SEEDS, TIMES = ("learned", "simplex"), (0, 1, 2), ("before", "after")
RATE, DECAY, BATCH = 0.02, 5e-3, 64
MEASURED = (("accuracy", "training accuracy"), ("nc1", "NC1"), ("nc2", "NC2 of the rows"), ("nc3", "NC3"))
Row = dict[str, Any]
HIGH = 0.95  # training accuracy that counts as "before collapse"


@dataclass
class Inside:
    """A data set that networks are trained on, and images that they were not."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    outside: dict[str, Tensor]
    feature_dim: int
    width: int
    epochs: int


def inputs(images: Tensor, mean: float, std: float) -> Tensor:
    """Pixels less the mean and over the standard deviation of the training images."""
    return (images.float() - mean) / std


def digits(mnist: str, quick: bool, held_out: tuple[int, ...] = ()) -> Inside:
    """The digits; outside are those turned by 90 degrees and MNIST at 8 x 8, or the classes that were held out."""
    data, other = load_data("digits"), load_data(mnist, image_size=8)
    mean, std = data.mean[0], data.std[0]
    (images, labels), (tests, test_labels) = (
        (inputs(split.images, mean, std), split.labels) for split in (data.train, data.test)
    )
    kept, seen = (sum(each == k for k in range(10) if k not in held_out) > 0 for each in (labels, test_labels))
    outside = {"other digits": tests[~seen]}
    if not held_out:
        outside = {
            "turned by 90 degrees": tests.rot90(1, (2, 3)),
            "MNIST at 8 x 8": inputs(other.test.images[:2000] * (16 / 255), mean, std),  # pixels up to 16, as inside
        }
    train, test = (images[kept], labels[kept]), (tests[seen], test_labels[seen])
    return Inside(train, test, outside, 128, 256, 3 if quick else 200)


def fashion(mnist: str, name: str, quick: bool) -> Inside:
    """5,000 images of Fashion-MNIST; outside are MNIST, and images turned by 90 degrees."""
    data = load_data(name, samples_per_class=20 if quick else 500)
    other, (mean, std) = load_data(mnist), (data.mean[0], data.std[0])
    tests = inputs(data.test.images[:2000], mean, std)
    outside = {"MNIST": inputs(other.test.images[:2000], mean, std), "turned by 90 degrees": tests.rot90(1, (2, 3))}
    train = (inputs(data.train.images, mean, std), data.train.labels)
    return Inside(train, (tests, data.test.labels[:2000]), outside, 256, 512, 2 if quick else 100)


def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """In eval mode."""
    network.eval()
    with torch.no_grad():
        found = torch.cat([network(part).argmax(1) for part in images.split(1000)])
    return float((found == labels).double().mean())


def trained(inside: Inside, head: str, seed: int) -> Iterator[tuple[str, int, nn.Module]]:
    """The network at the two times, each with its epoch."""
    images, labels = inside.train
    torch.manual_seed(seed)
    options = {"in_features": images[0].numel(), "width": inside.width}
    network = nc.build_network("mlp", int(labels.max()) + 1, inside.feature_dim, frame=head, **options)
    optimizer = torch.optim.SGD(network.parameters(), lr=RATE, momentum=0.9, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [inside.epochs * 2 // 3, inside.epochs * 9 // 10])
    before = False
    for epoch in range(1, inside.epochs + 1):
        network.train()
        for batch in torch.randperm(len(labels)).split(BATCH):
            if len(batch) > 1:  # batch normalisation needs two
                optimizer.zero_grad()
                F.cross_entropy(network(images[batch]), labels[batch]).backward()
                optimizer.step()
        schedule.step()
        if not before and (accuracy(network, images, labels) >= HIGH or epoch == inside.epochs):
            before = True
            yield "before", epoch, network
    yield "after", inside.epochs, network


def measured(inside: Inside, network: nn.Module) -> Row:
    """Collapse of the training set, accuracies, and the evaluation of every score on every outside set."""

    def loader(images: Tensor, labels: Tensor | None = None) -> list[tuple[Tensor, Tensor]]:
        labels = torch.zeros(len(images), dtype=torch.int64) if labels is None else labels
        return list(zip(images.split(500), labels.split(500), strict=True))

    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always", nc.NeuralCollapseWarning)
        values = nc.measure(network, loader(*inside.train), progress=False)
        scorer = nc.OODScorer.fit(network, loader(*inside.train), progress=False)
    within = scorer.score_loader(network, loader(*inside.test), progress=False)
    found = {
        name: nc.ood.evaluate(within, scorer.score_loader(network, loader(images), progress=False))
        for name, images in inside.outside.items()
    }
    kept = ("nc1", "nc2", "nc3", "accuracy")
    return {
        "measures": {name: values[name] for name in kept},
        "test_accuracy": accuracy(network, *inside.test),
        "undefined": scorer.undefined,
        "warnings": [str(each.message) for each in shown],
        "outside": found,
    }


def data_sets(mnist: str, fashion_name: str, quick: bool) -> dict[str, Inside]:
    """What networks are trained on, by name."""
    return {
        "digits": digits(mnist, quick),
        "digits 0 to 6": digits(mnist, quick, (7, 8, 9)),
        "Fashion-MNIST": fashion(mnist, fashion_name, quick),
    }


def brightness(inside: Inside) -> dict[str, float]:
    """What no network is needed for: the AUROC of the mean pixel, taken as a score for or against each outside set."""
    own = inside.test[0].flatten(1).mean(1)
    found = {name: nc.ood.evaluate(own, images.flatten(1).mean(1))["auroc"] for name, images in inside.outside.items()}
    return {name: max(value, 1 - value) for name, value in found.items()}


def run(sets: dict[str, Inside], quick: bool, say: Callable[[str], None]) -> list[Row]:
    """A row for each network and time."""
    rows: list[Row] = []
    for name, inside in sets.items():
        for head in HEADS:
            for seed in SEEDS[:1] if quick else SEEDS:
                started = time.thread_time()
                for when, epoch, network in trained(inside, head, seed):
                    rows.append({"inside": name, "head": head, "seed": seed, "when": when, "epoch": epoch})
                    rows[-1] |= measured(inside, network)
                    auroc = {key: each["max_logit"]["auroc"] for key, each in rows[-1]["outside"].items()}
                    say(f"{name} {head} {seed} {when} {epoch} nc1 {rows[-1]['measures']['nc1']:.3g} {auroc}")
                say(f"{time.thread_time() - started:.0f} s")
    return rows


WORDS = "## What came\n"  # the part of the page that is written by hand


def mean(values: list[float], digits: int = 3) -> str:
    """Mean and standard deviation over the seeds."""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """Markdown, with an empty line after it."""
    return ["| " + " | ".join(each) + " |" for each in (header, ["---"] * len(header), *rows)] + [""]


def changes(rows: list[Row], head: str, score: str) -> list[float]:
    """AUROC after less before, of each seed and outside set that has both."""
    found = []
    for after in (row for row in rows if row["head"] == head and row["when"] == "after"):
        same = ("inside", "head", "seed")
        before = next(row for row in rows if row["when"] == "before" and all(row[key] == after[key] for key in same))
        for name, values in after["outside"].items():
            if score in values and score in before["outside"][name]:
                found.append(values[score]["auroc"] - before["outside"][name][score]["auroc"])
    return found


def page(found: dict[str, Any], words: str) -> str:
    """The page, with what was said by hand about the numbers."""
    rows: list[Row] = found["rows"]
    columns = [(head, when) for head in HEADS for when in TIMES]
    named = [f"{'learned' if head == 'learned' else 'fixed'} head, {when}" for head, when in columns]
    sets = list(dict.fromkeys(row["inside"] for row in rows))
    lines = [
        "# Outliers before and after collapse",
        "",
        "Written by `python benchmarks/ood_collapse.py`, but for what is said about the numbers, which are all in "
        "results.json.",
        "",
        f"{found['where']} {found['minutes']} minutes in all.",
        "",
        f"MLPs with batch normalisation and ReLU, SGD with learning rate {RATE}, momentum 0.9, weight decay {DECAY}, "
        f"batches of {BATCH}, and a head that is learned or fixed to a simplex. Before is the first epoch after which "
        f"{HIGH:.0%} of the training set are right, after is the end (200 epochs on the digits, 100 on 5,000 images of "
        "Fashion-MNIST). Inside are test images; digits 0 to 6 are networks that saw no others. Means and standard "
        "deviations over seeds 0, 1, 2.",
        "",
        words.strip(),
        "",
        "![Change of AUROC from before to after, by score](change.png)",
        "",
        "## What collapse did to each score",
        "",
        "AUROC after less AUROC before: the mean over five outside sets and three seeds, and in how many of the 15 it "
        "rose.",
        "",
    ]
    cells = []
    for score in NAMES:
        cells.append([NAMES[score]])
        for head in HEADS:
            each = changes(rows, head, score)
            cells[-1] += [f"{statistics.mean(each):+.3f}", f"{sum(value > 0 for value in each)} of {len(each)}"]
    lines += table(["score", "learned head", "rose", "fixed head", "rose"], cells)
    for inside in sets:
        of_set = [[r for r in rows if (r["inside"], r["head"], r["when"]) == (inside, *column)] for column in columns]
        lines += [f"## Inside: {inside}", ""]
        cells = [[name, *(mean([r["measures"][key] for r in each], 4) for each in of_set)] for key, name in MEASURED]
        cells.append(["test accuracy", *(mean([row["test_accuracy"] for row in each]) for each in of_set)])
        cells.append(["epoch", *(", ".join(str(row["epoch"]) for row in each) for each in of_set)])
        lines += table(["", *named], cells)
        for outside in of_set[0][0]["outside"]:
            alone = found["brightness"][inside][outside]
            lines += [f"AUROC, outside: {outside} (mean brightness alone, no network: {alone:.3f})", ""]
            cells = []
            for score in NAMES:
                values = [[row["outside"][outside][score]["auroc"] for row in each] for each in of_set]
                best = max(range(len(values)), key=lambda place: statistics.mean(values[place]))
                shown = [f"**{mean(each)}**" if place == best else mean(each) for place, each in enumerate(values)]
                cells.append([NAMES[score], *shown])
            lines += table(["score", *named], cells)
    return "\n".join(lines).rstrip() + "\n"


def rounded(value: Any) -> Any:
    """The numbers to six digits, which is more than they are worth."""
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def write_page(found: dict[str, Any]) -> None:
    """README.md, its words kept, and the figure."""
    file = OUT / "README.md"
    text = file.read_text() if file.exists() else ""
    words = WORDS + text.partition(WORDS)[2].partition("\n![")[0]
    file.write_text(page(found, words))
    marks = [
        Bars(
            name, list(NAMES.values()), [statistics.mean(changes(found["rows"], head, score)) for score in NAMES], color
        )
        for head, name, color in zip(HEADS, ("learned head", "fixed head"), COLORS, strict=False)
    ]
    words = "Mean over five outside sets and three seeds."
    figure = Figure("change", "Change of AUROC under collapse", words, words, marks, y=Axis("change of AUROC"))
    save_figures([figure], OUT, "png")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", metavar="FOLDER", help="the IDX files of MNIST (found if not given)")
    parser.add_argument("--fashion", metavar="FOLDER", help="those of Fashion-MNIST (found if not given)")
    parser.add_argument("--brightness", action="store_true", help="measure what brightness alone tells apart again")
    parser.add_argument("--from-results", action="store_true", help="write the page again from results.json")
    parser.add_argument("--quick", action="store_true", help="little of everything, printed and not written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.from_results:
        mnist, clothes = (
            f"{name}:{folder}" if folder else name
            for name, folder in (("mnist", options.mnist), ("fashion-mnist", options.fashion))
        )
        started = time.thread_time()
        sets = data_sets(mnist, clothes, options.quick)
        alone = {name: brightness(inside) for name, inside in sets.items()}
        if options.brightness:
            found = json.loads((OUT / "results.json").read_text()) | {"brightness": rounded(alone)}
            (OUT / "results.json").write_text(json.dumps(found, separators=(",", ":")) + "\n")
            write_page(found)
            return
        rows = run(sets, options.quick, lambda line: print(line, file=sys.stderr, flush=True))
        where = f"{processor()}, one thread. Python {platform.python_version()}, torch {torch.__version__}."
        found = {"where": where, "minutes": round((time.thread_time() - started) / 60, 1), "rows": rows, "brightness": alone}
        if options.quick:
            print(json.dumps(found)[:2000])
            return
        OUT.mkdir(parents=True, exist_ok=True)
        (OUT / "results.json").write_text(json.dumps(rounded(found), separators=(",", ":")) + "\n")
    write_page(json.loads((OUT / "results.json").read_text()))


if __name__ == "__main__":
    main()
