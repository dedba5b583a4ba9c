"""A figure as plain JSON values: what the script of a page draws (plot.js, space.js)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from neuralcollapse.report.figure import Axis, Band, Bars, Dots, Figure, HeatMap, Line, Mark, Points3D

_Data = dict[str, Any]


def figure_data(figure: Figure) -> _Data:
    """The figure as plain JSON values; numbers are as short as their marks allow, and what is not finite is null.

    Curves over the same points share them: the `x` of a line or band may be the number of an earlier mark, whose `x` it
    has. Marks that move have a first axis of steps.
    """
    marks: list[_Data] = []
    for mark in figure.marks:
        marks.append(_shared(_mark(mark), marks))
    return {
        "name": figure.name,
        "title": figure.title,
        "caption": figure.caption,
        "alt": figure.alt,
        "kind": "space" if figure.three_dimensional else "matrix" if figure.matrix else "flat",
        "marks": marks,
        "x": _axis(figure, "x"),
        "y": _axis(figure, "y"),
        "together": figure.read_together,
        "events": [[x, text] for x, text in figure.events],
        "levels": [[y, text] for y, text in figure.levels],
        "steps": list(figure.steps),
        "step": figure.step,
        "own": figure.own,
        "size": figure.size,
        # pairs, since JavaScript would put names that are numbers first
        "others": [[name, figure_data(other)] for name, other in figure.others.items()],
    }


def _axis(figure: Figure, which: str) -> _Data:
    axis: Axis = getattr(figure, which)
    return {
        "title": axis.title,
        "log": axis.log or axis.page_log,
        "range": list(axis.range) if axis.range else None,
        "ticks": list(axis.ticks),
        "percent": axis.percent,
        "whole": axis.whole,
        "fromZero": axis.from_zero,
        "zeroLine": axis.zero_line,
        "named": axis.named,
        "categories": figure.categories(which),
    }


def _mark(mark: Mark) -> _Data:
    match mark:
        case Line():
            # what a dashed curve shows of the one that it belongs to, such as "test"
            part = mark.name.removeprefix(f"{mark.part_of}, ") if mark.part_of else ""
            return {
                "type": "line",
                **_common(mark),
                "x": _values(mark.x, mark.digits),
                "y": _values(mark.y, mark.digits),
                "dash": mark.dash,
                "width": mark.width,
                "markers": mark.markers or len(mark.x) < 2,
                "errors": _values(mark.errors, mark.digits),
                "texts": list(mark.texts),
                "legend": mark.legend,
                "of": mark.part_of,
                "part": part,
                **_selection(mark),
            }
        case Band():
            return {
                "type": "band",
                "name": mark.name,
                "color": mark.color,
                "x": _values(mark.x, mark.digits),
                "low": _values(mark.low, mark.digits),
                "high": _values(mark.high, mark.digits),
                **_selection(mark),
            }
        case Dots():
            texts = {"texts": list(mark.texts), "hollow": mark.hollow, "labels": list(mark.labels)}
            return {"type": "dots", **_common(mark), **_xy(mark), **texts}
        case Bars():
            return {"type": "bars", **_common(mark), **_xy(mark)}
        case HeatMap():
            steps: np.ndarray = mark.z if mark.z.ndim == 3 else mark.z[None]
            mirrored = bool(np.allclose(steps, steps.swapaxes(1, 2), equal_nan=True)) if _square(steps) else False
            return {
                "type": "heat",
                "x": _values(mark.x, mark.digits),
                "y": _values(mark.y, mark.digits),
                "z": [_values(_rows(z, mirrored), mark.digits) for z in steps],
                "mirrored": mirrored,
                "low": mark.low,
                "high": mark.high,
                "title": mark.title,
                "hover": mark.hover,
                "numbers": mark.numbers,
            }
        case Points3D():
            return _points(mark)


def _square(steps: np.ndarray) -> bool:
    return steps.shape[1] == steps.shape[2]


def _rows(z: np.ndarray, mirrored: bool) -> list[list[float]]:
    """The rows of a heat map; of a symmetric one each up to its diagonal, as the rest says nothing new."""
    return [row[: i + 1] if mirrored else row for i, row in enumerate(z.tolist())]


def _points(mark: Points3D) -> _Data:
    steps = mark.points if mark.points.ndim == 3 else mark.points[None]
    return {
        "type": "points",
        "name": mark.name,
        "points": [_values(points.tolist(), mark.digits) for points in steps],
        "color": mark.colors if isinstance(mark.colors, str) else list(mark.colors),
        "texts": list(mark.texts),
        "size": mark.size,
        "symbol": mark.symbol,
        "spokes": mark.spokes,
        "labelled": mark.labelled,
        "hover": mark.hover,
    }


def _selection(mark: Line | Band) -> _Data:
    """What selection.js reads: the names that a mark belongs to; nothing where it has none."""
    if not mark.selected_by:
        return {}
    hidden = isinstance(mark, Line) and mark.only_selected
    return {"selectedBy": list(mark.selected_by)} | ({"onlySelected": True} if hidden else {})


def _common(mark: Line | Dots | Bars) -> _Data:
    return {"name": mark.name, "color": mark.color, "hover": mark.hover}


def _xy(mark: Dots | Bars) -> _Data:
    return {"x": _values(mark.x, mark.digits), "y": _values(mark.y, mark.digits)}


def _shared(mark: _Data, earlier: list[_Data]) -> _Data:
    """The mark, with the number of an earlier one of the same `x` in its place."""
    if mark["type"] in ("line", "band"):
        for place, other in enumerate(earlier):
            if other.get("x") == mark["x"]:
                return mark | {"x": place}
    return mark


def _values(values: Iterable[Any], digits: int) -> list[Any]:
    """Names and numbers as JSON, however nested: numbers are short, and what is not finite is null."""
    return [_value(value, digits) for value in values]


def _value(value: Any, digits: int) -> Any:
    if isinstance(value, list):
        return _values(value, digits)
    if isinstance(value, str):
        return value
    if not math.isfinite(value):
        return None
    whole = value == int(value) and abs(value) < 1e15
    return int(value) if whole else float(f"{value:.{digits}g}")
