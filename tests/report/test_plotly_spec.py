import json
import math

import numpy as np
import plotly.graph_objects as go
import pytest

from neuralcollapse.report.figure import Axis, Band, Bars, Dots, Figure, HeatMap, Line, Points3D
from neuralcollapse.report.plotly_spec import plotly_spec
from neuralcollapse.report.single import run_figures
from neuralcollapse.runs.reading import read_run

NAN, BLUE = math.nan, "#3b82f6"
EVIL = "<b>x</b>"
PLAIN = Axis()


def spec(marks, x=PLAIN, y=PLAIN, **rest):
    found = plotly_spec(Figure("f", "F", "caption", "alt", marks, x, y, **rest))
    json.dumps(found, allow_nan=False)
    go.Figure(found["data"], found["layout"], [go.Frame(frame) for frame in found["frames"]])
    return found


@pytest.mark.parametrize("percent", [False, True])
def test_an_event_is_an_upright_line_with_its_words_where_there_is_room(percent):
    marks = [Line("curve", [0, 1, 2, 3, 4], [1, 2, 3, 4, 5], BLUE)]
    layout = spec(marks, y=Axis(percent=percent), events=[(1, EVIL), (4, "late")])["layout"]
    assert [(shape["x0"], shape["x1"], shape["yref"]) for shape in layout["shapes"]] == [
        (1, 1, "paper"),
        (4, 4, "paper"),
    ]
    assert [each["text"] for each in layout["annotations"]] == ["&lt;b&gt;x&lt;/b&gt;", "late"]
    assert [each["xanchor"] for each in layout["annotations"]] == ["left", "right"]
    assert {each["yanchor"] for each in layout["annotations"]} == {"bottom" if percent else "top"}
    assert "shapes" not in spec(marks)["layout"]


def test_every_figure_of_a_run_is_valid_plotly_and_plain_json(short_run):
    figures = run_figures(read_run(short_run.path))
    assert len(figures) == 8
    for figure in figures:
        found = plotly_spec(figure)
        json.dumps(found, allow_nan=False)
        go.Figure(found["data"], found["layout"], [go.Frame(frame) for frame in found["frames"]])
        assert all(found[word] for word in ("title", "caption", "alt"))


def test_a_line_keeps_its_numbers_and_leaves_a_gap_for_what_is_undefined():
    (trace,) = spec([Line("a", [0, 1, 2], [NAN, 1 / 3, 1234567.0], BLUE)])["data"]
    assert (trace["x"], trace["y"]) == ([0, 1, 2], [None, 0.333333, 1234567.0])
    assert (trace["mode"], trace["line"]["color"]) == ("lines", BLUE)


@pytest.mark.parametrize(
    ("line", "mode"),
    [(Line("a", [0], [1], BLUE), "markers"), (Line("a", [0, 1], [1, 2], BLUE, markers=True), "lines+markers")],
)
def test_points_are_marked_where_asked_for_or_alone(line, mode):
    assert spec([line])["data"][0]["mode"] == mode


def test_a_line_with_all_its_parts():
    line = Line("a", [0, 1], [1, 2], BLUE, "dot", errors=[0.1, NAN], texts=["p", "q"], hover="{text}: {y:.2f}")
    (trace,) = spec([line])["data"]
    assert trace["line"]["dash"] == "dot"
    assert trace["error_y"]["array"] == [0.1, None]
    assert (trace["text"], trace["hovertemplate"]) == (["p", "q"], "%{text}: %{y:.2f}")
    (quiet,) = spec([Line("a", [0, 1], [1, 2], BLUE, hover="", legend=False)])["data"]
    assert (quiet["hoverinfo"], quiet["showlegend"]) == ("skip", False)


def test_a_band_is_filled_and_goes_with_its_line():
    low, high, line = spec([Band("a", [0, 1], [1, 2], [3, 4], BLUE), Line("a", [0, 1], [2, 3], BLUE)])["data"]
    assert (low["y"], high["y"], line["y"]) == ([1, 2], [3, 4], [2, 3])
    assert (high["fill"], high["fillcolor"]) == ("tonexty", "rgba(59,130,246,0.18)")
    assert low["legendgroup"] == high["legendgroup"] == line["legendgroup"] == "a"


def test_dots_bars_and_cells():
    (dots,) = spec([Dots("a", [1], [2], BLUE, hollow=True, texts=["p"])])["data"]
    assert (dots["mode"], dots["marker"]["symbol"]) == ("markers", "diamond-open")
    bars = spec([Bars("a", ["p", "q"], [1, 2], BLUE)])
    assert (bars["data"][0]["x"], bars["layout"]["xaxis"]["type"]) == (["p", "q"], "category")
    cells = spec([HeatMap([1, 2], [3], np.array([[0.12345, NAN]]), -1, 1, "cos")])
    assert cells["data"][0]["z"] == [[0.123, None]]
    assert "scaleanchor" not in cells["layout"]["yaxis"]


def test_a_matrix_of_names_is_square_with_its_first_row_on_top():
    matrix = spec([HeatMap(["a", "b"], ["a", "b"], np.eye(2), -1, 1, "cos")], Axis(named=False))["layout"]
    assert matrix["yaxis"]["scaleanchor"] == "x"
    assert matrix["yaxis"]["autorange"] == "reversed"
    assert (matrix["xaxis"]["side"], matrix["xaxis"]["showticklabels"]) == ("top", False)


def test_what_moves_has_frames_and_shows_its_last_step():
    steps = np.arange(12.0).reshape(2, 2, 3)
    still = Points3D("still", np.ones((2, 3)), BLUE)
    found = spec([Points3D("a", steps, [BLUE] * 2, spokes=True), still], steps=["0", "9"], step="epoch")
    spokes, points, _ = found["data"]
    assert (points["x"], spokes["x"]) == ([6, 9], [0, 6, None, 0, 9, None])
    assert [frame["name"] for frame in found["frames"]] == ["0", "9"]
    assert found["frames"][0]["traces"] == [0, 1]
    assert found["frames"][0]["data"][1] == {"type": "scatter3d", "x": [0, 3], "y": [1, 4], "z": [2, 5]}


def test_axes_are_as_they_are_asked_for():
    line = Line("a", [1, 2, 3], [1, 10, 100], BLUE)
    layout = spec([line], Axis("epoch", whole=True), Axis(log=True, range=(1, 100)), read_together=True)["layout"]
    assert layout["xaxis"] == {"title": {"text": "epoch"}, "tickformat": "d", "dtick": 1}
    assert (layout["yaxis"]["type"], layout["yaxis"]["range"], layout["yaxis"]["dtick"]) == ("log", [0, 2], 1)
    assert layout["hovermode"] == "x unified"
    layout = spec([line], Axis(ticks=[1, 3]), Axis(percent=True, from_zero=True, zero_line=True))["layout"]
    assert layout["xaxis"] == {"tickvals": [1, 3], "ticktext": ["1", "3"]}
    assert layout["yaxis"] == {"tickformat": ".0%", "rangemode": "tozero", "zeroline": True}
    assert "hovermode" not in layout


@pytest.mark.parametrize(("top", "ticks"), [(20, "D2"), (1e6, 1), (1e12, None)])
def test_log_axes_have_some_ticks_however_long_they_are(top, ticks):
    assert spec([Line("a", [0, 1], [1, top], BLUE)], y=Axis(log=True))["layout"]["yaxis"].get("dtick") == ticks


def test_names_cannot_smuggle_markup_into_plotly():
    found = spec(
        [
            Line(EVIL, [0, 1], [1, 2], BLUE, texts=[EVIL] * 2, hover=f"{EVIL} {{x}}"),
            Dots(EVIL, [0], [1], BLUE, texts=[EVIL]),
            Band(EVIL, [0, 1], [1, 2], [2, 3], BLUE),
            Points3D(EVIL, np.ones((1, 3)), BLUE, [EVIL]),
        ],
        Axis(EVIL),
        Axis(EVIL),
    )
    assert "<b>" not in json.dumps([found["data"], found["layout"]])
    found = spec([HeatMap([EVIL], [EVIL], np.ones((1, 1)), 0, 1, EVIL), Bars(EVIL, [EVIL], [1], BLUE)])
    assert found["data"][0]["x"] == ["&lt;b&gt;x&lt;/b&gt;"]
    assert "<b>" not in json.dumps([found["data"], found["layout"]])
    assert "a<br>b" in json.dumps(spec([], Axis("a\nb")))
