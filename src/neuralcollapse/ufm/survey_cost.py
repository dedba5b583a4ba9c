"""What a survey will cost, before it begins: seconds by stage, from one evaluation of the model, and memory."""

from __future__ import annotations

import time

from neuralcollapse.ufm.atlas import integer_partitions
from neuralcollapse.ufm.model import Model
from neuralcollapse.ufm.survey import LARGEST_SPECTRUM, TRAJECTORIES

# Evaluations of objective and gradient that a descent and its certificates are worth, and the seconds that it takes
# however small the model is. Measured at K = 4 to 1,000 with five samples a class, on one core.
_START = (150, 0.02)
_TRAJECTORY = {"lbfgs": (350, 0.3), "newton": (2000, 1.0)}
_FIRST_ORDER = (6000, 2.0)  # gd, sgd and adam, which use all their 5,000 iterations
_PARTITION = 0.0016  # seconds for K^2 of a partition of the atlas: 0.13 s at K = 12, 0.6 s at K = 20
_RANKS = {3: 1.0, 4: 1.0, 5: 5.0, 6: 16.0}  # seconds of the search of all ranks
_SPECTRUM = 10.0  # seconds of the largest spectrum
_COPIES = 25  # of a point in memory: pairs of L-BFGS and what a step needs


def survey_seconds(model: Model, starts: int, method: str = "lbfgs", *, evaluation: float | None = None) -> float:
    """About how many seconds `survey` takes on this machine; `evaluation` is what `evaluation_seconds` gave."""
    once = evaluation_seconds(model) if evaluation is None else evaluation
    total = 0.0
    for count, (evaluations, least) in (
        (starts, _START),
        (min(starts, TRAJECTORIES), _TRAJECTORY.get(method, _FIRST_ORDER)),
    ):
        total += count * (evaluations * once + least)
    K = model.num_classes
    if model.nonnegative:
        return total
    if K <= 20:
        labelled = not model.balanced and K <= 6
        partitions = (1, 1, 2, 5, 15, 52, 203)[K] if labelled else sum(1 for _ in integer_partitions(K))
        total += _PARTITION * K * K * partitions + _RANKS.get(K, 0.0)
    size = model.collapsed().size
    if size <= LARGEST_SPECTRUM:
        total += 3 * _SPECTRUM * (size / LARGEST_SPECTRUM) ** 3
    return total + (5.0 if not model.balanced else 0.0)


def evaluation_seconds(model: Model) -> float:
    """Seconds of one evaluation of the objective and its gradient; the shorter of two."""
    vector = model.random_point(0).vector()
    found = []
    for _ in range(2):
        start = time.perf_counter()
        model.value_and_gradient(vector)
        found.append(time.perf_counter() - start)
    return min(found)


def survey_bytes(num_classes: int, feature_dim: int, num_samples: int, starts: int) -> float:
    """About how much memory a survey of such a model needs; it needs no model, which may itself be too large."""
    size = num_classes * feature_dim + (feature_dim + num_classes) * num_samples
    return 8.0 * size * (_COPIES + 2 * starts)
