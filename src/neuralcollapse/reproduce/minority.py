"""Minority collapse: how aligned the rows of the smallest classes are, in a run and at the exact minimum."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import cache

import numpy as np

from neuralcollapse.runs.reading import Run
from neuralcollapse.ufm.minimizers import collapsed_minimizer
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
    NaN if there are fewer than two smallest classes, if their rows are zero, or if the decays of the model are not
    known: with decay_on="all" they are those that the run's records note.
    """
    config, noted = run.config, {**run.last.minimizer, **run.last.head}
    of = noted if config.get("decay_on") == "all" else config
    decays = [float(of.get(f"{name}_decay", math.nan)) for name in ("weight", "feature", "bias")]
    if len(smallest(run)) < 2 or not all(decay > 0 for decay in decays[:2]):
        return math.nan
    counts = tuple(int(count) for count in run.environment["class_counts"])
    options = config.get("network_options") or {}
    features = "nonnegative" if noted.get("nonnegative") else "real"
    return _at_minimum(counts, *decays, options.get("bias", True), str(config["loss"]), features)


@cache
def _at_minimum(
    counts: tuple[int, ...],
    weight_decay: float,
    feature_decay: float,
    bias_decay: float,
    bias: bool,
    loss: str,
    features: str,
) -> float:
    """Cached, because runs that differ in their seed share it, and both checks and figures need it."""
    count = len(counts)
    model = Model(count, count, counts, weight_decay, feature_decay, bias_decay, bias, loss, features=features)
    point = minimum_bounds(model).collapsed if model.nonnegative else collapsed_minimizer(model)
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
