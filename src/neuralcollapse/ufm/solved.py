"""The last models that were solved, with their solutions: several questions about a run are of one model."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from neuralcollapse.ufm.model import Model

_T = TypeVar("_T")
_KEPT = 4


def keeps_the_last(solve: Callable[..., _T]) -> Callable[..., _T]:
    """Let a function of a model remember its last few results, which are not to be changed in place.

    Other arguments, which change no result, are passed on.
    """
    solutions: dict[object, _T] = {}

    @wraps(solve)
    def kept(model: Model, **others: Any) -> _T:
        decays = (model.weight_decay, model.feature_decay, model.bias_decay)
        loss = (type(model.loss), tuple(vars(model.loss).items()))
        key = (model.counts, model.feature_dim, decays, model.bias, loss, model.features, model.device)
        if key not in solutions:
            while len(solutions) >= _KEPT:
                solutions.pop(next(iter(solutions)), None)
            solutions[key] = solve(model, **others)
        return solutions[key]

    return kept
