"""The tensors in what a model returns that may be its logits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
    return [rows for value in _tensors(returned) for rows in _rows(value, tuple(shape), num_classes)]


def num_outputs(returned: Any) -> int | None:
    """The number of classes in the output of a model; None if it has no tensor that could be logits."""
    return next((value.shape[-1] for value in _tensors(returned)), None)


def _tensors(returned: Any, depth: int = _DEPTH) -> Iterator[Tensor]:
    if isinstance(returned, np.ndarray):
        returned = torch.as_tensor(returned, device="cpu")
    if isinstance(returned, Tensor):
        if returned.dim() > 1 and returned.is_floating_point():
            yield returned
        return
    if depth == 0 or isinstance(returned, str | bytes):
        return
    named: Mapping[Any, Any] = {}
    if isinstance(returned, Mapping):
        named = returned
    elif is_dataclass(returned) and not isinstance(returned, type):
        named = {each.name: getattr(returned, each.name) for each in fields(returned)}
    elif isinstance(returned, Sequence):
        named = returned._asdict() if hasattr(returned, "_asdict") else dict(enumerate(returned))
    if any(True for _ in _tensors(named.get("logits"), depth - 1)):  # trust the name
        named = {"logits": named["logits"]}
    for value in named.values():
        yield from _tensors(value, depth - 1)


def _rows(logits: Tensor, shape: tuple[int, ...], num_classes: int) -> Iterator[Tensor]:
    """(rows, K) of a tensor with the classes on its last axis, or on axis 1 as for images or torch's cross-entropy."""
    count, size = torch.Size(shape).numel(), tuple(logits.shape)
    ones = (1,) * (logits.dim() - 2)
    if size in ((*shape, num_classes), (count, num_classes)) or size == (count, num_classes, *ones):
        yield logits.reshape(count, num_classes)
    if len(shape) > 1 and size == (shape[0], num_classes, *shape[1:]):
        yield logits.movedim(1, -1).reshape(count, num_classes)
