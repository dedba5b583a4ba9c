"""What the commands share: tables, JSON, the spelling of flags."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from typing import Any

from neuralcollapse.errors import InputError
from neuralcollapse.runs.files import nan_to_none
from neuralcollapse.runs.records import MEASURES


def print_layers(layers: Mapping[str, Mapping[str, float]]) -> None:
    """NC1 of inner layers, a line each."""
    for number, (name, values) in enumerate(layers.items()):
        if number == 0:
            print(f"\n  {'layer':<27} {'NC1':>10} {'NC1, CDNV':>10}")
        print(f"  {name:<27} {values.get('nc1', math.nan):>10.3g} {values.get('nc1_cdnv', math.nan):>10.3g}")


def print_head(values: Mapping[str, Any]) -> None:
    """What the head certificate says, in a line."""
    if "head" in values:
        head = values["head"]
        print(
            f"\n  {'head':<27} {head['ratio']:>10.4g}   times the exact minimum: objective {head['objective']:.6g}, "
            f"minimum {head['minimum']:.6g}, bound {head['lower_bound']:.6g}"
        )


def needs_train(error: ImportError) -> InputError:
    """The error of a command whose packages are missing."""
    return InputError(f"this command needs more packages ({error}): pip install 'neuralcollapse[train]'")


def print_table(values: Mapping[str, float]) -> None:
    """Every measure with its meaning."""
    for name, (_, meaning) in MEASURES.items():
        if name in values:
            error = values.get(f"{name}_error")
            print(
                f"  {name:<27} {values[name]:>10.3g}   {meaning}" + (f" (± {error:.1g})" if error is not None else "")
            )
    if "num_pairs" in values:
        print(f"  those with ± are of a sample of {values['num_pairs']:,.0f} pairs of classes: standard errors")


def print_json(value: Any) -> None:
    """JSON; what is not finite as null."""
    print(json.dumps(nan_to_none(value), indent=2))


def spelled(argument: str, old: str, new: str) -> str:
    """A flag's name with `new` for `old`, so that --feature-dim and --feature_dim both work everywhere."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return "--" + name[2:].replace(old, new) + equals + value


def pairwise(options: argparse.Namespace) -> bool | int:
    """What --no-pairwise and --pairs say.

    Raises:
        InputError: both were given.
    """
    if options.pairs is None:
        return not options.no_pairwise
    if options.no_pairwise:
        raise InputError("expected --pairs or --no-pairwise, got both: give one")
    pairs: int = options.pairs
    return pairs
