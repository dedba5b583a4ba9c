"""Scree figures: the eigenvalues of features and classifier in order, each spectrum over its largest.

Under collapse those of the class means and of the classifier are level up to K-1 and then end. A dashed line marks the
largest rank that the numbers of samples, classes and dimensions allow.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from neuralcollapse.errors import InputError
from neuralcollapse.report.figure import COLORS, Axis, Figure, Line
from neuralcollapse.report.group_curves import NAMED, group_colors, selections
from neuralcollapse.runs.files import as_path
from neuralcollapse.runs.reading import Group
from neuralcollapse.runs.records import Geometry

if TYPE_CHECKING:
    from neuralcollapse.geometry.spectra import Spectra, Spectrum

_POINTS = 300  # of a line, evenly spread over the logarithm of the number
_FEW = 50  # points that are marked
_WORDS = {
    "between": "between class means, S_B",
    "weight": "classifier, W'W",
    "within": "within classes, S_W",
    "total": "all samples, S_T",
}


class _Curve(NamedTuple):
    name: str
    eigenvalues: np.ndarray
    ceiling: int
    effective: float


def scree(spectra: Spectra) -> Figure:
    """The scree figure of what `neuralcollapse.spectra` returns."""
    return _figure([(name, getattr(spectra, name)) for name in _WORDS], "")


def geometry_scree(geometries: Sequence[Geometry], unit: str = "epoch") -> list[Figure]:
    """The scree figure of the last class means and classifier that a run has kept; none without a spread."""
    found = _of_means_and_classifier(geometries)
    return [_figure(found, f" at {unit} {geometries[-1].epoch:,}")] if found else []


def group_scree(groups: Sequence[Group]) -> list[Figure]:
    """One scree figure of several groups of runs, at their ends: the class means solid, the classifier dotted.

    Each line is of the first run of its group that has kept a geometry with a spread; none without any.
    """
    marks, told = [], []
    for group, color in zip(groups, group_colors(groups), strict=True):
        spectra = next(filter(None, (_of_means_and_classifier(run.geometries) for run in group.runs)), [])
        for (name, each), dash in zip(spectra, ("solid", "dot"), strict=False):
            if each is None or not each.rank:
                continue
            curve = _Curve(_WORDS[name], each.eigenvalues.cpu().numpy(), each.ceiling, each.effective_rank)
            own = group.name if dash == "solid" else f"{group.name}, classifier"
            solid = dash == "solid"
            style: dict[str, Any] = {"legend": solid and len(groups) <= NAMED, "selected_by": selections(group)}
            x, y = _shares(curve)
            few = solid and len(x) < _FEW
            marks.append(Line(own, x, y, color, dash, markers=few, hover="number {x}: {y:.3g}", **style))
            told += [f"{group.name}: effective rank {curve.effective:.3g} of at most {curve.ceiling:,}"] * solid
    if not marks:
        return []
    several = any(len(group.runs) > 1 for group in groups)
    caption = (
        "Eigenvalues over the largest of each: solid, between the class means (S_B); dotted, the classifier (W'W). "
        f"Level up to K-1, then nothing: a simplex.{' Of the first seed of each.' if several else ''}"
    )
    axes = Axis("number of the eigenvalue", log=True), Axis("share of the largest", log=True)
    return [Figure("scree", "Spectra at the end", caption, f"Eigenvalues. {'; '.join(told)}.", marks, *axes)]


def _of_means_and_classifier(geometries: Sequence[Geometry]) -> list[tuple[str, Spectrum | None]]:
    """The spectra of the last class means and classifier; none where there is no spread."""
    if not geometries:
        return []
    import torch

    from neuralcollapse.geometry.spectra import spectrum_of

    last = geometries[-1]
    seen = np.isfinite(last.means).all(1)
    if seen.sum() < 2:
        return []
    means, centre = torch.from_numpy(last.means[seen]), torch.from_numpy(last.global_mean).double()
    between, weight = spectrum_of(means, centre), spectrum_of(torch.from_numpy(last.weight[seen]))
    return [("between", between), ("weight", weight)] if between.rank or weight.rank else []


def write_scree(spectra: Spectra, path: str | Path) -> Path:
    """Draw the eigenvalues of `spectra` on logarithmic axes, one column of a paper wide.

    Args:
        spectra: what `neuralcollapse.spectra` returns.
        path: a file that ends in .png, .svg or .pdf; one that is there is replaced.

    Returns:
        The file.

    Raises:
        InputError: another ending, spectra without eigenvalues, a file that cannot be written, or packages missing.
    """
    from neuralcollapse.geometry.spectra import Spectra
    from neuralcollapse.report.paper import save_figure

    if not isinstance(spectra, Spectra):
        raise InputError(f"expected what spectra(moments, weight) returns, got {type(spectra).__name__}")
    target = as_path(path, "the figure's file")
    figure = scree(spectra)
    if not figure.marks:
        raise InputError("expected spectra with eigenvalues, got none: there is nothing to draw")
    return save_figure(figure, target)


def _shares(curve: _Curve) -> tuple[list[int], list[float]]:
    """Numbers of eigenvalues, evenly spread over their logarithm, and the eigenvalues over the largest."""
    numbers = np.unique(np.geomspace(1, len(curve.eigenvalues), _POINTS).round().astype(int))
    return numbers.tolist(), (curve.eigenvalues[numbers - 1] / curve.eigenvalues[0]).tolist()


def _figure(found: Sequence[tuple[str, Spectrum | None]], when: str) -> Figure:
    curves = [
        (color, _Curve(_WORDS[name], each.eigenvalues.cpu().numpy(), each.ceiling, each.effective_rank))
        for (name, each), color in zip(found, COLORS, strict=False)
        if each is not None and each.rank
    ]
    least = min((float(curve.eigenvalues[-1] / curve.eigenvalues[0]) for _, curve in curves), default=0.1)
    bottom = min(0.1, least)
    marks = []
    for color, curve in curves:
        x, y = _shares(curve)
        hover = "number {x}: {y:.3g}"
        dash = "dot" if curve.name == _WORDS["weight"] else "solid"  # under collapse two curves are one
        marks.append(Line(curve.name, x, y, color, dash, markers=len(x) < _FEW, hover=hover))
    for color, curve in curves:
        name = f"ceiling, {curve.name}"
        ends = [curve.ceiling] * 2
        marks.append(Line(name, ends, [bottom, 1], color, "dash", legend=False, hover="rank at most {x}", width=1))
    told = "; ".join(
        f"{curve.name}: {len(curve.eigenvalues):,} of at most {curve.ceiling:,} directions, effective rank "
        f"{curve.effective:.4g}"
        for _, curve in curves
    )
    caption = (
        "Eigenvalues over the largest of each, without those that rounding alone may have made. Dashed: the largest "
        "rank that samples, classes and dimensions allow. Level up to K-1, then nothing: a simplex."
    )
    return Figure(
        "scree",
        f"Spectra{when}",
        caption,
        f"Eigenvalues{when}. {told}.",
        marks,
        Axis("number of the eigenvalue", log=True),
        Axis("share of the largest", log=True),
    )
