"""The page of several runs, side by side: what differs, where each ended, and every number by epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from neuralcollapse.errors import listed
from neuralcollapse.report.class_means import geometry_figures
from neuralcollapse.report.collapsed import limits, state
from neuralcollapse.report.expected import BUDGET, decay_budget
from neuralcollapse.report.group_curves import comparison_curve, group_colors
from neuralcollapse.report.page import Cell, Page, Panels, Table
from neuralcollapse.report.records_csv import csv_label, records_csv
from neuralcollapse.report.scree import group_scree
from neuralcollapse.report.seeds import QUIET, differing, seed_groups
from neuralcollapse.report.single import data_name, given, shown
from neuralcollapse.runs.reading import Group, Run, common_unit
from neuralcollapse.runs.records import format_value, label, number

NUMBERS = ("train.accuracy", "test.accuracy", "nc1", "nc2", "nc2_means", "nc3", "nc_bias", "head.ratio")
LOSS = "train.loss"
_CURVES = (LOSS, "nc1", "nc2", "nc2_means", "nc3", "nc_bias", "train.accuracy", "test.accuracy", "head.ratio")
_LOGARITHMIC = (LOSS, "nc1", "nc_bias", "head.ratio")
_MANY = 8  # groups, of which the table scrolls in a box of its own
_SELECT = "Select a name to see its curves stand out in every figure; once more, or Escape, to see all alike."


def comparison_page(runs: Sequence[Run]) -> Page:
    """The page of several runs: what differs, a table that sorts, curves of all, the geometry of one at a time."""
    data = list(dict.fromkeys(data_name(run.config.get("data", "?")) for run in runs))
    groups = seed_groups(runs)
    there = [key for key in _CURVES if any(not math.isnan(group.mean(key)) for group in groups)]
    curves = [comparison_curve(groups, key, log=True if key in _LOGARITHMIC else None) for key in there]
    lead = [*differences(groups), run_table(runs, groups)]
    return Page(
        title=f"Neural collapse: {len(runs)} runs side by side",
        subtitle=f"on {', '.join(data)}{_seeds(groups)}",
        verdict=comparison_verdict(runs),
        cards=[],
        figures=[*curves, *group_scree(groups), *geometry_figures(runs)],
        tables=[*lead, *shared_tables(runs)],
        lead=len(lead),
        csv=("records.csv", records_csv(runs)),
        csv_label=csv_label(runs),
        panels=collapse_panels([figure.name for figure in curves]),
    )


def collapse_panels(names: Sequence[str]) -> list[Panels]:
    """NC1 to NC3 in one figure for a paper, where they are among the figures of these names."""
    wanted = [next((name for name in kind if name in names), None) for kind in _PAPER]
    found = [name for name in wanted if name is not None]
    return [Panels("collapse", "NC1 to NC3", found)] if len(found) > 1 else []


_PAPER = (("curve-nc1",), ("curve-nc2", "curve-nc2_means"), ("curve-nc3", "curve-nc3_distance"))
"""The panels of a paper's figure; of each the first that there is."""


def comparison_verdict(runs: Sequence[Run]) -> str:
    """How many collapsed, and the range of NC1."""
    words: dict[str, list[str]] = {}
    for run in runs:
        words.setdefault(state(run.last).rstrip(",").partition(",")[0], []).append(run.name)
    parts = [f"{len(names)} {word[:1].lower()}{word[1:]}" for word, names in words.items()]
    nc1 = [x for run in runs if not math.isnan(x := run.last.value("nc1"))]
    spread = f"; NC1 at the end from {number(min(nc1))} to {number(max(nc1))}" if nc1 else ""
    return f"Of {len(runs)} runs: {', '.join(parts)}{spread}."


def _seeds(groups: Sequence[Group]) -> str:
    """How many configurations and seeds there are, where any has several seeds."""
    counts = sorted({len(group.runs) for group in groups})
    if counts[-1] == 1:
        return ""
    seeds = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    if len(groups) == 1:
        return f"; {seeds} seeds of one configuration"
    return f"; {len(groups)} configurations with {seeds} seeds{' each' if len(counts) == 1 else ''}"


def differences(groups: Sequence[Group], *, numbers: bool = True) -> list[Table]:
    """A row for each group of seeds: the options in which the groups differ and, over several seeds, where it ended.

    Without `numbers` the options alone, where another table has those of the end.
    """
    names = differing([run for group in groups for run in group.runs])
    several = any(len(group.runs) > 1 for group in groups)
    if not names and not (several and numbers):
        return []
    keys = [key for key in NUMBERS if several and numbers and any(not math.isnan(group.mean(key)) for group in groups)]
    rows = []
    for group, color in zip(groups, group_colors(groups), strict=True):
        config = group.runs[0].config
        seeds = [str(run.config.get("seed", "")) for run in group.runs]
        rows.append(
            [
                Cell(group.name, select=group.name, color=color),
                *(Cell(option(config.get(name)), sort=as_number(config.get(name))) for name in names),
                *([Cell(listed(seeds, 5), sort=len(seeds))] if several else []),
                *(mean_cell(group, key) for key in keys),
            ]
        )
    note = "" if names else "Nothing but the seed. "
    note += "Numbers at the end: mean ± standard deviation over seeds. " if keys else ""
    header = ("runs" if several else "run", *names, *(["seeds"] if several else []), *map(label, keys))
    return [Table("What differs", rows, header, note + _SELECT, sortable=True, tall=len(rows) > _MANY)]


def mean_cell(group: Group, key: str) -> Cell:
    """The mean over seeds, and below it the standard deviation where there are several."""
    mean, spread = group.mean(key), group.spread(key)
    return Cell(format_value(key, mean), "" if math.isnan(spread) else f"±\u00a0{spread:.2g}", mean)


def run_table(runs: Sequence[Run], groups: Sequence[Group] = ()) -> Table:
    """A row for each run, with its numbers at the end; in the colours of the groups where they are given."""
    keys = [key for key in NUMBERS if any(not math.isnan(run.last.value(key)) for run in runs)]
    axes = list(dict.fromkeys(axis for run in runs for axis in run.labels))
    budgets = any(decay_budget(run) is not None for run in runs)
    sizes = len(set(map(_parameters, runs))) > 1
    colors = {run.name: color for group, color in zip(groups, group_colors(groups), strict=True) for run in group.runs}
    rows = []
    for run in runs:
        numbers = [run.last.value(key) for key in keys]
        rows.append(
            [
                Cell(run.name, select=run.name if groups else "", color=colors.get(run.name, "")),
                *(Cell(run.labels.get(axis, ""), sort=as_number(run.labels.get(axis, ""))) for axis in axes),
                Cell(str(run.config.get("seed", "")), sort=as_number(run.config.get("seed"))),
                Cell(f"{run.last.epoch:,}", sort=run.last.epoch),
                *([Cell(_parameters(run), sort=as_number(run.environment.get("parameters")))] if sizes else []),
                *(Cell(format_value(key, x), sort=x) for key, x in zip(keys, numbers, strict=True)),
                *(
                    [Cell("" if (budget := decay_budget(run)) is None else number(budget), sort=budget)]
                    if budgets
                    else ()
                ),
            ]
        )
    units = " or ".join(f"{unit}s" for unit in common_unit(runs).split(" or "))
    known = *axes, "seed", units, *(["parameters"] if sizes else [])
    header = ("run", *known, *map(label, keys), *(["decay budget"] if budgets else ()))
    note = f"On the training set but for the test accuracy. {limits()}"
    return Table("Every run at its end", rows, header, note, sortable=True, tall=True, foldable=True)


def shared_tables(runs: Sequence[Run]) -> list[Table]:
    """What the runs share, and where they ran."""
    configs = [run.config for run in runs]
    differ = differing(runs)
    names = dict.fromkeys(name for config in configs for name in config if name not in (*QUIET, *differ))
    same = [(name, option(configs[0].get(name))) for name in names]
    if len(set(map(_parameters, runs))) == 1:
        same.append(("parameters", _parameters(runs[0])))
    return [
        Table("What they share", [row for row in same if row[1]], narrow=True, folded=True),
        Table("Where they ran", where(runs), narrow=True, folded=True),
    ]


def _parameters(run: Run) -> str:
    """How many parameters its network has, where that is known."""
    count = run.environment.get("parameters")
    return f"{count:,}" if isinstance(count, int) else ""


def where(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Versions and hardware, each with every value that occurs."""
    skip = ("class_names", "class_counts", "parameters", "pixel_mean", "pixel_std", *BUDGET)
    environments: list[Mapping[str, Any]] = [run.environment for run in runs]
    names = list(dict.fromkeys(name for environment in environments for name in environment if name not in skip))
    rows = []
    for name in names:
        values = dict.fromkeys(
            shown(environment[name]) for environment in environments if environment.get(name) is not None
        )
        if values:
            rows.append((name, "; ".join(values)))
    return rows


def option(item: object) -> str:
    """The value of an option for reading; nothing where it was left out."""
    return shown(item) if given(item) else ""


def as_number(item: object) -> float | None:
    """What a label sorts by: its number, or None for other texts."""
    try:
        return float(item)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
