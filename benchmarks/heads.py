"""Fixed last layers against nn.Linear with thousands of classes: parameters, optimiser state, time, accuracy.

    python benchmarks/heads.py          # half an hour on one thread; writes the tables of docs/results/heads, not
                                        # what is said about them

The task is next-word prediction on Python's own help texts: the 2,000 most frequent words are the classes, the eight
words before are the input of a small network. What is shown is what a head costs and what it reaches, not the best
that such a network can do.
"""

from __future__ import annotations

import argparse
import collections
import json
import platform
import re
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics

import torch
from torch import nn
from torch.nn import functional as F

import neuralcollapse as nc

sys.path.insert(0, str(Path(__file__).parent))
from run import processor

OUT = Path(__file__).parent.parent / "docs" / "results" / "heads"
CLASSES, CONTEXT, EMBEDDING, HIDDEN, BATCH = 2_000, 8, 64, 512, 256
SIZES = ((2_000, 2_000), (2_000, 1_024), (4_096, 512))  # K, d of the costs
DIMS = (2_000, 1_024, 512)  # of the accuracies
RATE = 1e-3


def head_of(kind: str, dim: int, num_classes: int) -> nn.Module:
    """A last layer: linear, or the fixed frame that fits, with a learnt length of its rows."""
    linear = nn.Linear(dim, num_classes)
    if kind == "linear":
        return linear
    steps = {"steps": 100} if num_classes > 2 * dim else {}
    return nc.fix_classifier(linear, scale=10.0, learn_scale=True, **steps)


def costs(num_classes: int, dim: int, rounds: int) -> list[dict[str, object]]:
    """Parameters, optimiser state and step time of both heads, timed in alternation."""
    heads = {kind: head_of(kind, dim, num_classes) for kind in ("linear", "fixed")}
    features = torch.randn(BATCH, dim, requires_grad=True)
    labels = torch.randint(num_classes, (BATCH,))
    optimizers = {kind: torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9) for kind, head in heads.items()}
    times: dict[str, list[float]] = {kind: [] for kind in heads}
    for _ in range(rounds + 3):
        for kind, head in heads.items():
            started = time.perf_counter()
            optimizers[kind].zero_grad()
            F.cross_entropy(head(features), labels).backward()
            optimizers[kind].step()
            times[kind].append(time.perf_counter() - started)
    rows = []
    for kind, head in heads.items():
        trained = sum(parameter.numel() for parameter in head.parameters())
        ratios = [own / base for own, base in zip(times[kind][3:], times["linear"][3:], strict=True)]
        rows.append(
            {
                "K": num_classes,
                "d": dim,
                "head": getattr(head, "frame", "linear"),
                "parameters": trained,
                "momentum_bytes": 4 * trained,
                "adam_bytes": 8 * trained,
                "step_seconds": statistics.median(times[kind][3:]),
                "step_ratio": statistics.median(ratios),
            }
        )
    return rows


def words() -> tuple[torch.Tensor, torch.Tensor, int]:
    """Contexts (N, CONTEXT), the word that follows (N,) among the most frequent, and the size of the vocabulary."""
    text = re.findall(r"[a-z_]+|[^\sa-z_]", "\n".join(topics.values()).lower())
    order = [word for word, _ in collections.Counter(text).most_common()]
    number = {word: index for index, word in enumerate(order)}
    tokens = torch.tensor([number[word] for word in text])
    windows = tokens.unfold(0, CONTEXT + 1, 1)
    known = windows[windows[:, -1] < CLASSES]
    return known[:, :-1], known[:, -1], len(order)


def train(kind: str, dim: int, seed: int, epochs: int, say: Callable[[str], None]) -> dict[str, float]:
    """Train and test: every tenth stretch of 50 words is held out, its neighbours' contexts do not reach into it."""
    contexts, labels, vocabulary = words()
    stretch = torch.arange(len(labels)) // 50
    held_out = stretch % 10 == 9
    near = torch.nn.functional.max_pool1d(held_out[None, None].float(), 2 * CONTEXT + 1, 1, CONTEXT)[0, 0] > 0
    torch.manual_seed(seed)
    body = nn.Sequential(
        nn.Embedding(vocabulary, EMBEDDING),
        nn.Flatten(),
        nn.Linear(CONTEXT * EMBEDDING, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, dim),
    )
    network = nn.Sequential(body, head_of(kind, dim, CLASSES))
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.01)
    chosen = (~near).nonzero().flatten()
    started = time.perf_counter()
    for _ in range(epochs):
        for batch in chosen[torch.randperm(len(chosen))].split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(network(contexts[batch]), labels[batch]).backward()
            optimizer.step()
    seconds = time.perf_counter() - started
    network.eval()
    with torch.no_grad():
        logits = torch.cat([network(part) for part in contexts[held_out].split(2_000)])
    wanted = labels[held_out]
    top = logits.topk(5, 1).indices
    result = {
        "accuracy": float((top[:, 0] == wanted).double().mean()),
        "top5": float((top == wanted[:, None]).any(1).double().mean()),
        "loss": float(F.cross_entropy(logits, wanted)),
        "seconds": seconds,
        "parameters": float(sum(value.numel() for value in network.parameters())),
    }
    say(f"d={dim} {kind} seed {seed}: {result['accuracy']:.4f}, loss {result['loss']:.3f}, {seconds:.0f} s")
    return result


def page(found: dict[str, object]) -> str:
    """The results as Markdown."""
    lines = [
        "# Fixed heads for thousands of classes",
        "",
        "Written by `python benchmarks/heads.py`. A fixed head holds no trainable weight: a simplex ETF for",
        "K <= d+1, an orthoplex for K <= 2d, an optimised softmax code beyond, with a bias and one learnt length.",
        "The simplex (in blocks) and the orthoplex (turned by the fast rotation) store no matrix; the code is a stored",
        "(K, d) buffer.",
        "",
        f"{found['hardware']}",
        "",
        f"## What a head costs: forward, loss, backward, SGD step at batch {BATCH}",
        "",
        "| K | d | head | trained parameters | momentum of SGD | moments of Adam | step | of linear |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in found["costs"]:  # type: ignore[attr-defined]
        sizes = [f"{row[name] / 2**20:.2f} MiB" for name in ("momentum_bytes", "adam_bytes")]
        lines.append(
            f"| {row['K']:,} | {row['d']:,} | {row['head'].replace('_', ' ')} | {row['parameters']:,} | {sizes[0]} | "
            f"{sizes[1]} | {row['step_seconds'] * 1e3:.1f} ms | {row['step_ratio']:.2f} |"
        )
    lines += [
        "",
        f"## What it reaches: next of {CLASSES:,} words, held-out text, {found['epochs']} epochs of AdamW "
        f"(learning rate {RATE:g})",
        "",
        f"Mean and standard deviation over {found['seeds']} seeds. Training time is of the whole network, one",
        "run after another, so it is less exact than the ratios above.",
        "",
        "| d | head | parameters of the network | accuracy | top 5 | loss | training |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in found["accuracies"]:  # type: ignore[attr-defined]
        runs = row["runs"]

        def spread(name: str, digits: int, runs: list[dict[str, float]] = runs) -> str:
            values = [run[name] for run in runs]
            deviation = statistics.stdev(values) if len(values) > 1 else float("nan")
            return f"{statistics.mean(values):.{digits}f} ± {deviation:.{digits}f}"

        cells = [
            f"{row['d']:,}",
            row["head"].replace("_", " "),
            f"{runs[0]['parameters']:,.0f}",
            spread("accuracy", 4),
            spread("top5", 4),
            spread("loss", 3),
            f"{statistics.mean(run['seconds'] for run in runs):.0f} s",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--dims", type=int, nargs="+", default=list(DIMS))
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    warnings.simplefilter("ignore", nc.NeuralCollapseWarning)
    torch.manual_seed(0)
    found: dict[str, object] = {
        "hardware": f"{processor()}, {torch.get_num_threads()} threads, no GPU. Python {platform.python_version()}, "
        f"torch {torch.__version__}.",
        "epochs": options.epochs,
        "seeds": options.seeds,
        "costs": [row for size in SIZES for row in costs(*size, options.rounds)],
        "accuracies": [],
    }
    for dim in options.dims:
        for kind in ("linear", "fixed"):
            runs = [train(kind, dim, seed, options.epochs, print) for seed in range(options.seeds)]
            frame = "linear" if kind == "linear" else getattr(head_of("fixed", dim, CLASSES), "frame", "")
            found["accuracies"].append({"d": dim, "head": frame, "runs": runs})  # type: ignore[attr-defined]
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    (options.out / "README.md").write_text(page(found))
    print(page(found))


if __name__ == "__main__":
    main()
