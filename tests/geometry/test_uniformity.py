"""Kernels over pairs of directions against sums in Python's own arithmetic, however large the power."""

import itertools
import math
from decimal import Decimal

import pytest
import torch

import neuralcollapse as nc


def rows(count=9, dim=5, seed=0):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(vectors, s):
    """log, its CoV, the power mean and the kernel's CoV over pairs, in decimal arithmetic, which cannot overflow."""
    unit = torch.nn.functional.normalize(vectors.double(), dim=1).tolist()
    inverse = [1 / math.dist(a, b) for a, b in itertools.combinations(unit, 2)]
    logs = [math.log(x) for x in inverse]
    mean = sum(logs) / len(logs)
    deviation = math.sqrt(sum((x - mean) ** 2 for x in logs) / len(logs))
    kernel = [Decimal(x) ** Decimal(s) for x in inverse]
    average = sum(kernel) / len(kernel)
    spread = (sum((x - average) ** 2 for x in kernel) / len(kernel)).sqrt()
    return mean, deviation / abs(mean), float(average ** (1 / Decimal(s))), float(spread / average)


@pytest.mark.parametrize("s", [1, 2, 0.5, -1, 30, 510, 4094, -300])
@pytest.mark.parametrize("count", [2, 9, 40])
def test_the_numbers_are_those_of_all_pairs(s, count):
    vectors = rows(count)
    found = nc.uniformity(vectors, s=s)
    assert tuple(found[:4]) == pytest.approx(by_hand(vectors, s), rel=1e-9, abs=1e-12)
    assert (found.s, found.num_pairs, found.log_error, found.riesz_error) == (s, count * (count - 1) // 2, 0, 0)


@pytest.mark.parametrize(("count", "dim"), [(2, 3), (4, 9), (10, 9), (100, 120)])
@pytest.mark.parametrize("s", [1, 2, 118, 4094])
def test_a_simplex_has_the_least_energy_and_no_spread(count, dim, s):
    etf = nc.simplex_etf(count, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = nc.uniformity(etf, s=s)
    least = math.sqrt((count - 1) / (2 * count))
    assert found.riesz == pytest.approx(least, rel=1e-9)
    assert found.log == pytest.approx(math.log(least), abs=1e-9)
    assert found.log_cov == pytest.approx(0, abs=1e-9)
    assert found.riesz_cov == pytest.approx(0, abs=1e-9)
    assert nc.uniformity(rows(count, dim), s=s).riesz >= least - 1e-12


def test_small_spreads_are_not_lost():
    """Distances that differ by 1e-9 of themselves: sums of squares less the squared mean would give 0 or noise."""
    etf = nc.simplex_etf(30, 40, dtype=torch.float64)
    moved = etf.clone()
    moved[0, 35] += 1e-5
    moved = torch.nn.functional.normalize(moved, dim=1)
    found, expected = nc.uniformity(moved), by_hand(moved, 2)
    assert 0 < expected[3] < 1e-9
    assert found.riesz_cov == pytest.approx(expected[3], rel=1e-3)


def test_tiles_and_blocks_make_no_difference(monkeypatch):
    from neuralcollapse.geometry import matrix

    vectors = rows(50, 4)
    whole = nc.uniformity(vectors, s=3)
    monkeypatch.setattr(matrix, "_TILE", 7)
    assert tuple(nc.uniformity(vectors, s=3)) == pytest.approx(tuple(whole), rel=1e-12)


def test_close_directions_are_measured_by_their_difference():
    vectors = torch.tensor([[1.0, 0.0], [1.0, 1e-9], [0.0, 1.0]], dtype=torch.float64)
    assert tuple(nc.uniformity(vectors, s=2)[:4]) == pytest.approx(by_hand(vectors, 2), rel=1e-6)


def test_moments_are_measured_about_the_mean_of_the_samples():
    labels = torch.tensor([0] * 3 + [1] * 9 + [2] * 5)
    features = rows(17, 4)
    moments = nc.ClassMoments.from_batch(features, labels, 3)
    centred = torch.stack([features[labels == k].mean(0) for k in range(3)]) - features.mean(0)
    assert tuple(nc.uniformity(moments)) == pytest.approx(tuple(nc.uniformity(centred)), rel=1e-9)
    turned = nc.ClassMoments.from_batch(5 * features @ torch.linalg.qr(rows(4, 4)).Q + 3, labels, 3)
    assert tuple(nc.uniformity(turned)) == pytest.approx(tuple(nc.uniformity(moments)), rel=1e-9)


def test_classes_without_samples_are_left_out():
    features, labels = rows(12, 4), torch.tensor([0, 1, 3]).repeat(4)
    full = nc.ClassMoments.from_batch(features, torch.tensor([0, 1, 2]).repeat(4), 3)
    assert nc.uniformity(nc.ClassMoments.from_batch(features, labels, 5)) == nc.uniformity(full)


def test_a_sample_of_pairs_says_how_far_off_it_may_be():
    vectors = rows(300, 6)
    exact = nc.uniformity(vectors, s=1)
    drawn = nc.uniformity(vectors, s=1, pairwise=2_000)
    assert drawn == nc.uniformity(vectors, s=1, pairwise=2_000)
    assert drawn.num_pairs == 2_000
    assert 0 < abs(drawn.log - exact.log) < 4 * drawn.log_error
    assert 0 < abs(drawn.riesz - exact.riesz) < 4 * drawn.riesz_error
    assert drawn.log_error == pytest.approx(exact.log_cov * abs(exact.log) / math.sqrt(2_000), rel=0.1)
    assert nc.uniformity(vectors, s=1, pairwise=10**6).num_pairs == 300 * 299 // 2


def test_what_has_no_value_is_nan_with_its_reason():
    same = torch.tensor([[1.0, 2.0], [2.0, 4.0], [0.0, 1.0]])
    with pytest.warns(nc.NeuralCollapseWarning, match="classes 0 and 1 have the same direction"):
        assert all(math.isnan(value) for value in nc.uniformity(same)[:4])
    with pytest.warns(nc.NeuralCollapseWarning, match="zero length"):
        nc.uniformity(torch.tensor([[1.0, 2.0], [0.0, 0.0], [0.0, 1.0]]))
    with pytest.warns(nc.NeuralCollapseWarning, match="one class has no pairs"):
        nc.uniformity(torch.ones(1, 3))
    with pytest.warns(nc.NeuralCollapseWarning, match="no samples were seen"):
        nc.uniformity(nc.ClassMoments.zeros(3, 4))
    merged = nc.ClassMoments.from_means(
        torch.tensor([2, 2, 2]), torch.tensor([[1.0, 0], [1.0, 0], [-1.0, 0.5]]).double()
    )
    with pytest.warns(nc.NeuralCollapseWarning, match="classes 0 and 1 have the same direction"):
        nc.uniformity(merged)


@pytest.mark.parametrize("s", [0, 1e-9, 1e300, math.nan, math.inf, True, "2"])
def test_wrong_powers_are_refused(s):
    with pytest.raises(nc.InputError, match="expected s as a number from 1e-6 to 1e6 in size"):
        nc.uniformity(rows(), s=s)


def test_wrong_input_is_refused():
    with pytest.raises(nc.InputError, match="expected pairwise True or a number of pairs"):
        nc.uniformity(rows(), pairwise=False)
    with pytest.raises(nc.InputError, match="pairwise"):
        nc.uniformity(rows(), pairwise=1)
    with pytest.raises(nc.InputError, match="expected vectors"):
        nc.uniformity(torch.arange(6).reshape(3, 2))
