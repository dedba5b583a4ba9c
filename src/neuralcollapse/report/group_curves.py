"""One number of several runs by epoch: a line for each group of seeds, in the band that its runs span.

A page lets one select a run or a group: `selected_by` says which selections a mark belongs to. The curve of a single
run of a group with several seeds is drawn only while it is selected.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from neuralcollapse.report.curves import figure_name, key_axis, key_meaning, key_title, mean
from neuralcollapse.report.expected import Curve, reference_lines
from neuralcollapse.report.figure import COLORS, Axis, Band, Figure, Line
from neuralcollapse.report.thinning import POINTS, evenly, kept_points
from neuralcollapse.runs.reading import Group, Run, common_unit
from neuralcollapse.runs.records import number

NAMED = 10  # groups in a legend; of more the legend would hide the curves, and the tables name them
_WIDE = 30.0  # the largest mean over the smallest from which a linear axis hides the small ones


def group_colors(groups: Sequence[Group]) -> list[str]:
    """The colour of each group, the same in every figure and table."""
    return [COLORS[i % len(COLORS)] for i in range(len(groups))]


def selections(group: Group) -> tuple[str, ...]:
    """The names whose selection leaves the marks of the group as they are: its own, and those of its runs."""
    return tuple(dict.fromkeys((group.name, *(run.name for run in group.runs))))


def comparison_curve(groups: Sequence[Group], key: str, *, log: bool | None = None) -> Figure:
    """A number by epoch, a line for each group: the mean over its seeds, in the range that they span.

    The axis is logarithmic where `log` says so; when it is None, where the means are positive and spread widely.
    """
    unit = common_unit(run for group in groups for run in group.runs)
    bands: list[Band] = []
    means: list[Line] = []
    alone: list[Line] = []
    beside: list[Curve] = []
    for group, color in zip(groups, group_colors(groups), strict=True):
        all_epochs, all_rows = _by_epoch(group, key)
        low, high = ([extreme(row, default=math.nan) for row in all_rows] for extreme in (min, max))
        kept = kept_points([low, high])
        epochs, rows = [all_epochs[i] for i in kept], [all_rows[i] for i in kept]
        of = selections(group)
        if len(group.runs) > 1:
            bands.append(
                Band(group.name, epochs, [low[i] for i in kept], [high[i] for i in kept], color, selected_by=of)
            )
            alone += [_of_run(run, key, color, group) for run in group.runs]
        means.append(
            Line(group.name, epochs, [mean(row) for row in rows], color, legend=len(groups) <= NAMED, selected_by=of)
        )
        even = evenly(len(all_epochs), POINTS)  # the same of all groups of this length: their lines may be one
        beside.append((group.name, color, [all_epochs[i] for i in even], partial(_means, group, even)))
    log = _spread_widely([y for line in means for y in line.y]) if log is None else log
    ends = "; ".join(f"{group.name} {number(group.mean(key))}" for group in groups)
    return Figure(
        figure_name("curve", key),
        key_title(key),
        f"{key_meaning(key)}{_seeds(groups)}",
        f"{key_title(key)} by {unit}. At the end: {ends}.",
        [*bands, *means, *alone, *reference_lines({key: beside}, log=log)],
        Axis(unit, whole=True),
        key_axis(key, log),
        read_together=True,
    )


def _of_run(run: Run, key: str, color: str, group: Group) -> Line:
    values = [record.value(key) for record in run.records]
    kept = kept_points([values])
    epochs = [run.records[i].epoch for i in kept]
    y = [values[i] for i in kept]
    of = (run.name, group.name)
    return Line(run.name, epochs, y, color, legend=False, width=2.5, selected_by=of, only_selected=True)


def _seeds(groups: Sequence[Group]) -> str:
    """What lines and bands are of, where there are several seeds."""
    counts = sorted({len(group.runs) for group in groups})
    if counts[-1] == 1:
        return ""
    many = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}" if counts[0] > 1 else "several"
    some = "" if counts[0] > 1 else " where there are any"
    return f" Mean and range of {many} seeds{some}."


def _spread_widely(values: Sequence[float]) -> bool:
    """Whether all that is defined is positive, and the largest far above the smallest."""
    seen = [value for value in values if math.isfinite(value)]
    return bool(seen) and min(seen) > 0 and max(seen) > _WIDE * min(seen)


def _means(group: Group, kept: Sequence[int], key: str) -> list[float]:
    rows = _by_epoch(group, key)[1]
    return [mean(rows[i]) for i in kept]


def _by_epoch(group: Group, key: str) -> tuple[list[int], list[list[float]]]:
    """Epochs that every run of the group has, and the runs' values there; those that are undefined are left out."""
    found = [{record.epoch: record.value(key) for record in run.records} for run in group.runs]
    epochs = [epoch for epoch in found[0] if all(epoch in other for other in found)]
    rows = [[x for values in found if not math.isnan(x := values[epoch])] for epoch in epochs]
    return epochs, rows
