"""The global minimum: in closed form where there is one, and by an exact convex solver for any class counts.

Sources: Zhu et al. 2021 (cross-entropy); the other closed forms follow from the same symmetry argument.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from neuralcollapse.checks import check_count, check_real
from neuralcollapse.errors import InputError
from neuralcollapse.geometry.frames import simplex_etf
from neuralcollapse.ufm.convex import grouped, solve
from neuralcollapse.ufm.grouped import GroupedPoint
from neuralcollapse.ufm.losses import CrossEntropy, Focal, SquaredError
from neuralcollapse.ufm.model import Model, check_model
from neuralcollapse.ufm.nonnegative import nonnegative_minimizer, nonnegative_minimum
from neuralcollapse.ufm.points import Point


@dataclass(frozen=True)
class ClosedForm:
    """A balanced minimum: the margin m of the right logit over the others, squared lengths, and the value."""

    margin: float
    weight_norm2: float
    feature_norm2: float
    minimum: float


def closed_form(model: Model) -> ClosedForm | None:
    r"""The balanced minimum of cross-entropy, label smoothing or focal loss; None for other models.

    Cross-entropy with smoothing a and `c = sqrt(n lW lH)`: `m = log(1/(c + a/K) - (K-1))`,
    `f* = log(1+(K-1)e^-m) + (K-1)(c + a/K) m`, `|w|^2 = (K-1)/K m sqrt(n lH/lW)`, `|h|^2 = |w|^2 lW/(n lH)`; if
    K c >= 1-a, all are zero and `f* = log K` (`collapses_to_zero`). Focal loss: m minimises
    `(1-p)^gamma (-log p) + (K-1) c m` with `p = 1/(1+(K-1)e^-m)`, and is found by a scalar search.
    """
    check_model(model)
    if not model.balanced or model.nonnegative:
        return None
    K, n = model.num_classes, model.counts[0]
    c = math.sqrt(n) * model.mu
    if isinstance(model.loss, CrossEntropy):
        pull = c + model.loss.smoothing / K
        margin = math.log(1 / pull - (K - 1)) if K * pull < 1 else 0.0
        minimum = math.log1p((K - 1) * math.exp(-margin)) + (K - 1) * pull * margin
    elif isinstance(model.loss, Focal):
        margin, minimum = _focal_margin(model.loss.gamma, K, c)
    else:
        return None
    weight = (K - 1) / K * margin * math.sqrt(n * model.feature_decay / model.weight_decay)
    feature = weight * model.weight_decay / (n * model.feature_decay)
    return ClosedForm(margin, weight, feature, minimum)


def collapses_to_zero(model: Model) -> bool:
    """Whether W = 0 and H = 0 minimise a convex model, for so strong a decay that `|grad g|_2 <= mu` there."""
    return grouped(model).is_zero() is not None


def global_minimizer(model: Model) -> Point:
    """A global minimiser with balanced factors.

    It has a column of features for each sample; `model.collapsed().global_minimizer()` has one for each class.

    Raises:
        InputError: d is below the rank of the minimiser (d < K-1, or d < K for some MSE models), or the loss is focal
            and the classes are unequal (not convex: no exact solver). With features >= 0: as `minimum_bounds`.
    """
    return model.expand(collapsed_minimizer(model))


def collapsed_minimizer(model: Model, on_progress: Callable[[float], None] = lambda share: None) -> Point:
    """`global_minimizer` as a point of the collapsed model: no array has an entry for each sample.

    With features >= 0, where it may take a minute, `on_progress` is called with the share that is done.
    """
    if model.nonnegative:
        return nonnegative_minimizer(model, on_progress)
    form = closed_form(model)
    if form is not None:
        _require_dim(model, model.num_classes - 1 if form.margin > 0 else 1)
        frame = torch.zeros(model.num_classes, model.feature_dim, dtype=torch.float64, device=model.device)
        if form.margin > 0:
            frame = simplex_etf(model.num_classes, model.feature_dim, dtype=torch.float64, device=model.device)
        features = math.sqrt(form.feature_norm2 * model.counts[0]) * frame.T
        bias = torch.zeros(model.num_classes, dtype=torch.float64, device=model.device) if model.bias else None
        return Point(math.sqrt(form.weight_norm2) * frame, features, bias)
    return _factors(model, _grouped_minimizer(model))


def _grouped_minimizer(model: Model) -> GroupedPoint:
    """The minimiser of a convex model with real features, over the groups of classes with equal counts."""
    if isinstance(model.loss, SquaredError) and model.balanced:
        return _mse_minimizer(model)
    if not model.loss.convex:
        raise InputError(
            "the focal loss is not convex: its minimum is known for balanced classes only; "
            "use minimize() from several starts, which certifies nothing"
        )
    return solve(model.like(feature_dim=model.num_classes))


def global_minimum(model: Model) -> float:
    """The smallest value of the objective, for d >= K-1; raises as `global_minimizer` does."""
    form = closed_form(model)
    if form is not None:
        _require_dim(model, model.num_classes - 1 if form.margin > 0 else 1)
        return form.minimum
    if model.nonnegative:
        return nonnegative_minimum(model)
    problem, point = grouped(model), _grouped_minimizer(model)
    _require_dim(model, problem.rank(point))
    return float(problem.value(point))


def _mse_minimizer(model: Model) -> GroupedPoint:
    """The balanced MSE minimum: logits `kappa (I - J/K) + s J`, J of ones, and the bias `(1/K - s)/(1+lb)`."""
    K, n, decay = model.num_classes, model.counts[0], model.bias_decay
    c = math.sqrt(n) * model.mu
    kappa = max(0.0, 1 - K * c)
    if not model.bias:
        level = kappa / K
    elif decay == 0:
        level = 0.0
    else:
        level = max(0.0, 1 / K - c * (1 + decay) / decay)
    root = math.sqrt(1 / K)
    numbers = [kappa * root, level * K * root, (1 / K - level) / (1 + decay)]
    within, between, bias = torch.tensor(numbers, dtype=torch.float64, device="cpu").split(1)
    return GroupedPoint(within, between[None], bias if model.bias else None)


def _factors(model: Model, point: GroupedPoint) -> Point:
    """The factors of least decay of a grouped point, balanced (`lW W'W = lH G G'`), in d dimensions: collapsed."""
    problem = grouped(model)
    sizes, left, right = problem.singular(point)
    _require_dim(model, problem.rank(point))
    keep = min(model.feature_dim, model.num_classes)
    kept = sizes.argsort(descending=True, stable=True)[:keep]
    scale = (sizes[kept] * math.sqrt(model.num_samples)).sqrt()
    ratio = (model.feature_decay / model.weight_decay) ** 0.25
    W = torch.zeros(model.num_classes, model.feature_dim, dtype=torch.float64, device=model.device)
    H = torch.zeros(model.feature_dim, model.num_classes, dtype=torch.float64, device=model.device)
    W[:, :keep] = (ratio * left[:, kept] * scale).to(model.device)
    H[:keep] = (scale[:, None] * right[:, kept].T / ratio).to(model.device)
    return Point(W, H, None if point.b is None else point.b[problem.groups.of].to(model.device))


def _require_dim(model: Model, rank: int) -> None:
    if model.feature_dim < rank:
        raise InputError(
            f"expected feature_dim of at least {rank}, the rank of the minimiser, got d={model.feature_dim}: "
            "with fewer dimensions the landscape is not benign and no formula or solver here gives the minimum"
        )


def _focal_margin(gamma: float, num_classes: int, c: float) -> tuple[float, float]:
    """The margin that minimises the balanced focal objective, and the minimum, by a grid and a bounded search."""
    from scipy.optimize import minimize_scalar

    others = num_classes - 1

    def value(margin: float) -> float:
        log_p = -math.log1p(others * math.exp(-margin))
        return (-math.expm1(log_p)) ** gamma * -log_p + others * c * margin

    highest = math.log(num_classes) / (others * c)  # beyond it the decay alone exceeds the value at zero
    grid = [highest * (i / 400) ** 2 for i in range(401)]
    best = min(range(401), key=lambda i: value(grid[i]))
    low, high = grid[max(0, best - 1)], grid[min(400, best + 1)]
    found = minimize_scalar(value, bounds=(low, high), method="bounded", options={"xatol": 1e-12})
    margin = float(found.x)
    return (margin, value(margin)) if value(margin) < value(0.0) - 1e-15 else (0.0, value(0.0))


def fixed_classifier_minimum(
    num_classes: int, samples_per_class: int, feature_decay: float, row_norm: float = 1.0
) -> ClosedForm:
    """The minimum over H alone, W a fixed simplex ETF with rows of length omega; strictly convex, never zero.

    The margin solves `m (e^m + K-1) = K^2 omega^2 / ((K-1) N lH)`, and `|h| = m (K-1)/(K omega)`.

    Raises:
        InputError: K < 2, n < 1, or feature_decay or row_norm not positive.
    """
    from scipy.optimize import brentq

    K = check_count(num_classes, "num_classes", 2)
    N = K * check_count(samples_per_class, "samples_per_class", 1)
    feature_decay, row_norm = check_real(feature_decay, "feature_decay"), check_real(row_norm, "row_norm")
    target = math.log(K * K * row_norm**2 / ((K - 1) * N * feature_decay))

    def excess(log_margin: float) -> float:
        margin = math.exp(log_margin)
        return log_margin + margin + math.log1p((K - 1) * math.exp(-margin)) - target

    margin = math.exp(brentq(excess, -50 + min(0.0, target), 10 + max(0.0, math.log1p(abs(target))), xtol=1e-14))
    length = margin * (K - 1) / (K * row_norm)
    minimum = math.log1p((K - 1) * math.exp(-margin)) + feature_decay / 2 * N * length**2
    return ClosedForm(margin, row_norm**2, length**2, minimum)


def spherical_minimum(num_classes: int, temperature: float) -> float:
    """The minimum with |w_k| = |h_i| = 1 and logits `tau W h`: `log(1+(K-1) exp(-K tau/(K-1)))`, for d >= K-1."""
    K = check_count(num_classes, "num_classes", 2)
    temperature = check_real(temperature, "temperature")
    return math.log1p((K - 1) * math.exp(-K * temperature / (K - 1)))
