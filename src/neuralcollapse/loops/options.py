"""What measures while a network trains is checked when it is made: the names, types and values of its options."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from numbers import Integral
from pathlib import Path
from types import GeneratorType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset, default_collate

from neuralcollapse.capture import arguments
from neuralcollapse.capture.batches import unpack
from neuralcollapse.capture.collect import collect
from neuralcollapse.checks import as_tensor, check_count, check_real
from neuralcollapse.errors import InputError, did_you_mean, listed, one_line
from neuralcollapse.geometry.pairs import draw

_UNITS = ("epoch", "step", "checkpoint")
_BATCH = 64  # samples of an iterable data set at a time
_BUILT_IN = ("builtins", "itertools")  # whose iterators can be run through once


def options_of(*functions: Callable[..., Any], without: Sequence[str] = ()) -> list[str]:
    """What these can be given by name, and what they hand on to the measuring pass."""
    found = [each for function in functions for each in inspect.signature(function).parameters.values()]
    named = {each.name for each in found if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)}
    passed_on = inspect.signature(collect).parameters.keys() - {"model", "loader", "classifier"}
    return sorted((named | passed_on).difference(without))


def check_names(options: Iterable[str], known: Sequence[str], owner: str, taken: Sequence[str] = ()) -> None:
    """Raise unless each option is known, and none of those that `owner` sets itself.

    Raises:
        InputError: the first that is not, with the nearest name that is.
    """
    known = [name for name in known if name not in taken]
    for name in options:
        if name in taken:
            raise InputError(f"{owner} sets the option {name!r} itself: leave it out")
        if name not in known:
            hint = did_you_mean(name, known) or f": expected one of {listed(known, len(known))}"
            raise InputError(f"{owner} has no option {name!r}{hint}")


def check_values(options: Mapping[str, Any]) -> None:
    """Raise unless each option's value is of its type and in its range, as far as that shows without a network.

    Raises:
        InputError: the first that is not.
    """
    for name, value in options.items():
        if name in _VALUES:
            _VALUES[name](value, name)
    if options.get("classes") is not None and options.get("min_count") is not None:
        raise InputError("expected classes or min_count, got both: give one")


def check_loader(loader: Any, name: str = "loader") -> Any:
    """A loader that can be run through again and again; an iterable data set is handed back as one.

    Raises:
        InputError: something else, or an iterator, which can be run through once.
    """
    if isinstance(loader, IterableDataset):
        check_restarts(loader, name)
        return Stream(loader)
    arguments.check_loader(loader, name)
    check_restarts(loader, name)
    check_restarts(getattr(loader, "dataset", None), name)
    return loader


class Stream:
    """The batches of an iterable data set that gives samples (inputs, label), or batches already."""

    def __init__(self, dataset: IterableDataset[Any]) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[Any]:
        items = iter(self.dataset)
        for first in islice(items, 1):
            items = chain([first], items)
            if as_tensor(unpack(first)[1], "labels").dim():
                yield from items
            while rows := list(islice(items, _BATCH)):
                yield default_collate(rows)


def check_restarts(source: Any, name: str) -> None:
    """Raise if a second run through `source` would go on where the first one ended.

    A class of the user's may begin anew in `__iter__` and hand itself back: only the iterators of Python itself, given
    as they are or kept and handed out again, certainly do not. Nothing is drawn from any.
    """
    kept = [source, *getattr(source, "__dict__", {}).values()]
    if any(_runs_once(each) for each in kept) and _runs_once(first := iter(source)) and first is iter(source):
        raise InputError(
            f"expected {name} as a loader that can be run through for each measurement, got a "
            f"{type(source).__name__} that is used up by the first: give a DataLoader, a list of batches, or an object "
            "whose __iter__ begins anew"
        )


def _runs_once(value: Any) -> bool:
    one_by_one = isinstance(value, Iterator) and type(value).__module__ in _BUILT_IN
    return one_by_one or isinstance(value, GeneratorType) or type(value).__name__.endswith("DataLoaderIter")


def _flag(value: Any, name: str) -> None:
    if not isinstance(value, bool | np.bool_):
        raise InputError(f"expected {name} True or False, got {value!r}")


def _function(value: Any, name: str) -> None:
    if not callable(value) or isinstance(value, type):
        raise InputError(f"expected {name} as a function, got {value!r}")


def _text(value: Any, name: str) -> None:
    if not isinstance(value, str):
        raise InputError(f"expected {name} as a text, got {value!r}")


def _optional(check: Callable[[Any, str], None]) -> Callable[[Any, str], None]:
    return lambda value, name: None if value is None else check(value, name)


def _unit(value: Any, name: str) -> None:
    if value not in _UNITS:
        hint = did_you_mean(value, _UNITS) if isinstance(value, str) else ""
        raise InputError(f"expected {name} as one of {', '.join(_UNITS)}, got {value!r}{hint}")


def _classifier(value: Any, name: str) -> None:
    if not isinstance(value, str | nn.Module) and value is not None:
        raise InputError(f"expected {name} as the dotted name of the last layer, such as 'fc', got {value!r}")


def _layers(value: Any, name: str) -> None:
    sound = isinstance(value, Iterable) and not isinstance(value, nn.Module | Tensor)
    if not sound or not all(isinstance(each, str) for each in value):
        raise InputError(f"expected {name} as dotted names of inner layers, such as ['layer3'], got {value!r}")


def _integer(value: Any, name: str) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise InputError(f"expected {name} as an integer, got {value!r}")


def _count(value: Any, name: str) -> None:
    check_count(value, name, 1)


def _classes(value: Any, name: str) -> None:
    given = as_tensor(list(value) if isinstance(value, set | range) else value, name)
    if given.dim() != 1 or not len(given) or given.is_floating_point() or given.dtype == torch.bool:
        raise InputError(f"expected {name} as a list of class numbers, got {value!r}")


def _device(value: Any, name: str) -> None:
    try:
        device = torch.device(value)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"expected {name} such as 'cpu' or 'cuda:0', got {value!r} ({one_line(error)})") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"expected a {name} that is there, got {value!r} and no CUDA: leave it out, or give 'cpu'")


def _means_dtype(value: Any, name: str) -> None:
    if value not in (torch.float32, torch.float64):
        raise InputError(f"expected {name} torch.float64 or torch.float32, got {value!r}")


def _pairwise(value: Any, name: str) -> None:
    draw(2, value, torch.device("cpu"))


def _head_decay(value: Any, name: str) -> None:
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


def _mapping(value: Any, name: str) -> None:
    if not isinstance(value, Mapping):
        raise InputError(f"expected {name} as a dict, such as {{'data': 'my pictures'}}, got {value!r}")


def _words(value: Any, name: str) -> None:
    if isinstance(value, str | Mapping) or not isinstance(value, Iterable):
        raise InputError(f"expected {name} as a list of names, got {value!r}")


def _out(value: Any, name: str) -> None:
    if not isinstance(value, str | os.PathLike) or isinstance(value, bytes) or not os.fspath(value):
        raise InputError(f"expected {name} as the path of a run folder, got {value!r}")
    if Path(value).exists() and not Path(value).is_dir():
        raise InputError(f"expected {name} as the path of a run folder, got the file {value}: choose another")


_VALUES: dict[str, Callable[[Any, str], None]] = {
    "classifier": _classifier,
    "layers": _layers,
    "out": _optional(_out),
    "force": _flag,
    "resume": _flag,
    "unit": _unit,
    "head_decay": _optional(_head_decay),
    "pairwise": _pairwise,
    "nc4": _flag,
    "config": _optional(_mapping),
    "class_names": _words,
    "writes": _flag,
    "on_record": _optional(_function),
    "on_checkpoint": _optional(_function),
    "prefix": _optional(_text),
    "num_classes": _optional(_count),
    "ignore_index": _optional(_integer),
    "next_token": _flag,
    "classes": _optional(_classes),
    "min_count": _optional(_count),
    "means_dtype": _means_dtype,
    "device": _optional(_device),
    "loss": _function,
    "sharded": _flag,
    "progress": _flag,
}
