import json
import math

import numpy as np
import plotly.graph_objects as go
import pytest
from neuralcollapse.report.figures import all_figures, cosine_map, simplex_motion, variability_curve

import neuralcollapse as nc
from neuralcollapse.runs.records import Geometry, Record

NAMES = [str(i) for i in range(10)]


def record(epoch: int, nc1: float) -> Record:
    return Record(epoch, 0.0, 0.1, {"loss": 1.0, "accuracy": 0.5}, {}, {"nc1": nc1})


def collapsed(count: int, dim: int, epoch: int = 1) -> Geometry:
    etf = nc.simplex_etf(count, dim).numpy()
    return Geometry(epoch, etf + 1, np.ones(dim), 3 * etf, np.zeros(count))


def test_every_figure_of_a_run_is_valid_plotly_and_plain_json(short_run):
    figures = all_figures(short_run.records(), list(short_run.geometries()), NAMES)
    assert len(figures) == 6
    for figure in figures:
        frames = [go.Frame(frame) for frame in figure.frames]
        go.Figure(data=figure.data, layout=figure.layout, frames=frames)
        json.dumps([figure.data, figure.layout, figure.frames], allow_nan=False)
        assert figure.title
        assert figure.caption
        assert figure.alt


def test_curves_hold_the_records(short_run):
    records = short_run.records()
    figure = variability_curve(records)
    assert figure.layout["yaxis"]["type"] == "log"
    assert figure.data[0]["x"] == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(figure.data[0]["y"], [r.measures["nc1"] for r in records], rtol=1e-5)


def test_an_undefined_value_leaves_a_gap():
    assert variability_curve([record(0, math.nan), record(1, 0.5)]).data[0]["y"] == [None, 0.5]


def test_the_cosine_map_has_a_frame_for_each_epoch_and_shows_a_simplex_as_one():
    figure = cosine_map([collapsed(10, 12, epoch) for epoch in (0, 3, 9)], NAMES)
    assert [frame["name"] for frame in figure.frames] == ["0", "3", "9"]
    shown = np.array(figure.data[0]["z"], dtype=float)
    assert np.isnan(np.diag(shown)).all()
    np.testing.assert_allclose(shown[~np.eye(10, dtype=bool)], -1 / 9, atol=1e-3)
    assert (figure.data[0]["zmin"] + figure.data[0]["zmax"]) / 2 == pytest.approx(-1 / 9)
    assert "-0.111" in figure.caption


def test_many_classes_thin_the_frames_but_keep_the_ends():
    figure = cosine_map([collapsed(200, 200, epoch) for epoch in range(40)], [str(i) for i in range(200)])
    assert len(figure.frames) == 5
    assert (figure.frames[0]["name"], figure.frames[-1]["name"]) == ("0", "39")


@pytest.mark.parametrize(("count", "dim"), [(2, 1), (2, 4), (3, 2), (4, 3), (5, 8), (10, 9), (17, 30)])
def test_collapsed_means_and_rows_land_on_the_vertices(count, dim):
    figure = simplex_motion([collapsed(count, dim)], [str(i) for i in range(count)])
    _, means, rows, vertices = ([trace[axis] for axis in "xyz"] for trace in figure.data)
    np.testing.assert_allclose(means, vertices, atol=1e-3)
    np.testing.assert_allclose(rows, vertices, atol=1e-3)
    np.testing.assert_allclose(np.square(vertices).sum() / count, 1, rtol=1e-3)


def test_too_many_classes_for_a_simplex_are_still_shown_without_vertices():
    rng = np.random.default_rng(0)
    geometry = Geometry(1, rng.standard_normal((9, 2)), np.zeros(2), rng.standard_normal((9, 2)), np.zeros(9))
    figure = simplex_motion([geometry], [str(i) for i in range(9)])
    assert len(figure.data) == 3
    assert "no simplex" in figure.caption


def plain(figure) -> str:
    return json.dumps([figure.data, figure.layout, figure.frames], allow_nan=False)


def test_classes_without_samples_are_left_out():
    geometry = collapsed(5, 6)
    geometry.means[3] = np.nan
    names = list("abcde")
    assert cosine_map([geometry], names).data[0]["x"] == ["a", "b", "c", "e"]
    figure = simplex_motion([geometry], names, "step")
    assert figure.data[1]["text"] == ["a", "b", "c", "e"]
    assert "each step at the same total length" in figure.caption
    plain(figure)
    geometry.means[:4] = np.nan
    plain(cosine_map([geometry], names))
    plain(simplex_motion([geometry], names))


def test_two_classes_and_classes_that_coincide_have_figures():
    plain(cosine_map([collapsed(2, 2)], ["a", "b"]))
    same = Geometry(0, np.ones((3, 4)), np.ones(4), np.zeros((3, 4)), np.zeros(3))
    plain(cosine_map([same], list("abc"), unit="step"))
    plain(simplex_motion([same], list("abc")))


def test_names_on_the_map_are_short_and_all_different():
    names = ["maillot", "maillot", "a very long name of a class indeed", "cat"]
    shown = cosine_map([collapsed(4, 4)], names).data[0]["x"]
    assert shown == ["maillot (0)", "maillot (1)", "a very long name of a c…", "cat"]


def test_many_classes_are_named_under_the_pointer_alone():
    names = [f"class {i}" for i in range(150)]
    geometries = [collapsed(150, 150, epoch) for epoch in range(20)]
    heat, motion = cosine_map(geometries, names), simplex_motion(geometries, names)
    assert heat.layout["xaxis"]["showticklabels"] is False
    assert "under the pointer" in heat.caption
    assert motion.data[1]["mode"] == "markers"
    assert len(plain(heat)) + len(plain(motion)) < 2_500_000


def test_class_names_cannot_smuggle_markup_into_plotly():
    figure = cosine_map([collapsed(2, 2)], ["<b>x</b>", "<a href=y>"])
    assert figure.data[0]["x"] == ["&lt;b&gt;x&lt;/b&gt;", "&lt;a href=y&gt;"]
