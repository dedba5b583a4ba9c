import json
import math

import numpy as np
import pytest

from neuralcollapse.report.figure import Axis, Band, Bars, Dots, Figure, HeatMap, Line, Points3D
from neuralcollapse.report.figure_data import figure_data
from neuralcollapse.report.single import run_figures
from neuralcollapse.runs.reading import read_run

NAN, BLUE = math.nan, "#3b82f6"
PLAIN = Axis()


def data(marks, x=PLAIN, y=PLAIN, **rest):
    found = figure_data(Figure("f", "F", "caption", "alt", marks, x, y, **rest))
    json.dumps(found, allow_nan=False)
    return found


def test_every_figure_of_a_run_is_plain_json_with_its_words(short_run):
    figures = run_figures(read_run(short_run.path))
    assert len(figures) == 8
    for figure in figures:
        found = figure_data(figure)
        json.dumps(found, allow_nan=False)
        assert all(found[word] for word in ("title", "caption", "alt"))


def test_a_line_keeps_its_numbers_and_leaves_a_gap_for_what_is_undefined():
    found = data([Line("a", [0, 1, 2], [NAN, 1 / 3, 1234567.0], BLUE)])
    (line,) = found["marks"]
    assert (line["x"], line["y"]) == ([0, 1, 2], [None, 0.333333, 1234567])
    assert (line["color"], line["dash"], line["markers"], line["of"]) == (BLUE, "solid", False, "")
    assert data([Line("a", [0], [1], BLUE)])["marks"][0]["markers"]  # a point alone would not be seen


def test_curves_over_the_same_points_share_them():
    found = data(
        [Line("a", [0, 1], [1, 2], BLUE), Line("b", [0, 1], [3, 4], BLUE), Band("b", [0, 2], [1, 2], [3, 4], BLUE)]
    )
    assert [mark["x"] for mark in found["marks"]] == [[0, 1], 0, [0, 2]]
    assert (found["marks"][2]["low"], found["marks"][2]["high"]) == ([1, 2], [3, 4])


def test_a_line_that_belongs_to_another_says_what_it_shows_of_it():
    line = Line("NC1, test", [0, 1], [1, 2], BLUE, "dash", part_of="NC1")
    (found,) = data([line])["marks"]
    assert (found["of"], found["part"]) == ("NC1", "test")


def test_a_line_with_all_its_parts():
    line = Line("a", [0, 1], [1, 2], BLUE, "dot", errors=[0.1, NAN], texts=["p", "q"], hover="{text}: {y:.2f}")
    (found,) = data([line])["marks"]
    assert (found["dash"], found["errors"], found["texts"]) == ("dot", [0.1, None], ["p", "q"])
    assert found["hover"] == "{text}: {y:.2f}"


def test_dots_bars_and_cells():
    (dots,) = data([Dots("a", [1], [2], BLUE, hollow=True, texts=["p"])])["marks"]
    assert (dots["hollow"], dots["texts"]) == (True, ["p"])
    bars = data([Bars("a", ["p", "q"], [1, 2], BLUE)])
    assert (bars["marks"][0]["x"], bars["x"]["categories"]) == (["p", "q"], ["p", "q"])
    cells = data([HeatMap([1, 2], [3], np.array([[0.12345, NAN]]), -1, 1, "cos")])
    assert (cells["marks"][0]["z"], cells["kind"]) == ([[[0.123, None]]], "flat")
    matrix = data([HeatMap(["a", "b"], ["a", "b"], np.eye(2), -1, 1, "cos", numbers=True)])
    assert (matrix["kind"], matrix["marks"][0]["numbers"]) == ("matrix", True)


@pytest.mark.parametrize(("z", "kept"), [([[1, 2], [2, NAN]], [[1], [2, None]]), ([[1, 2], [3, 4]], [[1, 2], [3, 4]])])
def test_half_of_a_symmetric_matrix_says_all(z, kept):
    (mark,) = data([HeatMap(["a", "b"], ["a", "b"], np.array(z), -1, 1, "cos")])["marks"]
    assert (mark["z"], mark["mirrored"]) == ([kept], len(kept[0]) == 1)


def test_what_moves_has_a_place_for_each_step():
    steps = np.arange(12.0).reshape(2, 2, 3)
    still = Points3D("still", np.ones((2, 3)), BLUE)
    found = data([Points3D("a", steps, [BLUE] * 2, spokes=True), still], steps=["0", "9"], step="epoch")
    moving, rest = found["marks"]
    assert (found["kind"], found["steps"], found["step"]) == ("space", ["0", "9"], "epoch")
    assert moving["points"] == [[[0, 1, 2], [3, 4, 5]], [[6, 7, 8], [9, 10, 11]]]
    assert (len(rest["points"]), moving["spokes"], rest["color"]) == (1, True, BLUE)


def test_axes_events_and_levels_are_as_they_are_asked_for():
    line = Line("a", [1, 2, 3], [1, 10, 100], BLUE)
    x, y = Axis("epoch", whole=True, ticks=[1, 3]), Axis(log=True, range=(1, 100))
    found = data([line], x, y, read_together=True, events=[(2, "begins")], levels=[(10, "enough")])
    assert (found["x"]["title"], found["x"]["whole"], found["x"]["ticks"]) == ("epoch", True, [1, 3])
    assert (found["y"]["log"], found["y"]["range"], found["together"]) == (True, [1, 100], True)
    assert (found["events"], found["levels"]) == ([[2, "begins"]], [[10, "enough"]])
    y = data([line], y=Axis(percent=True, page_log=True, zero_line=True))["y"]
    assert (y["log"], y["percent"], y["zeroLine"], y["fromZero"]) == (True, True, True, False)


@pytest.mark.parametrize("digits", [3, 6])
def test_numbers_have_as_many_digits_as_the_mark_keeps(digits):
    (line,) = data([Line("a", [0, 1], [math.pi, 1e-9 * math.pi], BLUE, digits=digits)])["marks"]
    assert line["y"] == [float(f"{x:.{digits}g}") for x in (math.pi, 1e-9 * math.pi)]
