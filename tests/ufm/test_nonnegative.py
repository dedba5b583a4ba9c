import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

import neuralcollapse as nc
from neuralcollapse import InputError
from neuralcollapse.ufm import UnconstrainedFeatureModel, class_margins, minimum_bounds
from neuralcollapse.ufm.certificate import GLOBAL_GAP
from neuralcollapse.ufm.columns import Columns
from neuralcollapse.ufm.duality import decay_cost, lower_bound
from neuralcollapse.ufm.nonnegative import nonnegative_minimizer

# counts, lW, lH -> minimum without a bias, margins: by bounded descents from many starts, outside this library
CASES = [
    (([5] * 4, 0.01, 0.01), (0.3576188679, [3.576] * 4)),
    (([30, 10, 5, 2], 0.01, 0.004), (0.3131835152, [4.1081, 3.5220, 3.1380, 2.6013])),
    (([200, 200, 2, 2], 0.004, 0.004), (0.4409617980, [3.3075, 3.3075, 0, 0])),
    (([7] * 3, 0.03, 0.01), (0.4289988042, [2.7611] * 3)),
    (([50] * 3 + [5] * 3, 0.01, 0.003), (0.6120362076, [3.6338] * 3 + [2.1462] * 3)),
]


def model(counts, lW=0.01, lH=0.004, bias_decay=None, dim=None, **options):
    """The model with features >= 0; without a bias if it has no decay."""
    K = len(counts)
    options = {"features": "nonnegative", **options}
    return UnconstrainedFeatureModel(
        K, K + 1 if dim is None else dim, counts, lW, lH, bias_decay or 0.0, bias_decay is not None, **options
    )


def objective(x, counts, lW, lH, lb, K, d):
    """The objective of one column a class and its gradient: another implementation, of cross-entropy alone."""
    n = np.asarray(counts, float)
    W, H = x[: K * d].reshape(K, d), x[K * d : 2 * K * d].reshape(d, K)
    b = x[2 * K * d :] if lb is not None else np.zeros(K)
    Z = W @ H + b[:, None]
    top = Z.max(0)
    P = np.exp(Z - top)
    loss = np.log(P.sum(0)) + top - np.diag(Z)
    slopes = (P / P.sum(0) - np.eye(K)) * n / n.sum()
    decay = lW * (W**2).sum() + lH * (n * H**2).sum() + (lb or 0.0) * (b**2).sum()
    parts = [slopes @ H.T + lW * W, W.T @ slopes + lH * n * H]
    gradient = np.concatenate([part.ravel() for part in parts] + ([] if lb is None else [slopes.sum(1) + lb * b]))
    return loss @ n / n.sum() + decay / 2, gradient


def bounded_descent(counts, lW, lH, lb, dim, goal, seed=0):
    """The lowest end of bounded descents, up to 100 and until one ends within 1e-9 of the goal: many are trapped."""
    K, rng = len(counts), np.random.default_rng(seed)
    free = [(None, None)] * (K * dim)
    bounds = free + [(0, None)] * (K * dim) + [(None, None)] * (0 if lb is None else K)
    scale = (lW / (lH * np.mean(counts))) ** 0.25
    best = math.inf
    for _ in range(100):
        x = np.abs(rng.standard_normal(len(bounds)))
        x[: K * dim] = rng.standard_normal(K * dim) / scale
        x[K * dim : 2 * K * dim] *= scale
        found = minimize(
            objective,
            x,
            (counts, lW, lH, lb, K, dim),
            "L-BFGS-B",
            jac=True,
            bounds=bounds,
            options={"maxiter": 4000, "maxfun": 20000, "ftol": 0.0, "gtol": 1e-10},
        )
        best = min(best, float(found.fun))
        if best <= goal + 1e-9:
            break
    return best


@pytest.mark.parametrize(("arguments", "expected"), CASES)
def test_the_minimum_without_a_bias_is_the_closed_form(arguments, expected):
    found = model(*arguments)
    minimum, margins = expected
    assert found.global_minimum() == pytest.approx(minimum, abs=1e-9)
    assert class_margins(found).tolist() == pytest.approx(margins, abs=1e-4)
    assert found.global_minimum() > found.like(features="real").global_minimum()


def random_case(seed):
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 61, rng.integers(2, 7)).tolist()
    lW, lH = (10 ** rng.uniform(-3.5, -1.5, 2)).tolist()
    return counts, lW, lH


def agrees_with_descent(seed, bias_decay=None):
    counts, lW, lH = random_case(seed)
    found = model(counts, lW, lH, bias_decay)
    exact = found.global_minimum()
    lowest = bounded_descent(counts, lW, lH, bias_decay, len(counts) + 1, exact, seed)
    assert lowest == pytest.approx(exact, abs=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_random_models_agree_with_bounded_descents(seed):
    agrees_with_descent(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20, 200))
def test_more_random_models_agree_with_bounded_descents(seed):
    agrees_with_descent(seed)


@pytest.mark.parametrize("loss", ["cross_entropy", "label_smoothing", "mse"])
@pytest.mark.parametrize("bias_decay", [None, 0.0, 1e-4, 0.01, 0.5])
@pytest.mark.parametrize("counts", [[5] * 4, [30, 10, 5, 2], [200, 200, 2, 2], [60, 1, 1, 1], [9, 4], [1] * 5])
def test_the_dual_bound_proves_the_minimum(counts, bias_decay, loss):
    found = model(counts, 0.004, 0.004, bias_decay, loss=loss)
    point = found.global_minimizer()
    value = found.objective(point)
    assert value == pytest.approx(found.global_minimum(), rel=1e-13)
    gap = value - lower_bound(found, point)
    assert -1e-12 <= gap <= GLOBAL_GAP * decay_cost(found, value)
    assert found.certify(point).verdict == "global_minimum"


@pytest.mark.parametrize("loss", ["cross_entropy", "label_smoothing:0.2"])
def test_a_class_vanishes_exactly_at_the_threshold(loss):
    counts, K, N = [100, 7, 3], 3, 110
    smoothing = 0.2 if ":" in loss else 0.0
    edge = (1 - smoothing) ** 2 * counts[2] * (K - 1) / (K * N**2)  # lW lH at which the last class vanishes
    for factor, alive in ((1 - 1e-10, True), (1 + 1e-10, False)):
        found = model(counts, 0.01, factor * edge / 0.01, loss=loss)
        margins = class_margins(found)
        assert (bool(margins[2] > 0), bool((margins[:2] > 0).all())) == (alive, True)
        assert bool(found.global_minimizer().H[:, -1].norm() > 0) == alive


def test_the_minimum_with_a_strongly_decayed_bias():
    assert model([30, 10, 5, 2], bias_decay=0.5).global_minimum() == pytest.approx(0.312697, abs=1e-6)
    assert model([30, 10, 5, 2], bias_decay=0.01).global_minimum() == pytest.approx(0.29839684, abs=1e-8)


@pytest.mark.parametrize(
    ("counts", "lW", "lH", "bias_decay", "cosine"),
    [([200, 200, 2, 2], 0.004, 0.004, 0.01, 1.0), ([200, 200, 3, 3], 0.004, 0.004, 1e-4, 0.842)],
)
def test_small_classes_share_a_feature_where_the_bias_hardly_decays(counts, lW, lH, bias_decay, cosine):
    found = model(counts, lW, lH, bias_decay)
    bounds = minimum_bounds(found)
    assert bounds.exact
    small = found.collapse(bounds.point).H[:, 2:]
    assert float(torch.cosine_similarity(small[:, 0], small[:, 1], dim=0)) == pytest.approx(cosine, abs=1e-3)
    lowest = bounded_descent(counts, lW, lH, bias_decay, 5, bounds.upper)
    assert lowest == pytest.approx(bounds.upper, abs=1e-9)


def test_an_inexact_minimum_names_both_bounds():
    found = model([1859, 1118, 19, 3, 1, 1], 5e-4, 5e-3, 5e-4)
    bounds = minimum_bounds(found)
    assert not bounds.exact
    assert bounds.lower < bounds.upper < bounds.lower * 1.01
    with pytest.raises(InputError, match=rf"from {bounds.lower:.8g} to {bounds.upper:.8g}: nc.ufm.minimum_bounds"):
        found.global_minimum()


@pytest.mark.parametrize("bias_decay", [None, 0.02])
def test_the_order_of_the_classes_and_further_dimensions_change_nothing(bias_decay):
    minimum = model([30, 10, 5, 2], bias_decay=bias_decay).global_minimum()
    for counts in ([2, 5, 10, 30], [10, 2, 30, 5]):
        assert model(counts, bias_decay=bias_decay, dim=9).global_minimum() == pytest.approx(minimum, rel=1e-12)
    point = model([30, 10, 5, 2], bias_decay=bias_decay, dim=300).global_minimizer()
    assert int((point.H.norm(dim=1) > 0).sum()) == int(torch.linalg.matrix_rank(point.H)) == 4


def test_the_balanced_minimiser_is_a_simplex_after_centring():
    found = model([5] * 4, bias_decay=0.01)
    point = found.global_minimizer()
    values = found.measures(point)
    for name in ("nc1", "nc2", "nc2_means", "nc3", "nc_bias"):
        assert values[name] == pytest.approx(0, abs=1e-7), name
    means = found.collapse(point).H
    assert float((means.T @ means).fill_diagonal_(0).abs().max()) == 0.0


@pytest.mark.parametrize(
    "found",
    [
        model([5] * 3, 10.0, 10.0, 0.1),  # every class vanishes
        model([7, 3], bias_decay=0.0),
        model([1, 1], bias_decay=0.1),
        model([60, 1, 1, 1], 1e-8, 1e-8, 1e-8),
        model([60, 1], 100.0, 100.0, 0.0),
        model([3, 2, 1], 1e-8, 100.0, 100.0, loss="mse"),
        model([3, 2, 1], 1e-6, 1e-6, 0.0, loss="label_smoothing"),
    ],
)
def test_extreme_models_have_bounds_in_order_and_a_point_that_attains_the_upper_one(found):
    bounds = minimum_bounds(found)
    assert bounds.lower <= bounds.upper * (1 + 1e-12)
    assert bounds.upper - bounds.lower <= 1e-3 * decay_cost(found, bounds.upper)
    assert found.objective(bounds.point) == pytest.approx(bounds.upper, rel=1e-12)


def test_the_bound_is_below_the_minimum_and_above_the_one_for_real_features_nearly_everywhere():
    found = model([30, 10, 5, 2], bias_decay=0.02)
    minimum = found.global_minimum()
    for seed in range(20):
        point = found.global_minimizer() + found.random_point(seed) * (0.01 * seed)
        own, real = lower_bound(found, point), lower_bound(found.like(features="real"), point)
        assert real - 1e-12 <= own <= minimum + 1e-12
        small = found.collapsed()
        mean_point = found.collapse(point)
        assert lower_bound(small, mean_point) <= minimum + 1e-12


@pytest.mark.parametrize("method", ["lbfgs", "gd"])
def test_descent_ends_at_the_minimum_and_keeps_features_at_least_zero(method):
    found = model([30, 10, 5, 2], bias_decay=0.02)
    solution = found.minimize(found.random_point(3), method)  # from 1, gd is trapped
    assert solution.converged
    assert solution.certificate.verdict == "global_minimum"
    assert solution.objective == pytest.approx(found.global_minimum(), abs=1e-10)
    assert float(solution.point.H.min()) == 0.0
    assert solution.history[-1].gradient_norm < 1e-6 < solution.history[0].gradient_norm


@pytest.mark.parametrize("method", ["adam", "sgd"])
def test_noisy_methods_keep_features_at_least_zero_and_descend(method):
    found = model([3, 2, 1], bias_decay=0.02)
    solution = found.minimize(found.random_point(1), method, iterations=400, batch_size=2)
    assert float(solution.point.H.min()) >= 0.0
    assert solution.objective < 1.1 * found.global_minimum()


def test_many_starts_end_at_critical_points_and_no_verdict_is_a_saddle():
    found = model([20, 20, 2, 2], 0.004, 0.004, 0.01)
    starts = found.many_starts(8)
    assert set(starts.verdicts) == {"global_minimum", "undecided"}
    assert float(starts.objectives.min()) == pytest.approx(found.global_minimum(), abs=1e-9)
    assert all(
        (verdict == "global_minimum") == (value < found.global_minimum() + 1e-8)
        for verdict, value in zip(starts.verdicts, starts.objectives.tolist(), strict=True)
    )


@pytest.mark.parametrize("method", ["gd", "lbfgs"])
def test_a_class_whose_features_are_zero_is_a_trap(method):
    """It gets no gradient, so that descent leaves it dead, above a minimum at which it is alive."""
    found = model([100] * 5 + [10] * 5, 0.005, 4.5e-4 / 55, 0.005)
    start = found.global_minimizer()
    dead = found.columns.labels == 9
    assert float(start.H[:, dead].norm()) > 0.1
    start.H[:, dead] = 0.0
    start.W[:, 9] = 0.0  # no class has this feature
    assert float(found.projected(start, found.gradient(start)).H[:, dead].abs().max()) == 0.0
    solution = found.minimize(start, method, iterations=2000)
    assert float(solution.point.H[:, dead].abs().max()) == 0.0
    assert solution.certificate.verdict == ("undecided" if method == "lbfgs" else "not_critical")  # gd is slower
    assert solution.objective > found.global_minimum() + 1e-2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: model([3, 3], features="positive"), "no features 'positive'.*; there are: real, nonnegative"),
        (lambda: model([5] * 4, dim=3).global_minimum(), "feature_dim of at least 4, .* got d=3"),
        (lambda: model([5] * 4, loss="focal").global_minimum(), "focal loss is not convex"),
        (lambda: class_margins(model([5] * 4, loss="mse")), "cross-entropy, got mse"),
        (lambda: minimum_bounds(model([5] * 4, features="real")), "features='nonnegative', got 'real'"),
        (lambda: model([5] * 4).atlas(), "the atlas is of models with features='real'"),
        (lambda: model([2] * 3).minimize(model([2] * 3).random_point(), "newton"), "got newton: use lbfgs, gd"),
        (lambda: model([2] * 3).objective(model([2] * 3).random_point() * -1.0), r"expected H >= 0 .* 24 negative"),
    ],
)
def test_what_is_not_known_or_does_not_fit_is_refused_in_a_line(call, message):
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_no_way_down_is_known_with_features_at_least_zero():
    found = model([5] * 3, bias_decay=0.1)
    certificate = found.certify(found.zero_point())
    assert (certificate.verdict, certificate.direction) == ("undecided", None)
    assert "features that are all 0" in certificate.reason
    with pytest.raises(InputError, match="no way down is known"):
        nc.ufm.solvers.leave(found, found.zero_point(), certificate)


def test_the_sign_of_the_features_is_kept_and_named():
    found = model([5] * 3)
    assert found.like(weight_decay=1.0).features == found.collapsed().features == "nonnegative"
    assert "features=nonnegative" in repr(found)
    assert "features=real" in repr(found.like(features="real"))
    assert float(found.random_point(3).H.min()) > 0
    assert found.random_point(3).W.equal(found.like(features="real").random_point(3).W)


def test_a_survey_has_minimum_starts_and_trajectories_but_no_atlas():
    from neuralcollapse.report.landscape import landscape_page, summary
    from neuralcollapse.ufm.survey import survey

    said = []
    found = survey(model([6, 4, 2], bias_decay=0.02), starts=4, on_message=said.append)
    assert found.minimum == pytest.approx(model([6, 4, 2], bias_decay=0.02).global_minimum())
    assert (found.atlas, found.spectra, found.way, found.phase) == ([], {}, None, None)
    assert any("no atlas" in text for text in said)
    assert len(found.trajectories) == len(found.starts.verdicts) == 4
    assert "features >= 0" in landscape_page(found).subtitle
    assert "random starts" in summary(found)


@pytest.mark.parametrize("bias", [False, True])
def test_bounds_of_a_million_samples_have_no_entry_for_each(bias, monkeypatch):
    def refused(*arguments):
        raise AssertionError("a column for each sample")

    monkeypatch.setattr(Columns, "of_samples", refused)
    counts = [1_300_000] * 90 + [7_320 + k for k in range(10)]
    model = UnconstrainedFeatureModel(100, 128, counts, 5e-4, 5e-10, 5e-4 * bias, bias, features="nonnegative")
    bounds = minimum_bounds(model)
    assert bounds.exact
    assert bounds.collapsed.H.shape == (128, 100)
    small = model.collapsed()
    assert small.objective(bounds.collapsed) == pytest.approx(bounds.upper, rel=1e-10)
    assert small.certify(bounds.collapsed, known_bound=bounds.lower).gap <= 1e-6 * bounds.upper
    assert "collapsed" not in repr(bounds)
    with pytest.raises(AssertionError, match="for each sample"):
        bounds.point  # noqa: B018


def test_the_descents_say_how_far_they_are():
    shares = []
    nonnegative_minimizer(model([30, 10, 5, 2], 0.01, 0.01, 0.0), shares.append)
    assert len(shares) > 10
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[-1] <= 1
