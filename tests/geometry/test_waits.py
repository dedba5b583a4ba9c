"""How often `measures` waits for the device: a fixed dozen of times, whatever the number of classes."""

import warnings

import pytest
import torch

import neuralcollapse as nc
from neuralcollapse.errors import NeuralCollapseWarning, Undefined
from neuralcollapse.geometry import pairs
from neuralcollapse.geometry.matrix import BlockedMatrix
from tests.helpers import Dispatched


def moments_of_all(num_classes, dim):
    torch.manual_seed(0)
    labels = torch.arange(num_classes).repeat(4)
    moments = nc.ClassMoments.from_batch(torch.randn(len(labels), dim), labels, num_classes)
    _ = moments.packed  # the first look adds the rows that wait
    return moments


@pytest.mark.parametrize("pairwise", [False, True, 500])
@pytest.mark.parametrize(("num_classes", "dim"), [(10, 64), (520, 600), (4500, 64)])
def test_measures_waits_a_dozen_times_whatever_the_size(monkeypatch, num_classes, dim, pairwise):
    monkeypatch.setattr(pairs, "waits_for_nothing", lambda device: False)  # as on an accelerator
    moments, weight = moments_of_all(num_classes, dim), torch.randn(num_classes, dim)
    with warnings.catch_warnings(), Dispatched() as done:
        warnings.simplefilter("ignore", NeuralCollapseWarning)  # more classes than a simplex holds
        nc.measures(moments, weight, torch.zeros(num_classes), pairwise=pairwise)
    assert 0 < len(done.waits) <= 14  # three of them look at a copy of the counts on the CPU


@pytest.mark.parametrize("equal", [False, True])
def test_nearly_equal_means_are_measured_alike_with_and_without_waits_for_each_tile(monkeypatch, equal):
    monkeypatch.setattr("neuralcollapse.geometry.matrix._TILE", 5)
    torch.manual_seed(0)
    features = torch.randn(48, 6, dtype=torch.float64)
    features[4:8] = features[:4] if equal else features[:4] + 1e-7 * torch.randn(4, 6, dtype=torch.float64)
    moments = nc.ClassMoments.from_batch(features, torch.arange(12).repeat_interleave(4), 12)
    found = []
    for free in (True, False):
        monkeypatch.setattr(pairs, "waits_for_nothing", lambda device, free=free: free)
        try:
            found.append(pairs.nc1_cdnv(moments))
        except Undefined as reason:
            found.append(str(reason))
    assert found[0] == ("classes 0 and 1 have the same mean" if equal else pytest.approx(found[1], rel=1e-12))
    assert equal or found[0] > 1e10
    assert found[0] == found[1]


@pytest.mark.parametrize("pairwise", [False, True, 50])
@pytest.mark.parametrize(("num_classes", "dim"), [(20, 30), (90, 30)])
def test_measures_makes_no_tensor_without_naming_its_device(monkeypatch, num_classes, dim, pairwise):
    monkeypatch.setattr("neuralcollapse.geometry.matrix._EXACT_SVD", 1)
    moments, weight, bias = moments_of_all(num_classes, dim), torch.randn(num_classes, dim), torch.zeros(num_classes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NeuralCollapseWarning)
        expected = nc.measures(moments, weight, bias, pairwise=pairwise)
        with torch.device("meta"):  # what does not name its device is made there, and may not meet the others
            assert nc.measures(moments, weight, bias, pairwise=pairwise) == expected


def test_an_accelerator_reads_a_matrix_in_few_large_blocks():
    on_device = BlockedMatrix(torch.empty(20_000, 1024, device="meta"))
    assert len(on_device.parts()) == 1
    assert len(list(on_device.tiles())) == 6
    assert len(BlockedMatrix(torch.zeros(20_000, 1)).parts()) == 20
