import json

import numpy as np
import pytest

import neuralcollapse as nc
from neuralcollapse.report.class_means import cosine_map, geometry_figures, simplex_motion
from neuralcollapse.report.figure_data import figure_data
from neuralcollapse.runs.reading import Run
from neuralcollapse.runs.records import Geometry, Record

NAMES = [str(i) for i in range(10)]


def collapsed(count: int, dim: int, epoch: int = 1) -> Geometry:
    etf = nc.simplex_etf(count, dim).numpy()
    return Geometry(epoch, etf + 1, np.ones(dim), 3 * etf, np.zeros(count))


def spec(figure) -> str:
    return json.dumps(figure_data(figure), allow_nan=False)


def test_the_geometry_of_each_run_can_be_chosen():
    def run(name, *geometries):
        return Run(name, {}, {}, [Record(0, 1.0, 0.1, {})], geometries)

    runs = [run("a", collapsed(3, 3)), run("b"), run("c", collapsed(3, 3))]
    cosines, motion = geometry_figures(runs)
    assert (cosines.name, motion.name) == ("cosines", "simplex-motion")
    assert (cosines.own, list(cosines.others)) == ("a", ["c"])
    assert geometry_figures(runs[1:2]) == []
    assert geometry_figures(runs[:1])[0].others == {}


def test_the_cosine_map_has_a_frame_for_each_epoch_and_shows_a_simplex_as_one():
    figure = cosine_map([collapsed(10, 12, epoch) for epoch in (0, 3, 9)], NAMES)
    assert figure.steps == ["0", "3", "9"]
    shown = figure.marks[0].z[-1]
    assert np.isnan(np.diag(shown)).all()
    np.testing.assert_allclose(shown[~np.eye(10, dtype=bool)], -1 / 9, atol=1e-3)
    assert (figure.marks[0].low + figure.marks[0].high) / 2 == pytest.approx(-1 / 9)
    assert "-0.111" in figure.caption


def test_many_classes_thin_the_frames_but_keep_the_ends():
    figure = cosine_map([collapsed(200, 200, epoch) for epoch in range(40)], [str(i) for i in range(200)])
    assert len(figure.steps) == len(figure.marks[0].z) == 5
    assert (figure.steps[0], figure.steps[-1]) == ("0", "39")


@pytest.mark.parametrize(("count", "dim"), [(2, 1), (2, 4), (3, 2), (4, 3), (5, 8), (10, 9), (17, 30)])
def test_collapsed_means_and_rows_land_on_the_vertices(count, dim):
    figure = simplex_motion([collapsed(count, dim)], [str(i) for i in range(count)])
    means, rows, vertices = (mark.points for mark in figure.marks)
    np.testing.assert_allclose(means[-1], vertices, atol=1e-6)
    np.testing.assert_allclose(rows[-1], vertices, atol=1e-6)
    np.testing.assert_allclose(np.square(vertices).sum() / count, 1, rtol=1e-6)


def test_too_many_classes_for_a_simplex_are_still_shown_without_vertices():
    rng = np.random.default_rng(0)
    geometry = Geometry(1, rng.standard_normal((9, 2)), np.zeros(2), rng.standard_normal((9, 2)), np.zeros(9))
    figure = simplex_motion([geometry], [str(i) for i in range(9)])
    assert len(figure.marks) == 2
    assert "no simplex" in figure.caption


def test_classes_without_samples_are_left_out():
    geometry = collapsed(5, 6)
    geometry.means[3] = np.nan
    names = list("abcde")
    assert cosine_map([geometry], names).marks[0].x == ["a", "b", "c", "e"]
    figure = simplex_motion([geometry], names, "step")
    assert figure.marks[0].texts == ["a", "b", "c", "e"]
    assert "each step at the same total length" in figure.caption
    spec(figure)
    geometry.means[:4] = np.nan
    spec(cosine_map([geometry], names))
    spec(simplex_motion([geometry], names))


def test_two_classes_and_classes_that_coincide_have_figures():
    spec(cosine_map([collapsed(2, 2)], ["a", "b"]))
    same = Geometry(0, np.ones((3, 4)), np.ones(4), np.zeros((3, 4)), np.zeros(3))
    spec(cosine_map([same], list("abc"), unit="step"))
    spec(simplex_motion([same], list("abc")))


def test_names_on_the_map_are_short_and_all_different():
    names = ["maillot", "maillot", "a very long name of a class indeed", "cat"]
    shown = cosine_map([collapsed(4, 4)], names).marks[0].x
    assert shown == ["maillot (0)", "maillot (1)", "a very long nam…s indeed", "cat"]


def test_many_classes_are_named_under_the_pointer_alone():
    names = [f"class {i}" for i in range(150)]
    geometries = [collapsed(150, 150, epoch) for epoch in range(20)]
    heat, motion = cosine_map(geometries, names), simplex_motion(geometries, names)
    assert not heat.x.named
    assert "under the pointer" in heat.caption
    assert not motion.marks[0].labelled
    assert len(spec(heat)) + len(spec(motion)) < 2_500_000
