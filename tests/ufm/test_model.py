import copy
import math

import numpy as np
import pytest
import torch

from neuralcollapse import InputError, ufm
from neuralcollapse.ufm import CrossEntropy, Focal, Point, SquaredError, UnconstrainedFeatureModel
from tests.ufm import oracles

MODELS = {
    "balanced": (UnconstrainedFeatureModel(3, 2, 2, 0.01, 0.02), oracles.cross_entropy()),
    "no_bias": (UnconstrainedFeatureModel(3, 4, 2, 0.01, 0.02, bias=False), oracles.cross_entropy()),
    "unequal": (UnconstrainedFeatureModel(3, 2, [3, 1, 2], 0.03, 0.02, 0.05), oracles.cross_entropy()),
    "smoothing": (
        UnconstrainedFeatureModel(3, 2, [1, 2, 1], 0.03, 0.02, 0.05, loss=CrossEntropy(0.2)),
        oracles.cross_entropy(0.2),
    ),
    "focal": (UnconstrainedFeatureModel(3, 2, [2, 1, 1], 0.03, 0.02, 0.5, loss=Focal(3.5)), oracles.focal(3.5)),
    "mse": (UnconstrainedFeatureModel(2, 3, [2, 3], 0.03, 0.02, 0.05, loss=SquaredError()), oracles.squared_error()),
    "mse_no_bias": (UnconstrainedFeatureModel(2, 3, 2, 0.3, 0.02, bias=False, loss="mse"), oracles.squared_error()),
}
every_model = pytest.mark.parametrize("name", MODELS)


def naive(name):
    return oracles.objective_of(*MODELS[name])


@every_model
def test_objective_is_the_loops(name):
    model, _ = MODELS[name]
    for seed in range(3):
        point = model.random_point(seed, scale=1.5)
        expected = naive(name)(point.vector().numpy())
        assert model.objective(point) == pytest.approx(expected, rel=1e-13)
        assert float(model.value_and_gradient(point.vector())[0]) == pytest.approx(expected, rel=1e-13)


@every_model
def test_gradient_is_the_differences_of_the_loops(name):
    model, _ = MODELS[name]
    point = model.random_point(7)
    expected = oracles.gradient_by_differences(naive(name), point.vector().numpy())
    np.testing.assert_allclose(model.gradient(point).vector(), expected, atol=1e-8)
    np.testing.assert_allclose(model.value_and_gradient(point.vector())[1], expected, atol=1e-8)


@every_model
def test_collapsed_gradient_is_the_differences_of_its_objective(name):
    small = MODELS[name][0].collapsed()
    vector = small.random_point(3).vector()

    def objective(x):
        return float(small.value(small.point(torch.as_tensor(x))))

    expected = oracles.gradient_by_differences(objective, vector.numpy())
    np.testing.assert_allclose(small.value_and_gradient(vector)[1], expected, atol=1e-8)
    np.testing.assert_allclose(small.gradient(small.point(vector)).vector(), expected, atol=1e-8)


@every_model
def test_leading_dimensions_are_independent(name):
    model, _ = MODELS[name]
    vectors = torch.stack([model.random_point(seed).vector() for seed in range(4)])
    values, gradients = model.value_and_gradient(vectors.reshape(2, 2, -1))
    assert values.shape == (2, 2)
    many = model.gradient(model.point(vectors)).vector()
    products = model.hessian_product(model.point(vectors[0]), model.point(vectors)).vector()
    for i, vector in enumerate(vectors):
        value, gradient = model.value_and_gradient(vector)
        torch.testing.assert_close(values.flatten()[i], value)
        torch.testing.assert_close(gradients.flatten(0, 1)[i], gradient)
        torch.testing.assert_close(many[i], gradient)
        one = model.hessian_product(model.point(vectors[0]), model.point(vector)).vector()
        torch.testing.assert_close(products[i], one)


def test_only_the_decay_of_the_bias_sees_the_bias_decay():
    with_decay = UnconstrainedFeatureModel(3, 2, 2, 0.01, 0.02, 0.5)
    without = UnconstrainedFeatureModel(3, 2, 2, 0.01, 0.02, 0.0)
    point = with_decay.random_point()
    difference = with_decay.objective(point) - without.objective(point)
    assert difference == pytest.approx(0.25 * float(point.b.square().sum()), rel=1e-12)


@every_model
def test_vectors_and_points_are_inverse(name):
    model, _ = MODELS[name]
    vector = torch.arange(model.size, dtype=torch.float64)
    torch.testing.assert_close(model.point(vector).vector(), vector, rtol=0, atol=0)
    K, d, N = model.num_classes, model.feature_dim, model.num_samples
    assert model.size == (K + N) * d + K * model.bias
    assert model.random_point(4).vector().equal(model.random_point(4).vector())
    assert not model.random_point(4).vector().equal(model.random_point(5).vector())


def test_points_are_a_vector_space():
    model, _ = MODELS["unequal"]
    p, q = model.random_point(0), model.random_point(1)
    torch.testing.assert_close((p + 2.0 * q - q * 0.5).vector(), p.vector() + 1.5 * q.vector())
    assert float(p.dot(q)) == pytest.approx(float(p.vector() @ q.vector()))
    assert p.norm() == pytest.approx(float(p.vector().norm()))


@every_model
def test_collapse_undoes_expand_with_equal_objective_and_gradient_norm(name):
    model, _ = MODELS[name]
    small = model.collapsed()
    assert small.is_collapsed
    point = small.random_point(2)
    full = model.expand(point)
    torch.testing.assert_close(model.collapse(full).vector(), point.vector())
    assert full.norm() == pytest.approx(point.norm(), rel=1e-13)
    assert model.objective(full) == pytest.approx(small.objective(point), rel=1e-13)
    assert model.gradient(full).norm() == pytest.approx(small.gradient(point).norm(), rel=1e-12)
    assert model.spread(full) < 1e-14


@pytest.mark.parametrize("name", ["balanced", "unequal"])
def test_a_collapsed_model_collapses_no_further(name):
    small = MODELS[name][0].collapsed()
    point = small.random_point(2)
    assert small.collapse(point) is small.expand(point) is point
    assert small.spread(point) == 0
    assert small.collapsed().objective(point) == small.objective(point)


def test_the_minimiser_with_a_column_a_class_is_that_with_a_column_a_sample():
    model, _ = MODELS["unequal"]
    model = model.like(feature_dim=4)
    small = model.collapsed()
    point = small.global_minimizer()
    assert point.H.shape == (model.feature_dim, model.num_classes)
    assert small.objective(point) == pytest.approx(model.global_minimum(), rel=1e-12)
    torch.testing.assert_close(model.expand(point).H, model.global_minimizer().H)


def test_products_at_a_point_are_those_of_the_hessian():
    for name, (model, _) in MODELS.items():
        point, direction = model.random_point(1), model.random_point(2)
        product = model.hessian_at(point)(direction)
        step = 1e-6
        ahead, behind = (model.gradient(point + direction * sign) for sign in (step, -step))
        difference = (ahead - behind) * (0.5 / step)
        assert (product - difference).norm() <= 1e-7 * (1 + product.norm()), name


def test_spread_is_the_relative_distance_from_the_class_means():
    model, _ = MODELS["unequal"]
    point = model.random_point(5)
    H, start, apart = point.H.numpy(), 0, 0.0
    for n in model.counts:
        block = H[:, start : start + n]
        apart += ((block - block.mean(1, keepdims=True)) ** 2).sum()
        start += n
    assert model.spread(point) == pytest.approx(math.sqrt(apart / (H**2).sum()), rel=1e-12)
    assert model.spread(model.zero_point()) == 0


def test_the_factors_are_balanced_at_critical_points_only():
    for counts in (3, [5, 3, 1]):
        model = UnconstrainedFeatureModel(3, 4, counts, 0.01, 0.004, 0.01)
        saddles = model.atlas(ranks=())
        assert len(saddles) >= 3
        for point in (model.global_minimizer(), *(entry.point for entry in saddles)):
            assert oracles.imbalance(model, point) < 1e-9
    assert oracles.imbalance(model, model.random_point()) > 1e-3


@every_model
def test_a_model_like_another_has_its_arguments_but_for_the_changes(name):
    model, _ = MODELS[name]
    same, other = model.like(), model.like(weight_decay=0.5, samples_per_class=[1] * model.num_classes)
    point = model.random_point()
    assert type(same) is UnconstrainedFeatureModel
    assert same.objective(point) == model.objective(point)
    assert same.hessian(point).least() == model.hessian(point).least()
    assert (other.weight_decay, other.counts) == (0.5, (1,) * model.num_classes)
    assert (other.feature_decay, other.loss, other.bias) == (model.feature_decay, model.loss, model.bias)
    with pytest.raises(InputError, match="weight_decay to be positive"):
        model.like(weight_decay=0)


def test_slopes_without_their_weights_are_softmax_minus_targets():
    model, _ = MODELS["unequal"]
    point = model.random_point(1)
    Z = point.W.numpy() @ point.H.numpy() + point.b.numpy()[:, None]
    Y = np.eye(3)[:, oracles.labels_of(model.counts)]
    np.testing.assert_allclose(model.slopes(point), (oracles.softmax(Z) - Y) / model.num_samples, atol=1e-15)


def test_measures_vanish_at_a_balanced_global_minimiser_and_not_elsewhere():
    model = UnconstrainedFeatureModel(4, 6, 5, 0.01, 0.005)
    best = model.measures(model.global_minimizer())
    random = model.measures(model.random_point())
    for name in ("nc1", "nc2", "nc3", "nc_bias"):
        assert best[name] == pytest.approx(0, abs=1e-6)
        assert random[name] > 0.05


@pytest.mark.parametrize("counts", [4, [6, 3, 2]])
def test_measures_of_a_collapsed_point_are_those_of_the_full_point(counts):
    model = UnconstrainedFeatureModel(3, 4, counts, 0.01, 0.005)
    point = model.collapsed().random_point(3)
    full, small = model.measures(model.expand(point)), model.collapsed().measures(point)
    for name in ("nc2", "nc2_means", "nc3", "nc_bias"):
        assert small[name] == pytest.approx(full[name], rel=1e-9), name


def test_measures_of_the_origin_are_undefined_without_a_warning():
    model = UnconstrainedFeatureModel(3, 4, 2, 0.01, 0.005)
    assert math.isnan(model.measures(model.zero_point())["nc2"])


def test_mu_counts_and_balance():
    model = UnconstrainedFeatureModel(3, 2, [3, 1, 2], 0.04, 0.01)
    assert model.mu == pytest.approx(0.02)
    assert model.counts == (3, 1, 2)
    assert model.num_samples == 6
    assert not model.balanced
    assert UnconstrainedFeatureModel(3, 2, [2, 2, 2], 0.04, 0.01).balanced
    assert UnconstrainedFeatureModel(3, 2, 2, 0.04, 0.01).counts == (2, 2, 2)


def broken(**changes):
    point = copy.deepcopy(UnconstrainedFeatureModel(3, 4, 2, 0.01, 0.01).random_point())
    for name, change in changes.items():
        setattr(point, name, change(getattr(point, name)))
    return point


def with_value(value):
    def change(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[1] = value
        return tensor

    return change


@pytest.mark.parametrize(
    ("point", "message"),
    [
        (broken(W=lambda W: W.T), r"W of shape \(3, 4\), got \(4, 3\)"),
        (broken(W=lambda W: W[:2]), r"W of shape \(3, 4\), got \(2, 4\)"),
        (broken(H=lambda H: H.T), r"H of shape \(4, 6\), got \(6, 4\)"),
        (broken(H=lambda H: H[:, :5]), r"H of shape \(4, 6\), got \(4, 5\)"),
        (broken(b=lambda b: b[:2]), r"b of shape \(3,\), got \(2,\)"),
        (broken(b=lambda b: b[:, None]), r"b of shape \(3,\), got \(3, 1\)"),
        (broken(b=lambda b: None), r"b of shape \(3,\), got none"),
        (broken(W=torch.Tensor.float), r"W in float64, got torch.float32"),
        (broken(H=torch.Tensor.half), r"H in float64, got torch.float16"),
        (broken(b=torch.Tensor.long), r"b in float64, got torch.int64"),
        (broken(W=with_value(math.nan)), r"finite W, got 1 NaN"),
        (broken(H=with_value(math.inf)), r"finite H, got 1 NaN"),
        (broken(b=with_value(math.nan)), r"finite b, got 1 NaN"),
    ],
)
def test_points_that_do_not_fit_are_refused(point, message):
    model = UnconstrainedFeatureModel(3, 4, 2, 0.01, 0.01)
    for use in (model.check_point, model.objective, model.certify, model.minimize, model.hessian):
        with pytest.raises(InputError, match=message):
            use(point)


def test_a_bias_that_the_model_lacks_is_refused():
    model = UnconstrainedFeatureModel(3, 4, 2, 0.01, 0.01, bias=False)
    point = model.random_point()
    model.check_point(point)
    with pytest.raises(InputError, match="no b: the model has no bias"):
        model.check_point(Point(point.W, point.H, torch.zeros(3, dtype=torch.float64)))


@pytest.mark.parametrize("decay", ["weight_decay", "feature_decay"])
@pytest.mark.parametrize("value", [0.0, -0.1, math.nan, math.inf])
def test_decays_that_are_not_positive_are_refused(decay, value):
    decays = {"weight_decay": 0.01, "feature_decay": 0.01, decay: value}
    with pytest.raises(InputError, match=f"{decay} to be positive"):
        UnconstrainedFeatureModel(3, 4, 2, **decays)


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_negative_bias_decay_is_refused(value):
    with pytest.raises(InputError, match="bias_decay to be 0 or positive"):
        UnconstrainedFeatureModel(3, 4, 2, 0.01, 0.01, value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 4, 2), "num_classes"),
        ((0, 4, 2), "num_classes"),
        ((2.5, 4, 2), "num_classes"),
        ((3, 0, 2), "feature_dim"),
        ((3, -1, 2), "feature_dim"),
        ((3, 4, 0), "samples of class 0"),
        ((3, 4, [2, 0, 2]), "samples of class 1"),
        ((3, 4, [2, 2, -1]), "samples of class 2"),
        ((3, 4, [2, 2]), "3 classes, got 2 counts"),
        ((3, 4, [2, 2, 2, 2]), "3 classes, got 4 counts"),
        ((3, 4, [2, 2.5, 2]), "samples of class 1"),
        ((3, 4, 2.5), "samples"),
    ],
)
def test_models_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        UnconstrainedFeatureModel(*arguments, 0.01, 0.01)


def test_an_unknown_loss_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="did you mean 'focal'"):
        UnconstrainedFeatureModel(3, 4, 2, 0.01, 0.01, loss="fokal")


@pytest.mark.parametrize("wrong", [None, "model", 3, {}])
def test_what_is_no_model_or_point_is_refused_in_a_line(wrong):
    model = MODELS["balanced"][0]
    point = Point(torch.zeros(3, 2).double(), torch.zeros(2, 6).double(), torch.zeros(3).double())
    for call in (ufm.certify, ufm.Hessian):
        with pytest.raises(InputError, match=r"expected an UnconstrainedFeatureModel, got .*: make one first"):
            call(wrong, point)
    for call in (ufm.closed_form, ufm.minimum_bounds, ufm.class_margins):
        with pytest.raises(InputError, match="expected an UnconstrainedFeatureModel"):
            call(wrong)
    with pytest.raises(InputError, match=r"expected a Point\(W, H, b\)"):
        model.measures(wrong)
