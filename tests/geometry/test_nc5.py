"""NC5 against its formula, about the origin and about the mean of the inside samples."""

import math

import pytest
import torch

import neuralcollapse as nc


def inside(offset=0.0):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(4).repeat_interleave(torch.tensor([3, 9, 5, 8]))
    features = torch.randn(25, 6, generator=generator, dtype=torch.float64)
    features += 3 * torch.eye(4, 6, dtype=torch.float64)[labels] + offset
    return features, labels


def moments(features, labels=None):
    labels = torch.zeros(len(features), dtype=torch.int64) if labels is None else labels
    return nc.ClassMoments.from_batch(features, labels, int(labels.max()) + 1)


@pytest.mark.parametrize("centred", [False, True])
def test_it_is_the_mean_absolute_cosine(centred):
    features, labels = inside(offset=1.0)
    outside = torch.randn(40, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.5
    origin = features.mean(0) if centred else 0
    away = outside.mean(0) - origin
    means = [features[labels == k].mean(0) - origin for k in range(4)]
    expected = sum(abs(float(m @ away / m.norm() / away.norm())) for m in means) / 4
    found = nc.nc5(moments(features, labels), moments(outside), centred=centred)
    assert found == pytest.approx(expected, rel=1e-9)
    several = moments(outside, torch.arange(40) % 7)  # classes of the outliers play no part
    assert nc.nc5(moments(features, labels), several, centred=centred) == pytest.approx(expected, rel=1e-9)


def test_outliers_across_the_simplex_have_none_and_those_along_a_class_have_all():
    etf = nc.simplex_etf(3, 5, dtype=torch.float64)
    collapsed = nc.ClassMoments.from_means(torch.tensor([4, 4, 4]), etf)
    across = moments(torch.tensor([[0.0, 0, 0, 1, 2]] * 3, dtype=torch.float64))
    assert nc.nc5(collapsed, across) == pytest.approx(0, abs=1e-12)
    along = moments(etf[:1].repeat(3, 1))
    assert nc.nc5(collapsed, along) == pytest.approx((1 + 0.5 + 0.5) / 3, abs=1e-9)


def test_features_behind_a_relu_are_never_across_unless_centred():
    features, labels = inside()
    outside = torch.rand(40, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert nc.nc5(moments(features.relu(), labels), moments(outside)) > 0.3
    shifted = nc.nc5(moments(features.relu() + 100, labels), moments(outside + 100), centred=True)
    assert shifted == pytest.approx(nc.nc5(moments(features.relu(), labels), moments(outside), centred=True), rel=1e-6)


def test_what_has_no_value_is_nan_with_its_reason():
    features, labels = inside()
    known = moments(features, labels)
    with pytest.warns(nc.NeuralCollapseWarning, match="no samples were seen of the outliers"):
        assert math.isnan(nc.nc5(known, nc.ClassMoments.zeros(1, 6)))
    with pytest.warns(nc.NeuralCollapseWarning, match="no samples were seen: nc5"):
        assert math.isnan(nc.nc5(nc.ClassMoments.zeros(4, 6), known))
    with pytest.warns(nc.NeuralCollapseWarning, match="mean of the outliers is zero"):
        assert math.isnan(nc.nc5(known, moments(torch.zeros(3, 6))))
    with pytest.warns(nc.NeuralCollapseWarning, match="is that of the inside samples"):
        assert math.isnan(nc.nc5(known, moments(features[None].mean(1)), centred=True))


def test_wrong_input_is_refused():
    features, labels = inside()
    with pytest.raises(nc.InputError, match="features of dimension 6, got 5"):
        nc.nc5(moments(features, labels), moments(torch.ones(3, 5)))
    with pytest.raises(nc.InputError, match="expected outside as ClassMoments, got Tensor"):
        nc.nc5(moments(features, labels), features)
