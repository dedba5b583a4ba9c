"""Long curves in fewer points that look the same: the ends, and the lowest and highest value of each stretch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

POINTS = 2000  # on a page that is a thousand pixels wide


def kept_points(curves: Sequence[Sequence[float]], most: int = POINTS) -> list[int]:
    """Which points stay of curves over the same x, at most `most` of them, in order.

    The first and the last stay. Between them, each of some stretches of equal length keeps the point where each curve
    is lowest and the one where it is highest, so that no spike is lost. NaN is neither.
    """
    values = np.asarray(curves, np.float64)
    count = values.shape[1]
    if count <= most:
        return list(range(count))
    stretches = max(1, (most - 2) // (2 * len(values)))
    ends = np.linspace(1, count - 1, stretches + 1).round().astype(int)
    kept = {0, count - 1}
    for start, stop in pairwise(ends):
        part = values[:, start:stop]
        for worst, pick in ((np.inf, np.argmin), (-np.inf, np.argmax)):
            kept.update((start + pick(np.where(np.isnan(part), worst, part), axis=1)).tolist())
    return sorted(kept)


def evenly(count: int, most: int) -> list[int]:
    """At most `most` of the numbers below `count`, evenly spread, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(int)).tolist()
