"""Fixed last layers beside `nn.Linear`.

    python benchmarks/classifier.py              # the grid of sizes, in alternation, about a minute
    python benchmarks/classifier.py --compiled   # the same through torch.compile, some minutes more to compile

Compiled layers are called through a module around them, since torch.compile leaves a bare `nn.Linear` as it is.

Ratios above 1.0, where a fixed layer is slower than `nn.Linear`, are marked: with (?) where that of a quarter of the
rounds is below, and with (!) where it is not.
"""

from __future__ import annotations

import argparse
import types
from collections.abc import Callable, Iterator

import torch
from torch import nn

import neuralcollapse as nc
from harness import Result, Row, Table, measured

GRID = (
    (10, 10, 1),
    (10, 512, 1),
    (10, 512, 128),
    (100, 512, 128),
    (100, 2_048, 32),
    (1_000, 1_000, 1),
    (1_000, 1_000, 256),
    (1_000, 2_048, 128),
)  # K, d, batch


def classifier(quick: bool) -> Table:
    """A forward and a backward pass of one layer."""
    size, batch = (50, 16) if quick else (1_000, 256)
    torch.manual_seed(0)
    return Table(
        f"Classifier: forward and backward, batch {batch}, d=K={size:,}",
        [
            Row("`nn.Linear`", _step(nn.Linear(size, size), batch)),
            Row("`ETFClassifier`", _step(nc.ETFClassifier(size, size), batch), "at most 0.1"),
            Row("the same, learnt scale", _step(nc.ETFClassifier(size, size, learn_scale=True), batch)),
            Row("the same, d=4K, in blocks", _step(nc.ETFClassifier(4 * size, size), batch)),
            Row("the same, fast rotation", _step(nc.ETFClassifier(size, size, rotation="fast"), batch)),
        ],
        rounds=2 if quick else 41,
    )


def layers(num_classes: int, dim: int, dtype: torch.dtype) -> Iterator[tuple[str, nn.Module]]:
    """nn.Linear, and every frame with every rotation that makes another product."""
    yield "linear", nn.Linear(dim, num_classes, dtype=dtype)
    for rotation in ("none", "blocks", "fast", "nearest"):
        if rotation != "blocks" or dim >= 2 * num_classes:
            yield rotation, nc.ETFClassifier(dim, num_classes, rotation=rotation, dtype=dtype)
    for rotation in ("none", "fast"):
        layer = nc.OrthoplexClassifier(dim, num_classes, rotation=rotation, dtype=dtype)
        yield f"orthoplex {rotation}", layer
    yield "learnt scale", nc.ETFClassifier(dim, num_classes, learn_scale=True, dtype=dtype)
    if num_classes * dim <= 51_200:  # its product is that of any stored matrix, and its rows take long to find
        yield "code", nc.SoftmaxCodeClassifier(dim, num_classes, steps=1, dtype=dtype)


def grid(compiled: bool) -> Iterator[str]:
    """A line for each size and dtype: the time of nn.Linear forward and backward, and the ratios to it."""
    for dtype in (torch.float32, torch.bfloat16):
        for num_classes, dim, batch in GRID:
            rows = []
            for label, layer in layers(num_classes, dim, dtype):
                rows.append(Row(label, _step(layer, batch, dtype, _compiled(layer) if compiled else layer)))
            found = measured(Table("", rows, rounds=21), judge=False)
            cells = [str(dtype).removeprefix("torch."), num_classes, dim, batch, f"{found[0].seconds * 1e6:.0f} us"]
            yield "| " + " | ".join(map(str, [*cells, ", ".join(map(_ratio, found[1:]))])) + " |"


def _compiled(layer: nn.Module) -> nn.Module:
    """The layer inside a compiled module. Its forward has a code object of its own, and so a cache of its own."""

    def forward(self: nn.Module, features: torch.Tensor) -> torch.Tensor:
        return self.layer(features)

    own = types.FunctionType(forward.__code__.replace(), globals())
    module = type("Around", (nn.Module,), {"forward": own})()
    module.layer = layer
    return torch.compile(module, dynamic=False)


def _ratio(found: Result) -> str:
    assert found.ratio is not None  # of a table that compares
    mark = "" if found.ratio <= 1 else " (!)" if found.quartiles[0] > 1 else " (?)"
    return f"{found.label} {found.ratio:.2f}{mark}"


def _step(
    layer: nn.Module,
    batch: int,
    dtype: torch.dtype = torch.float32,
    called: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Callable[[], None]:
    features = torch.randn(batch, layer.in_features, dtype=dtype, requires_grad=True)
    gradient = torch.randn(batch, layer.out_features, dtype=dtype)
    forward, parameters = layer if called is None else called, list(layer.parameters())

    def run() -> None:
        features.grad = None
        for parameter in parameters:
            parameter.grad = None
        forward(features).backward(gradient)

    return run


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compiled", action="store_true", help="through torch.compile")
    print("| type | K | d | batch | `nn.Linear` | ratios to it |\n| --- | --- | --- | --- | --- | --- |")
    for line in grid(parser.parse_args().compiled):
        print(line, flush=True)
