"""A figure as a Plotly specification: what the page's script draws. Plain dicts, no plotly import."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from neuralcollapse.report.figure import GREY, Axis, Band, Bars, Dots, Figure, HeatMap, Line, Mark, Points3D

_HEIGHT, _TALL = 340, 520  # pixels; the tall ones are heat maps and figures in three dimensions
_BAND_OPACITY = 0.18
_SPOKE = "#94a3b8"
_SYMBOLS = {"circle": "circle", "diamond": "diamond", "ring": "circle-open"}
_FEW_STEPS = 12  # whole numbers up to which each gets a tick
_UNNAMED = "<extra></extra>"  # keeps the name of the trace away from the pointer
_LEGEND = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}
_Spec = dict[str, Any]


def plotly_spec(figure: Figure) -> _Spec:
    """The figure as plain JSON values: its words, `data` and `layout` of Plotly, and `frames`.

    A frame has a `name`, and in `data` the new values of the `traces` that move.
    """
    traces: list[_Spec] = []
    moving: list[tuple[int, list[_Spec]]] = []
    bands = {mark.name for mark in figure.marks if isinstance(mark, Band)}
    for mark in figure.marks:
        if isinstance(mark, Line) and mark.only_selected:
            continue
        for trace, moves in _traces(mark, bands):
            moving += [(len(traces), moves)] if len(moves) > 1 else []
            traces.append(trace)
    steps = figure.steps if moving else ()
    return {
        "name": figure.name,
        "title": figure.title,
        "caption": figure.caption,
        "alt": figure.alt,
        "data": traces,
        "layout": _layout(figure),
        "frames": [
            {"name": name, "data": [moves[i] for _, moves in moving], "traces": [trace for trace, _ in moving]}
            for i, name in enumerate(steps)
        ],
        "step": figure.step,
        "own": figure.own,
        # pairs, since JavaScript would put names that are numbers first
        "others": [[name, plotly_spec(other)] for name, other in figure.others.items()],
    }


def _traces(mark: Mark, bands: set[str]) -> list[tuple[_Spec, list[_Spec]]]:
    """The traces of a mark, each with its values step by step where it moves."""
    match mark:
        case Line():
            return [(_line(mark) | ({"legendgroup": _text(mark.name)} if mark.name in bands else {}), [])]
        case Dots():
            return [(_dots(mark), [])]
        case Band():
            return [(edge, []) for edge in _band(mark)]
        case Bars():
            return [(_bars(mark), [])]
        case HeatMap():
            return [_heat_map(mark)]
        case Points3D():
            return _points(mark)


def _line(mark: Line) -> _Spec:
    drawn = "markers" if len(mark.x) < 2 else "lines+markers" if mark.markers else "lines"
    trace = _xy(mark) | {"type": "scatter", "mode": drawn, "line": {"color": mark.color, "width": mark.width}}
    if mark.dash != "solid":
        trace["line"]["dash"] = mark.dash
    if len(mark.errors):
        trace["error_y"] = {"type": "data", "array": _values(mark.errors, mark.digits), "thickness": 1}
    return trace if mark.legend else trace | {"showlegend": False}


def _dots(mark: Dots) -> _Spec:
    marker = {"color": mark.color, "size": 9, "symbol": "diamond-open" if mark.hollow else "circle"}
    trace = _xy(mark)
    trace["hovertemplate"] += _UNNAMED
    return trace | {"type": "scatter", "mode": "markers", "marker": marker}


def _xy(mark: Line | Dots) -> _Spec:
    trace: _Spec = {
        "name": _text(mark.name),
        "x": _values(mark.x, mark.digits),
        "y": _values(mark.y, mark.digits),
    }
    trace |= {"hovertemplate": _hover(mark.hover)} if mark.hover else {"hoverinfo": "skip"}
    return trace | ({"text": _values(mark.texts, 0)} if mark.texts else {})


def _band(mark: Band) -> Iterable[_Spec]:
    quiet = {"showlegend": False, "hoverinfo": "skip", "legendgroup": _text(mark.name), "name": _text(mark.name)}
    red, green, blue = (int(mark.color[i : i + 2], 16) for i in (1, 3, 5))
    fill = {"fill": "tonexty", "fillcolor": f"rgba({red},{green},{blue},{_BAND_OPACITY})"}
    for values, filled in ((mark.low, {}), (mark.high, fill)):
        yield (
            {
                "type": "scatter",
                "mode": "lines",
                "x": _values(mark.x, mark.digits),
                "y": _values(values, mark.digits),
                "line": {"color": mark.color, "width": 0},
            }
            | quiet
            | filled
        )


def _bars(mark: Bars) -> _Spec:
    return {
        "type": "bar",
        "name": _text(mark.name),
        "x": _values(mark.x, mark.digits),
        "y": _values(mark.y, mark.digits),
        "marker": {"color": mark.color},
        "hovertemplate": _hover(mark.hover),
    }


def _heat_map(mark: HeatMap) -> tuple[_Spec, list[_Spec]]:
    steps = mark.z if mark.z.ndim == 3 else mark.z[None]
    cells = [{"type": "heatmap", "z": _values(z.tolist(), mark.digits)} for z in steps]
    trace = {
        "x": _values(mark.x, mark.digits),
        "y": _values(mark.y, mark.digits),
        "zmin": mark.low,
        "zmax": mark.high,
        "colorscale": "RdBu",
        "colorbar": {"title": {"text": _text(mark.title)}, "thickness": 12, "len": 0.8},
        "hovertemplate": _hover(mark.hover) + _UNNAMED,
    }
    return trace | cells[-1], cells


def _points(mark: Points3D) -> list[tuple[_Spec, list[_Spec]]]:
    steps = mark.points if mark.points.ndim == 3 else mark.points[None]
    places = [_xyz(points, mark.digits) for points in steps]
    trace: _Spec = {
        "mode": "markers+text" if mark.labelled else "markers",
        "name": _text(mark.name),
        "marker": {"size": mark.size, "color": mark.colors, "symbol": _SYMBOLS[mark.symbol]},
    }
    trace |= {"hovertemplate": _hover(mark.hover) + _UNNAMED} if mark.hover else {"hoverinfo": "skip"}
    trace |= {"text": _values(mark.texts, 0)} if mark.texts else {}
    found = [(trace | places[-1], places)]
    if mark.spokes:
        spokes = [_xyz(_spokes(points), mark.digits) for points in steps]
        lines: _Spec = {"mode": "lines", "line": {"color": _SPOKE, "width": 3}}
        lines |= {"showlegend": False, "hoverinfo": "skip"}
        found.insert(0, (lines | spokes[-1], spokes))
    return found


def _spokes(points: np.ndarray) -> np.ndarray:
    """One broken line that goes from the origin to each point."""
    line = np.full((3 * len(points), 3), np.nan)
    line[0::3], line[1::3] = 0, points
    return line


def _xyz(points: np.ndarray, digits: int) -> _Spec:
    x, y, z = (_values(column.tolist(), digits) for column in points.T)
    return {"type": "scatter3d", "x": x, "y": y, "z": z}


def _layout(figure: Figure) -> _Spec:
    if figure.three_dimensional:
        axis = {"range": [-1.6, 1.6], "showticklabels": False, "title": {"text": ""}, "showspikes": False}
        return {
            "height": _TALL,
            "margin": {"l": 10, "r": 10, "t": 40, "b": 20},
            "legend": {"orientation": "h", "x": 0, "y": 1.08},
            "scene": {"xaxis": axis, "yaxis": axis, "zaxis": axis, "aspectmode": "cube"},
        }
    heat = any(isinstance(mark, HeatMap) for mark in figure.marks)
    layout: _Spec = {
        "height": _TALL if heat else _HEIGHT,
        "legend": _LEGEND,
        "xaxis": _axis(figure, "x"),
        "yaxis": _axis(figure, "y"),
    }
    if figure.read_together:
        layout["hovermode"] = "x unified"
    if figure.events:
        layout |= _events(figure)
    if any(isinstance(mark, Bars) for mark in figure.marks):
        layout["barmode"] = "group"
    if figure.matrix:
        layout["margin"] = {"l": 40, "r": 10, "t": 40, "b": 20}
        layout["xaxis"] |= {"constrain": "domain", "side": "top"}
        layout["yaxis"] |= {"constrain": "domain", "scaleanchor": "x", "autorange": "reversed"}
    return layout


def _events(figure: Figure) -> _Spec:
    """A thin upright line for each event, with its words along it, on the side that has room."""
    values = _extent(figure, "x") or [0.0]
    middle = (min(values) + max(values)) / 2
    line = {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "line": {"color": GREY, "width": 1, "dash": "dot"}}
    low = figure.y.percent  # where curves rise there is room below
    words: _Spec = {"yref": "paper", "y": 0.02 if low else 0.98, "yanchor": "bottom" if low else "top"}
    words |= {"textangle": -90, "showarrow": False, "font": {"size": 11, "color": GREY}}
    return {
        "shapes": [line | {"x0": x, "x1": x} for x, _ in figure.events],
        "annotations": [
            words | {"x": x, "xanchor": "left" if x <= middle else "right", "text": _text(text)}
            for x, text in figure.events
        ],
    }


def _axis(figure: Figure, which: str) -> _Spec:
    axis: Axis = getattr(figure, which)
    spec: _Spec = {"title": {"text": _text(axis.title)}} if axis.title else {}
    if figure.categories(which):
        return spec | {"type": "category"} | ({} if axis.named else {"showticklabels": False, "ticks": ""})
    values = _extent(figure, which)
    if axis.log:
        spec |= {"type": "log"} | _decades(values)
    if axis.range:
        spec["range"] = [math.log10(bound) for bound in axis.range] if axis.log else list(axis.range)
    if axis.ticks:
        spec |= {"tickvals": list(axis.ticks), "ticktext": [f"{x:g}" for x in axis.ticks]}
    if axis.percent:
        spec["tickformat"] = ".0%"
    if axis.whole and max(values, default=0) < _FEW_STEPS:
        spec |= {"tickformat": "d", "dtick": 1}
    if axis.from_zero:
        spec["rangemode"] = "tozero"
    if axis.zero_line:
        spec["zeroline"] = True
    return spec


def _extent(figure: Figure, which: str) -> list[float]:
    """All finite numbers on an axis."""
    names = ("x",) if which == "x" else ("y", "low", "high")
    marks = [mark for mark in figure.marks if not isinstance(mark, HeatMap | Points3D)]
    return [x for mark in marks for name in names for x in getattr(mark, name, ()) if math.isfinite(x)]


def _decades(values: Sequence[float]) -> _Spec:
    """Ticks of a logarithmic axis: at 1, 2 and 5 over a decade or so, at powers over several, left open over many."""
    seen = [value for value in values if value > 0]
    ratio = max(seen) / min(seen) if seen else 1
    if ratio >= 1e8:
        return {"exponentformat": "power"}
    return {"exponentformat": "e", "dtick": 1 if ratio > 30 else "D2"}


def _text(text: str) -> str:
    """Plain text for Plotly, which reads some HTML."""
    return html.escape(text).replace("\n", "<br>")


def _hover(template: str) -> str:
    """{y:.4g} as Plotly writes it."""
    return re.sub(r"\{((?:x|y|z|text)(?::[^{}]*)?)\}", r"%{\1}", _text(template))


def _values(values: Iterable[Any], digits: int) -> list[Any]:
    """Names and numbers as JSON, however nested: numbers are short, and what is not finite is null."""
    return [_value(value, digits) for value in values]


def _value(value: Any, digits: int) -> Any:
    if isinstance(value, list):
        return _values(value, digits)
    if isinstance(value, str):
        return _text(value)
    if not math.isfinite(value):
        return None
    whole = value == int(value) and abs(value) < 1e15
    return value if isinstance(value, int) else float(value if whole else f"{value:.{digits}g}")
