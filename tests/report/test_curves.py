import math

from neuralcollapse.report.curves import comparison_curve, run_curves
from neuralcollapse.report.figure import Band
from neuralcollapse.runs.reading import Run, group_runs
from neuralcollapse.runs.records import Record

NAN = math.nan


def record(epoch: int, nc1: float) -> Record:
    return Record(epoch, 0.0, 0.1, {"loss": 1.0, "accuracy": 0.5}, {}, {"nc1": nc1})


def run(name, values, **labels):
    return Run(name, {}, {}, [record(i, x) for i, x in enumerate(values)], labels=labels)


def test_curves_hold_the_records(short_run):
    records = short_run.records()
    loss, accuracy, variability, simplex = run_curves(records)
    assert [mark.name for mark in loss.marks] == ["train", "test"]
    assert variability.y.log
    assert variability.marks[0].x == [0, 1, 2, 3, 4]
    assert variability.marks[0].y == [r.measures["nc1"] for r in records]
    assert accuracy.marks[1].y == [r.test["accuracy"] for r in records]
    assert [mark.name for mark in simplex.marks] == ["NC2", "NC2, means", "NC3"]


def test_without_a_test_set_there_is_one_line():
    loss, *_ = run_curves([record(0, NAN), record(1, 0.5)])
    assert [mark.name for mark in loss.marks] == ["train"]


def test_a_curve_is_the_mean_over_seeds_in_their_range():
    groups = group_runs([run("a", [4, 1], x="p"), run("b", [8, 3], x="p")])
    band, mean = comparison_curve(groups, "nc1", log=True).marks
    assert isinstance(band, Band)
    assert (band.low, band.high, mean.y) == ([4, 1], [8, 3], [6, 2])
    assert band.name == mean.name == "p"


def test_what_is_undefined_is_left_out_of_the_mean_whatever_the_order():
    for values in ([NAN, 3], [3, NAN]):
        runs = [run(str(i), [x, NAN], x="p") for i, x in enumerate(values)]
        band, mean = comparison_curve(group_runs(runs), "nc1").marks
        for line in (band.low, band.high, mean.y):
            assert line[0] == 3
            assert math.isnan(line[1])


def test_epochs_that_only_one_seed_has_are_left_out():
    *_, mean = comparison_curve(group_runs([run("a", [4, 1], x="p"), run("b", [8], x="p")]), "nc1").marks
    assert (mean.x, mean.y) == ([0], [6])
