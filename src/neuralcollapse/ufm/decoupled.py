"""Orthogonal classes: the minimum of the model with features >= 0 if no two classes share a feature.

Each class then has a column of logits of its own, and only the bias joins them:

    min over b and Z:  sum_k [ p_k l(z_k + b, k) + c_k |z_k| ] + lb/2 |b|^2,     p_k = n_k/N,  c_k = mu sqrt(n_k)

For a given bias, z_k is 0 iff `p_k |grad l(b, k)| <= c_k`. Otherwise `z = a (y - q)` with `q = softmax(z + b)`, and
`|y - q| = c_k/p_k`: two equations in a and `s = log sum exp(z + b)`, since `q_j = omega(log a + b_j + a y_j - s)/a`
with the Wright omega function. What remains is convex and differentiable in b: Newton's method.

Classes of equal counts are interchangeable, so that it is solved for one class of each group of them (`grouped.py`).
Its row has the entry of the class itself, and in each group one for all other classes: (G, G+1) for K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from neuralcollapse.ufm.coarse import FINE, coarser, interpolated
from neuralcollapse.ufm.grouped import GroupedModel
from neuralcollapse.ufm.losses import CrossEntropy, SquaredError

_ALIVE = 1e-14  # a class vanishes if the slope at zero exceeds its price by less than this, relatively
_STEPS = 100  # of each Newton iteration, at most


@dataclass(frozen=True)
class Decoupled:
    """The minimiser with orthogonal classes: logits (G+1, G) without the bias, a column for each group, and b (G,)."""

    logits: Tensor
    bias: Tensor | None


def decoupled(problem: GroupedModel) -> Decoupled:
    """The minimiser of a convex model among the points whose classes share no feature."""
    model, rows = problem.model, _Rows.of(problem)
    bias = np.zeros(len(rows.sizes))
    find: Callable[[_Rows, np.ndarray], _Columns] = _squared
    if not isinstance(model.loss, SquaredError):
        find = search = _Softmax(rows)
        if model.bias and len(rows.sizes) > FINE:
            bias = _begin_near(problem, search)
    if model.bias:
        bias = _best_bias(lambda b: find(rows, b), model.bias_decay * rows.sizes, bias)
    logits = find(rows, bias).logits
    own = [torch.as_tensor(part, device=problem.weights.device) for part in (logits.T.copy(), bias)]
    return Decoupled(own[0], own[1] if model.bias else None)


def _begin_near(problem: GroupedModel, find: _Softmax) -> np.ndarray:
    """The biases of a coarser model's solution, between its counts; the search begins at its multipliers."""
    small = coarser(problem.model)
    rows = _Rows.of(small)
    found = _Softmax(rows)
    bias = _best_bias(lambda b: found(rows, b), small.model.bias_decay * rows.sizes, np.zeros(len(rows.sizes)))
    parts = (interpolated(problem, small, torch.from_numpy(part), 0).cpu().numpy() for part in (bias, found.log_a))
    bias, find.log_a = parts
    return bias


@dataclass(frozen=True)
class _Rows:
    """A row for a class of each group.

    Attributes:
        times: (G, G+1) how many classes an entry is of; the first column is the class itself.
        targets: (G, G+1).
        shares: (G,) p of each class.
        prices: (G,) c of each class.
        sizes: (G,) the classes of each group.
    """

    times: np.ndarray
    targets: np.ndarray
    shares: np.ndarray
    prices: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of(cls, problem: GroupedModel) -> _Rows:
        model, G = problem.model, len(problem.groups)
        smoothing = model.loss.smoothing if isinstance(model.loss, CrossEntropy) else 0.0
        targets = np.full((G, G + 1), smoothing / model.num_classes)
        targets[:, 0] += 1 - smoothing
        parts = (problem.times.T, problem.groups.shares, problem.mu * problem.roots, problem.groups.sizes)
        times, shares, prices, sizes = (part.cpu().numpy() for part in parts)
        return cls(times, targets, shares, prices, sizes)

    def __getitem__(self, chosen: np.ndarray) -> _Rows:
        return _Rows(
            self.times[chosen], self.targets[chosen], self.shares[chosen], self.prices[chosen], self.sizes[chosen]
        )

    def total(self, values: np.ndarray) -> np.ndarray:
        """The sums over all classes."""
        return np.einsum("ij,ij->i", self.times, values)

    def others(self, values: np.ndarray) -> np.ndarray:
        """The sums over all other classes."""
        return np.einsum("ij,ij->i", self.times[:, 1:], values[:, 1:])

    def length(self, values: np.ndarray) -> np.ndarray:
        """The lengths of the rows."""
        return np.sqrt(self.total(values * values))


def _spread(bias: np.ndarray, own: np.ndarray | None = None) -> np.ndarray:
    """(G, G+1) the bias of each entry; `own` are the groups of the rows if they are not all."""
    first = bias if own is None else bias[own]
    return np.concatenate([first[:, None], np.broadcast_to(bias, (len(first), len(bias)))], axis=1)


def _by_group(times: np.ndarray, own: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(A, G) the sums over the classes of each group, that of the row's own group with the class itself."""
    sums = times[:, 1:] * values[:, 1:]
    sums[np.arange(len(own)), own] += values[:, 0]
    return sums


@dataclass(frozen=True)
class _Columns:
    """For a bias: the logits of a class of each group, the value of the sum, its gradient and its Hessian in b."""

    logits: np.ndarray
    value: float
    gradient: np.ndarray
    hessian: np.ndarray


def _best_bias(find: Callable[[np.ndarray], _Columns], decays: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Newton's method with backtracking, from a bias."""

    def at(b: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        found = find(b)
        value = found.value + float(decays @ b**2) / 2
        return value, found.gradient + decays * b, found.hessian + np.diag(decays)

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


def _squared(rows: _Rows, bias: np.ndarray) -> _Columns:
    """Squared error: `z = (1 - c/(p |y - b|))_+ (y - b)`."""
    own = np.arange(len(bias))
    apart = rows.targets - _spread(bias)
    lengths = rows.length(apart)
    kept = np.maximum(0.0, 1 - rows.prices / (rows.shares * lengths))
    logits = kept[:, None] * apart
    rest = apart - logits
    value = float(rows.sizes @ (rows.shares * rows.total(rest**2) / 2 + rows.prices * rows.length(logits)))
    alive = kept > 0
    weights = rows.sizes * np.where(alive, rows.prices / lengths, rows.shares)
    units = _by_group(rows.times[alive], own[alive], apart[alive] / lengths[alive, None])
    hessian = weights.sum() * np.diag(rows.sizes) - (units.T * weights[alive]) @ units
    gradient = -((rows.sizes * rows.shares) @ _by_group(rows.times, own, rest))
    return _Columns(logits, value, gradient, hessian)


class _Softmax:
    """Cross-entropy, with or without smoothing; begins each search at the multipliers a of the one before."""

    def __init__(self, rows: _Rows) -> None:
        ratio = rows.shares / rows.prices
        self.log_a = np.log(ratio) + np.log(np.log1p(rows.sizes.sum() * ratio))

    def __call__(self, rows: _Rows, bias: np.ndarray) -> _Columns:
        from scipy.special import logsumexp

        biases, own = _spread(bias), np.arange(len(bias))
        q = np.exp(biases - logsumexp(bias, b=rows.sizes))
        away = _away(rows, q)
        alive = rows.shares * rows.length(away) > rows.prices * (1 + _ALIVE)
        multipliers = np.zeros(len(bias))
        if alive.any():
            self.log_a[alive], q[alive], away[alive] = _columns(rows[alive], biases[alive], self.log_a[alive])
            multipliers[alive] = np.exp(self.log_a[alive])
        logits = multipliers[:, None] * away
        losses = rows.shares * _loss(rows, logits + biases) + rows.prices * rows.length(logits)
        gradient = -((rows.sizes * rows.shares) @ _by_group(rows.times, own, away))
        return _Columns(logits, float(rows.sizes @ losses), gradient, _hessian(rows, q, away, multipliers, alive))


def _away(rows: _Rows, q: np.ndarray) -> np.ndarray:
    """`y - q` row by row; the entry of the class itself is minus the sum of the others, which loses no digit."""
    away = rows.targets - q
    away[:, 0] = -rows.others(away)
    return away


def _loss(rows: _Rows, logits: np.ndarray) -> np.ndarray:
    """Cross-entropy row by row, with all digits of a small one."""
    from scipy.special import logsumexp

    apart = logits - logits[:, :1]
    return np.logaddexp(0.0, logsumexp(apart[:, 1:], axis=1, b=rows.times[:, 1:])) - rows.total(rows.targets * apart)


def _columns(rows: _Rows, biases: np.ndarray, log_a: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(log a, q, y - q) of classes at which `|y - q|` is `c/p`: it falls as a grows.

    Newton's method in log a, inside a bracket that shrinks.
    """
    targets, goal = rows.targets, rows.prices / rows.shares
    low, high = np.full(len(goal), -80.0), np.full(len(goal), 80.0)
    s, last = None, np.full(len(goal), np.inf)
    for _ in range(_STEPS):
        a = np.exp(log_a)
        s, q, z, omega_slope = _partition(rows, biases, log_a, s)
        away = z / a[:, None]
        length = rows.length(away)
        excess = np.log(length / goal)
        low, high = np.where(excess > 0, log_a, low), np.where(excess < 0, log_a, high)
        # implicit derivatives in log a
        bent = omega_slope / a[:, None]
        moved = bent * (1 + a[:, None] * targets) - q
        kappa = a + 1 / q[:, 0]
        R, T = rows.others(bent), rows.others(moved)
        ds = (a * away[:, 0] + kappa * T) / (1 + kappa * R)
        dq = moved - bent * ds[:, None]
        dq[:, 0] = -rows.others(dq)
        slope = -rows.total(away * dq) / length**2
        with np.errstate(divide="ignore", invalid="ignore"):
            new = log_a - excess / slope
        size = np.abs(excess)
        # The rounding of sums over many classes may exceed 4e-15: a small excess that no longer shrinks is all of it.
        done = (size <= 4e-15) | (np.abs(new - log_a) <= 4e-16 * (1 + np.abs(log_a)))
        done |= (size <= 1e-12) & (size >= last / 2)
        last = size
        if done.all():
            break
        inside = np.isfinite(new) & (new > low) & (new < high) & (slope < 0)
        log_a = np.where(done, log_a, np.where(inside, new, (low + high) / 2))
    return log_a, q, away


def _partition(
    rows: _Rows, biases: np.ndarray, log_a: np.ndarray, start: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(s, q, z, the slope of omega) for multipliers a.

    With Q the sum of the others' q_j, s solves `s = b_k + a (y_k - 1 + Q) - log(1 - Q)`, and the difference of the two
    sides is increasing and concave in s. Where a y_j is large, `z_j = s + log q_j - b_j` has more digits than
    `a (y_j - q_j)`.
    """
    from scipy.special import logsumexp, wrightomega

    a, targets = np.exp(log_a)[:, None], rows.targets
    base = log_a[:, None] + biases + a * targets
    base[:, 0] = -np.inf
    large = a * targets > 1
    large[:, 0] = False
    low, high = np.full(len(base), -np.inf), logsumexp(biases + a * targets, axis=1, b=rows.times)
    s = high if start is None else np.minimum(start, high)
    for _ in range(_STEPS):
        exponent = base - s[:, None]
        omega = wrightomega(exponent)
        q, bent = omega / a, omega / (1 + omega)
        Q, R = rows.others(q), rows.others(bent) / a[:, 0]
        fits = Q < 1
        left = np.where(fits, 1 - Q, 1.0)
        z = a * targets - omega
        if large.any():
            logs = np.where(omega < 1, exponent - omega, np.log(np.maximum(omega, 1.0)))
            z[large] = (s[:, None] - biases - log_a[:, None] + logs)[large]
        z[:, 0] = -rows.others(z)
        excess = np.where(fits, s - biases[:, 0] - z[:, 0] + np.log1p(-np.where(fits, Q, 0.0)), -1.0)
        low, high = np.where(excess < 0, s, low), np.where(excess > 0, s, high)
        step = excess / (1 + (a[:, 0] + 1 / left) * R)
        new = s - step
        new = np.where(fits & (new > low) & (new < high), new, np.where(np.isfinite(low), (low + high) / 2, new))
        noise = 4e-16 * (1 + np.abs(s) + np.abs(z[:, 0]))
        done = (np.abs(step) <= noise) | (np.abs(excess) <= noise)
        if (done & fits).all():
            break
        s = np.where(done & fits, s, new)
    q[:, 0] = 1 - Q
    return s, q, z, bent


def _hessian(rows: _Rows, q: np.ndarray, away: np.ndarray, multipliers: np.ndarray, alive: np.ndarray) -> np.ndarray:
    """The sum over the classes of `A - A (A + B)^-1 A`, or of A alone where z_k = 0; between groups, (G, G).

    `A = p (diag q - q q')` is the curvature of the loss and `B = (p/a) (I - u u')`, u = z/|z|, that of the length.
    A + B is a diagonal minus two outer products, so that its inverse is known, and all sums are products of matrices.
    """
    own = np.arange(len(alive))
    dead = _by_group(rows.times[~alive], own[~alive], q[~alive])
    weights = (rows.sizes * rows.shares)[~alive, None]
    total = np.diag((weights * dead).sum(0)) - (weights * dead).T @ dead
    if not alive.any():
        return total
    rows, own, q, away = rows[alive], own[alive], q[alive], away[alive]
    m, p, bent = rows.sizes[:, None], rows.shares[:, None], (rows.shares / multipliers[alive])[:, None]
    u = away / rows.length(away)[:, None]
    diagonal = p * q + bent
    squares = q * q / diagonal

    def grouped(values: np.ndarray) -> np.ndarray:
        return _by_group(rows.times, own, values)

    total += np.diag((m * grouped(p * q * bent / diagonal)).sum(0))
    within, each = rows.total(squares)[:, None], grouped(q)
    cross = (m * p * p * grouped(squares)).T @ each
    total += cross + cross.T - (m * (p + p * p * within) * each).T @ each
    # C = I - U'E^-1 U, E the diagonal and U = (sqrt p q, sqrt(p/a) u)
    first, second = rows.total(bent * q / diagonal), rows.total(u * u * p * q / diagonal)
    mixed = -np.sqrt(p * bent)[:, 0] * rows.total(q * u / diagonal)
    det = first * second - mixed**2
    good = det > 1e-14 * (first * second)
    inverse = rows.sizes * np.where(good, 1 / np.where(good, det, 1.0), 0.0)

    def through(vector: np.ndarray) -> np.ndarray:  # A E^-1 times a vector, row by row, between groups
        scaled = q * vector / diagonal
        return grouped(p * (scaled - q * rows.total(scaled)[:, None]))

    left, right = through(np.sqrt(p) * q), through(np.sqrt(bent) * u)
    parts = (left.T * (second * inverse)) @ left - (left.T * (mixed * inverse)) @ right
    parts = parts - (right.T * (mixed * inverse)) @ left + (right.T * (first * inverse)) @ right
    return total - parts
