"""The page of several runs, side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from neuralcollapse.report.class_means import geometry_figures
from neuralcollapse.report.collapsed import limits, state
from neuralcollapse.report.curves import comparison_curve
from neuralcollapse.report.expected import BUDGET, decay_budget
from neuralcollapse.report.page import Cell, Page, Table
from neuralcollapse.report.records_csv import csv_label, records_csv
from neuralcollapse.report.single import data_name, given, shown
from neuralcollapse.runs.reading import Run, common_unit, group_runs
from neuralcollapse.runs.records import format_value, label, number

NUMBERS = ("train.accuracy", "test.accuracy", "nc1", "nc2", "nc2_means", "nc3", "nc_bias", "head.ratio")
_CURVES = ("nc1", "nc2", "nc2_means", "nc3", "nc_bias", "train.accuracy", "test.accuracy", "head.ratio")
_LOGARITHMIC = ("nc1", "nc_bias", "head.ratio")
_QUIET = ("seed", "loggers", "save_seconds", "checkpoint_every", "measure_every", "measure_at")


def comparison_page(runs: Sequence[Run]) -> Page:
    """The page of several runs: a table that sorts, curves, the geometry of one at a time, what they differ in."""
    data = list(dict.fromkeys(data_name(run.config.get("data", "?")) for run in runs))
    groups = group_runs(runs)
    there = [key for key in _CURVES if any(not math.isnan(group.mean(key)) for group in groups)]
    curves = [comparison_curve(groups, key, log=key in _LOGARITHMIC) for key in there]
    return Page(
        title=f"Neural collapse: {len(runs)} runs side by side",
        subtitle=f"on {', '.join(data)}",
        verdict=comparison_verdict(runs),
        cards=[],
        figures=[*curves, *geometry_figures(runs)],
        tables=[run_table(runs), *setting_tables(runs)],
        lead=1,
        csv=("records.csv", records_csv(runs)),
        csv_label=csv_label(runs),
    )


def comparison_verdict(runs: Sequence[Run]) -> str:
    """How many collapsed, and the range of NC1."""
    words: dict[str, list[str]] = {}
    for run in runs:
        words.setdefault(state(run.last).rstrip(",").partition(",")[0], []).append(run.name)
    parts = [f"{len(names)} {word[:1].lower()}{word[1:]}" for word, names in words.items()]
    nc1 = [x for run in runs if not math.isnan(x := run.last.value("nc1"))]
    spread = f"; NC1 at the end from {number(min(nc1))} to {number(max(nc1))}" if nc1 else ""
    return f"Of {len(runs)} runs: {', '.join(parts)}{spread}."


def run_table(runs: Sequence[Run]) -> Table:
    """A row for each run, with its numbers at the end."""
    keys = [key for key in NUMBERS if any(not math.isnan(run.last.value(key)) for run in runs)]
    axes = list(dict.fromkeys(axis for run in runs for axis in run.labels))
    budgets = any(decay_budget(run) is not None for run in runs)
    rows = []
    for run in runs:
        numbers = [run.last.value(key) for key in keys]
        parameters = run.environment.get("parameters")
        rows.append(
            [
                Cell(run.name),
                *(Cell(run.labels.get(axis, ""), sort=as_number(run.labels.get(axis, ""))) for axis in axes),
                Cell(str(run.config.get("seed", "")), sort=as_number(run.config.get("seed"))),
                Cell(f"{run.last.epoch:,}", sort=run.last.epoch),
                Cell(f"{parameters:,}" if isinstance(parameters, int) else "", sort=as_number(parameters)),
                *(Cell(format_value(key, x), sort=x) for key, x in zip(keys, numbers, strict=True)),
                *(
                    [Cell("" if (budget := decay_budget(run)) is None else number(budget), sort=budget)]
                    if budgets
                    else ()
                ),
            ]
        )
    units = " or ".join(f"{unit}s" for unit in common_unit(runs).split(" or "))
    header = ("run", *axes, "seed", units, "parameters", *map(label, keys), *(["decay budget"] if budgets else ()))
    return Table("Every run at its end", rows, header, f"On the training set. {limits()}", sortable=True)


def setting_tables(runs: Sequence[Run]) -> list[Table]:
    """What the runs differ in, what they share, and where they ran."""
    tables = []
    configs = [run.config for run in runs]
    names = list(dict.fromkeys(name for config in configs for name in config if name not in _QUIET))
    differing = [name for name in names if len({str(config.get(name)) for config in configs}) > 1]
    if differing:
        rows = [(run.name, *(_option(run.config.get(name)) for name in differing)) for run in runs]
        tables.append(Table("What they differ in", rows, ("run", *differing)))
    same = [(name, _option(configs[0].get(name))) for name in names if name not in differing]
    tables.append(Table("What they share", [row for row in same if row[1]], narrow=True))
    tables.append(Table("Where they ran", where(runs), narrow=True))
    return tables


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


def _option(item: object) -> str:
    return shown(item) if given(item) else ""


def as_number(item: object) -> float | None:
    """What a label sorts by: its number, or None for other texts."""
    try:
        return float(item)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
