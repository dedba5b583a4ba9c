"""What several commands print: the measures of a record as a table, and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from textwrap import wrap
from typing import Any

from neuralcollapse.errors import InputError
from neuralcollapse.runs.files import nan_to_none
from neuralcollapse.runs.head_lines import head_lines
from neuralcollapse.runs.records import MEASURES, Record


def print_measures(record: Record) -> None:
    """The measures of a record with their meanings, its head certificate and its inner layers.

    Beside them stand, where they are known, their values at the exact minimiser and those expected before training.
    """
    values = record.measures
    expected = [(name, part) for name, part in (("minimum", record.minimizer), ("untrained", record.untrained)) if part]
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
        groups = f"{values['num_groups']:.0f} groups of the samples"
        print(f"  unbiased: without the bias of few samples, ± the standard error, from {groups}")
    if record.head:
        ratio = record.head["ratio"]
        bound = "" if record.head.get("exact", 1) else "an upper bound of "
        print(f"\n  {'head':<27} {ratio:>10.4g}   times {bound}the minimum of the unconstrained feature model:")
        for text in head_lines(record.head):
            print(f"    {text}")
    if record.layers:
        print(f"\n  {'layer':<27} {'NC1':>10} {'NC1, CDNV':>10}")
    for name, values in record.layers.items():
        print(f"  {name:<27} {values.get('nc1', math.nan):>10.3g} {values.get('nc1_cdnv', math.nan):>10.3g}")


def _beside(values: Mapping[str, float], name: str) -> str:
    value = values.get(f"{name}_corrected")
    return "" if value is None else f"unbiased {value:.3g} "


def _short(x: float | None) -> str:
    return "" if x is None else f"{x:.3g}"


def print_accuracies(record: Record) -> None:
    """The accuracies of a record, in a line."""
    test = f"   test accuracy {record.test['accuracy']:.4f}" if record.test else ""
    print(f"\ntrain accuracy {record.train['accuracy']:.4f}{test}")


def print_json(value: Any) -> None:
    """JSON; what is not finite as null."""
    print(json.dumps(nan_to_none(value), indent=2))


def record_of_features(values: Mapping[str, Any]) -> Record:
    """What `measure_features` returns, as a record; its epoch means nothing."""
    apart = ("accuracy", "head", "num_samples", "minimizer")
    return Record(
        epoch=0,
        seconds=math.nan,
        learning_rate=math.nan,
        train={"accuracy": values["accuracy"]} if "accuracy" in values else {},
        measures={name: value for name, value in values.items() if name not in apart},
        head=values.get("head", {}),
        minimizer=values.get("minimizer", {}),
    )


@contextmanager
def train_packages(*, format: str = "") -> Iterator[None]:
    """Say how to install the packages of a command whose imports, made inside, fail.

    Those that only the page or its figures need, in `format`, load after the work: they are looked for before it.
    """
    needed = {"": (), "html": ("jinja2", "plotly")}.get(format, ("matplotlib",))
    try:
        yield
        for name in needed:
            if find_spec(name) is None:
                raise ImportError(f"No module named {name!r}")
    except ImportError as error:
        raise InputError(f"this command needs more packages ({error}): pip install 'neuralcollapse[train]'") from None
