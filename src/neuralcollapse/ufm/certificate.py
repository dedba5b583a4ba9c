"""certify(): how far any point is from the optimum, what kind of point it is, and the way out of a saddle.

A critical point is a global minimiser iff `|grad g|_2 <= mu`. Otherwise, with (u, s, v) the top singular triple of
grad g and a unit vector a with `W a = 0` and `H'a = 0`,

    D = ( (lH/lW)^(1/4) u a',  -(lW/lH)^(1/4) a v',  0 ),     f''[D, D] = -2 (s - mu) < 0.

Source: Zhu et al. 2021, theorem 3.2. For points that are not critical the gap comes from weak duality (`duality.py`).

No point is exactly critical, and near a minimum |grad g|_2 may exceed mu by about the distance to it. So a point with a
small gradient is first moved to the critical point beside it (`polish.py`), and that point is a saddle only if its
negative curvature exceeds what the remaining error explains. For many classes both may cost hours: beyond a limit
(`effort.py`) the search ends, and what it could not show is undecided. All tolerances are taken in canonical units
(`units.py`), so that equivalent models get the same verdicts.

With features >= 0 a critical point has no projected gradient, and no saddle is ever certified: a class whose features
are all 0 gets no gradient, but neither is there a way down of second order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from neuralcollapse.errors import InputError
from neuralcollapse.ufm.duality import decay_cost, dual_norm, lower_bound, spectral_norm, top_pair
from neuralcollapse.ufm.effort import WORK, Effort, OutOfEffort
from neuralcollapse.ufm.hessian import Hessian
from neuralcollapse.ufm.model import Model, check_model
from neuralcollapse.ufm.points import Point
from neuralcollapse.ufm.polish import NEAR, Polished, polish
from neuralcollapse.ufm.units import Units

# With these, benchmarks/verdicts.py counts no false verdict over 1,000 models with decays from 1e-8 to 1e2.
GLOBAL_GAP = 1e-7  # a certified gap of at most this, relative to the cost of the decay, means a global minimum
CRITICAL = 1e-6  # a canonical gradient of at most this times mu (1 + |point|) means a critical point
_ROUNDING = 1e-14  # what rounding leaves of a zero gap, relative to the objective
_CONTRADICTION = 1e-9  # a lower bound that exceeds an objective by this, relatively, is wrong
_CURVED = 1e-6  # a curvature below minus this times mu is negative
_LARGE = 2**26  # logits of all samples, half a gigabyte
_EQUAL = 1e-12  # features this close to their class means, relatively, are equal up to the rounding of the means


@dataclass(frozen=True)
class Certificate:
    """What is known about a point.

    Attributes:
        verdict: "global_minimum", "strict_saddle", "not_critical" or "undecided"; with features >= 0 never the second.
        reason: why, in one sentence.
        objective: f at the point.
        lower_bound: the best certified lower bound of the minimum; -inf if there is none (focal loss).
        gap: `objective - lower_bound`: the point is at most this far above the minimum.
        gradient_norm: `|grad f|`; with features >= 0 of the projected gradient, without the entries that hold features
            at 0.
        spectral_ratio: `|grad g|_2 / mu`, or with features >= 0 what takes its place (`duality.dual_norm`); at most 1
            at a global minimiser.
        curvature: `f''[D, D]` along `direction`, negative at a strict saddle; None without a direction.
        direction: the way down D, as a point; None if none is known.
        least_eigenvalue: at a saddle, the Rayleigh quotient of the best combination of the two parts of D. It is an
            upper bound of the least eigenvalue of the Hessian, and was equal to it at every saddle tried.
    """

    verdict: str
    reason: str
    objective: float
    lower_bound: float
    gap: float
    gradient_norm: float
    spectral_ratio: float
    curvature: float | None = None
    direction: Point | None = None
    least_eigenvalue: float | None = None

    def __repr__(self) -> str:
        way = "" if self.curvature is None else f", curvature {self.curvature:.3g} along its way down"
        gap = f"{max(self.gap, 0.0):.1e}"
        return (
            f"Certificate({self.verdict}: {self.reason})\n"
            f"  objective {self.objective:.10g}, at most {gap} above the minimum ({self.lower_bound:.10g} or more)\n"
            f"  gradient {self.gradient_norm:.1e}, |grad g|_2 / mu {self.spectral_ratio:.8g}{way}"
        )


def certify(model: Model, point: Point, *, known_bound: float = -math.inf) -> Certificate:
    """Certify a point.

    `global_minimum`: the certified gap is at most 1e-7 of the cost of the decay, which is the objective minus the least
    value of the loss alone (0, or the entropy of smoothed targets); this means the same for an objective of 1e-8 as for
    one of 1. `not_critical`: the gradient is not small. `strict_saddle`: a critical point within rounding or a small
    Newton step has a direction of negative curvature. `undecided`: none of these can be shown, or to show it would take
    more than some minutes, as for a nearly critical point of 10,000 classes; the reason says which.

    Args:
        model: the model.
        point: any point, critical or not.
        known_bound: a lower bound from another point of the same model, such as the best of a trajectory.

    Raises:
        InputError: a point of the wrong shape or dtype, or not finite; a known_bound above the objective.
    """
    check_model(model)
    model.check_point(point)
    given = model = model.near(point)
    units = Units(model)
    if not model.is_collapsed and model.spread(point) <= _EQUAL:  # all is the same there, with fewer columns
        model, point = model.collapsed(), model.collapse(point)
    large = not model.is_collapsed and model.num_classes * model.num_columns > _LARGE
    products = model.scaled(point.W @ point.H)
    logits = (
        products if point.b is None else torch.add(products, point.b.unsqueeze(-1), out=products if large else None)
    )
    objective = float(model.value_at(point, logits))
    if not math.isfinite(objective):
        raise InputError(
            "expected a point with a finite objective, got one whose logits or norms overflow: scale it down"
        )
    if math.isnan(known_bound):
        raise InputError("expected known_bound to be a number, got nan")
    slopes = model.loss.gradient(logits, model.targets)
    ratio = dual_norm(model, slopes) / model.mu if model.nonnegative else math.nan
    slopes = slopes.mul_(model.columns.weights)
    gradient = model.projected(point, model.gradient_at(point, slopes))
    slopes = model.scaled(slopes)
    ratio = ratio if model.nonnegative else spectral_norm(slopes) / model.mu
    length = float(slopes.norm())
    del logits, slopes  # for 10,000 classes each is 1 GB or more
    if large:  # the bound of the class means is as good a one, and they have fewer columns
        del products
        bound = lower_bound(model.collapsed(), model.collapse(point))
    else:
        bound = lower_bound(model, point, products)
    bound = max(known_bound, bound)
    if known_bound > objective + _CONTRADICTION * abs(objective) + 1e-13:
        raise InputError(
            f"expected a known_bound of at most the objective {objective:.12g}, got {known_bound:.12g}: "
            "of another model?"
        )
    norm, slope = units.norm(point), units.gradient_norm(gradient)
    rounding = 4e-16 * (1 + norm) * length * units.mu / model.mu
    critical = slope <= CRITICAL * min(1.0, units.mu) * (1 + norm) + rounding
    near, effort = None, Effort(units.small)
    if critical and not model.nonnegative and not _closed(model, objective, bound):
        start = Units(model).enter(point)
        near = polish(units, start, effort=effort)
        if near.point is not start:
            bound = max(bound, lower_bound(units.small, near.point))
    facts = (objective, bound, objective - bound, gradient.norm(), ratio)

    if _closed(model, objective, bound):
        return Certificate("global_minimum", f"the certified gap is {max(objective - bound, 0.0):.1e}", *facts)
    if critical and model.nonnegative:
        return Certificate("undecided", _why_undecided(model, facts[2]), *facts)
    if near is None:
        return Certificate("not_critical", f"the gradient's length is {facts[3]:.1e}: descend further", *facts)
    try:
        found = _way_down(given, units, near, facts, effort)
    except OutOfEffort:
        found = None
    why = _out_of_effort(units, facts[2]) if effort.ended else _why_undecided(model, facts[2])
    return found or Certificate("undecided", why, *facts)


def _closed(model: Model, objective: float, bound: float) -> bool:
    """Whether the gap is negligible, relative to the cost of the decay."""
    if not math.isfinite(bound):
        return False
    return objective - bound <= GLOBAL_GAP * decay_cost(model, objective) + _ROUNDING * abs(objective)


def _way_down(
    model: Model, units: Units, near: Polished, facts: tuple[float, float, float, float, float], effort: Effort
) -> Certificate | None:
    """The certificate of a strict saddle, if curvature is negative beyond what the point's error explains.

    Raises:
        OutOfEffort: that would cost too much to know.
    """
    length = 1 + near.point.norm()
    if near.error > NEAR * length:
        return None
    # |grad g|_2 and the eigenvalues of the Hessian change by at most about |point| times the error.
    margin = _CURVED * units.mu + length * near.error
    small = units.small
    u, size, v = top_pair(small.scaled(small.slopes(near.point)))
    if size - units.mu > margin and (free := free_direction(near.point)) is not None:
        short = model if model.is_collapsed else model.collapsed()
        way, curvature, least = escape(short, (u, size * model.mu / units.mu, v), free)
        reason = f"|grad g|_2 is {size / units.mu:.4g} mu, and W and H leave a direction free: f falls along it"
        return Certificate("strict_saddle", reason, *facts, curvature, model.expand(way), least)
    value, along = Hessian(small, near.point, effort).least_direction()
    direction = units.leave(along)
    if not model.loss.convex and not model.is_collapsed:  # the features of a class may also move apart
        least, way = Hessian(model, units.leave(near.point), effort).least_direction()
        if (apart := least / units.norm(way) ** 2) < value:
            value, direction = apart, way * (1 / units.norm(way))
    if value >= -margin:
        return None
    least = value / direction.norm() ** 2
    return Certificate("strict_saddle", f"the Hessian has the eigenvalue {least:.3g}", *facts, value, direction, least)


def _out_of_effort(units: Units, gap: float) -> str:
    small = units.small
    return (
        f"a nearly critical point, with a certified gap of {gap:.1e}: for {small.num_classes:,} classes in "
        f"{small.feature_dim:,} dimensions the Newton steps and eigenvalues that would say more cost more than "
        f"{WORK:.0e} multiplications"
    )


def _why_undecided(model: Model, gap: float) -> str:
    if model.nonnegative:
        return (
            f"a critical point, at most {gap:.3g} above the minimum: with features >= 0 it may be a local minimum, or "
            "a class may be stuck with features that are all 0"
        )
    if not model.loss.convex:
        return "no descent direction of second order, and no lower bound exists for a loss that is not convex"
    if model.feature_dim < model.num_classes - 1:
        return (
            f"a critical point without a direction down, in fewer than K-1 dimensions, where the landscape is not "
            f"benign: perhaps a local minimum, at most {gap:.3g} above the global one"
        )
    return f"a critical point to the accuracy reached, with a certified gap of {gap:.1e}: descend further"


def free_direction(point: Point) -> Tensor | None:
    """A unit vector a (d,) with `W a = 0` and `H'a = 0`, or None if W and H together span all d dimensions."""
    stacked = point.W.mT @ point.W + point.H @ point.H.mT
    values, vectors = torch.linalg.eigh(stacked)
    size = float(values[-1])
    if float(values[0]) > max(1e-10 * size, 1e-20):  # lengths below 1e-10 are rounding, at the origin too
        return None
    return vectors[:, 0]


def escape(model: Model, triple: tuple[Tensor, float, Tensor], free: Tensor) -> tuple[Point, float, float]:
    """(D, f''[D, D], the least Rayleigh quotient in the plane of its two parts), from the top triple of grad g."""
    u, s, v = triple
    lW, lH = model.weight_decay, model.feature_decay
    ratio = (lH / lW) ** 0.25
    bias = torch.zeros(model.num_classes, dtype=torch.float64, device=model.device) if model.bias else None
    direction = Point(ratio * torch.outer(u, free), -torch.outer(free, v) / ratio, bias)
    least = (lW + lH) / 2 - math.hypot((lW - lH) / 2, s)
    return direction, -2 * (s - model.mu), least
