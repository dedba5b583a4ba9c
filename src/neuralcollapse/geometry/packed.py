"""The state of class moments: one float64 vector, and the views of its parts."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from neuralcollapse.errors import InputError


class State(NamedTuple):
    """The parts of a packed state, as float64 views (means perhaps float32); `upper` is (d, d), its upper triangle."""

    counts: Tensor
    spreads: Tensor
    means: Tensor
    upper: Tensor
    coarsest: Tensor


def state_of(packed: Tensor, num_classes: int, dim: int, means_dtype: torch.dtype) -> State:
    """The parts of a packed state of the right size."""
    square = dim * dim
    places = len(packed) - 2 * num_classes - square - 1
    counts, spreads, means, scatter, coarsest = packed.split((num_classes, num_classes, places, square, 1))
    with torch.inference_mode(False):  # a view as another type, made inside, could not be updated outside
        means = means if means_dtype == torch.float64 else means.view(means_dtype)
    means = means[: num_classes * dim].view(num_classes, dim)
    return State(counts, spreads, means, scatter.view(dim, dim), coarsest)


def check_means_dtype(means_dtype: object) -> None:
    """Raise unless class means may be held in this dtype."""
    if means_dtype not in (torch.float64, torch.float32):
        raise InputError(
            f"expected means_dtype torch.float64 or torch.float32, got {means_dtype!r:.80}: give one of them"
        )


def packed_size(num_classes: int, feature_dim: int, means_dtype: torch.dtype = torch.float64) -> int:
    """The length of `ClassMoments.packed`: 2K + K d + d^2 + 1, with K d / 2 (rounded up) for float32 means.

    Raises:
        InputError: means of another dtype.
    """
    check_means_dtype(means_dtype)
    values = num_classes * feature_dim
    places = values if means_dtype == torch.float64 else -(-values // 2)
    return 2 * num_classes + places + feature_dim * feature_dim + 1


def state_device(device: torch.device | str | None) -> torch.device:
    """Where float64 state for features on `device` lives: there, or on the CPU for devices without float64 (MPS)."""
    device = torch.device(device or "cpu")
    return torch.device("cpu") if device.type == "mps" else device
