"""Groups of classes with equal counts: the same minima as for all classes one by one, with a fraction of the work."""

import math

import pytest
import torch

from neuralcollapse.ufm import Point, UnconstrainedFeatureModel, minimum_bounds
from neuralcollapse.ufm.convex import grouped, solve
from neuralcollapse.ufm.duality import lower_bound
from neuralcollapse.ufm.grouped import GroupedModel
from neuralcollapse.ufm.units import Units

Model = UnconstrainedFeatureModel

# counts, loss, bias, its decay, lH = lW/2 -> the minimum, as a solver of all K classes found it
REAL = [
    ([5, 3, 5, 2, 9, 9, 9, 1], "cross_entropy", False, 0.0, 1e-05, 0.002484277577975629),
    ([5, 3, 5, 2, 9, 9, 9, 1], "cross_entropy", False, 0.0, 0.02, 1.4968577197682165),
    ([5, 3, 5, 2, 9, 9, 9, 1], "cross_entropy", True, 0.0, 0.004, 0.4469914997248342),
    ([5, 3, 5, 2, 9, 9, 9, 1], "cross_entropy", True, 0.01, 1e-05, 0.002484153510186007),
    ([5, 3, 5, 2, 9, 9, 9, 1], "cross_entropy", True, 0.01, 0.02, 1.439425154445047),
    ([5, 3, 5, 2, 9, 9, 9, 1], "label_smoothing", False, 0.0, 0.004, 0.8023334806811968),
    ([5, 3, 5, 2, 9, 9, 9, 1], "label_smoothing", True, 0.0, 1e-05, 0.46789759412539406),
    ([5, 3, 5, 2, 9, 9, 9, 1], "label_smoothing", True, 0.0, 0.02, 1.613221969757407),
    ([5, 3, 5, 2, 9, 9, 9, 1], "label_smoothing", True, 0.01, 0.004, 0.7953574327192813),
    ([5, 3, 5, 2, 9, 9, 9, 1], "mse", False, 0.0, 1e-05, 0.0002491274068685089),
    ([5, 3, 5, 2, 9, 9, 9, 1], "mse", False, 0.0, 0.02, 0.36126724946630007),
    ([5, 3, 5, 2, 9, 9, 9, 1], "mse", True, 0.0, 0.004, 0.08054127161834636),
    ([5, 3, 5, 2, 9, 9, 9, 1], "mse", True, 0.01, 1e-05, 0.0002486974068685089),
    ([5, 3, 5, 2, 9, 9, 9, 1], "mse", True, 0.01, 0.02, 0.30752921482228135),
    ([50, 50, 50, 5, 5, 5], "cross_entropy", False, 0.0, 0.004, 0.5942483467453795),
    ([50, 50, 50, 5, 5, 5], "cross_entropy", True, 0.0, 1e-05, 0.003181524265689905),
    ([50, 50, 50, 5, 5, 5], "cross_entropy", True, 0.0, 0.02, 1.2959304015362694),
    ([50, 50, 50, 5, 5, 5], "cross_entropy", True, 0.01, 0.004, 0.5496609595732687),
    ([50, 50, 50, 5, 5, 5], "label_smoothing", False, 0.0, 1e-05, 0.422306871163036),
    ([50, 50, 50, 5, 5, 5], "label_smoothing", False, 0.0, 0.02, 1.6991759223025227),
    ([50, 50, 50, 5, 5, 5], "label_smoothing", True, 0.0, 0.004, 0.8123753724633667),
    ([50, 50, 50, 5, 5, 5], "label_smoothing", True, 0.01, 1e-05, 0.42230577376505174),
    ([50, 50, 50, 5, 5, 5], "label_smoothing", True, 0.01, 0.02, 1.4539533726294538),
    ([50, 50, 50, 5, 5, 5], "mse", False, 0.0, 0.004, 0.14210733192202055),
    ([50, 50, 50, 5, 5, 5], "mse", True, 0.0, 1e-05, 0.0003058031964744897),
    ([50, 50, 50, 5, 5, 5], "mse", True, 0.0, 0.02, 0.32585123966942153),
    ([50, 50, 50, 5, 5, 5], "mse", True, 0.01, 0.004, 0.11051973628513963),
]
NONNEGATIVE = [
    ([5, 3, 5, 2, 9, 9, 9, 1], "cross_entropy", False, 0.0, 0.0001, 0.02088591718734728),
    ([5, 3, 5, 2, 9, 9, 9, 1], "cross_entropy", False, 0.0, 0.02, 1.549684859636442),
    ([5, 3, 5, 2, 9, 9, 9, 1], "cross_entropy", True, 0.01, 0.004, 0.48226192695474107),
    ([5, 3, 5, 2, 9, 9, 9, 1], "cross_entropy", True, 0.5, 0.0001, 0.020885821238141332),
    ([5, 3, 5, 2, 9, 9, 9, 1], "cross_entropy", True, 0.5, 0.02, 1.545679440320581),
    ([5, 3, 5, 2, 9, 9, 9, 1], "label_smoothing", False, 0.0, 0.004, 0.8212559218657949),
    ([5, 3, 5, 2, 9, 9, 9, 1], "label_smoothing", True, 0.01, 0.0001, 0.47694026492491864),
    ([5, 3, 5, 2, 9, 9, 9, 1], "label_smoothing", True, 0.01, 0.02, 1.681267585018337),
    ([5, 3, 5, 2, 9, 9, 9, 1], "label_smoothing", True, 0.5, 0.004, 0.8211060177713272),
    ([5, 3, 5, 2, 9, 9, 9, 1], "mse", False, 0.0, 0.0001, 0.002488178068685089),
    ([5, 3, 5, 2, 9, 9, 9, 1], "mse", False, 0.0, 0.02, 0.36126724946630007),
    ([5, 3, 5, 2, 9, 9, 9, 1], "mse", True, 0.01, 0.004, 0.08755575417636847),
    ([5, 3, 5, 2, 9, 9, 9, 1], "mse", True, 0.5, 0.004, 0.09298823640698621),
    ([40, 30, 20, 20, 10, 10, 10, 5, 5, 5, 5, 5], "cross_entropy", False, 0.0, 0.0001, 0.047702313744647035),
    ([40, 30, 20, 20, 10, 10, 10, 5, 5, 5, 5, 5], "cross_entropy", False, 0.0, 0.02, 2.4306473917623226),
    ([40, 30, 20, 20, 10, 10, 10, 5, 5, 5, 5, 5], "cross_entropy", True, 0.01, 0.004, 1.0332715985834064),
    ([40, 30, 20, 20, 10, 10, 10, 5, 5, 5, 5, 5], "cross_entropy", True, 0.5, 0.0001, 0.04770183229309609),
    ([40, 30, 20, 20, 10, 10, 10, 5, 5, 5, 5, 5], "cross_entropy", True, 0.5, 0.02, 2.39996038871789),
    ([40, 30, 20, 20, 10, 10, 10, 5, 5, 5, 5, 5], "label_smoothing", False, 0.0, 0.004, 1.3639475973374953),
    ([40, 30, 20, 20, 10, 10, 10, 5, 5, 5, 5, 5], "label_smoothing", True, 0.01, 0.0001, 0.5522553973549666),
    ([40, 30, 20, 20, 10, 10, 10, 5, 5, 5, 5, 5], "label_smoothing", True, 0.01, 0.02, 2.279820901026793),
    ([40, 30, 20, 20, 10, 10, 10, 5, 5, 5, 5, 5], "label_smoothing", True, 0.5, 0.004, 1.363204262011066),
    ([40, 30, 20, 20, 10, 10, 10, 5, 5, 5, 5, 5], "mse", False, 0.0, 0.0001, 0.005836914540892815),
    ([40, 30, 20, 20, 10, 10, 10, 5, 5, 5, 5, 5], "mse", False, 0.0, 0.02, 0.4896835599270677),
    ([40, 30, 20, 20, 10, 10, 10, 5, 5, 5, 5, 5], "mse", True, 0.01, 0.004, 0.19131387658033094),
    ([40, 30, 20, 20, 10, 10, 10, 5, 5, 5, 5, 5], "mse", True, 0.5, 0.0001, 0.005833648650164979),
    ([40, 30, 20, 20, 10, 10, 10, 5, 5, 5, 5, 5], "mse", True, 0.5, 0.02, 0.45205635620663065),
]
LOSSES = ["cross_entropy", "label_smoothing", "mse"]
BIASES = [(False, 0.0), (True, 0.0), (True, 0.01)]


@pytest.mark.parametrize(("counts", "loss", "bias", "bias_decay", "decay", "minimum"), REAL)
def test_minima_are_those_of_the_solver_of_all_classes(counts, loss, bias, bias_decay, decay, minimum):
    model = Model(len(counts), len(counts) + 2, counts, 2 * decay, decay, bias_decay, bias, loss)
    assert model.global_minimum() == pytest.approx(minimum, rel=1e-12)
    assert model.objective(model.global_minimizer()) == pytest.approx(minimum, rel=1e-12)


@pytest.mark.parametrize(("counts", "loss", "bias", "bias_decay", "decay", "minimum"), NONNEGATIVE)
def test_nonnegative_minima_too(counts, loss, bias, bias_decay, decay, minimum):
    K = len(counts)
    model = Model(K, K + 2, counts, 2 * decay, decay, bias_decay, bias, loss, features="nonnegative")
    found = minimum_bounds(model)
    assert found.exact
    assert found.upper == pytest.approx(minimum, rel=1e-12)
    assert model.objective(found.point) == pytest.approx(minimum, rel=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("bias", "bias_decay"), BIASES)
def test_value_bound_and_derivatives_are_those_of_the_whole_model(loss, bias, bias_decay):
    model = Model(8, 8, [5, 3, 5, 2, 9, 9, 9, 1], 0.01, 0.004, bias_decay, bias, loss)
    problem, small = GroupedModel(model), Units(model).small
    generator = torch.Generator().manual_seed(0)
    vector, direction = 0.7 * torch.randn(2, problem.size, generator=generator, dtype=torch.float64)
    point, of = problem.point(vector), problem.groups.of
    Z = ((point.between - torch.diag(point.within)) / problem.outer)[of][:, of] + torch.diag(point.within[of])
    left, sizes, right = torch.linalg.svd(Z)
    whole = Point(left * sizes.sqrt(), sizes.sqrt()[:, None] * right, None if point.b is None else point.b[of])
    assert float(problem.value(point)) == pytest.approx(float(small.value(whole)), rel=1e-13)
    assert problem.lower_bound(point) == pytest.approx(lower_bound(small, whole), abs=1e-12)
    ahead, behind = (problem.value_and_gradient(vector + step * direction) for step in (1e-5, -1e-5))
    gradient = problem.value_and_gradient(vector)[1]
    assert float(ahead[0] - behind[0]) / 2e-5 == pytest.approx(float(gradient @ direction), rel=1e-6)
    torch.testing.assert_close(problem.product(vector, direction), (ahead[1] - behind[1]) / 2e-5, rtol=1e-5, atol=1e-7)


def test_the_order_of_the_classes_changes_nothing_but_their_order():
    counts, order = [5, 3, 5, 2, 9, 1], torch.tensor([4, 2, 0, 5, 3, 1])
    model = Model(6, 6, counts, 0.01, 0.004, 0.01)
    other = Model(6, 6, [counts[k] for k in order], 0.01, 0.004, 0.01)
    assert model.global_minimum() == pytest.approx(other.global_minimum(), rel=1e-13)
    first, second = (each.global_minimizer() for each in (model, other))
    torch.testing.assert_close((first.W @ first.W.T)[order][:, order], second.W @ second.W.T, rtol=0, atol=1e-8)
    torch.testing.assert_close(first.b[order], second.b, rtol=0, atol=1e-9)


@pytest.mark.parametrize("features", ["real", "nonnegative"])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_coarser_model_gives_a_start_that_ends_at_the_same_minimum(loss, features, monkeypatch):
    model = Model(12, 12, list(range(20, 32)), 0.005, 0.001, 0.01, loss=loss, features=features)
    direct = model.global_minimum()
    for module in ("convex", "decoupled"):
        monkeypatch.setattr(f"neuralcollapse.ufm.{module}.FINE", 6)
    monkeypatch.setattr("neuralcollapse.ufm.coarse._COARSE", 4)
    again = model.like(weight_decay=0.005 * (1 + 1e-15))  # another model to the cache of solutions
    assert again.global_minimum() == pytest.approx(direct, rel=1e-9)


@pytest.mark.parametrize("features", ["real", "nonnegative"])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_hundred_thousand_equal_classes_are_one_group(loss, features):
    model = Model(100_000, 100_000, 500, 5e-4, 1e-11, 1e-3, loss=loss, features=features)
    assert 0 < model.global_minimum() < math.log(100_000)


@pytest.mark.slow
def test_imagenets_counts_are_certified():
    generator = torch.Generator().manual_seed(0)
    rare = (732 + torch.randperm(568, generator=generator)[:105]).tolist()
    model = Model(1000, 2048, [1300] * 895 + rare, 5e-4, 5e-3 / 1.28e6, 5e-4)
    problem, point = grouped(model), solve(model.like(feature_dim=1000))
    minimum = model.global_minimum()
    assert minimum - problem.lower_bound(point) <= 1e-9 * minimum
