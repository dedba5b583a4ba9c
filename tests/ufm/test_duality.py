import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize as scipy_minimize

from neuralcollapse.ufm import CrossEntropy, Focal, SquaredError, UnconstrainedFeatureModel, duality
from neuralcollapse.ufm.duality import best_bias, lower_bound, spectral_norm, top_pair
from neuralcollapse.ufm.effort import Effort, OutOfEffort
from tests.ufm import oracles

# K, d, counts, lW, lH, lb, bias
SHAPES = [
    (4, 6, 3, 0.01, 0.005, 0.0, True),
    (4, 6, 3, 0.01, 0.005, 0.02, True),
    (4, 4, 3, 0.01, 0.005, 0.0, False),
    (3, 5, [7, 2, 1], 0.03, 0.001, 0.0, True),
    (3, 2, [7, 2, 1], 0.03, 0.001, 0.1, True),
    (5, 5, [3, 1, 1, 2, 2], 0.1, 0.1, 0.0, False),
    (6, 2, 2, 0.004, 0.004, 0.01, True),  # d < K-1: the convex minimum is the reference
    (2, 1, [1, 4], 0.5, 0.0005, 0.0, True),
    (3, 3, 2, 0.9, 0.9, 0.01, True),  # the zero point is the minimiser
    (8, 3, 1, 1e-4, 1e-3, 0.0, True),
]
LOSSES = {"cross_entropy": CrossEntropy(), "smoothing": CrossEntropy(0.1), "mse": SquaredError()}
every_loss = pytest.mark.parametrize("loss", LOSSES)


def build(shape, loss, feature_dim=None):
    K, d, *rest = shape
    return UnconstrainedFeatureModel(K, feature_dim or d, *rest, loss=LOSSES[loss])


def references(loss):
    """(model, convex minimum) of every shape, the minimum at d >= K, which no smaller d can go below."""
    return [(build(shape, loss), build(shape, loss, max(shape[:2])).global_minimum()) for shape in SHAPES]


def bounds_above_the_minimum(loss, count, points=0):
    above = 0
    for model, minimum in references(loss):
        for seed in range(count // len(SHAPES)):
            point = model.random_point(seed, scale=10 ** (-2 + 3 * (seed % 25) / 24))  # 0.01 to 10
            bound = lower_bound(model, point)
            assert math.isfinite(bound)
            above += bound > minimum + 1e-12
            points += 1
    return above, points


@every_loss
def test_no_bound_of_1000_random_points_exceeds_the_minimum(loss):
    assert bounds_above_the_minimum(loss, 1000) == (0, 1000)


@every_loss
def test_no_bound_of_confident_points_exceeds_the_minimum(loss):
    """Logits beyond the minimiser's, with slopes down to the rounding of a probability near 1."""
    above = []
    for shape in SHAPES:
        model = build(shape, loss, max(shape[:2]))
        best, minimum = model.global_minimizer(), model.global_minimum()
        for factor in (1.5, 2, 2.5, 3, 4, 6, 10):
            for noise in (0.0, 1e-6, 1e-2):
                point = best * factor + model.random_point(1) * noise
                bound = lower_bound(model, point)
                if bound > minimum + 1e-9:
                    above.append((shape, factor, noise, bound, minimum))
    assert not above, above[0]


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_a_bound_that_ignored_the_constraint_would_be_caught(loss, monkeypatch):
    right = duality.spectral_norm
    monkeypatch.setattr(duality, "spectral_norm", lambda matrix: right(matrix) / 3)
    assert bounds_above_the_minimum(loss, 100)[0] > 0


@every_loss
def test_the_references_are_minima_that_another_optimiser_does_not_undercut(loss):
    for shape in SHAPES:
        model = build(shape, loss, max(shape[:2]))
        reached = min(
            scipy_minimize(
                lambda x, model=model: [y.numpy() for y in model.value_and_gradient(torch.as_tensor(x))],
                model.random_point(seed).vector().numpy(),
                jac=True,
                method="L-BFGS-B",
                options={"gtol": 1e-10, "ftol": 0, "maxiter": 3000},
            ).fun
            for seed in range(1)
        )
        assert reached == pytest.approx(model.global_minimum(), abs=1e-8)
        assert reached >= model.global_minimum() - 1e-12


@every_loss
def test_the_bound_is_the_brute_force_maximum_over_the_scale(loss):
    smoothing = 0.1 if loss == "smoothing" else 0.0
    for shape in SHAPES:
        model = build(shape, loss)
        for seed, scale in enumerate((0.2, 1.0)):
            point = model.random_point(seed, scale)
            logits = (point.W @ point.H).numpy()
            expected = oracles.dual_bound(
                logits,
                model.counts,
                model.mu,
                model.bias,
                model.bias_decay,
                smoothing=smoothing,
                squared=loss == "mse",
            )
            assert lower_bound(model, point) == pytest.approx(expected, abs=1e-5 * max(1, abs(expected)))


@every_loss
def test_the_bound_is_tight_at_the_minimiser(loss):
    for shape in SHAPES:
        model = build(shape, loss, max(shape[:2]))
        best = model.global_minimizer()
        gap = model.objective(best) - lower_bound(model, best)
        assert -1e-12 <= gap <= 1e-8


@every_loss
def test_the_bound_depends_on_the_logits_only_and_not_on_the_bias(loss):
    for shape in SHAPES[:5]:
        model = build(shape, loss)
        point = model.random_point(1)
        turned = model.random_point(1)
        rotation = torch.linalg.qr(model.random_point(2).W.T @ model.random_point(2).W + 2 * torch.eye(shape[1]))[0]
        turned.W, turned.H = 2 * turned.W @ rotation, rotation.T @ turned.H / 2
        if model.bias:
            turned.b = turned.b + torch.linspace(-1, 1, shape[0], dtype=torch.float64)
        assert lower_bound(model, turned) == pytest.approx(lower_bound(model, point), abs=1e-8)


@every_loss
def test_collapsed_points_have_the_bound_of_the_full_point(loss):
    for shape in SHAPES[:5]:
        model = build(shape, loss)
        small = model.collapsed()
        point = small.random_point(3)
        full = lower_bound(model, model.expand(point))
        assert lower_bound(small, point) == pytest.approx(full, abs=1e-9)


def test_the_focal_loss_has_no_bound():
    model = UnconstrainedFeatureModel(4, 6, 3, 0.01, 0.005, loss=Focal())
    assert lower_bound(model, model.random_point()) == -math.inf
    assert lower_bound(model, model.global_minimizer()) == -math.inf


@pytest.mark.parametrize("shape", [(1, 7), (7, 1), (3, 8), (8, 3), (5, 5)])
def test_spectral_norm_and_top_pair_are_the_svds(shape):
    matrix = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = np.linalg.svd(matrix.numpy(), compute_uv=False)[0]
    assert spectral_norm(matrix) == pytest.approx(expected, rel=1e-12)
    u, s, v = top_pair(matrix)
    assert s == pytest.approx(expected, rel=1e-12)
    assert float(u.norm()) == pytest.approx(1)
    assert float(v.norm()) == pytest.approx(1)
    torch.testing.assert_close(matrix @ v, s * u, rtol=0, atol=1e-12)
    torch.testing.assert_close(matrix.T @ u, s * v, rtol=0, atol=1e-12)


def test_spectral_norm_of_nothing_is_zero():
    assert spectral_norm(torch.zeros(3, 4, dtype=torch.float64)) == 0


@pytest.mark.parametrize("shape", [(9, 12), (12, 9)])
def test_lanczos_gives_the_same_norm_and_pair(shape, monkeypatch):
    matrix = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    norm, (_, s, _) = spectral_norm(matrix), top_pair(matrix)
    monkeypatch.setattr(duality, "_GRAM_UP_TO", 2)
    grams = []
    monkeypatch.setattr(torch.linalg, "eigh", lambda *a: grams.append(a))
    monkeypatch.setattr(torch.linalg, "eigvalsh", lambda *a: grams.append(a))
    assert spectral_norm(matrix) == pytest.approx(norm, rel=1e-10)
    u, size, v = top_pair(matrix)
    assert size == pytest.approx(s, rel=1e-10)
    torch.testing.assert_close(matrix @ v, size * u, rtol=0, atol=1e-8)
    assert not grams


def test_lanczos_bounds_are_those_of_the_gram_matrix(monkeypatch):
    model = build((6, 6, 2, 0.004, 0.004, 0.01, True), "cross_entropy")
    points = [model.random_point(seed) for seed in range(5)] + [model.global_minimizer()]
    expected = [lower_bound(model, point) for point in points]
    monkeypatch.setattr(duality, "_GRAM_UP_TO", 2)
    monkeypatch.setattr(duality, "_DENSE_UP_TO", 2)
    for point, value in zip(points, expected, strict=True):
        assert lower_bound(model, point) == pytest.approx(value, abs=1e-9)


@every_loss
@pytest.mark.parametrize("decay", [0.0, 0.001, 1.0])
@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
@pytest.mark.parametrize("by_products", [False, True])
def test_best_bias_has_zero_gradient_and_is_a_minimum(loss, decay, scale, by_products, monkeypatch):
    if by_products:  # as for thousands of classes: no matrix of them is made
        monkeypatch.setattr(duality, "_DENSE_UP_TO", 2)
        monkeypatch.setattr(torch.linalg, "pinv", None)
    model = build((4, 5, [6, 3, 1, 1], 0.01, 0.01, decay, True), loss)
    point = model.random_point(2, scale=math.sqrt(scale))
    bias = best_bias(model, point.W @ point.H, point.b)
    point.b = bias
    assert float(model.gradient(point).b.norm()) < 1e-10
    lowest = model.objective(point)
    for seed in range(5):
        point.b = bias + 0.1 * model.random_point(seed).b
        assert model.objective(point) >= lowest - 1e-12


@every_loss
def test_where_the_best_bias_costs_too_much_the_bound_is_that_of_small_logits(loss, monkeypatch):
    monkeypatch.setattr(duality, "_WORK", 0.0)  # as for large logits of thousands of classes, most of them wrong
    assert bounds_above_the_minimum(loss, 100) == (0, 100)
    model = build((5, 8, [7, 2, 1, 1, 1], 0.01, 0.005, 0.02, True), loss)
    point = model.random_point(1, scale=5.0)
    products = model.scaled(point.W @ point.H)
    kept = products.clone()
    bound = lower_bound(model, point, products)
    monkeypatch.undo()
    assert torch.equal(products, kept)
    assert bound > lower_bound(model, point)
    with pytest.raises(OutOfEffort):
        best_bias(model, products, point.b, Effort(model, 100.0))
