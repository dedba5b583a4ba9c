"""The scores against brute force, and the exact values that a collapsed head gives them."""

import math
import warnings

import numpy as np
import pytest
import torch

import neuralcollapse as nc
from tests.ood import oracle

TRAIN, INPUTS = 160, 12


def random_head(seed, dtype=torch.float64):
    """Weight, bias, training features with labels, and inputs of a random size; K is above d now and then."""
    generator = torch.Generator().manual_seed(seed)
    count, dim = int(torch.randint(2, 9, (), generator=generator)), int(torch.randint(5, 12, (), generator=generator))

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    labels = torch.arange(TRAIN) % count
    offset = 10 ** float(normal(())) if seed % 3 else 0.0
    features = (2 * normal(count, dim))[labels] + normal(TRAIN, dim) @ normal(dim, dim) / 3 + offset
    inputs = 3 * normal(INPUTS, dim) + offset
    return [each.to(dtype) for each in (normal(count, dim), normal(count), features)] + [labels, inputs.to(dtype)]


def scorer_of(weight, bias, features, labels, **options):
    moments = nc.ClassMoments.from_batch(features, labels, len(weight))
    return nc.OODScorer.from_moments(moments, weight, bias, features=features, **options)


@pytest.mark.parametrize("seed", range(20))
def test_every_score_is_the_brute_force_one(seed):
    weight, bias, features, labels, inputs = random_head(seed)
    dim = features.shape[1]
    neco_dim = 3 if len(weight) - 1 >= dim else None
    scorer = scorer_of(weight, bias, features, labels, nci_alpha=0.1, neco_dim=neco_dim)
    expected = oracle.scores(
        inputs, features, labels.numpy(), weight, bias, vim_dim=dim // 2, neco_dim=neco_dim, alpha=0.1
    )
    found = scorer.score(inputs)
    assert set(found) == set(expected) == set(nc.ood.SCORES)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name].numpy(), values, rtol=1e-9, atol=1e-11, err_msg=name)
    given = scorer.score(inputs, inputs @ weight.T + bias)
    for name in expected:
        torch.testing.assert_close(given[name], found[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", [0, 3, 9])
def test_narrow_features_are_scored_as_their_values_are_in_float64(seed, dtype):
    weight, bias, features, labels, inputs = random_head(seed, dtype)
    wide = [each.double() for each in (weight, bias, features)]
    neco_dim = 3
    exact = scorer_of(*wide, labels, neco_dim=neco_dim).score(inputs.double())
    found = scorer_of(weight, bias, features, labels, neco_dim=neco_dim).score(inputs)
    for name, values in exact.items():
        assert found[name].dtype == (torch.float64 if name == "msp" else torch.float32)
        torch.testing.assert_close(found[name].double(), values, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_offset_of_100_and_noise_of_a_thousandth_cost_no_digits_that_the_features_have(dtype):
    count, dim = 5, 24
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % count
    features = nc.simplex_etf(count, dim, generator=generator).double()[labels] + 100
    features = (features + 1e-3 * torch.randn(400, dim, generator=generator, dtype=torch.float64)).to(dtype)
    weight = torch.randn(count, dim, generator=generator, dtype=torch.float64).to(dtype)
    inputs = features[:20] + (1e-3 * torch.randn(20, dim, generator=generator)).to(dtype)
    found = scorer_of(weight, None, features, labels).score(inputs)
    expected = oracle.scores(inputs, features, labels.numpy(), weight, np.zeros(count), vim_dim=dim // 2)
    for name, values in expected.items():
        rtol = 1e-6 if dtype == torch.float64 else 1e-3
        np.testing.assert_allclose(found[name].double().numpy(), values, rtol=rtol, atol=1e-6, err_msg=name)


def collapsed(count, dim, length=2.0):
    """A simplex head, training features on it, and their scorer, with Mahalanobis distances left out."""
    weight = length * nc.simplex_etf(count, dim, dtype=torch.float64)
    labels = torch.arange(4 * count) % count
    features = 3 * weight[labels]
    return weight, scorer_of(weight, None, features, labels, scores=["neco", "nci", "fdbd"]), features


@pytest.mark.parametrize(("count", "dim"), [(2, 3), (5, 8), (10, 64), (100, 128)])
def test_exact_values_of_a_collapsed_simplex(count, dim):
    weight, scorer, features = collapsed(count, dim)
    found = scorer.score(features)
    assert found["fdbd"].numpy() == pytest.approx(math.sqrt(count / (2 * (count - 1))), abs=1e-9)
    assert found["nci"].numpy() == pytest.approx(2.0, abs=1e-9)
    assert found["neco"].numpy() == pytest.approx(1.0, abs=1e-9)
    outside = torch.linalg.svd(weight)[2][count - 1 :]
    found = scorer.score(5 * outside)
    for name in ("neco", "fdbd"):
        assert found[name].numpy() == pytest.approx(0, abs=1e-9), name


def test_isotropic_features_have_a_mean_square_of_neco_of_k_less_one_over_d():
    _, scorer, _ = collapsed(10, 27)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40_000, 27, generator=generator, dtype=torch.float64)
    squares = scorer.score(inputs)["neco"].square()
    assert float(squares.mean()) == pytest.approx(9 / 27, abs=4 * float(squares.std()) / 200)


def test_a_simplex_needs_no_table_of_distances_and_other_heads_get_the_same_without_one(monkeypatch):
    weight, bias, features, labels, inputs = random_head(2)
    assert scorer_of(weight, bias, features, labels)._fitted.boundaries.common is None
    with_table = scorer_of(weight, bias, features, labels).score(inputs)["fdbd"]
    monkeypatch.setattr("neuralcollapse.ood.boundaries._TABLE", 1)
    without = scorer_of(weight, bias, features, labels).score(inputs)["fdbd"]
    torch.testing.assert_close(without, with_table, rtol=1e-12, atol=0)
    for dtype in (torch.float32, torch.float64):
        simplex = 2 * nc.simplex_etf(7, 12, dtype=dtype) + 1  # moved as a whole: distances stay
        assert scorer_of(simplex, None, torch.randn(70, 12), torch.arange(70) % 7)._fitted.boundaries.common == (
            pytest.approx(2 * math.sqrt(2 * 7 / 6), rel=1e-6)
        )


@pytest.mark.parametrize("count", [3, 7])
def test_a_simplex_of_any_bias_has_the_fdbd_of_its_pairs(count):
    generator = torch.Generator().manual_seed(0)
    weight = 1.5 * nc.simplex_etf(count, 9, dtype=torch.float64)
    bias = torch.randn(count, generator=generator, dtype=torch.float64)
    labels = torch.arange(80) % count
    features = torch.randn(80, 9, generator=generator, dtype=torch.float64) + weight[labels]
    expected = oracle.scores(features, features, labels.numpy(), weight, bias, vim_dim=4)
    found = scorer_of(weight, bias, features, labels).score(features)
    np.testing.assert_allclose(found["fdbd"].numpy(), expected["fdbd"], rtol=1e-10)


def test_classes_of_equal_rows_have_no_boundary_and_are_left_out_of_the_mean():
    weight, bias, features, labels, inputs = random_head(2)
    weight[-1] = weight[0]
    bias[-1] = bias[0] + 0.5  # so that the class with the larger logit is the same for the oracle
    with pytest.warns(nc.NeuralCollapseWarning, match="2 classes have the row of another class"):
        scorer = scorer_of(weight, bias, features, labels, neco_dim=2)
    expected = oracle.scores(inputs, features, labels.numpy(), weight, bias, vim_dim=features.shape[1] // 2, neco_dim=2)
    for name, values in scorer.score(inputs).items():
        np.testing.assert_allclose(values.numpy(), expected[name], rtol=1e-9, atol=1e-11, err_msg=name)


def test_equal_rows_alone_leave_fdbd_out():
    _, _, features, labels, _ = random_head(0)
    weight = torch.ones(int(labels.max()) + 1, features.shape[1])
    with pytest.warns(nc.NeuralCollapseWarning, match="left out: fdbd: all rows of the head are equal"):
        scorer = scorer_of(weight, None, features, labels, vim_alpha=1.0)
    assert "fdbd" not in scorer.scores
    assert "equal" in scorer.undefined["fdbd"]
    with pytest.raises(nc.InputError, match="no score 'fdbd' here"):
        scorer_of(weight, None, features, labels, scores=["fdbd"])


def test_fewer_samples_than_dimensions_take_the_pseudo_inverse_and_say_so():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(15) % 3
    features = torch.randn(15, 30, generator=generator, dtype=torch.float64) + 5 * torch.eye(30)[:3][labels].double()
    weight, inputs = torch.randn(3, 30, generator=generator, dtype=torch.float64), torch.randn(9, 30).double()
    with pytest.warns(nc.NeuralCollapseWarning, match="S_W has the rank 12 of d=30"):
        found = scorer_of(weight, None, features, labels, vim_dim=5).score(inputs)
    expected = oracle.scores(inputs, features, labels.numpy(), weight, np.zeros(3), vim_dim=5, pinv=True)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name].numpy(), values, rtol=1e-8, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dead_features_are_no_directions(dtype):
    weight, bias, features, labels, inputs = random_head(5, dtype)
    dead = torch.zeros(len(features), 300, dtype=dtype)
    dead[:, :150] = 0.3
    wider = torch.cat([features, dead], 1)
    rows = torch.cat([weight, torch.zeros(len(weight), 300, dtype=dtype)], 1)
    with pytest.warns(nc.NeuralCollapseWarning, match=f"rank {features.shape[1]} of d={wider.shape[1]}"):
        found = scorer_of(rows, bias, wider, labels, neco_dim=2, vim_dim=2).score(
            torch.cat([inputs, dead[: len(inputs)]], 1)
        )
    plain = scorer_of(weight, bias, features, labels, neco_dim=2).score(inputs)
    rtol = 1e-2 if dtype == torch.float32 else 1e-9  # from d = 256 on, sums of float32 products make S_W
    for name in ("mahalanobis", "relative_mahalanobis", "neco", "nci", "fdbd"):
        torch.testing.assert_close(found[name], plain[name], rtol=rtol, atol=1e-6)


def test_perfect_collapse_has_no_mahalanobis_distance_and_says_why():
    weight = nc.simplex_etf(4, 9, dtype=torch.float64)
    labels = torch.arange(12) % 4
    with pytest.warns(nc.NeuralCollapseWarning) as shown:
        scorer = scorer_of(weight, None, weight[labels], labels)
    said = " ".join(str(each.message) for each in shown)
    assert "left out: mahalanobis, relative_mahalanobis: nothing varies within classes" in said
    assert "left out: vim: no training feature has a residual" in said
    assert set(scorer.scores) == set(nc.ood.SCORES) - {"mahalanobis", "relative_mahalanobis", "vim"}
    assert all(bool(torch.isfinite(values).all()) for values in scorer.score(weight).values())


def test_more_classes_than_dimensions_leave_neco_out_unless_it_is_given_directions():
    weight, bias, features, labels = torch.randn(9, 4), torch.randn(9), torch.randn(90, 4), torch.arange(90) % 9
    with pytest.warns(nc.NeuralCollapseWarning, match="left out: neco: K-1 directions are all d=4"):
        scorer = scorer_of(weight, bias, features, labels)
    assert "neco" not in scorer.scores
    assert "neco" in scorer_of(weight, bias, features, labels, neco_dim=2).scores


def test_classes_without_samples_have_no_mean():
    weight, bias, features, labels, inputs = random_head(3)
    kept = labels != 0
    with pytest.warns(nc.NeuralCollapseWarning, match="no samples of class 0: "):
        scorer = scorer_of(weight, bias, features[kept], labels[kept], neco_dim=1)
    expected = oracle.scores(
        inputs, features[kept], labels[kept].numpy(), weight, bias, vim_dim=features.shape[1] // 2, neco_dim=1
    )
    for name, values in scorer.score(inputs).items():
        np.testing.assert_allclose(values.numpy(), expected[name], rtol=1e-9, atol=1e-11, err_msg=name)


def test_neco_standardised_divides_by_the_deviation_or_by_one_where_there_is_none():
    weight, bias, features, labels, inputs = random_head(4)
    features[:, 0], inputs[:, 0] = 7.0, 7.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nc.NeuralCollapseWarning)
        found = scorer_of(weight, bias, features, labels, neco_standardize=True, neco_dim=2, neco_max_logit=True)
    deviations = features.std(0, correction=0)
    deviations[0] = 1
    x, y = (features - features.mean(0)) / deviations, (inputs - features.mean(0)) / deviations
    top = torch.linalg.svd(x.T @ x)[0][:, :2]
    expected = (y @ top).norm(dim=1) / y.norm(dim=1) * (inputs @ weight.T + bias).max(1).values
    torch.testing.assert_close(found.score(inputs)["neco"], expected, rtol=1e-10, atol=1e-12)


def test_neco_takes_as_many_directions_as_hold_a_share_of_the_variance():
    features = torch.randn(4000, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    features *= torch.tensor([10.0, 5.0, 1.0, 0.1, 0.1, 0.1])
    weight, labels = torch.eye(3, 6).double(), torch.arange(4000) % 3
    for share, expected in ((0.5, 1), (0.9, 2), (0.999, 3)):
        scorer = scorer_of(weight, None, features, labels, neco_dim=share, scores=["neco"])
        assert scorer._fitted.directions.shape == (6, expected)


def test_fdbd_about_the_origin_divides_by_the_length_of_the_feature():
    weight, bias, features, labels, inputs = random_head(6)
    plain = scorer_of(weight, bias, features, labels, neco_dim=1).score(inputs)["fdbd"]
    origin = scorer_of(weight, bias, features, labels, neco_dim=1, fdbd_center="origin").score(inputs)["fdbd"]
    lengths = (inputs - features.mean(0)).norm(dim=1) / inputs.norm(dim=1)
    torch.testing.assert_close(origin, plain * lengths, rtol=1e-11, atol=0)


def test_a_feature_at_the_mean_of_all_has_finite_scores():
    _, scorer, features = collapsed(5, 8)
    found = scorer.score(features.mean(0, keepdim=True))
    assert all(bool(torch.isfinite(values).all()) for values in found.values())
    assert float(found["neco"]) == pytest.approx(0, abs=1)


def test_probabilities_near_one_stay_apart():
    weight, _, features = collapsed(5, 8, length=20.0)
    labels = torch.arange(len(features)) % 5
    scorer = scorer_of(weight.float(), None, features.float(), labels, scores=["msp", "energy"])
    sure = (0.012 * features[:1] * torch.tensor([[1.0], [1.1], [1.2]])).float()
    values = scorer.score(sure)["msp"]
    assert values.dtype == torch.float64
    assert bool((values.diff() > 0).all())
    assert float((1 - values).max()) < 1e-6  # less than float32 could tell apart


@pytest.mark.parametrize("bias_mean", [0.0, 3.0])
def test_the_origin_of_a_simplex_head_in_float32_is_not_that_of_its_rounding(bias_mean):
    """Rows that sum to zero but for rounding: an exact inverse would send the origin to 1e7."""
    generator = torch.Generator().manual_seed(0)
    weight = nc.simplex_etf(10, 32, generator=generator)
    bias = torch.randn(10, generator=generator) + bias_mean
    labels = torch.arange(200) % 10
    features = 4 * weight[labels] + torch.randn(200, 32, generator=generator)
    scorer = scorer_of(weight, bias, features, labels, scores=["vim", "residual"])
    assert float(scorer._fitted.origin.norm()) < 10


@pytest.mark.parametrize("exact", [True, False])
def test_directions_of_little_variance_are_kept_where_the_sums_are_exact(exact):
    """From d = 256 on, products of float32 features are summed in float32, unless they are widened first."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(3000) % 3
    spread = torch.cat([torch.ones(30), torch.full((226,), 1e-4)])
    turned = torch.linalg.qr(torch.randn(256, 256, generator=generator))[0]  # so that no entry is of little variance
    features = (torch.randn(3000, 256, generator=generator) * spread) @ turned + 30 * torch.eye(256)[labels]
    weight = torch.randn(3, 256, generator=generator)
    moments = nc.ClassMoments.from_batch(features.double() if exact else features, labels, 3)
    if exact:
        scorer = nc.OODScorer.from_moments(moments, weight, scores=["mahalanobis"])
    else:
        with pytest.warns(nc.NeuralCollapseWarning, match="S_W has the rank 30 of d=256"):
            scorer = nc.OODScorer.from_moments(moments, weight, scores=["mahalanobis"])
    rank = 256 if exact else 30
    squares = -scorer.score(features)["mahalanobis"].double()
    assert float(squares.mean()) == pytest.approx(rank, rel=0.01)


def test_inputs_far_beyond_the_training_set_have_finite_scores():
    weight, bias, features, labels, _ = random_head(8, torch.float32)
    scorer = scorer_of(weight, bias, features, labels, neco_dim=1)
    for size in (1e14, 1e20, 3e37):
        for name, values in scorer.score(torch.full((2, features.shape[1]), size)).items():
            assert bool(torch.isfinite(values).all()), (name, size)


def test_features_whose_squares_overflow_are_refused():
    weight, bias, features, labels, _ = random_head(8)
    with pytest.raises(nc.InputError, match="squares are float64 numbers"):
        nc.OODScorer.from_moments(nc.ClassMoments.from_batch(1e160 * features, labels, len(weight)), weight, bias)
