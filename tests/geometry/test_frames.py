"""The simplex ETF: every dimension gives one, and the nearest one is a minimiser."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralcollapse.errors import InputError
from neuralcollapse.geometry.frames import drop_ones, frame_name, nearest_simplex_etf, orthoplex, simplex_etf

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
SIZES = [(2, 1), (2, 2), (2, 5), (3, 2), (3, 3), (4, 9), (10, 9), (10, 10), (10, 64), (33, 40)]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def random_etf(num_classes, dim, seed):
    return simplex_etf(num_classes, dim, generator=seeded(seed), dtype=torch.float64)


def gaussian(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def rotation(dim, seed=0):
    return torch.linalg.qr(gaussian(dim, dim, seed=seed))[0]


def assert_is_simplex_etf(frame, atol=1e-12):
    count = len(frame)
    cosines = torch.full((count, count), -1 / (count - 1), dtype=torch.float64).fill_diagonal_(1)
    frame = frame.double()
    torch.testing.assert_close(frame @ frame.T, cosines, rtol=0, atol=atol)
    torch.testing.assert_close(frame.sum(0), torch.zeros(frame.shape[1], dtype=torch.float64), rtol=0, atol=atol)


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize(("num_classes", "dim"), SIZES)
def test_every_dimension_from_k_minus_1_up_holds_a_simplex_etf(num_classes, dim, seed):
    generator = None if seed is None else seeded(seed)
    frame = simplex_etf(num_classes, dim, generator=generator, dtype=torch.float64)
    assert frame.shape == (num_classes, dim)
    assert_is_simplex_etf(frame)


@pytest.mark.parametrize("num_classes", [2, 3, 10])
def test_the_dimension_is_k_when_not_given(num_classes):
    assert torch.equal(simplex_etf(num_classes), simplex_etf(num_classes, num_classes))


@pytest.mark.parametrize(("num_classes", "dim"), [(2, 2), (3, 5), (10, 10)])
def test_the_canonical_frame_centres_the_first_k_coordinates(num_classes, dim):
    features = gaussian(7, dim)
    first = features[:, :num_classes]
    expected = math.sqrt(num_classes / (num_classes - 1)) * (first - first.mean(1, keepdim=True))
    frame = simplex_etf(num_classes, dim, dtype=torch.float64)
    torch.testing.assert_close(features @ frame.T, expected, rtol=0, atol=1e-12)


def householder(num_classes):
    """The reflection that takes the last axis to 1/sqrt(K), less its last column."""
    difference = -torch.ones(num_classes, dtype=torch.float64) / math.sqrt(num_classes)
    difference[-1] += 1
    reflection = torch.eye(num_classes) - 2 * torch.outer(difference, difference) / (difference @ difference)
    return reflection[:, :-1]


@pytest.mark.parametrize("num_classes", [2, 3, 10])
def test_the_canonical_frame_in_k_minus_1_dimensions_is_a_householder_reflection(num_classes):
    expected = math.sqrt(num_classes / (num_classes - 1)) * householder(num_classes)
    frame = simplex_etf(num_classes, num_classes - 1, dtype=torch.float64)
    torch.testing.assert_close(frame, expected, rtol=0, atol=1e-12)


def test_two_classes_are_opposite_unit_vectors():
    frame = simplex_etf(2, 1, dtype=torch.float64)
    assert sorted(frame.flatten().tolist()) == pytest.approx([-1, 1])


def test_drop_ones_multiplies_by_the_householder_basis():
    features = gaussian(2, 3, 4)
    torch.testing.assert_close(drop_ones(features), features @ householder(5).T, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dim", [3, 4, 9])
def test_the_same_seed_gives_the_same_frame_and_another_seed_another(dim):
    assert torch.equal(random_etf(4, dim, seed=1), random_etf(4, dim, seed=1))
    assert not torch.allclose(random_etf(4, dim, seed=1), random_etf(4, dim, seed=2), atol=1e-3)


def test_a_generator_moves_on_with_every_frame():
    generator = seeded(0)
    assert not torch.allclose(simplex_etf(4, 6, generator=generator), simplex_etf(4, 6, generator=generator), atol=1e-3)


def test_rotations_are_uniform():
    frames = torch.stack([random_etf(3, 4, seed) for seed in range(600)])
    # A QR whose signs are not mended leans to one side by 0.4; the noise here is 0.02.
    assert frames.mean(0).abs().max() < 0.1
    torch.testing.assert_close(frames.square().mean(0), torch.full((3, 4), 0.25).double(), rtol=0, atol=0.05)


@pytest.mark.parametrize("dim", [4, 5, 8])
@pytest.mark.parametrize("dtype", FLOATS)
def test_the_frame_comes_in_the_dtype_asked_for_and_to_its_precision(dtype, dim):
    frame = simplex_etf(5, dim, dtype=dtype)
    assert frame.dtype == dtype
    assert torch.equal(frame, simplex_etf(5, dim, dtype=torch.float64).to(dtype))
    assert_is_simplex_etf(frame, atol=4 * torch.finfo(dtype).eps)


def test_the_dtype_is_torchs_default_when_not_given():
    assert simplex_etf(3).dtype == torch.get_default_dtype()


def test_the_frame_lies_on_the_device_asked_for():
    assert simplex_etf(3, 4, device="meta").device.type == "meta"


@pytest.mark.parametrize(("num_classes", "dim"), [(3, 1), (10, 8), (1000, 512)])
def test_too_few_dimensions_are_refused_with_the_least_that_would_do(num_classes, dim):
    with pytest.raises(
        InputError, match=rf"expected .*K-1 = {num_classes - 1} .*got d={dim}: widen .*{num_classes - 1}"
    ):
        simplex_etf(num_classes, dim)


@pytest.mark.parametrize("num_classes", [1, 0, -3, True, 3.0, "3"])
def test_fewer_than_two_classes_or_no_integer_are_refused(num_classes):
    with pytest.raises(InputError, match=rf"expected num_classes .*at least 2, got {num_classes!r}"):
        simplex_etf(num_classes, 8)


@pytest.mark.parametrize("dim", [0, -1, 2.0])
def test_a_dimension_below_one_or_no_integer_is_refused(dim):
    with pytest.raises(InputError, match=rf"expected dim .*at least 1, got {dim!r}"):
        simplex_etf(2, dim)


def rank_one(num_classes, dim):
    return torch.outer(gaussian(num_classes), gaussian(dim, seed=1))


def one_direction_lost(num_classes, dim):
    vectors = gaussian(num_classes, dim)
    vectors[-1] = vectors[0]
    return vectors


INPUTS = {
    "random": gaussian,
    "rank one": rank_one,
    "two rows alike": one_direction_lost,
    "all rows alike": lambda num_classes, dim: gaussian(dim).expand(num_classes, dim),
    "zero": lambda num_classes, dim: torch.zeros(num_classes, dim, dtype=torch.float64),
    "tiny": lambda num_classes, dim: 1e-200 * gaussian(num_classes, dim),
}


@pytest.mark.parametrize(("num_classes", "dim"), [(2, 1), (3, 2), (5, 5), (5, 12)])
@pytest.mark.parametrize("make", INPUTS.values(), ids=INPUTS.keys())
def test_the_nearest_etf_is_an_exact_etf_whatever_the_vectors(make, num_classes, dim):
    etf, scale = nearest_simplex_etf(make(num_classes, dim))
    assert_is_simplex_etf(etf)
    assert scale >= 0


def test_the_nearest_scale_to_zero_vectors_is_zero():
    assert nearest_simplex_etf(torch.zeros(4, 6))[1] == 0


@pytest.mark.parametrize(("num_classes", "dim"), [(2, 1), (4, 3), (4, 4), (6, 20)])
def test_a_scaled_rotated_and_shifted_etf_is_found_again(num_classes, dim):
    expected = random_etf(num_classes, dim, seed=5)
    etf, scale = nearest_simplex_etf(3.7 * expected + gaussian(dim))
    torch.testing.assert_close(etf, expected, rtol=0, atol=1e-12)
    assert float(scale) == pytest.approx(3.7)


@settings(deadline=None, max_examples=100)
@given(
    size=st.sampled_from([(2, 1), (3, 2), (3, 6), (5, 5), (6, 9)]),
    seed=st.integers(0, 2**32 - 1),
    angle=st.floats(1e-3, 1),
)
def test_no_other_etf_or_scale_is_nearer(size, seed, angle):
    vectors = gaussian(*size, seed=seed)
    etf, scale = nearest_simplex_etf(vectors)
    least = float(torch.linalg.norm(vectors - scale * etf))
    skew = angle * gaussian(size[1], size[1], seed=seed + 1)
    near = etf @ torch.matrix_exp(skew - skew.T)
    for other in (near, random_etf(*size, seed), etf.flip(0)):
        best = max(0.0, float((vectors * other).sum()) / len(other))
        assert torch.linalg.norm(vectors - best * other) >= least - 1e-9
    for factor in (0.9, 1.1):
        assert torch.linalg.norm(vectors - factor * scale * etf) > least


@pytest.mark.parametrize(("num_classes", "dim"), [(2, 3), (4, 3), (5, 8)])
def test_the_nearest_etf_turns_and_permutes_with_the_vectors(num_classes, dim):
    vectors, turn, order = gaussian(num_classes, dim), rotation(dim), torch.arange(num_classes).roll(1)
    etf, scale = nearest_simplex_etf(vectors)
    for changed, expected in ((vectors @ turn, etf @ turn), (vectors[order], etf[order])):
        got, got_scale = nearest_simplex_etf(changed)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
        torch.testing.assert_close(got_scale, scale)


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_nearest_etf_keeps_the_dtype_of_the_vectors(dtype):
    vectors = gaussian(4, 6).to(dtype)
    etf, scale = nearest_simplex_etf(vectors)
    assert etf.dtype == scale.dtype == dtype
    exact, exact_scale = nearest_simplex_etf(vectors.double())
    assert torch.equal(etf, exact.to(dtype))
    assert torch.equal(scale, exact_scale.to(dtype))


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (torch.ones(4), r"expected .*\(K, d\) .*got \(4,\)"),
        (torch.ones(2, 3, 4), r"expected .*\(K, d\) .*got \(2, 3, 4\)"),
        (torch.ones(3, 4, dtype=torch.int64), r"expected .*floating-point .*torch\.int64"),
        (torch.ones(1, 4), "expected num_classes .*at least 2, got 1"),
        (torch.ones(4, 2), "K-1 = 3 .*got d=2"),
        (torch.tensor([[1.0, float("nan")], [0.0, 1.0]]), r"expected finite vectors, got 1 .*rows 0"),
    ],
)
def test_vectors_without_a_nearest_etf_are_refused(vectors, message):
    with pytest.raises(InputError, match=message):
        nearest_simplex_etf(vectors)


@pytest.mark.parametrize(("num_classes", "dim"), [(2, 1), (4, 2), (5, 3), (6, 5), (10, 5)])
@pytest.mark.parametrize("seed", [None, 0])
def test_the_orthoplex_has_unit_rows_of_cosine_zero_or_less_in_pairs(num_classes, dim, seed):
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    rows = orthoplex(num_classes, dim, generator=generator, dtype=torch.float64)
    cosines = rows @ rows.T
    for i in range(num_classes):
        for j in range(num_classes):
            expected = 1 if i == j else -1 if i // 2 == j // 2 else 0
            assert abs(float(cosines[i, j]) - expected) < 1e-12
    if num_classes % 2 == 0:
        assert float(rows.sum(0).abs().max()) < 1e-12


def test_an_orthoplex_that_cannot_be_is_refused():
    with pytest.raises(InputError, match="at most 2d = 6 classes for an orthoplex in d=3 dimensions, got K=7"):
        orthoplex(7, 3)
    with pytest.raises(InputError, match="num_classes"):
        orthoplex(1, 3)
    with pytest.raises(InputError, match="floating-point dtype"):
        orthoplex(4, 3, dtype=torch.int64)


def test_the_best_known_frame_has_a_name():
    assert [frame_name(k, 4) for k in (2, 5, 6, 8, 9, 100)] == ["simplex"] * 2 + ["orthoplex"] * 2 + [
        "softmax_code"
    ] * 2
