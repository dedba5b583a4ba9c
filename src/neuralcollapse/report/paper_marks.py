"""The traces of a figure for a paper as matplotlib's artists: lines, markers, bands, error bars, bars, heat maps."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from neuralcollapse.report.figures import Figure
from neuralcollapse.report.paper_axes import Axis, wrapped

_POINTS = 0.55  # for each pixel of the page
_ERRORS = {"elinewidth": 0.8, "capsize": 1.8, "capthick": 0.8}
_DASHES: dict[str, Any] = {"solid": "-", "dot": (0, (0.1, 2)), "dash": (0, (3.5, 2.2))}
_RDBU = [  # as in plotly.js, from blue to red (Python's plotly has another of this name, from red to blue)
    (0, "#050aac"),
    (0.35, "#6a89f7"),
    (0.5, "#bebebe"),
    (0.6, "#dcaa84"),
    (0.7, "#e6915a"),
    (1, "#b20a1c"),
]
_MANY = 2500  # cells of a heat map; more are a picture within SVG and PDF
_SCREEN = "type text hovertemplate hoverinfo legendgroup showlegend error_y.thickness colorbar.thickness colorbar.len"
_DRAWN = {  # of a trace; besides, what counts on a screen only
    "scatter": "x y name mode line.color line.width line.dash marker.color marker.size fill fillcolor error_y.type "
    "error_y.array",
    "bar": "x y name marker.color",
    "heatmap": "x y z zmin zmax colorscale colorbar.title.text",
}
_VALUES: dict[str, Any] = {
    "mode": ("lines", "markers", "lines+markers"),
    "line.dash": _DASHES,
    "fill": ("tonexty",),
    "error_y.type": ("data",),
    "colorscale": ("RdBu",),
}
_Trace = dict[str, Any]


def check(figure: Figure) -> None:
    """Raise a ValueError for the first thing of a figure that is not drawn here."""
    for trace in figure.data:
        drawn = [*_DRAWN.get(trace["type"], "").split(), *_SCREEN.split()]
        for name, value in _flat(trace):
            if (name == "type" and value not in _DRAWN) or name not in drawn or value not in _VALUES.get(name, [value]):
                raise ValueError(f"figure {figure.name!r}: no way to draw the {name} {value!r} for a paper")


def draw_marks(figure: Figure, ax: Any, x: Axis, y: Axis) -> list[tuple[str, Any]]:
    """Draw the traces; returns the names and artists of those that a legend shows."""
    entries = []
    for number, trace in enumerate(figure.data):
        match trace["type"]:
            case "scatter":
                handle = _scatter(ax, x, y, trace)
                if "fill" in trace:
                    _fill(ax, x, y, figure.data[number - 1], trace)
            case "bar":
                handle = _bar(ax, x, y, trace, number, len(figure.data))
            case "heatmap":
                handle = None
                _heat_map(ax, x, y, trace)
        if handle is not None and trace.get("showlegend", True):
            entries.append((trace["name"], handle))
    return entries


def _flat(spec: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in spec.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{within}{key}.")
        else:
            yield f"{within}{key}", value


def _scatter(ax: Any, x: Axis, y: Axis, trace: _Trace) -> Any:
    """The line with its markers, None if it is but the edge of a band."""
    at, values = x.shown(x.places(trace["x"])), y.shown(y.places(trace["y"]))
    line, marker = trace.get("line", {}), trace.get("marker", {})
    color = line.get("color") or marker["color"]
    if "error_y" in trace:
        sizes = y.places(trace["error_y"]["array"])
        ax.errorbar(at, values, sizes, ecolor=color, **_ERRORS, fmt="none", zorder=2.4)
    width = line.get("width", 2) if "lines" in trace["mode"] else 0
    marked = "markers" in trace["mode"]
    if not width and not marked:
        return None
    (handle,) = ax.plot(
        at,
        values,
        color=color,
        linewidth=width * _POINTS,
        linestyle=_DASHES[line.get("dash", "solid")] if width else "none",
        marker="o" if marked else "none",
        markersize=marker.get("size", 6) * _POINTS,
        markeredgewidth=0,
        zorder=2.5,
    )
    return handle


def _fill(ax: Any, x: Axis, y: Axis, before: _Trace, trace: _Trace) -> None:
    low, high = y.places(before["y"]), y.places(trace["y"])
    red, green, blue, alpha = map(float, re.findall(r"[\d.]+", trace["fillcolor"]))
    color = (red / 255, green / 255, blue / 255, alpha)
    ax.fill_between(x.places(trace["x"]), low, high, facecolor=color, edgecolor="none", linewidth=0, zorder=1.5)


def _bar(ax: Any, x: Axis, y: Axis, trace: _Trace, number: int, count: int) -> Any:
    width = 0.8 / count
    at = x.places(trace["x"]) + (number - (count - 1) / 2) * width
    heights = np.nan_to_num(y.places(trace["y"]))
    gap = 0.94 if count > 1 else 1
    return ax.bar(at, heights, width * gap, color=trace["marker"]["color"], linewidth=0, zorder=2)


def _heat_map(ax: Any, x: Axis, y: Axis, trace: _Trace) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    z = np.array(trace["z"], dtype=float)
    many = z.size > _MANY
    mesh = ax.pcolormesh(
        x.edges(trace["x"]),
        y.edges(trace["y"]),
        np.ma.masked_invalid(z),
        cmap=LinearSegmentedColormap.from_list("scale", _RDBU, N=256),
        vmin=trace["zmin"],
        vmax=trace["zmax"],
        rasterized=many,
        edgecolors="none" if many else "face",  # no seams between cells
        linewidth=0 if many else 0.2,
        zorder=1,
    )
    bar = ax.figure.colorbar(mesh, ax=ax, fraction=0.06, pad=0.03, aspect=22)
    bar.outline.set_visible(False)
    bar.ax.set_title(wrapped(trace["colorbar"]["title"]["text"], 20), fontsize=7, pad=4)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    if "scaleanchor" in y.spec:
        ax.set_aspect("equal", adjustable="box")
