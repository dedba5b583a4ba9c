"""Tables of an experiment: means over seeds, what a training step costs, and surveyed landscapes."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from neuralcollapse.report.comparison import NUMBERS, as_number, mean_cell
from neuralcollapse.report.expected import decay_budget, row_sum_left, row_sum_left_predicted
from neuralcollapse.report.group_curves import group_colors
from neuralcollapse.report.landscape import Numbers, survey_name
from neuralcollapse.report.page import Cell, Table
from neuralcollapse.reproduce.figures import COST_PARTS, MIB, device
from neuralcollapse.runs.reading import Group
from neuralcollapse.runs.records import label, number


def group_table(groups: Sequence[Group]) -> Table:
    """A row for each group: means over seeds, with standard deviations."""
    keys = [key for key in NUMBERS if any(not math.isnan(group.mean(key)) for group in groups)]
    seeds = max(len(group.runs) for group in groups)
    axes = axes_of(groups)
    counts = [group.runs[0].environment.get("parameters") for group in groups]
    counted = all(isinstance(count, int) for count in counts) and len(set(counts)) > 1
    rows = []
    for group, color in zip(groups, group_colors(groups), strict=True):
        first, *others = _label_cells(group, axes) or [Cell(group.name)]
        parameters = group.runs[0].environment.get("parameters")
        rows.append(
            [
                first._replace(select=group.name, color=color),
                *others,
                Cell(str(len(group.runs)), sort=len(group.runs)),
                *([Cell(f"{parameters:,}", sort=parameters)] if counted else []),
                *(mean_cell(group, key) for key in keys),
            ]
        )
    header = (*(axes or ["runs"]), "seeds", *(["parameters"] if counted else []), *map(label, keys))
    note = "At the end, on the training set but for the test accuracy."
    if seeds > 1:
        note += " Mean ± standard deviation over seeds."
    return Table("The runs at their end", rows, header, note, sortable=True)


def axes_of(groups: Sequence[Group]) -> list[str]:
    """The axes along which groups of runs differ; several grids of runs may have axes of their own."""
    return list(dict.fromkeys(axis for group in groups for axis in group.labels))


def _label_cells(group: Group, axes: Sequence[str]) -> list[Cell]:
    return [Cell(group.labels.get(axis, ""), sort=as_number(group.labels.get(axis))) for axis in axes]


THEORY = "What theory expects"
_EXPECTED = ("nc2", "nc2_means", "nc3", "nc3_distance", "nc_bias")


def theory_table(groups: Sequence[Group]) -> list[Table]:
    """A row for each group: the time that its decay had, and its measures beside what theory expects of them."""
    axes = axes_of(groups)
    keys = [key for key in _EXPECTED if any(not math.isnan(group.mean(f"minimizer.{key}")) for group in groups)]
    budgets = [[x for run in group.runs if (x := decay_budget(run)) is not None] for group in groups]
    if not keys and not any(budgets):
        return []
    rows = []
    for group, noted in zip(groups, budgets, strict=True):
        predicted = [x for run in group.runs if (x := row_sum_left_predicted(run)) is not None]
        measured = [x for run in group.runs if (x := row_sum_left(run)) is not None]
        rows.append(
            [
                *_label_cells(group, axes),
                *(_mean_cell(values) for values in (noted, predicted, measured)),
                *(Cell(group.formatted(key), _in_theory(group, key), group.mean(key)) for key in keys),
            ]
        )
    header = (*axes, "B", "|1'W| left, predicted", "|1'W| left, measured", *map(label, keys))
    note = (
        "B, the decay budget: the sum over the steps of decay times learning rate / (1 - momentum); |1'W| shrinks by "
        "about exp(-B), whatever the data are. No law is known for Adam, L-BFGS, squared error and fixed rows. "
        "Measures at the end; below them what is expected of an untrained head, and the value at the exact minimum for "
        "the run's classes, decays and sign of features."
    )
    return [Table(THEORY, rows, header, note, sortable=True, fold_note=True, foldable=True)]


def _in_theory(group: Group, key: str) -> str:
    known = (("untrained", "untrained"), ("minimum", "minimizer"))
    found = [(word, group.mean(f"{part}.{key}")) for word, part in known]
    return ", ".join(f"{word}\u00a0{number(x)}" for word, x in found if not math.isnan(x))


def _mean_cell(values: Sequence[float]) -> Cell:
    mean = sum(values) / len(values) if values else math.nan
    return Cell(number(mean) if values else "-", sort=mean)


def cost_table(costs: Sequence[Mapping[str, Any]]) -> Table:
    """What a training step costs, measured, with ratios to the first configuration of the same network."""
    axes = list(costs[0]["labels"])
    base = {item["labels"].get("network", ""): item for item in reversed(costs)}
    rows = []
    for item in costs:
        first = base[item["labels"].get("network", "")]
        saved = 100 * (1 - item["parameters"] / max(first["parameters"], 1))
        rows.append(
            [
                *(Cell(item["labels"][axis]) for axis in axes),
                Cell(f"{item['parameters']:,}", f"{-saved:+.2f} %" if item is not first else "", item["parameters"]),
                *(Cell(f"{item[part] / MIB:,.2f}", _more(item, first, part), item[part]) for part in COST_PARTS),
                Cell(f"{1000 * item['step_seconds']:.1f}", _more(item, first, "step_seconds"), item["step_seconds"]),
            ]
        )
    header = (*axes, "parameters", "weights, MiB", "gradients, MiB", "optimiser, MiB", "peak, MiB", "step, ms")
    note = (
        f"Measured on one {device(costs)}: memory of the tensors, the most held at once during a "
        "step, and the median time of steps taken in turns. Percentages: against the first row of the network."
    )
    return Table("What a training step costs", rows, header, note, sortable=True, tall=True, foldable=True)


def _more(item: Mapping[str, Any], first: Mapping[str, Any], part: str) -> str:
    return f"{100 * (item[part] / first[part] - 1):+.1f} %" if item is not first and first[part] else ""


def survey_tables(surveys: Sequence[Numbers]) -> list[Table]:
    """A row for each model, and one for each critical point."""
    rows = []
    for survey in surveys:
        verdicts = Counter(survey["starts"]["verdicts"])
        kinds = Counter(entry["verdict"] for entry in survey["atlas"])
        gap = max(survey["starts"]["gaps"])
        minimum = survey["minimum"]
        rows.append(
            [
                Cell(survey_name(survey)),
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
            Cell(survey_name(survey)),
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
    note = (
        "Groups: the classes of a group share one class mean and one row of the classifier; points of low rank are "
        "named by their shape. Index: the number of negative eigenvalues of the Hessian, 0 at a minimum. NC1 is 0 at "
        "every critical point, saddles included: it certifies nothing."
    )
    return [
        Table("The models", rows, header, sortable=True),
        Table("Critical points", points, columns, note, sortable=True, tall=True, names=[1]),
    ]


def survey_csv(surveys: Sequence[Numbers]) -> str:
    """A line for each random start: its model, where it ended, its verdict and certified gap."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("model", "start", "objective", "gap", "verdict"))
    for survey in surveys:
        starts = survey["starts"]
        for i, row in enumerate(zip(starts["objectives"], starts["gaps"], starts["verdicts"], strict=True)):
            writer.writerow((survey["name"], i, f"{row[0]:.12g}", f"{row[1]:.3g}", row[2]))
    return text.getvalue()
