"""Minority collapse: how close the classifier's rows of the smallest classes are, in a run and at the exact minimum."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch

from neuralcollapse.runs import Run
from neuralcollapse.ufm.minimizers import global_minimizer
from neuralcollapse.ufm.model import Model


def minority_cosine(run: Run) -> float | None:
    """Mean cosine between the last classifier rows of the classes with the fewest samples; None below two of them."""
    small = smallest(run)
    if len(small) < 2 or not run.geometries:
        return None
    return _mean_cosine(np.asarray(run.geometries[-1].weight, np.float64)[small])


def cosine_at_minimum(run: Run) -> float:
    """The same at the exact minimiser of the unconstrained feature model with the run's class counts and decays.

    NaN where there are not two smallest classes, or their rows are zero.

    Raises:
        InputError: the run's decays are none of that model's (decay_on is not "classifier", or a decay is 0).
    """
    if len(smallest(run)) < 2:
        return math.nan
    counts = [int(count) for count in run.environment["class_counts"]]
    model = Model(
        len(counts),
        len(counts),
        counts,
        float(run.config["weight_decay"]),
        float(run.config["feature_decay"]),
        float(run.config["bias_decay"]),
        loss=run.config["loss"],
    )
    W = global_minimizer(model).W
    rows = W[torch.tensor(smallest(run))].numpy()
    return _mean_cosine(rows)


def smallest(run: Run) -> list[int]:
    """The classes with the fewest training samples, where not all have as many."""
    counts = run.environment.get("class_counts") or []
    least = min(counts, default=0)
    found = [k for k, count in enumerate(counts) if count == least]
    return found if len(found) < len(counts) else []


def _mean_cosine(rows: np.ndarray) -> float:
    lengths = np.linalg.norm(rows, axis=1)
    if lengths.min() < 1e-9 * max(1.0, lengths.max()):
        return float("nan")  # rows that are zero point nowhere
    unit = rows / lengths[:, None]
    return float(np.mean([unit[i] @ unit[j] for i, j in itertools.combinations(range(len(unit)), 2)]))
