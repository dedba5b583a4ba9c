"""The page of an experiment: claim, verdict, figures, means over seeds, and every run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from neuralcollapse.errors import InputError
from neuralcollapse.report import comparison_figures
from neuralcollapse.report.comparison import NUMBERS, as_number, run_table, setting_tables
from neuralcollapse.report.figures import Figure
from neuralcollapse.report.page import Cell, Claim, Page, Table
from neuralcollapse.report.records_csv import records_csv
from neuralcollapse.reproduce.checks import Results, judge, validate_item
from neuralcollapse.reproduce.figures import energy_figure, gap_figure, survey_csv, survey_tables
from neuralcollapse.reproduce.minority import cosine_at_minimum, minority_cosine
from neuralcollapse.reproduce.runner import ExperimentFolder
from neuralcollapse.runs.reading import Group, group_runs
from neuralcollapse.runs.records import label


def experiment_page(folder: ExperimentFolder) -> Page:
    """The page of an experiment, of the runs that are whole.

    Raises:
        InputError: none is, damaged files, or figures that there are none of.
    """
    experiment, results = folder.experiment, folder.results()
    there = len(results.runs) + len(results.surveys)
    if not there:
        raise InputError(f"{folder.path}: no run is whole yet: go on with 'neuralcollapse reproduce {experiment.name}'")
    verdict = judge(experiment.checks, results)
    missing = "" if there == len(experiment.runs) else f", of {len(experiment.runs)}: the others are missing"
    tables = _tables(results)
    return Page(
        title=experiment.title,
        subtitle=f"{experiment.name}, {experiment.scale} scale; {there} runs{missing}{_time(results)}",
        verdict=verdict.sentence,
        cards=[],
        figures=figures(experiment.figures, results, experiment.name),
        tables=tables,
        claim=Claim(
            experiment.claim,
            experiment.source,
            verdict.word,
            [(finding.holds, finding.say, finding.detail) for finding in verdict.findings],
        ),
        lead=1,
        csv=(
            f"{experiment.name}-{experiment.scale}.csv",
            records_csv(results.runs) if results.runs else survey_csv(results.surveys),
        ),
    )


def figures(wanted: Sequence[Mapping[str, Any]], results: Results, source: str) -> list[Figure]:
    """The figures that an experiment asks for, each by its `kind`, then the geometry of the first run of each group.

    Raises:
        InputError: as `validate_figures`, or an axis that there is not, or of which the values are no numbers.
    """
    validate_figures(wanted, source)
    drawn = {}
    for item in wanted:
        try:
            figure = _FIGURES[item["kind"]](results, **{name: part for name, part in item.items() if name != "kind"})
        except (KeyError, ValueError) as error:
            raise InputError(f"{source}: figure {item['kind']!r} cannot be drawn of these runs: {error}") from None
        if figure is not None:
            drawn[figure.name] = figure  # each once
    firsts = [group.runs[0] for group in group_runs(results.runs)]
    return [*drawn.values(), *comparison_figures.geometry_figures(firsts)]


def validate_figures(wanted: Sequence[Mapping[str, Any]], source: str) -> None:
    """Raise unless every figure is of a kind that there is, with options that it takes.

    Raises:
        InputError: naming the first that is not.
    """
    for item in wanted:
        validate_item(item, _FIGURES, f"{source}: figure")


def _curve(results: Results, key: str, log: bool = False) -> Figure:
    return comparison_figures.curve(group_runs(results.runs), key, log=log)


def _axis(results: Results, axis: str, key: str, log: bool = False) -> Figure:
    return comparison_figures.along(group_runs(results.runs), axis, key, log=log)


def _depth(results: Results, key: str, log: bool = False) -> Figure:
    return comparison_figures.by_depth(group_runs(results.runs), key, log=log)


def _minority(results: Results, axis: str) -> Figure:
    return comparison_figures.minority(group_runs(results.runs), axis, minority_cosine, cosine_at_minimum)


def _cost(results: Results, of: str) -> Figure | None:
    return comparison_figures.cost(results.costs, of) if results.costs else None


_FIGURES: dict[str, Callable[..., Figure | None]] = {
    "curve": _curve,
    "axis": _axis,
    "depth": _depth,
    "minority": _minority,
    "cost": _cost,
    "energy": lambda results: energy_figure(results.surveys),
    "gaps": lambda results: gap_figure(results.surveys),
}


def _tables(results: Results) -> list[Table]:
    if results.surveys:
        return survey_tables(results.surveys)
    groups = group_runs(results.runs)
    tables = [group_table(groups)]
    if results.costs:
        tables.append(cost_table(results.costs))
    return [*tables, run_table(results.runs), *setting_tables(results.runs)]


def _time(results: Results) -> str:
    seconds = sum(run.last.seconds for run in results.runs)
    if not seconds:
        return ""
    threads = sorted({str(run.environment.get("threads")) for run in results.runs})
    place = next((run.environment["gpu"] for run in results.runs if run.environment.get("gpu")), None)
    where = place or f"{' or '.join(threads)} CPU thread{'' if threads == ['1'] else 's'}"
    return f"; {seconds / 60:.0f} minutes in all on {where}" if seconds > 90 else f"; {seconds:.0f} s in all on {where}"


def group_table(groups: Sequence[Group]) -> Table:
    """A row for each group: means over seeds, with standard deviations."""
    keys = [key for key in NUMBERS if any(not math.isnan(group.mean(key)) for group in groups)]
    seeds = max(len(group.runs) for group in groups)
    axes = list(groups[0].labels)
    counted = all(isinstance(group.runs[0].environment.get("parameters"), int) for group in groups)
    rows = []
    for group in groups:
        parameters = group.runs[0].environment.get("parameters")
        rows.append(
            [
                *(Cell(group.labels[axis], sort=as_number(group.labels[axis])) for axis in axes),
                Cell(str(len(group.runs)), sort=len(group.runs)),
                *([Cell(f"{parameters:,}", sort=parameters)] if counted else []),
                *(Cell(group.formatted(key), sort=group.mean(key)) for key in keys),
            ]
        )
    header = (*axes, "seeds", *(["parameters"] if counted else []), *map(label, keys))
    note = "At the end, on the training set but for the test accuracy."
    if seeds > 1:
        note += " Mean ± standard deviation over seeds."
    return Table("The runs at their end", rows, header, note, sortable=True)


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
                *(
                    Cell(
                        f"{item[part] / comparison_figures.MIB:,.2f}",
                        f"{100 * (item[part] / first[part] - 1):+.1f} %" if item is not first and first[part] else "",
                        item[part],
                    )
                    for part in comparison_figures.COST_PARTS
                ),
                Cell(
                    f"{1000 * item['step_seconds']:.1f}",
                    f"{100 * (item['step_seconds'] / first['step_seconds'] - 1):+.1f} %" if item is not first else "",
                    item["step_seconds"],
                ),
            ]
        )
    header = (*axes, "parameters", "weights, MiB", "gradients, MiB", "optimiser, MiB", "peak, MiB", "step, ms")
    note = (
        f"Measured on one {comparison_figures.device(costs)}: memory of the tensors, the most held at once during a "
        "step, and the median time of steps taken in turns. Below: against the first row of the network."
    )
    return Table("What a training step costs", rows, header, note, sortable=True)
