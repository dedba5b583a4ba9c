import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralcollapse.ufm import UnconstrainedFeatureModel
from neuralcollapse.ufm.descent import _two_loop, lbfgs, newton


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def quadratic(size, condition=100.0, seed=0):
    basis = torch.linalg.qr(normal(size, size, seed=seed))[0]
    matrix = (
        basis @ torch.diag(torch.logspace(0, -torch.log10(torch.tensor(condition)).item(), size).double()) @ basis.T
    )
    target = normal(size, seed=seed + 1)

    def objective(x):
        apart = x - target
        return (apart * (apart @ matrix)).sum(-1) / 2, apart @ matrix

    return objective, matrix, target


def rosenbrock(x):
    a, b = x[..., 0], x[..., 1]
    value = (1 - a) ** 2 + 100 * (b - a * a) ** 2
    return value, torch.stack([-2 * (1 - a) - 400 * a * (b - a * a), 200 * (b - a * a)], -1)


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 1000), size=st.integers(1, 12))
def test_lbfgs_solves_quadratics(seed, size):
    objective, _, target = quadratic(size, seed=seed)
    end = lbfgs(objective, normal(3, size, seed=seed + 2))
    assert end.points.shape == (3, size)
    torch.testing.assert_close(end.points, target.expand(3, -1), rtol=0, atol=1e-6)
    assert (objective(end.points)[1].norm(dim=-1) <= 1e-9).all()


def test_lbfgs_follows_rosenbrocks_valley():
    end = lbfgs(rosenbrock, torch.tensor([[-1.2, 1.0], [3.0, -2.0], [0.0, 0.0]], dtype=torch.float64))
    torch.testing.assert_close(end.points, torch.ones(3, 2, dtype=torch.float64), rtol=0, atol=1e-8)
    assert end.iterations < 200


def test_rows_of_a_batch_end_where_they_end_alone():
    model = UnconstrainedFeatureModel(3, 4, 2, 0.01, 0.01)
    starts = torch.stack([model.random_point(seed, 1 + seed).vector() for seed in range(5)])
    together = lbfgs(model.value_and_gradient, starts)
    values, gradients = model.value_and_gradient(together.points)
    assert (gradients.norm(dim=-1) <= 1e-9).all()
    alone = [lbfgs(model.value_and_gradient, start[None]) for start in starts]
    assert together.iterations == max(end.iterations for end in alone)
    for i, end in enumerate(alone):
        torch.testing.assert_close(together.points[i], end.points[0], rtol=0, atol=1e-6)
        torch.testing.assert_close(values[i], model.value_and_gradient(end.points[0])[0], rtol=0, atol=1e-12)


def test_lbfgs_stops_after_the_iterations_asked_for():
    model = UnconstrainedFeatureModel(3, 4, 2, 0.01, 0.01)
    start = torch.stack([model.random_point(seed).vector() for seed in range(3)])
    end = lbfgs(model.value_and_gradient, start, iterations=7)
    assert end.iterations == 7
    assert (model.value_and_gradient(end.points)[0] < model.value_and_gradient(start)[0]).all()


def test_lbfgs_leaves_its_start_alone_and_stays_at_a_minimum():
    objective, _, target = quadratic(4)
    start = normal(2, 4)
    kept = start.clone()
    lbfgs(objective, start)
    assert start.equal(kept)
    end = lbfgs(objective, target[None])
    assert end.iterations == 0
    assert end.points[0].equal(target)


def test_no_step_raises_the_objective_and_every_iteration_is_watched():
    seen = []
    objective, _, _ = quadratic(6, condition=1e4)
    start = normal(2, 6, seed=5)
    end = lbfgs(objective, start, watch=lambda points: seen.append(objective(points)[0].clone()))
    assert len(seen) == end.iterations
    values = torch.stack([objective(start)[0], *seen])
    assert (values[1:] <= values[:-1] * (1 + 1e-13) + 1e-30).all()


def test_finished_rows_are_not_evaluated_again():
    sizes = []
    objective, _, target = quadratic(8, condition=1e4)

    def counted(x):
        sizes.append(len(x))
        return objective(x)

    lbfgs(counted, torch.stack([target + 1e-11, normal(8, seed=3)]))
    assert sizes[0] == 2
    assert set(sizes[1:]) == {1}


def test_a_row_that_no_step_improves_stops_where_it_is():
    def wrong(x):  # the gradient points the wrong way: no step along it falls
        return (x * x).sum(-1), -2 * x

    start = torch.ones(1, 3, dtype=torch.float64)
    end = lbfgs(wrong, start, iterations=50)
    assert end.points.equal(start)
    assert end.iterations == 1


def test_the_two_loop_recursion_meets_the_last_secant_equation():
    _, matrix, _ = quadratic(6)
    steps = []
    for seed in range(4):
        s = normal(2, 6, seed=seed)
        y = s @ matrix
        steps.append((s, y, 1 / (s * y).sum(-1)))
    s, y, _ = steps[-1]
    torch.testing.assert_close(_two_loop(y, steps), s, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(_two_loop(y, []), y)


def test_an_unsound_pair_drops_out_of_the_recursion():
    _, matrix, _ = quadratic(6)
    s, unsound, gradient = normal(1, 6), normal(1, 6, seed=1), normal(1, 6, seed=2)
    y = s @ matrix
    sound = (s, y, 1 / (s * y).sum(-1))
    zero = (unsound, unsound, torch.zeros(1, dtype=torch.float64))
    torch.testing.assert_close(_two_loop(gradient, [zero, sound]), _two_loop(gradient, [sound]))


def test_newton_solves_a_quadratic_at_once():
    objective, matrix, target = quadratic(6)
    end = newton(objective, lambda _, v: matrix @ v, normal(6, seed=9), tolerance=1e-12)
    torch.testing.assert_close(end, target, rtol=0, atol=1e-9)


def test_newton_polishes_a_minimiser_to_its_last_digits():
    model = UnconstrainedFeatureModel(4, 6, [5, 3, 2, 1], 0.01, 0.004, 0.01)

    def product(at, direction):
        return model.hessian_product(model.point(at), model.point(direction)).vector()

    start = model.global_minimizer().vector() + 1e-4 * model.random_point(1).vector()
    before = float(model.value_and_gradient(start)[1].norm())
    end = newton(model.value_and_gradient, product, start, tolerance=1e-13)
    after = float(model.value_and_gradient(end)[1].norm())
    assert before > 1e-6
    assert after < 1e-12


def test_newton_stops_at_a_direction_without_curvature():
    target = torch.tensor([1.0, 0.0], dtype=torch.float64)

    def flat(x):  # a slope that never ends: no minimum
        return x @ target, target.clone()

    start = torch.zeros(2, dtype=torch.float64)
    assert newton(flat, lambda _, v: torch.zeros_like(v), start, tolerance=1e-12).equal(start)


@pytest.mark.parametrize("memory", [1, 5, 20])
def test_any_memory_reaches_the_minimum(memory):
    objective, _, target = quadratic(8)
    end = lbfgs(objective, normal(1, 8, seed=4), memory=memory)
    torch.testing.assert_close(end.points[0], target, rtol=0, atol=1e-6)
