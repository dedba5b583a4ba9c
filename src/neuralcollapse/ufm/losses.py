"""Losses of the unconstrained feature model: value, gradient, curvature, and the dual of the convex ones.

A loss acts on a column of logits z (K,) with targets y (K,); here on (..., K, M) matrices, column by column, giving
(..., M). With slopes `v = dl/dz` the dual value is `-l*(v)`, l* the convex conjugate: by Fenchel's inequality
`l(z) >= <z, v> - l*(v)` for every z, with equality at the z that v came from.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor

from neuralcollapse.errors import InputError, did_you_mean


class Loss(Protocol):
    """The interface of a loss."""

    name: str
    convex: bool

    def targets(self, labels: Tensor, num_classes: int) -> Tensor:
        """(K, M) float64 target columns of (M,) labels."""

    def value(self, logits: Tensor, targets: Tensor) -> Tensor:
        """(..., M) the loss of each column."""

    def gradient(self, logits: Tensor, targets: Tensor) -> Tensor:
        """(..., K, M) the slopes, the derivative of each column's loss."""

    def curvature(self, logits: Tensor, targets: Tensor, direction: Tensor) -> Tensor:
        """(..., K, M) the Hessian of each column's loss times a direction."""

    def curvature_at(self, logits: Tensor, targets: Tensor) -> Callable[[Tensor], Tensor]:
        """`curvature` as a function of the direction."""

    def bias_derivatives(
        self, logits: Tensor, bias: Tensor, targets: Tensor, weights: Tensor
    ) -> tuple[float, Tensor, Tensor, Tensor | None]:
        """The weighted sum of the losses at logits + bias, up to a constant, its gradient (K,), and its Hessian.

        That is `diag(D) - A A'`, as D (K,) and A (K, M), or None for zero. Only for convex losses.
        """

    def dual(self, slopes: Tensor, targets: Tensor) -> Tensor:
        """(..., M) `-l*(slopes)`; only for convex losses."""

    def dual_line(self, slopes: Tensor, targets: Tensor, weights: Tensor) -> Callable[[float], tuple[float, float]]:
        """The function `t -> sum of w_i (-l*(t v_i))`, with its derivative in t; only for convex losses."""

    def largest_scale(self, slopes: Tensor, targets: Tensor) -> float:
        """The largest t >= 0 for which l* is finite at t times the slopes."""


class CrossEntropy:
    r"""Cross-entropy with label smoothing a: :math:`\log\sum_j e^{z_j} - \langle y, z\rangle`, `y = (1-a) e_k + a/K`.

    Conjugate: :math:`l^*(v) = -\mathrm{entropy}(y + v)` if y + v lies in the simplex, infinite otherwise.
    """

    convex = True

    def __init__(self, smoothing: float = 0.0) -> None:
        if not 0 <= smoothing < 1:
            raise InputError(f"expected label smoothing from 0 to below 1, got {smoothing}")
        self.smoothing = float(smoothing)
        self.name = "label_smoothing" if smoothing else "cross_entropy"

    def targets(self, labels: Tensor, num_classes: int) -> Tensor:
        """`(1-a) e_k + a/K`."""
        return (1 - self.smoothing) * _one_hot(labels, num_classes) + self.smoothing / num_classes

    def value(self, logits: Tensor, targets: Tensor) -> Tensor:
        """`log sum exp z - <y, z>`; one-hot as `log(1 + sum of the others)`, accurate even for losses of 1e-8."""
        own = (logits * targets).sum(-2, keepdim=True)
        if self.smoothing:
            return logits.logsumexp(-2) - own.squeeze(-2)
        apart = logits - own
        highest = apart.amax(-2, keepdim=True)
        others = ((apart - highest).exp() * (1 - targets)).sum(-2, keepdim=True)
        return (highest + torch.log1p(others + torch.expm1(-highest))).squeeze(-2)

    def gradient(self, logits: Tensor, targets: Tensor) -> Tensor:
        """`softmax(z) - y`. One-hot, the entry of the class is minus the sum of the others, which loses no digit."""
        slopes = logits.softmax(-2)
        if self.smoothing:
            return slopes.sub_(targets)
        slopes.addcmul_(slopes, targets, value=-1)
        return slopes.addcmul_(targets, slopes.sum(-2, keepdim=True), value=-1)

    def curvature(self, logits: Tensor, targets: Tensor, direction: Tensor) -> Tensor:
        """`(diag(p) - p p') d` for p = softmax(z)."""
        return _softmax_curvature(logits.softmax(-2), direction)

    def curvature_at(self, logits: Tensor, targets: Tensor) -> Callable[[Tensor], Tensor]:
        """From one softmax."""
        return partial(_softmax_curvature, logits.softmax(-2))

    def bias_derivatives(
        self, logits: Tensor, bias: Tensor, targets: Tensor, weights: Tensor
    ) -> tuple[float, Tensor, Tensor, Tensor | None]:
        """`log sum exp - <Y w, b>`, `(P - Y) w` and `diag(P w) - P diag(w) P'`, from one exponential."""
        scaled = logits + bias.unsqueeze(-1)
        highest = scaled.amax(-2, keepdim=True)
        sums = scaled.sub_(highest).exp_().sum(-2, keepdim=True)
        shares = targets @ weights
        value = (sums.log() + highest).squeeze(-2) @ weights - shares @ bias
        roots = weights.sqrt()
        scaled.mul_(roots / sums)
        mean = scaled @ roots
        if self.smoothing:
            return float(value), mean - shares, mean, scaled
        own = torch.linalg.vecdot(scaled, targets, dim=-2)
        scaled.addcmul_(targets, own, value=-1)  # as in `gradient`: small slopes keep all their digits
        gradient = scaled @ roots - targets @ (scaled.sum(-2) * roots)
        return float(value), gradient, mean, scaled.addcmul_(targets, own)

    def dual(self, slopes: Tensor, targets: Tensor) -> Tensor:
        """The entropy of `y + v`."""
        return torch.special.entr((targets + slopes).clamp(min=0)).sum(-2)

    def dual_line(self, slopes: Tensor, targets: Tensor, weights: Tensor) -> Callable[[float], tuple[float, float]]:
        """Sums of entropies; `d/dt entropy(y + t v) = -<v, log(y + t v)>`, since v sums to zero.

        One-hot, the entry of the class is 1 + t v; `log1p` keeps the digits of v.
        """
        own = (slopes * targets).sum(-2) if not self.smoothing else weights.new_zeros(())
        rest = slopes * (1 - targets) if not self.smoothing else slopes

        def at(scale: float) -> tuple[float, float]:
            base = targets if self.smoothing else torch.zeros((), dtype=slopes.dtype, device=slopes.device)
            logs = torch.add(base, rest, alpha=scale).clamp_(min=1e-300).log_().mul_(weights).flatten()
            slope = -float(torch.dot(rest.flatten(), logs))
            if self.smoothing:
                return scale * slope - float(torch.dot(targets.flatten(), logs)), slope
            near = torch.log1p((scale * own).clamp(min=-1 + 1e-16)) * weights
            slope -= float(torch.dot(own, near))
            return scale * slope - float(near.sum()), slope

        return at

    def largest_scale(self, slopes: Tensor, targets: Tensor) -> float:
        """The t at which an entry of `y + t v` reaches zero."""
        # Without smoothing only the entry of the right class, where y = 1, can decrease.
        # Where there is no target there is no slope (`grouped.py`).
        steepest = float((slopes / targets.clamp(min=1e-300) if self.smoothing else slopes).min())
        return -1 / steepest if steepest < 0 else math.inf


class Focal:
    r"""Focal loss :math:`-(1-p)^\gamma \log p`, p the probability of the right class; not convex in the logits."""

    name = "focal"
    convex = False

    def __init__(self, gamma: float = 2.0) -> None:
        if not (math.isfinite(gamma) and gamma >= 0):
            raise InputError(f"expected focal gamma of at least 0, got {gamma}")
        self.gamma = float(gamma)

    def targets(self, labels: Tensor, num_classes: int) -> Tensor:
        """One-hot."""
        return _one_hot(labels, num_classes)

    def value(self, logits: Tensor, targets: Tensor) -> Tensor:
        """`-(1-p)^gamma log p`."""
        log_p = (logits.log_softmax(-2) * targets).sum(-2)
        return -((-torch.expm1(log_p)) ** self.gamma) * log_p

    def gradient(self, logits: Tensor, targets: Tensor) -> Tensor:
        """`f (softmax(z) - y)` with `f = (1-p)^gamma - gamma p (1-p)^(gamma-1) log p`."""
        probabilities, _, slope, _ = self._derivatives(logits, targets)
        return -slope * (probabilities - targets)

    def curvature(self, logits: Tensor, targets: Tensor, direction: Tensor) -> Tensor:
        """With `L = log p` and `l = phi(L)`: `phi''(L) <y - P, d> (y - P) - phi'(L) (diag(P) - P P') d`."""
        probabilities, away, slope, bend = self._derivatives(logits, targets)
        along = (away * direction).sum(-2, keepdim=True)
        return bend * along * away - slope * _softmax_curvature(probabilities, direction)

    def curvature_at(self, logits: Tensor, targets: Tensor) -> Callable[[Tensor], Tensor]:
        """`curvature` as it is."""
        return partial(self.curvature, logits, targets)

    def _derivatives(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`P`, `y - P`, `phi'(L)` and `phi''(L)` for `phi(L) = -(1-e^L)^gamma L`."""
        gamma = self.gamma
        log_probabilities = logits.log_softmax(-2)
        log_p = (log_probabilities * targets).sum(-2, keepdim=True)
        p, rest = log_p.exp(), (-torch.expm1(log_p)).clamp(min=1e-300)
        probabilities = log_probabilities.exp()
        power = rest ** (gamma - 1)
        slope = -(rest**gamma) + gamma * p * power * log_p
        bend = gamma * p * power * (2 + log_p - (gamma - 1) * p * (log_p / rest))
        # y - P in the right class is the sum of the other probabilities: without cancellation
        others = (probabilities * (1 - targets)).sum(-2, keepdim=True)
        away = torch.where(targets > 0, others, -probabilities)
        return probabilities, away, slope, bend

    def dual(self, *arguments: Any, **named: Any) -> NoReturn:
        """Raises: the loss is not convex, so its conjugate gives no bound."""
        raise InputError("the focal loss is not convex in the logits, so it has no duality bound")

    bias_derivatives = dual_line = largest_scale = dual


class SquaredError:
    r"""Squared error :math:`\frac12 |z - y|^2`, a sum over classes (torch's MSELoss is this divided by K/2)."""

    name = "mse"
    convex = True

    def targets(self, labels: Tensor, num_classes: int) -> Tensor:
        """One-hot."""
        return _one_hot(labels, num_classes)

    def value(self, logits: Tensor, targets: Tensor) -> Tensor:
        """`|z - y|^2 / 2`."""
        return (logits - targets).square().sum(-2) / 2

    def gradient(self, logits: Tensor, targets: Tensor) -> Tensor:
        """`z - y`."""
        return logits - targets

    def curvature(self, logits: Tensor, targets: Tensor, direction: Tensor) -> Tensor:
        """The direction itself."""
        return direction.expand(torch.broadcast_shapes(direction.shape, logits.shape))

    def curvature_at(self, logits: Tensor, targets: Tensor) -> Callable[[Tensor], Tensor]:
        """The identity."""
        return lambda direction: direction

    def bias_derivatives(
        self, logits: Tensor, bias: Tensor, targets: Tensor, weights: Tensor
    ) -> tuple[float, Tensor, Tensor, Tensor | None]:
        """`sum(w) |b|^2/2 + <(Z - Y) w, b>`, its gradient, and `sum(w) I`."""
        total = weights.sum()
        slope = (logits - targets) @ weights
        value = float(total * bias.square().sum() / 2 + slope @ bias)
        return value, total * bias + slope, total.expand(len(bias)), None

    def dual(self, slopes: Tensor, targets: Tensor) -> Tensor:
        """`-|v|^2/2 - <v, y>`."""
        return -(slopes.square() / 2 + slopes * targets).sum(-2)

    def dual_line(self, slopes: Tensor, targets: Tensor, weights: Tensor) -> Callable[[float], tuple[float, float]]:
        """A parabola in t."""
        weighted = (slopes * weights).flatten()
        square, product = float(torch.dot(weighted, slopes.flatten())), float(torch.dot(weighted, targets.flatten()))
        return lambda scale: (-scale * (scale * square / 2 + product), -scale * square - product)

    def largest_scale(self, slopes: Tensor, targets: Tensor) -> float:
        """Infinite: l* is finite everywhere."""
        return math.inf


LOSSES: dict[str, Callable[[], Loss]] = {
    "cross_entropy": CrossEntropy,
    "label_smoothing": lambda: CrossEntropy(smoothing=0.1),
    "focal": Focal,
    "mse": SquaredError,
}


def find_loss(loss: str | Loss) -> Loss:
    """The loss of a name, or the loss itself. "label_smoothing:0.2" and "focal:3" set smoothing and gamma (0.1 and 2).

    Raises:
        InputError: an unknown name, or a parameter that is not a number.
    """
    if not isinstance(loss, str):
        if isinstance(loss, CrossEntropy | Focal | SquaredError):
            return loss
        raise InputError(f"expected a loss by name or an instance of a loss, got {loss!r}")
    name, colon, parameter = loss.partition(":")
    if name not in LOSSES:
        raise InputError(f"no loss {name!r}{did_you_mean(name, LOSSES)}; there are: {', '.join(LOSSES)}")
    if not colon:
        return LOSSES[name]()
    makers: dict[str, Callable[[float], Loss]] = {"label_smoothing": CrossEntropy, "focal": Focal}
    try:
        return makers[name](float(parameter))
    except (KeyError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"expected label_smoothing:A or focal:GAMMA with a number, got {loss!r}") from None


def _one_hot(labels: Tensor, num_classes: int) -> Tensor:
    targets = torch.zeros(num_classes, len(labels), dtype=torch.float64, device=labels.device)
    return targets.scatter_(0, labels[None], 1.0)


def _softmax_curvature(probabilities: Tensor, direction: Tensor) -> Tensor:
    return probabilities * (direction - (probabilities * direction).sum(-2, keepdim=True))
