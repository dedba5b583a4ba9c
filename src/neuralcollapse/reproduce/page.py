"""The page of an experiment: claim, verdict, figures, means over seeds, and every run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from neuralcollapse.errors import InputError
from neuralcollapse.report.class_means import geometry_figures
from neuralcollapse.report.comparison import LOSS, collapse_panels, differences, run_table, shared_tables
from neuralcollapse.report.figure import Figure
from neuralcollapse.report.group_curves import comparison_curve
from neuralcollapse.report.page import Claim, Page, Table
from neuralcollapse.report.records_csv import csv_label, records_csv
from neuralcollapse.reproduce.checks import Results, judge
from neuralcollapse.reproduce.figures import FIGURES, validate_figures
from neuralcollapse.reproduce.runner import ExperimentFolder
from neuralcollapse.reproduce.tables import cost_table, group_table, survey_csv, survey_tables, theory_table
from neuralcollapse.runs.reading import group_runs

_SMOKE = "A smoke run, which tests the machinery on something tiny and proves nothing of the claim: "


def experiment_page(folder: ExperimentFolder) -> Page:
    """The page of an experiment, of the runs that are whole."""
    experiment, results = folder.experiment, folder.results()
    there = len(results.runs) + len(results.surveys)
    if not there:
        raise InputError(f"{folder.path}: no run is whole yet: go on with 'neuralcollapse reproduce {experiment.name}'")
    verdict, (lead, others) = judge(experiment.checks, results), _tables(results)
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
        tables=[*lead, *others],
        claim=Claim(experiment.claim, experiment.source, "not tested" if smoke else verdict.word, verdict.findings),
        lead=len(lead),
        csv=(
            f"{experiment.name}-{experiment.scale}.csv",
            records_csv(results.runs) if results.runs else survey_csv(results.surveys),
        ),
        csv_label=csv_label(results.runs),
        panels=collapse_panels([figure.name for figure in drawn]),
    )


def figures(wanted: Sequence[Mapping[str, Any]], results: Results, source: str) -> list[Figure]:
    """The figures that an experiment asks for, each by its `kind`; the loss; the geometry of each group's first run.

    The claims are about the end of training, and the loss shows whether it was near.
    """
    validate_figures(wanted, source)
    drawn = {}
    for item in wanted:
        try:
            figure = FIGURES[item["kind"]](results, **{name: part for name, part in item.items() if name != "kind"})
        except (KeyError, ValueError) as error:
            raise InputError(f"{source}: figure {item['kind']!r} cannot be drawn of these runs: {error}") from None
        if figure is not None:
            drawn[figure.name] = figure  # each once
    groups = group_runs(results.runs)
    if any(not math.isnan(group.mean(LOSS)) for group in groups):
        loss = comparison_curve(groups, LOSS, log=True)
        drawn.setdefault(loss.name, loss)
    geometry = geometry_figures([group.runs[0] for group in groups])
    if not geometry and len(drawn) in (2, 4):  # thirds of the page would leave a gap
        return [replace(figure, size="wide") for figure in drawn.values()]
    return [*drawn.values(), *geometry]


def _tables(results: Results) -> tuple[list[Table], list[Table]]:
    """Those above the figures, of which the first says what differs, as on a page of several runs; and those below."""
    if results.surveys:
        first, *others = survey_tables(results.surveys)
        return [first], others
    groups = group_runs(results.runs)
    lead = [*differences(groups, numbers=False), group_table(groups), *theory_table(groups)]
    costs = [cost_table(results.costs)] if results.costs else []
    return lead, [*costs, run_table(results.runs, groups), *shared_tables(results.runs)]


def _time(results: Results) -> str:
    seconds = sum(run.last.seconds for run in results.runs)
    if not seconds:
        return ""
    threads = sorted({str(run.environment.get("threads")) for run in results.runs})
    place = next((run.environment["gpu"] for run in results.runs if run.environment.get("gpu")), None)
    where = place or f"{' or '.join(threads)} CPU thread{'' if threads == ['1'] else 's'}"
    return f"; {seconds / 60:.0f} minutes in all on {where}" if seconds > 90 else f"; {seconds:.0f} s in all on {where}"
