import pytest
import torch

from neuralcollapse.ufm import UnconstrainedFeatureModel
from neuralcollapse.ufm.effort import Effort
from neuralcollapse.ufm.grouped import GroupedModel
from neuralcollapse.ufm.polish import SOLVED, descend, finish, newton_step, polish
from neuralcollapse.ufm.units import Units

Model = UnconstrainedFeatureModel


@pytest.mark.parametrize("decay", [1e-7, 1e-4, 0.01])
@pytest.mark.parametrize("which", [0, 2, 4])
def test_a_point_beside_a_critical_point_of_any_index_is_taken_to_it(decay, which):
    model = Model(4, 5, 3, decay, decay / 2, bias=False)
    units = Units(model)
    there = units.enter(model.atlas(ranks=())[which].point)
    size = 1e-3 * decay  # small beside the least curvatures, which are of the size of the decays
    start = there + units.small.random_point(1) * size
    end = polish(units, start)
    before = units.small.gradient(start).norm()
    assert end.gradient_norm < 1e-3 * before or end.gradient_norm < 1e-15
    assert (end.point - there).norm() < 20 * (start - there).norm()
    assert end.error < 1e-3  # at decay 1e-7 rounding alone is charged 1e-4


def test_a_far_point_is_left_alone():
    units = Units(Model(4, 5, 3, 0.01, 0.01))
    start = units.small.random_point(3)
    end = polish(units, start)
    assert (end.point - start).norm() <= 1e-2 * (1 + start.norm())
    assert end.gradient_norm > 1e-6


def test_the_newton_step_by_products_is_that_by_the_spectrum(monkeypatch):
    model = Model(4, 5, 3, 0.01, 0.01)
    units = Units(model)
    point = units.enter(model.global_minimizer()) + units.small.random_point(1) * 1e-5
    gradient = units.small.value_and_gradient(point.vector())[1]
    dense, error = newton_step(units, point.vector(), gradient, Effort(units.small))
    monkeypatch.setattr("neuralcollapse.ufm.polish._DENSE_UP_TO", 10)
    products, other = newton_step(units, point.vector(), gradient, Effort(units.small))
    torch.testing.assert_close(dense, products, rtol=0, atol=1e-3 * float(dense.norm()))
    assert other == pytest.approx(error, rel=0.1)


@pytest.mark.parametrize("most", [10, 800])
def test_descent_reaches_the_minimum_by_either_newton(most, monkeypatch):
    monkeypatch.setattr("neuralcollapse.ufm.polish._DENSE_UP_TO", most)
    model = Model(4, 4, [9, 4, 2, 1], 0.003, 0.01, 0.01)
    problem = GroupedModel(model)
    end = descend(problem, problem.start(1), 1e-6 * problem.mu)
    assert float(problem.value_and_gradient(end)[0]) == pytest.approx(model.global_minimum(), abs=1e-12)


def test_an_end_is_polished_where_its_gradient_is_small_and_left_where_it_is_not():
    model = Model(3, 4, 4, 0.001, 0.002)
    units = Units(model)
    best = model.global_minimizer()
    near = best + model.random_point(1) * 1e-7
    better = finish(units, near)
    assert units.gradient_norm(model.gradient(near)) > SOLVED * units.mu
    assert units.gradient_norm(model.gradient(better)) <= SOLVED * units.mu
    assert model.certify(better).verdict == "global_minimum"
    far = model.random_point(2)
    assert finish(units, far) is far
