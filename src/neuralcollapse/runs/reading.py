"""A run read whole, and runs grouped over their seeds: what pages, tables and checks are made from (no torch)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neuralcollapse.errors import InputError
from neuralcollapse.runs.class_record import ClassRecord
from neuralcollapse.runs.files import read_mapping
from neuralcollapse.runs.folder import RunFolder
from neuralcollapse.runs.html import as_table, named_values
from neuralcollapse.runs.records import Geometry, Record, describe_epoch, format_value
from neuralcollapse.runs.renamed import with_new_names


@dataclass(frozen=True, repr=False)
class Run:
    """What a run folder holds, but for its weights.

    Attributes:
        name: distinguishes it from other runs.
        config: its configuration, as written.
        environment: versions, hardware, shapes of data and network.
        records: of the measured epochs, in order; at least one.
        geometries: class means and classifier at some epochs.
        labels: what varies in a set of runs, axis to value, such as {"optimizer": "SGD"}; never the seed.
        classes: the numbers of each class at the last record, where they were kept.
    """

    name: str
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    records: Sequence[Record]
    geometries: Sequence[Geometry] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    classes: ClassRecord | None = None

    @property
    def first(self) -> Record:
        """The first record: of the network as initialised."""
        return self.records[0]

    @property
    def last(self) -> Record:
        """The last record."""
        return self.records[-1]

    @property
    def unit(self) -> str:
        """What its records count: "epoch", "step" or "checkpoint"."""
        return str(self.config.get("unit") or "epoch")

    def __repr__(self) -> str:
        return f"Run({self.name!r}, {len(self.records):,} records, the last {describe_epoch(self.last, self.unit)})"

    def _repr_html_(self) -> str:
        """The run in a notebook: what it was, and its last record."""
        known = {name: self.config.get(name) for name in ("data", "network", "frame", "optimizer", "loss", "seed")}
        known |= {name: self.environment.get(name) for name in ("num_classes", "feature_dim", "train_samples")}
        known["records"] = f"{len(self.records):,}, the last {describe_epoch(self.last, self.unit)}"
        return as_table(f"Run {self.name}", named_values(known)) + self.last._repr_html_()

    @property
    def class_names(self) -> list[str]:
        """Names of the classes; their numbers where they have none."""
        count = len(self.geometries[-1].means) if self.geometries else len(self.classes) if self.classes else 0
        names = [str(name) for name in _list(self.environment.get("class_names"))]
        return names if len(names) == count or not count else list(map(str, range(count)))


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed.

    Attributes:
        name: its labels, joined, or the run's name.
        labels: axis -> value.
        runs: one for each seed.
    """

    name: str
    labels: Mapping[str, str]
    runs: Sequence[Run]

    def values(self, key: str) -> list[float]:
        """The number `key` (see `Record.value`) at the end of each run."""
        return [run.last.value(key) for run in self.runs]

    def mean(self, key: str) -> float:
        """Their mean."""
        found = self.values(key)
        return sum(found) / len(found)

    def spread(self, key: str) -> float:
        """Their standard deviation (n - 1); NaN for a single run."""
        found, mean = self.values(key), self.mean(key)
        if len(found) < 2:
            return math.nan
        return math.sqrt(sum((x - mean) ** 2 for x in found) / (len(found) - 1))

    def formatted(self, key: str) -> str:
        """The mean as text, with the standard deviation where there are several seeds."""
        mean, spread = self.mean(key), self.spread(key)
        return format_value(key, mean) + ("" if math.isnan(spread) else f" ± {spread:.2g}")


def common_unit(runs: Iterable[Run]) -> str:
    """The unit of all the runs' records; "epoch or step" where runs differ."""
    return " or ".join(dict.fromkeys(run.unit for run in runs)) or "epoch"


def by_layer(run: Run, record: Record, key: str) -> dict[str, float]:
    """A measure by layer, in the order of the run's configuration, with the classifier's features last."""
    wanted = [name for name in _list(run.config.get("layers")) if name in record.layers]
    found = {name: record.layers[name].get(key, math.nan) for name in wanted or record.layers}
    return {**found, "features": record.value(key)}


def group_runs(runs: Iterable[Run]) -> list[Group]:
    """The runs with the same labels together, by their first; a run without labels is a group of its own."""
    groups: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for run in runs:
        key = tuple(run.labels.items()) or (("", run.name),)
        groups.setdefault(key, []).append(run)
    return [Group(", ".join(text for _, text in key), members[0].labels, members) for key, members in groups.items()]


def read_run(path: str | Path, name: str | None = None, labels: Mapping[str, str] | None = None) -> Run:
    """Read a run folder.

    Raises:
        InputError: no run there, no records, damaged files.
    """
    folder = RunFolder.open(path)
    config = with_new_names(read_mapping(folder.path / "config.yaml"), "train", quiet=True)
    environment = read_mapping(folder.path / "environment.json")
    records, geometries, classes = folder.records(), list(folder.geometries()), folder.classes()
    counts = [len(geometries[0].means)] if geometries else []
    counts += [] if classes is None else [len(classes)]
    _check_environment(environment, folder.path / "environment.json", counts)
    return Run(name or folder.path.resolve().name, config, environment, records, geometries, labels or {}, classes)


def read_runs(paths: Sequence[str | Path]) -> list[Run]:
    """Read run folders, each named after its folder, with as many folders above it as make the names different."""
    places = [Path(path).resolve() for path in paths]
    times = Counter(places)
    twice = [str(path) for path, place in zip(paths, places, strict=True) if times[place] > 1]
    if twice:
        raise InputError(f"the run {twice[0]} is given twice: leave one out")
    return [read_run(path, name) for path, name in zip(paths, _distinct_names(places), strict=True)]


def _distinct_names(places: Sequence[Path]) -> list[str]:
    depths = [1] * len(places)
    while True:
        names = ["/".join(place.parts[-depth:]) for place, depth in zip(places, depths, strict=True)]
        shared = Counter(names)
        if max(shared.values(), default=1) == 1:
            return names
        depths = [depth + (shared[name] > 1) for name, depth in zip(names, depths, strict=True)]


def _check_environment(environment: Mapping[str, Any], source: Path, classes: Sequence[int]) -> None:
    """Raise unless the entries on the data that pages use are of the types in which this library writes them.

    `classes` are the numbers of classes in the run's other files.
    """
    counts = environment.get("class_counts")
    if counts is not None:
        if not isinstance(counts, list) or not all(type(count) is int and count >= 0 for count in counts):
            raise InputError(f"{source} is damaged: expected class_counts as a list of numbers, got {counts!r:.60}")
        other = next((count for count in classes if count != len(counts)), None)
        if other is not None:
            raise InputError(f"{source} is damaged: it counts {len(counts)} classes, and the geometry has {other}")
    names = environment.get("class_names")
    if names is not None and not isinstance(names, list):
        raise InputError(f"{source} is damaged: expected class_names as a list, got {names!r:.60}")
    for name in ("num_classes", "feature_dim", "train_samples", "test_samples", "parameters"):
        value = environment.get(name)
        if value is not None and (type(value) is not int or value < 0):
            raise InputError(f"{source} is damaged: expected {name} as a whole number, got {value!r:.60}")


def _list(value: object) -> list[Any]:
    """The value, if it is a list: in a configuration that users write it may be anything."""
    return value if isinstance(value, list) else []
