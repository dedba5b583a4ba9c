"""Figures and tables of several surveyed landscapes, from the numbers that an experiment keeps of them."""

from __future__ import annotations

import csv
import html
import io
import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from neuralcollapse.report.comparison_figures import FRAME
from neuralcollapse.report.figures import COLORS, Figure, plain_numbers
from neuralcollapse.report.page import Cell, Table
from neuralcollapse.runs.words import number

Survey = Mapping[str, Any]
_FLOOR = 1e-16  # gaps below this are drawn here on log axes


def energy_figure(surveys: Sequence[Survey]) -> Figure | None:
    """Objective over the global minimum against index, a dot for each critical point of each model."""
    data = []
    for survey, color in zip(surveys, itertools.cycle(COLORS), strict=False):
        if not survey["atlas"]:
            continue
        lowest = min(entry["objective"] for entry in survey["atlas"])
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": html.escape(title(survey)),
                "x": [entry["index"] for entry in survey["atlas"]],
                "y": plain_numbers([entry["objective"] / lowest for entry in survey["atlas"]], 9),
                "text": [f"{_label(entry)}, {entry['verdict'].replace('_', ' ')}" for entry in survey["atlas"]],
                "marker": {"color": color, "size": 8},
                "hovertemplate": "%{text}<br>index %{x}, %{y:.4f} times the minimum<extra></extra>",
            }
        )
    if not data:
        return None
    layout = {
        **FRAME,
        "xaxis": {"title": {"text": "index (negative eigenvalues)"}},
        "yaxis": {"title": {"text": "objective / minimum"}},
    }
    caption = "The critical points of the atlases. Only those at the minimum, 1, have no way down (index 0)."
    said = "; ".join(
        f"{html.unescape(trace['name'])}: {len(trace['x'])} points, index up to {max(trace['x'])}" for trace in data
    )
    return Figure("energy", "Energy against index", caption, f"Critical points. {said}.", data, layout)


def _label(entry: Mapping[str, Any]) -> str:
    return str(entry["name"]) if entry.get("family") == "low rank" else f"groups {entry['name']}"


def gap_figure(surveys: Sequence[Survey]) -> Figure | None:
    """The largest certified gap of the recorded trajectories, by iteration."""
    data = []
    for survey, color in zip(surveys, itertools.cycle(COLORS), strict=False):
        steps: dict[int, list[float]] = {}
        longest = max(path[-1][0] for path in survey["trajectories"])
        for path in survey["trajectories"]:
            last = {iteration: gap for iteration, _, gap in path if gap is not None}
            current = math.inf
            for iteration in range(longest + 1):
                current = last.get(iteration, current)
                steps.setdefault(iteration, []).append(current)
        points = [(i, max(max(gaps), _FLOOR)) for i, gaps in steps.items() if i > 0 and math.isfinite(max(gaps))]
        if points:
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "name": html.escape(title(survey)),
                    "x": [i for i, _ in points],
                    "y": plain_numbers([gap for _, gap in points], 4),
                    "line": {"color": color, "width": 2},
                    "hovertemplate": "iteration %{x}: %{y:.2e}",
                }
            )
    if not data:
        return None
    layout = {
        **FRAME,
        "xaxis": {"title": {"text": "iteration of L-BFGS"}, "type": "log", "dtick": 1},
        "yaxis": {"type": "log", "exponentformat": "power", "title": {"text": "certified gap"}},
    }
    caption = "How far above the global minimum a point can be at most, from the point alone; the worst of some starts."
    said = "; ".join(f"{html.unescape(trace['name'])} ends at {trace['y'][-1]:.1e}" for trace in data)
    return Figure("gaps", "Certified gap by iteration", caption, f"Certified gaps. {said}.", data, layout)


def survey_tables(surveys: Sequence[Survey]) -> list[Table]:
    """A row for each model, and one for each critical point."""
    rows = []
    for survey in surveys:
        verdicts = Counter(survey["starts"]["verdicts"])
        kinds = Counter(entry["verdict"] for entry in survey["atlas"])
        gap = max(survey["starts"]["gaps"])
        minimum = survey["minimum"]
        rows.append(
            [
                Cell(title(survey)),
                Cell("none known" if minimum is None else f"{minimum:.8f}", sort=minimum),
                Cell(f"{len(survey['starts']['verdicts']):,}", sort=len(survey["starts"]["verdicts"])),
                Cell(f"{verdicts['global_minimum']:,}", sort=verdicts["global_minimum"]),
                Cell(f"{gap:.1e}", sort=gap),
                Cell(str(len(survey["atlas"])), sort=len(survey["atlas"])),
                Cell(str(kinds["strict_saddle"]), sort=kinds["strict_saddle"]),
            ]
        )
    header = (
        "model",
        "global minimum",
        "random starts",
        "end at the minimum",
        "largest certified gap",
        "critical points",
        "strict saddles",
    )
    points = [
        [
            Cell(title(survey)),
            Cell(entry["name"]),
            Cell(f"{entry['objective']:.8f}", sort=entry["objective"]),
            Cell(entry["verdict"].replace("_", " ")),
            Cell(str(entry["index"]), sort=entry["index"]),
            Cell(number(entry["least_eigenvalue"]), sort=entry["least_eigenvalue"]),
            Cell(number(entry["nc2"]), sort=entry["nc2"]),
        ]
        for survey in surveys
        for entry in survey["atlas"]
    ]
    columns = ("model", "groups or shape", "objective", "verdict", "index", "least eigenvalue", "NC2")
    note = "NC1 is 0 at every critical point, saddles included: it certifies nothing."
    return [
        Table("The models", rows, header, sortable=True),
        Table("Critical points", points, columns, note, sortable=True),
    ]


def survey_csv(surveys: Sequence[Survey]) -> str:
    """A line for each random start: its model, where it ended, its verdict and certified gap."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("model", "start", "objective", "gap", "verdict"))
    for survey in surveys:
        starts = survey["starts"]
        for i, row in enumerate(zip(starts["objectives"], starts["gaps"], starts["verdicts"], strict=True)):
            writer.writerow((survey["name"], i, f"{row[0]:.12g}", f"{row[1]:.3g}", row[2]))
    return text.getvalue()


def title(survey: Survey) -> str:
    """What a model is called."""
    return ", ".join(survey["labels"].values()) or str(survey["name"])
