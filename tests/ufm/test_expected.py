import inspect
import math

import pytest
import torch

import neuralcollapse as nc
from neuralcollapse.geometry.moments import ClassMoments
from neuralcollapse.ufm import minimizers, nonnegative
from neuralcollapse.ufm.expected import Decays, expected_at_minimum, minimizer_measures, untrained_measures
from neuralcollapse.ufm.minimizers import global_minimizer, global_minimum
from neuralcollapse.ufm.model import Model
from neuralcollapse.ufm.solved import keeps_the_last

COUNTS = [30, 10, 5, 2]
DECAYS = Decays(0.01, 0.004, 0.01)


@pytest.mark.parametrize("features", ["real", "nonnegative"])
@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_the_measures_are_those_of_the_minimiser_of_the_full_model(features, loss):
    for counts in (COUNTS, [5] * 4):
        model = Model(4, 7, counts, *DECAYS, True, loss, features=features)
        found, whole = minimizer_measures(model), model.measures(global_minimizer(model))
        assert found == pytest.approx(whole, abs=1e-6, nan_ok=True)
        assert found["nc1"] == 0


@pytest.mark.parametrize("nonnegative", [False, True])
def test_unequal_classes_are_no_simplex_at_the_minimum(nonnegative):
    values = expected_at_minimum(COUNTS, 6, DECAYS, nonnegative=nonnegative)
    assert values["nc1"] == values["nc0"] == 0
    assert min(values[name] for name in ("nc2", "nc2_means", "nc3", "nc_bias")) > 0.3


@pytest.mark.parametrize("loss", ["cross_entropy", "label_smoothing", "focal"])
@pytest.mark.parametrize("decays", [None, DECAYS])
@pytest.mark.parametrize(("nonnegative", "dim"), [(False, 3), (True, 4)])
def test_equal_classes_are_a_simplex_whatever_the_decays_are(loss, decays, nonnegative, dim):
    values = expected_at_minimum([5] * 4, dim, decays, loss=loss, nonnegative=nonnegative)
    assert set(values.values()) == {0.0}
    assert ("nc_bias" in values) == (decays is not None)
    assert not expected_at_minimum([5] * 4, dim - 1, decays, loss=loss, nonnegative=nonnegative)


@pytest.mark.parametrize("loss", ["cross_entropy", "label_smoothing", "focal"])
@pytest.mark.parametrize("nonnegative", [False, True])
def test_equal_classes_take_a_closed_form(loss, nonnegative, monkeypatch):
    monkeypatch.setattr("neuralcollapse.ufm.expected._solved", None)  # nothing is solved
    counts = [5] * 20_000
    for decays, known in ((Decays(1e-6, 1e-9, 1e-3), True), (Decays(1.0, 1.0), loss == "focal" and nonnegative)):
        values = expected_at_minimum(counts, 20_000, decays, loss=loss, nonnegative=nonnegative)
        assert bool(values) == known
        assert set(values.values()) <= {0.0}


def test_many_equal_classes_under_squared_error_are_left_open():
    assert expected_at_minimum([5] * 20_000, 20_000, DECAYS, loss="mse") == {}


@pytest.mark.parametrize("loss", ["cross_entropy", "label_smoothing"])
@pytest.mark.parametrize("nonnegative", [False, True])
def test_the_closed_form_says_what_the_solved_minimum_says(loss, nonnegative):
    features = "nonnegative" if nonnegative else "real"
    for decay in (1e-3, 0.05, 0.1, 0.11, 0.12, 0.15, 0.2, 0.5):
        model = Model(4, 4, 5, decay, decay / 5, loss=loss, bias=False, features=features)
        alive = not math.isnan(minimizer_measures(model)["nc2"])
        found = expected_at_minimum([5] * 4, 4, Decays(decay, decay / 5), loss=loss, nonnegative=nonnegative)
        assert bool(found) == alive


def test_a_bias_without_decay_leaves_nc_bias_open():
    assert "nc_bias" not in expected_at_minimum(COUNTS, 6, Decays(0.01, 0.004, 0.0))
    assert "nc_bias" in expected_at_minimum([5] * 4, 6, None, bias=False)


@pytest.mark.parametrize(
    ("counts", "options"),
    [
        (COUNTS, {}),  # decays unknown
        ([5, 5, 0], {"decays": DECAYS}),
        (COUNTS, {"decays": DECAYS, "loss": "focal"}),
        (COUNTS, {"decays": DECAYS, "frame": "simplex"}),
        ([5] * 4, {"frame": "orthoplex"}),
        ([5] * 4, {"loss": "mse"}),
        ([5] * 4, {"decays": Decays(1.0, 1.0)}),  # everything collapses to zero
        ([5] * 1500 + [6], {"decays": Decays(1e-4, 1e-5)}),
        (range(1, 402), {"decays": Decays(1e-4, 1e-5)}),
        ([5] * 50 + [6], {"decays": Decays(1e-4, 1e-5), "nonnegative": True}),
        (COUNTS, {"decays": Decays(1e-200, 1e-200)}),
    ],
)
def test_nothing_is_raised_where_the_minimum_is_not_known(counts, options):
    assert expected_at_minimum(counts, 300, **options) == {}


def test_a_thousand_classes_are_known():
    values = expected_at_minimum([5] * 900 + [6] * 100, 1000, Decays(1e-3, 1e-6, 1e-3))
    assert 0 < values["nc2"] < 0.2


def test_a_fixed_simplex_that_the_features_reach_collapses():
    values = expected_at_minimum([5] * 4, 4, frame="simplex")
    assert values["nc1"] == values["nc2_means"] == values["nc3"] == 0


@pytest.mark.parametrize(
    ("features", "module", "name"), [("real", minimizers, "solve"), ("nonnegative", nonnegative, "_solve")]
)
def test_certificate_and_measures_solve_once(monkeypatch, features, module, name):
    solved = []
    solve = inspect.unwrap(getattr(module, name))
    monkeypatch.setattr(
        module, name, keeps_the_last(lambda model, **others: solved.append(model) or solve(model, **others))
    )
    for weight_decay in (0.01, 0.02):
        model = Model(4, 9, COUNTS, weight_decay, 0.004, 0.5, features=features)
        global_minimum(model)
        minimizer_measures(model)
    assert len(solved) == 2


@pytest.mark.parametrize(("num_classes", "dim", "draws"), [(3, 16, 400), (4, 3, 400), (10, 9, 200), (10, 128, 100)])
def test_untrained_heads_are_as_expected(num_classes, dim, draws):
    torch.manual_seed(0)
    expected, total = untrained_measures(num_classes, dim), {}
    for _ in range(draws):
        weight = torch.nn.Linear(dim, num_classes).weight.detach()
        means = torch.randn(num_classes, dim, dtype=torch.float64)
        values = nc.measures(ClassMoments.from_means(torch.full((num_classes,), 2), means), weight)
        for name in expected:
            total[name] = total.get(name, 0.0) + values[name] / draws
    assert set(expected) == {"nc0", "nc2", "nc3", "nc3_distance"}
    assert total == pytest.approx(expected, rel=0.1 if draws < 400 else 0.07)


def test_what_is_off_for_two_classes_is_left_out():
    assert set(untrained_measures(2, 8)) == {"nc0", "nc3_distance"}
    assert "nc2" in untrained_measures(3, 16)


def test_a_fixed_frame_is_no_random_one():
    assert untrained_measures(10, 10, "simplex") == {
        "nc0": 0.0,
        "nc2": 0.0,
        "nc3": math.sqrt(2),
        "nc3_distance": math.sqrt(2),
    }
    assert "nc2" not in untrained_measures(10, 5, "orthoplex")
