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

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from neuralcollapse.errors import InputError
from neuralcollapse.ufm.decoupled import Decoupled, decoupled
from neuralcollapse.ufm.duality import decay_cost, lower_bound
from neuralcollapse.ufm.grouped import GroupedModel, Groups
from neuralcollapse.ufm.losses import CrossEntropy
from neuralcollapse.ufm.model import Model, check_model
from neuralcollapse.ufm.points import Point
from neuralcollapse.ufm.projected import bounded_lbfgs
from neuralcollapse.ufm.solved import keeps_the_last
from neuralcollapse.ufm.units import Units

_EXACT = 1e-7  # a gap of at most this, relative to the cost of the decay, counts as none (as in `certificate.py`)
_ROUNDING = 1e-14  # what rounding leaves of a zero gap, relative to the objective
_ATTEMPTS = 6  # descents, at most
_MANY, _FEW_ATTEMPTS = 50, 2  # for more classes than this the later ones, which rarely help, would take minutes
_DESCENT_UP_TO = 200  # classes: each descent has 2 K^2 variables
_USUAL = 100  # iterations after which a descent counts as half done: a guess, as nobody knows where it ends
_SMALL = 0.1  # the distance of the starts after the first from the orthogonal classes, in canonical units


@dataclass(frozen=True)
class MinimumBounds:
    """Two bounds of the minimum of a model with features >= 0.

    Attributes:
        lower: no point of the model is below this.
        upper: the objective at the lowest point found.
        exact: whether the bounds agree, up to 1e-7 of what the decay costs: `upper` is the minimum.
        collapsed: the lowest point found, as a point of `model.collapsed()`: a column of features for each class.
        model: the model.
    """

    lower: float
    upper: float
    exact: bool
    collapsed: Point = field(repr=False)
    model: Model = field(repr=False)

    @cached_property
    def point(self) -> Point:
        """The lowest point found, with a column of features for each sample: made when it is first asked for."""
        return self.model.expand(self.collapsed)


def minimum_bounds(model: Model) -> MinimumBounds:
    """The exact minimum of a model with features >= 0 where it can be proved, or bounds of it.

    Unless the `point` of the result is asked for, nothing has an entry for each sample: millions of them cost nothing.

    Raises:
        InputError: features="real"; focal loss, which is not convex; or fewer dimensions than classes that do not
            vanish, whose features cannot be orthogonal.
    """
    check_model(model)
    K, d = model.num_classes, model.feature_dim
    small = model.like(feature_dim=min(K, d))
    found = _checked(model)
    point = found.point or _point(small, found.orthogonal)
    W, H = point.W.new_zeros(K, d), point.H.new_zeros(d, K)
    W[:, : min(K, d)], H[: min(K, d)] = point.W, point.H
    return MinimumBounds(found.lower, found.upper, found.exact, Point(W, H, point.b), model)


@dataclass(frozen=True)
class _Solved:
    """Two bounds, whether they agree, the orthogonal classes, and the point of a descent that ended below them."""

    lower: float
    upper: float
    exact: bool
    orthogonal: Decoupled
    point: Point | None = None


def _checked(model: Model, on_progress: Callable[[float], None] = lambda share: None) -> _Solved:
    """The solution, or an InputError for a model that has none."""
    if not model.nonnegative:
        raise InputError("expected a model with features='nonnegative', got 'real': use global_minimum")
    if not model.loss.convex:
        raise InputError("the focal loss is not convex: no minimum and no bound is known for features >= 0")
    return _solve(model.like(feature_dim=min(model.num_classes, model.feature_dim)), on_progress=on_progress)


@keeps_the_last
def _solve(model: Model, on_progress: Callable[[float], None]) -> _Solved:
    """The bounds of a model with d <= K."""
    problem = GroupedModel(model, torch.device("cpu"))
    best = _orthogonal(problem)
    upper = _value(problem, best)
    if not model.bias or model.balanced:  # proved
        return _Solved(upper, upper, True, best)
    lower = problem.lower_bound(problem.at_logits(best.logits, best.bias))
    if _closed(problem.decay_cost(upper), upper, lower) or model.num_classes > _DESCENT_UP_TO:
        return _Solved(lower, upper, _closed(problem.decay_cost(upper), upper, lower), best)
    small = model.collapsed()
    upper, lower, point = _descended(small, _point(model, best), upper, lower, on_progress)
    return _Solved(lower, upper, _closed(decay_cost(small, upper), upper, lower), best, point)


def nonnegative_minimum(model: Model) -> float:
    """The smallest value of the objective of a model with features >= 0; raises as `nonnegative_minimizer`."""
    found = _checked(model)
    _require_exact(found)
    return found.upper


def nonnegative_minimizer(model: Model, on_progress: Callable[[float], None] = lambda share: None) -> Point:
    """The minimiser of a model with features >= 0, as a point of the collapsed model.

    `on_progress` is called with the share of the descents that is done.

    Raises:
        InputError: as `minimum_bounds`, or the bounds do not agree.
    """
    _require_exact(_checked(model, on_progress))
    return minimum_bounds(model).collapsed


def _require_exact(found: _Solved) -> None:
    if not found.exact:
        raise InputError(
            f"the minimum with features >= 0 is only known to be from {found.lower:.8g} to {found.upper:.8g}: "
            "nc.ufm.minimum_bounds(model) returns both, with the lowest point found"
        )


def class_margins(model: Model) -> Tensor:
    """(K,) the margins m_k of cross-entropy (smoothed or not) without a bias: the logit of the class over the others.

    Raises:
        InputError: another loss.
    """
    check_model(model)
    if not isinstance(model.loss, CrossEntropy):
        raise InputError(f"margins in closed form are of cross-entropy, got {model.loss.name}")
    K, rho = model.num_classes, math.sqrt(1 - 1 / model.num_classes)
    counts = torch.tensor(model.counts, dtype=torch.float64, device=model.device)
    pull = model.loss.smoothing * rho**2 + rho * model.mu * model.num_samples / counts.sqrt()  # Q
    return torch.log1p(((K - 1) - K * pull).clamp(min=0) / pull)


def _orthogonal(problem: GroupedModel) -> Decoupled:
    """The best orthogonal classes.

    Raises:
        InputError: fewer dimensions than classes that do not vanish.
    """
    model, K = problem.model, problem.model.num_classes
    if not isinstance(model.loss, CrossEntropy) or (model.bias and not model.balanced):
        found = decoupled(problem)
    else:
        margins = torch.zeros_like(problem.weights)
        margins[problem.groups.of] = class_margins(model).to(margins)
        logits = (-margins / K).repeat(len(margins) + 1, 1)
        logits[0] += margins
        found = Decoupled(logits, torch.zeros_like(margins) if model.bias else None)
    alive = int(problem.groups.sizes[_lengths(problem, found) > 0].sum())
    if alive > model.feature_dim:
        raise InputError(
            f"expected feature_dim of at least {alive}, the number of classes that do not vanish, "
            f"got d={model.feature_dim}: "
            "features >= 0 of more classes than dimensions are not orthogonal, and the minimum is not known"
        )
    return found


def _lengths(problem: GroupedModel, found: Decoupled) -> Tensor:
    """(G,) the lengths of the logits, without the bias, of a class of each group."""
    return (problem.times * found.logits.square()).sum(0).sqrt()


def _value(problem: GroupedModel, found: Decoupled) -> float:
    """The objective of orthogonal classes."""
    lengths = _lengths(problem, found) * problem.roots
    point = problem.at_logits(found.logits, found.bias)
    return float(problem.value(point, problem.groups.sizes @ lengths))


def _point(model: Model, found: Decoupled) -> Point:
    """The collapsed point with these logits and orthogonal features >= 0, with balanced factors.

    Class k has dimension k to itself; where dimensions are few, the classes that do not vanish take the first ones.
    """
    K, d, of = model.num_classes, model.feature_dim, Groups.of_counts(model.counts, model.device).of
    columns = found.logits.to(model.device)
    logits = columns[1:][of][:, of]
    logits.diagonal().copy_(columns[0, of])
    bias = None if found.bias is None else found.bias.to(model.device)[of]
    lengths = logits.norm(dim=0) * model.collapsed().columns.roots
    alive = (lengths > 0).nonzero().flatten()
    places = alive if d >= K else torch.arange(len(alive), device=model.device)
    sizes = lengths[alive].sqrt() * (model.weight_decay / model.feature_decay) ** 0.25  # of the scaled features
    W, H = logits.new_zeros(K, d), logits.new_zeros(d, K)
    W[:, places] = logits[:, alive] * model.collapsed().columns.roots[alive] / sizes
    H[places, alive] = sizes
    return Point(W, H, bias)


def _descended(
    work: Model, orthogonal: Point, upper: float, lower: float, on_progress: Callable[[float], None]
) -> tuple[float, float, Point]:
    """(upper bound, lower bound, point) after descents of a collapsed model, until the bounds agree."""
    units = Units(work)
    scales, best = units.scales(), orthogonal
    near = orthogonal.vector() / scales
    attempts = _ATTEMPTS if work.num_classes <= _MANY else _FEW_ATTEMPTS
    for attempt in range(attempts):
        steps = itertools.count(1)

        def watch(vector: Tensor, attempt: int = attempt, steps: Iterator[int] = steps) -> None:
            done = next(steps)
            on_progress((attempt + done / (done + _USUAL)) / attempts)

        start = units.small.random_point(attempt, scale=1.0 if attempt > _ATTEMPTS // 2 else _SMALL).vector()
        if attempt <= _ATTEMPTS // 2:
            start = near + start * (attempt > 0)
        descent = bounded_lbfgs(units, start, tolerance=1e-12 * units.mu, iterations=3000, watch=watch)
        point = work.point(descent.points * scales)
        value = float(work.value(point))
        lower = max(lower, lower_bound(work, point))
        if value < upper:
            upper, best = value, point
        if _closed(decay_cost(work, upper), upper, lower):
            break
    return upper, lower, best


def _closed(cost: float, upper: float, lower: float) -> bool:
    return upper - lower <= _EXACT * cost + _ROUNDING * abs(upper)
