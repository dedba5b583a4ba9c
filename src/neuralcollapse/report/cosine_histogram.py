"""How the cosines between classes are spread: those of the class means and those of the classifier's rows."""

from __future__ import annotations

import numpy as np

from neuralcollapse.report.figure import COLORS, Axis, Band, Figure, Line
from neuralcollapse.runs.records import Geometry, number

_BINS = (10, 60)  # at least and at most; in between twice the root of the number of pairs


def cosine_histogram(geometry: Geometry, unit: str = "epoch") -> Figure | None:
    """A histogram of the cosines over all pairs of classes, beside that of a simplex ETF; None with no pair defined."""
    found = {
        "class means": _off_diagonal(geometry.centred),
        "classifier's rows": _off_diagonal(geometry.weight),
    }
    found = {name: values for name, values in found.items() if len(values)}
    if not found:
        return None
    seen = np.isfinite(geometry.means).all(1).sum()
    target = -1 / (max(int(seen), 2) - 1)
    everything = np.concatenate(list(found.values()))
    low, high = min(everything.min(), target), max(everything.max(), target)
    room = max(0.05 * (high - low), 0.01)  # under collapse all values are one
    # an odd number: under collapse all values lie in the middle, where an edge would split them by their rounding
    bins = 1 | min(max(round(2 * max(map(len, found.values())) ** 0.5), _BINS[0]), _BINS[1])
    edges = np.linspace(low - room, high + room, bins + 1)
    x = np.repeat(edges, 2).tolist()
    marks: list[Band | Line] = []
    for (name, values), color in zip(found.items(), COLORS, strict=False):
        shares = np.histogram(values, edges)[0] / len(values)
        y = [0.0, *np.repeat(shares, 2).tolist(), 0.0]
        marks += [Band(name, x, [0.0] * len(x), y, color), Line(name, x, y, color, hover="{y:.3f}", width=1.5)]
    spans = ", ".join(f"{name} from {number(v.min())} to {number(v.max())}" for name, v in found.items())
    return Figure(
        "cosine-histogram",
        "How the cosines are spread",
        "Share of the pairs of classes by their cosine; class means are taken about their common mean. In a simplex "
        f"ETF all are {target:.3f}.",
        f"Histogram of the cosines between classes at {unit} {geometry.epoch:,}: {spans}; a simplex ETF has "
        f"{target:.3f}.",
        marks,
        Axis("cosine"),
        Axis("share of pairs", from_zero=True),
        events=[(target, "simplex")],
    )


def _off_diagonal(vectors: np.ndarray) -> np.ndarray:
    """The cosines between different rows that are defined."""
    rows = vectors.astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1)
    rows, lengths = rows[lengths > 0], lengths[lengths > 0]  # a length that is NaN is left out too
    unit = rows / lengths[:, None]
    values: np.ndarray = (unit @ unit.T)[np.triu_indices(len(unit), 1)]
    return values
