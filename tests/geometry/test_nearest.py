"""NearestMeans: the nearest class mean of each sample, where float32 alone would not tell which it is."""

import math

import pytest
import torch

from neuralcollapse.geometry.moments import ClassMoments
from neuralcollapse.geometry.nearest import NearestMeans


def close_means(dtype, classes=30, dim=40):
    """Features far from zero, their labels, and class means of which two each are as good as equal to float32."""
    generator = torch.Generator().manual_seed(0)
    means = 20 + torch.randn(classes // 2, dim, generator=generator).double().repeat_interleave(2, 0)
    means += 1e-7 * torch.randn(classes, dim, generator=generator)
    labels = torch.arange(600) % classes
    return (means[labels] + torch.randn(600, dim, generator=generator)).to(dtype), labels, means


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_nearest_mean_is_that_of_float64(dtype):
    features, labels, means = close_means(dtype)
    nearest = torch.cdist(features.double(), means, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
    centred = (means - means.mean(0)).float()
    single = ((features.float() - means.mean(0).float()) @ centred.T - centred.square().sum(1) / 2).argmax(1)
    assert int((single != nearest).sum()) > 100  # what float32 alone would say
    moments = ClassMoments.from_means(torch.full((30,), 20), means)
    wrong, none = NearestMeans(moments).mismatches(features, [labels, nearest])
    assert (float(wrong), float(none)) == (float((nearest != labels).sum()), 0.0)


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e18])
def test_sizes_whose_squares_are_no_float32_numbers_are_taken_in_float64(scale):
    features, labels, _ = close_means(torch.float32)
    features = (features - 20) * scale
    moments = ClassMoments.from_batch(features, labels, 30)
    unit = ClassMoments.from_batch(features.double() / scale, labels, 30)
    expected = NearestMeans(unit).mismatches(features.double() / scale, [labels])
    assert torch.equal(NearestMeans(moments).mismatches(features, [labels]), expected)


def test_features_that_are_not_finite_have_no_count():
    features, labels, _ = close_means(torch.float32)
    nearest = NearestMeans(ClassMoments.from_batch(features, labels, 30))
    features[3, 2] = math.inf
    assert math.isnan(float(nearest.mismatches(features, [labels])[0]))
