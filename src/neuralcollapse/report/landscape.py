"""The page of a surveyed landscape, and its figures: energy, gaps, spectra, the way out of a saddle, collapse."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from neuralcollapse.report.class_means import simplex_motion
from neuralcollapse.report.figure import COLORS, Axis, Dots, Figure, HeatMap, Line
from neuralcollapse.report.landscape_tables import atlas_tables, certificate_table, decays, loss_words, model_table
from neuralcollapse.report.page import Page
from neuralcollapse.runs.records import Geometry
from neuralcollapse.ufm.model import Model
from neuralcollapse.ufm.points import Point
from neuralcollapse.ufm.survey import Survey

Numbers = Mapping[str, Any]
"""A survey in plain numbers, as `Survey.record` gives them; a `name` and `labels` tell it from others."""

LANDSCAPE_FIGURES = ("energy", "way-out", "gaps", "spectrum", "phase")
_VERDICTS = {
    "global_minimum": "#10b981",
    "strict_saddle": "#f59e0b",
    "undecided": "#8b5cf6",
    "not_critical": "#94a3b8",
}
_LOW_RANK = {"strict_saddle": "#3b82f6", "undecided": "#ec4899"}  # where they differ from the others of their verdict
_ENDS = 20  # of the random starts, that a table lists
_LONG_DESCENT = 300  # iterations, from which on their axis is logarithmic
_FLOOR = 1e-16  # where smaller gaps are drawn on a log axis


def landscape_page(found: Survey) -> Page:
    """The page of a survey."""
    model = found.model
    return Page(
        title=f"Landscape of the unconstrained feature model, K = {model.num_classes}, d = {model.feature_dim}",
        subtitle=f"{loss_words(model)}{', features >= 0' if model.nonnegative else ''}; decay of {decays(model)}",
        verdict=summary(found),
        cards=_cards(found),
        figures=landscape_figures(found),
        tables=[model_table(found), *atlas_tables(found), certificate_table(found, ends(found)[:_ENDS])],
        lead=1,
    )


def summary(found: Survey) -> str:
    """What the survey found, in one or two plain sentences of facts."""
    verdicts = Counter(found.starts.verdicts)
    count = len(found.starts.verdicts)
    worst = float(found.starts.gaps.max())
    share = f"{verdicts['global_minimum']} of {count} random starts end at a certified global minimum"
    gap = f" (largest certified gap {worst:.1e})" if math.isfinite(worst) else " (no bound exists for this loss)"
    if not found.atlas:
        return f"{share}{gap}."
    saddles = sum(entry.certificate.verdict == "strict_saddle" for entry in found.atlas)
    low = sum(entry.family == "low rank" for entry in found.atlas)
    by = f" ({len(found.atlas) - low} by partitions, {low} of low rank)" if low else ""
    return f"{share}{gap}. Of {len(found.atlas)} critical points in the atlas{by}, {saddles} are strict saddles."


def ends(found: Survey) -> list[tuple[str, str, list[float]]]:
    """Where the starts end: (objective, verdict, certified gaps of the starts that end there), the lowest first."""
    gaps: dict[tuple[str, str], list[float]] = {}
    for value, verdict, gap in zip(found.starts.objectives, found.starts.verdicts, found.starts.gaps, strict=True):
        gaps.setdefault((f"{float(value):.8f}", verdict), []).append(float(gap))
    return [(value, verdict, these) for (value, verdict), these in sorted(gaps.items())]


def _cards(found: Survey) -> list[tuple[str, str, str]]:
    cards = []
    if found.minimum is not None:
        cards.append(("global minimum", f"{found.minimum:.8g}", "exact"))
    cards.append(("random starts", str(len(found.starts.verdicts)), ""))
    certified = sum(verdict == "global_minimum" for verdict in found.starts.verdicts)
    cards.append(("certified global", str(certified), "starts that end at a certified global minimum"))
    if found.atlas:
        cards.append(("critical points", str(len(found.atlas)), "in the atlas"))
    return cards


def landscape_figures(found: Survey) -> list[Figure]:
    """The figures of a survey, those that apply."""
    models = [found.record()]
    energy, way = energy_figure(models), way_figure(found) if found.way is not None else None
    if energy and way:  # side by side, and so of one height
        energy = replace(energy, size="large")
    others = [
        gap_figure(models),
        spectrum_figure(found) if found.spectra else None,
        phase_figure(found) if found.phase is not None else None,
    ]
    first = [figure for figure in (energy, way) if figure is not None]
    rest = [figure for figure in others if figure is not None]
    if (len(first) % 2 + len(rest)) % 3:  # thirds of the page would leave a gap
        rest = [replace(figure, size="wide") for figure in rest]
    return [*first, *rest]


def survey_name(survey: Numbers) -> str:
    """What a surveyed model is called."""
    return ", ".join(survey.get("labels", {}).values()) or str(survey.get("name", ""))


def energy_figure(surveys: Sequence[Numbers]) -> Figure | None:
    """Objective against index, a mark for each critical point; None where there is no atlas.

    One model is coloured by verdict; several by model, each objective over that model's minimum.
    """
    surveys = [survey for survey in surveys if survey["atlas"]]
    if not surveys:
        return None
    marks = _by_verdict(surveys[0]["atlas"]) if len(surveys) == 1 else _by_model(surveys)
    if len(surveys) == 1:
        entries = surveys[0]["atlas"]
        high, low = (pick(entries, key=lambda entry: entry["objective"]) for pick in (max, min))
        caption = (
            "Each critical point of the atlas by its objective and its index, the number of independent directions "
            "down: 0 at a minimum. Named by its groups of classes (2+1+1: two of them tied) or by its rank."
        )
        alt = (
            f"{len(entries)} critical points: the lowest at {low['objective']:.6g} with index {low['index']}, "
            f"the highest at {high['objective']:.6g} with index {high['index']}."
        )
    else:
        caption = "The critical points of the atlases. Only those at the minimum, 1, have no way down (index 0)."
        counts = (f"{mark.name}: {len(mark.x)} points, index up to {max(mark.x)}" for mark in marks)
        alt = f"Critical points. {'; '.join(counts)}."
    y = Axis("objective" if len(surveys) == 1 else "objective / minimum")
    return Figure("energy", "Energy against index", caption, alt, marks, Axis("index: directions down"), y)


def _by_verdict(entries: Sequence[Numbers]) -> list[Dots]:
    marks = []
    for (verdict, color), low_rank in itertools.product(_VERDICTS.items(), (False, True)):
        group = [entry for entry in entries if entry["verdict"] == verdict and _low_rank(entry) == low_rank]
        if group:
            name = verdict.replace("_", " ") + (", low rank" if low_rank else "")
            hover = "{text}\nindex {x}, objective {y:.6f}"
            texts = [_entry_name(entry) for entry in group]
            labels = [f"rank {entry['rank']}" if low_rank else str(entry["name"]) for entry in group]
            shade = _LOW_RANK.get(verdict, color) if low_rank else color
            marks.append(Dots(name, *_energies(group), shade, low_rank, texts, hover, labels=labels))
    return marks


def _by_model(surveys: Sequence[Numbers]) -> list[Dots]:
    marks = []
    for survey, color in zip(surveys, itertools.cycle(COLORS), strict=False):
        entries = survey["atlas"]
        index, energy = _energies(entries)
        lowest = min(energy)
        texts = [f"{_entry_name(entry)}, {entry['verdict'].replace('_', ' ')}" for entry in entries]
        hover = "{text}\nindex {x}, {y:.4f} times the minimum"
        marks.append(Dots(survey_name(survey), index, [x / lowest for x in energy], color, texts=texts, hover=hover))
    return marks


def _energies(entries: Sequence[Numbers]) -> tuple[list[int], list[float]]:
    return [entry["index"] for entry in entries], [entry["objective"] for entry in entries]


def _low_rank(entry: Numbers) -> bool:
    return entry.get("family") == "low rank"


def _entry_name(entry: Numbers) -> str:
    return str(entry["name"]) if _low_rank(entry) else f"groups {entry['name']}"


def gap_figure(surveys: Sequence[Numbers]) -> Figure | None:
    """Gaps by iteration; None where nothing bounds them.

    Of one model the certified gap of each start, and its true distance to the minimum; of several the largest
    certified gap of each model's starts.
    """
    several = len(surveys) > 1
    marks = _largest_gaps(surveys) if several else _gaps_of_starts(surveys[0])
    if not marks:
        return None
    certified = [mark for mark in marks if mark.dash == "solid"]
    ends = [mark.y[-1] for mark in certified or marks]
    if several:
        caption = (
            "How far above the global minimum a point can be at most, from the point alone; the worst of some starts."
        )
        alt = "; ".join(f"{mark.name} ends at {mark.y[-1]:.1e}" for mark in marks)
    else:
        caption = (
            "A colour for each of some random starts. Solid: the gap certified from the point alone, first order in "
            "the distance; dotted: the true one, objective less minimum, second order."
            if certified
            else "Distance to the minimum; this loss is not convex, so no gap can be certified."
        )
        what = "certified gaps" if certified else "distances to the minimum"
        alt = f"{len(ends)} starts end at {what} from {min(ends):.1e} to {max(ends):.1e}"
    kind = "Certified gap" if several else "Gap"
    last = max(max(mark.x) for mark in marks)
    x, y = Axis("iteration", log=last > _LONG_DESCENT, whole=True), Axis(kind.lower(), log=True)
    return Figure("gaps", f"{kind} by iteration", caption, f"{kind} by iteration: {alt}.", marks, x, y)


def _gaps_of_starts(survey: Numbers) -> list[Line]:
    marks = []
    for i, path in enumerate(survey["trajectories"]):
        color = COLORS[i % len(COLORS)]
        steps = [step for step in path if step[0] > 0] or list(path)
        x = [iteration for iteration, _, _ in steps]
        certified, own = any(_finite(gap) for _, _, gap in path), f"start {i}"
        if certified:
            gaps = [_shown_gap(gap) for _, _, gap in steps]
            marks.append(Line(own, x, gaps, color, hover="certified gap {y:.2e}"))
        if survey["minimum"] is not None:
            above = [_shown_gap(objective - survey["minimum"]) for _, objective, _ in steps]
            hover, name = "above the minimum {y:.2e}", f"{own}, true" if certified else own
            part_of = own if certified else ""
            marks.append(Line(name, x, above, color, "dot", hover=hover, legend=not certified, part_of=part_of))
    return marks


def _largest_gaps(surveys: Sequence[Numbers]) -> list[Line]:
    marks = []
    for survey, color in zip(surveys, itertools.cycle(COLORS), strict=False):
        paths = survey["trajectories"]
        known = [{iteration: gap for iteration, _, gap in path if _finite(gap)} for path in paths]
        current, points = [math.inf] * len(paths), []
        for iteration in range(max(path[-1][0] for path in paths) + 1):
            current = [gaps.get(iteration, before) for gaps, before in zip(known, current, strict=True)]
            if iteration and math.isfinite(max(current)):
                points.append((iteration, _shown_gap(max(current))))
        if points:
            x, y = zip(*points, strict=True)
            hover = "iteration {x}: {y:.2e}"
            marks.append(Line(survey_name(survey), list(x), list(y), color, hover=hover, digits=4))
    return marks


def _finite(gap: float | None) -> bool:
    return gap is not None and math.isfinite(gap)


def _shown_gap(gap: float | None) -> float:
    return max(gap, _FLOOR) if gap is not None and math.isfinite(gap) else math.nan


def spectrum_figure(found: Survey) -> Figure:
    """Eigenvalues of the Hessian, in order, at chosen points."""
    marks = [
        Line(name, range(1, len(values) + 1), values.tolist(), color, markers=True, hover="eigenvalue {y:.3g}")
        for (name, values), color in zip(found.spectra.items(), COLORS, strict=False)
    ]
    caption = (
        "Eigenvalues of the Hessian with one feature a class; differences within classes only add positive ones. "
        "Below zero: ways down. Zero: rotations of the features."
    )
    parts = [f"{name}: from {float(values[0]):.3g}" for name, values in found.spectra.items()]
    return Figure(
        "spectrum",
        "Spectrum of the Hessian",
        caption,
        f"Least eigenvalues. {'; '.join(parts)}.",
        marks,
        Axis("number, ascending", whole=True),
        Axis("eigenvalue", zero_line=True),
    )


def way_figure(found: Survey) -> Figure:
    """Class vectors in three dimensions on the way from a saddle to the simplex."""
    assert found.way is not None
    entry, points = found.way
    geometries = [_geometry(found.model, i, point) for i, point in enumerate(points)]
    names = [str(k) for k in range(found.model.num_classes)]
    return replace(
        simplex_motion(geometries, names, unit="step"),
        name="way-out",
        title=f"From the saddle {entry.name} to the {'simplex' if found.model.balanced else 'global minimum'}",
        caption=f"Class features and classifier rows on the way down from a saddle of index {entry.index}, "
        "by its escape direction and L-BFGS. Classes that the saddle ties together come apart. Press play.",
        alt=f"Three-dimensional view of {len(names)} class features leaving a saddle and ending at the minimum.",
    )


def _geometry(model: Model, step: int, point: Point) -> Geometry:
    means = np.asarray((model.collapse(point).H / model.collapsed().columns.roots).T.cpu())
    bias = np.zeros(model.num_classes) if point.b is None else np.asarray(point.b.cpu())
    centre = np.average(means, axis=0, weights=model.counts)
    return Geometry(step, means, centre, np.asarray(point.W.cpu()), bias)


def phase_figure(found: Survey) -> Figure:
    """Cosine between minority classifier rows over imbalance and decay, with the exact line of collapse."""
    phase = found.phase
    assert phase is not None
    hover = "N mu {x:.3g}, ratio {y:.3g}: cos {z:.3f}"
    heat = HeatMap(phase.decays, phase.ratios, np.array(phase.cosines), -1, 1, "cos", hover, digits=4)
    keep = 1 - phase.smoothing
    limits = [keep * math.sqrt(max(1, round(phase.majority / ratio))) for ratio in phase.ratios]
    line = Line("the line of collapse", limits, phase.ratios, "#111827", "dash", hover="", legend=False, digits=4)
    caption = (
        f"Cosine between the classifier rows of two small classes, K = {phase.num_classes}, {phase.majority} samples in"
        f" a large class. Right of the dashed line, {f'{keep:g} ' if keep < 1 else ''}sqrt(n) of a small class = N mu, "
        "they coincide: minority collapse. Blank: both are zero."
    )
    alt = "Heat map: small classes' rows point apart at low decay and ratio, and coincide beyond the line."
    x = Axis("N mu", log=True, range=(min(phase.decays), max(phase.decays)))
    return Figure("phase", "Minority collapse", caption, alt, [heat, line], x, Axis("imbalance ratio", log=True))
