import math
import warnings

import pytest
import torch

import neuralcollapse as nc
from neuralcollapse import InputError
from neuralcollapse.runs.head_lines import head_lines
from neuralcollapse.ufm import UnconstrainedFeatureModel, certify_head
from tests.ufm import oracles

Model = UnconstrainedFeatureModel
COUNTS = [6, 4, 3, 1]
WEIGHT_DECAY, FEATURE_DECAY = 0.01, 0.004


def head(noise=0.0, counts=COUNTS, bias=True, bias_decay=WEIGHT_DECAY, seed=0):
    """(features, labels, weight, bias) of the global minimiser of the model, plus noise."""
    decay = bias_decay if bias else 0.0
    model = Model(len(counts), 6, counts, WEIGHT_DECAY, FEATURE_DECAY, decay, bias)
    point = model.global_minimizer() + model.random_point(seed) * noise
    return point.H.T.contiguous(), model.columns.labels, point.W, point.b


@pytest.mark.parametrize("counts", [COUNTS, [3, 3, 3, 3]])
@pytest.mark.parametrize("bias", [True, False])
def test_the_optimal_head_has_ratio_one(counts, bias):
    found = nc.ufm.certify_head(*head(counts=counts, bias=bias), WEIGHT_DECAY)
    model = Model(4, 6, counts, WEIGHT_DECAY, FEATURE_DECAY, WEIGHT_DECAY if bias else 0.0, bias)
    assert found.feature_decay == pytest.approx(FEATURE_DECAY, rel=1e-6)
    assert found.weight_decay == WEIGHT_DECAY
    assert found.minimum == pytest.approx(model.global_minimum(), abs=1e-6)
    assert found.ratio == pytest.approx(1, abs=1e-8)
    assert found.gap <= 1e-6


@pytest.mark.parametrize("counts", [COUNTS, [3, 3, 3, 3]])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("noise", [1e-3, 0.03, 0.3, 1.0])
def test_noise_raises_the_ratio_and_the_bound_stays_below(counts, bias, noise):
    for seed in range(3):
        found = certify_head(*head(noise, counts, bias, seed=seed), WEIGHT_DECAY)
        assert found.lower_bound <= found.minimum + 1e-9
        assert found.minimum <= found.objective + 1e-12
        assert found.ratio >= 1
        assert found.ratio == pytest.approx(found.objective / found.minimum)
        assert found.gap == pytest.approx(found.objective - found.lower_bound)
        if noise <= 1e-3:
            assert found.ratio < 1.001
        if noise >= 0.3:
            assert found.ratio > 1.05


def test_the_objective_is_the_loops():
    features, labels, weight, bias = head(0.5)
    found = certify_head(features, labels, weight, bias, WEIGHT_DECAY, 0.007, bias_decay=0.3)
    arrays = weight.tolist(), features.T.tolist(), bias.tolist()
    expected = oracles.objective(*arrays, COUNTS, WEIGHT_DECAY, 0.007, 0.3, oracles.cross_entropy())
    assert found.objective == pytest.approx(expected, rel=1e-12)
    assert found.feature_decay == 0.007
    assert found.minimum == pytest.approx(Model(4, 6, COUNTS, WEIGHT_DECAY, 0.007, 0.3).global_minimum(), abs=1e-9)


def test_the_feature_decay_comes_from_the_balance():
    features, labels, weight, bias = head(0.5)
    found = certify_head(features, labels, weight, bias, WEIGHT_DECAY)
    assert found.feature_decay == pytest.approx(WEIGHT_DECAY * float(weight.square().sum() / features.square().sum()))


def test_the_bias_decays_like_the_weight_unless_told_otherwise():
    features, labels, weight, bias = head(0.5)
    plain = certify_head(features, labels, weight, bias, WEIGHT_DECAY)
    same = certify_head(features, labels, weight, bias, WEIGHT_DECAY, bias_decay=WEIGHT_DECAY)
    none = certify_head(features, labels, weight, bias, WEIGHT_DECAY, bias_decay=0.0)
    assert plain == same
    assert plain.objective - none.objective == pytest.approx(WEIGHT_DECAY / 2 * float(bias.square().sum()), rel=1e-9)


def test_the_order_of_samples_does_not_matter():
    features, labels, weight, bias = head(0.3)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    assert not labels[order].equal(labels)
    first = certify_head(features, labels, weight, bias, WEIGHT_DECAY)
    second = certify_head(features[order], labels[order], weight, bias, WEIGHT_DECAY)
    for name in ("objective", "minimum", "ratio", "lower_bound", "gap", "feature_decay"):
        assert getattr(second, name) == pytest.approx(getattr(first, name), abs=1e-9)


def test_single_precision_heads_and_small_integer_labels_are_accepted():
    features, labels, weight, bias = head(0.1)
    exact = certify_head(features, labels, weight, bias, WEIGHT_DECAY)
    single = certify_head(features.float(), labels.int(), weight.float(), bias.float(), WEIGHT_DECAY)
    assert single.ratio == pytest.approx(exact.ratio, rel=1e-5)
    assert single.ratio >= 1


def test_parameters_of_a_linear_layer_may_be_given_as_they_are():
    features, labels, _, _ = head(0.1)
    layer = torch.nn.Linear(6, 4, dtype=torch.float64)
    found = certify_head(features.requires_grad_(), labels, layer.weight, layer.bias, WEIGHT_DECAY)
    assert found.ratio > 1
    assert layer.weight.grad is None


def test_k_minus_1_dimensions_suffice():
    model = Model(4, 3, COUNTS, WEIGHT_DECAY, FEATURE_DECAY, WEIGHT_DECAY)
    point = model.global_minimizer()
    found = certify_head(point.H.T, model.columns.labels, point.W, point.b, WEIGHT_DECAY)
    assert found.ratio == pytest.approx(1, abs=1e-8)


def changed(**parts):
    features, labels, weight, bias = head(0.1)
    arguments = {"features": features, "labels": labels, "weight": weight, "bias": bias, "weight_decay": 0.01}
    return {name: parts[name](value) if name in parts else value for name, value in arguments.items()}


def infinite(tensor):
    tensor = tensor.clone()
    tensor.view(-1)[0] = math.nan
    return tensor


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (changed(labels=lambda y: torch.where(y == 3, 2, y)), r"classes \[3\] have no samples"),
        (changed(labels=lambda y: y[:-1]), "13 labels for 14 rows"),
        (changed(labels=lambda y: y[:, None]), r"labels of shape \(N,\), got \(14, 1\): use labels.squeeze"),
        (changed(labels=lambda y: y + 1), "labels from 0 to 3"),
        (changed(labels=lambda y: y - 1), "labels from 0 to 3"),
        (changed(labels=torch.Tensor.float), "integer labels"),
        (changed(features=lambda h: h[:, :5]), r"weight of shape \(K, d\) = \(4, 5\)"),
        (changed(features=lambda h: h[None]), r"features of shape \(N, d\)"),
        (changed(features=lambda h: h.long()), "floating-point features"),
        (changed(features=torch.zeros_like), "all features or all weights are zero"),
        (changed(weight=torch.zeros_like), "all features or all weights are zero"),
        (changed(features=infinite), "finite features"),
        (changed(weight=infinite), "finite weight"),
        (changed(bias=infinite), "finite bias"),
        (changed(weight=lambda w: w.T), "weight of shape"),
        (changed(weight=lambda w: w[0]), r"of shape \(K, d\)"),
        (changed(bias=lambda b: b[:3]), r"bias of shape \(K,\)"),
        (changed(features=lambda h: h[:, :2], weight=lambda w: w[:, :2]), r"d >= K-1 = 3, got d=2"),
        (changed(features=lambda h: h[:0], labels=lambda y: y[:0]), "no samples"),
        (changed(weight_decay=lambda _: 0.0), "weight_decay to be positive"),
        (changed(weight_decay=lambda _: -0.01), "decay"),
    ],
)
def test_heads_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        certify_head(**arguments)


@pytest.mark.parametrize("decay", [0.0, -1.0, math.nan])
def test_a_feature_decay_that_is_not_positive_is_refused(decay):
    with pytest.raises(InputError, match="feature_decay"):
        certify_head(*head(0.1), WEIGHT_DECAY, decay)


def test_zero_decay_names_the_decay_that_was_given():
    with pytest.raises(InputError, match="weight_decay"):
        certify_head(*head(0.1), 0.0)


def test_zero_features_with_a_given_decay_are_a_point_like_any_other():
    features, labels, weight, bias = head(0.1)
    found = certify_head(torch.zeros_like(features), labels, weight, bias, WEIGHT_DECAY, FEATURE_DECAY)
    assert found.ratio > 1


def positive_head(noise=0.0, counts=COUNTS, dim=6, bias=True):
    """(features, labels, weight, bias) of the minimiser with features >= 0, plus noise that keeps them so."""
    decay = WEIGHT_DECAY if bias else 0.0
    model = Model(len(counts), dim, counts, WEIGHT_DECAY, FEATURE_DECAY, decay, bias, features="nonnegative")
    point = model.global_minimizer() + model.random_point(1) * noise
    return point.H.T.contiguous(), model.columns.labels, point.W, point.b


@pytest.mark.parametrize("bias", [True, False])
def test_features_at_least_zero_are_compared_with_their_own_minimum(bias):
    best = certify_head(*positive_head(bias=bias), WEIGHT_DECAY)
    assert (best.nonnegative, best.exact, best.floor) == (True, True, False)
    assert best.ratio == pytest.approx(1, abs=1e-8)
    assert best.gap <= 1e-8
    real = certify_head(*positive_head(bias=bias), WEIGHT_DECAY, features_sign="real")
    assert (real.nonnegative, real.exact, real.floor) == (False, True, False)
    assert real.ratio > 1.05  # a floor that features >= 0 cannot reach
    assert real.objective == best.objective
    found = certify_head(*positive_head(0.1, bias=bias), WEIGHT_DECAY)
    assert found.lower_bound < found.minimum < found.objective
    same = certify_head(*positive_head(0.1, bias=bias), WEIGHT_DECAY, features_sign="nonnegative")
    assert same == found


def test_one_negative_feature_makes_the_model_real():
    features, labels, weight, bias = positive_head(0.1)
    features[3, 2] = -1e-9
    assert not certify_head(features, labels, weight, bias, WEIGHT_DECAY).nonnegative
    with pytest.raises(InputError, match="expected features >= 0, got 1 negative entries"):
        certify_head(features, labels, weight, bias, WEIGHT_DECAY, features_sign="nonnegative")


def test_with_k_minus_1_dimensions_the_minimum_is_a_floor():
    features, labels, weight, bias = positive_head(0.1)
    parts = features[:, :3], labels, weight[:, :3], bias
    for found in (certify_head(*parts, WEIGHT_DECAY), certify_head(*parts, WEIGHT_DECAY, features_sign="nonnegative")):
        assert (found.nonnegative, found.floor) == (False, True)
        assert "a floor" in repr(found)
    assert not certify_head(parts[0] - 1, *parts[1:], WEIGHT_DECAY).floor


def test_from_moments_the_sign_is_given():
    features, labels, weight, bias = positive_head(0.1)
    moments = nc.ClassMoments.from_batch(features, labels, 4)
    loss = float(torch.nn.functional.cross_entropy(features @ weight.T + bias, labels))
    expected = certify_head(features, labels, weight, bias, WEIGHT_DECAY)
    arguments = (moments, loss, weight, bias, WEIGHT_DECAY)
    found = nc.ufm.certify_head_moments(*arguments, features_sign="nonnegative")
    assert found.nonnegative
    for name in ("objective", "minimum", "ratio", "feature_decay", "bias_decay"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-9)
    assert not nc.ufm.certify_head_moments(*arguments).nonnegative
    as_torch_gives_it = nc.ufm.certify_head_moments(moments, torch.tensor(loss), *arguments[2:])
    assert as_torch_gives_it.objective == pytest.approx(expected.objective, rel=1e-6)
    with pytest.raises(InputError, match="moments do not show the sign"):
        nc.ufm.certify_head_moments(*arguments, features_sign="auto")
    with pytest.raises(InputError, match="no features_sign 'positive'"):
        certify_head(features, labels, weight, bias, WEIGHT_DECAY, features_sign="positive")


def test_an_inexact_minimum_is_an_upper_bound_and_says_so():
    counts = [1859, 1118, 19, 3, 1, 1]
    model = Model(6, 6, counts, 5e-4, 5e-3, 5e-4, features="nonnegative")
    point = nc.ufm.minimum_bounds(model).point
    found = certify_head(point.H.T.contiguous(), model.columns.labels, point.W, point.b, 5e-4, 5e-3)
    assert (found.nonnegative, found.exact) == (True, False)
    assert found.record()["exact"] == 0
    assert found.ratio == pytest.approx(1, abs=1e-9)
    assert "minimum of at most" in repr(found)
    assert "may fall below 1" in repr(found)


def test_a_head_certificate_reads_in_three_lines():
    found = certify_head(*positive_head(0.1), WEIGHT_DECAY, FEATURE_DECAY)
    assert repr(found).splitlines() == [
        "HeadCertificate(model  cross-entropy, K = 4, d = 6, 1 to 6 samples a class, features >= 0, bias; decay of "
        "weight 0.01 (given), features 0.004 (given), bias 0.01 (as for the weight)",
        f"  ratio  {found.ratio:.4g}: objective {found.objective:.6g}, exact minimum {found.minimum:.6g}",
        f"  bound  {found.lower_bound:.6g}, proved from the head's own logits: the minimum is not below it)",
    ]
    real = certify_head(*head(0.1, [3] * 4, bias=False), WEIGHT_DECAY)
    assert (
        repr(real)
        .splitlines()[0]
        .endswith(
            "3 samples a class, real features, no bias; decay of weight 0.01 (given), "
            f"features {real.feature_decay:.4g} (from the balance)"
        )
    )


def test_a_record_holds_numbers_alone_and_old_ones_are_still_read():
    record = certify_head(*positive_head(0.1), WEIGHT_DECAY).record()
    assert {type(value) for value in record.values()} == {int, float}
    assert {"objective", "minimum", "ratio", "lower_bound", "weight_decay", "feature_decay", "bias_decay"} < set(record)
    assert (record["nonnegative"], record["exact"]) == (1, 1)
    old = {name: record[name] for name in ("objective", "minimum", "ratio", "lower_bound")}  # of version 0.1.0
    lines = head_lines(old)
    assert lines[0] == "model  cross-entropy, real features"
    assert lines[1:] == head_lines(record)[1:]


@pytest.mark.parametrize("decay", [1e-8, 1e-5, 1.0])
@pytest.mark.parametrize("counts", [[6, 6, 6], [9, 4, 2]], ids=["equal", "unequal"])
def test_the_exact_minimiser_as_a_head_has_ratio_one_at_any_decay(decay, counts):
    model = nc.ufm.UnconstrainedFeatureModel(3, 4, counts, decay, decay / 7, decay)
    best = model.global_minimizer()
    certificate = nc.ufm.certify_head(
        best.H.T, model.columns.labels, best.W, best.b, decay, decay / 7, bias_decay=decay
    )
    assert certificate.ratio == pytest.approx(1, abs=1e-9)
    assert certificate.gap <= 1e-7 * certificate.objective
    assert certificate.lower_bound <= certificate.minimum * (1 + 1e-9)


@pytest.mark.parametrize("sign", ["real", "nonnegative"])
def test_no_array_has_an_entry_for_each_sample_in_the_certificate_from_moments(sign):
    moments = nc.ClassMoments.from_means(torch.full((4,), 10**11), torch.eye(4, 6, dtype=torch.float64))
    found = nc.ufm.certify_head_moments(
        moments, math.log(math.e + 3) - 1, torch.eye(4, 6), torch.zeros(4), 0.01, features_sign=sign
    )
    assert found.exact
    assert found.ratio > 1
    assert found.lower_bound == pytest.approx(found.minimum)  # the logits have the symmetry of the optimum


def test_a_ratio_below_one_never_stands_without_words():
    record = certify_head(*positive_head(0.1), WEIGHT_DECAY).record()
    assert "below 1" not in head_lines(record)[1]
    rounded = head_lines(record | {"ratio": 0.9991})[1]
    assert rounded.endswith(
        "(below 1: the loss was measured with few digits, or is not the cross-entropy of this head)"
    )
    assert "below 1" not in head_lines(record | {"ratio": 1 - 1e-7})[1]  # which reads 1


@pytest.mark.parametrize("made", [head, positive_head])
def test_slow_certificates_are_announced(made, monkeypatch):
    monkeypatch.setattr("neuralcollapse.ufm.head._SLOW", 3)
    monkeypatch.setattr("neuralcollapse.ufm.head._SLOW_DESCENTS", range(4, 5))
    with pytest.warns(nc.NeuralCollapseWarning, match="for 4 classes with 4 different counts may take the solver"):
        certify_head(*made(0.1), WEIGHT_DECAY)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        certify_head(*made(0.1, [3] * 4), WEIGHT_DECAY)
