"""Numbers, moments and buffers of a network, joined over the processes of torch.distributed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from neuralcollapse.checks import is_dtensor
from neuralcollapse.geometry.moments import ClassMoments


def summed(device: torch.device, *values: float) -> list[float]:
    """Each number's sum over the processes; all of them must call this."""
    numbers = torch.tensor([float(value) for value in values], dtype=torch.float64, device=device)
    torch.distributed.all_reduce(numbers)
    return numbers.tolist()


def merged(moments: ClassMoments, ranks: Sequence[int] | None = None) -> ClassMoments:
    """The moments of the samples of all processes, joined in their order; all of them must call this.

    One process after another sends its own, so no process ever holds more than three. With `ranks`, only these do.
    """
    joined = ClassMoments.zeros(
        moments.num_classes, moments.feature_dim, moments.packed.device, means_dtype=moments.means.dtype
    )
    for rank in range(torch.distributed.get_world_size()) if ranks is None else ranks:
        part = moments.packed if rank == torch.distributed.get_rank() else torch.empty_like(moments.packed)
        torch.distributed.broadcast(part, rank)
        joined.absorb(ClassMoments(part, *moments.shape))
    return joined


@contextmanager
def first_buffers(model: nn.Module) -> Iterator[None]:
    """Inside, every process has the first one's buffers; afterwards it has its own again. All of them must call this.

    The running means and variances of batch normalisation differ between processes, as each of them sees its own
    samples; a network that is measured must be the same in all.
    """
    # Those that tensor parallelism keeps as DTensors are the same, or parts of the same, in all processes already.
    # `.data` has a count of changes of its own: a backward pass that is still to come must not miss its buffers.
    buffers = [each.data for each in model.buffers() if each.is_floating_point() and not is_dtensor(each)]
    own = [buffer.clone() for buffer in buffers]
    for buffer in buffers:
        torch.distributed.broadcast(buffer, 0)
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, kept in zip(buffers, own, strict=True):
                buffer.copy_(kept)


@contextmanager
def without_sync(model: nn.Module) -> Iterator[None]:
    """Inside, a forward pass of DistributedDataParallel needs no other process.

    By default it sends the first one's buffers whenever it runs, in eval mode too, so that a process with fewer batches
    would leave the others waiting.
    """
    # An attribute that torch does not document, and that its own `_check_sync_bufs_pre_fwd` asks.
    wrappers = [part for part in model.modules() if isinstance(part, DistributedDataParallel)]
    before = [part.require_forward_param_sync for part in wrappers]
    for part in wrappers:
        part.require_forward_param_sync = False
    try:
        yield
    finally:
        for part, sync in zip(wrappers, before, strict=True):
            part.require_forward_param_sync = sync
