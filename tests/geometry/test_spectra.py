"""Spectra against eigenvalues of matrices that are written out sample by sample; what rounding makes is left out."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from torch.utils._python_dispatch import TorchDispatchMode

import neuralcollapse as nc
from neuralcollapse.geometry.spectra import RANKS

from ..oracles import vector_cases


def exp_entropy(parts):
    shares = np.asarray(parts) / np.sum(parts)
    shares = shares[shares > 0]
    return math.exp(-float((shares * np.log(shares)).sum()))


def ranks(eigenvalues):
    """The four numbers, each from its formula."""
    return {
        "effective_rank": exp_entropy(eigenvalues),
        "stable_rank": eigenvalues.sum() / eigenvalues.max(),
        "participation_ratio": eigenvalues.sum() ** 2 / (eigenvalues**2).sum(),
        "rankme": exp_entropy(np.sqrt(eigenvalues)),
    }


def matrices(features, labels, weight):
    """S_W, S_B, S_T and W'W, from the samples one by one."""
    features, labels = np.asarray(features, dtype=np.float64), np.asarray(labels)
    seen = sorted(set(labels.tolist()))
    centre = features.mean(0)
    means = {k: features[labels == k].mean(0) for k in seen}
    within = sum(np.outer(h - means[y], h - means[y]) for h, y in zip(features, labels.tolist(), strict=True))
    total = sum(np.outer(h - centre, h - centre) for h in features)
    between = sum(np.outer(mean - centre, mean - centre) for mean in means.values())
    rows = np.asarray(weight, dtype=np.float64)[seen]
    return {
        "within": within / len(features),
        "between": between / len(seen),
        "total": total / len(features),
        "weight": rows.T @ rows,
    }


def of(features, labels, classes, weight=None):
    return nc.spectra(nc.ClassMoments.from_batch(torch.as_tensor(features), torch.as_tensor(labels), classes), weight)


def normal(classes, dim, samples, seed=0, noise=1.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(classes, dim, generator=generator, dtype=torch.float64)
    labels = torch.arange(classes).repeat_interleave(samples)
    features = means[labels] + noise * torch.randn(len(labels), dim, generator=generator, dtype=torch.float64)
    weight = torch.randn(classes, dim, generator=generator, dtype=torch.float64)
    return features.to(dtype), labels, weight.to(dtype)


@pytest.mark.parametrize("case", vector_cases(), ids=lambda case: f"K{case.num_classes}d{case.dim}")
def test_every_number_is_that_of_the_matrices_written_out(case):
    features, labels, weight, _ = case.data()
    features, weight = features.astype(np.float64), weight.astype(np.float64)
    found = of(features, labels, case.num_classes, torch.as_tensor(weight))
    for name, matrix in matrices(features, labels, weight).items():
        spectrum = getattr(found, name)
        expected = np.linalg.eigvalsh(matrix)[::-1][: spectrum.ceiling]
        assert spectrum.rank == spectrum.ceiling
        scale = expected[0]
        np.testing.assert_allclose(spectrum.eigenvalues.numpy(), expected, rtol=1e-9, atol=1e-13 * scale)
        for rank, value in ranks(spectrum.eigenvalues.numpy()).items():
            assert getattr(spectrum, rank) == pytest.approx(value, rel=1e-12)
        for rank, value in ranks(expected).items():
            assert getattr(spectrum, rank) == pytest.approx(value, rel=1e-6), (name, rank)


def test_the_angles_and_the_energy_are_those_of_the_two_spaces():
    features, labels, weight = normal(5, 12, 9)
    found = of(features, labels, 5, weight)
    data, rows = features.numpy(), weight.numpy()
    means = np.stack([data[labels.numpy() == k].mean(0) for k in range(5)]) - data.mean(0)
    basis = np.linalg.svd(means)[2][:4]
    angles = np.sort(np.degrees(subspace_angles(rows.T, basis.T)))
    np.testing.assert_allclose(found.angles.numpy(), angles, atol=1e-9)
    energy = np.linalg.norm(rows @ basis.T) ** 2 / np.linalg.norm(rows) ** 2
    assert found.energy == pytest.approx(energy, abs=1e-12)


@pytest.mark.filterwarnings("ignore:undefined.*nothing varies")
def test_a_collapsed_simplex_has_flat_spectra_and_angles_of_zero():
    etf = nc.simplex_etf(7, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moments = nc.ClassMoments.from_means(torch.full((7,), 3), etf + 5)
    found = nc.spectra(moments, 2 * etf)
    for name in ("between", "total", "weight"):
        spectrum = getattr(found, name)
        assert spectrum.rank == 6
        assert [getattr(spectrum, rank) for rank in RANKS] == pytest.approx([6] * 4, rel=1e-9)
    assert [found.between.ceiling, found.total.ceiling, found.weight.ceiling] == [6, 20, 7]
    assert found.energy == pytest.approx(1, abs=1e-12)
    assert found.angles.tolist() == pytest.approx([0] * 6, abs=1e-9)


@pytest.mark.filterwarnings("ignore:undefined.*nothing varies")
def test_small_angles_keep_their_digits():
    """A row at 1e-9 degrees from the span: its cosine is 1 in float64, its sine is not 0."""
    moments = nc.ClassMoments.from_means(torch.tensor([1, 1]), torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).double())
    tilt = math.radians(1e-9)
    found = nc.spectra(moments, torch.tensor([[1.0, tilt], [-1.0, -tilt]], dtype=torch.float64))
    assert found.angles.tolist() == pytest.approx([1e-9], rel=1e-6)


@pytest.mark.filterwarnings("ignore::neuralcollapse.NeuralCollapseWarning")
def test_ceilings_are_what_the_counts_allow():
    features, labels, weight = normal(4, 30, 3)  # N - K = 8 < d
    found = of(features, labels, 6, torch.cat([weight, weight[:2]]))  # two classes without samples
    assert [found.within.ceiling, found.between.ceiling, found.total.ceiling, found.weight.ceiling] == [8, 3, 11, 4]
    assert [found.within.rank, found.between.rank, found.total.rank, found.weight.rank] == [8, 3, 11, 4]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [40, 300])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_directions_that_hold_only_rounding_are_left_out(dtype, dim, offset):
    """Features in a subspace of 12 dimensions of which the class means span 7: no dtype adds a dimension."""
    generator = torch.Generator().manual_seed(1)
    basis = torch.linalg.qr(torch.randn(dim, 12, generator=generator, dtype=torch.float64)).Q.T
    labels = torch.arange(20).repeat_interleave(30)
    means = torch.randn(20, 7, generator=generator, dtype=torch.float64) @ basis[:7]
    noise = 0.5 * torch.randn(600, 12, generator=generator, dtype=torch.float64) @ basis
    features = (10 * (means[labels] + noise) + offset).to(dtype)
    sizes = (12, 12)
    if dtype == torch.bfloat16 and offset:
        return  # spacings of 0.5 leave no subspace to find
    found = of(features, labels, 20)
    assert (found.within.rank, found.total.rank) == sizes
    exact = of(10 * (means[labels] + noise), labels, 20)
    tolerance = 3e-2 if dtype == torch.bfloat16 else 1e-3
    for name in ("within", "total"):
        for rank in RANKS:
            expected = getattr(getattr(exact, name), rank)
            assert getattr(getattr(found, name), rank) == pytest.approx(expected, rel=tolerance)


@pytest.mark.filterwarnings("ignore:undefined.*nothing varies")
def test_a_float32_frame_has_the_rank_of_a_simplex():
    moments = nc.ClassMoments.from_means(torch.ones(50, dtype=torch.int64), torch.eye(50, 64).double())
    etf = nc.simplex_etf(50, 64, generator=torch.Generator().manual_seed(0))
    assert nc.spectra(moments, etf).weight.rank == 49
    assert nc.spectra(moments, nc.simplex_etf(50, 64)).weight.rank == 49
    assert nc.spectra(moments, nc.simplex_etf(50, 64).double()).weight.rank == 49
    assert nc.spectra(moments, etf.bfloat16()).weight.rank == 49
    assert nc.spectra(moments, etf + 1e-3).weight.rank == 50


@pytest.mark.parametrize(("classes", "dim"), [(700, 40), (40, 700), (600, 560), (560, 600)])
def test_the_smaller_side_gives_the_same(classes, dim):
    """With more than 512 directions eigenvectors of a Gram matrix stand in for an SVD."""
    features, labels, weight = normal(classes, dim, 2, noise=0.1)
    found = of(features, labels, classes, weight)
    means = torch.stack([features[labels == k].mean(0) for k in range(classes)]) - features.mean(0)
    squares = torch.linalg.svdvals(means).square()[: min(classes - 1, dim)] / classes
    torch.testing.assert_close(found.between.eigenvalues, squares, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(found.weight.eigenvalues, torch.linalg.svdvals(weight).square(), rtol=1e-8, atol=1e-9)


class Largest(TorchDispatchMode):
    """Inside, the size of the largest tensor that an operation makes."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for each in found if isinstance(found, tuple | list) else [found]:
            if isinstance(each, torch.Tensor):
                self.size = max(self.size, each.numel())
        return found


@pytest.mark.parametrize(("classes", "dim"), [(3_000, 8), (20, 900)])
def test_nothing_larger_than_the_moments_is_made(classes, dim):
    """Many classes by d x d matrices and blocks of rows, many dimensions by K x d and d x d."""
    features, labels, weight = normal(classes, dim, 2)
    moments = nc.ClassMoments.from_batch(features, labels, classes)
    moments.packed  # noqa: B018
    with Largest() as largest:
        nc.spectra(moments, weight)
    assert largest.size <= max(classes * dim, dim * dim)


def test_rotation_scale_and_merging_change_nothing():
    features, labels, weight = normal(4, 6, 20)
    rotation = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    plain = of(features, labels, 4, weight).values()
    turned = of(3 * features @ rotation + 7, labels, 4, 3 * weight @ rotation).values()
    half = len(labels) // 2
    parts = [nc.ClassMoments.from_batch(features[p], labels[p], 4) for p in (slice(half), slice(half, None))]
    merged = nc.spectra(parts[0].merge(parts[1]), weight).values()
    assert turned == pytest.approx(plain, rel=1e-9)
    assert merged == pytest.approx(plain, rel=1e-12)


def test_what_has_no_value_is_nan_with_its_reason():
    empty = nc.ClassMoments.zeros(3, 4)
    with pytest.warns(nc.NeuralCollapseWarning, match="no samples were seen"):
        values = nc.spectra(empty, torch.eye(3, 4)).values()
    assert all(math.isnan(values[f"{rank}_{name}"]) for rank in RANKS for name in ("within", "between", "total"))
    single = nc.ClassMoments.from_batch(torch.randn(5, 4), torch.zeros(5, dtype=torch.int64), 1)
    with pytest.warns(nc.NeuralCollapseWarning, match="a spread between classes needs two"):
        found = nc.spectra(single)
    assert found.between.rank == 0
    assert math.isnan(found.between.effective_rank)
    assert found.within.rank == found.total.rank == 4
    ones = nc.ClassMoments.from_batch(torch.randn(3, 4), torch.arange(3), 3)
    with pytest.warns(
        nc.NeuralCollapseWarning, match=r"nothing varies within classes beyond rounding: effective_rank_within"
    ):
        assert nc.spectra(ones).within.ceiling == 0
    with pytest.warns(nc.NeuralCollapseWarning) as caught:
        found = nc.spectra(ones, torch.zeros(3, 4))
    assert any("rows are all zero" in str(each.message) for each in caught)
    assert math.isnan(found.energy)
    assert math.isnan(found.values()["weight_angle"])


@pytest.mark.parametrize("scale", [1e-120, 1e120])
def test_ranks_do_not_depend_on_the_scale_of_the_weight(scale):
    features, labels, weight = normal(4, 6, 20)
    plain, scaled = (of(features, labels, 4, weight * x) for x in (1.0, scale))
    assert scaled.values() == pytest.approx(plain.values(), rel=1e-9)


@pytest.mark.parametrize("scale", [1e-170, 1e200])
def test_squares_beyond_float64_are_undefined(scale):
    features, labels, weight = normal(4, 6, 20)
    with pytest.warns(nc.NeuralCollapseWarning, match=r"leave the range of float64|underflow float64"):
        found = of(features, labels, 4, weight * scale)
    assert found.weight.rank == 0


def test_wrong_input_is_refused():
    features, labels, weight = normal(4, 6, 20)
    with pytest.raises(nc.InputError, match="expected weight of shape"):
        of(features, labels, 4, weight.T)
    with pytest.raises(nc.InputError, match="expected moments as ClassMoments, got Tensor"):
        nc.spectra(features)
    weight[0, 0] = math.nan
    with pytest.raises(nc.InputError, match="expected finite weight"):
        of(features, labels, 4, weight)
