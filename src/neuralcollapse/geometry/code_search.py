"""The search for K unit rows with the smallest largest cosine: minima of a soft maximum, from several starts.

At a fixed temperature T the soft maximum `T log sum e^(cos/T)` over pairs is smooth. A sharp code minimises it at every
T, and where T is neither high (everything is nearly flat) nor low (every local packing is a minimum) a descent often
finds it. So each start is minimised fully at one of several temperatures, then followed as the temperature falls.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

# In turn for the starts. Of 13 points in 3 dimensions 0.02 finds the best code three times in four; of 24 in 4 only 0.5
# does, every other time; of 240 in 8 hardly any but 0.1.
_HOT = (0.1, 0.02, 0.5, 0.2, 0.01, 0.05)
_COLD = 1e-4  # the last temperature: the largest cosine is then within 1e-3 of the minimum nearby
_COOLING = 4.0
_FIRST, _LATER = 400, 100  # iterations at most, at the first temperature and at each later one
_FEWEST = 20  # iterations at a temperature for large codes
# What a search may cost in multiplications (a second or two): so many starts, and shorter ones for large codes.
_COST = 5e9
_CALL = 3e5  # what an evaluation of the smallest code costs
_MOST_STARTS = 18
_ONE_THREAD = 2e7  # an evaluation that costs less runs on one thread
_MEMORY, _ARMIJO, _HALVINGS = 10, 1e-4, 30
_FLAT = 1e-9  # the length of a gradient at which a descent ends


def search(count: int, dim: int, generator: torch.Generator) -> Tensor:
    """(count, dim) unit rows, float64, on the CPU: the best of the minima found from random starts."""
    evaluation = _CALL + count * count * (dim + 50)
    full = _COST / evaluation  # evaluations within the cost
    starts = max(1, min(_MOST_STARTS, int(full / (_FIRST + 4 * _LATER))))
    best, least = torch.empty(0), math.inf
    with _one_thread() if evaluation < _ONE_THREAD else nullcontext():
        for start in range(starts):
            rows = _unit(torch.randn(count, dim, generator=generator, dtype=torch.float64, device="cpu"))
            stages = _stages(_HOT[start % len(_HOT)])
            share = max(_FEWEST, int(full / len(stages)))
            for number, temperature in enumerate(stages):
                rows = _minimised(rows, temperature, min(share, _LATER if number else _FIRST))
            cosine = float((rows @ rows.T).fill_diagonal_(-1).max())
            if cosine < least:
                best, least = rows, cosine
    return best


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread for products so small that several spend their time on waiting for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _stages(hot: float) -> list[float]:
    """Falling temperatures."""
    count = math.ceil(math.log(hot / _COLD) / math.log(_COOLING))
    return [max(_COLD, hot / _COOLING**step) for step in range(count + 1)]


def _minimised(rows: Tensor, temperature: float, iterations: int) -> Tensor:
    """The rows after L-BFGS with backtracking on the soft maximum at this temperature.

    With SciPy's the codes are no better, and its small products on several threads of BLAS took ten times as long on a
    busy machine.
    """
    shape, x = rows.shape, rows.flatten()
    value, gradient = soft_maximum(rows, temperature)
    pairs: deque[tuple[Tensor, Tensor, float]] = deque(maxlen=_MEMORY)
    for _ in range(iterations):
        direction = _direction(gradient.flatten(), pairs)
        slope = float(direction @ gradient.flatten())
        if slope > -(_FLAT**2):
            break
        length = 1.0 if pairs else min(1.0, temperature / math.sqrt(-slope))
        for _ in range(_HALVINGS):
            moved = x + length * direction
            new_value, new_gradient = soft_maximum(moved.view(shape), temperature)
            if new_value <= value + _ARMIJO * length * slope:
                break
            length /= 2
        else:
            break
        step, change = moved - x, (new_gradient - gradient).flatten()
        curvature = float(step @ change)
        if curvature > 0:
            pairs.append((step, change, curvature))
        x, value, gradient = moved, new_value, new_gradient
    return _unit(x.view(shape))


def _direction(gradient: Tensor, pairs: deque[tuple[Tensor, Tensor, float]]) -> Tensor:
    """Minus the gradient times the inverse Hessian that the last steps and changes of gradient show (two loops)."""
    direction, shares = -gradient, []
    for step, change, curvature in reversed(pairs):
        shares.append(float(step @ direction) / curvature)
        direction = direction.sub(change, alpha=shares[-1])
    if pairs:
        _, change, curvature = pairs[-1]
        direction.mul_(curvature / float(change @ change))
    for (step, change, curvature), share in zip(pairs, reversed(shares), strict=True):
        direction.add_(step, alpha=share - float(change @ direction) / curvature)
    return direction


def soft_maximum(vectors: Tensor, temperature: float) -> tuple[float, Tensor]:
    """`T log sum e^(cos/T)` over the ordered pairs of K vectors (K, d) of any length, and its gradient."""
    lengths = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    rows = vectors / lengths
    cosines = (rows @ rows.T).fill_diagonal_(-math.inf)
    largest = cosines.max()
    weights = cosines.sub_(largest).div_(temperature).exp_()
    total = weights.sum()
    push = (weights @ rows).mul_(2 / total)
    gradient = (push - (push * rows).sum(1, keepdim=True) * rows).div_(lengths)
    return float(largest + temperature * total.log()), gradient


def _unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows, dim=1)
