import itertools
import math

import pytest
import torch

from neuralcollapse import InputError
from neuralcollapse.ufm import Focal, UnconstrainedFeatureModel
from neuralcollapse.ufm.solvers import METHODS, leave

Model = UnconstrainedFeatureModel
OPTIONS = {"sgd": {"iterations": 1500, "learning_rate": 0.5}}


@pytest.fixture(scope="module")
def small():
    return Model(3, 4, 3, 0.02, 0.02)


@pytest.fixture(scope="module")
def solutions(small):
    return {name: small.minimize(small.random_point(1), name, **OPTIONS.get(name, {})) for name in METHODS}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_reaches_the_certified_minimum(small, solutions, method):
    solution = solutions[method]
    assert solution.converged
    assert solution.message.startswith("converged after")
    assert solution.certificate.verdict == "global_minimum"
    assert solution.objective == pytest.approx(small.global_minimum(), abs=1e-8)
    assert solution.objective == pytest.approx(small.objective(solution.point), abs=1e-15)
    assert small.gradient(solution.point).norm() <= 1e-9


@pytest.mark.parametrize("method", METHODS)
def test_the_history_bounds_the_true_gap_at_every_step(small, solutions, method):
    minimum, history = small.global_minimum(), solutions[method].history
    assert len(history) >= 5
    assert history[0].iteration == 0
    assert history[0].objective == pytest.approx(small.objective(small.random_point(1)), abs=1e-14)
    assert history[-1].objective == pytest.approx(solutions[method].objective, abs=1e-14)
    assert history[-1].iteration == solutions[method].iterations
    for before, after in itertools.pairwise(history):
        assert after.iteration > before.iteration
        assert after.lower_bound >= before.lower_bound
    for step in history:
        assert step.lower_bound <= minimum + 1e-12
        assert step.gap == pytest.approx(step.objective - step.lower_bound, abs=1e-15)
        assert step.gap >= step.objective - minimum - 1e-12
        assert step.gradient_norm >= 0
        assert "nc1" in step.measures
    assert history[-1].measures["nc1"] < 1e-6 < history[0].measures["nc1"]


@pytest.mark.parametrize("method", ["sgd", "adam"])
def test_sgd_over_batches_of_samples_reaches_the_minimum(method):
    model = Model(3, 4, [6, 4, 2], 0.02, 0.02)
    options = {"batch_size": 5} if method == "sgd" else {}
    solution = model.minimize(model.random_point(2), method, iterations=1500, **options)
    assert solution.objective == pytest.approx(model.global_minimum(), abs=1e-3)
    assert solution.certificate.gap >= solution.objective - model.global_minimum() - 1e-12


def test_sgds_batches_follow_the_seed():
    model = Model(3, 4, [6, 4, 2], 0.02, 0.02)
    ends = [
        model.minimize(model.random_point(2), "sgd", iterations=20, batch_size=5, seed=seed, escapes=0).point.vector()
        for seed in (0, 0, 1)
    ]
    assert ends[0].equal(ends[1])
    assert not ends[0].equal(ends[2])


@pytest.mark.slow
@pytest.mark.parametrize("bias", [True, False])
def test_no_stop_on_the_way_down_from_confident_points_is_called_a_minimum(bias):
    model = Model(4, 6, 3, 0.005, 0.005, bias=bias)
    minimum = model.global_minimum()
    for iterations in (1, 3, 5, 8, 12, 20, 30, 40):
        solution = model.minimize(model.global_minimizer() * 3, "gd", iterations=iterations)
        assert solution.certificate.lower_bound <= minimum + 1e-9
        above = solution.objective - minimum
        assert solution.certificate.verdict != "global_minimum" or above <= 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_did_not_converge_says_so_and_keeps_its_gap(method):
    model = Model(4, 6, 3, 0.005, 0.005)
    solution = model.minimize(model.random_point(0), method, iterations=3)
    assert not solution.converged
    assert solution.message.startswith("stopped at a gradient of")
    assert f"certified gap {solution.certificate.gap:.1e}" in solution.message
    assert solution.certificate.verdict == "not_critical"
    assert solution.certificate.gap >= solution.objective - model.global_minimum() > 1e-6
    assert solution.certificate.lower_bound == max(step.lower_bound for step in solution.history)


@pytest.mark.parametrize("method", METHODS)
def test_iterations_are_those_that_ran(small, method):
    solution = small.minimize(small.random_point(0), method, iterations=4, escapes=0)
    assert solution.iterations == 4
    assert "after 4 iterations" in solution.message
    at_minimum = small.minimize(small.global_minimizer(), "lbfgs")
    assert at_minimum.iterations == 0


@pytest.mark.parametrize("method", ["lbfgs", "newton", "gd"])
def test_without_escapes_a_saddle_is_the_end_and_by_default_it_is_left(method):
    model = Model(4, 6, 3, 0.01, 0.01, bias=False)
    (saddle,) = model.atlas([((0, 1), (2, 3))])
    for start in (saddle.point, model.zero_point()):
        stopped = model.minimize(start, method, escapes=0)
        assert stopped.certificate.verdict == "strict_saddle"
        assert stopped.objective == pytest.approx(model.objective(start), abs=1e-9)
        left = model.minimize(start, method)
        assert left.certificate.verdict == "global_minimum"
        assert left.objective == pytest.approx(model.global_minimum(), abs=1e-8)
        assert "by way of" in left.message
        assert "saddle" in left.message


def test_from_every_saddle_of_the_k5_atlas_the_way_down_leads_to_the_minimum():
    model = Model(5, 7, 3, 0.005, 0.005)
    entries = model.atlas(ranks=())
    saddles = [entry for entry in entries if entry.certificate.verdict == "strict_saddle"]
    assert len(entries) == 7
    assert len(saddles) == 6
    for saddle in saddles:
        start = leave(model, saddle.point, saddle.certificate)
        assert model.objective(start) < saddle.objective - 1e-3
        end = model.minimize(start, "lbfgs")
        assert end.certificate.verdict == "global_minimum"
        assert end.objective == pytest.approx(model.global_minimum(), abs=1e-8)


def test_a_point_without_a_way_down_cannot_be_left():
    model = Model(3, 4, 2, 0.01, 0.01)
    best = model.global_minimizer()
    with pytest.raises(InputError, match="no way down is known: the verdict is 'global_minimum'"):
        leave(model, best, model.certify(best))


@pytest.mark.slow
def test_a_thousand_starts_all_end_at_the_certified_minimum():
    model = Model(4, 6, 10, 0.005, 0.005)
    starts = model.many_starts(1000, seed=3)
    assert len(starts.verdicts) == len(starts.objectives) == len(starts.gaps) == 1000
    assert set(starts.verdicts) == {"global_minimum"}
    assert float(starts.gaps.max()) <= 1e-6
    assert float((starts.objectives - model.global_minimum()).abs().max()) <= 1e-9
    firsts = starts.vectors[:2]
    assert float((firsts[0] - firsts[1]).norm()) > 0.1  # different ends, equal values
    for vector, objective in zip(firsts, starts.objectives, strict=False):
        assert model.objective(model.point(vector)) == pytest.approx(float(objective), abs=1e-14)


def test_starts_that_are_cut_short_are_not_called_minima():
    starts = Model(4, 6, 10, 0.005, 0.005).many_starts(10, iterations=3)
    assert set(starts.verdicts) == {"not_critical"}
    assert starts.iterations == 3
    assert float(starts.gaps.min()) > 1e-3


def test_starts_follow_the_seed_and_do_not_depend_on_how_they_are_batched(monkeypatch):
    from neuralcollapse.ufm import solvers

    model = Model(3, 4, 2, 0.01, 0.01)
    together = model.many_starts(7, seed=1)
    assert together.vectors.equal(model.many_starts(7, seed=1).vectors)
    assert not together.vectors.equal(model.many_starts(7, seed=2).vectors)
    monkeypatch.setattr(solvers, "_BATCH_VALUES", 2 * model.size)
    parts = model.many_starts(7, seed=1)
    torch.testing.assert_close(parts.vectors, together.vectors, rtol=0, atol=1e-5)


@pytest.mark.parametrize("count", [0, -1])
def test_no_starts_are_refused(count):
    with pytest.raises(InputError, match="count to be an integer of at least 1"):
        Model(3, 4, 2, 0.01, 0.01).many_starts(count)


def test_focal_ends_are_never_called_global():
    model = Model(3, 4, 2, 0.01, 0.01, loss=Focal())
    solution = model.minimize(model.random_point(0))
    assert solution.converged
    assert solution.certificate.verdict == "undecided"
    assert solution.certificate.gap == math.inf
    assert "no certified gap" in solution.message
    assert "global_minimum" not in model.many_starts(5).verdicts


def test_an_unknown_method_offers_the_nearest(small):
    with pytest.raises(InputError, match="did you mean 'lbfgs'") as error:
        small.minimize(small.random_point(), "l-bfgs")
    assert "newton, gd, sgd, adam" in str(error.value)


@pytest.mark.parametrize("method", ["gd", "sgd"])
def test_a_learning_rate_that_diverges_is_an_error(method, small):
    with pytest.raises(InputError, match=rf"{method} diverged at iteration \d+: lower learning_rate"):
        small.minimize(small.random_point(), method, learning_rate=1e4)


def test_the_start_is_left_alone(small):
    for method in METHODS:
        start = small.random_point(3)
        small.minimize(start, method, iterations=3)
        assert start.vector().equal(small.random_point(3).vector())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": math.nan}, "tolerance"),
        ({"tolerance": -1.0}, "tolerance"),
        ({"iterations": 0}, "iterations"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    model = UnconstrainedFeatureModel(3, 4, 2, 0.01, 0.01)
    with pytest.raises(InputError, match=message):
        model.minimize(model.random_point(0), "sgd", **options)


def test_a_start_that_requires_gradients_is_only_read():
    model = UnconstrainedFeatureModel(3, 4, 2, 0.01, 0.01)
    start = model.random_point(0)
    start.W.requires_grad_()
    for method in ("lbfgs", "adam"):
        assert not model.minimize(start, method, iterations=5).point.W.requires_grad
