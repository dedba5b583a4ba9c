"""The fixed simplex ETF layer beside `nn.Linear`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

import neuralcollapse as nc
from harness import Row, Table


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


def _step(layer: nn.Module, batch: int) -> Callable[[], None]:
    features = torch.randn(batch, layer.in_features, requires_grad=True)
    gradient = torch.randn(batch, layer.out_features)

    def run() -> None:
        features.grad = None
        layer.zero_grad()
        layer(features).backward(gradient)

    return run
