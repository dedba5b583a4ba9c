"""GNC1 to GNC3 and uniform duality, against their formulas written out and exact values."""

import math

import numpy as np
import pytest
import torch

import neuralcollapse as nc

from .. import oracles


def data(classes=6, dim=4, samples=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat_interleave(samples)
    features = torch.randn(len(labels), dim, generator=generator, dtype=torch.float64)
    features += 2 * torch.randn(classes, dim, generator=generator, dtype=torch.float64)[labels]
    return features, labels, torch.randn(classes, dim, generator=generator, dtype=torch.float64)


def cosines(features, labels, weight):
    centre = features.mean(0)
    means = [features[labels == k].mean(0) - centre for k in range(len(weight))]
    return np.array([float(w @ m / w.norm() / m.norm()) for w, m in zip(weight, means, strict=True)])


def test_duality_is_the_mean_and_spread_of_the_cosines():
    features, labels, weight = data()
    found = nc.uniform_duality(nc.ClassMoments.from_batch(features, labels, 6), weight)
    expected = cosines(features, labels, weight)
    assert tuple(found) == pytest.approx((expected.mean(), expected.std(), expected.std() / abs(expected.mean())))


def test_the_three_numbers_of_features_at_length_one():
    features, labels, weight = data()
    features = torch.nn.functional.normalize(features, dim=1)
    found = nc.gnc(nc.ClassMoments.from_batch(features, labels, 6), weight)
    assert found.gnc1 == pytest.approx(oracles.nc1(features.numpy(), labels.numpy(), 6), rel=1e-9)
    assert found.gnc3 == pytest.approx(1 - cosines(features, labels, weight).mean(), abs=1e-12)
    assert found.gnc2 == float(found.margins.min())
    assert found.classes.tolist() == list(range(6))


@pytest.mark.parametrize(
    ("frame", "margin"),
    [
        (nc.simplex_etf(5, 7, dtype=torch.float64), 5 / 4),
        (nc.orthoplex(12, 6, dtype=torch.float64), 1),
        (nc.softmax_code(9, 2, dtype=torch.float64), 1 - math.cos(2 * math.pi / 9)),
    ],
)
def test_at_collapse(frame, margin):
    moments = nc.ClassMoments.from_means(torch.full((len(frame),), 4), frame)
    found = nc.gnc(moments, 3 * frame)
    assert found.gnc2 == pytest.approx(margin, abs=1e-9)
    assert (found.gnc1, found.gnc3) == pytest.approx((0, 0), abs=1e-9)
    duality = nc.uniform_duality(moments, 3 * frame)
    assert tuple(duality) == pytest.approx((1, 0, 0), abs=1e-9)


def test_gnc1_asks_for_features_at_length_one():
    features, labels, weight = data()
    moments = nc.ClassMoments.from_batch(features, labels, 6)
    with pytest.warns(nc.NeuralCollapseWarning, match=r"not of length one.*gnc1"):
        found = nc.gnc(moments, weight)
    assert math.isnan(found.gnc1)
    assert found.gnc3 == pytest.approx(1 - nc.uniform_duality(moments, weight).mean, abs=1e-12)
    half = torch.nn.functional.normalize(features, dim=1).to(torch.bfloat16)
    assert nc.gnc(nc.ClassMoments.from_batch(half, labels, 6), weight).gnc1 > 0


def test_margins_of_some_classes_by_their_numbers():
    features, labels, weight = data(classes=8, dim=5)
    features, kept = torch.nn.functional.normalize(features, dim=1), labels != 3  # class 3 has no samples
    moments = nc.ClassMoments.from_batch(features[kept], labels[kept], 8)
    every = nc.gnc(moments, weight)
    some = nc.gnc(moments, weight, classes=[6, 4])
    assert every.classes.tolist() == [0, 1, 2, 4, 5, 6, 7]
    assert some.classes.tolist() == [4, 6]
    assert some.margins.tolist() == every.margins[[3, 5]].tolist()
    assert some.gnc2 >= every.gnc2
    with pytest.raises(nc.InputError, match=r"expected classes that have samples, got \[3\]"):
        nc.gnc(moments, weight, classes=[3])


def test_what_has_no_value_is_nan_with_its_reason():
    features, labels, weight = data()
    moments = nc.ClassMoments.from_batch(torch.nn.functional.normalize(features, dim=1), labels, 6)
    weight[2] = 0
    with pytest.warns(nc.NeuralCollapseWarning, match=r"zero length.*class 2.*gnc3, gnc2"):
        found = nc.gnc(moments, weight)
    assert found.gnc1 > 0
    assert math.isnan(found.gnc2)
    assert len(found.margins) == 0
    with pytest.warns(nc.NeuralCollapseWarning, match="zero length"):
        assert math.isnan(nc.uniform_duality(moments, weight).mean)
    with pytest.warns(nc.NeuralCollapseWarning, match="no samples were seen"):
        assert math.isnan(nc.gnc(nc.ClassMoments.zeros(6, 4), weight).gnc3)


def test_wrong_input_is_refused():
    features, labels, weight = data()
    moments = nc.ClassMoments.from_batch(features, labels, 6)
    for verb in (nc.gnc, nc.uniform_duality):
        with pytest.raises(nc.InputError, match="expected weight of shape"):
            verb(moments, weight[:, :3])
        with pytest.raises(nc.InputError, match="expected the weight"):
            verb(moments, None)
