import math

from neuralcollapse.report.figure import COLORS, Band
from neuralcollapse.report.group_curves import NAMED, comparison_curve
from neuralcollapse.runs.reading import Run, group_runs
from neuralcollapse.runs.records import Record

NAN = math.nan


def record(epoch: int, nc1: float) -> Record:
    return Record(epoch, 0.0, 0.1, {"loss": 1.0, "accuracy": 0.5}, {}, {"nc1": nc1})


def run(name, values, **labels):
    return Run(name, {}, {}, [record(i, x) for i, x in enumerate(values)], labels=labels)


def expecting(epoch: int, minimum: float) -> Record:
    return Record(epoch, 0.0, 0.1, {}, {}, {"nc2": 1.0, "nc3": 1.0}, minimizer={"nc2": minimum})


def test_a_curve_is_the_mean_over_seeds_in_their_range():
    groups = group_runs([run("a", [4, 1], x="p"), run("b", [8, 3], x="p")])
    band, mean, *alone = comparison_curve(groups, "nc1", log=True).marks
    assert isinstance(band, Band)
    assert (band.low, band.high, mean.y) == ([4, 1], [8, 3], [6, 2])
    assert band.name == mean.name == "p"
    assert [(line.name, line.y) for line in alone] == [("a", [4, 1]), ("b", [8, 3])]
    assert all(line.only_selected and not line.legend for line in alone)
    assert [mark.selected_by for mark in (band, mean, *alone)] == [("p", "a", "b")] * 2 + [("a", "p"), ("b", "p")]


def test_what_is_undefined_is_left_out_of_the_mean_whatever_the_order():
    for values in ([NAN, 3], [3, NAN]):
        runs = [run(str(i), [x, NAN], x="p") for i, x in enumerate(values)]
        band, mean, *_ = comparison_curve(group_runs(runs), "nc1").marks
        for line in (band.low, band.high, mean.y):
            assert line[0] == 3
            assert math.isnan(line[1])


def test_epochs_that_only_one_seed_has_are_left_out():
    _, mean, *_ = comparison_curve(group_runs([run("a", [4, 1], x="p"), run("b", [8], x="p")]), "nc1").marks
    assert (mean.x, mean.y) == ([0], [6])


def test_groups_are_compared_with_what_theory_expects_of_each():
    def runs(*minima):
        return [
            Run(str(i), {}, {}, [expecting(0, x), expecting(1, x)], labels={"x": str(i)}) for i, x in enumerate(minima)
        ]

    own = comparison_curve(group_runs(runs(0.3, 0.2)), "nc2").marks
    assert [mark.name for mark in own] == ["0", "1", "0, at the minimum", "1, at the minimum", "at the minimum"]
    assert own[3].color == own[1].color
    assert [mark.name for mark in comparison_curve(group_runs(runs(0.3, 0.3)), "nc2").marks][2:] == ["at the minimum"]
    zero = comparison_curve(group_runs(runs(0.0, 0.0)), "nc2", log=True).marks
    assert [mark.name for mark in zero] == ["0", "1"]  # a logarithmic axis has no 0


def test_a_run_alone_is_one_line_that_its_name_selects():
    (line,) = comparison_curve(group_runs([run("a", [4, 1])]), "nc1").marks
    assert (line.selected_by, line.only_selected, line.legend) == (("a",), False, True)


def test_an_axis_is_logarithmic_where_means_are_positive_and_far_apart():
    def log(*values):
        return comparison_curve(group_runs([run("a", values)]), "nc1").y.log

    assert log(3, 0.01)
    assert not log(3, 1)
    assert not log(3, 0.01, 0)
    assert not log(NAN, NAN)


def test_many_groups_are_named_by_the_tables_and_not_in_a_legend():
    for count, legend in ((NAMED, True), (NAMED + 1, False)):
        marks = comparison_curve(group_runs([run(f"{i}", [4, 1]) for i in range(count)]), "nc1").marks
        assert {mark.legend for mark in marks} == {legend}
        assert marks[-1].color == COLORS[(count - 1) % len(COLORS)]


def test_the_caption_says_how_many_seeds_lines_and_bands_are_of():
    two, one = [run("a", [1], x="p"), run("b", [2], x="p")], [run("c", [3], x="q")]
    assert "Mean and range of 2 seeds." in comparison_curve(group_runs(two), "nc1").caption
    some = comparison_curve(group_runs(two + one), "nc1").caption
    assert "Mean and range of several seeds where there are any." in some
    assert "seed" not in comparison_curve(group_runs(one), "nc1").caption
