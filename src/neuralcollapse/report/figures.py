"""From records to interactive figures, as plain Plotly specifications (dicts, no plotly import)."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from neuralcollapse.geometry.frames import nearest_simplex_etf, simplex_etf
from neuralcollapse.runs.records import MEASURES, Geometry, Record
from neuralcollapse.runs.words import number

COLORS = ("#3b82f6", "#f59e0b", "#10b981", "#ec4899", "#8b5cf6", "#06b6d4", "#ef4444", "#84cc16", "#f97316", "#64748b")
_FRAMES = 40
_HEAT_MAP_VALUES = 200_000  # of all its frames together, so that the page stays small
_NAMED = 30  # more classes than that have no names in the picture, only under the pointer
_LETTERS = 24  # of a class's name beside the heat map
_TALL = 520  # pixels, of the figures with a slider


@dataclass(frozen=True)
class Figure:
    """A figure with its words.

    Attributes:
        name: its id.
        title: above it.
        caption: below the title.
        alt: a text for those who cannot see it.
        data: Plotly traces.
        layout: a Plotly layout.
        frames: what the traces become, each with the name of its step; the page adds a slider and a play button.
        step: what the frames count, such as "epoch".
        others: the same figure for other runs, by the name of the run; the page adds a list to choose from.
        own: the name of the run that it shows itself, where there are others.
    """

    name: str
    title: str
    caption: str
    alt: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    frames: list[dict[str, Any]] = field(default_factory=list)
    step: str = "epoch"
    others: dict[str, Figure] = field(default_factory=dict)
    own: str = ""


def loss_curve(records: Sequence[Record], unit: str = "epoch") -> Figure:
    """Cross-entropy on the training and test set by epoch (or another unit), log axis."""
    return _split_curve(records, unit, "loss", "Loss", "Cross-entropy in eval mode.", {"type": "log"})


def accuracy_curve(records: Sequence[Record], unit: str = "epoch") -> Figure:
    """Accuracy on the training and test set by epoch."""
    return _split_curve(
        records, unit, "accuracy", "Accuracy", "Share of samples classified rightly.", {"tickformat": ".0%"}
    )


def variability_curve(records: Sequence[Record], unit: str = "epoch") -> Figure:
    """NC1 and its variants by epoch, log axis."""
    return _measure_curve(
        records,
        unit,
        ("nc1", "nc1_quotient", "nc1_cdnv"),
        "variability",
        "NC1: variability within classes",
        "Spread of the features within classes against spread between them, on the training set. Falls to 0.",
        {"type": "log"},
    )


def simplex_curve(records: Sequence[Record], unit: str = "epoch") -> Figure:
    """NC2 and NC3 by epoch."""
    return _measure_curve(
        records,
        unit,
        ("nc2", "nc2_means", "nc3"),
        "simplex",
        "NC2 and NC3: distance from the simplex",
        "How far the classifier's rows, the class means, and the two together are from a simplex ETF. Fall to 0.",
        {"rangemode": "tozero"},
    )


def head_curve(records: Sequence[Record], unit: str = "epoch") -> Figure:
    """The last layer's objective, the exact minimum for its class counts, and the pointwise bound, by epoch."""
    lines = [
        (label, [r.head.get(key, math.nan) for r in records])
        for key, label in (
            ("objective", "the head"),
            ("minimum", "exact minimum"),
            ("lower_bound", "bound from the head"),
        )
    ]
    ratio = records[-1].head.get("ratio", math.nan)
    caption = (
        "The last layer as a point of the unconstrained feature model: its objective, the exact global minimum for "
        "its class counts and decays, and the lower bound that its class means certify. "
        f"At the end {number(ratio)} times the minimum."
    )
    return _curve(records, unit, lines, "head", "The head against the exact optimum", caption, {"type": "log"})


def cosine_map(
    geometries: Sequence[Geometry], class_names: Sequence[str], most: int = _FRAMES, unit: str = "epoch"
) -> Figure:
    """Cosines between centred class means, a slider over at most so many epochs."""
    geometries, class_names = _seen(geometries, class_names)
    count = len(class_names)
    chosen = _thin(geometries, max(2, min(most, _HEAT_MAP_VALUES // max(count, 1) ** 2)))
    names = [html.escape(name) for name in _short(class_names)]

    target = -1 / (max(count, 2) - 1)
    cosines = [_cosines(geometry.centred) for geometry in chosen]
    for matrix in cosines:
        np.fill_diagonal(matrix, np.nan)
    away = np.abs(np.array(cosines) - target)
    reach = max(float(away[np.isfinite(away)].max(initial=0.0)), 0.01)

    def trace(matrix: np.ndarray) -> dict[str, Any]:
        return {"type": "heatmap", "z": plain_numbers(matrix, 3)}

    first = trace(cosines[-1]) | {
        "x": names,
        "y": names,
        "zmin": target - reach,
        "zmax": target + reach,
        "colorscale": "RdBu",
        "colorbar": {"title": {"text": "cos"}, "thickness": 12, "len": 0.8},
        "hovertemplate": "%{y} and %{x}: cos %{z:.3f}<extra></extra>",
    }
    off = cosines[-1][np.isfinite(cosines[-1])]
    span = f"off the diagonal from {off.min():.3f} to {off.max():.3f}" if len(off) else "undefined"
    axis: dict[str, Any] = {"type": "category", "constrain": "domain"}
    axis |= {} if count <= _NAMED else {"showticklabels": False, "ticks": ""}
    layout = {
        "height": _TALL,
        "margin": {"l": 40, "r": 10, "t": 40, "b": 20},
        "xaxis": axis | {"side": "top"},
        "yaxis": axis | {"autorange": "reversed", "scaleanchor": "x"},
    }
    caption = f"In a simplex ETF every pair has cosine -1/(K-1) = {target:.3f}, the middle of the scale."
    caption += "" if count <= _NAMED else " Classes are named under the pointer."
    alt = (
        f"Heat map of the cosines between {count} class means at {unit} {chosen[-1].epoch}: {span}, where a simplex "
        f"ETF has {target:.3f}."
    )
    frames = [
        {"name": str(geometry.epoch), "data": [trace(matrix)]} for geometry, matrix in zip(chosen, cosines, strict=True)
    ]
    return Figure("cosines", "Cosines between class means", caption, alt, [first], layout, frames, unit)


def simplex_motion(
    geometries: Sequence[Geometry], class_names: Sequence[str], step: str = "epoch", most: int = _FRAMES + 10
) -> Figure:
    """Class means and classifier rows in three dimensions, moving to the vertices of the simplex."""
    geometries, class_names = _seen(geometries, class_names)
    geometries = _thin(geometries, most)
    project, targets = _view(geometries[-1])
    names = [html.escape(name) for name in class_names]
    colors = [COLORS[i % len(COLORS)] for i in range(len(names))]

    def moving(geometry: Geometry) -> list[dict[str, Any]]:
        means, rows = project(geometry.centred), project(geometry.weight)
        spokes = np.full((3 * len(means), 3), np.nan)
        spokes[0::3], spokes[1::3] = 0, means
        return [_points(spokes), _points(means), _points(rows)]

    spokes, means, rows = moving(geometries[-1])
    data = [
        spokes | {"mode": "lines", "line": {"color": "#94a3b8", "width": 3}, "showlegend": False, "hoverinfo": "skip"},
        means
        | {
            "mode": "markers+text" if len(names) <= _NAMED else "markers",
            "name": "class means",
            "text": names,
            "marker": {"size": 7, "color": colors},
            "hovertemplate": "mean of class %{text}<extra></extra>",
        },
        rows
        | {
            "mode": "markers",
            "name": "classifier rows",
            "text": names,
            "marker": {"size": 4, "color": colors, "symbol": "diamond"},
            "hovertemplate": "classifier row of class %{text}<extra></extra>",
        },
    ]
    if targets is not None:
        data.append(
            _points(targets)
            | {
                "mode": "markers",
                "name": "vertices of the simplex",
                "marker": {"size": 12, "color": "#94a3b8", "symbol": "circle-open"},
                "hoverinfo": "skip",
            }
        )
    axis = {"range": [-1.6, 1.6], "showticklabels": False, "title": {"text": ""}, "showspikes": False}
    layout = {
        "height": _TALL,
        "margin": {"l": 10, "r": 10, "t": 40, "b": 20},
        "legend": {"orientation": "h", "x": 0, "y": 1.08},
        "scene": {"xaxis": axis, "yaxis": axis, "zaxis": axis, "aspectmode": "cube"},
    }
    seen_in = (
        "projected to three dimensions so that the simplex's vertices lie apart (angles are not the true ones)"
        if targets is not None
        else "in the three directions of their largest spread (d < K-1 holds no simplex)"
    )
    press = " Press play." if len(geometries) > 1 else ""
    caption = f"Class means about their common mean, each {step} at the same total length, {seen_in}.{press}"
    alt = f"Three-dimensional view of {len(names)} class means and classifier rows by {step}, {seen_in}."
    frames = [{"name": str(geometry.epoch), "data": moving(geometry), "traces": [0, 1, 2]} for geometry in geometries]
    return Figure("simplex-motion", "Class means moving to the simplex", caption, alt, data, layout, frames, step)


def all_figures(
    records: Sequence[Record], geometries: Sequence[Geometry], class_names: Sequence[str], unit: str = "epoch"
) -> list[Figure]:
    """The figures of a run, in reading order; `unit` is what its records count."""
    figures = [curve(records, unit) for curve in (loss_curve, accuracy_curve, variability_curve, simplex_curve)]
    if any(record.head for record in records):
        figures.append(head_curve(records, unit))
    if geometries:
        figures += [cosine_map(geometries, class_names, unit=unit), simplex_motion(geometries, class_names, unit)]
    return figures


def _split_curve(
    records: Sequence[Record], unit: str, key: str, title: str, caption: str, axis: dict[str, Any]
) -> Figure:
    train, test = [r.train.get(key, math.nan) for r in records], [r.test.get(key, math.nan) for r in records]
    lines = [("train", train), ("test", test)] if any(r.test for r in records) else [("train", train)]
    return _curve(records, unit, lines, key, title, caption, axis)


def _measure_curve(
    records: Sequence[Record], unit: str, keys: Sequence[str], name: str, title: str, caption: str, axis: dict[str, Any]
) -> Figure:
    lines = [(MEASURES[key][0], [r.measures.get(key, math.nan) for r in records]) for key in keys]
    return _curve(records, unit, lines, name, title, caption, axis)


def _curve(
    records: Sequence[Record],
    unit: str,
    lines: Sequence[tuple[str, list[float]]],
    name: str,
    title: str,
    caption: str,
    axis: dict[str, Any],
) -> Figure:
    epochs = [record.epoch for record in records]
    data = [
        {
            "type": "scatter",
            "mode": "lines" if len(epochs) > 1 else "markers",
            "name": label,
            "x": epochs,
            "y": plain_numbers(values, 6),
            "line": {"color": color, "width": 2},
            "hovertemplate": "%{y:.4g}",
        }
        for (label, values), color in zip(lines, COLORS, strict=False)
    ]
    if axis.get("type") == "log":
        positive = [value for _, values in lines for value in values if value > 0]
        wide = bool(positive) and max(positive) > 30 * min(positive)
        axis = axis | {"exponentformat": "e", "dtick": 1 if wide else "D2"}
    whole = {"tickformat": "d", "dtick": 1} if epochs and max(epochs) < 8 else {}
    layout = {
        "height": 320,
        "hovermode": "x unified",
        "xaxis": {"title": {"text": unit}} | whole,
        "yaxis": axis,
        "legend": {"orientation": "h", "y": 1.12, "x": 0},
    }
    ends = ", ".join(f"{label} from {number(values[0])} to {number(values[-1])}" for label, values in lines)
    return Figure(name, title, caption, f"{title} from {unit} {epochs[0]} to {epochs[-1]}: {ends}.", data, layout)


def _seen(geometries: Sequence[Geometry], class_names: Sequence[str]) -> tuple[list[Geometry], list[str]]:
    """Without the classes that had no samples, whose means are undefined."""
    seen = np.logical_and.reduce([np.isfinite(geometry.means).all(1) for geometry in geometries])
    names = [name for name, there in zip(class_names, seen, strict=True) if there]
    if seen.all():
        return list(geometries), names
    return [
        replace(each, means=each.means[seen], weight=each.weight[seen], bias=each.bias[seen]) for each in geometries
    ], names


def _short(names: Sequence[str]) -> list[str]:
    """Names that leave room for the map, all different, as an axis takes equal ones for one."""
    cut = [name if len(name) <= _LETTERS else f"{name[: _LETTERS - 1]}…" for name in names]
    return [name if cut.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(cut)]


def _view(last: Geometry) -> tuple[Callable[[np.ndarray], np.ndarray], np.ndarray | None]:
    """A map of (K, d) vectors to three dimensions, and where it puts the simplex nearest to the last means.

    With E the nearest simplex ETF and Q (K, 3) points spread over a ball that sum to zero, the map
    B = (K-1)/K E'Q is an orthogonal projection (times a number) that takes the vertex e_k to q_k.
    """
    centred = last.centred.astype(np.float64)
    count, dim = centred.shape
    targets: np.ndarray | None = None
    if dim >= count - 1 and count >= 2:
        etf, _ = nearest_simplex_etf(torch.from_numpy(centred))
        targets = _spread(count)
        basis = (count - 1) / count * etf.numpy().T @ targets
    else:
        basis = np.zeros((dim, 3))
        axes = np.linalg.svd(centred, full_matrices=False)[2][:3]
        basis[:, : len(axes)] = axes.T

    def project(vectors: np.ndarray) -> np.ndarray:
        size = np.linalg.norm(vectors)
        return vectors @ basis * (math.sqrt(count) / size if size > 0 else 0.0)

    return project, targets


def _spread(count: int) -> np.ndarray:
    """(K, 3) points of mean square length 1 that sum to zero, with equal spread in each of three directions."""
    if count <= 4:
        points = np.zeros((count, 3))
        points[:, : count - 1] = simplex_etf(count, count - 1, dtype=torch.float64).numpy()
        return points
    turn = np.arange(count) * math.pi * (3 - math.sqrt(5))  # a Fibonacci spiral over the sphere
    height = 1 - 2 * (np.arange(count) + 0.5) / count
    ring = np.sqrt(1 - height**2)
    points = np.stack([ring * np.cos(turn), ring * np.sin(turn), height], axis=1)
    left, _, right = np.linalg.svd(points - points.mean(0), full_matrices=False)
    return left @ right * math.sqrt(count / 3)


def _cosines(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        unit = vectors.astype(np.float64) / lengths
    return unit @ unit.T


def _points(xyz: np.ndarray) -> dict[str, Any]:
    x, y, z = (plain_numbers(column, 4) for column in xyz.T)
    return {"type": "scatter3d", "x": x, "y": y, "z": z}


def plain_numbers(values: Any, digits: int) -> Any:
    """Nested lists of floats, short in JSON: `digits` significant digits for curves, NaN as null."""
    if isinstance(values, np.ndarray):
        values = values.tolist()
    if isinstance(values, list):
        return [plain_numbers(value, digits) for value in values]
    return float(f"{values:.{digits}g}") if math.isfinite(values) else None


def _thin(items: Sequence[Geometry], most: int) -> list[Geometry]:
    """At most `most` of the items, the first and the last among them."""
    picks = np.unique(np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int))
    return [items[i] for i in picks]
