"""certify(): how far any point is from the optimum, what it is, and the way out of a saddle.

A critical point is a global minimiser iff |grad g|_2 <= mu. Otherwise, with (u, s, v) the top singular triple of
grad g and a unit vector a with W a = 0 and H'a = 0,

    D = ( (lH/lW)^(1/4) u a',  -(lW/lH)^(1/4) a v',  0 ),     f''[D, D] = -2 (s - mu) < 0.

Source: Zhu et al. 2021, theorem 3.2; the gap for points that are not critical is weak duality (`duality.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from neuralcollapse._errors import InputError
from neuralcollapse.ufm.duality import lower_bound, spectral_norm, top_pair
from neuralcollapse.ufm.hessian import Hessian
from neuralcollapse.ufm.model import Model, Point

GLOBAL_GAP = 1e-7  # a certified gap below this, relative to f, makes a global minimum
_ROUNDING = 1e-13  # what rounding leaves of a gap that is zero
CRITICAL = 1e-6  # a gradient below this times mu (1 + |point|) makes a critical point
_CONTRADICTION = 1e-9  # a lower bound this far above an objective, relatively, cannot be one
_ABOVE = 1e-6  # a spectral ratio above 1 + this makes a way down


@dataclass(frozen=True)
class Certificate:
    """What is known of a point.

    Attributes:
        verdict: "global_minimum", "strict_saddle", "not_critical" or "undecided".
        reason: why, in one sentence.
        objective: f at the point.
        lower_bound: the best certified lower bound of the minimum; -inf where none is claimed (focal loss).
        gap: objective - lower_bound: the point is at most this far above the minimum.
        gradient_norm: |grad f|.
        spectral_ratio: |grad g|_2 / mu; at most 1 at a global minimiser.
        curvature: f''[D, D] along `direction`, negative at a strict saddle; None where there is no direction.
        direction: the way down D (W, H, b parts); None where none is known.
        least_eigenvalue: the Rayleigh quotient of the best combination of D's two parts at a saddle, which
            bounds the least eigenvalue of the Hessian from above and was equal to it at every saddle tried.
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


def certify(model: Model, point: Point, *, known_bound: float = -math.inf) -> Certificate:
    """Certify a point.

    Args:
        model: the model.
        point: any point, critical or not.
        known_bound: a lower bound from another point of the same model (the running maximum of a trajectory).

    Raises:
        InputError: a point of the wrong shape or dtype, or not finite; a known_bound above the objective.
    """
    model.check_point(point)
    products = model.scaled(point.W @ point.H)
    logits = products if point.b is None else products + point.b.unsqueeze(-1)
    objective = float(model.value_at(point, logits))
    if not math.isfinite(objective):
        raise InputError(
            "expected a point with a finite objective, got one whose logits or norms overflow: scale it down"
        )
    if math.isnan(known_bound):
        raise InputError("expected known_bound to be a number, got nan")
    slopes = model.loss.gradient(logits, model.targets).mul_(model.columns.weights)
    gradient_norm = model.gradient_at(point, slopes).norm()
    slopes = model.scaled(slopes)
    ratio = spectral_norm(slopes) / model.mu
    bound = max(known_bound, lower_bound(model, point, products).value)
    gap = objective - bound
    if gap < -_CONTRADICTION * max(1.0, abs(objective)):
        raise InputError(
            f"expected a known_bound of at most the objective {objective:.12g}, got {bound:.12g}: of another model?"
        )
    facts = (objective, bound, gap, gradient_norm, ratio)

    if gap <= GLOBAL_GAP * abs(objective) + _ROUNDING:
        return Certificate("global_minimum", f"the certified gap is {max(gap, 0.0):.1e}", *facts)
    if gradient_norm > CRITICAL * model.mu * (1 + point.norm()) + 1e-15:
        return Certificate("not_critical", f"the gradient's length is {gradient_norm:.1e}: descend further", *facts)
    if ratio > 1 + _ABOVE:
        free = free_direction(point)
        if free is not None:
            direction, curvature, least = escape(model, slopes, free)
            reason = f"|grad g|_2 is {ratio:.4g} mu, and W and H leave a direction free: f falls along it"
            return Certificate("strict_saddle", reason, *facts, curvature, direction, least)
    value, direction = Hessian(model, point).least_direction()
    if value < -1e-8:
        reason = f"the Hessian has the eigenvalue {value:.3g}"
        return Certificate("strict_saddle", reason, *facts, value, direction, value)
    return Certificate("undecided", _why_undecided(model, gap), *facts)


def _why_undecided(model: Model, gap: float) -> str:
    if not model.loss.convex:
        return "no descent direction of second order, and no lower bound exists for a loss that is not convex"
    if model.feature_dim < model.num_classes - 1:
        return (
            f"a critical point without a direction down, in fewer than K-1 dimensions, where the landscape is not "
            f"benign: perhaps a local minimum, at most {gap:.3g} above the global one"
        )
    return f"a critical point to the accuracy reached, with a certified gap of {gap:.1e}: descend further"


def free_direction(point: Point) -> Tensor | None:
    """A unit vector a (d,) with W a = 0 and H'a = 0, or None when W and H together span all d dimensions."""
    stacked = point.W.mT @ point.W + point.H @ point.H.mT
    values, vectors = torch.linalg.eigh(stacked)
    size = float(values[-1])
    if float(values[0]) > 1e-10 * size and size > 0:
        return None
    return vectors[:, 0]


def escape(model: Model, slopes: Tensor, free: Tensor) -> tuple[Point, float, float]:
    """(D, f''[D, D], the least Rayleigh quotient in the plane of D's parts), for scaled slopes grad g."""
    u, s, v = top_pair(slopes)
    lW, lH = model.weight_decay, model.feature_decay
    ratio = (lH / lW) ** 0.25
    bias = torch.zeros(model.num_classes, dtype=torch.float64, device=model.device) if model.bias else None
    direction = Point(ratio * torch.outer(u, free), -torch.outer(free, v) / ratio, bias)
    least = (lW + lH) / 2 - math.hypot((lW - lH) / 2, s)
    return direction, -2 * (s - model.mu), least
