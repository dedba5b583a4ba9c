import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize as scipy_minimize

from neuralcollapse import InputError
from neuralcollapse.ufm import (
    CrossEntropy,
    Focal,
    SquaredError,
    UnconstrainedFeatureModel,
    closed_form,
    fixed_classifier_minimum,
    spherical_minimum,
)
from neuralcollapse.ufm.convex import grouped, solve
from neuralcollapse.ufm.minimizers import collapses_to_zero
from tests.ufm import oracles

Model = UnconstrainedFeatureModel


def lowest_of_starts(model, starts=6, seed=0):
    """The lowest end of scipy's L-BFGS from random starts."""
    return min(
        scipy_minimize(
            lambda x: [y.numpy() for y in model.value_and_gradient(torch.as_tensor(x))],
            model.random_point(seed + i).vector().numpy(),
            jac=True,
            method="L-BFGS-B",
            options={"gtol": 1e-11, "ftol": 0, "maxiter": 5000, "maxfun": 10000},
        ).fun
        for i in range(starts)
    )


def assert_is_minimiser(model, minimum, tolerance=1e-9):
    point = model.global_minimizer()
    model.check_point(point)
    assert model.objective(point) == pytest.approx(minimum, abs=tolerance)
    assert model.global_minimum() == pytest.approx(minimum, abs=tolerance)
    certificate = model.certify(point)
    assert certificate.gradient_norm < 1e-6
    if model.loss.convex:
        assert certificate.verdict == "global_minimum"
        assert certificate.gap <= 1e-8


# -- recorded cases ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "expected"), oracles.BALANCED)
@pytest.mark.parametrize(("bias", "bias_decay"), [(False, 0.0), (True, 0.0), (True, 0.01)])
def test_recorded_balanced_minima(case, expected, bias, bias_decay):
    K, n, d, weight_decay, feature_decay = case
    margin, weight_norm2, feature_norm2, minimum = expected
    model = Model(K, d, n, weight_decay, feature_decay, bias_decay, bias)
    form = closed_form(model)
    assert form.margin == pytest.approx(margin, abs=1e-9)
    assert form.weight_norm2 == pytest.approx(weight_norm2, abs=1e-9)
    assert form.feature_norm2 == pytest.approx(feature_norm2, abs=1e-9)
    assert form.minimum == pytest.approx(minimum, abs=1e-9)
    assert_is_minimiser(model, minimum)
    point = model.global_minimizer()
    np.testing.assert_allclose(point.W.square().sum(1), weight_norm2, atol=1e-9)
    np.testing.assert_allclose(point.H.square().sum(0), feature_norm2, atol=1e-9)
    logits = model.logits(point)
    own = logits[model.columns.labels, torch.arange(K * n)]
    np.testing.assert_allclose((own - logits).sum(0) / (K - 1), margin, atol=1e-9)


@pytest.mark.parametrize(
    ("case", "margin", "weight_norm2", "minimum"),
    [
        ((4, 5, 8, 0.01, 0.01), 3.731013, 6.257099, 0.3197219880),
        ((10, 3, 10, 0.005, 0.0002), 6.342738, 1.977470, 0.1145847336),
        ((10, 3, 9, 0.005, 0.0002), 6.342738, 1.977470, 0.1145847336),
        ((3, 7, 5, 0.03, 0.01), 2.986782, 3.041590, 0.3698702513),
        ((4, 5, 6, 0.01, 0.005), None, None, 0.24300160),
    ],
)
def test_theorys_table(case, margin, weight_norm2, minimum):
    K, n, d, weight_decay, feature_decay = case
    model = Model(K, d, n, weight_decay, feature_decay)
    form = closed_form(model)
    assert form.minimum == pytest.approx(minimum, abs=1e-8)
    if margin is not None:
        assert form.margin == pytest.approx(margin, abs=1e-6)
        assert form.weight_norm2 == pytest.approx(weight_norm2, abs=1e-6)
    assert lowest_of_starts(model, 2) == pytest.approx(form.minimum, abs=1e-9)


@pytest.mark.parametrize(("case", "expected"), oracles.IMBALANCED)
@pytest.mark.parametrize("extra", [0, 3, "K-1"])
def test_recorded_imbalanced_minima(case, expected, extra):
    counts, d, weight_decay, feature_decay, bias_decay, bias = case
    minimum, norms = expected
    d = len(counts) - 1 if extra == "K-1" else d + extra
    model = Model(len(counts), d, counts, weight_decay, feature_decay, bias_decay, bias)
    assert closed_form(model) is None
    try:
        assert_is_minimiser(model, minimum)
    except InputError as error:
        pytest.fail(f"refused: {error}")
    np.testing.assert_allclose(model.global_minimizer().W.norm(dim=1), norms, atol=1e-5)


# -- the threshold of total collapse --------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
@pytest.mark.parametrize("counts", [3, [3, 3, 3, 3]])
def test_all_is_zero_exactly_from_the_threshold_on(smoothing, counts):
    K, n = 4, 3
    mu = (1 - smoothing) / K / math.sqrt(n)  # K c = 1 - a
    for factor, zero in ((1 - 1e-9, False), (1 + 1e-9, True), (0.5, False), (2.0, True)):
        model = Model(K, 5, counts, 2 * mu * factor, mu * factor / 2, loss=CrossEntropy(smoothing))
        assert collapses_to_zero(model) is zero
        form = closed_form(model)
        assert (form.margin == 0) is zero
        if zero:
            assert form.minimum == pytest.approx(math.log(K), abs=1e-15)
            assert model.global_minimizer().W.norm() == 0


@pytest.mark.parametrize("bias", [True, False])
def test_mse_is_zero_exactly_from_the_threshold_on(bias):
    K, n = 4, 3
    mu = 1 / K / math.sqrt(n)
    for factor, zero in ((1 - 1e-6, False), (1 + 1e-6, True)):
        model = Model(K, 5, n, mu * factor, mu * factor, 0.01, bias, loss="mse")
        assert collapses_to_zero(model) is zero
        assert (float(model.global_minimizer().W.norm()) < 1e-9) is zero


@pytest.mark.parametrize(("bias", "bias_decay"), [(False, 0.0), (True, 0.0), (True, 0.3)])
@pytest.mark.parametrize("loss", ["cross_entropy", "label_smoothing", "mse"])
def test_unequal_counts_have_a_threshold_too(bias, bias_decay, loss):
    counts = [6, 3, 1]
    start = Model(3, 4, counts, 1.0, 1.0, bias_decay, bias, loss)
    zero = start.zero_point()
    if bias:
        zero.b = torch.as_tensor(
            scipy_minimize(
                lambda b: float(start.value(type(zero)(zero.W, zero.H, torch.as_tensor(b)))),
                np.zeros(3),
                options={"gtol": 1e-9},
            ).x
        )
    mu = float(torch.linalg.matrix_norm(start.slopes(zero), 2))
    below = Model(3, 4, counts, mu * 0.995, mu * 0.995, bias_decay, bias, loss)
    above = Model(3, 4, counts, mu * 1.005, mu * 1.005, bias_decay, bias, loss)
    assert not collapses_to_zero(below)
    assert collapses_to_zero(above)
    assert float(below.global_minimizer().W.norm()) > 1e-3
    assert float(above.global_minimizer().W.norm()) < 1e-4


def test_focal_collapses_to_zero_under_strong_decay():
    assert closed_form(Model(4, 5, 3, 0.5, 0.5, loss=Focal())).margin == 0
    assert closed_form(Model(4, 5, 3, 0.001, 0.001, loss=Focal())).margin > 0


# -- closed forms against direct optimisation -----------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.05, 0.1, 0.5])
@pytest.mark.parametrize(("bias", "bias_decay"), [(False, 0.0), (True, 0.0), (True, 0.1)])
def test_label_smoothing_minimum(smoothing, bias, bias_decay):
    model = Model(4, 5, 3, 0.02, 0.005, bias_decay, bias, CrossEntropy(smoothing))
    assert closed_form(model).minimum == pytest.approx(lowest_of_starts(model, 2), abs=1e-9)
    assert_is_minimiser(model, closed_form(model).minimum)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0, 3.5])
@pytest.mark.parametrize("decay", [0.001, 0.01, 0.03])
def test_focal_minimum(gamma, decay):
    model = Model(4, 5, 2, decay, decay / 2, bias=False, loss=Focal(gamma))
    form = closed_form(model)
    assert form.margin > 0
    assert form.minimum == pytest.approx(lowest_of_starts(model, 8), abs=1e-8)
    assert_is_minimiser(model, form.minimum)


def test_focal_without_focus_has_the_minimum_of_cross_entropy():
    plain, focal = (closed_form(Model(5, 6, 3, 0.01, 0.004, loss=loss)) for loss in (CrossEntropy(), Focal(0)))
    assert focal.minimum == pytest.approx(plain.minimum, abs=1e-13)
    assert focal.margin == pytest.approx(plain.margin, abs=1e-6)


@pytest.mark.parametrize(("bias", "bias_decay"), [(False, 0.0), (True, 0.0), (True, 0.02), (True, 0.5), (True, 5.0)])
@pytest.mark.parametrize("decay", [0.002, 0.02, 0.1])
def test_mse_minimum(bias, bias_decay, decay):
    model = Model(4, 5, 3, decay, decay / 3, bias_decay, bias, "mse")
    assert closed_form(model) is None
    assert_is_minimiser(model, lowest_of_starts(model, 3))


def test_mse_minimiser_is_a_simplex_exactly_where_the_bias_decay_is_small():
    K, n, mu = 4, 4, 0.02  # K c = 0.16
    edge = 0.16 / 0.84  # lb / (1 + lb) = K c
    for bias_decay, simplex in ((0.5 * edge, True), (edge * 0.999, True), (edge * 1.01, False), (5 * edge, False)):
        model = Model(K, 5, n, mu, mu, bias_decay, loss="mse")
        W = model.global_minimizer().W
        cosines = torch.nn.functional.normalize(W) @ torch.nn.functional.normalize(W).T
        is_simplex = bool(torch.allclose(cosines, (4 * torch.eye(4).double() - 1) / 3, atol=1e-9))
        assert is_simplex is simplex, bias_decay
        assert model.global_minimum() == pytest.approx(lowest_of_starts(model, 2), abs=1e-9)


def test_torchs_mse_has_the_decays_times_half_the_classes():
    K, d, n, decay = 4, 5, 3, 0.01
    model = Model(K, d, n, decay * K / 2, decay * K / 2, 0.02 * K / 2, loss=SquaredError())
    for point in (model.random_point(), model.global_minimizer()):
        targets = torch.nn.functional.one_hot(model.columns.labels, K).double()
        torchs = torch.nn.MSELoss()(model.logits(point).T, targets)
        penalty = decay * (point.W.square().sum() + point.H.square().sum()) + 0.02 * point.b.square().sum()
        assert float(torchs + penalty / 2) == pytest.approx(2 / K * model.objective(point), rel=1e-13)


@pytest.mark.parametrize(
    ("K", "n", "decay", "row_norm"), [(3, 2, 0.01, 1.0), (4, 3, 1e-4, 2.0), (5, 1, 3.0, 0.1), (2, 2, 0.1, 1.0)]
)
def test_fixed_classifier_minimum(K, n, decay, row_norm):
    W = row_norm * oracles.simplex(K, K)
    labels = oracles.labels_of([n] * K)
    N = len(labels)

    def objective(h):
        H = h.reshape(K, N)
        P = oracles.softmax(W @ H)
        own = P[labels, range(N)]
        G = P.copy()
        G[labels, range(N)] -= 1
        return -np.log(own).mean() + decay / 2 * h @ h, (W.T @ G / N + decay * H).ravel()

    found = scipy_minimize(objective, np.zeros(K * N), jac=True, options={"gtol": 1e-11})
    form = fixed_classifier_minimum(K, n, decay, row_norm)
    assert form.minimum == pytest.approx(found.fun, abs=1e-10)
    lengths = np.linalg.norm(found.x.reshape(K, N), axis=0)
    np.testing.assert_allclose(lengths, math.sqrt(form.feature_norm2), rtol=1e-5)
    logits = W @ found.x.reshape(K, N)
    assert form.margin == pytest.approx(logits[0, 0] - logits[1, 0], rel=1e-5)
    assert form.weight_norm2 == pytest.approx(row_norm**2)
    m, omega = form.margin, row_norm
    assert m * (math.exp(m) + K - 1) == pytest.approx(K**2 * omega**2 / ((K - 1) * N * decay), rel=1e-10)


@settings(deadline=None, max_examples=30)
@given(K=st.integers(2, 1000), n=st.integers(1, 5000), log_decay=st.floats(-12, 3), log_norm=st.floats(-3, 3))
def test_fixed_classifier_features_are_never_zero(K, n, log_decay, log_norm):
    decay, omega = 10**log_decay, 10**log_norm
    form = fixed_classifier_minimum(K, n, decay, omega)
    target = math.log(K**2 * omega**2 / ((K - 1) * K * n * decay))
    m = form.margin
    assert m > 0
    assert math.log(m) + m + math.log1p((K - 1) * math.exp(-m)) == pytest.approx(target, abs=1e-9)
    assert form.minimum < math.log(K)


@pytest.mark.parametrize(("K", "temperature"), [(2, 1.0), (3, 0.5), (3, 8.0), (4, 2.0)])
def test_spherical_minimum(K, temperature):
    d = K

    def objective(x):
        W, H = x[: K * d].reshape(K, d), x[K * d :].reshape(d, K)
        W = W / np.linalg.norm(W, axis=1, keepdims=True)
        H = H / np.linalg.norm(H, axis=0, keepdims=True)
        return -np.log(np.diag(oracles.softmax(temperature * W @ H))).mean()

    rng = np.random.default_rng(0)
    ends = [scipy_minimize(objective, rng.standard_normal(2 * K * d), options={"gtol": 1e-7}).fun for _ in range(2)]
    expected = spherical_minimum(K, temperature)
    assert min(ends) == pytest.approx(expected, abs=1e-9)
    assert min(ends) >= expected - 1e-12
    simplex = oracles.simplex(K, d).ravel(), oracles.simplex(K, d).T.ravel()
    assert objective(np.concatenate(simplex)) == pytest.approx(expected, abs=1e-12)


# -- unequal counts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bias", "bias_decay"), [(True, 0.0), (True, 0.01), (False, 0.0)])
def test_minority_rows_coincide_exactly_when_the_root_of_their_count_is_below_the_decay(bias, bias_decay):
    counts = [20, 20, 4, 4, 4]
    edge = math.sqrt(4) / sum(counts)  # mu at which sqrt(n_B) = N mu
    for factor in (0.3, 0.9, 0.99, 1.01, 1.1, 1.5):
        mu = edge * factor
        model = Model(5, 6, counts, 2 * mu, mu / 2, bias_decay, bias)
        point = model.global_minimizer()
        minority = point.W[2:]
        apart = float((minority - minority.mean(0)).norm())
        assert (apart < 1e-5) is (factor > 1), (factor, apart)
        probabilities = model.logits(point).softmax(0)
        own, sibling = float(probabilities[2, 40]), float(probabilities[3, 40])
        assert own - sibling == pytest.approx(max(0.0, 1 - factor), abs=1e-6)
        majority = float(probabilities[0, 0] - probabilities[1, 0])
        assert majority == pytest.approx(max(0.0, 1 - sum(counts) * mu / math.sqrt(20)), abs=1e-6)


@pytest.mark.parametrize(("bias", "bias_decay"), [(True, 0.0), (True, 0.01), (False, 0.0)])
def test_thirty_long_tailed_classes_are_solved(bias, bias_decay):
    counts = [round(100 * 0.02 ** (k / 29)) for k in range(30)]
    model = Model(30, 32, counts, 5e-4, 5e-4, bias_decay, bias)
    certificate = model.certify(model.global_minimizer())
    assert certificate.verdict == "global_minimum"
    assert certificate.gap <= 1e-8


@pytest.mark.parametrize("loss", ["cross_entropy", "label_smoothing", "mse"])
def test_the_convex_solver_agrees_with_the_closed_form_in_the_limit_of_equal_counts(loss):
    for bias_decay, bias in ((0.0, True), (0.05, True), (0.0, False)):
        model = Model(4, 5, 6, 0.02, 0.003, bias_decay, bias, loss)
        assert float(grouped(model).value(solve(model))) == pytest.approx(model.global_minimum(), abs=1e-9)


@settings(deadline=None, max_examples=8)
@given(
    counts=st.lists(st.integers(1, 60), min_size=2, max_size=6),
    log_decays=st.tuples(st.floats(-4, 0), st.floats(-4, 0)),
    bias_decay=st.sampled_from([0.0, 1e-3, 0.1]),
    loss=st.sampled_from(["cross_entropy", "label_smoothing", "mse"]),
)
def test_any_counts_are_solved_with_a_certified_gap(counts, log_decays, bias_decay, loss):
    decays = [10**x for x in log_decays]
    model = Model(len(counts), len(counts), counts, *decays, bias_decay, loss=loss)
    assert model.certify(model.global_minimizer()).gap <= 1e-8


def test_the_order_of_classes_does_not_matter():
    first = Model(3, 4, [9, 4, 1], 0.01, 0.01, 0.01)
    second = Model(3, 4, [1, 9, 4], 0.01, 0.01, 0.01)
    assert first.global_minimum() == pytest.approx(second.global_minimum(), abs=1e-9)
    norms = first.global_minimizer().W.norm(dim=1), second.global_minimizer().W.norm(dim=1)
    np.testing.assert_allclose(norms[0], norms[1][[1, 2, 0]], atol=1e-5)


# -- dimensions and errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [3, [5, 3, 2, 1]])
@pytest.mark.parametrize("loss", ["cross_entropy", "label_smoothing"])
def test_the_minimum_is_the_same_from_k_minus_1_dimensions_on(counts, loss):
    values = []
    for d in (3, 4, 9):
        model = Model(4, d, counts, 0.01, 0.004, 0.01, loss=loss)
        values.append(model.global_minimum())
        assert_is_minimiser(model, values[0])
        assert oracles.imbalance(model, model.global_minimizer()) < 1e-8
    assert max(values) - min(values) < 1e-9


@pytest.mark.parametrize("counts", [3, [5, 3, 2, 1]])
@pytest.mark.parametrize("ask", ["global_minimizer", "global_minimum"])
def test_too_few_dimensions_are_refused(counts, ask):
    model = Model(4, 2, counts, 0.01, 0.004)
    with pytest.raises(InputError, match="feature_dim of at least 3"):
        getattr(model, ask)()


def test_mse_may_need_as_many_dimensions_as_classes():
    with pytest.raises(InputError, match="feature_dim of at least 4"):
        Model(4, 3, 3, 0.001, 0.001, bias=False, loss="mse").global_minimizer()
    assert_is_minimiser(
        Model(4, 3, 3, 0.001, 0.001, loss="mse"),
        Model(4, 6, 3, 0.001, 0.001, loss="mse").global_minimum(),
    )


def test_a_zero_minimiser_needs_one_dimension_only():
    model = Model(5, 1, 4, 0.5, 0.5)
    assert model.objective(model.global_minimizer()) == pytest.approx(math.log(5))


@pytest.mark.parametrize("ask", ["global_minimizer", "global_minimum"])
def test_focal_loss_with_unequal_counts_is_refused(ask):
    model = Model(3, 4, [3, 2, 1], 0.01, 0.01, loss="focal")
    assert closed_form(model) is None
    with pytest.raises(InputError, match="focal loss is not convex"):
        getattr(model, ask)()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 2, 0.1), "num_classes"),
        ((3, 0, 0.1), "samples_per_class"),
        ((3, 2, 0.0), "positive"),
        ((3, 2, math.nan), "positive"),
        ((3, 2, 0.1, -1.0), "positive"),
    ],
)
def test_fixed_classifiers_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        fixed_classifier_minimum(*arguments)


def test_spherical_needs_two_classes():
    with pytest.raises(InputError, match="num_classes"):
        spherical_minimum(1, 1.0)


@pytest.mark.parametrize("counts", [[2, 3], [4, 4, 5], [3, 7, 1, 2]])
@pytest.mark.parametrize(("bias", "bias_decay"), [(True, 0.1), (True, 1.0), (False, 0.0)])
def test_mse_of_unequal_counts_is_solved_though_its_minimiser_has_full_rank(counts, bias, bias_decay):
    model = UnconstrainedFeatureModel(len(counts), len(counts) + 1, counts, 0.01, 0.01, bias_decay, bias, "mse")
    found = float(model.many_starts(5).objectives.min())
    assert model.global_minimum() == pytest.approx(found, abs=1e-9)
    assert model.certify(model.global_minimizer()).verdict == "global_minimum"


@pytest.mark.parametrize(("factor", "together"), [(0.89, False), (0.91, True)])
def test_label_smoothing_moves_the_line_of_minority_collapse(factor, together):
    mu = factor * 3 / 218  # N mu = factor sqrt(n) of the small classes; the line lies at 1 - 0.1
    model = UnconstrainedFeatureModel(4, 4, [100, 100, 9, 9], mu, mu, loss="label_smoothing:0.1")
    rows = model.global_minimizer().W[2:]
    assert (float(torch.nn.functional.cosine_similarity(rows[0], rows[1], dim=0)) > 1 - 1e-9) == together


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: UnconstrainedFeatureModel(3, 3, 2, "a", 0.1), "weight_decay.*'a'"),
        (lambda: UnconstrainedFeatureModel(3, 3, 2, 0.1, 0.1, loss=None), "loss by name"),
        (lambda: UnconstrainedFeatureModel(3, 3, 2, 0.1, 0.1, loss="focal:x"), "focal:GAMMA"),
        (lambda: UnconstrainedFeatureModel(3, 3, 2, 0.1, 0.1, loss="mse:2"), "focal:GAMMA"),
        (lambda: spherical_minimum(4, math.nan), "temperature"),
        (lambda: fixed_classifier_minimum(4, 3, math.inf), "feature_decay"),
    ],
)
def test_parameters_that_make_no_sense_are_one_line(call, message):
    with pytest.raises(InputError, match=message):
        call()
