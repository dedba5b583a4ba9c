"""What is only the rounding of the features' type has no geometry, and what is small but real keeps it."""

import math
import pickle
import warnings

import pytest
import torch
from torch.nn.functional import layer_norm, linear, rms_norm

import neuralcollapse as nc
from neuralcollapse.geometry import formulas
from neuralcollapse.geometry.means import CentredMeans

FLOATS = [torch.float32, torch.float16, torch.bfloat16]
NEAR = {torch.float32: 0.001, torch.float16: 0.003, torch.bfloat16: 0.01}  # with what 16 bits put into real directions


def data(num_classes=100, dim=64, each=500, spread=0.03):
    torch.manual_seed(0)
    labels = torch.arange(num_classes).repeat(each)
    return torch.randn(num_classes, dim)[labels] + spread * torch.randn(len(labels), dim), labels


def measured(moments):
    """The measures, and the rank that a warning names (None where none does)."""
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        values = nc.measures(moments)
    said = [str(warning.message) for warning in record if "hold only the rounding of" in str(warning.message)]
    assert len(said) <= 1
    return values, int(said[0].split("(rank ")[1].rstrip(")")) if said else None


def exact(features, labels):
    """NC1 in float64, over the directions that are not zero but for float64."""
    return measured(nc.ClassMoments.from_batch(features.double(), labels, int(labels.max()) + 1))[0]["nc1"]


@pytest.fixture(scope="module")
def normalised():
    """Features from a LayerNorm, K-1 above their dimension 63, and the right NC1."""
    features, labels = data()
    return layer_norm(features, (64,)), labels, exact(layer_norm(features.double(), (64,)), labels)


def test_the_right_value_of_the_example(normalised):
    features, labels, right = normalised
    assert right == pytest.approx(0.0016668, rel=1e-4)
    assert exact(features.double() - features.double().mean(1, keepdim=True), labels) == pytest.approx(right, rel=1e-6)


@pytest.mark.parametrize(
    ("dtype", "value"), [(torch.float32, 0.0016668), (torch.float16, 0.0016669), (torch.bfloat16, 0.0016715)]
)
@pytest.mark.parametrize("holder", [None, torch.float32, torch.float64])
def test_a_layer_norm_with_more_classes_than_dimensions(normalised, dtype, value, holder):
    features, labels, _ = normalised
    features = features.to(dtype).to(holder or dtype)
    moments = nc.ClassMoments.from_batch(features, labels, 100)
    assert moments.rounding == torch.finfo(dtype).eps
    values, rank = measured(moments)
    assert values["nc1"] == pytest.approx(value, rel=1e-4)
    assert rank == 63
    with pytest.warns(nc.NeuralCollapseWarning) as record:
        assert nc.measure_features(features, labels)["nc1"] == values["nc1"]
    name = str(dtype).removeprefix("torch.")
    assert [str(warning.message) for warning in record if "cannot go below" not in str(warning.message)] == [
        f"1 of 64 directions of the class means hold only the rounding of {name}: "
        "nc1 is taken over the other 63 (rank 63)"
    ]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("means_dtype", [torch.float64, torch.float32])
def test_streamed_merged_and_pickled_moments_remember_the_type(normalised, dtype, means_dtype):
    features, labels, right = normalised
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    features, labels = features.to(dtype)[order], labels[order]
    parts = []
    for share, size in zip(torch.arange(len(labels)).tensor_split(3), (64, 1000, 7000), strict=True):
        moments = nc.ClassMoments.zeros(100, 64, means_dtype=means_dtype)
        for batch in share.split(size):
            moments.update(features[batch], labels[batch])
        parts.append(pickle.loads(pickle.dumps(moments)))
    merged = parts[2].merge(parts[0]).merge(parts[1])
    assert merged.rounding == torch.finfo(dtype).eps
    values, rank = measured(merged)
    assert values["nc1"] == pytest.approx(right, rel=NEAR[dtype])
    assert rank == 63


def test_of_several_types_the_coarsest_decides(normalised):
    features, labels, right = normalised
    half = len(labels) // 2
    moments = nc.ClassMoments.from_batch(features[:half], labels[:half], 100)
    coarse = nc.ClassMoments.from_batch(features[half:].bfloat16().double(), labels[half:], 100)
    for merged in (moments.merge(coarse), coarse.merge(moments)):
        assert merged.rounding == torch.finfo(torch.bfloat16).eps
        assert measured(merged)[0]["nc1"] == pytest.approx(right, rel=0.01)


def test_a_packed_state_of_version_0_1_0_is_taken_for_float32(normalised):
    features, labels, right = normalised
    old = nc.ClassMoments.from_batch(features, labels, 100).packed[:-1]
    moments = nc.ClassMoments(old, 100, 64)
    assert moments.rounding == torch.finfo(torch.float32).eps
    assert measured(moments)[0]["nc1"] == pytest.approx(right, rel=1e-4)
    assert nc.ClassMoments(torch.zeros_like(old), 100, 64).rounding == 0


def in_the_span_of(truth, features):
    """The features in float64, about a point, less what lies outside the span of what they should have been."""
    centre = truth.mean(0)
    _, singular, right = torch.linalg.svd(truth - centre, full_matrices=False)
    basis = right[singular > 1e-10 * singular[0]]
    return (features.double() - centre) @ basis.T @ basis


def gains(x):
    return torch.logspace(-1.5, 0, x.shape[1]).to(x), torch.linspace(-0.3, 0.3, x.shape[1]).to(x)


MADE_BY = {
    "a LayerNorm": lambda x, V: layer_norm(x, x.shape[1:]),
    "of rows whose mean is like their spread": lambda x, V: layer_norm(x + 1, x.shape[1:]),
    "of rows far from zero": lambda x, V: layer_norm(x + 30, x.shape[1:]),
    "with gains of any size and shifts": lambda x, V: layer_norm(x, x.shape[1:], *gains(x)),
    "pooled tokens": lambda x, V: layer_norm(torch.stack([x, x * x, x.relu()], 1), x.shape[1:]).mean(1),
    "no loss of rank": lambda x, V: rms_norm(x, x.shape[1:]),
    "a bottleneck": lambda x, V: x[:, : V.shape[1]] @ V.T,
    "a bottleneck with a bias": lambda x, V: linear(x[:, : V.shape[1]], V, V[:, 0] * 2),
    "a bottleneck of ReLUs": lambda x, V: linear(x[:, : V.shape[1]].relu(), V),
}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("made", MADE_BY)
@pytest.mark.parametrize("shape", [(100, 64, 40), (60, 64, 40), (320, 256, 12)], ids=str)
@pytest.mark.parametrize("spread", [0.05, 1.0])
def test_layers_that_lose_rank_are_measured_over_what_they_can_span(shape, made, dtype, spread):
    features, labels = data(*shape, spread)
    features = features.to(dtype)
    weight = (torch.randn(shape[1], shape[1] // 4) / 4).to(dtype)
    given, truth = MADE_BY[made](features, weight), MADE_BY[made](features.double(), weight.double())
    moments = nc.ClassMoments.from_batch(given, labels, shape[0])
    values, rank = measured(moments)
    assert values["nc1"] == pytest.approx(exact(in_the_span_of(truth, given), labels), rel=1e-3)
    if dtype == torch.float32:
        assert values["nc1"] == pytest.approx(exact(truth, labels), rel=1e-3)
    lost = {"no loss of rank": False}.get(made, "bottleneck" in made or shape[0] > shape[1])
    assert (rank is not None) == lost


REAL = {
    "few classes": lambda x: x[:, :40],
    "ReLU and dead features": lambda x: x.relu() * (torch.arange(x.shape[1]) % 5 > 0),
    "scales of a million": lambda x: x * torch.logspace(0, -6, x.shape[1]),
    "far away": lambda x: x + 1e4,
    "nearly collapsed": lambda x: x.round() + 1e-5 * (x - x.round()),
    "digits": lambda x: (3 * x).round(),
    "large integers": lambda x: (x > 0) + 100.0,
    "one-hot": lambda x: torch.nn.functional.one_hot(x.argmax(1), x.shape[1]).float(),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("made", REAL.values(), ids=REAL)
@pytest.mark.parametrize("num_classes", [30, 64, 65, 90])
@pytest.mark.parametrize("means_dtype", [torch.float64, torch.float32])
def test_small_but_real_directions_are_kept(made, num_classes, dtype, means_dtype):
    features, labels = data(num_classes, 64, 20, 0.3)
    features = made(features).to(dtype)
    right = exact(features, labels)
    if means_dtype == torch.float32 and float(features.abs().max()) > 1e3:
        pytest.skip("float32 means are not for features far from zero")
    moments = nc.ClassMoments.from_batch(features, labels, num_classes, means_dtype=means_dtype)
    values, rank = measured(moments)
    assert values["nc1"] == pytest.approx(right, rel=1e-4 if means_dtype == torch.float64 else 0.01)
    assert rank is None or (
        means_dtype == torch.float32 and set(features.unique().tolist()) == {0, 1}
    )  # a row sums to 1


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("exact_svd", [8, 512])
def test_a_wide_spectrum_above_the_rounding_is_measured_whole(dtype, exact_svd, monkeypatch):
    """Variances down to 1e-7 of the whole in any directions: rounding to bfloat16 puts 1e-8 into each."""
    monkeypatch.setattr("neuralcollapse.geometry.matrix._EXACT_SVD", exact_svd)
    torch.manual_seed(0)
    variances = torch.logspace(0, -7, 320)
    variances = (variances / variances.sum()).clamp(min=1e-7)
    labels = torch.arange(400).repeat(5)
    turn = torch.linalg.qr(torch.randn(320, 320))[0]
    features = ((torch.randn(400, 320)[labels] + torch.randn(2000, 320)) * variances.sqrt()) @ turn
    values, rank = measured(nc.ClassMoments.from_batch(features.to(dtype), labels, 400))
    assert values["nc1"] == pytest.approx(exact(features, labels), rel=0.05)
    assert rank is None


@pytest.mark.parametrize("shape", [(40, 30, 20), (25, 30, 20)], ids=str)
@pytest.mark.parametrize("rank", [29, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_matrices_by_their_gram_matrix_lose_the_same_directions(monkeypatch, shape, rank, dtype):
    features, labels = data(*shape)
    rank = min(rank, shape[0] - 2)
    features = (features[:, :rank] @ torch.randn(rank, shape[1])).to(dtype)
    moments = nc.ClassMoments.from_batch(features, labels, shape[0])
    plain = measured(moments)
    monkeypatch.setattr("neuralcollapse.geometry.matrix._EXACT_SVD", 4)
    large = measured(moments)
    assert plain[1] == large[1] == rank
    assert large[0]["nc1"] == pytest.approx(plain[0]["nc1"], rel=1e-4)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float64])
@pytest.mark.parametrize("num_classes", [10, 33])
def test_full_collapse_is_zero_not_undefined(dtype, num_classes):
    torch.manual_seed(0)
    labels = torch.arange(num_classes).repeat(9)
    features = torch.randn(num_classes, 32)[labels].to(dtype)
    values, _ = measured(nc.ClassMoments.from_batch(features, labels, num_classes))
    assert 0 <= values["nc1"] < 1e-12
    assert 0 <= values["nc1_cdnv"] < 1e-12
    assert not any(map(math.isnan, values.values()))


@pytest.mark.parametrize("dtype", FLOATS)
def test_means_that_differ_by_rounding_alone_have_no_geometry(dtype):
    """One vector, moved by half a spacing: in exact arithmetic all features are the same."""
    torch.manual_seed(0)
    labels = torch.arange(8).repeat(50)
    point, eps = torch.randn(40, dtype=torch.float64), torch.finfo(dtype).eps
    features = (point * (1 + eps * (torch.rand(400, 40) - 0.5))).to(dtype)
    with pytest.warns(nc.NeuralCollapseWarning, match="coincide up to the rounding of"):
        values = nc.measures(nc.ClassMoments.from_batch(features, labels, 8))
    assert all(math.isnan(value) for value in values.values())


@pytest.mark.parametrize("dtype", FLOATS)
def test_two_classes_that_differ_by_rounding_alone_have_the_same_mean(dtype):
    torch.manual_seed(0)
    labels = torch.arange(8).repeat(50)
    points, eps = torch.randn(8, 40, dtype=torch.float64), torch.finfo(dtype).eps
    points[3] = points[5]
    features = (points[labels] * (1 + eps * (torch.rand(400, 40) - 0.5))).to(dtype)
    moments = nc.ClassMoments.from_batch(features, labels, 8)
    with pytest.warns(nc.NeuralCollapseWarning) as record:
        values = nc.measures(moments)
    assert math.isnan(values["nc1_cdnv"])
    assert "classes 3 and 5 have the same mean" in str([str(warning.message) for warning in record])
    assert values["nc1"] < eps**2
    assert nc.worst_pairs(moments, 1)[0] == (3, 5, math.inf)


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_class_mean_that_is_the_global_mean_up_to_rounding_has_no_angle(dtype):
    torch.manual_seed(0)
    labels, eps = torch.arange(3).repeat(40), torch.finfo(dtype).eps
    side, centre = torch.randn(30, dtype=torch.float64), 3 * torch.randn(30, dtype=torch.float64)
    points = torch.stack([centre - side, centre, centre + side])
    features = (points[labels] * (1 + eps * (torch.rand(120, 30) - 0.5))).to(dtype)
    moments = nc.ClassMoments.from_batch(features, labels, 3)
    with pytest.warns(nc.NeuralCollapseWarning) as record:
        values = nc.measures(moments)
    assert "no direction (class 1)" in str([str(warning.message) for warning in record])
    assert math.isnan(values["equiangularity_means"])
    rows = formulas.centred_means(moments)
    assert not rows[1].any()
    with pytest.raises(nc.InputError, match="zero length"):
        nc.coherence(rows)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float64])
@pytest.mark.parametrize("num_classes", [6, 20])
def test_a_weight_perpendicular_to_the_means_up_to_rounding_has_no_duality(dtype, num_classes):
    torch.manual_seed(0)
    labels = torch.arange(num_classes).repeat(30)
    turn = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64))[0]
    features = (torch.randn(num_classes, 6, dtype=torch.float64)[labels] @ turn[:6]).to(dtype)
    weight = torch.randn(num_classes, 6, dtype=torch.float64) @ turn[6:]
    moments = nc.ClassMoments.from_batch(features, labels, num_classes)
    with pytest.warns(nc.NeuralCollapseWarning) as record:
        assert math.isnan(nc.measures(moments, weight)["nc3"])
    said = [str(warning.message) for warning in record]
    assert any("perpendicular up to rounding" in text and text.endswith(": nc3") for text in said)
    small = max(1e3 * torch.finfo(dtype).eps, 1e-5) * torch.randn(num_classes, 6, dtype=torch.float64) @ turn[:6]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nc.NeuralCollapseWarning)
        assert not math.isnan(nc.measures(moments, weight + small)["nc3"])


def test_the_directions_are_found_once_and_shared(normalised):
    features, labels, _ = normalised
    means = CentredMeans(nc.ClassMoments.from_batch(features, labels, 100))
    assert means.directions is means.directions
    assert int((~means.directions.left_out).sum()) == 63
    assert "rank 63" in means.left_out


@pytest.mark.parametrize(("num_classes", "dim"), [(20, 30), (31, 30), (30, 30), (70, 30)])
@pytest.mark.parametrize("unseen", [False, True])
def test_nc1_by_an_inverse_is_nc1_by_directions(monkeypatch, num_classes, dim, unseen):
    torch.manual_seed(0)
    labels = torch.cat([torch.arange(num_classes).repeat(3), torch.arange(0, num_classes, 3)])
    labels = labels[labels != 5] if unseen else labels
    features = 100 + 10 * torch.randn(num_classes, dim)[labels] + torch.randn(len(labels), dim)
    moments = nc.ClassMoments.from_batch(features.double(), labels, num_classes)
    expected = CentredMeans(moments).within_over_between  # few directions: by SVD
    monkeypatch.setattr("neuralcollapse.geometry.matrix._EXACT_SVD", 1)
    found = CentredMeans(moments)._without_doubt()
    assert float(found) == pytest.approx(float(expected), rel=1e-9)


def test_nc1_is_not_taken_by_an_inverse_where_a_direction_may_be_rounding(monkeypatch, normalised):
    monkeypatch.setattr("neuralcollapse.geometry.matrix._EXACT_SVD", 1)
    features, labels, _ = normalised
    means = CentredMeans(nc.ClassMoments.from_batch(features, labels, 100))
    assert means._without_doubt() is None
    assert means.left_out == ""
    assert float(means.within_over_between) > 0
    assert "rank 63" in means.left_out
