"""Numbers and moments joined over the processes of torch.distributed."""

from __future__ import annotations

from functools import reduce

import torch
import torch.distributed

from neuralcollapse.moments import ClassMoments


def num_processes() -> int:
    """How many there are."""
    return torch.distributed.get_world_size()


def summed(device: torch.device, *values: float) -> list[float]:
    """Each number's sum over the processes; all of them must call this."""
    numbers = torch.tensor([float(value) for value in values], dtype=torch.float64, device=device)
    torch.distributed.all_reduce(numbers)
    return numbers.tolist()


def merged(moments: ClassMoments) -> ClassMoments:
    """The moments of all processes' samples, joined in the order of the processes; all of them must call this."""
    parts = [torch.empty_like(moments.packed) for _ in range(num_processes())]
    torch.distributed.all_gather(parts, moments.packed)
    return reduce(ClassMoments.merge, (ClassMoments(part, moments.num_classes, moments.feature_dim) for part in parts))
