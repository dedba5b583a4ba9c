r"""The minimum of the model with features >= 0 (behind a ReLU), for any class counts.

Without a bias the classes have orthogonal features, `h_{k,i} = r_k e_k`, and each class is a problem of its own,

    min over z:  p_k l(z, k) + c_k |z|,      p_k = n_k/N,  c_k = sqrt(lW lH n_k)

For cross-entropy with smoothing a it is solved by `z = m_k (e_k - 1/K)`, `rho = sqrt((K-1)/K)`:

    Q = a rho^2 + rho c_k/p_k,    m_k = log((K-1) (1-Q)/Q)  if Q < (K-1)/K, else 0
    f* = sum_k p_k [ log(1 + (K-1) e^-m_k) + a rho^2 m_k ] + rho c_k m_k

so that class k vanishes iff `n_k <= N^2 lW lH K/((K-1)(1-a)^2)`. For squared error `z = (1 - c_k/p_k)_+ e_k`. The
slopes y_k of different classes then have no positive inner product, so that the bound of `duality.py` meets f*: that
proves the formula. The same holds with a bias and equal classes (b is constant).

With a bias and unequal classes the bias joins the classes (`decoupled.py`), and if it is hardly decayed, small classes
share features at the minimum. Descent finds that minimum, and it is exact where the bound proves it.

Source: Dang, Tran, Nguyen, Ho, ICML 2024, for cross-entropy without a bias; the derivation here is our own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from neuralcollapse.errors import InputError
from neuralcollapse.ufm.decoupled import decoupled
from neuralcollapse.ufm.duality import decay_cost, lower_bound
from neuralcollapse.ufm.losses import CrossEntropy
from neuralcollapse.ufm.model import Model, Point
from neuralcollapse.ufm.projected import bounded_lbfgs
from neuralcollapse.ufm.solved import keeps_the_last
from neuralcollapse.ufm.units import Units

_EXACT = 1e-7  # a gap of at most this, relative to the cost of the decay, counts as none (as in `certificate.py`)
_ROUNDING = 1e-14  # what rounding leaves of a zero gap, relative to the objective
_ATTEMPTS = 6  # descents, at most
_MANY, _FEW_ATTEMPTS = 50, 2  # for more classes than this the later ones, which rarely help, would take minutes
_DESCENT_UP_TO = 200  # classes: each descent has 2 K^2 variables
_SMALL = 0.1  # the distance of the starts after the first from the orthogonal classes, in canonical units


@dataclass(frozen=True)
class MinimumBounds:
    """Two bounds of the minimum of a model with features >= 0.

    Attributes:
        lower: no point of the model is below this.
        upper: the objective at `point`.
        point: the lowest point found.
        exact: whether the bounds agree, up to 1e-7 of what the decay costs: `upper` is the minimum.
    """

    lower: float
    upper: float
    point: Point
    exact: bool


def minimum_bounds(model: Model) -> MinimumBounds:
    """The exact minimum of a model with features >= 0 where it can be proved, or bounds of it.

    Raises:
        InputError: features="real"; focal loss, which is not convex; or fewer dimensions than classes that do not
            vanish, whose features cannot be orthogonal.
    """
    found = collapsed_bounds(model)
    return replace(found, point=model.expand(found.point))


def collapsed_bounds(model: Model) -> MinimumBounds:
    """`minimum_bounds` with a point of the collapsed model: no array has an entry for each sample."""
    if not model.nonnegative:
        raise InputError("expected a model with features='nonnegative', got 'real': use global_minimum")
    if not model.loss.convex:
        raise InputError("the focal loss is not convex: no minimum and no bound is known for features >= 0")
    K, d = model.num_classes, model.feature_dim
    found = _solve(model.like(feature_dim=min(K, d)))
    W, H = found.point.W.new_zeros(K, d), found.point.H.new_zeros(d, K)
    W[:, : min(K, d)], H[: min(K, d)] = found.point.W, found.point.H
    return replace(found, point=Point(W, H, found.point.b))


@keeps_the_last
def _solve(model: Model) -> MinimumBounds:
    """`minimum_bounds` of a model with d <= K, its point collapsed."""
    small = model.collapsed()
    best = _point(model, *_orthogonal_logits(model))
    upper = float(small.value(best))
    if not model.bias or model.balanced:  # proved
        return MinimumBounds(upper, upper, best, True)
    lower = lower_bound(small, best)
    if not _closed(small, upper, lower) and model.num_classes <= _DESCENT_UP_TO:
        upper, lower, best = _descended(small, best, upper, lower)
    return MinimumBounds(lower, upper, best, _closed(small, upper, lower))


def nonnegative_minimizer(model: Model) -> Point:
    """The minimiser of a model with features >= 0, as a point of the collapsed model.

    Raises:
        InputError: as `minimum_bounds`, or the bounds do not agree.
    """
    bounds = collapsed_bounds(model)
    if not bounds.exact:
        raise InputError(
            f"the minimum with features >= 0 is only known to be from {bounds.lower:.8g} to {bounds.upper:.8g}: "
            "nc.ufm.minimum_bounds(model) returns both, with the lowest point found"
        )
    return bounds.point


def class_margins(model: Model) -> Tensor:
    """(K,) the margins m_k of cross-entropy (smoothed or not) without a bias: the logit of the class over the others.

    Raises:
        InputError: another loss.
    """
    if not isinstance(model.loss, CrossEntropy):
        raise InputError(f"margins in closed form are of cross-entropy, got {model.loss.name}")
    K, rho = model.num_classes, math.sqrt(1 - 1 / model.num_classes)
    counts = torch.tensor(model.counts, dtype=torch.float64, device=model.device)
    pull = model.loss.smoothing * rho**2 + rho * model.mu * model.num_samples / counts.sqrt()  # Q
    return torch.log1p(((K - 1) - K * pull).clamp(min=0) / pull)


def _orthogonal_logits(model: Model) -> tuple[Tensor, Tensor | None]:
    """(K, K) logits without the bias, a column for each class, and the bias, of the best orthogonal classes."""
    K = model.num_classes
    if not isinstance(model.loss, CrossEntropy) or (model.bias and not model.balanced):
        found = decoupled(model)
        return found.logits, found.bias
    eye = torch.eye(K, dtype=torch.float64, device=model.device)
    return class_margins(model) * (eye - 1 / K), eye.new_zeros(K) if model.bias else None


def _point(model: Model, logits: Tensor, bias: Tensor | None) -> Point:
    """The collapsed point with these logits and orthogonal features >= 0, with balanced factors.

    Class k has dimension k to itself; where dimensions are few, the classes that do not vanish take the first ones.
    """
    K, d = model.num_classes, model.feature_dim
    lengths = logits.norm(dim=0) * model.collapsed().columns.roots
    alive = (lengths > 0).nonzero().flatten()
    if len(alive) > d:
        raise InputError(
            f"expected feature_dim of at least {len(alive)}, the number of classes that do not vanish, got d={d}: "
            "features >= 0 of more classes than dimensions are not orthogonal, and the minimum is not known"
        )
    places = alive if d >= K else torch.arange(len(alive), device=model.device)
    sizes = lengths[alive].sqrt() * (model.weight_decay / model.feature_decay) ** 0.25  # of the scaled features
    W, H = logits.new_zeros(K, d), logits.new_zeros(d, K)
    W[:, places] = logits[:, alive] * model.collapsed().columns.roots[alive] / sizes
    H[places, alive] = sizes
    return Point(W, H, bias)


def _descended(work: Model, orthogonal: Point, upper: float, lower: float) -> tuple[float, float, Point]:
    """(upper bound, lower bound, point) after descents of a collapsed model, until the bounds agree."""
    units = Units(work)
    scales, best = units.scales(), orthogonal
    near = orthogonal.vector() / scales
    for attempt in range(_ATTEMPTS if work.num_classes <= _MANY else _FEW_ATTEMPTS):
        start = units.small.random_point(attempt, scale=1.0 if attempt > _ATTEMPTS // 2 else _SMALL).vector()
        if attempt <= _ATTEMPTS // 2:
            start = near + start * (attempt > 0)
        descent = bounded_lbfgs(units, start, tolerance=1e-12 * units.mu, iterations=3000)
        point = work.point(descent.points * scales)
        value = float(work.value(point))
        lower = max(lower, lower_bound(work, point))
        if value < upper:
            upper, best = value, point
        if _closed(work, upper, lower):
            break
    return upper, lower, best


def _closed(model: Model, upper: float, lower: float) -> bool:
    return upper - lower <= _EXACT * decay_cost(model, upper) + _ROUNDING * abs(upper)
