"""Minority collapse: how aligned the rows of the smallest classes are, in a run and at the exact minimum."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import cache

import numpy as np

from neuralcollapse.runs.reading import Run
from neuralcollapse.ufm.minimizers import global_minimizer
from neuralcollapse.ufm.model import Model
from neuralcollapse.ufm.nonnegative import minimum_bounds


def minority_cosine(run: Run) -> float | None:
    """Mean cosine between the final classifier rows of the smallest classes; None if there are fewer than two."""
    small = smallest(run)
    if len(small) < 2 or not run.geometries:
        return None
    return _mean_cosine(np.asarray(run.geometries[-1].weight, np.float64)[small])


def cosine_at_minimum(run: Run) -> float:
    """The same at the exact minimiser of the unconstrained feature model with the run's class counts and decays.

    The model's features are >= 0 where those that the run measured are (and there are as many dimensions as classes).
    NaN if there are fewer than two smallest classes, or if their rows are zero.

    Raises:
        InputError: the model needs other decays than the run has (decay_on="classifier", and positive ones).
    """
    if len(smallest(run)) < 2:
        return math.nan
    config = run.config
    return _at_minimum(
        tuple(int(count) for count in run.environment["class_counts"]),
        float(config["weight_decay"]),
        float(config["feature_decay"]),
        float(config["bias_decay"]),
        str(config["loss"]),
        "nonnegative" if run.last.head.get("nonnegative") else "real",
    )


@cache
def _at_minimum(
    counts: tuple[int, ...], weight_decay: float, feature_decay: float, bias_decay: float, loss: str, features: str
) -> float:
    """Cached, because runs that differ in their seed share it, and both checks and figures need it."""
    count = len(counts)
    model = Model(count, count, counts, weight_decay, feature_decay, bias_decay, loss=loss, features=features)
    point = minimum_bounds(model).point if model.nonnegative else global_minimizer(model)
    return _mean_cosine(point.W.numpy()[_least(counts)])


def smallest(run: Run) -> list[int]:
    """The classes with the fewest training samples; none if all classes have equally many."""
    return _least(run.environment.get("class_counts") or [])


def _least(counts: Sequence[int]) -> list[int]:
    least = min(counts, default=0)
    found = [k for k, count in enumerate(counts) if count == least]
    return found if len(found) < len(counts) else []


def _mean_cosine(rows: np.ndarray) -> float:
    lengths = np.linalg.norm(rows, axis=1)
    if lengths.min() < 1e-9 * max(1.0, lengths.max()):
        return float("nan")  # rows of zero have no direction
    unit = rows / lengths[:, None]
    return float(np.mean([unit[i] @ unit[j] for i, j in itertools.combinations(range(len(unit)), 2)]))
