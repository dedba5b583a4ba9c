"""TrainConfig: the one description of a run, for Python, YAML files and flags (no torch)."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

from neuralcollapse._errors import InputError, nearest


@dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Args:
        data: the data set: "digits" (1,797 images of 8x8 pixels, 10 classes, from scikit-learn).
        network: the network: "mlp".
        width: units of each hidden layer of the MLP.
        depth: layers of the MLP before the classifier, the one that makes the features included.
        feature_dim: dimension d of the features that the classifier sees.
        classifier: "learned", or "etf": fixed to a simplex ETF, without weights (needs feature_dim >= classes - 1).
        epochs: passes over the training set.
        batch_size: samples in a step, at least 2.
        learning_rate: of SGD.
        momentum: of SGD.
        weight_decay: L2 decay on all parameters, coupled (part of the gradient).
        decay_every: epochs after which the learning rate is multiplied by decay_factor, again and again.
        decay_factor: what it is multiplied by.
        measure_every: epochs between measurements; the first and the last are always measured.
        checkpoint_every: epochs between kept weights; the last are always kept.
        certify_head: compare the last layer with the exact optimum of the unconstrained feature model, each time
            (needs feature_dim >= classes - 1 and weight_decay above 0).
        seed: of the initial weights and the order of samples.
    """

    data: str = "digits"
    network: str = "mlp"
    width: int = 512
    depth: int = 3
    feature_dim: int = 256
    classifier: Literal["learned", "etf"] = "learned"
    epochs: int = 200
    batch_size: int = 64
    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 0.01
    decay_every: int = 70
    decay_factor: float = 0.1
    measure_every: int = 1
    checkpoint_every: int = 50
    certify_head: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for item in fields(self):
            value, kind = getattr(self, item.name), type(item.default)
            fits = isinstance(value, (int, float) if kind is float else kind)
            fits = fits and isinstance(value, bool) == (kind is bool)
            _require(self, item.name, fits, f"of type {kind.__name__}")
        _require(self, "batch_size", self.batch_size >= 2, "at least 2, for batch normalisation")
        for name in ("width", "depth", "feature_dim", "epochs"):
            _require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("decay_every", "measure_every", "checkpoint_every"):
            _require(self, name, getattr(self, name) >= 1, "at least 1")
        _require(self, "learning_rate", _positive(self.learning_rate), "positive and finite")
        _require(self, "decay_factor", _positive(self.decay_factor), "positive and finite")
        _require(self, "momentum", 0 <= self.momentum < 1, "from 0 to below 1")
        _require(
            self, "weight_decay", self.weight_decay == 0 or _positive(self.weight_decay), "0 or positive and finite"
        )
        _require(self, "classifier", self.classifier in ("learned", "etf"), "'learned' or 'etf'")
        _require(
            self, "certify_head", not (self.certify_head and self.weight_decay == 0), "used with weight_decay above 0"
        )
        _require(self, "seed", 0 <= self.seed < 2**32, "from 0 to 2^32 - 1")


def check_names(values: dict[str, object], source: str) -> None:
    """Raise if `values` holds a name that is no field of TrainConfig, offering the nearest one.

    Raises:
        InputError: naming the first such name.
    """
    known = [item.name for item in fields(TrainConfig)]
    for name in values:
        if name not in known:
            raise InputError(f"{source}: no option {name!r}{nearest(str(name), known)}; 'train --help' lists them")


def _require(config: TrainConfig, name: str, holds: bool, what: str) -> None:
    if not holds:
        raise InputError(f"expected {name} to be {what}, got {getattr(config, name)!r}")


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0
