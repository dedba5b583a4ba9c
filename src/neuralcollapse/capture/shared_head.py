"""The weight and bias of what several processes measured, the same in all of them.

Where the head's own weight and bias made the logits, every process has them. Otherwise they were found from rows of the
samples: a scale, a shift, a matrix. Each process finds them from its own rows, up to rounding and as far as these rows
determine them, so that all take what the process with the most rows found.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from neuralcollapse.capture.agreement import Undetermined
from neuralcollapse.capture.forward import Forward
from neuralcollapse.capture.team import Team


class _Found(NamedTuple):
    """What one process found, without the values."""

    rows: int
    plain: bool
    name: str
    by_model: bool
    shape: tuple[int, ...]
    dtype: torch.dtype
    bias_dtype: torch.dtype | None


def head_of_all(forward: Forward, team: Team) -> tuple[Tensor, Tensor | None]:
    """The weight (K, d) and the bias (K,) or None that made the logits.

    Raises:
        InputError: in all processes, if one found that the logits are no linear map of the features, or none had rows
            enough to find that map.
    """
    tensors: tuple[Tensor, Tensor | None] | None = None
    unsolved: Undetermined | None = None

    def seen() -> _Found | None:
        nonlocal tensors, unsolved
        if forward.rows == 0 and team.joins:
            return None
        try:
            tensors = weight, bias = forward.tensors()
        except Undetermined as error:
            unsolved = error
            if not team.joins:
                raise
            return None
        types = weight.dtype, None if bias is None else bias.dtype
        return _Found(forward.rows, forward.is_plain, forward.head.name, forward.by_model, tuple(weight.shape), *types)

    def checked() -> None:
        if unsolved is not None:
            raise unsolved

    told = team.exchanged(seen)
    found = [(rank, each) for rank, each in enumerate(told) if each is not None]
    if not found:
        team.exchanged(checked)
    if tensors is not None and (not team.joins or (len(found) == team.size and all(each.plain for _, each in found))):
        return tensors
    source, facts = max(found, key=lambda each: each[1].rows)  # the first of equals
    weight, bias = tensors or (None, None)
    weight_of_all = team.from_first(weight, source, facts.shape, facts.dtype).to(forward.device)
    forward.tell(facts.name, by_model=facts.by_model)
    if facts.bias_dtype is None:
        return weight_of_all, None
    return weight_of_all, team.from_first(bias, source, facts.shape[:1], facts.bias_dtype).to(forward.device)
