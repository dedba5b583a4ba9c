"""A lower bound of the model's minimum from any point, by weak duality.

For d >= K-1 the minimum is that of the convex problem `min g(Z + b1') + mu |Z|_* + lb/2 |b|^2`; for any d it is at
least that. With the slopes G of any logits, |G|_2 the spectral norm, and `0 <= t <= mu/|G|_2`,

    LB(t) = sum_i w_i (-l*(t v_i)) - t^2 |G 1|^2 / (2 lb)

is a lower bound, concave in t. Without a bias the last term is absent. Without decay on the bias, G 1 must be zero;
minimising over b alone achieves this up to rounding, whose worst effect is subtracted (for a minimum with |b| up to
1e3, since nothing else bounds b then). Source: weak duality; Zhu et al. 2021 for the convex form.

With features >= 0 more slopes are admissible. In the dual the rows h of the features of a collapsed point only have to
satisfy `|Y h|^2 <= mu^2 |h|^2` for h >= 0, with Y = G of the class means, and `h'Y'Y h <= h'(Y'Y)_+ h`, so that
`t <= mu / sqrt(lambda)` will do, lambda the smaller of the largest eigenvalues of Y'Y and of its positive part.

Where logits are large and mostly wrong, as at a random point, the best bias is far and its problem hardly bent: for
10,000 classes the steps to it take hours. Beyond a limit the bound is that of the same logits made small. At such
points it was not worse in any case tried: far from the minimum the slopes of nearly equal logits are the better ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from neuralcollapse.ufm.effort import EACH_LOGIT, Effort, OutOfEffort
from neuralcollapse.ufm.losses import CrossEntropy, Loss
from neuralcollapse.ufm.model import Model
from neuralcollapse.ufm.points import Point

_LONGEST_STEP = 20.0  # of an entry of the bias in a Newton step: saturated logits have hardly any curvature
_FEW = 10  # samples a class, at least, that the first Newton steps of the bias use
_LARGEST_SCALE = 1e6  # of t: a larger one would amplify the rounding of the slopes
_LARGEST_BIAS = 1e3  # assumed bound of |b| at a minimum without decay on b
_GRAM_UP_TO = 2048  # rows or columns up to which a Gram matrix is made, for the spectral norm
_DENSE_UP_TO = 1024  # classes up to which a step of the bias is that of the Hessian as a matrix
_PRODUCTS = 400  # of the Hessian in a step of the bias, at most
_WORK = 1e11  # multiplications of the best bias, about a minute for 10,000 classes: memory limits them, not arithmetic


def lower_bound(model: Model, point: Point, products: Tensor | None = None) -> float:
    """The bound from the logits of a point, after minimising over the bias; -inf for a loss that is not convex.

    `products` is W H (scaled, for collapsed models), if it is already known.
    """
    if not model.loss.convex:
        return -math.inf
    logits = model.scaled(point.W @ point.H) if products is None else products
    bias = None
    if model.bias:
        assert point.b is not None
        try:
            bias = best_bias(model, logits, point.b, Effort(model, _WORK))
        except OutOfEffort:
            logits = logits / logits.abs().max()
            products = None  # the sum below may be in place
            bias = best_bias(model, logits, torch.zeros_like(point.b))
        logits = torch.add(logits, bias.unsqueeze(-1), out=logits if products is None else None)
    weights, targets = model.columns.weights, model.targets
    slopes = model.loss.gradient(logits, targets)
    del logits
    if isinstance(model.loss, CrossEntropy):  # make columns sum to zero exactly, even at confident points
        own = model.columns.labels.unsqueeze(0)
        slopes.scatter_(-2, own, 0.0)
        slopes.scatter_(-2, own, -slopes.sum(-2, keepdim=True))
    one_hot = isinstance(model.loss, CrossEntropy) and not model.loss.smoothing
    if bias is not None and model.bias_decay == 0 and not one_hot:  # any slopes will do: take close ones with G 1 = 0
        slopes = slopes - (slopes @ weights).unsqueeze(-1) / weights.sum()
    if model.nonnegative and not model.is_collapsed:  # the mean slopes of each class give no smaller a bound
        slopes, model = _class_means(model, slopes), model.collapsed()
        weights, targets = model.columns.weights, model.targets
    rest = slopes @ weights  # G 1
    quadratic = float(rest.square().sum()) / (2 * model.bias_decay) if model.bias and model.bias_decay > 0 else 0.0
    undecayed = float(rest.abs().sum()) if model.bias and model.bias_decay == 0 else 0.0
    norm = dual_norm(model, slopes)
    largest = min(model.loss.largest_scale(slopes, targets), model.mu / norm if norm > 0 else 1.0)
    line = model.loss.dual_line(slopes, targets, weights)
    return best_scale(Line(line, quadratic, undecayed), largest)


@dataclass(frozen=True)
class Line:
    """The bound as a function of t, with its derivative.

    Attributes:
        losses: the sum over the losses, with its derivative.
        quadratic: `|G 1|^2/(2 lb)`, or 0 without decay on the bias.
        undecayed: the sum of all `|G 1|`, which rounding leaves, for a bias without decay; otherwise 0.
    """

    losses: Callable[[float], tuple[float, float]]
    quadratic: float
    undecayed: float

    def __call__(self, scale: float) -> tuple[float, float]:
        """The bound at t, and its derivative."""
        value, slope = self.losses(scale)
        linear = _LARGEST_BIAS * self.undecayed
        value -= scale * (scale * self.quadratic + linear)
        return value, slope - 2 * scale * self.quadratic - linear


def best_scale(line: Line, largest: float) -> float:
    """The maximum over `0 <= t <= largest` of a concave bound."""
    from scipy.optimize import minimize_scalar

    largest = min(largest, _LARGEST_SCALE)
    end, slope = line(largest)
    if slope >= 0:  # still increasing, so the maximum is at the end
        return end
    found = minimize_scalar(
        lambda scale: -line(scale)[0],
        bounds=(0.0, largest),
        method="bounded",
        options={"xatol": 1e-4 * largest, "maxiter": 20},
    )
    return max(end, -float(found.fun))


def decay_cost(model: Model, objective: float) -> float:
    """The objective minus the least value of the convex loss alone, `-l*(0)`: 0, or the entropy of smoothed targets.

    That is the same in each class.
    """
    target = model.loss.targets(torch.zeros(1, dtype=torch.int64, device=model.device), model.num_classes)
    return max(0.0, objective - float(model.loss.dual(torch.zeros_like(target), target)))


def dual_norm(model: Model, slopes: Tensor) -> float:
    """`|G|_2` of unweighted slopes, or what takes its place if features are >= 0: at most mu at a global minimiser.

    Without another matrix if all columns have the same weight.
    """
    if model.nonnegative and not model.is_collapsed:
        slopes, model = _class_means(model, slopes), model.collapsed()
    weights, roots = model.columns.weights, model.columns.roots
    if model.nonnegative:
        scaled = model.scaled(slopes * weights)
        gram = scaled.mT @ scaled
        largest = [float(torch.linalg.eigvalsh(matrix)[-1]) for matrix in (gram.clamp(min=0), gram)]
        return math.sqrt(max(0.0, min(largest)))
    if model.balanced:
        return spectral_norm(slopes) * float(weights[0] / roots[0])
    return spectral_norm(model.scaled(slopes * weights))


def _class_means(model: Model, slopes: Tensor) -> Tensor:
    """(K, K): the mean of the columns of each class."""
    sums = slopes.new_zeros(*slopes.shape[:-1], model.num_classes).index_add_(-1, model.columns.labels, slopes)
    return sums / torch.tensor(model.counts, dtype=sums.dtype, device=sums.device)


def best_bias(model: Model, logits: Tensor, start: Tensor, effort: Effort | None = None) -> Tensor:
    """The bias (K,) that minimises the objective for fixed W H: a convex problem, by Newton's method with backtracking.

    The gradient is reduced to rounding relative to the slopes, however small they are, as the bound requires. With
    many samples a class the first steps use only some of them.

    Raises:
        OutOfEffort: that costs more than the effort allows.
    """
    targets, weights = model.targets, model.columns.weights
    stride = logits.shape[-1] // model.num_classes // _FEW if model.balanced else 0
    if stride > 1:
        part = slice(None, None, stride)
        share = weights[part] / weights[part].sum()
        start = newton_bias(
            model.loss, model.bias_decay, logits[:, part].contiguous(), targets[:, part], share, start, 1e-3, effort
        )
    return newton_bias(model.loss, model.bias_decay, logits, targets, weights, start, 1e-16, effort)


def newton_bias(
    loss: Loss,
    decay: float | Tensor,
    logits: Tensor,
    targets: Tensor,
    weights: Tensor,
    start: Tensor,
    tolerance: float,
    effort: Effort | None = None,
) -> Tensor:
    """The bias that minimises the weighted losses and `sum decay b^2/2`; the decays may differ.

    Raises:
        OutOfEffort: that costs more than the effort allows.
    """

    def derivatives(bias: Tensor) -> tuple[float, Tensor, Tensor, Tensor | None]:
        if effort is not None:
            effort.spend(EACH_LOGIT * logits.numel())
        value, gradient, diagonal, factor = loss.bias_derivatives(logits, bias, targets, weights)
        return value + float((decay * bias.square()).sum()) / 2, gradient + decay * bias, diagonal + decay, factor

    bias = start
    value, gradient, diagonal, factor = derivatives(bias)
    for _ in range(200):
        bends = diagonal if factor is None else diagonal - torch.linalg.vector_norm(factor, dim=1).square()
        size, bent = float(gradient.norm()), float(bends.max())  # for cross-entropy the slopes' size
        if size <= tolerance * bent:
            break
        step = _bias_step(gradient, diagonal, factor, bends, effort)
        longest = float(step.abs().max())
        if size <= 1e-9 * min(1.0, bent) and longest <= 1e-6:  # the error after this step is its square, mere rounding
            return bias - step
        step = step * min(1.0, _LONGEST_STEP / max(longest, 1e-300))
        slope = float(gradient @ step)
        for _ in range(40):
            trial = derivatives(bias - step)
            lower = trial[0] <= value - 1e-4 * slope
            # Near the end rounding hides the decrease of the value, but not that of the gradient.
            if lower or (trial[0] <= value + 1e-13 * (1 + abs(value)) and float(trial[1].norm()) < 0.5 * size):
                break
            step, slope = step / 2, slope / 2
        else:
            break
        bias, (value, gradient, diagonal, factor) = bias - step, trial
    return bias


def _bias_step(
    gradient: Tensor, diagonal: Tensor, factor: Tensor | None, bends: Tensor, effort: Effort | None
) -> Tensor:
    """The solution of `(diag(diagonal) - factor factor') x = gradient`; `bends` is the diagonal of that matrix.

    Without decay it is singular: the vector of ones is in its kernel, to which the gradient is orthogonal.
    """
    if factor is None:
        return gradient / diagonal
    if len(gradient) <= _DENSE_UP_TO:
        hessian = torch.diag(diagonal) - factor @ factor.mT
        return torch.linalg.pinv(hessian, rtol=1e-14, hermitian=True) @ gradient
    x, residual, goal = torch.zeros_like(gradient), gradient.clone(), 1e-10 * float(gradient.norm())
    scale = 1 / bends.clamp(min=1e-14 * float(bends.max()))
    direction = scale * residual
    square = float(residual @ direction)
    for _ in range(_PRODUCTS):  # conjugate gradients
        if effort is not None:
            effort.spend(2 * factor.numel())
        image = diagonal * direction - factor @ (factor.mT @ direction)
        curvature = float(direction @ image)
        if not curvature > 0:
            break
        x.add_(direction, alpha=square / curvature)
        residual.sub_(image, alpha=square / curvature)
        if float(residual.norm()) <= goal:
            break
        image = scale * residual
        square, before = float(residual @ image), square
        direction = image.add_(direction, alpha=square / before)
    return x


def spectral_norm(matrix: Tensor) -> float:
    """The largest singular value; by Lanczos iteration if both sides are long."""
    if min(matrix.shape) <= _GRAM_UP_TO:
        gram = matrix @ matrix.mT if matrix.shape[0] <= matrix.shape[1] else matrix.mT @ matrix
        return math.sqrt(max(0.0, float(torch.linalg.eigvalsh(gram)[-1])))
    return float(top_pair(matrix)[1])


def top_pair(matrix: Tensor) -> tuple[Tensor, float, Tensor]:
    """(u, s, v): the largest singular value with its vectors."""
    from scipy.sparse.linalg import svds

    if min(matrix.shape) <= _GRAM_UP_TO:
        wide = matrix.shape[0] <= matrix.shape[1]
        gram = matrix @ matrix.mT if wide else matrix.mT @ matrix
        near = torch.linalg.eigh(gram)[1][:, -1]
        far = (matrix.mT if wide else matrix) @ near
        size = float(far.norm())
        far = far / size if size > 0 else far
        return (near, size, far) if wide else (far, size, near)
    u, s, v = svds(matrix.cpu().numpy(), k=1)
    return torch.from_numpy(u[:, 0].copy()).to(matrix), float(s[0]), torch.from_numpy(v[0].copy()).to(matrix)
