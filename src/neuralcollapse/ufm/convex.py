"""The minimiser of the convex form of a model, over groups of classes with equal counts, to a duality gap.

Descent in the factors finds it, since the landscape is benign with as many dimensions as groups; L-BFGS comes near, and
Newton's method does the rest. With many groups descent begins at the solution of a coarser model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from neuralcollapse.errors import InputError
from neuralcollapse.ufm.coarse import FINE, coarser, interpolated
from neuralcollapse.ufm.grouped import GroupedModel, GroupedPoint
from neuralcollapse.ufm.model import Model
from neuralcollapse.ufm.polish import descend
from neuralcollapse.ufm.solved import keeps_the_last
from neuralcollapse.ufm.spectral import spectral_newton

_ATTEMPTS = 5  # starts of the solver
_GAP = 1e-9  # the duality gap at which the solver stops, relative to what the decay costs: of first order
_SHARP = 5e-13  # the same where the gap is of second order, no larger than the error of the value
_ENOUGH = 1e-7  # the one that it must reach
_ROUNDING = 1e-14  # what rounding leaves of a gap that is zero, relative to the minimum
_ON_THE_CPU = 200  # groups up to which an accelerator would be slower


def grouped(model: Model) -> GroupedModel:
    """The convex form of a model with real features, on the device where it is solved fastest."""
    few = len(set(model.counts)) <= _ON_THE_CPU
    return GroupedModel(model, torch.device("cpu") if few else model.device)


@keeps_the_last
def solve(model: Model) -> GroupedPoint:
    """The minimiser of a convex model, as a point of `grouped(model)`.

    Raises:
        InputError: the decay is so small that no start came within `_ENOUGH` of the bound.
    """
    problem = grouped(model)
    zero = problem.is_zero()
    return _descended(problem) if zero is None else zero


def _descended(problem: GroupedModel) -> GroupedPoint:
    best, gap, least, cost = problem.zero(), math.inf, math.inf, 0.0
    sharp = len(problem.groups) > FINE
    for points in _attempts(problem):
        for point in points:
            value = float(problem.value(point))
            now = value - problem.lower_bound(point, sharp)
            if now < gap:
                best, gap, least = point, now, value
            cost = problem.decay_cost(least)
            if gap <= (_SHARP if sharp else _GAP) * cost:
                break
        if gap <= _ENOUGH * cost + _ROUNDING * least:
            return best
    raise InputError(
        f"the convex solver stopped at a certified gap of {gap:.1e} above {least - gap:.6g}: "
        "raise weight_decay * feature_decay, which is too small for it"
    )


def _attempts(problem: GroupedModel) -> Iterator[Iterator[GroupedPoint]]:
    """Descents, as their points at smaller and smaller tolerances; later ones only if the first end at a saddle."""
    if len(problem.groups) > FINE:
        yield _from_coarse(problem)
    for seed in range(_ATTEMPTS):
        yield _tightened(problem, problem.start(seed))


def _tightened(problem: GroupedModel, vector: Tensor) -> Iterator[GroupedPoint]:
    for tolerance in (1e-8, 1e-10, 1e-12, 1e-14):
        vector = descend(problem, vector, tolerance * problem.mu)
        yield problem.point(vector)


def _from_coarse(problem: GroupedModel) -> Iterator[GroupedPoint]:
    """The same from the solution of a coarser problem: Newton's method needs few steps there."""
    small = coarser(problem.model)
    return spectral_newton(problem, _between(problem, small, _descended(small)))


def _between(fine: GroupedModel, coarse: GroupedModel, point: GroupedPoint) -> GroupedPoint:
    """The point of a coarser problem as one of a finer: its logits are interpolated."""
    others = (point.between - torch.diag(point.within)) / coarse.outer / coarse.roots
    within = interpolated(fine, coarse, point.within / coarse.roots, 0) * fine.roots
    between = interpolated(fine, coarse, others, 0, 1) * fine.roots * fine.outer + torch.diag(within)
    return GroupedPoint(within, between, None if point.b is None else interpolated(fine, coarse, point.b, 0))
