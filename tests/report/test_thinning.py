"""Long curves in fewer points: what must stay stays."""

import json
import math
import random
import re
from dataclasses import replace

import numpy as np
import pytest

from neuralcollapse.report.comparison import comparison_page
from neuralcollapse.report.curves import run_curves
from neuralcollapse.report.figure import Band, Line
from neuralcollapse.report.group_curves import comparison_curve
from neuralcollapse.report.single import single_page
from neuralcollapse.report.thinning import POINTS, evenly, kept_points
from neuralcollapse.runs.reading import Run, group_runs
from neuralcollapse.runs.records import Record


def test_short_curves_stay_as_they_are():
    assert kept_points([[3.0, 1.0, 2.0]], 3) == [0, 1, 2]
    assert kept_points([[], []]) == []
    assert kept_points([range(POINTS)]) == list(range(POINTS))


@pytest.mark.parametrize("curves", [1, 2, 5])
@pytest.mark.parametrize("count", [101, 5000])
def test_ends_and_extremes_stay(curves, count):
    source = np.random.default_rng(0)
    values = source.normal(size=(curves, count))
    values[:, source.integers(0, count, count // 4)] = math.nan
    kept = kept_points(values, 100)
    assert kept == sorted(set(kept))
    assert len(kept) <= 100
    assert (kept[0], kept[-1]) == (0, count - 1)
    for curve in values:
        assert {int(np.nanargmin(curve)), int(np.nanargmax(curve))} <= set(kept)


def test_a_spike_in_any_curve_stays():
    flat, spiked = np.zeros(100_000), np.zeros(100_000)
    spiked[54_321] = 1.0
    flat[12_345] = -1.0
    assert {54_321, 12_345} <= set(kept_points([flat, spiked]))


def test_curves_without_values_stay_short():
    assert len(kept_points([[math.nan] * 5000], 50)) <= 50


def test_even_steps_hold_both_ends():
    assert evenly(0, 5) == []
    assert evenly(3, 5) == [0, 1, 2]
    assert evenly(101, 5) == [0, 25, 50, 75, 100]


def long_run(name="r", count=5000, seed=0):
    source = random.Random(f"{name} {seed}")
    records = [
        Record(
            epoch,
            float(epoch),
            0.1,
            {"loss": source.random(), "accuracy": source.random()},
            {"loss": source.random(), "accuracy": source.random()},
            {"nc1": source.random(), "nc2": source.random(), "nc2_means": 0.1, "nc3": 0.2},
            head={"objective": source.random(), "minimum": 0.1, "lower_bound": 0.05, "ratio": 1.0},
            minimizer={"nc1": 0.0, "nc2": 0.3},
        )
        for epoch in range(count)
    ]
    return Run(name, {"seed": seed}, {}, records, labels={"x": name})


def test_every_line_of_a_long_run_has_its_ends_and_its_extremes():
    run = long_run()
    run.records[1234] = replace(run.records[1234], measures={"nc1": 99.0, "nc2": 5.0})
    figures = run_curves(run.records)
    lines = [mark for figure in figures for mark in figure.marks]
    assert all(isinstance(line, Line) and len(line.x) == len(line.y) <= POINTS for line in lines)
    assert {(line.x[0], line.x[-1]) for line in lines} == {(0, 4999)}
    (nc1,) = [mark for mark in lines if mark.name == "NC1"]
    assert nc1.y[nc1.x.index(1234)] == 99.0
    assert [mark.name for mark in lines].count("at the minimum") == 1  # one line for all, as in a short run


def test_lines_and_bands_of_long_runs_side_by_side_are_thinned():
    groups = group_runs([long_run(name, seed=seed) for name in "ab" for seed in (0, 1)])
    marks = comparison_curve(groups, "nc2").marks
    assert {len(mark.x) <= POINTS for mark in marks} == {True}
    assert sum(isinstance(mark, Band) for mark in marks) == 2
    assert [mark.name for mark in marks].count("at the minimum") == 1


def test_the_page_of_a_long_run_is_not_larger_than_its_curves_and_says_how_many_records_it_holds():
    page = single_page(long_run(count=20_000))
    assert page.csv[1].count("\n") == POINTS + 1
    assert page.csv_label == "Download 2,000 of 20,000 records (CSV); records.jsonl has all"
    text = page.html()
    assert page.csv_label in text
    shorter = single_page(long_run(count=4000)).html()
    assert len(text) < 1.1 * len(shorter)
    assert "Download the records (CSV)" in comparison_page([long_run(count=3)]).html()
    epochs = [json.loads(f"[{found}]") for found in re.findall(r'"x":\[([\d,]+)\]', text)]
    assert {(found[0], found[-1]) for found in epochs} == {(0, 19_999)}
