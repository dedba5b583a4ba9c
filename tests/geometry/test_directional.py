"""The directional CDNV: the definition, pair by pair; without the noise of few samples; what it says of errors."""

import math

import pytest
import torch

import neuralcollapse as nc


def data(samples, classes=7, dim=20, seed=0, noise=0.6, labels_seed=0):
    means = torch.randn(classes, dim, generator=torch.Generator().manual_seed(labels_seed), dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    scales = torch.linspace(0.2, 2.0, dim, dtype=torch.float64)
    labels = torch.arange(classes).repeat_interleave(samples)
    rows = torch.randn(len(labels), dim, generator=generator, dtype=torch.float64)
    return means, scales, means[labels] + noise * scales * rows, labels


def by_hand(means, covariance):
    values = []
    for i in range(len(means)):
        for j in range(len(means)):
            if i != j:
                delta = means[i] - means[j]
                values.append(float(delta @ covariance @ delta / (delta @ delta) ** 2))
    return sum(values) / len(values)


@pytest.mark.parametrize(("classes", "dim"), [(7, 20), (2, 5), (30, 4)])
def test_it_is_the_definition_over_all_pairs(classes, dim, monkeypatch):
    _, _, rows, labels = data(9, classes, dim)
    moments = nc.ClassMoments.from_batch(rows, labels, classes)
    expected = by_hand(moments.means, moments.within_covariance)
    assert nc.directional_cdnv(moments, corrected=False) == pytest.approx(expected, rel=1e-9)
    monkeypatch.setattr("neuralcollapse.geometry.matrix._TILE", 4)
    assert nc.directional_cdnv(moments, corrected=False) == pytest.approx(expected, rel=1e-9)


def test_corrected_values_of_few_samples_are_those_of_many_on_average():
    means, scales, _, _ = data(2)
    truth = by_hand(means, (0.6 * scales).square().diag())
    draws = [nc.ClassMoments.from_batch(*data(6, seed=seed)[2:], 7) for seed in range(60)]
    corrected = sum(map(nc.directional_cdnv, draws)) / 60
    plain = sum(nc.directional_cdnv(each, corrected=False) for each in draws) / 60
    assert corrected == pytest.approx(truth, rel=0.04)
    assert abs(plain / truth - 1) > 0.1


def test_a_sample_of_pairs_is_near_all_pairs():
    _, _, rows, labels = data(30, 60, 20)
    moments = nc.ClassMoments.from_batch(rows, labels, 60)
    assert nc.directional_cdnv(moments, pairwise=900) == pytest.approx(nc.directional_cdnv(moments), rel=0.05)


def test_a_large_offset_a_rotation_and_a_scale_change_nothing():
    _, _, rows, labels = data(30)
    turn = torch.linalg.qr(torch.randn(20, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]
    plain = nc.directional_cdnv(nc.ClassMoments.from_batch(rows, labels, 7))
    moved = nc.directional_cdnv(nc.ClassMoments.from_batch(1e-3 * rows @ turn + 100, labels, 7))
    assert moved == pytest.approx(plain, rel=1e-7)


def test_means_that_are_not_told_apart_have_no_value_and_a_warning_says_why():
    rows = torch.randn(60, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moments = nc.ClassMoments.from_batch(rows, torch.arange(60) % 3, 3)
    with pytest.warns(nc.NeuralCollapseWarning, match=r"^undefined \(NaN\): two class means .*: directional_cdnv$"):
        assert math.isnan(nc.directional_cdnv(moments))
    assert math.isfinite(nc.directional_cdnv(moments, corrected=False))
    with pytest.warns(nc.NeuralCollapseWarning, match="only class 1 has samples"):
        assert math.isnan(nc.directional_cdnv(nc.ClassMoments.from_batch(rows, torch.ones(60, dtype=torch.int64), 3)))
    with pytest.raises(nc.InputError, match="nothing would be left to measure"):
        nc.directional_cdnv(moments, pairwise=False)
