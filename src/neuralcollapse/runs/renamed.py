"""Names that have changed, and their new ones: what was written for an earlier version still works (no torch).

Users get a line that names the new one (`RenamedWarning`). What this library itself wrote into a run folder is
translated without a word.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from neuralcollapse.errors import InputError, RenamedWarning

RENAMED: dict[str, dict[str, str]] = {
    "train": {"classifier": "frame"},
    "measure": {"model": "network", "classifier": "layer", "head": "frame"},
    "check": {"say": "statement"},
}
"""Old name -> new name: options of training (flags, YAML files, keywords of TrainConfig), flags of `measure`, and
entries of a check in an experiment's file."""

RENAMED_VALUES: dict[str, dict[str, str]] = {"frame": {"etf": "simplex", "softmax code": "softmax_code"}}
"""Option -> old value -> new value."""


def with_new_names(values: Mapping[str, Any], where: str, *, quiet: bool = False) -> dict[str, Any]:
    """A mapping with new names for old ones, each in the place of the old one, which may not stand beside its new one.

    `where` is the part of `RENAMED` that applies. `quiet` says nothing: for what this library wrote.
    """
    result: dict[str, Any] = {}
    for name, value in values.items():
        new = RENAMED[where].get(name, name)
        if new != name and new in values:
            if not quiet:
                raise InputError(f"{name} is now called {new}, got both: leave {name} out")
            new = name  # of somebody's own
        result[new] = _new_value(new, value)
        if not quiet and (new, result[new]) != (name, value):
            same = result[new] == value
            old = name if same else f"{name}={value}"
            warn_renamed(old, new if same else f"{new}={result[new]}", stacklevel=4)
    return result


def with_new_flags(arguments: Sequence[str], where: str) -> list[str]:
    """The words of a command line with new flags and values for old ones."""
    result = list(arguments)
    names = {f"--{old}": f"--{new}" for old, new in RENAMED.get(where, {}).items()}
    for place, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        new = names.get(flag, flag)
        if not new.startswith("--") or (new == flag and new.removeprefix("--") not in RENAMED_VALUES):
            continue
        if not equals and place + 1 < len(arguments):
            value = arguments[place + 1]
        known = _new_value(new.removeprefix("--"), value)
        if equals:
            result[place] = f"{new}={known}"
        else:
            result[place : place + 2] = [new, known] if place + 1 < len(arguments) else [new]
        if (new, known) != (flag, value):
            same = known == value
            warn_renamed(flag if same else f"{flag} {value}", new if same else f"{new} {known}")
    return result


def warn_renamed(old: str, new: str, *, stacklevel: int = 3) -> None:
    """Say in one line that a name has changed."""
    text = f"{old} is now called {new}; the old name works in this version only"
    warnings.warn(text, RenamedWarning, stacklevel=stacklevel)


def _new_value(name: str, value: Any) -> Any:
    return RENAMED_VALUES.get(name, {}).get(value.lower(), value) if isinstance(value, str) else value
