"""Figures for loggers and notebooks."""

import numpy as np
import pytest

from neuralcollapse.report.cosine_histogram import cosine_histogram
from neuralcollapse.report.figure import Band, Line
from neuralcollapse.report.glance import Glance, pixels, png
from neuralcollapse.runs.records import Geometry, Record


def geometry(means, weight=None):
    means = np.asarray(means, np.float32)
    weight = means if weight is None else np.asarray(weight, np.float32)
    return Geometry(3, means, np.nanmean(means, 0), weight, np.zeros(len(means), np.float32))


def records(**more):
    measures = [{"nc1": 1 / (epoch + 1)} | {name: value[epoch] for name, value in more.items()} for epoch in range(3)]
    return [
        Record(epoch, float(epoch), 0.1, {"loss": 1.0, "accuracy": 0.5}, measures=each)
        for epoch, each in enumerate(measures)
    ]


def test_the_histogram_counts_each_pair_once():
    rng = np.random.default_rng(0)
    means = rng.standard_normal((7, 5))
    figure = cosine_histogram(geometry(means))
    lines = {mark.name: mark for mark in figure.marks if isinstance(mark, Line)}
    centred = means - means.mean(0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    cosines = (unit @ unit.T)[np.triu_indices(7, 1)]
    line = lines["class means"]
    edges = [line.x[0], *line.x[2::2]]
    shares = line.y[1:-1:2]
    assert sum(shares) == pytest.approx(1)
    assert shares == pytest.approx(np.histogram(cosines, edges)[0] / 21)
    assert figure.events == [(pytest.approx(-1 / 6), "simplex")]


def test_a_simplex_is_one_bar_at_its_cosine():
    figure = cosine_histogram(geometry(np.eye(4), np.eye(4) - 0.25))
    (line,) = (mark for mark in figure.marks if isinstance(mark, Line) and mark.name == "class means")
    left, right = (x for x, y in zip(line.x, line.y, strict=True) if y == 1)
    assert left <= -1 / 3 <= right
    assert right - left < 0.01


def test_undefined_cosines_are_left_out_and_without_any_there_is_no_figure():
    means = np.eye(4)
    means[2] = np.nan
    figure = cosine_histogram(geometry(means, np.zeros((4, 4))))
    assert {mark.name for mark in figure.marks} == {"class means"}
    assert all(np.isfinite(mark.y).all() for mark in figure.marks if isinstance(mark, Line))
    nothing = geometry(np.full((3, 2), 5.0), np.zeros((3, 2)))
    assert cosine_histogram(nothing) is None
    assert [figure.name for figure in Glance(records(), nothing).for_loggers()] == ["nc1"]


def test_loggers_get_nc1_with_its_band_and_the_cosines():
    seen = records(nc1_corrected=[0.9, 0.4, 0.3], nc1_error=[0.1, 0.1, 0.1], num_groups=[5, 5, 5])
    nc1, cosines, histogram = Glance(seen, geometry(np.eye(4)), ["a", "b", "c", "d"]).for_loggers()
    assert any(isinstance(mark, Band) for mark in nc1.marks)
    assert cosines.marks[0].x == ["a", "b", "c", "d"]
    assert histogram.name == "cosine-histogram"
    assert len(Glance(seen).for_loggers()) == 1  # more classes than can be drawn


def test_pictures_are_pixels_and_png_files():
    figure = Glance(records()).for_loggers()[0]
    image = pixels(figure)
    assert image.dtype == np.uint8
    assert image.shape[1:] == (650, 3)
    assert 0 < (image != 255).mean() < 0.2  # dark lines on white
    assert png(figure).startswith(b"\x89PNG")
