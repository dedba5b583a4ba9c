"""A batch from a loader: its inputs, labels and padding masks, whatever they are called."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from neuralcollapse.checks import as_tensor, moved
from neuralcollapse.errors import InputError, one_line

LABEL_KEYS = ("labels", "label", "targets", "target", "y")
# What networks raise on inputs of a shape that they do not take: torch, timm and transformers each in their own way.
_REFUSALS = (RuntimeError, ValueError, AssertionError, IndexError)
# Names of masks of token positions, and whether True (or 1) marks a token (True) or padding (False).
_MASKS = {
    "attention_mask": True,
    "decoder_attention_mask": True,
    "padding_mask": False,
    "key_padding_mask": False,
    "src_key_padding_mask": False,
}


def unpack(batch: Any) -> tuple[Any, Any]:
    """(inputs, labels) of a batch.

    Raises:
        InputError: no labels, or inputs that are not tensors.
    """
    if isinstance(batch, Mapping):
        for key in LABEL_KEYS:
            if key in batch:
                inputs: Any = {name: value for name, value in batch.items() if name != key}
                labels = batch[key]
                break
        else:
            raise InputError(f"expected a batch with labels under one of {LABEL_KEYS}, got the keys {sorted(batch)}")
    elif isinstance(batch, Sequence) and not isinstance(batch, str) and len(batch) >= 2:
        inputs, labels = batch[0], batch[1]
    else:
        raise InputError(f"expected a batch (inputs, labels) or a dict with labels, got {type(batch).__name__}")
    for value in inputs.values() if isinstance(inputs, Mapping) else (inputs,):
        if isinstance(value, np.ndarray):
            raise InputError(
                "expected inputs as tensors, got a numpy.ndarray: use torch.as_tensor, or a DataLoader, which makes "
                "tensors of them"
            )
    return inputs, labels


def class_numbers(labels: Any) -> Tensor:
    """The labels as an int64 tensor: in a narrow or unsigned dtype, -100 would be another number."""
    labels = as_tensor(labels, "labels")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise InputError(f"expected integer labels, got {labels.dtype}: convert them with labels.long()")
    return labels.to(torch.int64)


def token_masks(inputs: Any) -> dict[str, Tensor]:
    """The masks among the inputs: name -> (N, T) bool, true for positions that are not padding."""
    if not isinstance(inputs, Mapping):
        return {}
    masks = {name: inputs[name] for name in _MASKS if isinstance(inputs.get(name), Tensor) and inputs[name].dim() == 2}
    return {name: mask.bool() if _MASKS[name] else ~mask.bool() for name, mask in masks.items()}


def tokens_are_labels(inputs: Any, labels: Tensor) -> bool:
    """Whether the labels (N, T) are the tokens of the input, apart from negative ones."""
    tokens = inputs.get("input_ids") if isinstance(inputs, Mapping) else inputs
    if not isinstance(tokens, Tensor) or tokens.is_floating_point() or tokens.shape != labels.shape:
        return False
    kept = labels >= 0
    return labels.dim() == 2 and labels.shape[1] > 1 and bool((tokens.to(labels.device) == labels)[kept].all())


def to_device(value: Any, device: torch.device) -> Any:
    """The inputs with their tensors on the device."""
    return mapped(lambda tensor: moved(tensor, device), value)


def truncated(value: Any, count: int, axis: int = 0) -> Any:
    """The first `count` samples of the inputs, whose samples are along `axis`."""
    return mapped(lambda tensor: tensor.narrow(axis, 0, count) if tensor.dim() > axis else tensor, value)


def mapped(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The function of tensors, alone or in mappings, lists and tuples; other values stay as they are."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {name: mapped(function, item) for name, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(mapped(function, item) for item in value)
    return value


def call(model: nn.Module, inputs: Any) -> Any:
    """The output of the model; a mapping of inputs is passed as keyword arguments.

    Raises:
        InputError: the model does not take these inputs; its own error is the cause.
    """
    if isinstance(inputs, Mapping):
        try:
            inspect.signature(model.forward).bind(**inputs)
        except TypeError as error:
            raise InputError(
                f"the batch's keys {sorted(inputs)} do not fit the model's forward ({error}): rename them, or let the "
                "loader give (inputs, labels)"
            ) from None
    try:
        return model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
    except _REFUSALS as error:
        if type(error) not in _REFUSALS:  # their subclasses say other things: no memory left, a process lost
            raise
        raise InputError(
            f"expected inputs that the network takes, got {_described(inputs)}, on which it raised "
            f"{type(error).__name__}: {one_line(error)}"
        ) from error


def _described(inputs: Any) -> str:
    """Types and shapes of the inputs."""
    if isinstance(inputs, Tensor):
        return f"{str(inputs.dtype).removeprefix('torch.')} {tuple(inputs.shape)}"
    if isinstance(inputs, Mapping):
        return ", ".join(f"{name}: {_described(item)}" for name, item in inputs.items())
    if type(inputs) in (list, tuple):
        return ", ".join(map(_described, inputs))
    return type(inputs).__name__
