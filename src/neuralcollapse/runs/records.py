"""What is kept of a measured epoch: numbers (`Record`), class means and classifier (`Geometry`) (no torch)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from neuralcollapse.runs.arrays import check_shapes, read_arrays
from neuralcollapse.runs.owned import epoch_of
from neuralcollapse.runs.plain import finite, number, parse_json, plain

_SOURCES = ("eval", "online")
_LAST_EPOCH = 10**12
_ARRAYS = {"means": "Kd", "global_mean": "d", "weight": "Kd", "bias": "K"}
_ARRAYS_BYTES = 2**26  # of one geometry, or so many times its file:
_INFLATED = 20
_LARGEST = 1e15  # of a class mean or weight: squares of such fit in float32


@dataclass(frozen=True, eq=False)
class Record:
    """One measured epoch: what `neuralcollapse.Recorder.measure` returns and a line of records.jsonl holds.

    Numbers that are undefined are NaN. Records are equal when all that they hold is, NaN to NaN.

    Attributes:
        epoch: epochs trained so far; 0 is the network as initialised. Of a run whose config says so, steps or
            checkpoints (`unit`).
        seconds: since the run began.
        learning_rate: of the epoch that ended.
        train: loss and accuracy in eval mode on the training set.
        test: loss and accuracy on the test set.
        measures: the keys of `neuralcollapse.measures` and nc4, on the training set.
        head: where asked for, the last layer's objective, exact minimum, their ratio and lower bound
            (`neuralcollapse.ufm.certify_head`).
        layers: where asked for, the feature measures of inner layers, by name.
        source: "eval": of a pass over the un-augmented training set in eval mode; "online": of the training steps of
            the epoch, while the weights moved.
    """

    epoch: int
    seconds: float
    learning_rate: float
    train: dict[str, float]
    test: dict[str, float] = field(default_factory=dict)
    measures: dict[str, float] = field(default_factory=dict)
    head: dict[str, float] = field(default_factory=dict)
    layers: dict[str, dict[str, float]] = field(default_factory=dict)
    source: str = "eval"

    def flat(self) -> dict[str, float]:
        """Every number by a name for loggers: "collapse/nc1", "train/loss", "test/accuracy", "head/ratio", ..."""
        groups = {"collapse": self.measures, "train": self.train, "test": self.test, "head": self.head}
        return {f"{group}/{name}": value for group, part in groups.items() for name, value in part.items()}

    def to_json(self) -> str:
        """One line of JSON; NaN as null."""
        return json.dumps(finite(plain(asdict(self))))

    @classmethod
    def from_json(cls, line: str) -> Record:
        """The inverse of `to_json`.

        Raises:
            ValueError: the line is no record.
        """
        values = parse_json(line)
        known = {item.name for item in fields(cls)}
        if not isinstance(values, dict) or not set(values) <= known:
            raise ValueError(f"expected a mapping of {', '.join(item.name for item in fields(cls))}")
        for name in ("epoch", "seconds", "learning_rate", "train"):
            if name not in values:
                raise ValueError(f"it has no {name}")
        epoch, source, layers = values["epoch"], values.get("source", "eval"), values.get("layers", {})
        if type(epoch) is not int or not 0 <= epoch <= _LAST_EPOCH:
            raise ValueError(f"expected epoch as a number from 0, got {epoch!r:.40}")
        if source not in _SOURCES:
            raise ValueError(f"expected source to be one of {', '.join(_SOURCES)}, got {source!r:.40}")
        if not isinstance(layers, dict):
            raise ValueError(f"expected layers by name, got {layers!r:.40}")
        return cls(
            epoch=epoch,
            seconds=number(values["seconds"]),
            learning_rate=number(values["learning_rate"]),
            **{group: _numbers(group, values.get(group, {})) for group in ("train", "test", "measures", "head")},
            layers={name: _numbers(name, part) for name, part in layers.items()},
            source=source,
        )

    def __eq__(self, other: object) -> bool:
        return _same(asdict(self), asdict(other)) if isinstance(other, Record) else NotImplemented

    def __hash__(self) -> int:
        return hash((self.epoch, self.source))


@dataclass(frozen=True)
class Geometry:
    """Class means (K, d) and their mean over samples (d,), and the classifier (K, d), (K,), at one epoch."""

    epoch: int
    means: np.ndarray
    global_mean: np.ndarray
    weight: np.ndarray
    bias: np.ndarray

    @property
    def centred(self) -> np.ndarray:
        """(K, d) class means about the mean of the samples."""
        return self.means - self.global_mean


def _numbers(name: str, values: Any) -> dict[str, float]:
    if not isinstance(values, dict):
        raise ValueError(f"expected {name} as numbers by name, got {values!r:.40}")
    return {key: number(x) for key, x in values.items()}


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(value, other[name]) for name, value in one.items())
    return bool(one == other or (one != one and other != other))


def read_geometry(file: Path) -> Geometry:
    """A geometry that figures can be drawn of: floats of the right shapes, undefined at most the means of a class.

    Raises:
        ValueError: it holds something else.
        OSError, EOFError, zipfile.BadZipFile, NotImplementedError, MemoryError: it is damaged.
    """
    most = max(_ARRAYS_BYTES, _INFLATED * file.stat().st_size)
    arrays, _ = read_arrays(file, list(_ARRAYS), most=most)
    check_shapes(arrays, _ARRAYS)
    for name, value in arrays.items():
        ok = np.abs(value.astype(np.float64)) <= _LARGEST
        if not (ok | np.isnan(value) if name == "means" else ok).all():
            raise ValueError(f"{name} holds what is no number, or one beyond {_LARGEST:g}")
    return Geometry(epoch_of(file), **{name: value.astype(np.float32) for name, value in arrays.items()})


MEASURES: dict[str, tuple[str, str]] = {
    "nc1": ("NC1", "tr(S_W S_B^+)/K: spread within classes against spread between them"),
    "nc1_quotient": ("NC1, quotient", "tr S_W / tr S_B"),
    "nc1_cdnv": ("NC1, CDNV", "variance over squared distance, mean over pairs of classes"),
    "nc2": ("NC2", "distance of the classifier's rows from a simplex ETF"),
    "nc2_means": ("NC2, means", "distance of the class means from a simplex ETF"),
    "nc3": ("NC3", "distance of W M from a simplex ETF: classifier against class means"),
    "nc3_distance": ("NC3, distance", "|W/|W| - M/|M||: classifier against class means"),
    "nc4": ("NC4", "share of samples not predicted as the class of the nearest mean"),
    "nc_bias": ("NC bias", "|b + W mu_G|: free to stay large when the bias has no decay"),
    "nc_bias_centered": ("NC bias, centred", "the same less what shifts all logits alike"),
    "equinorm_means": ("equinorm, means", "spread of the lengths of the class means"),
    "equinorm_weights": ("equinorm, rows", "spread of the lengths of the classifier's rows"),
    "equiangularity_means": ("equiangularity, means", "spread of the cosines between class means"),
    "equiangularity_weights": ("equiangularity, rows", "spread of the cosines between the classifier's rows"),
    "max_equiangularity_means": ("maximal angles, means", "mean |cos + 1/(K-1)| between class means"),
    "max_equiangularity_weights": ("maximal angles, rows", "mean |cos + 1/(K-1)| between the classifier's rows"),
}
"""Label and meaning of each measure, in the order of tables. All but nc_bias go to 0 under collapse."""
