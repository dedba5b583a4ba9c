"""Numbers and moments joined over the processes of torch.distributed."""

from __future__ import annotations

import torch
import torch.distributed

from neuralcollapse.geometry.moments import ClassMoments


def num_processes() -> int:
    """How many there are."""
    return torch.distributed.get_world_size()


def summed(device: torch.device, *values: float) -> list[float]:
    """Each number's sum over the processes; all of them must call this."""
    numbers = torch.tensor([float(value) for value in values], dtype=torch.float64, device=device)
    torch.distributed.all_reduce(numbers)
    return numbers.tolist()


def merged(moments: ClassMoments) -> ClassMoments:
    """The moments of all processes' samples, joined in the order of the processes; all of them must call this.

    One process after another sends its own, so that a process never holds more than three.
    """
    joined = ClassMoments.zeros(
        moments.num_classes, moments.feature_dim, moments.packed.device, means_dtype=moments.means.dtype
    )
    for rank in range(num_processes()):
        part = moments.packed if rank == torch.distributed.get_rank() else torch.empty_like(moments.packed)
        torch.distributed.broadcast(part, rank)
        joined.absorb(ClassMoments(part, *moments.shape))
    return joined
