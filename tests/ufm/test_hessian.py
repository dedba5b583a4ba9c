import math

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import eigsh

from neuralcollapse import InputError
from neuralcollapse.ufm import CrossEntropy, Focal, Hessian, UnconstrainedFeatureModel
from neuralcollapse.ufm import hessian as hessian_module
from neuralcollapse.ufm.hessian import dense_hessian
from neuralcollapse.ufm.units import Units
from tests.ufm import oracles

Model = UnconstrainedFeatureModel

MODELS = {
    "balanced": (Model(3, 2, 2, 0.01, 0.02), oracles.cross_entropy()),
    "no_bias": (Model(3, 4, 2, 0.01, 0.02, bias=False), oracles.cross_entropy()),
    "unequal": (Model(3, 2, [3, 1, 2], 0.03, 0.02, 0.05), oracles.cross_entropy()),
    "smoothing": (Model(3, 2, [1, 2, 1], 0.03, 0.02, 0.05, loss=CrossEntropy(0.2)), oracles.cross_entropy(0.2)),
    "focal": (Model(3, 2, [2, 1, 2], 0.003, 0.002, 0.5, loss=Focal(3.5)), oracles.focal(3.5)),
    "mse": (Model(3, 2, [2, 3, 1], 0.03, 0.02, 0.05, loss="mse"), oracles.squared_error()),
    "mse_no_bias": (Model(2, 3, 2, 0.3, 0.02, bias=False, loss="mse"), oracles.squared_error()),
}
every_model = pytest.mark.parametrize("name", MODELS)


def naive(name):
    return oracles.objective_of(*MODELS[name])


def full_spectrum(model, point):
    """All eigenvalues, of the matrix made column by column from products in the full model."""
    columns = [model.hessian_product(point, model.point(unit)).vector() for unit in torch.eye(model.size).double()]
    return np.linalg.eigvalsh(torch.stack(columns).numpy())


@every_model
def test_dense_and_products_are_the_second_differences_of_the_loops(name):
    model, _ = MODELS[name]
    point = model.random_point(4)
    hessian = model.hessian(point)
    expected = oracles.hessian_by_differences(naive(name), point.vector().numpy())
    np.testing.assert_allclose(hessian.dense(), expected, atol=2e-6)
    direction = model.random_point(5)
    vector = direction.vector().numpy()
    np.testing.assert_allclose(hessian.product(direction).vector(), expected @ vector, atol=2e-5)
    np.testing.assert_allclose(hessian @ direction.vector(), expected @ vector, atol=2e-5)
    assert hessian.quadratic(direction) == pytest.approx(vector @ expected @ vector, abs=1e-4)


@every_model
def test_the_scipy_operator_is_the_same_matrix(name):
    model, _ = MODELS[name]
    hessian = model.hessian(model.random_point(4))
    matrix = hessian.dense().numpy()
    operator = hessian.operator()
    assert operator.shape == (model.size, model.size)
    np.testing.assert_allclose(operator @ np.eye(model.size), matrix, atol=1e-13)
    np.testing.assert_allclose(operator.rmatvec(matrix[0]), matrix.T @ matrix[0], atol=1e-13)
    least = eigsh(operator, k=1, which="SA", return_eigenvectors=False)[0]
    assert least == pytest.approx(np.linalg.eigvalsh(matrix)[0], abs=1e-8)


@every_model
def test_the_product_is_symmetric(name):
    model, _ = MODELS[name]
    for seed in range(3):
        hessian, (u, v) = model.hessian(model.random_point(seed)), (model.random_point(seed + i) for i in range(2))
        forward, backward = float(u.dot(hessian.product(v))), float(v.dot(hessian.product(u)))
        assert forward == pytest.approx(backward, rel=1e-12)


@every_model
def test_the_second_order_taylor_expansion_errs_at_order_three(name):
    model, _ = MODELS[name]
    for seed in range(3):
        at, direction = model.random_point(seed), model.random_point(seed + 10)
        direction = direction * (1 / direction.norm())
        first, second = float(model.gradient(at).dot(direction)), model.hessian(at).quadratic(direction)

        def error(step, at=at, direction=direction, first=first, second=second):
            moved = model.objective(at + direction * step)
            return abs(moved - model.objective(at) - step * first - step * step / 2 * second)

        assert math.log(error(0.1) / error(0.025)) / math.log(4) == pytest.approx(3, abs=0.25)


@every_model
def test_eigenvalues_at_random_points_are_the_dense_ones(name):
    model, _ = MODELS[name]
    point = model.random_point(6, scale=1.5)
    hessian, spectrum = model.hessian(point), full_spectrum(model, point)
    np.testing.assert_allclose(hessian.eigenvalues(5), spectrum[:5], atol=1e-12)
    np.testing.assert_allclose(hessian.eigenvalues(5, largest=True), spectrum[-5:], atol=1e-12)
    assert hessian.least() == pytest.approx(spectrum[0], abs=1e-12)
    assert hessian.negative() == (spectrum < -1e-8).sum() > 0


@pytest.mark.parametrize(
    "model",
    [
        Model(4, 6, 3, 0.005, 0.005, bias=False),
        Model(4, 6, 3, 0.01, 0.002, 0.01),
        Model(3, 4, [4, 1, 2], 0.01, 0.002, 0.01),
        Model(4, 3, 3, 0.005, 0.005),
        Model(4, 5, 2, 0.01, 0.01, loss="label_smoothing"),
        Model(3, 4, 2, 0.01, 0.01, loss="mse"),
    ],
    ids=["no_bias", "bias", "unequal", "d=K-1", "smoothing", "mse"],
)
def test_eigenvalues_split_at_collapsed_critical_points(model):
    entries = model.atlas(ranks=())
    assert len(entries) >= 3
    for entry in entries:
        hessian, spectrum = model.hessian(entry.point), full_spectrum(model, entry.point)
        for count in (1, 7, 20):
            np.testing.assert_allclose(hessian.eigenvalues(count), spectrum[:count], atol=1e-9)
            np.testing.assert_allclose(hessian.eigenvalues(count, largest=True), spectrum[-count:], atol=1e-9)
        assert hessian.least() == pytest.approx(spectrum[0], abs=1e-9)
        assert hessian.negative() == (spectrum < -1e-8).sum()


@every_model
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_eigenvalues_split_at_any_collapsed_point(name, scale):
    model, _ = MODELS[name]
    for seed in range(4):
        point = model.expand(model.collapsed().random_point(seed, scale))
        hessian, spectrum = model.hessian(point), full_spectrum(model, point)
        np.testing.assert_allclose(hessian.eigenvalues(8), spectrum[:8], atol=1e-12)
        assert hessian.least() == pytest.approx(spectrum[0], abs=1e-12)
        assert hessian.negative() == (spectrum < -1e-8).sum()


@pytest.mark.parametrize("collapsed", [True, False])
def test_least_direction_is_a_unit_eigenvector(collapsed):
    for model, _ in MODELS.values():
        point = model.expand(model.collapsed().random_point(2)) if collapsed else model.random_point(2)
        value, direction = model.hessian(point).least_direction()
        assert direction.norm() == pytest.approx(1)
        assert value == pytest.approx(full_spectrum(model, point)[0], abs=1e-12)
        image = model.hessian(point).product(direction).vector()
        torch.testing.assert_close(image, value * direction.vector(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("collapsed", [True, False])
def test_lanczos_gives_the_dense_eigenvalues(collapsed, monkeypatch):
    model = Model(4, 6, 4, 0.01, 0.005, 0.01)
    point = model.expand(model.collapsed().random_point(1)) if collapsed else model.random_point(1)
    spectrum = full_spectrum(model, point)
    monkeypatch.setattr(hessian_module, "_DENSE_UP_TO", 5)
    hessian = Hessian(model, point)
    with pytest.raises(InputError, match="too many for a dense matrix"):
        hessian.dense()
    np.testing.assert_allclose(hessian.eigenvalues(4), spectrum[:4], atol=1e-8)
    np.testing.assert_allclose(hessian.eigenvalues(4, largest=True), spectrum[-4:], atol=1e-8)
    assert hessian.least() == pytest.approx(spectrum[0], abs=1e-8)
    assert hessian.negative() == (spectrum < -1e-8).sum()
    value, direction = hessian.least_direction()
    assert value == pytest.approx(spectrum[0], abs=1e-8)
    assert hessian.quadratic(direction) == pytest.approx(spectrum[0], abs=1e-7)


def test_lanczos_counts_more_negative_eigenvalues_than_it_first_asks_for(monkeypatch):
    model = Model(5, 8, 3, 0.005, 0.005, bias=False)
    origin = model.zero_point()
    spectrum = full_spectrum(model, origin)
    assert (spectrum < -1e-8).sum() == 32  # (K-1) d
    monkeypatch.setattr(hessian_module, "_DENSE_UP_TO", 5)
    assert model.hessian(origin).negative() == 32
    assert Hessian(model.collapsed(), model.collapsed().zero_point()).negative() == 32


def test_the_minimiser_has_no_negative_eigenvalue_and_the_origin_many():
    model = Model(4, 6, 3, 0.005, 0.005)
    assert model.hessian(model.global_minimizer()).negative() == 0
    assert model.hessian(model.zero_point()).negative() == 18


@pytest.mark.parametrize("loss", ["cross_entropy", "label_smoothing", "focal", "mse"])
@pytest.mark.parametrize("bias", [True, False])
def test_the_matrix_made_by_blocks_is_that_of_the_products(loss, bias):
    model = UnconstrainedFeatureModel(4, 3, [5, 3, 2, 1], 0.01, 0.02, 0.03 if bias else 0.0, bias, loss)
    for small in (model.collapsed(), Units(model).small):
        points = [small.random_point(seed) for seed in range(3)]
        batch = dense_hessian(small, small.point(torch.stack([point.vector() for point in points])))
        for point, matrix in zip(points, batch, strict=True):
            products = small.hessian_product(point, small.point(torch.eye(small.size, dtype=torch.float64))).vector()
            torch.testing.assert_close(dense_hessian(small, point), products, rtol=0, atol=1e-13)
            torch.testing.assert_close(matrix, products, rtol=0, atol=1e-13)
