"""Whether weight decay has the time to act: the decay budget B, and the exact law of the sum of the classifier's rows.

A loss of the softmax of `z = W h + b` has a gradient with respect to z whose entries sum to 0 over the classes, so
`1'W`, the sum of the rows of W, gets no gradient from any batch: weight decay alone moves it. Under SGD with momentum
beta, learning rate `e_t` and weight decay `l_t`, `u = 1'W` follows, whatever the data and the network,

    v_{t+1} = beta v_t + l_t u_t,    u_{t+1} = u_t - e_t v_{t+1},    v_0 = 0,

and so `|u_T| / |u_0|` is close to `exp(-B)` with the decay budget `B = sum_t l_t e_t / (1 - beta)`. It bounds how far
collapse can have come, since `NC2(W) >= |1'W|^2 / (K |WW'|_F)`. The bias follows the same law with its own decay.

The law is exact for cross-entropy, label smoothing and focal loss, under SGD with coupled decay and without Nesterov's
momentum or dampening, for any batches and schedules, and with the gradient clipped before the decay is added, as
PyTorch does. It does not hold for MSE, whose gradient does not sum to 0, nor for Adam, AdamW or L-BFGS.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from neuralcollapse.checks import check_count, check_real
from neuralcollapse.errors import InputError, one_line

Schedule = float | Sequence[float] | np.ndarray | Tensor | Callable[[int], float]

_LOOP = 50  # steps; beyond that a power of the step's matrix is faster


class Stretch(NamedTuple):
    """Steps in a row with the same decay and learning rate."""

    decay: float
    rate: float
    steps: int


def decay_budget(
    weight_decay: Schedule, learning_rates: Schedule, momentum: float = 0.0, *, steps: int | None = None
) -> float:
    r"""The decay budget :math:`B = \sum_t \lambda_t \eta_t / (1 - \beta)` of a training with SGD (no dampening).

    The common part of the classifier's rows shrinks to about `exp(-B)` of its start (`row_sum_left` gives the exact
    factor), and NC2, self-duality and the bias cannot have collapsed before it has: they need a B of 2 or more.

    Args:
        weight_decay: the coupled decay of the classifier's weight, or of its bias: a number, a sequence with a value
            for each step, or a function of the step (0, 1, ...).
        learning_rates: the same of the learning rate.
        momentum: beta, from 0 to below 1.
        steps: how many steps there are, over all epochs; needed where no sequence says it.

    Returns:
        B, at least 0.

    Raises:
        InputError: a value that is negative or not finite, sequences of different lengths, or an unknown number of
            steps.
    """
    return budget_of(_stretches(weight_decay, learning_rates, steps), _momentum(momentum))


def row_sum_left(
    weight_decay: Schedule, learning_rates: Schedule, momentum: float = 0.0, *, steps: int | None = None
) -> float:
    r"""What SGD leaves of the sum of the classifier's rows: :math:`|1^\top W|` at the end over that at the start.

    It is exact, whatever the data and the network, for cross-entropy, label smoothing and focal loss under
    `torch.optim.SGD` with its default `dampening=0` and `nesterov=False`, with or without a clipped gradient; not for
    MSE, Adam, AdamW or L-BFGS. The optimiser is new: momentum starts from 0. With the decay of the bias it is the same
    of the sum of its entries.

    Args:
        weight_decay: as for `decay_budget`.
        learning_rates: as for `decay_budget`.
        momentum: as for `decay_budget`.
        steps: as for `decay_budget`.

    Returns:
        The factor, close to `exp(-B)` where each step decays little; infinity where the steps are so large that the
        sum grows without bound.

    Raises:
        InputError: as `decay_budget`.
    """
    return left_of(_stretches(weight_decay, learning_rates, steps), _momentum(momentum))


def budget_of(stretches: Iterable[Stretch], momentum: float) -> float:
    """`decay_budget` of stretches of equal steps."""
    return math.fsum(decay * rate * steps for decay, rate, steps in stretches) / (1 - momentum)


def left_of(stretches: Iterable[Stretch], momentum: float) -> float:
    """`row_sum_left` of stretches of equal steps; the cost of a long one grows with the logarithm of its steps."""
    left, velocity = 1.0, 0.0
    for decay, rate, steps in stretches:
        if steps <= _LOOP:
            for _ in range(steps):
                velocity = momentum * velocity + decay * left
                left -= rate * velocity
        else:
            step = np.array([[1 - rate * decay, -rate * momentum], [decay, momentum]])
            with np.errstate(over="ignore", invalid="ignore"):
                left, velocity = (np.linalg.matrix_power(step, steps) @ (left, velocity)).tolist()
    return abs(left) if math.isfinite(left) else math.inf


def _momentum(value: float) -> float:
    if check_real(value, "momentum", zero=True) >= 1:
        raise InputError(f"expected momentum as a number from 0 to below 1, got {value!r}")
    return float(value)


def _stretches(weight_decay: Schedule, learning_rates: Schedule, steps: int | None) -> list[Stretch]:
    """The steps, those in a row with equal values together."""
    given = {"weight_decay": weight_decay, "learning_rates": learning_rates}
    arrays = {name: _array(value, name) for name, value in given.items() if not callable(value)}
    lengths = {name: len(array) for name, array in arrays.items() if array.ndim}
    if steps is not None:
        lengths["steps"] = check_count(steps, "steps", 0)
    if not lengths:
        raise InputError("expected steps=, the number of steps in all, beside numbers or functions of the step")
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{count:,} in {name}" for name, count in lengths.items())
        raise InputError(f"expected the same number of steps everywhere, got {said}: give one value for each step")
    count = next(iter(lengths.values()))
    for name, value in given.items():
        if callable(value):
            arrays[name] = _array([value(step) for step in range(count)], name)
    decays, rates = arrays["weight_decay"], arrays["learning_rates"]
    if not decays.ndim and not rates.ndim:
        return [Stretch(float(decays), float(rates), count)]
    table = np.stack([np.broadcast_to(decays, count), np.broadcast_to(rates, count)])
    starts = np.flatnonzero(np.diff(table, prepend=-1.0).any(axis=0))  # no value is negative
    edges = pairwise([*starts.tolist(), count])
    return [Stretch(float(table[0, start]), float(table[1, start]), stop - start) for start, stop in edges]


def _array(values: Any, name: str) -> np.ndarray:
    """One number, or one for each step, as a float64 array."""
    if isinstance(values, Iterator):
        kind = type(values).__name__
        raise InputError(f"expected {name} as numbers, got {kind}, which can be read only once: give a list")
    try:
        if isinstance(values, Tensor):
            values = values.detach().cpu().double()
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError, NotImplementedError) as error:
        raise InputError(f"expected {name} as numbers: {one_line(error)}") from None
    if array.ndim > 1:
        raise InputError(f"expected {name} as a number or one for each step, got an array of shape {array.shape}")
    bad = np.flatnonzero(~(np.isfinite(array) & (array >= 0)))
    if len(bad):
        where = f" at step {bad[0]:,}" if array.ndim else ""
        raise InputError(f"expected {name} to be 0 or positive and finite, got {array.flat[bad[0]]:g}{where}")
    return array
