"""The page of an experiment: claim, verdict, figures, means over seeds, and every run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from neuralcollapse.errors import InputError
from neuralcollapse.report.class_means import geometry_figures
from neuralcollapse.report.comparison import collapse_panels, differences, run_table, shared_tables
from neuralcollapse.report.figure import Figure
from neuralcollapse.report.page import Claim, Page, Table
from neuralcollapse.report.records_csv import csv_label, records_csv
from neuralcollapse.reproduce.checks import Results, judge
from neuralcollapse.reproduce.figures import FIGURES, validate_figures
from neuralcollapse.reproduce.runner import ExperimentFolder
from neuralcollapse.reproduce.tables import THEORY, cost_table, group_table, survey_csv, survey_tables, theory_table
from neuralcollapse.runs.reading import group_runs

_SMOKE = "A smoke run, which tests the machinery on something tiny and proves nothing of the claim: "


def experiment_page(folder: ExperimentFolder) -> Page:
    """The page of an experiment, of the runs that are whole."""
    experiment, results = folder.experiment, folder.results()
    there = len(results.runs) + len(results.surveys)
    if not there:
        raise InputError(f"{folder.path}: no run is whole yet: go on with 'neuralcollapse reproduce {experiment.name}'")
    verdict, tables = judge(experiment.checks, results), _tables(results)
    smoke = experiment.scale == "smoke"
    sentence = _SMOKE + verdict.sentence.partition(": ")[2] if smoke else verdict.sentence
    missing = "" if there == len(experiment.runs) else f", of {len(experiment.runs)}: the others are missing"
    drawn = figures(experiment.figures, results, experiment.name)
    return Page(
        title=experiment.title,
        subtitle=f"{experiment.name}, {experiment.scale} scale; {there} runs{missing}{_time(results)}",
        verdict=sentence,
        cards=[],
        figures=drawn,
        tables=tables,
        claim=Claim(experiment.claim, experiment.source, "not tested" if smoke else verdict.word, verdict.findings),
        lead=2 if any(table.heading == THEORY for table in tables) else 1,
        csv=(
            f"{experiment.name}-{experiment.scale}.csv",
            records_csv(results.runs) if results.runs else survey_csv(results.surveys),
        ),
        csv_label=csv_label(results.runs),
        panels=collapse_panels([figure.name for figure in drawn]),
    )


def figures(wanted: Sequence[Mapping[str, Any]], results: Results, source: str) -> list[Figure]:
    """The figures that an experiment asks for, each by its `kind`, then the geometry of the first run of each group."""
    validate_figures(wanted, source)
    drawn = {}
    for item in wanted:
        try:
            figure = FIGURES[item["kind"]](results, **{name: part for name, part in item.items() if name != "kind"})
        except (KeyError, ValueError) as error:
            raise InputError(f"{source}: figure {item['kind']!r} cannot be drawn of these runs: {error}") from None
        if figure is not None:
            drawn[figure.name] = figure  # each once
    geometry = geometry_figures([group.runs[0] for group in group_runs(results.runs)])
    if not geometry and len(drawn) in (2, 4):  # thirds of the page would leave a gap
        return [replace(figure, size="wide") for figure in drawn.values()]
    return [*drawn.values(), *geometry]


def _tables(results: Results) -> list[Table]:
    if results.surveys:
        return survey_tables(results.surveys)
    groups = group_runs(results.runs)
    tables = [group_table(groups), *theory_table(groups)]
    if results.costs:
        tables.append(cost_table(results.costs))
    options = [replace(table, foldable=True) for table in differences(groups)]  # its numbers are in the first table too
    return [*tables, run_table(results.runs, groups), *options, *shared_tables(results.runs)]


def _time(results: Results) -> str:
    seconds = sum(run.last.seconds for run in results.runs)
    if not seconds:
        return ""
    threads = sorted({str(run.environment.get("threads")) for run in results.runs})
    place = next((run.environment["gpu"] for run in results.runs if run.environment.get("gpu")), None)
    where = place or f"{' or '.join(threads)} CPU thread{'' if threads == ['1'] else 's'}"
    return f"; {seconds / 60:.0f} minutes in all on {where}" if seconds > 90 else f"; {seconds:.0f} s in all on {where}"
