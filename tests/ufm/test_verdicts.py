"""Verdicts are never false: on random models, in any units, at decays from 1e-8 to 1e2."""

import importlib.util
import random
import sys
from pathlib import Path

import pytest
import torch

from neuralcollapse.ufm import CrossEntropy, UnconstrainedFeatureModel
from neuralcollapse.ufm.units import Units

Model = UnconstrainedFeatureModel
SCRIPT = Path(__file__).parent.parent.parent / "benchmarks" / "verdicts.py"


@pytest.fixture(scope="module")
def verdicts():
    spec = importlib.util.spec_from_file_location("benchmark_verdicts", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.mark.slow
def test_thirty_random_models_give_no_false_verdict(verdicts):
    count, rng = verdicts.Count(), random.Random(11)
    for _ in range(30):
        verdicts.judge(verdicts.random_model(rng), rng, count, starts=1)
    assert count.false == []
    assert count.verdicts["exact minimiser"] == {"global_minimum": 30}
    assert count.verdicts["critical point above the minimum"]["strict_saddle"] >= 20
    assert count.verdicts["end of a random start"]["global_minimum"] >= 15


def test_a_false_verdict_would_be_counted(verdicts, monkeypatch, capsys):
    model = Model(3, 4, 2, 0.01, 0.01)
    honest = Model.certify
    low = model.certify(model.global_minimizer())
    monkeypatch.setattr(Model, "certify", lambda self, point: low)
    count = verdicts.Count()
    verdicts.judge(model, random.Random(0), count)
    assert {kind for kind, _ in count.false} >= {"minimiser + 0.1", "random point", "critical point above the minimum"}
    monkeypatch.setattr(Model, "certify", honest)
    assert verdicts.main(["--models", "1"]) == 0
    assert "0 false" in capsys.readouterr().out


def test_the_forty_starts_of_the_issue_are_all_certified():
    ends = Model(6, 8, 5, 5e-5, 5e-5).many_starts(40)
    assert ends.verdicts == 40 * ("global_minimum",)
    assert float(ends.gaps.max()) < 1e-9


@pytest.mark.parametrize("bias", ["free", "decayed", "none"])
@pytest.mark.parametrize("loss", ["cross_entropy", "label_smoothing", "mse"])
@pytest.mark.parametrize("counts", [4, [30, 7, 2, 1]], ids=["equal", "unequal"])
@pytest.mark.parametrize("decays", [(1e-8, 1e-8), (1e-8, 1e2), (1e2, 1e-8), (1e-5, 1e-7), (0.01, 0.1), (1e2, 1e2)])
def test_exact_minimisers_are_certified_at_every_decay(decays, counts, loss, bias):
    for bias_decay in (1e-8, 1e2) if bias == "decayed" else (0.0,):
        model = Model(4, 5, counts, *decays, bias_decay, bias != "none", loss)
        certificate = model.certify(model.global_minimizer())
        assert certificate.verdict == "global_minimum", certificate
        assert certificate.lower_bound <= model.global_minimum() * (1 + 1e-12)


@pytest.mark.parametrize("decay", [1e-8, 1e-6, 1e-4])
@pytest.mark.parametrize("bias", [True, False])
def test_saddles_stay_saddles_at_tiny_decays(decay, bias):
    model = Model(4, 5, 3, decay, decay / 3, bias=bias)
    entries = model.atlas(ranks=())
    assert [entry.certificate.verdict for entry in entries] == 4 * ["strict_saddle"] + ["global_minimum"]
    for entry in entries[:-1]:
        assert entry.certificate.curvature < 0


@pytest.mark.parametrize("size", [1e-4, 1e-6, 1e-8, 1e-10])
@pytest.mark.parametrize(
    "model",
    [
        Model(6, 8, 5, 5e-5, 5e-5),
        Model(4, 6, [40, 40, 1, 1], 0.01, 0.01),  # minority collapse: a minimum of rank 2
        Model(3, 5, 2, 0.15, 0.15),  # hardly below the decay at which all is zero
        Model(3, 4, 2, 0.4, 0.4),  # beyond it
        Model(4, 6, 3, 0.02, 0.01, 0.001, loss="mse"),
    ],
    ids=["issue", "rank_2", "nearly_zero", "zero", "mse"],
)
def test_beside_a_minimum_nothing_is_called_a_saddle(model, size):
    best = model.global_minimizer()
    units = Units(model)
    for seed in range(6):
        noise = units.leave(units.small.random_point(seed)) * (size * (1 + units.norm(best)))
        verdict = model.certify(best + noise).verdict
        assert verdict != "strict_saddle"
        if size == 1e-10:
            assert verdict == "global_minimum"


def test_exactly_where_zero_begins_to_be_the_minimum():
    decay = 1 / (3 * 2**0.5)  # K c = 1
    for factor, verdict in [(1 + 1e-3, "global_minimum"), (1.0, "global_minimum"), (1 - 1e-2, "strict_saddle")]:
        model = Model(3, 4, 2, decay * factor, decay * factor)
        assert model.certify(model.zero_point()).verdict == verdict


def test_below_k_minus_1_dimensions_a_saddle_is_one_and_a_local_minimum_undecided():
    for scale in (1.0, 1e-3):
        model = Model(6, 2, 3, 0.004 * scale, 0.004 / scale, 0.01)
        ends = model.many_starts(20)
        assert set(ends.verdicts) == {"undecided"}
        (saddle,) = model.atlas([((0, 1, 2), (3, 4, 5))])
        assert saddle.certificate.verdict == "strict_saddle"


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_gap_counts_relative_to_what_the_decay_costs(smoothing):
    model = Model(4, 5, 3, 1e-7, 1e-7, loss=CrossEntropy(smoothing))
    best = model.global_minimizer()
    unbalanced = best * 1.0
    unbalanced.W, unbalanced.H = best.W * 1.2, best.H / 1.2  # the same logits, 3 % more decay
    assert model.certify(best).verdict == "global_minimum"
    certificate = model.certify(unbalanced)
    assert certificate.gap < 1e-6  # nothing beside an objective of 1, and all that there is here
    assert certificate.verdict == "not_critical"


def test_tolerances_that_are_given_are_kept():
    model = Model(3, 4, 2, 0.01, 0.02)
    loose = model.minimize(model.random_point(1), tolerance=1e-2)
    tight = model.minimize(model.random_point(1), tolerance=1e-11)
    assert loose.converged
    assert tight.converged
    assert model.gradient(tight.point).norm() <= 1e-11
    assert loose.iterations < tight.iterations


def test_a_certificate_and_a_solution_read_in_three_lines():
    model = Model(4, 5, 3, 0.01, 0.01)
    solution = model.minimize(model.random_point(0))
    saddle = model.certify(model.zero_point())
    for value in (solution, solution.certificate, saddle):
        assert len(repr(value).splitlines()) == 3
        assert all(len(line) <= 160 for line in repr(value).splitlines())
        assert "tensor" not in repr(value)
    assert repr(saddle).startswith("Certificate(strict_saddle: ")
    assert "curvature -" in repr(saddle)
    assert repr(solution).startswith("Solution(converged after")
    assert "global_minimum" in repr(solution)
    assert f"{solution.objective:.10g}" in repr(solution)
    torch.testing.assert_close(model.objective(solution.point), solution.objective)
