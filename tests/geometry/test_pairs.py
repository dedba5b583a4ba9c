"""Pairs of classes: a sample estimates the mean over all of them, and says how well; the worst pairs are the worst."""

import math

import numpy as np
import pytest
import torch

import neuralcollapse as nc
from neuralcollapse.geometry import pairs
from neuralcollapse.geometry.means import CentredMeans
from neuralcollapse.geometry.measures import PAIRWISE_MEASURES


@pytest.fixture
def moments():
    torch.manual_seed(0)
    labels = torch.arange(2_000) % 50
    means = torch.randn(50, 6, dtype=torch.float64)
    return nc.ClassMoments.from_batch(means[labels] + 0.1 * torch.randn(2_000, 6, dtype=torch.float64), labels, 50)


def by_hand(moments):
    """(i, j, CDNV) of every pair, from the definition."""
    means, variances = moments.means.numpy(), (moments.spreads / moments.counts).numpy()
    count = len(means)
    return [
        (i, j, (variances[i] + variances[j]) / (2 * ((means[i] - means[j]) ** 2).sum()))
        for i in range(count)
        for j in range(i + 1, count)
    ]


def test_the_sample_is_of_different_classes_each_pair_as_likely_and_always_the_same():
    sample = pairs.draw(5, 7, torch.device("cpu"))
    assert len(sample.first) == 7
    again = pairs.draw(5, 7, torch.device("cpu"))
    assert all(torch.equal(one, other) for one, other in zip(sample, again, strict=True))
    many = pairs.draw(400, 79_000, torch.device("cpu"))
    assert bool((many.first != many.second).all())
    for ends in many:
        counts = ends.bincount(minlength=400).double()
        assert float((counts - 79_000 / 400).abs().max()) < 6 * math.sqrt(79_000 / 400)
    assert abs(float((many.first < many.second).double().mean()) - 0.5) < 0.01


@pytest.mark.parametrize("pairwise", [True, 10, 11, 10**9])
def test_as_many_pairs_as_there_are_means_all_of_them(pairwise):
    assert pairs.draw(5, pairwise, torch.device("cpu")) is None


@pytest.mark.parametrize("wrong", [0, 1, -5, 2.5, "many"])
def test_a_sample_of_no_pairs_is_refused(moments, wrong):
    with pytest.raises(nc.InputError, match="pairwise"):
        nc.measures(moments, pairwise=wrong)


def test_a_sample_lies_within_its_standard_error_of_all_pairs_and_says_what_it_is(moments):
    weight = torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
    with pytest.warns(nc.NeuralCollapseWarning, match="no simplex ETF"):
        whole = nc.measures(moments, weight)
    with pytest.warns(nc.NeuralCollapseWarning, match="no simplex ETF"):
        sampled = nc.measures(moments, weight, pairwise=600)
    assert sampled.pop("num_pairs") == 600
    for name in PAIRWISE_MEASURES:
        error = sampled.pop(f"{name}_error")
        assert 0 < abs(sampled[name] - whole[name]) < 4 * error
    assert sampled.keys() == whole.keys()
    rest = whole.keys() - set(PAIRWISE_MEASURES)
    assert all(sampled[name] == whole[name] for name in rest)


def test_the_standard_error_is_that_of_the_drawn_values(moments, monkeypatch):
    monkeypatch.setattr(pairs, "_CHUNK_VALUES", 60)  # many chunks
    sample = pairs.draw(50, 90, torch.device("cpu"))
    table = {(i, j): value for i, j, value in by_hand(moments)}
    drawn = [table[min(i, j), max(i, j)] for i, j in zip(*(ends.tolist() for ends in sample), strict=True)]
    found = pairs.cdnv(CentredMeans(moments), sample)
    assert found.mean == pytest.approx(np.mean(drawn), rel=1e-12)
    assert found.error == pytest.approx(np.std(drawn, ddof=1) / math.sqrt(90), rel=1e-12)


@pytest.mark.parametrize("tile", [1024, 7])
@pytest.mark.parametrize("count", [1, 4, 5_000])
def test_the_worst_pairs_are_those_of_all_pairs_in_order(moments, monkeypatch, tile, count):
    monkeypatch.setattr("neuralcollapse.geometry.matrix._TILE", tile)
    expected = sorted(by_hand(moments), key=lambda pair: -pair[2])[:count]
    found = nc.worst_pairs(moments, count)
    assert [(pair.first, pair.second) for pair in found] == [pair[:2] for pair in expected]
    assert [pair.cdnv for pair in found] == pytest.approx([pair[2] for pair in expected], rel=1e-9)


def test_the_worst_of_a_sample_are_among_all_and_none_comes_twice(moments):
    table = {(i, j): value for i, j, value in by_hand(moments)}
    found = nc.worst_pairs(moments, 30, pairwise=200)
    assert len({pair[:2] for pair in found}) == 30
    assert all(value == pytest.approx(table[i, j], rel=1e-9) for i, j, value in found)
    assert found[0].cdnv <= nc.worst_pairs(moments, 1)[0].cdnv


def test_worst_pairs_are_named_by_class_and_equal_means_are_the_worst():
    features = torch.tensor([[0.0, 0], [1, 0], [0, 0], [1, 0], [9, 9], [9, 8]], dtype=torch.float64)
    labels = torch.tensor([1, 1, 4, 4, 5, 5])
    worst = nc.worst_pairs(nc.ClassMoments.from_batch(features, labels, 7), 2)
    assert worst[0] == (1, 4, math.inf)
    assert worst[1].first in (1, 4)
    assert worst[1].second == 5


def test_worst_pairs_need_two_classes():
    with pytest.raises(nc.InputError, match="no pairs of classes to compare"):
        nc.worst_pairs(nc.ClassMoments.from_batch(torch.ones(3, 2), torch.zeros(3, dtype=torch.int64), 4))


def test_equal_means_leave_a_sampled_cdnv_undefined():
    torch.manual_seed(0)
    labels = torch.arange(400) % 20
    means = torch.randn(20, 30)
    means[10:] = means[:10]
    moments = nc.ClassMoments.from_batch(means[labels], labels, 20)
    with pytest.warns(nc.NeuralCollapseWarning, match=r"classes \d+ and \d+ have the same mean: nc1_cdnv"):
        values = nc.measures(moments, pairwise=150)
    assert math.isnan(values["nc1_cdnv"])
    assert math.isfinite(values["max_equiangularity_means"])
