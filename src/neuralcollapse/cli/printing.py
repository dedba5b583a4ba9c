"""What several commands print: the measures of a record as a table, and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from textwrap import wrap
from typing import Any

from neuralcollapse.extras import needed_by
from neuralcollapse.runs.events import collapse_begun, stopped
from neuralcollapse.runs.files import nan_to_none
from neuralcollapse.runs.head_lines import head_lines
from neuralcollapse.runs.records import MEASURES, Record


def print_measures(record: Record) -> None:
    """The measures of a record with their meanings, its head certificate and its inner layers.

    Beside them stand, where they are known, those of the test set, their values at the exact minimiser and those
    expected before training.
    """
    values = record.measures
    tested = {name: x for name, x in record.test.items() if name in MEASURES}
    groups = (("test set", tested), ("minimum", record.minimizer), ("untrained", record.untrained))
    expected = [(name, part) for name, part in groups if part]
    if expected:
        print(f"  {'':<27} {'measured':>10}" + "".join(f" {name:>9}" for name, _ in expected))
    for name, (_, meaning) in MEASURES.items():
        if name not in values:
            continue
        error = f" ({_beside(values, name)}± {values[f'{name}_error']:.1g})" if f"{name}_error" in values else ""
        beside = "".join(f" {_short(part.get(name)):>9}" for _, part in expected)
        numbers = f"  {name:<27} {values[name]:>10.3g}{beside}   "
        # wrapped where there are more columns, so that all of them fit in 100 characters
        lines = wrap(f"{meaning}{error}", 100 - len(numbers)) if expected else [f"{meaning}{error}"]
        print(numbers + f"\n{' ' * len(numbers)}".join(lines))
    if record.minimizer:
        print("  minimum: at the exact minimiser for these class counts, the decays and the sign of the features")
    if "num_pairs" in values:
        print(f"  those with ± are of a sample of {values['num_pairs']:,.0f} pairs of classes: standard errors")
    if "num_groups" in values:
        source = f"{values['num_groups']:.0f} groups of the samples"
        print(f"  unbiased: without the bias of few samples, ± the standard error, from {source}")
    if record.head:
        ratio = record.head["ratio"]
        bound = "" if record.head.get("exact", 1) else "an upper bound of "
        print(f"\n  {'head':<27} {ratio:>10.4g}   times {bound}the minimum of the unconstrained feature model:")
        for text in head_lines(record.head):
            print(f"    {text}")
    if record.layers:
        _print_layers(record)


def _print_layers(record: Record) -> None:
    """NC1 and the accuracy of the nearest mean of each inner layer, on both sets where they are known."""
    titles = {"nc1": "NC1", "nc1_cdnv": "NC1, CDNV", "ncc_accuracy": "NCC acc."}
    columns = [
        (f"{title}{words}", part, key)
        for key, title in titles.items()
        for words, part in (("", record.layers), (" test", record.test_layers))
        if any(key in values for values in part.values())
    ]
    print(f"\n  {'layer':<27} " + " ".join(f"{title:>14}" for title, _, _ in columns))
    for name in record.layers:
        print(
            f"  {name:<27} " + " ".join(f"{part.get(name, {}).get(key, math.nan):>14.3g}" for _, part, key in columns)
        )


def print_events(records: Sequence[Record], unit: str) -> None:
    """When collapse began, and why training was stopped early, in a line each; nothing where neither happened."""
    begun, reason = collapse_begun(records), stopped(records)
    if begun is not None:
        print(f"collapse began at {unit} {begun.epoch:,}: the data are fitted, and NC1 falls")
    if reason:
        print(f"stopped early at {unit} {records[-1].epoch:,}: {reason}")


def print_more(values: Mapping[str, float]) -> None:
    """The further measures with their meanings."""
    from neuralcollapse.geometry.more import MORE_MEASURES, RANK_MEASURES, RANKED

    matrices = {name: words for name, words in RANKED.items() if f"rank_{name}" in values}
    ranks = {f"{rank}_{name}" for rank in RANK_MEASURES for name in matrices}
    print()
    for name, meaning in MORE_MEASURES.items():
        if name in values and name not in ranks:
            error = f" (± {values[f'{name}_error']:.1g})" if f"{name}_error" in values else ""
            print(f"  {name:<27} {values[name]:>10.3g}   {meaning}{error}")
    if "num_pairs" in values:
        margins = f", gnc2 of {values['num_margins']:,.0f} classes" if "num_margins" in values else ""
        print(f"  uniformity is of a sample of {values['num_pairs']:,.0f} pairs of classes{margins}")
    print(f"\n  {'directions':<19}" + "".join(f" {words:>9}" for words in matrices.values()))
    for rank, meaning in RANK_MEASURES.items():
        numbers = "".join(f" {values[f'{rank}_{name}']:>9.4g}" for name in matrices)
        print(f"  {rank:<19}{numbers}   {meaning}")


def _beside(values: Mapping[str, float], name: str) -> str:
    value = values.get(f"{name}_corrected")
    return "" if value is None else f"unbiased {value:.3g} "


def _short(x: float | None) -> str:
    return "" if x is None else f"{x:.3g}"


def print_accuracies(record: Record) -> None:
    """The accuracies of a record, in a line."""
    test = f"   test accuracy {record.test['accuracy']:.4f}" if "accuracy" in record.test else ""
    print(f"\ntrain accuracy {record.train['accuracy']:.4f}{test}")


def unfitted(accuracy: float) -> str:
    """Why there is little collapse to see yet in a network of this accuracy on its training set."""
    return f"train accuracy {accuracy:.4f}, and collapse begins at 1"


def print_json(value: Any) -> None:
    """JSON; what is not finite as null."""
    print(json.dumps(nan_to_none(value), indent=2))


def record_of_features(values: Mapping[str, Any]) -> Record:
    """What `measure_features` returns, as a record; its epoch means nothing."""
    apart = ("accuracy", "head", "num_samples", "minimizer", "test", "more", "scree")
    return Record(
        epoch=0,
        seconds=math.nan,
        learning_rate=math.nan,
        train={"accuracy": values["accuracy"]} if "accuracy" in values else {},
        measures={name: value for name, value in values.items() if name not in apart},
        test={name: x for name, x in values.get("test", {}).items() if name != "num_samples"},
        head=values.get("head", {}),
        minimizer=values.get("minimizer", {}),
    )


@contextmanager
def train_packages(*, format: str = "") -> Iterator[None]:
    """Say how to install the packages of a command whose imports, made inside, fail.

    Those that only the page or its figures need, in `format`, load after the work: they are looked for before it.
    """
    needed = {"": (), "html": ("jinja2",)}.get(format, ("matplotlib",))
    with needed_by("this command"):
        yield
        for name in needed:
            if find_spec(name) is None:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
