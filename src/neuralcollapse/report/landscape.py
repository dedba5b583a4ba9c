"""The page of a landscape: energy against index, gaps, spectra, the way out of a saddle, minority collapse."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np

from neuralcollapse.report.figures import COLORS, Figure, plain_numbers, simplex_motion
from neuralcollapse.report.page import Page, Table
from neuralcollapse.runs.records import Geometry
from neuralcollapse.runs.words import number
from neuralcollapse.ufm.atlas import Entry
from neuralcollapse.ufm.model import Model, Point
from neuralcollapse.ufm.survey import Survey

_COLOR = {
    "global_minimum": "#10b981",
    "strict_saddle": "#f59e0b",
    "undecided": "#8b5cf6",
    "not_critical": "#94a3b8",
}
_SYMBOL = {"partition": "circle", "low rank": "diamond-open"}
_FLOOR = 1e-16  # gaps below this are drawn here on log axes


def landscape_page(found: Survey) -> str:
    """The page of a survey, as one HTML text."""
    model = found.model
    counts = model.counts[0] if model.balanced else ", ".join(map(str, model.counts))
    return Page(
        title=f"Landscape of the unconstrained feature model, K = {model.num_classes}, d = {model.feature_dim}",
        subtitle=(
            f"{model.loss.name.replace('_', ' ')}, samples a class: {counts}; decay of weights {model.weight_decay:g}, "
            f"features {model.feature_decay:g}, bias {f'{model.bias_decay:g}' if model.bias else 'none (no bias)'}"
        ),
        verdict=summary(found),
        cards=_cards(found),
        figures=landscape_figures(found),
        tables=_tables(found),
    ).html()


def summary(found: Survey) -> str:
    """What the survey found, in one or two plain sentences of facts."""
    verdicts = Counter(found.starts.verdicts)
    count = len(found.starts.verdicts)
    worst = float(found.starts.gaps.max())
    ends = f"{verdicts['global_minimum']} of {count} random starts end at a certified global minimum"
    gap = f" (largest certified gap {worst:.1e})" if math.isfinite(worst) else " (no bound exists for this loss)"
    if not found.atlas:
        return f"{ends}{gap}."
    saddles = sum(entry.certificate.verdict == "strict_saddle" for entry in found.atlas)
    low = sum(entry.family == "low rank" for entry in found.atlas)
    by = f" ({len(found.atlas) - low} by partitions, {low} of low rank)" if low else ""
    return f"{ends}{gap}. Of {len(found.atlas)} critical points in the atlas{by}, {saddles} are strict saddles."


def landscape_figures(found: Survey) -> list[Figure]:
    """The figures of a survey, those that apply."""
    figures = []
    if found.atlas:
        figures.append(energy_figure(found.atlas))
    figures.append(gap_figure(found))
    if found.spectra:
        figures.append(spectrum_figure(found))
    if found.way is not None:
        figures.append(way_figure(found))
    if found.phase is not None:
        figures.append(phase_figure(found))
    return figures


def energy_figure(entries: list[Entry]) -> Figure:
    """Objective against index, a mark for each critical point: circles by partitions, diamonds of low rank."""
    data = []
    for verdict, color in _COLOR.items():
        for family, symbol in _SYMBOL.items():
            group = [entry for entry in entries if (entry.certificate.verdict, entry.family) == (verdict, family)]
            if group:
                word = verdict.replace("_", " ")
                data.append(
                    {
                        "type": "scatter",
                        "mode": "markers",
                        "name": word if family == "partition" else f"{word}, low rank",
                        "x": [entry.index for entry in group],
                        "y": plain_numbers([entry.objective for entry in group], 9),
                        "text": [_label(entry) for entry in group],
                        "marker": {"color": color, "size": 9, "symbol": symbol},
                        "hovertemplate": "%{text}<br>index %{x}, objective %{y:.6f}<extra></extra>",
                    }
                )
    layout = {
        "height": 360,
        "xaxis": {"title": {"text": "index (negative eigenvalues)"}},
        "yaxis": {"title": {"text": "objective"}},
        "legend": {"orientation": "h", "y": 1.12, "x": 0},
    }
    low, high = entries[-1], entries[0]
    alt = (
        f"{len(entries)} critical points: the lowest at {low.objective:.6g} with index {low.index}, "
        f"the highest at {high.objective:.6g} with index {high.index}."
    )
    caption = "The critical points of the atlas below, which says what was searched. Index 0: no way down."
    return Figure("energy", "Energy against index", caption, alt, data, layout)


def _label(entry: Entry) -> str:
    return entry.name if entry.family == "low rank" else f"groups {entry.name}"


def gap_figure(found: Survey) -> Figure:
    """Certified gap, and the true one, by iteration."""
    data: list[dict[str, Any]] = []
    bounded = found.model.loss.convex
    for i, run in enumerate(found.trajectories):
        steps = [step for step in run.history if step.iteration > 0] or list(run.history)
        color = COLORS[i % len(COLORS)]
        x = [step.iteration for step in steps]
        if bounded:
            gaps = [max(step.gap, _FLOOR) for step in steps]
            data.append(_line(f"start {i}", x, gaps, color, "certified gap %{y:.2e}"))
        if found.minimum is not None:
            above = [max(step.objective - found.minimum, _FLOOR) for step in steps]
            dotted = _line(f"start {i}, true", x, above, color, "above the minimum %{y:.2e}")
            data.append(dotted | {"line": {"color": color, "width": 1.5, "dash": "dot"}, "showlegend": not bounded})
    layout = {
        "height": 360,
        "xaxis": {"title": {"text": "iteration"}, "type": "log", "dtick": 1},
        "yaxis": {"type": "log", "exponentformat": "power", "title": {"text": "gap"}},
        "showlegend": False,
    }
    caption = (
        "Solid: the gap certified from the point alone. Dotted: the true distance to the minimum. "
        "The certified gap is first order in the distance, the true one second order."
        if bounded
        else "Distance to the minimum; this loss is not convex, so no gap can be certified."
    )
    ends = [run.certificate.gap for run in found.trajectories]
    alt = f"Gaps of {len(ends)} starts by iteration, ending at certified gaps from {min(ends):.1e} to {max(ends):.1e}."
    return Figure("gaps", "Gap against iteration", caption, alt, data, layout)


def spectrum_figure(found: Survey) -> Figure:
    """Eigenvalues of the Hessian, in order, at chosen points."""
    data = [
        _line(name, list(range(1, len(values) + 1)), values.tolist(), color, "eigenvalue %{y:.3g}")
        | {"mode": "lines+markers"}
        for (name, values), color in zip(found.spectra.items(), COLORS, strict=False)
    ]
    layout = {
        "height": 360,
        "xaxis": {"title": {"text": "number, ascending"}},
        "yaxis": {"title": {"text": "eigenvalue"}, "zeroline": True},
        "legend": {"orientation": "h", "y": 1.12, "x": 0},
    }
    caption = (
        "Eigenvalues of the Hessian with one feature a class; differences within classes only add positive ones. "
        "Below zero: ways down. Zero: rotations of the features."
    )
    parts = [f"{name}: from {float(values[0]):.3g}" for name, values in found.spectra.items()]
    return Figure(
        "spectrum", "Spectrum of the Hessian", caption, "Least eigenvalues. " + "; ".join(parts), data, layout
    )


def way_figure(found: Survey) -> Figure:
    """Class vectors in three dimensions on the way from a saddle to the simplex."""
    assert found.way is not None
    entry, points = found.way
    geometries = [_geometry(found.model, i, point) for i, point in enumerate(points)]
    names = [str(k) for k in range(found.model.num_classes)]
    figure = simplex_motion(geometries, names, step="step")
    return Figure(
        "way-out",
        f"From the saddle {entry.name} to the {'simplex' if found.model.balanced else 'global minimum'}",
        f"Class features and classifier rows on the way down from a saddle of index {entry.index}, "
        "by its escape direction and L-BFGS. Classes that the saddle ties together come apart. Press play.",
        f"Three-dimensional view of {len(names)} class features leaving a saddle and ending at the minimum.",
        figure.data,
        figure.layout,
        figure.frames,
        figure.step,
    )


def phase_figure(found: Survey) -> Figure:
    """Cosine between minority classifier rows over imbalance and decay, with the exact line of collapse."""
    phase = found.phase
    assert phase is not None
    heat = {
        "type": "heatmap",
        "x": plain_numbers(phase.decays, 4),
        "y": plain_numbers(phase.ratios, 4),
        "z": plain_numbers(phase.cosines, 4),
        "zmin": -1,
        "zmax": 1,
        "colorscale": "RdBu",
        "colorbar": {"title": {"text": "cos"}, "thickness": 12},
        "hovertemplate": "N mu %{x:.3g}, ratio %{y:.3g}: cos %{z:.3f}<extra></extra>",
    }
    keep = 1 - phase.smoothing
    line_x = [keep * math.sqrt(max(1, round(phase.majority / ratio))) for ratio in phase.ratios]
    line = {
        "type": "scatter",
        "mode": "lines",
        "x": plain_numbers(line_x, 4),
        "y": plain_numbers(phase.ratios, 4),
        "line": {"color": "#111827", "width": 2, "dash": "dash"},
        "hoverinfo": "skip",
        "showlegend": False,
    }
    small, large = min(phase.decays), max(phase.decays)
    layout = {
        "height": 460,
        "xaxis": {"type": "log", "title": {"text": "N mu"}, "range": [math.log10(small), math.log10(large)]},
        "yaxis": {"type": "log", "title": {"text": "imbalance ratio"}},
    }
    caption = (
        f"Cosine between the classifier rows of two small classes, K = {phase.num_classes}, {phase.majority} samples in"
        f" a large class. Right of the dashed line, {f'{keep:g} ' if keep < 1 else ''}sqrt(n) of a small class = N mu, "
        "they coincide: minority collapse. Blank: both are zero."
    )
    alt = "Heat map: small classes' rows point apart at low decay and ratio, and coincide beyond the line."
    return Figure("phase", "Minority collapse", caption, alt, [heat, line], layout)


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


def _tables(found: Survey) -> list[Table]:
    tables = []
    if found.atlas:
        rows = [
            (
                entry.name,
                f"{entry.objective:.8f}",
                entry.certificate.verdict.replace("_", " "),
                entry.index,
                entry.rank,
                f"{entry.least_eigenvalue:.3g}",
                number(entry.measures["nc2"]),
                f"{max(entry.certificate.gap, 0):.1e}",
            )
            for entry in found.atlas
        ]
        header = ("groups or shape", "objective", "verdict", "index", "rank", "least eigenvalue", "NC2", "gap")
        note = "NC1 is 0 at every critical point, saddles included: it certifies nothing. " + found.coverage
        tables.append(Table("Atlas", rows, header, note.strip()))
    ends = Counter(
        (f"{float(value):.8f}", verdict)
        for value, verdict in zip(found.starts.objectives, found.starts.verdicts, strict=True)
    )
    lines = [(value, verdict.replace("_", " "), count) for (value, verdict), count in sorted(ends.items())[:20]]
    tables.append(Table("Where the starts end", lines, ("objective", "verdict", "starts"), narrow=True))
    return tables


def _geometry(model: Model, step: int, point: Point) -> Geometry:
    means = np.asarray((model.collapse(point).H / model.collapsed().columns.roots).T.cpu())
    bias = np.zeros(model.num_classes) if point.b is None else np.asarray(point.b.cpu())
    centre = np.average(means, axis=0, weights=model.counts)
    return Geometry(step, means, centre, np.asarray(point.W.cpu()), bias)


def _line(name: str, x: list[int], y: list[float], color: str, hover: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": x,
        "y": plain_numbers(y, 6),
        "line": {"color": color, "width": 2},
        "hovertemplate": hover,
    }
