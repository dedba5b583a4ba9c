"""Names beside the points of a paper's figure: each on the first side that has room; without room it is left out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from neuralcollapse.report.paper_axes import plain

_SIZE = 5.5  # points
_LETTER = 0.58  # width of one over the size
_AWAY = 3.5  # points between a point and its name
_SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))  # right, left, above, below; corners

Box = tuple[float, float, float, float]


def write_labels(ax: Any, groups: Iterable[tuple[np.ndarray, np.ndarray, Sequence[str]]]) -> None:
    """Write names beside points, given as (x, y, names) with axes whose limits are set."""
    figure = ax.figure
    points = 72 / figure.dpi
    figure.get_layout_engine().execute(figure)  # so that places in data are places on paper
    area = ax.get_window_extent()
    places = [
        (*(ax.transData.transform((a, b)) * points), plain(name), a, b)
        for x, y, names in groups
        for a, b, name in zip(x, y, names, strict=True)
        if np.isfinite(a) and np.isfinite(b)
    ]
    taken = [(a - 3, b - 3, a + 3, b + 3) for a, b, *_ in places]
    inside = tuple(edge * points for edge in (area.x0, area.y0, area.x1, area.y1))
    for left, bottom, name, a, b in places:
        for side in _SIDES:
            box = _box(left, bottom, len(name) * _SIZE * _LETTER, side)
            if _within(box, inside) and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                at = {"ha": ("right", "center", "left")[side[0] + 1], "va": ("top", "center", "bottom")[side[1] + 1]}
                shift = (side[0] * _AWAY, side[1] * _AWAY)
                ax.annotate(name, (a, b), shift, textcoords="offset points", fontsize=_SIZE, zorder=3, **at)
                break


def _box(x: float, y: float, width: float, side: tuple[int, int]) -> Box:
    """Where a name of this width is, on this side of a point: left, bottom, right, top in points."""
    middle = (x + side[0] * (_AWAY + width / 2), y + side[1] * (_AWAY + _SIZE / 2))
    return middle[0] - width / 2, middle[1] - _SIZE / 2, middle[0] + width / 2, middle[1] + _SIZE / 2


def _within(box: Box, area: Sequence[float]) -> bool:
    return box[0] >= area[0] and box[1] >= area[1] and box[2] <= area[2] + 10 and box[3] <= area[3]


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
