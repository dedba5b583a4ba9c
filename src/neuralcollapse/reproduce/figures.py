"""The figures that an experiment may ask for, by their `kind`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from neuralcollapse.report.curves import figure_name, key_axis, key_meaning, key_title, mean
from neuralcollapse.report.figure import COLORS, GREY, Axis, Bars, Figure, Line
from neuralcollapse.report.group_curves import comparison_curve
from neuralcollapse.report.landscape import energy_figure, gap_figure
from neuralcollapse.reproduce.checks import validate_item
from neuralcollapse.reproduce.minority import cosine_at_minimum, minority_cosine
from neuralcollapse.reproduce.results import Results
from neuralcollapse.runs.reading import Group, by_layer, group_runs
from neuralcollapse.runs.records import label, number

COST_PARTS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer_state": "optimiser state",
    "peak": "peak of a step",
}
MIB = 2**20
_COSTS = {  # title, unit, how many of it in a number, format, caption
    "parameters": ("Trainable parameters", "", 1, ",", "Counted."),
    "step_seconds": (
        "Time of a training step",
        "ms",
        1000,
        ",.1f",
        "Median of steps taken in turns on one {device}: forward, loss, backward, update.",
    ),
    "memory": (
        "Memory of a training step",
        "MiB",
        1 / MIB,
        ",.1f",
        "Measured: tensors of the weights, their gradients, the optimiser's state, and the most held at once.",
    ),
}


def curve(results: Results, key: str, log: bool = False) -> Figure:
    """A number by epoch, a line for each group; without `log` the axis is chosen by the numbers."""
    return comparison_curve(group_runs(results.runs), key, log=log or None)


def along(results: Results, axis: str, key: str, log: bool = False) -> Figure:
    """A number at the end against the values of an axis, a line for each value of the others."""
    groups = group_runs(run for run in results.runs if axis in run.labels)
    lines: dict[str, list[Group]] = {}
    for group in groups:
        rest = ", ".join(text for name, text in group.labels.items() if name != axis)
        lines.setdefault(rest or label(key), []).append(group)
    marks = []
    for (name, members), color in zip(lines.items(), itertools.cycle(COLORS), strict=False):
        ordered = sorted(members, key=lambda group: float(group.labels[axis]))
        x, y = [float(group.labels[axis]) for group in ordered], [group.mean(key) for group in ordered]
        spreads = [group.spread(key) for group in ordered]
        errors = () if all(map(math.isnan, spreads)) else spreads
        hover = f"{axis} {{x}}: {{y:.4g}}"
        marks.append(Line(name, x, y, color, markers=True, errors=errors, hover=hover))
    ticks = sorted({x for mark in marks for x in mark.x})
    seeds = max(len(group.runs) for group in groups)
    caption = f"{key_meaning(key)} At the end, by {axis}." + (
        " Bars: standard deviation over seeds." if seeds > 1 else ""
    )
    values = (
        f"{mark.name}: " + ", ".join(f"{x:g}: {number(y)}" for x, y in zip(mark.x, mark.y, strict=True))
        for mark in marks
    )
    return Figure(
        figure_name("along", axis, key),
        f"{key_title(key)} by {axis}",
        caption,
        f"{key_title(key)}. {'; '.join(values)}.",
        marks,
        Axis(axis, log=min(ticks, default=1) > 0, ticks=ticks),
        key_axis(key, log),
    )


def by_depth(results: Results, key: str, log: bool = False) -> Figure:
    """A number from layer to layer, at the end (solid) and before training (dotted)."""
    marks = []
    for group, color in zip(group_runs(results.runs), itertools.cycle(COLORS), strict=False):
        runs = [run for run in group.runs if run.last.layers]
        for end in (True, False):
            records = [(run, run.last if end else run.first) for run in runs]
            found = [by_layer(run, record, key) for run, record in records if record.layers]
            if not found:
                continue
            means = [mean(column) for column in zip(*(part.values() for part in found), strict=True)]
            name, dash = (group.name, "solid") if end else (f"{group.name}, untrained", "dot")
            numbers, texts = range(1, len(means) + 1), list(found[0])
            marks.append(Line(name, numbers, means, color, dash, markers=True, texts=texts, hover="{text}: {y:.4g}"))
    values = "; ".join(f"{mark.name}: {', '.join(map(number, mark.y))}" for mark in marks)
    caption = f"{key_meaning(key)} From the first measured layer to the features that the classifier sees."
    return Figure(
        figure_name("depth", key),
        f"{key_title(key)} by depth",
        caption,
        f"{key_title(key)} by layer. {values}.",
        marks,
        Axis("layer", whole=True),
        key_axis(key, log),
    )


def minority(results: Results, axis: str) -> Figure:
    """The cosine between the rows of the smallest classes against the imbalance, beside that of the exact minimiser."""
    groups = group_runs(run for run in results.runs if axis in run.labels)
    ordered = sorted(groups, key=lambda group: float(group.labels[axis]))
    ratios = [float(group.labels[axis]) for group in ordered]
    found = [[x for run in group.runs if (x := minority_cosine(run)) is not None] for group in ordered]
    means, minima = [mean(row) for row in found], [cosine_at_minimum(group.runs[0]) for group in ordered]
    half_ranges = [(max(row) - min(row)) / 2 if len(row) > 1 else math.nan for row in found]
    marks = [
        Line("exact minimiser", ratios, minima, GREY, "dash", markers=True),
        Line("network", ratios, means, COLORS[0], markers=True, errors=half_ranges),
    ]
    values = "; ".join(
        f"ratio {x:g}: network {number(a)}, exact {number(b)}" for x, a, b in zip(ratios, means, minima, strict=True)
    )
    caption = (
        "Mean cosine between the classifier's rows of the smallest classes: -1/(K-1) in a simplex, 1 where they "
        "coincide (minority collapse). Bars: range over seeds."
    )
    return Figure(
        "minority",
        "Minority collapse",
        caption,
        f"Cosines. {values}.",
        marks,
        Axis("samples of a large class / of a small one", log=True, ticks=ratios),
        Axis("cosine", range=(-0.3, 1.1)),
    )


def cost(results: Results, of: str) -> Figure | None:
    """Bars of what a training step costs: parameters, step_seconds, or memory (weights, gradients, state, peak)."""
    costs = results.costs
    if not costs:
        return None
    title, unit, scale, form, caption = _COSTS[of]
    networks = list(dict.fromkeys(item["labels"].get("network", "") for item in costs))
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for item in costs:
        kinds.setdefault(", ".join(text for axis, text in item["labels"].items() if axis != "network"), []).append(item)
    if of == "memory":
        title += f" of {networks[0]}" if networks[0] else ""
        x = list(COST_PARTS.values())
        firsts = {
            name: [item for item in items if item["labels"].get("network", "") == networks[0]]
            for name, items in kinds.items()
        }
        bars = {name: [scale * items[0][part] for part in COST_PARTS] for name, items in firsts.items() if items}
    else:
        x = networks
        bars = {name: [scale * item[of] for item in items] for name, items in kinds.items()}
    hover = f"{{y:{form}}} {unit}".strip()
    marks = [
        Bars(name, x, [float(y) for y in ys], color, hover)
        for (name, ys), color in zip(bars.items(), itertools.cycle(COLORS), strict=False)
    ]
    values = "; ".join(
        f"{name}: " + ", ".join(f"{a} {y:,.6g} {unit}".strip() for a, y in zip(x, ys, strict=True))
        for name, ys in bars.items()
    )
    return Figure(
        figure_name("cost", of),
        title,
        caption.format(device=device(costs)),
        f"{title}. {values}.",
        marks,
        y=Axis(unit, from_zero=True),
    )


def energy(results: Results) -> Figure | None:
    """Objective against index at the critical points of the models."""
    return energy_figure(results.surveys)


def gaps(results: Results) -> Figure | None:
    """Certified gaps by iteration."""
    return gap_figure(results.surveys) if results.surveys else None


FIGURES: dict[str, Callable[..., Figure | None]] = {
    "curve": curve,
    "axis": along,
    "depth": by_depth,
    "minority": minority,
    "cost": cost,
    "energy": energy,
    "gaps": gaps,
}
"""What an experiment may ask for; options are checked against the annotations of these functions."""


def validate_figures(wanted: Sequence[Mapping[str, Any]], source: str) -> None:
    """Raise unless every figure is of a known kind, with options that it takes."""
    for item in wanted:
        validate_item(item, FIGURES, f"{source}: figure")


def device(costs: Sequence[Mapping[str, Any]]) -> str:
    """Where the costs were measured."""
    return "CPU" if costs[0]["device"] == "cpu" else str(costs[0]["device"])
