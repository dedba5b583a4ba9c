"""What a data set or a model calls its classes, where one of them knows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

_DEPTH = 16  # wrappers around a data set
_LABELS = ("labels", "label")  # columns of a data set of the Hugging Face hub


def find_class_names(model: nn.Module, data: Any, num_classes: int) -> tuple[str, ...] | None:
    """The names of K classes: by `id2label` of the model's configuration, else by the data set; None if unknown.

    Of a data set: `classes`, as torchvision has them, or the names of a label column of the Hugging Face hub. Whatever
    is not one name for each class, or the default LABEL_0, LABEL_1, ..., is passed over.

    Args:
        model: the module; those of transformers have a `config`.
        data: a data set, or a loader or a subset of one.
        num_classes: K.
    """
    for module in model.modules():  # the model may be inside of another, as under DDP
        found = _by_number(getattr(getattr(module, "config", None), "id2label", None))
        if len(found) == num_classes and not all(name.startswith("LABEL_") for name in found):
            return found
    return _of_data(data, num_classes)


def _of_data(data: Any, num_classes: int, depth: int = 0) -> tuple[str, ...] | None:
    for each in _inside(data):
        parts = getattr(each, "datasets", None)
        if isinstance(parts, list | tuple) and parts and depth < _DEPTH:  # of several, the names that all of them have
            found = {_of_data(part, num_classes, depth + 1) for part in parts}
            return found.pop() if len(found) == 1 else None
        classes = getattr(each, "classes", None)
        if isinstance(classes, list | tuple) and len(classes) == num_classes:
            return tuple(map(_text, classes))
        columns = getattr(each, "features", None)
        if not isinstance(columns, Mapping):
            continue
        for key in _LABELS:
            named = getattr(columns.get(key), "names", None)
            if isinstance(named, list | tuple) and len(named) == num_classes:
                return tuple(map(_text, named))
    return None


def data_behind(loader: Any) -> Any:
    """The data set behind a loader and subsets of it; the loader itself if it shows none."""
    *_, last = _inside(loader)
    return last


def _inside(data: Any) -> Iterator[Any]:
    """A loader or data set, and what it wraps."""
    for _ in range(_DEPTH):
        yield data
        inner = getattr(data, "dataset", None)
        if inner is None:
            return
        data = inner


def _by_number(names: Any) -> tuple[str, ...]:
    """The names of a dict by number (whose keys are texts when it was read from JSON); nothing where numbers miss."""
    if not isinstance(names, Mapping):
        return ()
    found = {str(key): _text(name) for key, name in names.items()}
    numbers = [str(number) for number in range(len(found))]
    return tuple(found[number] for number in numbers) if set(numbers) == set(found) else ()


def _text(name: object) -> str:
    """A name as a line of text; the first of several names of one class, as ImageNet's classes have them."""
    if isinstance(name, Sequence) and not isinstance(name, str | bytes) and len(name):
        name = name[0]
    return " ".join(str(name).split())
