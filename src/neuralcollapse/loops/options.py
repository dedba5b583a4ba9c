"""The options of what measures while a network trains: their names and values are checked when they are given."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from neuralcollapse.capture.arguments import check_device
from neuralcollapse.capture.collect import collect
from neuralcollapse.checks import as_tensor, check_count, check_real
from neuralcollapse.errors import InputError, listed
from neuralcollapse.geometry.groups import check_errors
from neuralcollapse.geometry.pairs import draw
from neuralcollapse.runs.events import check_patience
from neuralcollapse.runs.other_tools import option_hint
from neuralcollapse.runs.records import check_key
from neuralcollapse.ufm.losses import find_loss


def options_of(*functions: Callable[..., Any], without: Sequence[str] = ()) -> list[str]:
    """The names of the functions' own arguments, and of those that they pass on to the measuring pass."""
    found = [each for function in functions for each in inspect.signature(function).parameters.values()]
    named = {each.name for each in found if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)}
    passed_on = inspect.signature(collect).parameters.keys() - {"model", "loader", "classifier", "reference"}
    return sorted((named | passed_on).difference(without))


def check_names(options: Iterable[str], known: Sequence[str], owner: str, taken: Sequence[str] = ()) -> None:
    """Raise unless each option is known and is not one that `owner` sets itself; the error names the nearest one."""
    known = [name for name in known if name not in taken]
    for name in options:
        if name in taken:
            raise InputError(f"{owner} sets the option {name!r} itself: leave it out")
        if name not in known:
            hint = option_hint(name, known) or f": expected one of {listed(known, len(known))}"
            raise InputError(f"{owner} has no option {name!r}{hint}")


def check_values(options: Mapping[str, Any]) -> None:
    """Raise unless each option's value is of the right type and range, as far as that shows without a network."""
    for name, value in options.items():
        if value is None and name in _OPTIONAL:
            continue
        if name in _CHECKS:
            _CHECKS[name](value, name)
        elif name in _EXPECTED:
            fits, expected = _EXPECTED[name]
            if not fits(value):
                raise InputError(f"expected {name} {expected}, got {value!r}")
    if options.get("classes") is not None and options.get("min_count") is not None:
        raise InputError("expected classes or min_count, got both: give one")
    out = options.get("out")
    if isinstance(out, str | os.PathLike) and Path(out).exists() and not Path(out).is_dir():
        raise InputError(f"expected out as the path of a run folder, got the file {out}: choose another")


def _are_names(value: Any) -> bool:
    sound = isinstance(value, Iterable) and not isinstance(value, nn.Module | Tensor)
    return sound and all(isinstance(each, str) for each in value)


def _check_classes(value: Any, name: str) -> None:
    given = as_tensor(list(value) if isinstance(value, set | range) else value, name)
    if given.dim() != 1 or not len(given) or given.is_floating_point() or given.dtype == torch.bool:
        raise InputError(f"expected {name} as a list of class numbers, got {value!r}")


def _check_head_decay(value: Any, name: str) -> None:
    if not isinstance(value, tuple):
        check_real(value, name)
        return
    if len(value) != 3:
        raise InputError(f"expected {name} as the weight's decay or (weight, feature, bias), got {value!r}")
    check_real(value[0], f"{name}'s weight decay")
    if value[1] is not None:
        check_real(value[1], f"{name}'s feature decay")
    if value[2] is not None:
        check_real(value[2], f"{name}'s bias decay", zero=True)


# Where None stands for "not given".
_OPTIONAL = (
    *(
        "classifier",
        "out",
        "head_decay",
        "decays",
        "loss_name",
        "config",
        "on_record",
        "on_checkpoint",
        "prefix",
        "online",
        "environment",
        "stop_on",
    ),
    *("num_classes", "ignore_index", "classes", "min_count", "device"),
)

_FLAG = (lambda value: isinstance(value, bool | np.bool_), "True or False")
_FUNCTION = (lambda value: callable(value) and not isinstance(value, type), "as a function")
_UNITS = ("epoch", "step", "checkpoint")

_EXPECTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "classifier": (
        lambda value: isinstance(value, str | nn.Module),
        "as the dotted name of the last layer, such as 'fc'",
    ),
    "layers": (_are_names, "as dotted names of inner layers, such as ['layer3']"),
    "out": (
        lambda value: isinstance(value, str | os.PathLike) and bool(os.fspath(value)),
        "as the path of a run folder",
    ),
    "unit": (lambda value: value in _UNITS, f"as one of {', '.join(_UNITS)}"),
    "config": (lambda value: isinstance(value, Mapping), "as a dict, such as {'data': 'my pictures'}"),
    "environment": (lambda value: isinstance(value, Mapping), "as a dict, such as {'test_samples': 100}"),
    "class_names": (
        lambda value: isinstance(value, Iterable) and not isinstance(value, str),
        "as a list of names",
    ),
    "prefix": (lambda value: isinstance(value, str), "as a text"),
    "inside": (lambda value: isinstance(value, str), "as the dotted name of a part of the network"),
    "ignore_index": (lambda value: isinstance(value, Integral) and not isinstance(value, bool), "as an integer"),
    "means_dtype": (lambda value: value in (torch.float32, torch.float64), "torch.float64 or torch.float32"),
    **dict.fromkeys(
        ("force", "resume", "nc4", "test_measures", "writes", "next_token", "sharded", "progress", "page"), _FLAG
    ),
    **dict.fromkeys(("on_record", "on_checkpoint", "online", "loss"), _FUNCTION),
}

_CHECKS: dict[str, Callable[[Any, str], object]] = {
    "head_decay": _check_head_decay,
    "decays": _check_head_decay,
    "loss_name": lambda value, name: find_loss(value),
    "pairwise": lambda value, name: draw(2, value, torch.device("cpu")),
    "errors": lambda value, name: check_errors(value),
    "num_classes": lambda value, name: check_count(value, name, 1),
    "min_count": lambda value, name: check_count(value, name, 1),
    "classes": _check_classes,
    "device": lambda value, name: check_device(value),
    "stop_on": check_key,
    "patience": lambda value, name: check_patience(patience=value),
    "stop_mode": lambda value, name: check_patience(mode=value),
    "min_delta": lambda value, name: check_patience(min_delta=value),
}
