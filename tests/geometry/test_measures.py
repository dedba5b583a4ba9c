"""Every measure equals brute force and the stored vectors, keeps its invariances, and says when it is undefined."""

import contextlib
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralcollapse.errors import InputError, NeuralCollapseWarning, Undefined
from neuralcollapse.geometry import formulas, pairs
from neuralcollapse.geometry import measures as measures_module
from neuralcollapse.geometry.frames import orthoplex, simplex_etf
from neuralcollapse.geometry.measures import CLASSIFIER_MEASURES, FEATURE_MEASURES, PAIRWISE_MEASURES, measures
from neuralcollapse.geometry.moments import ClassMoments
from neuralcollapse.heads.etf import ETFClassifier
from tests import oracles

CASES = oracles.vector_cases()
MEASURES = FEATURE_MEASURES + CLASSIFIER_MEASURES
OF_MEANS = {*FEATURE_MEASURES, "nc3", "nc3_distance"}
ANGLES_OF_WEIGHTS = {"equiangularity_weights", "max_equiangularity_weights"}
SEEDS = st.integers(0, 2**32 - 1)
# (d, samples of each class); K=2, K <= d, K = d+1, K > d+1, balanced or not, classes of one sample.
SHAPES = [
    (3, (4, 9)),
    (1, (5, 5)),
    (2, (5, 1, 8)),
    (3, (6, 6, 6)),
    (20, (7, 2, 3, 11)),
    (64, tuple(range(1, 11))),
    (4, (3,) * 12),
    (1, (2, 4, 3)),
]


def shape_id(shape):
    return f"K{len(shape[1])}-d{shape[0]}"


def problem(dim, counts, seed=0, offset=0.0):
    """float64 features and labels in random order, and a classifier (W, b) near the class means."""
    rng = np.random.default_rng(seed)
    means = rng.standard_normal((len(counts), dim))
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    features = means[labels] + 0.3 * rng.standard_normal((len(labels), dim)) + offset
    return features, labels, means + 0.1 * rng.standard_normal(means.shape), rng.standard_normal(len(counts))


def moments_of(features, labels, num_classes):
    return ClassMoments.from_batch(torch.as_tensor(features), torch.as_tensor(labels), num_classes)


def measured(features, labels, weight, bias=None):
    """`measures` of the given data, asking for the warning that K > d+1 gives."""
    num_classes, dim = weight.shape
    floor = num_classes > dim + 1
    with pytest.warns(NeuralCollapseWarning, match="cannot go below") if floor else contextlib.nullcontext():
        return measures(
            moments_of(features, labels, num_classes),
            torch.as_tensor(weight),
            None if bias is None else torch.as_tensor(bias),
        )


def assert_values(got, expected, rel=1e-6):
    """Relative, and absolute where the expected value is zero but for rounding."""
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, rel=rel, abs=1e-9 if abs(value) < 1e-12 else 0), name


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"K{case.num_classes}-d{case.dim}-noise{case.noise:g}")
@settings(deadline=None, max_examples=20)
@given(cuts=st.lists(st.floats(0, 1), max_size=6), seed=SEEDS)
def test_the_stored_vectors_are_met_in_any_batches_and_merge_order(case, cuts, seed):
    features, labels, weight, bias = case.data()
    moments = oracles.split_and_merge(lambda *part: moments_of(*part, case.num_classes), features, labels, cuts, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NeuralCollapseWarning)
        values = measures(moments, torch.from_numpy(weight), torch.from_numpy(bias))
    predicted = torch.from_numpy(oracles.predictions(features, weight, bias))
    values["nc4"] = formulas.nc4_disagreements(torch.from_numpy(features), predicted, moments) / len(labels)
    assert_values({name: values[name] for name in case.expected}, case.expected)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"seed{case.seed}")
def test_the_oracle_meets_the_stored_vectors_too(case):
    features, labels, weight, bias = case.data()
    values = oracles.measures(features, labels, case.num_classes, weight, bias)
    known = {name: value for name, value in case.expected.items() if name != "nc4"}
    assert_values({name: values[name] for name in known}, known, rel=1e-9)
    given = oracles.moments(features, labels, case.num_classes)
    predicted = oracles.predictions(features, weight, bias)
    disagreements = oracles.nc4_disagreements(features, predicted, given.means, given.counts)
    assert disagreements / len(labels) == case.expected["nc4"]


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("offset", [0.0, 50.0])
@pytest.mark.parametrize(("dim", "counts"), SHAPES, ids=str)
def test_every_measure_equals_brute_force(dim, counts, offset, with_bias):
    features, labels, weight, bias = problem(dim, counts, offset=offset)
    bias = bias if with_bias else None
    expected = oracles.measures(features, labels, len(counts), weight, bias)
    assert set(expected) == set(MEASURES)
    assert_values(measured(features, labels, weight, bias), expected, rel=1e-9)


def test_each_measure_alone_gives_what_all_together_give():
    features, labels, weight, bias = map(torch.from_numpy, problem(6, (4, 5, 6, 7)))
    moments = moments_of(features, labels, 4)
    means = formulas.centred_means(moments)
    alone = {
        "nc1": formulas.nc1(moments),
        "nc1_quotient": formulas.nc1_quotient(moments),
        "nc1_cdnv": pairs.nc1_cdnv(moments),
        "nc2": formulas.nc2(weight),
        "nc2_means": formulas.nc2(means),
        "nc3": formulas.nc3(weight, means),
        "nc3_distance": formulas.nc3_distance(weight, means),
        "nc0": formulas.nc0(weight),
        "nc_bias": formulas.nc_bias(moments, weight, bias),
        "nc_bias_centered": formulas.nc_bias_centered(moments, weight, bias),
        "equinorm_means": formulas.equinorm(means),
        "equinorm_weights": formulas.equinorm(weight),
        "equiangularity_means": formulas.equiangularity(means),
        "equiangularity_weights": formulas.equiangularity(weight),
        "max_equiangularity_means": pairs.max_equiangularity(means),
        "max_equiangularity_weights": pairs.max_equiangularity(weight),
    }
    assert_values(alone, measures(moments, weight, bias), rel=1e-12)
    assert all(type(value) is float for value in alone.values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_classifier_of_any_precision_is_measured_in_float64(dtype):
    features, labels, weight, bias = map(torch.from_numpy, problem(6, (4, 5, 6)))
    weight, bias = weight.to(dtype).requires_grad_(), bias.to(dtype)
    expected = oracles.measures(features, labels, 3, weight.detach().double(), bias.double())
    assert_values(measures(moments_of(features, labels, 3), weight, bias), expected, rel=1e-9)


def test_parts_not_asked_for_are_left_out():
    features, labels, weight, bias = map(torch.from_numpy, problem(6, (4, 5, 6)))
    moments = moments_of(features, labels, 3)
    everything = measures(moments, weight, bias)
    assert set(everything) == set(MEASURES)
    assert set(measures(moments)) == set(FEATURE_MEASURES)
    without_pairs = measures(moments, weight, bias, pairwise=False)
    assert set(without_pairs) == set(MEASURES) - set(PAIRWISE_MEASURES)
    assert without_pairs == {name: everything[name] for name in without_pairs}
    assert set(measures(moments, pairwise=False)) == set(FEATURE_MEASURES) - set(PAIRWISE_MEASURES)


def rotated(rng, features, labels, weight, bias):
    turn = np.linalg.qr(rng.standard_normal((features.shape[1],) * 2))[0]
    return features @ turn, labels, weight @ turn, bias


def scaled(rng, features, labels, weight, bias):
    return features * rng.uniform(0.01, 100), labels, weight * rng.uniform(0.01, 100), bias


def translated(rng, features, labels, weight, bias):
    return features + 10 * rng.standard_normal(features.shape[1]), labels, weight, bias


def renamed(rng, features, labels, weight, bias):
    order = rng.permutation(len(weight))
    return features, np.argsort(order)[labels], weight[order], bias[order]


def logits_shifted(rng, features, labels, weight, bias):
    return features, labels, weight, bias + rng.standard_normal()


@pytest.mark.parametrize(
    ("change", "affected"),
    [
        (rotated, set()),
        (renamed, set()),
        (scaled, {"nc_bias", "nc_bias_centered"}),
        (translated, {"nc_bias", "nc_bias_centered"}),
        (logits_shifted, {"nc_bias"}),
    ],
)
@settings(deadline=None, max_examples=50)
@given(shape=st.sampled_from(SHAPES), seed=SEEDS)
def test_measures_are_invariant(change, affected, shape, seed):
    parts = problem(*shape, seed=seed)
    before = measured(*parts)
    after = measured(*change(np.random.default_rng(seed), *parts))
    for name in affected:
        assert after.pop(name) != pytest.approx(before.pop(name), rel=1e-9)
    assert_values(after, before)


@pytest.mark.parametrize(("num_classes", "dim"), [(2, 1), (3, 2), (4, 4), (10, 64)])
def test_collapsed_features_measure_zero(num_classes, dim):
    frame = simplex_etf(num_classes, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.arange(num_classes).repeat(5)
    offset = torch.linspace(-1, 2, dim, dtype=torch.float64)
    features, weight = 3 * frame[labels] + offset, 0.7 * frame
    values = measures(moments_of(features, labels, num_classes), weight, -weight @ offset)
    assert set(values) == set(MEASURES)
    for name, value in values.items():
        assert 0 <= value < 1e-12, name
    predicted = (features @ weight.T - weight @ offset).argmax(1)
    assert formulas.nc4_disagreements(features, predicted, moments_of(features, labels, num_classes)) == 0


@pytest.mark.parametrize("tile", [1, 3, 100])
@pytest.mark.parametrize("shape", [(64, (3,) * 10), (10, (2,) * 64), (9, (3,) * 10), (10, (3,) * 10)], ids=shape_id)
def test_the_paths_for_large_matrices_equal_the_small_ones(shape, tile, monkeypatch):
    parts = problem(*shape, offset=5.0)
    expected = measured(*parts)
    monkeypatch.setattr("neuralcollapse.geometry.matrix._EXACT_SVD", 1)
    monkeypatch.setattr("neuralcollapse.geometry.matrix._TILE", tile)
    monkeypatch.setattr(torch.linalg, "svd", None)  # a call would fail
    assert_values(measured(*parts), expected, rel=1e-8)


def ill_conditioned(least):
    """Class means in nine directions, the strengths of which fall from 1 to `least`."""
    rng = np.random.default_rng(0)
    means = np.zeros((10, 20))
    means[1:, :9] = np.diag(np.geomspace(1, least, 9))
    labels = np.repeat(np.arange(10), 6)
    return means[labels] + 1e-3 * least * rng.standard_normal((60, 20)), labels


@pytest.mark.parametrize(("least", "by_svd"), [(1e-3, False), (1e-6, True)])
def test_a_gram_matrix_too_ill_conditioned_falls_back_to_the_svd(least, by_svd, monkeypatch):
    features, labels = ill_conditioned(least)
    calls = []
    svd = torch.linalg.svd
    monkeypatch.setattr("neuralcollapse.geometry.matrix._EXACT_SVD", 1)
    monkeypatch.setattr(torch.linalg, "svd", lambda *args, **options: calls.append(args) or svd(*args, **options))
    value = formulas.nc1(moments_of(features, labels, 10))
    assert bool(calls) == by_svd
    assert value == pytest.approx(oracles.nc1(features, labels, 10), rel=1e-7)


def test_classes_much_nearer_to_each_other_than_to_the_rest_keep_their_distance():
    rng = np.random.default_rng(0)
    means = rng.standard_normal((4, 6))
    means[1] = means[0] + 1e-6 * rng.standard_normal(6)
    labels = np.repeat(np.arange(4), 10)
    features = means[labels] + 1e-7 * rng.standard_normal((40, 6))
    values = measures(moments_of(features, labels, 4))
    assert_values(values, oracles.measures(features, labels, 4), rel=1e-6)


def test_class_means_that_barely_differ_are_no_rounding():
    features, labels, weight, bias = problem(6, (4, 5, 6))
    features = 1 + 1e-8 * features
    assert_values(measured(features, labels, weight, bias), oracles.measures(features, labels, 3, weight, bias))


def with_equal_means(offset, shuffled):
    """Classes 0 and 1 hold the same samples, so the means of four classes span two directions, not three."""
    rng = np.random.default_rng(0)
    samples = rng.standard_normal((50, 16)) + offset
    again = samples[rng.permutation(50)] if shuffled else samples
    shifts = 3 * rng.standard_normal((2, 16))
    return np.concatenate([samples, again, samples + shifts[0], samples + shifts[1]]), np.repeat(np.arange(4), 50)


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("offset", [0.0, 100.0, 1e4])
@pytest.mark.parametrize("exact_svd", [512, 1])
def test_nc1_keeps_no_direction_that_is_rounding(exact_svd, offset, shuffled, monkeypatch):
    monkeypatch.setattr("neuralcollapse.geometry.matrix._EXACT_SVD", exact_svd)
    features, labels = with_equal_means(offset, shuffled)
    assert formulas.nc1(moments_of(features, labels, 4)) == pytest.approx(oracles.nc1(features, labels, 4), rel=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.1, 100.1])
@pytest.mark.parametrize("exact_svd", [512, 1])
def test_nc1_of_more_classes_than_dimensions_ignores_a_constant_feature(exact_svd, value, monkeypatch):
    monkeypatch.setattr("neuralcollapse.geometry.matrix._EXACT_SVD", exact_svd)
    features, labels, *_ = problem(4, (3, 7, 5) * 4)
    wider = np.hstack([features, np.full((len(labels), 1), value)])
    assert formulas.nc1(moments_of(wider, labels, 12)) == pytest.approx(oracles.nc1(features, labels, 12), rel=1e-6)


def warned(features, labels, weight, bias=None):
    """Values and the texts of the warnings; every NaN must be named in one of them."""
    with pytest.warns(NeuralCollapseWarning) as record:
        values = measures(moments_of(features, labels, len(weight)), torch.as_tensor(weight), bias)
    assert {warning.category for warning in record} == {NeuralCollapseWarning}
    texts = [str(warning.message) for warning in record]
    reasons = "; ".join(text for text in texts if text.startswith("undefined (NaN): "))
    named = {name for name in MEASURES if name in reasons.replace(",", "").replace(";", "").split()}
    assert named == {name for name, value in values.items() if math.isnan(value)}
    return values, named, texts


def assert_only_undefined(data, undefined, reason):
    """Exactly these measures are NaN, for this one reason; the others equal brute force."""
    features, labels, weight = data
    values, named, texts = warned(*data)
    assert named == undefined
    assert len(texts) == 1
    assert reason in texts[0]
    if undefined >= OF_MEANS:
        return
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = oracles.measures(features, labels, len(weight), weight)
    defined = expected.keys() - named
    assert_values({name: values[name] for name in defined}, {name: expected[name] for name in defined})


def test_one_class_alone_has_no_spread_between_classes():
    features, _, weight, _ = problem(4, (3, 3, 3))
    values, named, texts = warned(features, np.full(9, 2), weight)
    assert named == OF_MEANS | ANGLES_OF_WEIGHTS | {"nc2"}
    assert (
        "no samples of classes 0, 1: measured over the 1 class seen (W cut to their rows, a simplex of as many)"
        in texts
    )
    assert any("only class 2 has samples" in text and "nc1, " in text for text in texts)
    assert values["nc_bias"] == pytest.approx(abs(weight[2] @ features.mean(0)))


def test_no_samples_leave_everything_undefined():
    _, named, texts = warned(np.zeros((0, 4)), np.zeros(0, dtype=int), np.ones((3, 4)))
    assert named == set(MEASURES)
    assert any("no samples were seen" in text and "nc_bias" in text for text in texts)


@pytest.mark.parametrize("counts", [(7, 7, 7), (3, 7, 11)])
@pytest.mark.parametrize("value", [0.0, 1.0, 0.1])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_identical_features_have_no_spread_between_classes(dtype, value, counts):
    labels = np.repeat(np.arange(3), counts)
    data = np.full((21, 4), value, dtype=dtype), labels, np.eye(3, 4)[::-1] + 0.1
    assert_only_undefined(data, OF_MEANS, "all class means coincide")


SAME_MEAN = "classes 0 and 1 have the same mean"


# Off the origin these means differ by rounding: a sum of three and one of seven do not round alike.
@pytest.mark.parametrize("offset", [0.0, 0.1, 100.1, 1e4])
def test_two_classes_with_the_same_mean_lack_only_cdnv(offset):
    labels = np.repeat(np.arange(4), (3, 7, 4, 5))
    features = np.array([[-1.0, 0, 0], [-1.0, 0, 0], [2.0, 1, 0], [0, 1.5, 3]])[labels] + offset
    features[10:, 0] += np.linspace(-0.5, 0.5, 9)
    weight = np.random.default_rng(0).standard_normal((4, 3))
    assert_only_undefined((features, labels, weight), {"nc1_cdnv"}, SAME_MEAN)


@pytest.mark.parametrize("shuffled", [False, True])
def test_two_classes_of_the_same_samples_lack_only_cdnv(shuffled):
    weight = np.random.default_rng(0).standard_normal((4, 16))
    assert_only_undefined((*with_equal_means(100.0, shuffled), weight), {"nc1_cdnv"}, SAME_MEAN)


@pytest.mark.parametrize("noise", [0.0, 1.0])
@pytest.mark.parametrize("offset", [0.0, 0.1, 100.0])
def test_a_mean_equal_to_the_global_mean_has_no_angle(offset, noise):
    rng = np.random.default_rng(0)
    samples = noise * rng.standard_normal((50, 6)) + offset
    features = np.concatenate([samples - np.arange(6), samples, samples + np.arange(6)])
    labels, weight = np.repeat(np.arange(3), 50), rng.standard_normal((3, 6))
    undefined = {"equiangularity_means", "max_equiangularity_means"}
    assert_only_undefined((features, labels, weight), undefined, "vectors of zero length have no direction (class 1)")


def test_a_zero_weight_has_no_geometry():
    features, labels, weight, _ = problem(6, (4, 5, 6))
    _, named, texts = warned(features, labels, 0 * weight)
    assert named == {"nc2", "nc3", "nc3_distance", "nc0", "equinorm_weights"} | ANGLES_OF_WEIGHTS
    assert all("zero" in text for text in texts)


def test_a_zero_row_of_the_weight_lacks_only_its_angles():
    features, labels, weight, _ = problem(6, (4, 5, 6))
    weight[1] = 0
    assert_only_undefined((features, labels, weight), ANGLES_OF_WEIGHTS, "(class 1)")


@settings(deadline=None, max_examples=50)
@given(shape=st.sampled_from([(2, 1), (3, 2), (4, 9), (10, 3)]), seed=SEEDS, offset=st.sampled_from([0.0, 0.1, 3.0]))
def test_nc2_cannot_fall_below_what_the_rows_have_in_common(shape, seed, offset):
    rows = np.random.default_rng(seed).standard_normal(shape) + offset
    total, gram = rows.sum(0), rows @ rows.T
    bound = total @ total / (len(rows) * np.linalg.norm(gram))
    found, common = formulas.nc2(torch.from_numpy(rows)), formulas.nc0(torch.from_numpy(rows))
    assert found * (1 + 1e-9) + 1e-12 >= bound >= common * (1 - 1e-9) >= 0
    assert common <= 1


def test_nc0_is_0_for_a_simplex_1_for_equal_rows_and_about_1_in_k_for_random_ones():
    for frame in (simplex_etf(6, 16), orthoplex(6, 16), ETFClassifier(16, 6, rotation="fast").weight):
        assert formulas.nc0(frame) < 1e-13  # the rounding of float32, squared
    assert formulas.nc0(torch.ones(5, 3)) == pytest.approx(1, abs=1e-15)
    assert formulas.nc0(torch.randn(20, 50_000, generator=torch.Generator().manual_seed(0))) == pytest.approx(
        1 / 20, rel=0.02
    )


@pytest.mark.parametrize("size", [1e-300, 1e300])
def test_nc0_does_not_depend_on_the_size_of_the_weight(size):
    weight = torch.from_numpy(problem(6, (4, 5, 6))[2])
    assert formulas.nc0(size * weight) == pytest.approx(formulas.nc0(weight), rel=1e-12)


ZERO, ONE = torch.zeros(3, 2), torch.ones(1, 2)
NO_SAMPLES = ClassMoments.zeros(3, 2)


@pytest.mark.parametrize(
    ("measure", "args", "reason"),
    [
        (formulas.nc1, (NO_SAMPLES,), "no samples were seen"),
        (formulas.nc1_quotient, (NO_SAMPLES,), "no samples were seen"),
        (pairs.nc1_cdnv, (NO_SAMPLES,), "no samples were seen"),
        (formulas.nc_bias, (NO_SAMPLES, ZERO), "no samples were seen"),
        (formulas.nc_bias_centered, (NO_SAMPLES, ZERO), "no samples were seen"),
        (formulas.nc2, (ONE,), "one class"),
        (formulas.nc2, (ZERO,), "zero"),
        (formulas.nc2, (torch.zeros(5, 2),), "zero"),
        (formulas.nc3, (ZERO, torch.ones(3, 2)), "zero"),
        (formulas.nc3_distance, (torch.ones(3, 2), ZERO), "zero"),
        (formulas.nc0, (ZERO,), "zero"),
        (formulas.equinorm, (ZERO,), "zero"),
        (formulas.equiangularity, (ONE,), "one class"),
        (formulas.equiangularity, (ZERO,), "zero"),
        (formulas.equiangularity, (torch.eye(5, 2),), r"zero .*\(number 2, 3, 4\)"),
        (pairs.max_equiangularity, (ONE,), "one class"),
        (pairs.max_equiangularity, (ZERO,), "zero"),
    ],
)
def test_a_measure_asked_for_alone_says_why_it_is_undefined(measure, args, reason):
    with pytest.raises(Undefined, match=reason):
        measure(*args)


def test_centred_means_are_those_of_the_classes_seen():
    features, labels, *_ = problem(4, (3, 3, 3))
    kept = labels != 1
    given = oracles.moments(features[kept], labels[kept], 3)
    means = formulas.centred_means(moments_of(features[kept], labels[kept], 3))
    np.testing.assert_allclose(means.numpy(), given.means[[0, 2]] - given.global_mean, rtol=0, atol=1e-12)


def test_no_centred_means_without_two_classes():
    with pytest.raises(InputError, match="no centred class means: no samples were seen"):
        formulas.centred_means(NO_SAMPLES)


def test_unseen_classes_are_named_and_left_out():
    features, labels, weight, bias = problem(9, (4, 5, 6, 7))
    names, spread = np.array([0, 2, 3, 6]), np.full((7, 9), 1e3)
    spread[names] = weight
    far = np.full(7, -1e3)
    far[names] = bias
    expected = measured(features, labels, weight, bias)
    with pytest.warns(NeuralCollapseWarning, match="^no samples of classes 1, 4, 5: measured over the 4 classes seen "):
        values = measured(features, names[labels], spread, far)
    assert_values(values, expected, rel=1e-12)


def test_many_unseen_classes_are_counted():
    features, labels, *_ = problem(4, (3, 3))
    with pytest.warns(NeuralCollapseWarning, match=r"no samples of classes 2, 3, .*\.\.\. \(98 in all\)"):
        measures(moments_of(features, labels, 100))


def test_more_classes_than_d_plus_1_give_values_and_a_warning_with_the_floor():
    # The corners of a regular pentagon are as near to a simplex ETF as five vectors in the plane can be.
    angles = 2 * math.pi * np.arange(5) / 5
    pentagon = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    floor = math.sqrt(2 - 2 * math.sqrt(2 / 4))
    twice = np.concatenate([pentagon, pentagon])
    with pytest.warns(NeuralCollapseWarning, match=rf"K=5 .*d=2 .*cannot go below {floor:.4f}"):
        values = measures(moments_of(twice, np.arange(10) % 5, 5), torch.from_numpy(pentagon))
    assert [values[name] for name in ("nc2", "nc2_means", "nc3")] == pytest.approx([floor] * 3, rel=1e-12)
    assert not any(map(math.isnan, values.values()))


def test_unseen_classes_do_not_count_towards_k_greater_than_d_plus_1():
    features, labels, *_ = problem(2, (4, 4, 4))
    with pytest.warns(NeuralCollapseWarning) as record:
        measures(moments_of(features, labels, 9))
    assert len(record) == 1


WEIGHT, BIAS = torch.ones(3, 4), torch.ones(3)


@pytest.mark.parametrize(
    ("weight", "bias", "message"),
    [
        (WEIGHT.T, BIAS, r"expected weight of shape \(K, d\) = \(3, 4\), got \(4, 3\): transpose it"),
        (torch.ones(3, 5), BIAS, r"expected weight of shape \(K, d\) = \(3, 4\), got \(3, 5\): "),
        (torch.ones(4), BIAS, r"expected weight .*\(3, 4\), got \(4,\): "),
        (WEIGHT.long(), BIAS, r"expected weight .*floating-point .*got torch\.int64"),
        (WEIGHT.numpy(), BIAS, "expected weight .*Tensor, got ndarray"),
        (WEIGHT / 0, BIAS, "expected finite weight, got 12 .*in 3 rows"),
        (None, BIAS, "expected a weight beside the bias, got none: pass weight"),
        (WEIGHT, torch.ones(4), r"expected bias of shape \(K,\) = \(3,\), got \(4,\)"),
        (WEIGHT, BIAS[:, None], r"expected bias .*\(3,\), got \(3, 1\)"),
        (WEIGHT, BIAS.long(), r"expected bias .*floating-point .*got torch\.int64"),
        (WEIGHT, [1.0, 1.0, 1.0], "expected bias .*Tensor, got list"),
        (WEIGHT, BIAS * torch.nan, "expected finite bias, got 3 "),
    ],
)
def test_a_classifier_that_does_not_fit_is_refused(weight, bias, message):
    features, labels, *_ = problem(4, (3, 3, 3))
    with pytest.raises(InputError, match=message):
        measures(moments_of(features, labels, 3), weight, bias)


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nc4_counts_the_predictions_that_are_not_the_nearest_mean(dtype, offset):
    features, labels, *_ = problem(3, (40, 1, 60, 20), offset=offset)
    features, names = features.astype(dtype), np.array([0, 1, 3, 5])  # classes 2 and 4 have no samples
    moments = moments_of(features, names[labels], 6)
    predicted = np.random.default_rng(1).permutation(names[labels])
    expected = oracles.nc4_disagreements(features, predicted, *(moments.means.numpy(), moments.counts.numpy()))
    assert 0 < expected < len(labels)
    got = formulas.nc4_disagreements(torch.from_numpy(features), torch.from_numpy(predicted), moments)
    assert got == expected


def test_a_bias_moves_predictions_away_from_the_nearest_mean():
    features, labels, weight, _ = problem(3, (40, 30, 60))
    moments = moments_of(features, labels, 3)
    counts = []
    for bias in (np.zeros(3), np.array([5.0, 0, 0])):
        predicted = oracles.predictions(features, weight, bias)
        counts.append(formulas.nc4_disagreements(torch.from_numpy(features), torch.from_numpy(predicted), moments))
        assert counts[-1] == oracles.nc4_disagreements(
            features, predicted, moments.means.numpy(), moments.counts.numpy()
        )
    assert counts[0] < counts[1]


FEATURES, PREDICTED = torch.ones(6, 2), torch.zeros(6, dtype=torch.int64)


@pytest.mark.parametrize(
    ("features", "predicted", "seen"),
    [
        (FEATURES, PREDICTED[:, None], True),
        (FEATURES, PREDICTED[:5], True),
        (FEATURES, torch.ones(6, 3), True),
        (torch.ones(6, 3), PREDICTED, True),
        (FEATURES * torch.nan, PREDICTED, True),
        (FEATURES, PREDICTED, False),
    ],
    ids=["a column of predictions", "too few predictions", "logits", "another dimension", "NaN", "no class means"],
)
def test_nc4_refuses_what_does_not_fit(features, predicted, seen):
    moments = moments_of(*problem(2, (3, 3, 3))[:2], 3) if seen else NO_SAMPLES
    with pytest.raises(InputError):
        formulas.nc4_disagreements(features, predicted, moments)


@pytest.mark.parametrize("size", [1e-100, 1.0, 1e100])
def test_size_alone_changes_no_measure_of_float64_features(size):
    features, labels, weight, _ = problem(6, (4, 5, 6))
    plain = measures(moments_of(features, labels, 3), torch.as_tensor(weight))
    scaled = measures(moments_of(size * features, labels, 3), torch.as_tensor(weight))
    for name in ("nc1", "nc1_quotient", "nc1_cdnv", "nc2_means", "nc3", "nc3_distance", "equinorm_means"):
        assert scaled[name] == pytest.approx(plain[name], rel=1e-9), name


def test_lengths_whose_squares_underflow_are_compared_all_the_same():
    vectors = torch.tensor([[3.0, 4.0], [1.0, 0.0]], dtype=torch.float64)
    assert formulas.equinorm(1e-200 * vectors) == pytest.approx(2 / 3, rel=1e-12)


def test_a_classifier_that_is_trained_needs_no_detach():
    features, labels, weight, bias = problem(6, (4, 5, 6))
    head = [torch.nn.Parameter(torch.as_tensor(each)) for each in (weight, bias)]
    torch.set_warn_always(True)  # torch says it once a process
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert measures(moments_of(features, labels, 3), *head)["nc2"] > 0
    finally:
        torch.set_warn_always(False)


def test_values_that_overflow_are_undefined_and_say_so():
    features, labels, *_ = problem(6, (4, 5, 6))
    with pytest.warns(NeuralCollapseWarning, match="range of float64"):
        assert math.isnan(measures(moments_of(1e200 * features, labels, 3))["nc1"])


@pytest.mark.parametrize("vectors", [torch.randn(4), torch.ones(3, 4, dtype=torch.int64), [[1.0]]])
def test_vectors_of_a_wrong_kind_are_refused(vectors):
    for measure in (formulas.nc2, formulas.equinorm, formulas.equiangularity, pairs.max_equiangularity):
        with pytest.raises(InputError, match="expected vectors as a"):
            measure(vectors)


def test_weight_and_means_of_different_shapes_are_refused():
    for measure in (formulas.nc3, formulas.nc3_distance):
        with pytest.raises(InputError, match=r"got \(3, 4\) and \(2, 4\)"):
            measure(torch.randn(3, 4), torch.randn(2, 4))


def test_one_sample_in_every_class_warns_that_nc1_says_nothing():
    with pytest.warns(NeuralCollapseWarning, match="every class has one sample"):
        assert measures(moments_of(np.eye(3), np.arange(3), 3))["nc1"] == 0


def test_clustered_classes_cost_cdnv_no_more_memory_than_a_tile():
    torch.manual_seed(0)
    sides = torch.tensor([1.0, -1.0]).repeat(300)[:, None]
    means = sides * torch.randn(256) + 1e-5 * torch.randn(600, 256)
    moments = ClassMoments.from_means(torch.full((600,), 2), means)
    moments.spreads.fill_(2.0)
    apart = torch.cdist(means.double(), means.double(), compute_mode="donot_use_mm_for_euclid_dist").square()
    apart.fill_diagonal_(math.inf)
    assert pairs.nc1_cdnv(moments) == pytest.approx(float((1 / apart).sum()) / (600 * 599), rel=1e-6)


@pytest.mark.parametrize("bad", [torch.randn(5, 6), torch.randn(4, 5), torch.full((4, 6), math.nan)])
def test_nc_bias_refuses_a_weight_that_does_not_fit(bad):
    moments = ClassMoments.from_means(torch.ones(4, dtype=torch.int64), torch.randn(4, 6))
    for measure in (formulas.nc_bias, formulas.nc_bias_centered):
        with pytest.raises(InputError, match="weight"):
            measure(moments, bad)
        with pytest.raises(InputError, match="bias"):
            measure(moments, torch.randn(4, 6), torch.randn(1))


@pytest.mark.parametrize("name", ["centred_means", "nc0", "nc1", "nc2", "nc3", "nc4_disagreements", "nc_bias"])
def test_the_formulas_are_found_where_version_0_1_0_had_them(name):
    assert getattr(measures_module, name) is getattr(formulas, name)
