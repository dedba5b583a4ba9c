"""The tensors in what a model returns that may be its logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

_DEPTH = 4  # how deeply the logits may be nested in a model's output


def candidates(returned: Any, shape: Sequence[int], num_classes: int) -> list[Tensor]:
    """The tensors in the output of a model that may be logits, with one row for each label.

    Args:
        returned: a tensor or array, or a mapping, sequence or dataclass of some. If one has `logits`, only these count.
        shape: the shape of the labels, (N,) or (N, T).
        num_classes: K.
    """
    return [rows for value in tensors_in(returned) for rows in _rows(value, tuple(shape), num_classes)]


def num_outputs(returned: Any) -> int | None:
    """The number of classes in the output of a model; None if it has no tensor that could be logits."""
    return next((value.shape[-1] for value in tensors_in(returned)), None)


def replaced(returned: Any, function: Callable[[Tensor], Tensor], depth: int = _DEPTH) -> Any:
    """The output of a model with the function of its tensors, by name or number."""
    if isinstance(returned, Tensor):
        return function(returned)
    if depth == 0 or isinstance(returned, str | bytes):
        return returned
    named = _named(returned)
    return {key: replaced(value, function, depth - 1) for key, value in named.items()} if named else returned


def tensors_in(returned: Any, depth: int = _DEPTH) -> Iterator[Tensor]:
    """The floating-point tensors of at least two axes in the output of a model; `logits` alone, if there are some."""
    if isinstance(returned, np.ndarray):
        returned = torch.as_tensor(returned, device="cpu")
    if isinstance(returned, Tensor):
        if returned.dim() > 1 and returned.is_floating_point():
            yield returned
        return
    if depth == 0 or isinstance(returned, str | bytes):
        return
    named = _named(returned)
    if any(True for _ in tensors_in(named.get("logits"), depth - 1)):  # trust the name
        named = {"logits": named["logits"]}
    for value in named.values():
        yield from tensors_in(value, depth - 1)


def _named(returned: Any) -> Mapping[Any, Any]:
    """What a model returned, by name or number; nothing where it holds nothing."""
    if isinstance(returned, Mapping):
        return returned
    if is_dataclass(returned) and not isinstance(returned, type):
        return {each.name: getattr(returned, each.name) for each in fields(returned)}
    if isinstance(returned, Sequence):
        return returned._asdict() if hasattr(returned, "_asdict") else dict(enumerate(returned))
    return {}


def _rows(logits: Tensor, shape: tuple[int, ...], num_classes: int) -> Iterator[Tensor]:
    """(rows, K) of a tensor with the classes on its last axis, or on axis 1 as for images or torch's cross-entropy."""
    count, size = torch.Size(shape).numel(), tuple(logits.shape)
    ones = (1,) * (logits.dim() - 2)
    if size in ((*shape, num_classes), (count, num_classes)) or size == (count, num_classes, *ones):
        yield logits.reshape(count, num_classes)
    if len(shape) > 1 and size == (shape[0], num_classes, *shape[1:]):
        yield logits.movedim(1, -1).reshape(count, num_classes)
