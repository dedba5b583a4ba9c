"""What is kept of a measured epoch: its numbers (`Record`), its class means and classifier (`Geometry`) (no torch).

This is the one place that says what a record holds: loops fill it in, run folders store it, pages and tables read it.
At the end: how people read its numbers, the same in tables, pages and on the terminal.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from neuralcollapse.errors import InputError
from neuralcollapse.runs.arrays import check_shapes, read_arrays
from neuralcollapse.runs.files import as_builtin, as_float, nan_to_none, parse_json
from neuralcollapse.runs.html import as_table
from neuralcollapse.runs.ownership import epoch_of

_SOURCES = ("eval", "online")
_NUMBERS = ("train", "test", "measures", "head", "minimizer", "untrained")  # groups of numbers by name
_LAYERS = ("layers", "test_layers")  # groups of numbers by name, for each layer
_SPARSE = ("minimizer", "untrained", "test_layers", "events")  # entries that a line leaves out where they are empty
_EXPECTED = {"minimizer": "{} at the minimum", "untrained": "{} of an untrained head"}
_LAST_EPOCH = 10**12
_FLOATS = frozenset([float])
_ARRAYS = {"means": "Kd", "global_mean": "d", "weight": "Kd", "bias": "K"}
_ARRAYS_BYTES = 2**26  # the most for one geometry, or, if that is more, so many times the size of its file:
_INFLATED = 20
_LARGEST = 1e15  # of a class mean or weight: its square still fits in float32


_GROUPS = "num_groups"  # of samples, behind the standard errors among the measures
_LOGGED_HEAD = ("objective", "minimum", "ratio", "lower_bound")


@dataclass(frozen=True, eq=False)
class Record:
    """One measured epoch: what `neuralcollapse.Recorder.measure` returns and a line of records.jsonl holds.

    Undefined numbers are NaN. Two records are equal when all their entries are, NaN counting as equal to NaN.

    Attributes:
        epoch: epochs trained so far, 0 for the network as initialised; steps or checkpoints where the run's
            configuration has that `unit`.
        seconds: since the run began.
        learning_rate: in the epoch that ended.
        train: loss and accuracy on the training set in eval mode.
        test: loss and accuracy on the test set, and the measures of its features ("test" of `neuralcollapse.measure`).
        measures: the keys of `neuralcollapse.measures`, nc4 and ncc_accuracy, on the training set.
        head: if asked for, the last layer's objective, its minimum, their ratio, the lower bound, and the model that
            it was compared with (`neuralcollapse.ufm.HeadCertificate.record`).
        layers: if asked for, the measures of inner layers, by dotted name.
        test_layers: the same on the test set.
        minimizer: where theory knows them, the values of the measures at the exact minimiser of the unconstrained
            feature model for the run's class counts, decays, loss and sign of the features.
        untrained: where they are known, the values of measures that are expected before any training.
        source: "eval" for a pass over the un-augmented training set in eval mode; "online" for the training steps of
            the epoch, during which the weights moved.
        events: what happened with this record, by name, in words: "collapse_begun" (see
            `neuralcollapse.runs.events.collapse_begun`), "stopped" (why the training was stopped early).
    """

    epoch: int
    seconds: float
    learning_rate: float
    train: dict[str, float]
    test: dict[str, float] = field(default_factory=dict)
    measures: dict[str, float] = field(default_factory=dict)
    head: dict[str, float] = field(default_factory=dict)
    layers: dict[str, dict[str, float]] = field(default_factory=dict)
    test_layers: dict[str, dict[str, float]] = field(default_factory=dict)
    source: str = "eval"
    events: dict[str, str] = field(default_factory=dict)
    minimizer: dict[str, float] = field(default_factory=dict)
    untrained: dict[str, float] = field(default_factory=dict)

    def flat(self) -> dict[str, float]:
        """The numbers by a name for loggers: "collapse/nc1", "train/loss", "test/accuracy", "head/ratio", ...

        Of the head those that change: what describes its model is left out.
        """
        head = {name: self.head[name] for name in _LOGGED_HEAD if name in self.head}
        groups = {
            "collapse": self.measures,
            "train": self.train,
            "test": self.test,
            "head": head,
            "minimizer": self.minimizer,
        }
        return {f"{group}/{name}": value for group, part in groups.items() for name, value in part.items()}

    def value(self, key: str) -> float:
        """A number by its key; NaN where there is none.

        A measure such as "nc1", or one of a group, such as "test.accuracy", "minimizer.nc2" or "layers.body.0.nc1".
        """
        numbers, name = self._place(key)
        return numbers.get(name, math.nan)

    def has(self, key: str) -> bool:
        """Whether there is a number `key` (see `value`), be it undefined."""
        numbers, name = self._place(key)
        return name in numbers

    def _place(self, key: str) -> tuple[dict[str, float], str]:
        """The numbers among which the one of this key is, and its name there."""
        group, dot, name = key.partition(".")
        if not dot:
            return self.measures, key
        if group in _LAYERS:
            layer, _, name = name.rpartition(".")
            return getattr(self, group).get(layer, {}), name
        return getattr(self, group), name

    def to_dict(self) -> dict[str, Any]:
        """The record in plain values, None for NaN; entries that few records have are left out where they are empty."""
        values: dict[str, Any] = nan_to_none(as_builtin(asdict(self)))
        return {name: value for name, value in values.items() if value or name not in _SPARSE}

    @classmethod
    def from_dict(cls, values: Any) -> Record:
        """The inverse of `to_dict`.

        Raises:
            ValueError: the values are not those of a record.
        """
        if not isinstance(values, dict) or not values.keys() <= _FIELDS.keys():
            raise ValueError(f"expected a mapping of {', '.join(_FIELDS)}")
        if not values.keys() >= _REQUIRED:
            raise ValueError(f"it has no {next(name for name in _FIELDS if name in _REQUIRED - values.keys())}")
        epoch, source, events = values["epoch"], values.get("source", "eval"), values.get("events", {})
        if type(epoch) is not int or not 0 <= epoch <= _LAST_EPOCH:
            raise ValueError(f"expected epoch as a number from 0, got {epoch!r:.40}")
        if source not in _SOURCES:
            raise ValueError(f"expected source to be one of {', '.join(_SOURCES)}, got {source!r:.40}")
        if not isinstance(events, dict) or not all(isinstance(text, str) for text in events.values()):
            raise ValueError(f"expected events by name, in words, got {events!r:.40}")
        record = cls.__new__(cls)
        entries = {
            "epoch": epoch,
            "seconds": as_float(values["seconds"]),
            "learning_rate": as_float(values["learning_rate"]),
            **_groups({name: values.get(name, {}) for name in _NUMBERS}),
            "layers": _by_layer("layers", values),
            "test_layers": _by_layer("test_layers", values),
            "source": source,
            "events": events,
        }
        # a frozen dataclass would set its entries one by one, which takes a third of the time to read a long run
        object.__setattr__(record, "__dict__", entries)
        return record

    def to_json(self) -> str:
        """The record as one line of JSON."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, line: str) -> Record:
        """The inverse of `to_json`.

        Raises:
            ValueError: the line is not a record.
        """
        return cls.from_dict(parse_json(line))

    def _repr_html_(self) -> str:
        """The record in a notebook: every measure with its meaning, training set beside test set."""
        tested = bool(self.test)
        numbers = [("accuracy", "accuracy", "share classified correctly"), ("loss", "loss", "mean over the samples")]
        numbers += [(name, *words) for name, words in MEASURES.items()]
        rows = []
        for name, called, meaning in numbers:
            values = self.train if name in self.train else self.measures
            if name in values or name in self.test:
                shown = [number(part[name]) if name in part else "" for part in (values, self.test)[: 1 + tested]]
                rows.append((called, *shown, meaning))
        rows += (
            [("head / exact minimum", number(self.head["ratio"]), *[""] * tested, "")] if "ratio" in self.head else []
        )
        header = ("measure", "training set", *["test set"] * tested, "meaning")
        happened = " ".join(f"{name.replace('_', ' ')}: {text}." for name, text in self.events.items())
        return as_table(f"Record {self.epoch:,}", rows, header, happened)

    def __eq__(self, other: object) -> bool:
        return _same(asdict(self), asdict(other)) if isinstance(other, Record) else NotImplemented

    def __hash__(self) -> int:
        return hash((self.epoch, self.source))


_FIELDS = {item.name: item for item in fields(Record)}
_REQUIRED = {"epoch", "seconds", "learning_rate", "train"}


@dataclass(frozen=True)
class Geometry:
    """Class means (K, d), the mean of the samples (d,), and the classifier's weight (K, d) and bias (K,)."""

    epoch: int
    means: np.ndarray
    global_mean: np.ndarray
    weight: np.ndarray
    bias: np.ndarray

    @property
    def centred(self) -> np.ndarray:
        """(K, d) class means less the mean of the samples."""
        return self.means - self.global_mean


def _groups(groups: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Groups of numbers by name, as floats."""
    try:
        numbers = list(chain.from_iterable(map(dict.values, groups.values())))
        if _FLOATS.issuperset(map(type, numbers)) and math.isfinite(sum(numbers)):
            return groups  # nothing to convert, as in nearly all of the 100,000 records that a run may have
    except TypeError:  # something is no mapping
        pass
    return {name: _numbers(name, values) for name, values in groups.items()}


def _numbers(name: str, values: Any) -> dict[str, float]:
    if not isinstance(values, dict):
        raise ValueError(f"expected {name} as numbers by name, got {values!r:.40}")
    return {key: as_float(x) for key, x in values.items()}


def _by_layer(group: str, values: dict[str, Any]) -> dict[str, dict[str, float]]:
    layers = values.get(group, {})
    if not isinstance(layers, dict):
        raise ValueError(f"expected {group} by name, got {layers!r:.40}")
    return layers and {name: _numbers(name, part) for name, part in layers.items()}


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(value, other[name]) for name, value in one.items())
    return bool(one == other or (one != one and other != other))


def read_geometry(file: Path) -> Geometry:
    """A kept geometry: floats whose shapes agree; only class means may be undefined.

    Raises:
        ValueError: the file holds something else.
        OSError, EOFError, zipfile.BadZipFile, NotImplementedError, MemoryError: it is damaged.
    """
    most = max(_ARRAYS_BYTES, _INFLATED * file.stat().st_size)
    arrays, _ = read_arrays(file, list(_ARRAYS), most=most)
    check_shapes(arrays, _ARRAYS)
    for name, value in arrays.items():
        ok = np.abs(value.astype(np.float64)) <= _LARGEST
        if not (ok | np.isnan(value) if name == "means" else ok).all():
            raise ValueError(f"{name} holds a value that is not a number, or one beyond {_LARGEST:g}")
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
    "ncc_accuracy": ("NCC accuracy", "share of samples whose nearest class mean is that of their label"),
    "nc0": ("NC0", "|1'W|^2 / (K |W|^2): what the classifier's rows have in common; decay alone removes it"),
    "nc_bias": ("NC bias", "|b + W mu_G|: free to stay large when the bias has no decay"),
    "nc_bias_centered": ("NC bias, centred", "the same less what shifts all logits alike"),
    "equinorm_means": ("equinorm, means", "spread of the lengths of the class means"),
    "equinorm_weights": ("equinorm, rows", "spread of the lengths of the classifier's rows"),
    "equiangularity_means": ("equiangularity, means", "spread of the cosines between class means"),
    "equiangularity_weights": ("equiangularity, rows", "spread of the cosines between the classifier's rows"),
    "max_equiangularity_means": ("maximal angles, means", "mean |cos + 1/(K-1)| between class means"),
    "max_equiangularity_weights": ("maximal angles, rows", "mean |cos + 1/(K-1)| between the classifier's rows"),
}
"""Label and meaning of each measure, in the order of tables; where they go under collapse: `goal`."""


def interval(record: Record, name: str) -> tuple[float, float]:
    """The 95 % interval of a measure's value without bias, from its standard error; NaN where there is none."""
    value, error, groups = (
        record.measures.get(key, math.nan) for key in (f"{name}_corrected", f"{name}_error", _GROUPS)
    )
    half = error * student_95(groups - 1)
    return value - half, value + half


def student_95(freedom: float) -> float:
    """What `|t|` of Student's distribution exceeds in 5 % of cases, to 1 % from three degrees of freedom on."""
    z, n = 1.959964, freedom
    if not n >= 1:
        return math.nan
    terms = (z**3 + z) / (4 * n), (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
    more = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    return z + sum(terms) + more


def goal(record: Record) -> str:
    """Where its measures go under collapse: to 0, unless theory says that the exact minimiser has others."""
    expected = [x for name, x in record.minimizer.items() if name in MEASURES and not name.startswith("nc_bias")]
    if any(x > 0 for x in expected):
        return "the measures go to their values at the minimum"
    return "all but NC bias go to 0" + (", NCC accuracy to 1" if "ncc_accuracy" in record.measures else "")


def check_key(key: object, source: str) -> str:
    """`key`, if `Record.value` knows it; `source` says in the error where the key was given."""
    group, dot, name = str(key).partition(".")
    groups = [name for name in _NUMBERS if name != "measures"]
    if group in _LAYERS and all((parts := name.rpartition("."))[::2]) and parts[2] in MEASURES:
        return str(key)
    known = name in MEASURES if group in _EXPECTED else group in groups if dot else key in MEASURES
    if not isinstance(key, str) or not known:
        raise InputError(
            f"{source}: no number {key!r}: expected a measure ({', '.join(MEASURES)}), or "
            f"{', '.join(f'{each}.' for each in groups)} and a name, such as test.accuracy, or {', '.join(_LAYERS)} "
            "with the layer and a measure, such as layers.body.nc1"
        )
    return key


def label(key: str) -> str:
    """How pages call the number `key`."""
    if key in MEASURES:
        return MEASURES[key][0]
    group, _, name = key.partition(".")
    if group in _EXPECTED:
        return _EXPECTED[group].format(label(name))
    if group in _LAYERS:
        layer, _, name = name.rpartition(".")
        return f"{'test ' * (group == 'test_layers')}{label(name)} of layer {layer}"
    return {"head.ratio": "head / exact minimum"}.get(key, f"{group} {label(name) if name in MEASURES else name}")


def number(x: float | None) -> str:
    """A number with four significant digits, or as a power of ten."""
    if x is None or math.isnan(x):
        return "undefined"
    return f"{x:.4g}" if x == 0 or 1e-2 <= abs(x) < 1e4 else f"{x:.2e}"


def format_value(key: str, x: float) -> str:
    """The number `key` of a record: accuracies with four places, nothing where it is undefined."""
    return "" if math.isnan(x) else f"{x:.4f}" if key.endswith("accuracy") else number(x)


def describe_epoch(record: Record, unit: str) -> str:
    """When a record was made: "after 1 epoch", "after 500 steps", "at checkpoint 3"."""
    if unit == "checkpoint":
        return f"at checkpoint {record.epoch:,}"
    return f"after {record.epoch:,} {unit}{'' if record.epoch == 1 else 's'}"
