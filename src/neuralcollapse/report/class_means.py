"""Figures of the class means and the classifier: their cosines, and how they move to the simplex."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from neuralcollapse.geometry.frames import nearest_simplex_etf, simplex_etf
from neuralcollapse.report.figure import COLORS, Axis, Figure, HeatMap, Points3D
from neuralcollapse.report.thinning import evenly
from neuralcollapse.runs.reading import Run
from neuralcollapse.runs.records import Geometry

_MAPS, _MOTIONS = 40, 50  # steps at most, of the heat map and of the motion
_ALL_STEPS = 60  # of all runs that one figure lets one choose from, together
_HEAT_MAP_VALUES = 200_000  # in all steps together, so that the page stays small
_MAPPED = 240  # classes at most on the heat map, whose cells are finer than a pixel beyond
_MOTION_VALUES = 100_000  # in all steps together
_NUMBERED = 12  # up to so many classes, cells show their numbers
_NAMED = 30  # with more classes than that, names are shown only under the pointer
_LETTERS = 24  # of a class's name beside the heat map


def geometry_figures(runs: Sequence[Run]) -> list[Figure]:
    """The cosines and the motion of the class means, of one run at a time, to be chosen from a list."""
    seen = [run for run in runs if run.geometries]
    if not seen:
        return []
    figures = []
    for draw, alone in ((cosine_map, _MAPS), (simplex_motion, _MOTIONS)):
        most = alone if len(seen) == 1 else max(4, _ALL_STEPS // len(seen))
        first, *rest = (draw(run.geometries, run.class_names, run.unit, most) for run in seen)
        others = {run.name: figure for run, figure in zip(seen[1:], rest, strict=True)}
        figures.append(replace(first, others=others, own=seen[0].name if others else ""))
    return figures


def cosine_map(
    geometries: Sequence[Geometry], class_names: Sequence[str], unit: str = "epoch", most: int = _MAPS
) -> Figure:
    """Cosines between centred class means, at no more than `most` epochs (or steps, as `unit` says)."""
    geometries, class_names = _without_empty_classes(geometries, class_names)
    count = len(class_names)
    target = -1 / (max(count, 2) - 1)
    shown = evenly(count, _MAPPED) if count else []
    steps = max(2, min(most, _HEAT_MAP_VALUES // max(len(shown), 1) ** 2))
    chosen = [geometries[i] for i in evenly(len(geometries), steps)]
    cosines = np.array([_cosines(geometry.centred[shown]) for geometry in chosen])
    cosines[:, range(len(shown)), range(len(shown))] = math.nan
    away = np.abs(cosines[-1] - target)  # the scale is that of the end, where differences are small
    reach = max(float(away[np.isfinite(away)].max(initial=0.0)), 0.01)
    names = _short([class_names[i] for i in shown])
    heat = HeatMap(
        names,
        names,
        cosines,
        target - reach,
        target + reach,
        "cos",
        "{y} and {x}: cos {z:.3f}",
        numbers=count <= _NUMBERED,
    )

    off = cosines[-1][np.isfinite(cosines[-1])]
    span = f"off the diagonal from {off.min():.3f} to {off.max():.3f}" if len(off) else "undefined"
    caption = (
        f"In a simplex ETF every pair has cosine -1/(K-1) = {target:.3f}, the middle of the scale, which is that of "
        f"the last {unit}."
    )
    if len(shown) < count:
        caption += f" Shown: {len(shown):,} of the {count:,} classes, evenly spread."
    caption += "" if count <= _NAMED else " Classes are named under the pointer."
    alt = (
        f"Heat map of the cosines between {count} class means at {unit} {chosen[-1].epoch}: {span}, where a simplex "
        f"ETF has {target:.3f}."
    )
    axis = Axis(named=count <= _NAMED)
    epochs = [str(geometry.epoch) for geometry in chosen]
    return Figure("cosines", "Cosines between class means", caption, alt, [heat], axis, axis, steps=epochs, step=unit)


def simplex_motion(
    geometries: Sequence[Geometry], class_names: Sequence[str], unit: str = "epoch", most: int = _MOTIONS
) -> Figure:
    """Class means and classifier rows in three dimensions, moving to the vertices of the simplex."""
    geometries, names = _without_empty_classes(geometries, class_names)
    steps_there = max(2, min(most, _MOTION_VALUES // (6 * max(len(names), 1))))
    geometries = [geometries[i] for i in evenly(len(geometries), steps_there)]
    project, vertices = _view(geometries[-1])
    colors = [COLORS[i % len(COLORS)] for i in range(len(names))]
    means = np.array([project(geometry.centred) for geometry in geometries])
    rows = np.array([project(geometry.weight) for geometry in geometries])
    marks = [
        Points3D(
            "class means",
            means,
            colors,
            names,
            spokes=True,
            labelled=len(names) <= _NAMED,
            hover="mean of class {text}",
        ),
        Points3D("classifier rows", rows, colors, names, 4, "diamond", hover="classifier row of class {text}"),
    ]
    if vertices is not None:
        marks.append(Points3D("vertices of the simplex", vertices, "#94a3b8", size=12, symbol="ring"))
    seen_in = (
        "projected so that the simplex's vertices lie apart (angles are not true)"
        if vertices is not None
        else "in the three directions of their largest spread (d < K-1 holds no simplex)"
    )
    press = " Drag to turn, press play." if len(geometries) > 1 else ""
    caption = f"Class means about their common mean, each {unit} at the same total length, {seen_in}.{press}"
    alt = f"Three-dimensional view of {len(names)} class means and classifier rows by {unit}, {seen_in}."
    steps = [str(geometry.epoch) for geometry in geometries]
    return Figure("simplex-motion", "Class means moving to the simplex", caption, alt, marks, steps=steps, step=unit)


def _without_empty_classes(
    geometries: Sequence[Geometry], class_names: Sequence[str]
) -> tuple[list[Geometry], list[str]]:
    """Without the classes that had no samples, whose means are undefined."""
    seen = np.logical_and.reduce([np.isfinite(geometry.means).all(1) for geometry in geometries])
    names = [name for name, there in zip(class_names, seen, strict=True) if there]
    if seen.all():
        return list(geometries), names
    return [
        replace(each, means=each.means[seen], weight=each.weight[seen], bias=each.bias[seen]) for each in geometries
    ], names


def _short(names: Sequence[str]) -> list[str]:
    """Names that leave room for the map, made different where they are equal, as equal ones would share a row."""
    end = _LETTERS // 3  # names that begin alike often end in what tells them apart
    cut = [name if len(name) <= _LETTERS else f"{name[: _LETTERS - 1 - end]}…{name[-end:]}" for name in names]
    times = Counter(cut)
    return [name if times[name] == 1 else f"{name} ({i})" for i, name in enumerate(cut)]


def _cosines(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        unit = vectors.astype(np.float64) / lengths
    return unit @ unit.T


def _view(last: Geometry) -> tuple[Callable[[np.ndarray], np.ndarray], np.ndarray | None]:
    """A map of (K, d) vectors to three dimensions, and where it puts the simplex nearest to the last means.

    With E the nearest simplex ETF and Q (K, 3) points spread over a ball that sum to zero, the map
    `B = (K-1)/K E'Q` is an orthogonal projection (times a number) that takes the vertex `e_k` to `q_k`.
    """
    centred = last.centred.astype(np.float64)
    count, dim = centred.shape
    vertices: np.ndarray | None = None
    if dim >= count - 1 and count >= 2:
        etf, _ = nearest_simplex_etf(torch.from_numpy(centred))
        vertices = _spread(count)
        basis = (count - 1) / count * etf.numpy().T @ vertices
    else:
        basis = np.zeros((dim, 3))
        axes = np.linalg.svd(centred, full_matrices=False)[2][:3]
        basis[:, : len(axes)] = axes.T

    def project(vectors: np.ndarray) -> np.ndarray:
        size = np.linalg.norm(vectors)
        return vectors @ basis * (math.sqrt(count) / size if size > 0 else 0.0)

    return project, vertices


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
