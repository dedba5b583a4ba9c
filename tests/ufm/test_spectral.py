"""Newton's method in the basis of the singular vectors: the same minima as by descent in the factors."""

import pytest
import torch

from neuralcollapse.ufm import UnconstrainedFeatureModel
from neuralcollapse.ufm.convex import solve
from neuralcollapse.ufm.grouped import GroupedModel, GroupedPoint
from neuralcollapse.ufm.spectral import _proximal, _Step, spectral_newton

Model = UnconstrainedFeatureModel
COUNTS = [40, 31, 31, 20, 12, 9, 9, 9, 4, 2, 1, 1]


def model_of(loss, bias=True, bias_decay=0.01, decay=0.002):
    return Model(12, 12, COUNTS, 2 * decay, decay, bias_decay, bias, loss)


def beside(problem, point, noise):
    generator = torch.Generator().manual_seed(0)

    def moved(part):
        return part + noise * torch.randn(part.shape, generator=generator, dtype=torch.float64)

    return GroupedPoint(moved(point.within), moved(point.between), None if point.b is None else moved(point.b))


@pytest.mark.parametrize("loss", ["cross_entropy", "label_smoothing", "mse"])
@pytest.mark.parametrize(("bias", "bias_decay"), [(False, 0.0), (True, 0.0), (True, 0.01)])
@pytest.mark.parametrize("decay", [1e-5, 0.002, 0.01])
def test_the_minimum_is_that_of_descent_in_the_factors(loss, bias, bias_decay, decay):
    model = model_of(loss, bias, bias_decay, decay)
    problem, best = GroupedModel(model), solve(model)
    minimum = float(problem.value(best))
    for noise in (0.0, 0.03):
        ends = list(spectral_newton(problem, beside(problem, best, noise)))
        values = [float(problem.value(end)) for end in ends]
        assert min(values) == pytest.approx(minimum, rel=1e-13, abs=1e-15)
        assert problem.lower_bound(ends[-1], sharp=True) == pytest.approx(minimum, rel=1e-9)


@pytest.mark.parametrize("loss", ["cross_entropy", "label_smoothing", "mse"])
def test_products_are_those_of_the_hessian_at_the_minimum(loss):
    model = model_of(loss)
    problem = GroupedModel(model)
    *_, best = spectral_newton(problem, solve(model))
    step = _Step(problem, _proximal(problem, best))
    place, G, roots = step.place, len(problem.groups), step.roots
    parts = torch.randn(2 * G * G + 2 * G, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    E, F, u, b = parts.split([G * G, G * G, G, G])
    E, F = E.view(G, G), F.view(G, G)

    def turned(rows, columns):
        return torch.cat([(place.left @ rows).flatten(), (columns @ place.right).flatten()])

    at = torch.cat([turned(torch.diag(roots), torch.diag(roots)), step.u, step.bias])
    found = step._product(torch.float64)([E, F, u, b])
    expected = problem.product(at, torch.cat([turned(E, F), u, b]))
    alive = roots > 0  # where s is 0, h is at most mu, but grad g need not be diagonal
    torch.testing.assert_close(turned(found[0], found[1]), expected[: 2 * G * G], rtol=0, atol=1e-7)
    torch.testing.assert_close(torch.cat(found[2:]), expected[2 * G * G :], rtol=0, atol=1e-7)
    assert bool(alive.any())


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_the_preconditioner_is_symmetric_and_positive(loss):
    model = model_of(loss)
    problem = GroupedModel(model)
    step = _Step(problem, _proximal(problem, beside(problem, solve(model), 0.1)))
    G, solve_with = len(problem.groups), step._preconditioner(torch.float64)
    shapes = [(G, G), (G, G), (G,), (G,)]
    columns = []
    for unit in torch.eye(2 * G * G + 2 * G, dtype=torch.float64):
        parts = [part.view(shape) for part, shape in zip(unit.split([G * G, G * G, G, G]), shapes, strict=True)]
        columns.append(torch.cat([part.flatten() for part in solve_with(parts)]))
    matrix = torch.stack(columns)
    torch.testing.assert_close(matrix, matrix.T, rtol=1e-9, atol=1e-9 * float(matrix.abs().max()))
    assert float(torch.linalg.eigvalsh(matrix)[0]) > 0


def test_classes_that_vanish_are_found():
    model = model_of("cross_entropy", decay=0.02)
    problem = GroupedModel(model)
    *_, end = spectral_newton(problem, problem.zero())
    assert problem.rank(end) < 11
    assert float(problem.value(end)) == pytest.approx(model.global_minimum(), rel=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("counts", ["even", "geometric"])
def test_hundreds_of_distinct_counts_are_certified(counts):
    import numpy as np

    spaced = np.linspace(20_000, 100, 500) if counts == "even" else np.geomspace(20_000, 100, 500)
    distinct = sorted({int(n) for n in spaced}, reverse=True)
    model = Model(len(distinct), 1024, distinct, 5e-4, 5e-3 / sum(distinct), 5e-4)
    problem, point = GroupedModel(model), solve(model.like(feature_dim=len(distinct)))
    value = float(problem.value(point))
    assert value - problem.lower_bound(point, sharp=True) <= 1e-12 * value
