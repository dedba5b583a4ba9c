"""Orthogonal classes: the minimum of the model with features >= 0 if no two classes share a feature.

Each class then has a column of logits of its own, and only the bias joins them:

    min over b and Z:  sum_k [ p_k l(z_k + b, k) + c_k |z_k| ] + lb/2 |b|^2,     p_k = n_k/N,  c_k = mu sqrt(n_k)

For a given bias, z_k is 0 iff `p_k |grad l(b, k)| <= c_k`. Otherwise `z = a (y - q)` with `q = softmax(z + b)`, and
`|y - q| = c_k/p_k`: two equations in a and `s = log sum exp(z + b)`, since `q_j = omega(log a + b_j + a y_j - s)/a`
with the Wright omega function. What remains is convex and differentiable in b: Newton's method.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from neuralcollapse.ufm.losses import SquaredError
from neuralcollapse.ufm.model import Model

_ALIVE = 1e-14  # a class vanishes if the slope at zero exceeds its price by less than this, relatively
_STEPS = 100  # of each Newton iteration, at most


@dataclass(frozen=True)
class Decoupled:
    """The minimiser with orthogonal classes: logits without the bias, (K, K) with a column for each class, and b."""

    logits: Tensor
    bias: Tensor | None


def decoupled(model: Model) -> Decoupled:
    """The minimiser of a convex model among the points whose classes share no feature."""
    counts = np.asarray(model.counts, dtype=np.float64)
    targets = model.collapsed().targets.T.cpu().numpy()
    shares, prices = counts / counts.sum(), model.mu * np.sqrt(counts)
    find = _squared if isinstance(model.loss, SquaredError) else _Softmax(targets, shares, prices)
    bias = np.zeros(len(counts))
    if model.bias:
        bias = _best_bias(lambda b: find(targets, shares, prices, b), model.bias_decay, model.num_classes)
    logits = find(targets, shares, prices, bias).logits
    own = [torch.as_tensor(part, device=model.device) for part in (logits.T.copy(), bias)]
    return Decoupled(own[0], own[1] if model.bias else None)


@dataclass(frozen=True)
class _Columns:
    """For a bias: each class's logits z_k as rows, the value of the sum, its gradient and its Hessian in b."""

    logits: np.ndarray
    value: float
    gradient: np.ndarray
    hessian: np.ndarray


def _best_bias(find: Callable[[np.ndarray], _Columns], decay: float, num_classes: int) -> np.ndarray:
    """Newton's method with backtracking."""
    bias = np.zeros(num_classes)

    def at(b: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        found = find(b)
        value = found.value + decay / 2 * float(b @ b)
        return value, found.gradient + decay * b, found.hessian + decay * np.eye(num_classes)

    value, gradient, hessian = at(bias)
    for _ in range(_STEPS):
        size = float(np.linalg.norm(gradient))
        scale = float(np.diag(hessian).max())
        if size <= 1e-16 * scale:
            break
        # Adding the same number to every bias changes no softmax, so ones are in the kernel of the Hessian.
        step = np.linalg.lstsq(hessian, gradient, rcond=1e-13)[0]
        slope = float(gradient @ step)
        if not slope > 0:
            step, slope = gradient / max(scale, size), size**2 / max(scale, size)
        longest = float(np.abs(step).max())
        if longest > 5:
            step, slope = step * (5 / longest), slope * (5 / longest)
        for _ in range(40 if size > 1e-10 * scale else 3):
            trial = at(bias - step)
            falls = trial[0] <= value - 1e-4 * slope and trial[0] < value * (1 - 1e-14)
            # Near the end rounding hides the decrease of the value, but not that of the gradient.
            if falls or (trial[0] <= value * (1 + 1e-13) and float(np.linalg.norm(trial[1])) < 0.5 * size):
                break
            step, slope = step / 2, slope / 2
        else:
            break
        bias, (value, gradient, hessian) = bias - step, trial
    return bias


def _squared(targets: np.ndarray, shares: np.ndarray, prices: np.ndarray, bias: np.ndarray) -> _Columns:
    """Squared error: `z = (1 - c/(p |y - b|))_+ (y - b)`."""
    apart = targets - bias
    lengths = np.linalg.norm(apart, axis=1)
    kept = np.maximum(0.0, 1 - prices / (shares * lengths))
    logits = kept[:, None] * apart
    rest = apart - logits
    value = float(shares @ (rest**2).sum(1) / 2 + prices @ np.linalg.norm(logits, axis=1))
    alive = kept > 0
    weights = np.where(alive, prices / lengths, shares)
    units = apart[alive] / lengths[alive, None]
    hessian = weights.sum() * np.eye(len(bias)) - (units.T * weights[alive]) @ units
    return _Columns(logits, value, -(shares @ rest), hessian)


class _Softmax:
    """Cross-entropy, with or without smoothing; begins each search at the multipliers a of the one before."""

    def __init__(self, targets: np.ndarray, shares: np.ndarray, prices: np.ndarray) -> None:
        ratio = shares / prices
        self.log_a = np.log(ratio) + np.log(np.log1p(len(shares) * ratio))

    def __call__(self, targets: np.ndarray, shares: np.ndarray, prices: np.ndarray, bias: np.ndarray) -> _Columns:
        from scipy.special import softmax

        K = len(bias)
        q = np.tile(softmax(bias), (K, 1))
        away = _away(q, targets)
        alive = shares * np.linalg.norm(away, axis=1) > prices * (1 + _ALIVE)
        multipliers = np.zeros(K)
        if alive.any():
            self.log_a[alive], q[alive], away[alive] = _columns(
                targets[alive], np.flatnonzero(alive), (prices / shares)[alive], bias, self.log_a[alive]
            )
            multipliers[alive] = np.exp(self.log_a[alive])
        logits = multipliers[:, None] * away
        value = float(shares @ _loss(logits + bias, targets) + prices @ np.linalg.norm(logits, axis=1))
        return _Columns(logits, value, -(shares @ away), _hessian(q, away, shares, multipliers, alive))


def _away(q: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """`y - q` row by row; the largest target's entry is minus the sum of the others, which loses no digit."""
    away = targets - q
    rows, own = np.arange(len(q)), targets.argmax(1)
    away[rows, own] = 0.0
    away[rows, own] = -away.sum(1)
    return away


def _loss(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Cross-entropy row by row, with all digits of a small one."""
    from scipy.special import logsumexp

    rows, own = np.arange(len(logits)), targets.argmax(1)
    apart = logits - logits[rows, own][:, None]
    rest = (targets * apart).sum(1)
    apart[rows, own] = -np.inf
    return np.logaddexp(0.0, logsumexp(apart, axis=1)) - rest


def _columns(
    targets: np.ndarray, own: np.ndarray, goal: np.ndarray, bias: np.ndarray, log_a: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(log a, q, y - q) of classes `own`, (A, K) targets, at which `|y - q|` is `goal`: it falls as a grows.

    Newton's method in log a, inside a bracket that shrinks.
    """
    rows = np.arange(len(own))
    low, high = np.full(len(own), -80.0), np.full(len(own), 80.0)
    s = None
    for _ in range(_STEPS):
        a = np.exp(log_a)
        s, q, z, omega_slope = _partition(targets, own, bias, log_a, s)
        away = z / a[:, None]
        length = np.linalg.norm(away, axis=1)
        excess = np.log(length / goal)
        low, high = np.where(excess > 0, log_a, low), np.where(excess < 0, log_a, high)
        # implicit derivatives in log a
        bent = omega_slope / a[:, None]
        moved = bent * (1 + a[:, None] * targets) - q
        moved[rows, own] = bent[rows, own] = 0.0
        kappa = a + 1 / q[rows, own]
        R, T = bent.sum(1), moved.sum(1)
        ds = (a * away[rows, own] + kappa * T) / (1 + kappa * R)
        dq = moved - bent * ds[:, None]
        dq[rows, own] = -dq.sum(1)
        slope = -(away * dq).sum(1) / length**2
        with np.errstate(divide="ignore", invalid="ignore"):
            new = log_a - excess / slope
        done = (np.abs(excess) <= 4e-15) | (np.abs(new - log_a) <= 4e-16 * (1 + np.abs(log_a)))
        if done.all():
            break
        inside = np.isfinite(new) & (new > low) & (new < high) & (slope < 0)
        log_a = np.where(done, log_a, np.where(inside, new, (low + high) / 2))
    return log_a, q, away


def _partition(
    targets: np.ndarray, own: np.ndarray, bias: np.ndarray, log_a: np.ndarray, start: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(s, q, z, the slope of omega) for multipliers a.

    With Q the sum of the others' q_j, s solves `s = b_k + a (y_k - 1 + Q) - log(1 - Q)`, and the difference of the two
    sides is increasing and concave in s. Where a y_j is large, `z_j = s + log q_j - b_j` has more digits than
    `a (y_j - q_j)`.
    """
    from scipy.special import logsumexp, wrightomega

    rows, a = np.arange(len(own)), np.exp(log_a)[:, None]
    base = log_a[:, None] + bias + a * targets
    base[rows, own] = -np.inf
    large = a * targets > 1
    large[rows, own] = False
    low, high = np.full(len(own), -np.inf), logsumexp(bias + a * targets, axis=1)
    s = high if start is None else np.minimum(start, high)
    for _ in range(_STEPS):
        exponent = base - s[:, None]
        omega = wrightomega(exponent)
        q, bent = omega / a, omega / (1 + omega)
        Q, R = q.sum(1), bent.sum(1) / a[:, 0]
        fits = Q < 1
        left = np.where(fits, 1 - Q, 1.0)
        z = a * targets - omega
        z[rows, own] = 0.0
        logs = np.where(omega < 1, exponent - omega, np.log(np.maximum(omega, 1.0)))
        z[large] = (s[:, None] - bias - log_a[:, None] + logs)[large]
        z[rows, own] = -z.sum(1)
        excess = np.where(fits, s - bias[own] - z[rows, own] + np.log1p(-np.where(fits, Q, 0.0)), -1.0)
        low, high = np.where(excess < 0, s, low), np.where(excess > 0, s, high)
        step = excess / (1 + (a[:, 0] + 1 / left) * R)
        new = s - step
        new = np.where(fits & (new > low) & (new < high), new, np.where(np.isfinite(low), (low + high) / 2, new))
        noise = 4e-16 * (1 + np.abs(s) + np.abs(z[rows, own]))
        done = (np.abs(step) <= noise) | (np.abs(excess) <= noise)
        if (done & fits).all():
            break
        s = np.where(done & fits, s, new)
    q[rows, own] = 1 - Q
    return s, q, z, bent


def _hessian(
    q: np.ndarray, away: np.ndarray, shares: np.ndarray, multipliers: np.ndarray, alive: np.ndarray
) -> np.ndarray:
    """The sum over the classes of `A - A (A + B)^-1 A`, or of A alone where z_k = 0.

    `A = p (diag q - q q')` is the curvature of the loss and `B = (p/a) (I - u u')`, u = z/|z|, that of the length.
    A + B is a diagonal minus two outer products, so that its inverse is known, and all sums are products of matrices.
    """
    dead = q[~alive] * shares[~alive, None]
    total = np.diag(dead.sum(0)) - dead.T @ q[~alive]
    if not alive.any():
        return total
    p, q, bent = shares[alive, None], q[alive], shares[alive, None] / multipliers[alive, None]
    u = away[alive] / np.linalg.norm(away[alive], axis=1, keepdims=True)
    diagonal = p * q + bent
    squares = q * q / diagonal
    total += np.diag((p * q * bent / diagonal).sum(0))
    within = squares.sum(1, keepdims=True)
    cross = (p * p * squares).T @ q
    total += cross + cross.T - ((p + p * p * within) * q).T @ q
    # C = I - U'E^-1 U, E the diagonal and U = (sqrt p q, sqrt(p/a) u)
    first, second = (bent * q / diagonal).sum(1), (u * u * p * q / diagonal).sum(1)
    mixed = -np.sqrt(p * bent)[:, 0] * (q * u / diagonal).sum(1)
    det = first * second - mixed**2
    good = det > 1e-14 * (first * second)
    inverse = np.where(good, 1 / np.where(good, det, 1.0), 0.0)

    def through(vector: np.ndarray) -> np.ndarray:  # A E^-1 times a vector, row by row
        scaled = q * vector / diagonal
        return p * (scaled - q * scaled.sum(1, keepdims=True))

    left, right = through(np.sqrt(p) * q), through(np.sqrt(bent) * u)
    parts = (left.T * (second * inverse)) @ left - (left.T * (mixed * inverse)) @ right
    parts = parts - (right.T * (mixed * inverse)) @ left + (right.T * (first * inverse)) @ right
    return total - parts
