"""How FSDP2 and tensor parallelism have laid out a network: which processes get the same batches, what is gathered."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed
from torch import nn

from neuralcollapse.checks import is_dtensor
from neuralcollapse.heads.split import is_fsdp2


def tensor_dims(model: nn.Module) -> dict[int, int]:
    """By `id` of each parameter that FSDP2 manages, the first dimension of its mesh that is tensor parallelism's.

    A DTensor that FSDP2 has not made is tensor parallel in all its dimensions, and is not listed.
    """
    found = {}
    for group in _groups(model):
        for each in group.fsdp_params:
            for value in (each.sharded_param, getattr(each, "_unsharded_param", None)):
                # FSDP2 puts its own dimensions before those of a parameter that was a DTensor already.
                found[id(value)] = group.mesh_info.mesh.ndim if value is each.sharded_param else 0
    return found


def same_batches(model: nn.Module) -> list[int]:
    """The processes that run this model as one, this one included, and so must get the same batches: by their ranks.

    They share layers by tensor parallelism. Under FSDP2 alone, each process has batches of its own.
    """
    first, ranks = tensor_dims(model), {torch.distributed.get_rank()}
    managed = [each.sharded_param for group in _groups(model) for each in group.fsdp_params]
    for value in [*model.parameters(), *managed]:
        split: Any = value
        place = split.device_mesh.get_coordinate() if is_dtensor(value) else None
        if place is None:
            continue
        for dim in range(first.get(id(value), 0), split.device_mesh.ndim):
            if not split.placements[dim].is_replicate():
                line = tuple(slice(None) if each == dim else at for each, at in enumerate(place))
                ranks |= set(split.device_mesh.mesh[line].tolist())
    return sorted(ranks)


@contextmanager
def split_again(model: nn.Module) -> Iterator[None]:
    """Afterwards FSDP2 keeps its parameters in parts where it did before.

    A pass without gradients leaves the outermost parameters whole. Where the optimiser steps next, the following
    training step would use those of before.
    """
    parts: list[Any] = [part for part in model.modules() if is_fsdp2(part) and _in_parts(part)]
    try:
        yield
    finally:
        for part in parts:
            part.reshard()


def split_at_once(model: nn.Module) -> None:
    """Let FSDP2 keep all its parameters in parts: those that a pass has left whole are copies that it forgets."""
    for module in model.modules():
        if is_fsdp2(module):
            part: Any = module
            part.reshard()


def _in_parts(module: nn.Module) -> bool:
    return all(group.is_sharded for group in _groups_of(module))


def _groups(model: nn.Module) -> Iterator[Any]:
    for module in model.modules():
        if is_fsdp2(module):
            yield from _groups_of(module)


def _groups_of(module: Any) -> list[Any]:
    """The groups of parameters that FSDP2 gathers together.

    The state and its groups are private to torch: no public way leads to the mesh of FSDP2, or says whether its
    parameters are whole. torch 2.5 to 2.9 have one group for a module, later versions a list.
    """
    state = module._get_fsdp_state()
    groups = getattr(state, "_fsdp_param_groups", None)
    one = None if groups is not None else state._fsdp_param_group
    return list(groups) if groups is not None else [] if one is None else [one]
