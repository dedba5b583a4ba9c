"""Checks of the tensors and numbers that users pass in. Errors say what was expected, what was given, what to do."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from neuralcollapse.errors import InputError, one_line

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # not float8, which torch can store only


def as_tensor(values: Any, name: str) -> Tensor:
    """An array or list of numbers as a tensor; `name` is what errors call it."""
    try:
        # Not `as_tensor` for tensors: it moves them to the default device of whoever has set one.
        return in_one_piece(values) if isinstance(values, Tensor) else torch.as_tensor(values, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"expected {name} as an array of numbers: {one_line(error)}") from None


def is_dtensor(value: object) -> bool:
    """Whether a tensor is a part of one that FSDP2 or tensor parallelism has split over processes.

    By its name: `torch.distributed.tensor` takes long to import, and whoever has a DTensor has imported it.
    """
    return isinstance(value, Tensor) and type(value).__name__ == "DTensor"


def in_one_piece(value: Any) -> Any:
    """A DTensor gathered; anything else as it is. All processes that hold parts of it must call this."""
    return value.full_tensor() if is_dtensor(value) else value


def default_device() -> torch.device:
    """Where tensors are made that do not name a device, also inside `with torch.device(...)`.

    `torch.get_default_device` knows nothing of the latter in older versions of torch.
    """
    return torch.empty(0).device


@contextmanager
def on_host() -> Iterator[None]:
    """Inside, tensors that do not name a device are made on the CPU, whatever `torch.set_default_device` was told."""
    if default_device().type == "cpu":  # entering a device costs every call of torch some time
        yield
    else:
        with torch.device("cpu"):
            yield


def moved(values: Tensor, device: torch.device) -> Tensor:
    """The values on a device, without waiting for it; on the CPU they are there when this returns.

    A copy to the CPU that nobody waits for would be read before it has happened.
    """
    return values.to(device, non_blocking=device.type != "cpu")


def sent(values: Tensor, device: torch.device) -> Tensor:
    """Values that were made on the CPU, on a device, without waiting for what it does meanwhile.

    A copy from memory that is not pinned waits on CUDA. Torch keeps pinned memory until the copy has happened.
    """
    return moved(values.pin_memory() if device.type == "cuda" else values, device)


def check_features(features: Tensor) -> None:
    """Raise unless `features` is an (N, d) floating-point matrix."""
    if not isinstance(features, Tensor):
        raise InputError(f"expected features as a torch.Tensor, got {type(features).__name__}: use torch.as_tensor")
    if features.dim() != 2:
        raise InputError(
            f"expected features of shape (N, d), got {tuple(features.shape)}: flatten or pool the other dimensions"
        )
    if features.dtype not in _FLOATS:
        raise InputError(f"expected floating-point features, got {_kind(features)}: convert them with features.float()")
    if features.layout != torch.strided:
        raise InputError(f"expected dense features, got {features.layout}: convert them with features.to_dense()")


def check_vectors(vectors: Tensor) -> None:
    """Raise unless `vectors` is a finite (K, d) floating-point matrix."""
    if not isinstance(vectors, Tensor) or vectors.dim() != 2 or vectors.dtype not in _FLOATS:
        got = f"{tuple(vectors.shape)} {vectors.dtype}" if isinstance(vectors, Tensor) else type(vectors).__name__
        raise InputError(f"expected vectors as a (K, d) floating-point tensor, got {got}: one row for each class")
    check_finite(vectors, "vectors")


def check_finite(values: Tensor, name: str = "features") -> None:
    """Raise if any of `values` (features, weights) is NaN or infinite; the error says how many and in which rows."""
    if math.isfinite(values.detach().sum().item()):  # one cheap pass: NaN and infinity survive a sum
        return
    bad = ~torch.isfinite(values)
    count = int(bad.sum())
    if count == 0:  # finite values whose sum overflowed
        return
    rows = bad.flatten(1).any(1).nonzero().flatten().tolist() if values.dim() > 1 else bad.nonzero().flatten().tolist()
    shown = ", ".join(str(row) for row in rows[:5]) + (", ..." if len(rows) > 5 else "")
    raise InputError(
        f"expected finite {name}, got {count} NaN or infinite of {values.numel()} values in {len(rows)} rows "
        f"(rows {shown}): correct or drop them"
    )


def check_labels(labels: Tensor, num_samples: int, name: str = "labels") -> Tensor:
    """Labels (or predicted classes) as int64, after checking shape (N,) and dtype, but not the range."""
    if not isinstance(labels, Tensor):
        raise InputError(f"expected {name} as a torch.Tensor, got {type(labels).__name__}: use torch.as_tensor")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise InputError(f"expected integer {name}, got {labels.dtype}: convert them with {name}.long()")
    if labels.dim() != 1:
        shape = tuple(labels.shape)
        if labels.dim() == 2 and shape[1] == 1:
            hint = f"use {name}.squeeze(1)"
        elif labels.dim() == 2 and shape[0] == num_samples:
            hint = f"if they are one-hot, use {name}.argmax(1)"
        else:
            hint = "give one class index for each row of features"
        raise InputError(f"expected {name} of shape (N,), got {shape}: {hint}")
    if labels.shape[0] != num_samples:
        raise InputError(
            f"expected as many {name} as features, got {labels.shape[0]} {name} for {num_samples} rows of features: "
            "give one class index for each row"
        )
    return labels.to(torch.int64)


def check_ignored(ignore_index: object) -> None:
    """Raise unless `ignore_index`, the label of samples that are left out, is an integer (also NumPy's) or None."""
    if ignore_index is not None and (isinstance(ignore_index, bool) or not isinstance(ignore_index, Integral)):
        raise InputError(f"expected ignore_index as an integer, got {ignore_index!r:.80}: give the label to leave out")


def check_label_range(labels: Tensor, num_classes: int) -> None:
    """Raise unless all labels, if there are any, are from 0 to num_classes - 1."""
    lowest, highest = (int(end) for end in torch.aminmax(labels)) if labels.numel() else (0, 0)
    if lowest >= 0 and highest < num_classes:
        return
    hint = (
        "leave negative labels out with ignore_index, or count classes from 0"
        if lowest < 0
        else "labels count from 0; raise num_classes or remap labels with gaps to 0..K-1"
    )
    got = str(lowest) if lowest == highest else f"{lowest} to {highest}"
    raise InputError(f"expected labels from 0 to {num_classes - 1} (num_classes={num_classes}), got {got}: {hint}")


def check_classifier(weight: Tensor | None, bias: Tensor | None, num_classes: int, feature_dim: int) -> None:
    """Raise unless weight is (K, d) and bias is (K,) or None, both finite and floating-point, or both are None."""
    if weight is None:
        if bias is not None:
            raise InputError("expected a weight beside the bias, got none: pass weight (K, d) too")
        return
    if not isinstance(weight, Tensor) or weight.dtype not in _FLOATS:
        raise InputError(f"expected weight as a floating-point torch.Tensor, got {_kind(weight)}")
    if tuple(weight.shape) != (num_classes, feature_dim):
        hint = "it must fit the features and labels"
        if weight.dim() == 2 and weight.shape[0] == feature_dim != weight.shape[1]:
            hint = "transpose it (one row for each class)"
        elif weight.dim() == 2 and weight.shape[1] == feature_dim:
            hint = "num_classes must be that of the classifier"
        raise InputError(
            f"expected weight of shape (K, d) = ({num_classes}, {feature_dim}), got {tuple(weight.shape)}: {hint}"
        )
    check_finite(weight, "weight")
    if bias is None:
        return
    if not isinstance(bias, Tensor) or bias.dtype not in _FLOATS:
        raise InputError(f"expected bias as a floating-point torch.Tensor, got {_kind(bias)}")
    if tuple(bias.shape) != (num_classes,):
        raise InputError(
            f"expected bias of shape (K,) = ({num_classes},), got {tuple(bias.shape)}: a number for each class"
        )
    check_finite(bias, "bias")


def check_class_names(names: Any, num_classes: int) -> tuple[str, ...]:
    """The names of the K classes, given in their order or by number (`id2label`), each as one line of text."""
    if isinstance(names, Mapping):
        by_number = {int(key): name for key, name in names.items() if str(key).strip().isdecimal()}
        names = [by_number.get(number, number) for number in range(max(num_classes, len(names)))]
    if isinstance(names, str | bytes) or not isinstance(names, Iterable):
        raise InputError(f"expected names as a list of {num_classes} texts, got {names!r:.80}: one for each class")
    found = tuple(" ".join(str(number if name is None else name).split()) for number, name in enumerate(names))
    if len(found) != num_classes:
        raise InputError(f"expected the names of {num_classes} classes, got {len(found)}: one for each class")
    return found


def check_count(value: object, name: str, least: int) -> int:
    """The value as an int; raise unless it is an integer (also NumPy's) of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise InputError(f"expected {name} to be an integer of at least {least}, got {value!r}: give such a number")
    return int(value)


def check_real(value: object, name: str, *, zero: bool = False) -> float:
    """The value as a float; raise unless it is a finite real number above 0 (or equal to 0, with `zero`)."""
    real = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not real or value < 0 or (value == 0 and not zero):  # type: ignore[operator]
        raise InputError(f"expected {name} to be {'0 or ' if zero else ''}positive and finite, got {value!r}")
    return float(value)  # type: ignore[arg-type]


def check_etf_exists(num_classes: int, dim: int) -> None:
    """Raise unless K >= 2 unit vectors with all cosines -1/(K-1) fit into d dimensions, d >= K-1."""
    check_count(num_classes, "num_classes", 2)
    check_count(dim, "dim", 1)
    if dim < num_classes - 1:
        raise InputError(
            f"expected a dimension d >= K-1 = {num_classes - 1} for a simplex ETF of K={num_classes} classes, "
            f"got d={dim}: widen the features to at least {num_classes - 1}"
        )


def _kind(value: object) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
