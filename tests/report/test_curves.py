import math

import pytest

from neuralcollapse.report.curves import head_curve, nearest_curves, run_curves
from neuralcollapse.report.figure import COLORS, GREY
from neuralcollapse.runs.records import Record
from tests.helpers import made_record

NAN = math.nan


def record(epoch: int, nc1: float) -> Record:
    return Record(epoch, 0.0, 0.1, {"loss": 1.0, "accuracy": 0.5}, {}, {"nc1": nc1})


def test_curves_hold_the_records(short_run):
    records = short_run.records()
    loss, accuracy, variability, simplex = run_curves(records)
    assert [mark.name for mark in loss.marks] == ["train", "test"]
    assert variability.y.log
    assert variability.marks[0].x == [0, 1, 2, 3, 4]
    assert variability.marks[0].y == [r.measures["nc1"] for r in records]
    assert accuracy.marks[1].y == [r.test["accuracy"] for r in records]
    assert [mark.name for mark in simplex.marks[:3]] == ["NC2", "NC2, means", "NC3"]


def test_the_test_set_has_dashed_lines_in_the_colours_of_the_training_set(short_run):
    records = short_run.records()
    loss, _, variability, simplex = run_curves(records)
    assert [(mark.color, mark.dash) for mark in loss.marks] == [(COLORS[0], "solid"), (COLORS[0], "dash")]
    for figure, names in ((variability, ["NC1", "NC1, quotient", "NC1, CDNV"]), (simplex, ["NC2, means", "NC3"])):
        lines = {mark.name: mark for mark in figure.marks}
        for name in names:
            assert lines[name].color == lines[f"{name}, test"].color
            assert (lines[name].dash, lines[f"{name}, test"].dash) == ("solid", "dash")
    assert variability.marks[3].y == [r.test["nc1"] for r in records]
    assert "NC2, test" not in [mark.name for mark in simplex.marks]  # the weight is the same for both


def test_the_nearest_mean_has_lines_for_each_layer_on_both_sets():
    def at(epoch, shift):
        def part(x):
            return {"ncc_accuracy": x + shift}

        layers, test_layers = {"a": part(0.2), "b.0": part(0.3)}, {"a": part(0.1), "b.0": part(0.2)}
        return made_record(epoch, test=part(0.4), measures=part(0.5), layers=layers, test_layers=test_layers)

    (figure,) = nearest_curves([at(0, 0.0), at(1, 0.1)])
    found = {mark.name: mark for mark in figure.marks}
    assert list(found) == ["a", "b.0", "features", "a, test", "b.0, test", "features, test"]
    assert found["b.0, test"].y == pytest.approx([0.2, 0.3])
    assert found["features"].y == pytest.approx([0.5, 0.6])
    assert found["b.0"].color == found["b.0, test"].color != found["a"].color
    assert nearest_curves([made_record()]) == []


def test_figures_are_marked_where_collapse_begins_and_where_training_stopped_early():
    def at(epoch, accuracy, nc1, **more):
        return made_record(epoch, train={"accuracy": accuracy, "loss": 1.0}, nc1=nc1, **more)

    records = [at(0, 0.1, 3.0), at(1, 0.99, 2.0), at(2, 0.9995, 1.0), at(3, 1.0, 0.5)]
    for figure in run_curves(records):
        assert figure.events == [(2.0, "collapse begins")]
        assert figure.alt.endswith("Collapse began at epoch 2 (fitted, and NC1 falls).")
    records.append(at(4, 1.0, 0.6, events={"stopped": "nc1 has not fallen for 1 measurement"}))
    for figure in run_curves(records):
        assert figure.events == [(2.0, "collapse begins"), (4.0, "stopped early")]
    records.append(at(5, 1.0, 0.4))  # it went on later
    assert run_curves(records)[0].events == [(2.0, "collapse begins")]


def test_without_a_test_set_there_is_one_line():
    loss, *_ = run_curves([record(0, NAN), record(1, 0.5)])
    assert [mark.name for mark in loss.marks] == ["train"]


def expecting(epoch: int, minimum: float, **others: float) -> Record:
    return Record(epoch, 0.0, 0.1, {}, {}, {"nc2": 1.0, "nc3": 1.0}, minimizer={"nc2": minimum, **others})


def test_a_minimum_that_all_measures_share_is_one_grey_line():
    *_, simplex = run_curves([expecting(0, 0.0, nc3=0.0), expecting(1, 0.0, nc3=0.0)])
    (line,) = [mark for mark in simplex.marks if mark.dash == "dash"]
    assert (line.name, line.y, line.color, line.width) == ("at the minimum", [0.0, 0.0], GREY, 1)
    assert "At the exact minimum: NC2 0, NC3 0." in simplex.alt


def test_minima_that_differ_have_the_colours_of_their_curves_and_one_entry_in_the_legend():
    *_, simplex = run_curves([expecting(0, 0.3, nc3=0.2), expecting(1, 0.4, nc3=0.2)])
    lines = [mark for mark in simplex.marks if mark.dash == "dash"]
    assert [(line.name, line.color, line.legend) for line in lines] == [
        ("NC2, at the minimum", COLORS[0], False),
        ("NC3, at the minimum", COLORS[2], False),
        ("at the minimum", GREY, True),
    ]
    assert lines[0].y == [0.3, 0.4]
    assert all(map(math.isnan, lines[2].y))


HEAD = {"objective": 0.3, "minimum": 0.25, "ratio": 1.2, "lower_bound": 0.2}


@pytest.mark.parametrize(
    ("more", "line", "words"),
    [
        ({}, "exact minimum, real features", "with real features: its objective, the exact minimum"),
        ({"nonnegative": 1, "exact": 1}, "exact minimum, features >= 0", "with features >= 0"),
        ({"nonnegative": 1, "exact": 0}, "upper bound of the minimum, features >= 0", "the upper bound of the minimum"),
    ],
)
def test_the_curve_of_a_head_names_its_model(more, line, words):
    records = [Record(epoch, 0.0, 0.1, {"loss": 1.0}, head=HEAD | more) for epoch in (0, 1)]
    assert "At the end, 1.2 times" in head_curve(records, "epoch").caption
    figure = head_curve([*records, Record(2, 0.0, 0.1, {"loss": 1.0})], "epoch")  # died
    assert [mark.name for mark in figure.marks] == ["the head", line, "bound from the head"]
    assert words in figure.caption
    assert "At epoch 1, 1.2 times" in figure.caption
