"""Figures that lay runs side by side: by epoch, along an axis of the experiment, by depth, by cost."""

from __future__ import annotations

import html
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from neuralcollapse.report.figures import COLORS, Figure, cosine_map, plain_numbers, simplex_motion
from neuralcollapse.runs.reading import Group, Run, by_layer, common_unit
from neuralcollapse.runs.records import MEASURES, label
from neuralcollapse.runs.words import number

_BAND = 0.18  # opacity of the range over seeds
_ALL_FRAMES = 60  # of all runs that one figure lets choose from, together
COST_PARTS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer_state": "optimiser state",
    "peak": "peak of a step",
}
MIB = 2**20
FRAME: dict[str, Any] = {"height": 340, "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}}


def curve(groups: Sequence[Group], key: str, *, log: bool = False) -> Figure:
    """A number by epoch, a line for each group: the mean over its seeds, in the range that they span."""
    unit = common_unit(run for group in groups for run in group.runs)
    data: list[dict[str, Any]] = []
    for group, color in zip(groups, itertools.cycle(COLORS), strict=False):
        epochs, rows = _by_epoch(group, key)
        means = [_mean(row) for row in rows]
        if len(group.runs) > 1:
            quiet = {"showlegend": False, "hoverinfo": "skip", "legendgroup": group.name}
            low, high = ([extreme(row, default=math.nan) for row in rows] for extreme in (min, max))
            band = {"line": {"width": 0, "color": color}, **quiet}
            data.append(_line(group.name, epochs, low, color) | band)
            fill = {"fill": "tonexty", "fillcolor": _faint(color)}
            data.append(_line(group.name, epochs, high, color) | band | fill)
        data.append(_line(group.name, epochs, means, color) | {"hovertemplate": "%{y:.4g}", "legendgroup": group.name})
    layout = {
        **FRAME,
        "hovermode": "x unified",
        "xaxis": {"title": {"text": unit}},
        "yaxis": _axis(label(key), log, data),
    }
    ends = "; ".join(f"{group.name} {number(group.mean(key))}" for group in groups)
    seeds = max(len(group.runs) for group in groups)
    over = f" Lines: means over {seeds} seeds; bands: their range." if seeds > 1 else ""
    caption = f"{_meaning(key)}{over}"
    return Figure(
        _name("curve", key), _title(key), caption, f"{_title(key)} by {unit}. At the end: {ends}.", data, layout
    )


def along(groups: Sequence[Group], axis: str, key: str, *, log: bool = False) -> Figure:
    """A number at the end against the values of an axis, a line for each value of the others."""
    lines: dict[str, list[Group]] = {}
    for group in groups:
        rest = ", ".join(text for name, text in group.labels.items() if name != axis)
        lines.setdefault(rest or label(key), []).append(group)
    data = []
    for (name, members), color in zip(lines.items(), itertools.cycle(COLORS), strict=False):
        ordered = sorted(members, key=lambda group: float(group.labels[axis]))
        trace = _line(
            name, [float(group.labels[axis]) for group in ordered], [group.mean(key) for group in ordered], color
        )
        trace |= {"mode": "lines+markers", "hovertemplate": f"{html.escape(axis)} %{{x}}: %{{y:.4g}}"}
        spreads = [group.spread(key) for group in ordered]
        if not all(map(math.isnan, spreads)):
            trace["error_y"] = {"type": "data", "array": plain_numbers(spreads, 4), "thickness": 1}
        data.append(trace)
    ticks = sorted({x for trace in data for x in trace["x"]})
    layout = {
        **FRAME,
        "xaxis": {
            "title": {"text": html.escape(axis)},
            "type": "log" if min(ticks, default=1) > 0 else "linear",
            "tickvals": ticks,
            "ticktext": [f"{x:g}" for x in ticks],
        },
        "yaxis": _axis(label(key), log, data),
        "showlegend": len(data) > 1,
    }
    seeds = max(len(group.runs) for group in groups)
    caption = f"{_meaning(key)} At the end, by {axis}." + (" Bars: standard deviation over seeds." if seeds > 1 else "")
    said = "; ".join(
        f"{html.unescape(trace['name'])}: "
        + ", ".join(f"{x:g}: {number(y)}" for x, y in zip(trace["x"], trace["y"], strict=True))
        for trace in data
    )
    return Figure(
        _name("along", axis, key), f"{_title(key)} by {axis}", caption, f"{_title(key)}. {said}.", data, layout
    )


def by_depth(groups: Sequence[Group], key: str, *, log: bool = False) -> Figure:
    """A number from layer to layer, at the end (solid) and before training (dotted)."""
    data = []
    for group, color in zip(groups, itertools.cycle(COLORS), strict=False):
        runs = [run for run in group.runs if run.last.layers]
        for when, dash in (("end", "solid"), ("start", "dot")):
            records = [(run, run.last if when == "end" else run.first) for run in runs]
            found = [by_layer(run, record, key) for run, record in records if record.layers]
            if not found:
                continue
            names, rows = list(found[0]), [list(part.values()) for part in found]
            means = [sum(column) / len(column) for column in zip(*rows, strict=True)]
            trace = _line(
                group.name + (", untrained" * (when == "start")), list(range(1, len(names) + 1)), means, color
            )
            trace |= {
                "mode": "lines+markers",
                "text": [html.escape(name) for name in names],
                "hovertemplate": "%{text}: %{y:.4g}",
                "line": {"color": color, "width": 2, "dash": dash},
            }
            data.append(trace)
    layout = {
        **FRAME,
        "xaxis": {"title": {"text": "layer"}, "dtick": 1},
        "yaxis": _axis(label(key), log, data),
    }
    said = "; ".join(f"{html.unescape(trace['name'])}: {', '.join(map(number, trace['y']))}" for trace in data)
    caption = f"{_meaning(key)} From the first measured layer to the features that the classifier sees."
    return Figure(
        _name("depth", key), f"{_title(key)} by depth", caption, f"{_title(key)} by layer. {said}.", data, layout
    )


def minority(
    groups: Sequence[Group], axis: str, cosine: Callable[[Run], float | None], exact: Callable[[Run], float]
) -> Figure:
    """The cosine between the rows of the smallest classes against the imbalance, beside that of the exact minimiser."""
    ordered = sorted(groups, key=lambda group: float(group.labels[axis]))
    ratios = [float(group.labels[axis]) for group in ordered]
    found = [[x for run in group.runs if (x := cosine(run)) is not None] for group in ordered]
    means = [_mean(row) for row in found]
    minima = [exact(group.runs[0]) for group in ordered]
    data = [
        _line("exact minimiser", ratios, minima, "#64748b")
        | {"mode": "lines+markers", "line": {"color": "#64748b", "width": 2, "dash": "dash"}},
        _line("network", ratios, means, COLORS[0])
        | {
            "mode": "lines+markers",
            "error_y": {"type": "data", "array": plain_numbers([_half_range(row) for row in found], 4), "thickness": 1},
        },
    ]
    layout = {
        **FRAME,
        "xaxis": {
            "title": {"text": "samples of a large class / of a small one"},
            "type": "log",
            "tickvals": ratios,
            "ticktext": [f"{x:g}" for x in ratios],
        },
        "yaxis": {"title": {"text": "cosine"}, "range": [-0.3, 1.1]},
    }
    said = "; ".join(
        f"ratio {x:g}: network {number(a)}, exact {number(b)}" for x, a, b in zip(ratios, means, minima, strict=True)
    )
    caption = (
        "Mean cosine between the classifier's rows of the smallest classes: -1/(K-1) in a simplex, 1 where they "
        "coincide (minority collapse). Bars: range over seeds."
    )
    return Figure("minority", "Minority collapse", caption, f"Cosines. {said}.", data, layout)


def cost(costs: Sequence[Mapping[str, Any]], of: str) -> Figure:
    """Bars of what a training step costs: parameters, step_seconds, or memory (weights, gradients, state, peak)."""
    nets = list(dict.fromkeys(item["labels"].get("network", "network") for item in costs))
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for item in costs:
        kinds.setdefault(", ".join(text for axis, text in item["labels"].items() if axis != "network"), []).append(item)
    if of == "memory":
        first = nets[0]
        chosen = {
            name: [item for item in items if item["labels"].get("network", first) == first]
            for name, items in kinds.items()
        }
        x = list(COST_PARTS.values())
        bars = {name: [items[0][part] / MIB for part in COST_PARTS] for name, items in chosen.items() if items}
        where = f" of {first}" if "network" in costs[0]["labels"] else ""
        title, unit, text = f"Memory of a training step{where}", "MiB", "%{y:,.1f} MiB"
        caption = "Measured: tensors of the weights, their gradients, the optimiser's state, and the most held at once."
    else:
        x = nets if "network" in costs[0]["labels"] else [""]
        scale = 1000 if of == "step_seconds" else 1
        bars = {name: [scale * item[of] for item in items] for name, items in kinds.items()}
        unit = "ms" if of == "step_seconds" else ""
        title = {"step_seconds": "Time of a training step", "parameters": "Trainable parameters"}[of]
        text = "%{y:,.1f} ms" if unit else "%{y:,}"
        caption = (
            f"Median of steps taken in turns on one {device(costs)}: forward, loss, backward, update."
            if unit
            else "Counted."
        )
    data = [
        {
            "type": "bar",
            "name": html.escape(name),
            "x": x,
            "y": plain_numbers([float(y) for y in ys], 9),
            "marker": {"color": color},
            "hovertemplate": text,
        }
        for (name, ys), color in zip(bars.items(), itertools.cycle(COLORS), strict=False)
    ]
    layout = {
        **FRAME,
        "barmode": "group",
        "xaxis": {"type": "category"},
        "yaxis": {"title": {"text": unit}, "rangemode": "tozero"},
    }
    said = "; ".join(
        f"{name}: " + ", ".join(f"{a} {y:,.6g} {unit}".strip() for a, y in zip(x, ys, strict=True))
        for name, ys in bars.items()
    )
    return Figure(_name("cost", of), title, caption, f"{title}. {said}.", data, layout)


def device(costs: Sequence[Mapping[str, Any]]) -> str:
    """Where the costs were measured."""
    return "CPU" if costs[0]["device"] == "cpu" else str(costs[0]["device"])


def geometry_figures(runs: Sequence[Run]) -> list[Figure]:
    """The cosines and the motion of the class means, of one run at a time, to be chosen from a list."""
    seen = [run for run in runs if run.geometries]
    if not seen:
        return []
    most = 40 if len(seen) == 1 else max(4, _ALL_FRAMES // len(seen))
    motions = [simplex_motion(list(run.geometries), run.class_names, run.unit, most) for run in seen]
    maps = [cosine_map(list(run.geometries), run.class_names, most, run.unit) for run in seen]
    figures = []
    for first, *rest in (maps, motions):
        others = {run.name: figure for run, figure in zip(seen[1:], rest, strict=True)}
        figures.append(Figure(**{**vars(first), "others": others, "own": seen[0].name if others else ""}))
    return figures


def _by_epoch(group: Group, key: str) -> tuple[list[int], list[list[float]]]:
    """Epochs that every run of the group has, and the runs' values there; those that are undefined are left out."""
    found = [{record.epoch: record.value(key) for record in run.records} for run in group.runs]
    epochs = [epoch for epoch in found[0] if all(epoch in other for other in found)]
    rows = [[x for values in found if not math.isnan(x := values[epoch])] for epoch in epochs]
    return epochs, rows


def _line(name: str, x: Sequence[float], y: Sequence[float], color: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines" if len(x) > 1 else "markers",
        "name": html.escape(name),
        "x": list(x),
        "y": plain_numbers(list(y), 6),
        "line": {"color": color, "width": 2},
    }


def _axis(title: str, log: bool, traces: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    named = {"title": {"text": title}}
    if not log:
        return {"rangemode": "tozero", **named}
    positive = [x for trace in traces for x in trace["y"] if x is not None and x > 0]
    wide = bool(positive) and max(positive) > 30 * min(positive)
    return {"type": "log", "exponentformat": "e", "dtick": 1 if wide else "D2", **named}


def _faint(color: str) -> str:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{_BAND})"


def _mean(row: Sequence[float]) -> float:
    return sum(row) / len(row) if row else math.nan


def _half_range(row: Sequence[float]) -> float:
    return (max(row) - min(row)) / 2 if len(row) > 1 else math.nan


def _title(key: str) -> str:
    text = label(key)
    return text[:1].upper() + text[1:]


def _meaning(key: str) -> str:
    if key in MEASURES:
        text = MEASURES[key][1]
        text = text if text.startswith("tr") else text[:1].upper() + text[1:]
        return f"{text}. On the training set."
    return {
        "train.accuracy": "Share of training samples classified rightly.",
        "test.accuracy": "Share of test samples classified rightly.",
        "head.ratio": "The last layer's objective over the exact minimum for its class counts and decays.",
    }.get(key, f"{_title(key)}.")


def _name(*parts: str) -> str:
    return re.sub(r"[^\w-]+", "-", "-".join(parts))
