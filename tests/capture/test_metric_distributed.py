"""Real processes over gloo: a split over processes measures what one process would have measured."""

import warnings

import pytest
import torch
from torch import nn

import neuralcollapse as nc
from neuralcollapse.capture import processes
from neuralcollapse.geometry.formulas import nc1
from tests.processes import on_ranks

K, D, N = 4, 6, 60


def samples():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(N) % K
    return nc.simplex_etf(K, D)[labels] * 3 + torch.randn(N, D, generator=generator), labels


def share(rank, labels):
    """Which samples a process sees: none of class 0 on the first; nothing at all on the last of three."""
    first = (torch.arange(N) < N // 2) & (labels != 0)
    return (first, ~first, torch.zeros(N, dtype=torch.bool))[rank]


def head():
    torch.manual_seed(1)
    return nn.Linear(D, K)


def work(rank, world_size):
    """Compute, look at the local state, add the samples once more (moved by one), compute again."""
    features, labels = samples()
    mine = share(rank, labels)
    metric = nc.NeuralCollapse(K, D, head())
    if mine.any():
        metric.update(features[mine][:5], labels[mine][:5])
        metric.update(features[mine][5:], labels[mine][5:])
    before = metric.moments.clone()
    once = metric.compute()
    restored = torch.equal(metric.moments, before)
    if mine.any():
        metric.update(features[mine] + 1, labels[mine])
    twice = metric.compute()
    dtypes = {value.dtype for value in once.values()}
    once, twice = ({name: float(value) for name, value in values.items()} for values in (once, twice))
    return {"once": once, "twice": twice, "restored": restored, "count": float(before[:K].sum()), "dtypes": dtypes}


@pytest.mark.parametrize("world_size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_every_process_computes_the_value_of_all_samples_and_goes_on_with_its_own(world_size, tmp_path):
    results = on_ranks(world_size, tmp_path, work)
    features, labels = samples()
    classifier = head()

    once = nc.ClassMoments.from_batch(features, labels, K)
    twice = once.merge(nc.ClassMoments.from_batch(features + 1, labels, K))
    once, twice = (nc.measures(moments, classifier.weight, classifier.bias) for moments in (once, twice))
    for result in results:
        assert result["restored"]
        assert result["dtypes"] == {torch.float64}
        assert result["once"] == pytest.approx(once, rel=1e-10)
        assert result["twice"] == pytest.approx(twice, rel=1e-10)
    counts = [int(share(rank, labels).sum()) for rank in range(world_size)]
    assert [result["count"] for result in results] == counts
    assert sum(counts) == N


def normalised():
    """Features from a LayerNorm with more classes than dimensions, and NC1 in float64 without their row mean."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40).repeat(30)
    features = torch.randn(40, 20, generator=generator)[labels] + 0.03 * torch.randn(1200, 20, generator=generator)
    truth = nn.functional.layer_norm(features.double(), (20,))
    return nn.functional.layer_norm(features, (20,)), labels, truth - truth.mean(1, keepdim=True)


def work_in_two_types(rank, world_size):
    """One process gives float32, the other what was bfloat16: both must leave out what bfloat16 rounds."""
    features, labels, _ = normalised()
    mine = slice(rank, None, world_size)
    given = features[mine].bfloat16().float() if rank else features[mine]
    metric = nc.NeuralCollapse(40, 20)
    metric.update(given, labels[mine])
    moments = nc.ClassMoments.from_batch(given, labels[mine], 40)
    joined = processes.merged(moments)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(metric.compute()["nc1"]), nc.measures(joined)["nc1"], joined.rounding, moments.rounding


@pytest.mark.slow
def test_the_type_of_one_process_is_known_to_all(tmp_path):
    results = on_ranks(2, tmp_path, work_in_two_types)
    _, labels, truth = normalised()
    right = nc1(nc.ClassMoments.from_batch(truth, labels, 40))
    fine, coarse = torch.finfo(torch.float32).eps, torch.finfo(torch.bfloat16).eps
    for own, (by_metric, by_moments, rounding, before) in zip((fine, coarse), results, strict=True):
        assert (rounding, before) == (coarse, own)
        assert by_metric == pytest.approx(right, rel=0.01)
        assert by_moments == pytest.approx(right, rel=0.01)
