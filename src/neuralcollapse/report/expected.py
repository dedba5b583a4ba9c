"""What theory expects, on pages: lines beside the curves, columns beside the measures, and what the decay had time for.

A reference line is thin: dashed at the exact minimiser, dotted for an untrained network.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from neuralcollapse.report.figure import GREY, Line
from neuralcollapse.report.page import Table
from neuralcollapse.runs.head_lines import features_words
from neuralcollapse.runs.reading import Run
from neuralcollapse.runs.records import Record, number

ENOUGH_BUDGET = 2.0  # below it a mean row keeps more than exp(-2) = 14 % of its length
BUDGET = ("decay_budget", "row_sum_left")  # entries of environment.json that have a table of their own
_KINDS = {"minimizer": ("at the minimum", "dash"), "untrained": ("untrained", "dot")}  # group of a record: name, dash

# (what a curve is called, its colour, its x, its values by the key of a number)
Curve = tuple[str, str, Sequence[float], Callable[[str], Sequence[float]]]


def reference_lines(curves: Mapping[str, Sequence[Curve]], *, log: bool = False) -> list[Line]:
    """The lines that theory draws beside curves, by the key of the number that each shows.

    Where those of all curves agree, they are one grey line; others have the colour of their curve. The legend names
    each kind once. A logarithmic axis cannot show 0.
    """
    lines: list[Line] = []
    for group, (name, dash) in _KINDS.items():
        found = []
        for key, several in curves.items():
            for curve, color, x, values in several:
                y = [math.nan if log and value <= 0 else value for value in values(f"{group}.{key}")]
                if len(x) > 1 and not all(map(math.isnan, y)):
                    found.append((curve, color, x, y))
        if found and all(_same(one[3], other[3]) for one, other in itertools.pairwise(found)):
            lines.append(Line(name, found[0][2], found[0][3], GREY, dash, width=1))
        elif found:
            lines += [
                Line(f"{curve}, {name}", x, y, color, dash, legend=False, width=1, part_of=curve)
                for curve, color, x, y in found
            ]
            nowhere = [math.nan] * len(found[0][2])  # stands for all of them in the legend
            lines.append(Line(name, found[0][2], nowhere, GREY, dash, hover="", width=1))
    return lines


def _same(one: Sequence[float], other: Sequence[float]) -> bool:
    return len(one) == len(other) and bool(np.allclose(one, other, rtol=1e-3, atol=1e-12, equal_nan=True))


def of_records(records: Sequence[Record], curve: str, color: str) -> Curve:
    """The curve of a run's records."""
    epochs = [record.epoch for record in records]
    return curve, color, epochs, lambda key: [record.value(key) for record in records]


def expected_columns(last: Record) -> list[tuple[str, Mapping[str, float]]]:
    """The columns beside the measures: heading and values, of what is known."""
    columns = [("at the exact minimum", last.minimizer), ("untrained head", last.untrained)]
    return [(heading, values) for heading, values in columns if values]


def expected_note(run: Run) -> str:
    """Which model the columns are of; nothing where no minimum is known."""
    model = run.last.minimizer
    if not model:
        return ""
    sign = features_words(model)
    text = f"for {sign} and equal classes, whatever the decays are"
    if "weight_decay" in model:
        weight, feature, bias = (number(model.get(f"{part}_decay")) for part in ("weight", "feature", "bias"))
        balance = " (from the balance lW |W|^2 = lH |H|^2)" if run.config.get("decay_on") == "all" else ""
        text = (
            f"for the class counts of the run, {sign}, weight decay {weight}, feature decay {feature}{balance}, bias "
            f"decay {bias}"
        )
    start = ", with rows as nn.Linear draws them" if run.last.untrained.get("nc0") else ""
    untrained = f" Untrained head: expected before training{start}." if run.last.untrained else ""
    return f" Exact minimum: of the unconstrained feature model, {text}.{untrained}"


def budget_table(run: Run) -> list[Table]:
    """The decay budget of a run, and how much of |1'W| it leaves, as predicted and as measured."""
    budget, predicted, measured = decay_budget(run), row_sum_left_predicted(run), row_sum_left(run)
    named = [
        ("decay budget B", budget),
        ("|1'W| left at the end, predicted", predicted),
        ("|1'W| left at the end, measured", measured),
    ]
    rows = [(name, number(x)) for name, x in named if x is not None]
    if budget is None:
        return []
    note = "B sums decay times learning rate / (1 - momentum) over the steps; |1'W| shrinks by about exp(-B)."
    if budget < ENOUGH_BUDGET:
        # with decay_on="classifier" the bias has a decay, and so a budget, of its own
        late = "NC2 and duality" if run.config.get("decay_on") == "classifier" else "NC2, duality and the bias"
        note += (
            f" B is below {ENOUGH_BUDGET:g}: {late} had no time to reach what theory expects. Train "
            "longer, with a larger decay, or drop the learning rate later."
        )
    return [Table("What the decay had time for", rows, note=note, foldable=True)]


def decay_budget(run: Run) -> float | None:
    """The decay budget B of a run; None where no law holds or nobody noted it."""
    return _number(run, "decay_budget")


def row_sum_left_predicted(run: Run) -> float | None:
    """What the law says is left of |1'W| at the end of a run; None where no law holds or nobody noted it."""
    return _number(run, "row_sum_left")


def row_sum_left(run: Run) -> float | None:
    """|1'W| at the end over |1'W| before training, from the classifiers that were kept; None where they were not."""
    if len(run.geometries) < 2 or run.geometries[0].epoch != 0:
        return None
    start, end = (float(np.linalg.norm(each.weight.sum(0))) for each in (run.geometries[0], run.geometries[-1]))
    return end / start if start > 1e-6 * float(np.linalg.norm(run.geometries[0].weight)) else None


def _number(run: Run, name: str) -> float | None:
    value = run.environment.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):  # anyone may have written the file
        return None
    return float(value) if math.isfinite(value) else None
