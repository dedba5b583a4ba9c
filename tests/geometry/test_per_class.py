"""Class by class: each column equals its definition in float64, whatever the offset, the sizes and the batches."""

import math

import numpy as np
import pytest
import torch

import neuralcollapse as nc
from neuralcollapse.geometry import matrix

pytestmark = pytest.mark.filterwarnings("error::neuralcollapse.NeuralCollapseWarning")

COLUMNS = ("mean_norm", "variance", "distance", "cdnv", "weight_norm", "centred_weight_norm", "alignment", "mean_logit")


def drawn(classes, dim, *, samples=8, noise=0.3, offset=0.0, seed=0, dtype=torch.float64, bias=True):
    """Features, labels, weight and bias: classes of different sizes and spreads."""
    source = torch.Generator().manual_seed(seed)
    counts = torch.randint(2, samples, (classes,), generator=source)
    labels = torch.arange(classes).repeat_interleave(counts)[torch.randperm(int(counts.sum()), generator=source)]
    means = torch.randn(classes, dim, generator=source, dtype=torch.float64)
    spread = noise * (0.1 + torch.rand(classes, 1, generator=source, dtype=torch.float64))
    away = torch.randn(len(labels), dim, generator=source, dtype=torch.float64)
    features = (means[labels] + spread[labels] * away + offset).to(dtype)
    weight = torch.randn(classes, dim, generator=source, dtype=torch.float64) + 0.5 * means
    return features, labels, weight.to(dtype), torch.randn(classes, generator=source).to(dtype) if bias else None


def by_hand(features, labels, weight, bias, num_classes):
    """The columns from their definitions, class by class."""
    h, y, w = features.double().numpy(), labels.numpy(), weight.double().numpy()
    b = np.zeros(num_classes) if bias is None else bias.double().numpy()
    seen = [k for k in range(num_classes) if (y == k).any()]
    centre, middle = h.mean(0), w[seen].mean(0)
    mean = {k: h[y == k].mean(0) for k in seen}
    spread = {k: float(np.mean([((row - mean[k]) ** 2).sum() for row in h[y == k]])) for k in seen}
    logit = {k: b[k] + w[k] @ centre for k in seen}
    found = {name: [math.nan] * num_classes for name in COLUMNS} | {"nearest": [-1] * num_classes}
    for k in seen:
        others = [(float(np.linalg.norm(mean[k] - mean[j])), j) for j in seen if j != k]
        distance, j = min(others)
        row, centred = w[k] - middle, mean[k] - centre
        single = (y == k).sum() == 1
        values = {
            "mean_norm": np.linalg.norm(centred),
            "variance": math.nan if single else spread[k],
            "distance": distance,
            "cdnv": math.nan if single else (spread[k] + spread[j]) / (2 * distance**2),
            "weight_norm": np.linalg.norm(w[k]),
            "centred_weight_norm": np.linalg.norm(row),
            "alignment": row @ centred / np.linalg.norm(row) / np.linalg.norm(centred),
            "mean_logit": logit[k] - np.mean(list(logit.values())),
            "nearest": j,
        }
        for name, value in values.items():
            found[name][k] = value
    return found


def check(table, expected, tolerance=1e-10):
    assert table.nearest.tolist() == expected["nearest"]
    for name in COLUMNS:
        np.testing.assert_allclose(getattr(table, name).numpy(), expected[name], rtol=tolerance, atol=1e-12)


def of(features, labels, weight=None, bias=None, classes=None, **more):
    count = classes or (int(labels.max()) + 1 if weight is None else len(weight))
    return nc.per_class(nc.ClassMoments.from_batch(features, labels, count), weight, bias, **more)


@pytest.mark.parametrize("tile", [3, 1024])
@pytest.mark.parametrize(("classes", "dim"), [(2, 5), (5, 12), (9, 4), (40, 3), (7, 1)])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_each_column_is_its_definition(monkeypatch, tile, classes, dim, offset):
    monkeypatch.setattr(matrix, "_TILE", tile)
    given = drawn(classes, dim, offset=offset)
    check(of(*given), by_hand(*given, classes), 1e-8 if offset else 1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_features_and_rows_of_any_type(dtype):
    given = drawn(6, 20, dtype=dtype)
    check(of(*given), by_hand(*given, 6), 1e-9)


def test_small_noise_far_from_the_origin():
    given = drawn(6, 20, noise=1e-3, offset=100.0)
    check(of(*given), by_hand(*given, 6), 1e-6)


def test_classes_without_samples_are_nan_and_left_out_of_the_means():
    features, labels, weight, bias = drawn(6, 8)
    kept = (labels != 2) & (labels != 5)
    with pytest.warns(nc.NeuralCollapseWarning, match=r"no samples of classes 2, 5") as found:
        table = of(features[kept], labels[kept], weight, bias, accuracy=torch.linspace(0, 1, 6))
    assert len(found) == 1
    check(table, by_hand(features[kept], labels[kept], weight, bias, 6))
    assert table.count.tolist()[2] == 0
    assert table.accuracy.isnan().tolist() == [False, False, True, False, False, True]


def test_a_class_of_one_sample_has_no_variance():
    features, labels, weight, bias = drawn(5, 8)
    kept = (labels != 3) | (torch.arange(len(labels)) == int((labels == 3).nonzero()[0]))
    with pytest.warns(nc.NeuralCollapseWarning, match="one sample of class 3: variance, cdnv"):
        table = of(features[kept], labels[kept], weight, bias)
    check(table, by_hand(features[kept], labels[kept], weight, bias, 5))
    assert math.isfinite(table.alignment[3])
    assert table.cdnv.isnan().tolist() == [False, False, False, True, False]


def test_equal_means_have_infinite_cdnv_and_are_each_others_nearest():
    features, labels, weight, _ = drawn(5, 8)
    features[labels == 4] = features[labels == 1].mean(0)
    table = of(features, labels, weight)
    assert (int(table.nearest[1]), int(table.nearest[4])) == (4, 1)
    assert table.distance[[1, 4]].tolist() == [0, 0]
    assert table.cdnv[[1, 4]].tolist() == [math.inf, math.inf]
    assert table.worst(2).number.tolist() == [1, 4]


def test_merged_rows_have_no_direction():
    features, labels, weight, bias = drawn(2, 3)
    with pytest.warns(nc.NeuralCollapseWarning, match="zero length in classes 0, 1: alignment"):
        table = of(features, labels, weight[[0, 0]], bias)
    assert table.alignment.isnan().all()
    assert table.centred_weight_norm.tolist() == [0, 0]


@pytest.mark.parametrize("samples", [0, 4])
def test_nothing_to_compare_is_nan(samples):
    moments = nc.ClassMoments.from_batch(torch.rand(samples, 4), torch.full((samples,), 1), 3)
    with pytest.warns(nc.NeuralCollapseWarning):
        table = nc.per_class(moments, torch.ones(3, 4))
    assert table.cdnv.isnan().all()
    assert table.mean_norm.isnan().all()
    assert table.nearest.tolist() == [-1, -1, -1]
    assert math.isfinite(table.variance[1]) == (samples > 0)
    assert "class" in str(table)


def test_all_means_equal():
    with pytest.warns(nc.NeuralCollapseWarning, match="coincide"):
        table = of(torch.ones(12, 4), torch.arange(12) % 3, torch.rand(3, 4))
    assert table.cdnv.isnan().all()
    assert table.variance.tolist() == [0, 0, 0]


def test_a_collapsed_head():
    etf = nc.simplex_etf(4, 6, dtype=torch.float64)
    labels = torch.arange(40) % 4
    table = of(3 * etf[labels] + 7, labels, 2 * etf + 1, torch.full((4,), 5.0))
    torch.testing.assert_close(table.alignment, torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(table.mean_norm, torch.full((4,), 3.0, dtype=torch.float64))
    torch.testing.assert_close(table.centred_weight_norm, torch.full((4,), 2.0, dtype=torch.float64))
    torch.testing.assert_close(table.distance, torch.full((4,), 3 * math.sqrt(8 / 3), dtype=torch.float64))
    assert table.cdnv.abs().max() < 1e-20
    assert table.mean_logit.abs().max() < 1e-12


def test_the_columns_agree_with_the_measures():
    features, labels, weight, bias = drawn(6, 12)
    moments = nc.ClassMoments.from_batch(features, labels, 6)
    table, values = nc.per_class(moments, weight, bias), nc.measures(moments, weight, bias)
    assert float(table.mean_logit.norm()) == pytest.approx(values["nc_bias_centered"], rel=1e-10)
    for column, name in (("mean_norm", "equinorm_means"), ("weight_norm", "equinorm_weights")):
        lengths = getattr(table, column)
        assert float(lengths.std(correction=0) / lengths.mean()) == pytest.approx(values[name], rel=1e-10)
    shares = table.count / table.count.sum()
    nc1_quotient = float(shares @ table.variance / table.mean_norm.square().mean())
    assert nc1_quotient == pytest.approx(values["nc1_quotient"], rel=1e-10)


@pytest.mark.parametrize("classes", [4, 9])
@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_rows_whose_squares_are_no_numbers(classes, scale):
    features, labels, weight, _ = drawn(classes, 6)
    expected, table = of(features, labels, weight), of(features, labels, weight * scale)
    torch.testing.assert_close(table.alignment, expected.alignment, rtol=1e-10, atol=0)
    for name in ("weight_norm", "centred_weight_norm", "mean_logit"):
        torch.testing.assert_close(getattr(table, name), getattr(expected, name) * scale, rtol=1e-10, atol=0)


def test_features_whose_squares_are_no_numbers_are_undefined():
    features, labels, weight, _ = drawn(4, 6)
    with pytest.warns(
        nc.NeuralCollapseWarning, match="range of float64.*: variance, mean_norm, nearest, distance, cdnv"
    ):
        table = of(features * 1e180, labels, weight)
    assert table.variance.isnan().all()
    assert table.alignment.isnan().all()


def test_rotation_scale_permutation_and_batches():
    features, labels, weight, bias = drawn(6, 8)
    table = of(features, labels, weight, bias)
    turn = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))).Q
    order = torch.tensor([3, 0, 5, 1, 4, 2])  # class k becomes order[k]
    moved = of(5 * features @ turn, order[labels], (weight @ turn / 2)[order.argsort()], bias[order.argsort()])
    for name, factor in {"cdnv": 1, "alignment": 1, "mean_norm": 5, "variance": 25, "weight_norm": 0.5}.items():
        torch.testing.assert_close(getattr(moved, name)[order], factor * getattr(table, name), rtol=1e-9, atol=0)
    assert moved.nearest[order].tolist() == order[table.nearest].tolist()
    halves = [nc.ClassMoments.from_batch(features[part], labels[part], 6) for part in (slice(0, 9), slice(9, None))]
    check(nc.per_class(halves[0].merge(halves[1]), weight, bias), by_hand(features, labels, weight, bias, 6))


def test_what_was_not_asked_for_is_none():
    features, labels, _, _ = drawn(4, 8)
    table = of(features, labels, pairwise=False)
    assert table.nearest is table.cdnv is table.distance is table.alignment is table.accuracy is None
    assert list(table.columns) == ["count", "variance", "mean_norm"]
    assert table.worst().sorted_by == "variance"
    assert table.rows()[0].keys() == {"class", "count", "variance", "mean_norm"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": ["a"]}, "expected the names of 4 classes, got 1"),
        ({"names": "abcd"}, "list of 4 texts"),
        ({"accuracy": torch.ones(3)}, r"accuracy of shape \(K,\) = \(4,\)"),
        ({"accuracy": torch.tensor([1, 2, 0, 0])}, "from 0 to 1"),
        ({"weight": torch.ones(4, 3)}, "weight of shape"),
    ],
)
def test_wrong_input_is_refused(options, message):
    features, labels, _, _ = drawn(4, 8)
    with pytest.raises(nc.InputError, match=message):
        of(features, labels, classes=4, **options)


def test_moments_are_asked_for():
    with pytest.raises(nc.InputError, match="expected moments as ClassMoments, got Tensor"):
        nc.per_class(torch.ones(3, 2))
