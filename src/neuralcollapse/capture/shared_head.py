"""The weight and bias of what several processes measured, in all of them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from neuralcollapse.capture.forward import Forward
from neuralcollapse.capture.team import Team


def head_of_all(forward: Forward, team: Team) -> tuple[Tensor, Tensor | None]:
    """The weight (K, d) and the bias (K,) or None that made the logits, which a process without samples is told."""
    found: tuple[Tensor, Tensor | None] | None = None

    def seen() -> tuple[Any, ...] | None:
        nonlocal found
        if forward.batches == 0 and team.joins:
            return None
        found = weight, bias = forward.tensors()
        return tuple(weight.shape), weight.dtype, bias is not None and bias.dtype, forward.by_model, forward.head.name

    told = team.exchanged(seen)
    source = next(rank for rank, each in enumerate(told) if each is not None)
    if all(each is not None for each in told):
        assert found is not None
        return found
    facts = told[source]
    assert facts is not None
    shape, dtype, bias_dtype, by_model, name = facts
    weight, bias = found or (None, None)
    weight_of_all = team.from_first(weight, source, shape, dtype)
    bias_of_all = team.from_first(bias, source, shape[:1], bias_dtype) if bias_dtype else None
    if found is None:
        forward.tell(name, by_model=by_model)
        return weight_of_all.to(forward.device), None if bias_of_all is None else bias_of_all.to(forward.device)
    return found
