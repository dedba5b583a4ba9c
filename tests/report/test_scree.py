"""The scree figure: what it draws, where the ceilings are, and which files it can be."""

import json

import numpy as np
import pytest
import torch

import neuralcollapse as nc
from neuralcollapse.report.figure_data import figure_data
from neuralcollapse.report.scree import geometry_scree, group_scree, scree
from neuralcollapse.runs.reading import Run, group_runs
from neuralcollapse.runs.records import Geometry, Record


def spectra(classes=5, dim=12, samples=6, weight=True):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(classes).repeat_interleave(samples)
    features = torch.randn(len(labels), dim, generator=generator)
    rows = torch.randn(classes, dim, generator=generator)
    return nc.spectra(nc.ClassMoments.from_batch(features, labels, classes), rows if weight else None)


def test_each_spectrum_is_a_line_over_its_largest_with_its_ceiling_beside_it():
    found = spectra()
    figure = scree(found)
    lines = {mark.name: mark for mark in figure.marks}
    for words, spectrum in (
        ("between class means, S_B", found.between),
        ("classifier, W'W", found.weight),
        ("within classes, S_W", found.within),
        ("all samples, S_T", found.total),
    ):
        line, ceiling = lines[words], lines[f"ceiling, {words}"]
        assert list(line.x) == list(range(1, spectrum.rank + 1))
        np.testing.assert_allclose(line.y, (spectrum.eigenvalues / spectrum.eigenvalues[0]).numpy())
        assert list(ceiling.x) == [spectrum.ceiling] * 2
        assert ceiling.dash == "dash"
        assert f"{spectrum.rank} of at most {spectrum.ceiling} directions" in figure.alt
    assert figure.x.log
    assert figure.y.log
    json.dumps(figure_data(figure), allow_nan=False)


def test_without_a_weight_there_is_no_line_for_it():
    assert "classifier" not in " ".join(mark.name for mark in scree(spectra(weight=False)).marks)


def test_a_long_spectrum_keeps_its_ends_in_few_points():
    line = scree(spectra(classes=3, dim=900, samples=300)).marks[2]
    assert line.name == "within classes, S_W"
    assert len(line.x) <= 300
    assert line.x[0] == 1
    assert 850 < line.x[-1] <= 897


def test_a_run_shows_its_last_means_and_classifier():
    etf = nc.simplex_etf(6, 9).numpy()
    bias = np.zeros(6, np.float32)
    first = Geometry(0, np.zeros((6, 9), np.float32), np.zeros(9, np.float32), etf, bias)
    last = Geometry(7, etf + 5, np.full(9, 5, np.float32), 2 * etf, bias)
    (figure,) = geometry_scree([first, last])
    between, weight = figure.marks[:2]
    assert list(between.x) == list(weight.x) == [1, 2, 3, 4, 5]
    np.testing.assert_allclose([*between.y, *weight.y], 1, rtol=1e-5)
    assert [list(mark.x) for mark in figure.marks[2:]] == [[5, 5], [6, 6]]
    assert "at epoch 7" in figure.alt
    assert geometry_scree([]) == []
    (alone,) = geometry_scree([first])
    assert alone.marks[0].name == "classifier, W'W"


def test_classes_without_samples_are_left_out():
    means = nc.simplex_etf(4, 5).numpy().copy()
    means[2] = np.nan
    centre = np.nanmean(means, 0)
    (figure,) = geometry_scree([Geometry(1, means, centre, nc.simplex_etf(4, 5).numpy(), np.zeros(4))])
    assert [list(mark.x) for mark in figure.marks if mark.dash == "dash"] == [[2, 2], [3, 3]]
    means[:2] = np.nan
    assert geometry_scree([Geometry(1, means, centre, means, np.zeros(4))]) == []


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_it_is_written_as_a_figure_for_a_paper(tmp_path, kind):
    pytest.importorskip("matplotlib")
    path = nc.write_scree(spectra(), tmp_path / "new" / f"scree.{kind}")
    assert path.stat().st_size > 1_000


def test_what_cannot_be_drawn_is_refused(tmp_path):
    with pytest.raises(nc.InputError, match=r"expected a file that ends in \.png"):
        nc.write_scree(spectra(), tmp_path / "scree.html")
    with pytest.warns(nc.NeuralCollapseWarning):
        nothing = nc.spectra(nc.ClassMoments.zeros(2, 3))
    with pytest.raises(nc.InputError, match="nothing to draw"):
        nc.write_scree(nothing, tmp_path / "scree.png")


def test_groups_have_a_line_each_for_means_and_classifier_and_those_without_a_geometry_none():
    etf = nc.simplex_etf(6, 9).numpy()
    kept = [Geometry(7, etf + 5, np.full(9, 5, np.float32), etf, np.zeros(6, np.float32))]
    record = Record(7, 0.0, 0.1, {})
    runs = [Run("a", {}, {}, [record], kept, {"x": "p"}), Run("b", {}, {}, [record], kept, {"x": "p"})]
    (figure,) = group_scree(group_runs([*runs, Run("c", {}, {}, [record], (), {"x": "q"})]))
    means, classifier = figure.marks
    assert (means.name, classifier.name) == ("p", "p, classifier")
    assert (means.legend, classifier.legend) == (True, False)
    assert means.selected_by == classifier.selected_by == ("p", "a", "b")
    np.testing.assert_allclose(means.y, np.ones(5), rtol=1e-5)
    assert group_scree(group_runs([Run("c", {}, {}, [record])])) == []
