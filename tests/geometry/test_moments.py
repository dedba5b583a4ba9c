"""ClassMoments equal brute force in any dtype, batching and merge order; wrong input changes nothing."""

import copy
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import neuralcollapse as nc
from neuralcollapse.errors import InputError
from neuralcollapse.geometry import shifted, waiting
from neuralcollapse.geometry.formulas import nc1
from neuralcollapse.geometry.intake import kept_rows
from neuralcollapse.geometry.moments import ClassMoments
from neuralcollapse.geometry.packed import packed_size
from neuralcollapse.geometry.pairs import nc1_cdnv
from tests import oracles

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
INTEGERS = [
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
]
SPLITS = {"cuts": st.lists(st.floats(0, 1), max_size=6), "seed": st.integers(0, 2**32 - 1)}


def clusters(num_classes, dim, num_samples, noise=1.0, offset=0.0, seed=0):
    """float64 features about class means of length 10, and their labels; some classes may have no samples."""
    rng = np.random.default_rng(seed)
    means = 10 * rng.standard_normal((num_classes, dim)) / np.sqrt(dim)
    labels = rng.integers(num_classes, size=num_samples)
    return means[labels] + noise * rng.standard_normal((num_samples, dim)) + offset, labels


def of_batch(features, labels, num_classes, **options):
    return ClassMoments.from_batch(torch.as_tensor(features), torch.as_tensor(labels), num_classes, **options)


def assert_near(got, expected, rtol):
    """To a share of the largest entry: small entries of a sum round like the large ones."""
    expected = np.asarray(expected, dtype=np.float64)
    np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=rtol * np.abs(expected).max(initial=1e-300))


def assert_moments_of(moments, features, labels, rtol):
    expected = oracles.moments(features, labels, moments.num_classes)
    assert moments.counts.dtype == torch.int64
    assert moments.counts.tolist() == expected.counts.tolist()
    assert moments.num_samples == len(labels)
    assert_near(moments.means, expected.means, min(rtol, 1e-12))
    assert_near(moments.global_mean, expected.global_mean, min(rtol, 1e-12))
    assert_near(moments.spreads, expected.spreads, rtol)
    assert_near(moments.scatter, expected.scatter, rtol)
    assert_near(moments.within_covariance, expected.scatter / max(1, len(labels)), rtol)


@pytest.fixture
def state():
    """Moments of three classes in four dimensions that have seen some samples."""
    return of_batch(*clusters(3, 4, 20), 3)


@pytest.mark.parametrize("dim", [6, 300])
@pytest.mark.parametrize("dtype", FLOATS)
def test_moments_of_a_batch_equal_brute_force(dtype, dim):
    features, labels = clusters(5, dim, 60)
    features = torch.from_numpy(features).to(dtype)
    # From 256 dimensions on, all but float64 features are multiplied in float32.
    rtol = 1e-12 if dtype == torch.float64 or dim < 256 else 1e-6
    assert_moments_of(of_batch(features, labels, 5), features.double().numpy(), labels, rtol)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_labels_may_be_any_integers(dtype):
    features, labels = clusters(100, 3, 200)
    moments = of_batch(features, torch.from_numpy(labels).to(dtype), 100)
    assert_moments_of(moments, features, labels, 1e-12)


def test_features_need_not_be_contiguous_and_stay_as_they_were():
    features, labels = clusters(3, 5, 30)
    view = torch.from_numpy(features.T.copy()).T.requires_grad_()
    moments = of_batch(view, labels, 3)
    assert not moments.packed.requires_grad
    assert_moments_of(moments, features, labels, 1e-12)
    assert np.array_equal(view.detach().numpy(), features)


def test_autocast_changes_nothing():
    features, labels = clusters(3, 256, 30)
    features = torch.from_numpy(features).float()
    expected = of_batch(features, labels, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = of_batch(features, labels, 3)
        assert nc1(got) == nc1(expected)
    assert torch.equal(got.packed, expected.packed)


@pytest.mark.parametrize("shape", [(4, 5, 40), (30, 3, 40), (1, 2, 9), (6, 1, 20)], ids=str)
@settings(deadline=None, max_examples=30)
@given(**SPLITS)
def test_any_batches_merged_in_any_order_equal_brute_force(shape, cuts, seed):
    features, labels = clusters(*shape, offset=3.0)
    moments = oracles.split_and_merge(lambda *part: of_batch(*part, shape[0]), features, labels, cuts, seed)
    assert_moments_of(moments, features, labels, 1e-12)


@pytest.mark.parametrize("num_classes", [3, 50])
@pytest.mark.parametrize("batch_size", [1, 2, 7, 60])
def test_batches_added_in_place_equal_brute_force(batch_size, num_classes):
    features, labels = clusters(num_classes, 4, 60, offset=3.0)
    moments = ClassMoments.zeros(num_classes, 4)
    for start in range(0, 60, batch_size):
        part = slice(start, start + batch_size)
        assert moments.update(torch.from_numpy(features[part]), torch.from_numpy(labels[part])) is moments
    assert_moments_of(moments, features, labels, 1e-12)


@pytest.mark.parametrize("num_classes", [3, 50])
def test_a_batch_taken_in_blocks_equals_brute_force(num_classes, monkeypatch):
    monkeypatch.setattr(waiting, "_HOST_ROWS", 7)
    features, labels = clusters(num_classes, 4, 60)
    assert_moments_of(of_batch(features, labels, num_classes), features, labels, 1e-12)


@pytest.mark.parametrize("dim", [256, 300, 700])
def test_the_scatter_is_multiplied_out_in_full_whatever_the_blocks(dim):
    features, labels = clusters(3, dim, 10)
    assert_moments_of(of_batch(features, labels, 3), features, labels, 1e-12)


@pytest.mark.parametrize("empty_first", [True, False])
def test_merging_with_no_samples_changes_nothing(state, empty_first):
    empty = ClassMoments.zeros(3, 4)
    merged = empty.merge(state) if empty_first else state.merge(empty)
    torch.testing.assert_close(merged.packed, state.packed, rtol=1e-15, atol=0)


def test_merging_leaves_both_sides_alone(state):
    other = of_batch(*clusters(3, 4, 10, seed=1), 3)
    before = state.packed.clone(), other.packed.clone()
    merged = state.merge(other)
    merged.update(torch.ones(2, 4), torch.tensor([0, 1]))
    assert torch.equal(state.packed, before[0])
    assert torch.equal(other.packed, before[1])


def test_moments_of_no_samples_are_zero():
    moments = of_batch(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), 3)
    assert not moments.packed.any()
    assert not moments.global_mean.any()
    assert not moments.within_covariance.any()


def drifting(rng, features):
    """Batch by batch, all features move along a random walk that ends far away."""
    steps = np.repeat(rng.standard_normal((10, features.shape[1])), len(features) // 10, axis=0)
    return features + np.cumsum(steps, axis=0)


def outlier_first(rng, features):
    features = features.copy()
    features[0] += 100 * rng.standard_normal(features.shape[1])
    return features


def as_they_are(rng, features):
    return features


@pytest.mark.parametrize("change", [as_they_are, drifting, outlier_first])
@pytest.mark.parametrize("batch_size", [400, 20, 1])
@pytest.mark.parametrize("dim", [64, 512])
def test_nc1_of_float32_features_is_exact_to_1e_minus_6_far_from_the_origin(dim, batch_size, change):
    rng = np.random.default_rng(0)
    features, labels = clusters(10, dim, 400, noise=1e-3, offset=100.0)
    features = change(rng, features).astype(np.float32)
    moments = ClassMoments.zeros(10, dim)
    for start in range(0, 400, batch_size):
        part = slice(start, start + batch_size)
        moments.update(torch.from_numpy(features[part]), torch.from_numpy(labels[part]))
    assert nc1(moments) == pytest.approx(oracles.nc1(features, labels, 10), rel=1e-6)


@settings(deadline=None, max_examples=10)
@given(**SPLITS)
def test_nc1_of_float32_features_is_exact_to_1e_minus_6_in_any_merge_order(cuts, seed):
    features, labels = clusters(10, 300, 100, noise=1e-3, offset=100.0)
    features = features.astype(np.float32)
    moments = oracles.split_and_merge(lambda *part: of_batch(*part, 10), features, labels, cuts, seed)
    assert nc1(moments) == pytest.approx(oracles.nc1(features, labels, 10), rel=1e-6)


@pytest.mark.parametrize("dim", [8, 300])
@pytest.mark.parametrize("scale", [1e-36, 1e-22, 1e-13, 1e-11, 1e16, 1e20, 1e36])
def test_float32_features_whose_products_leave_float32_are_measured_all_the_same(scale, dim):
    features, labels = clusters(3, dim, 40)
    features = (scale * features).astype(np.float32)
    moments = of_batch(features, labels, 3)
    assert_moments_of(moments, features, labels, 1e-6)
    assert nc1(moments) == pytest.approx(oracles.nc1(features, labels, 3), rel=1e-6)


def test_a_scatter_that_overflows_float32_only_in_its_sum_is_exact():
    features, labels = clusters(3, 300, 40)
    features[:, 0] *= 50  # no squared length overflows, but their sum does
    features = (8e16 * features).astype(np.float32)
    squares = np.square(features, dtype=np.float64).sum(1)
    assert squares.max() < np.finfo(np.float32).max < squares.sum()
    assert_moments_of(of_batch(features, labels, 3), features, labels, 1e-6)


def test_classes_of_very_different_spread_keep_their_own():
    features, labels = clusters(3, 300, 60)
    spread = np.array([1.0, 1e-6, 1e-12])[labels, None]
    features = (spread * features).astype(np.float32)
    moments = of_batch(features, labels, 3)
    np.testing.assert_allclose(moments.spreads.numpy(), oracles.moments(features, labels, 3).spreads, rtol=1e-6)


@pytest.mark.parametrize("block_rows", [2048, 2])
def test_float16_features_near_their_largest_do_not_overflow(block_rows, monkeypatch):
    monkeypatch.setattr(waiting, "_HOST_ROWS", block_rows)
    features, labels = clusters(3, 300, 40, noise=100.0, offset=6.4e4)
    features = torch.from_numpy(features.clip(max=65504)).half()
    assert_moments_of(of_batch(features, labels, 3), features.double().numpy(), labels, 1e-6)


@pytest.mark.parametrize("ignored", [-100, -1, 1, 255])
def test_samples_with_the_ignored_label_are_left_out(ignored):
    features, labels = clusters(3, 4, 30)
    marked = labels.copy()
    marked[::3] = ignored
    features[::3][marked[::3] == ignored] = np.nan
    kept = marked != ignored
    moments = of_batch(features, marked, 3, ignore_index=ignored)
    assert_moments_of(moments, features[kept], labels[kept], 1e-12)


def test_a_batch_without_samples_is_a_no_op(state):
    before = state.packed.clone()
    state.update(torch.ones(0, 4), torch.zeros(0, dtype=torch.int64))
    state.update(torch.full((2, 4), torch.inf), torch.tensor([-1, -1]), ignore_index=-1)
    assert torch.equal(state.packed, before)


def test_the_state_is_one_vector_of_k_d_plus_d_squared_and_what_was_looked_at_stays(state):
    size = 2 * 3 + 3 * 4 + 4 * 4 + 1
    assert packed_size(3, 4) == size
    looked_at, before = state.packed, state.packed.clone()
    for _ in range(3):
        state.update(torch.ones(9, 4), torch.zeros(9, dtype=torch.int64))
        assert state.packed.shape == (size,)
    assert torch.equal(looked_at, before)
    for view in (state.means, state.spreads):
        assert view.untyped_storage().data_ptr() == state.packed.untyped_storage().data_ptr()


def test_moments_are_found_again_from_their_packed_state(state):
    again = ClassMoments(state.packed.clone(), 3, 4)
    assert torch.equal(again.scatter, state.scatter)
    assert again.counts.tolist() == state.counts.tolist()


def test_the_scatter_is_symmetric(state):
    assert torch.equal(state.scatter, state.scatter.T)


FEATURES = torch.arange(16.0).view(4, 4)
LABELS = torch.tensor([0, 1, 2, 0])


def spoiled(value, rows=(2,)):
    features = FEATURES.clone()
    features[list(rows), 1] = value
    return features


# Each message: expected X, got Y: what to do.
BAD_BATCHES = {
    "features no tensor": (FEATURES.numpy(), LABELS, r"torch\.Tensor, got ndarray: .*as_tensor"),
    "one-dimensional features": (FEATURES[0], LABELS, r"\(N, d\), got \(4,\): flatten or pool"),
    "feature maps": (torch.ones(4, 4, 7, 7), LABELS, r"\(N, d\), got \(4, 4, 7, 7\): flatten or pool"),
    "integer features": (FEATURES.long(), LABELS, r"floating-point features, got torch\.int64: .*features\.float\(\)"),
    "complex features": (FEATURES.cfloat(), LABELS, r"floating-point features, got torch\.complex64: "),
    "another dimension": (torch.ones(4, 5), LABELS, r"dimension 4, got 5: "),
    "labels no tensor": (FEATURES, [0, 1, 2, 0], r"torch\.Tensor, got list: .*as_tensor"),
    "float labels": (FEATURES, LABELS.float(), r"integer labels, got torch\.float32: .*labels\.long\(\)"),
    "bool labels": (FEATURES, LABELS.bool(), r"integer labels, got torch\.bool: "),
    "a column of labels": (FEATURES, LABELS[:, None], r"\(N,\), got \(4, 1\): use labels\.squeeze\(1\)"),
    "one-hot labels": (FEATURES, torch.eye(3).long()[LABELS], r"\(N,\), got \(4, 3\): .*one-hot.*labels\.argmax\(1\)"),
    "one label for all": (FEATURES, torch.tensor(1), r"\(N,\), got \(\): give one class index"),
    "labels of a map": (FEATURES, torch.zeros(4, 2, 2).long(), r"\(N,\), got \(4, 2, 2\): give one class index"),
    "too few labels": (FEATURES, LABELS[:3], r"as many labels as features, got 3 labels for 4 .*: "),
    "too many labels": (FEATURES[:3], LABELS, r"as many labels as features, got 4 labels for 3 .*: "),
    "a negative label": (FEATURES, torch.tensor([0, -1, 2, 0]), r"from 0 to 2 .*got -1 to 2: .*ignore_index"),
    "a label out of range": (FEATURES, torch.tensor([0, 3, 2, 0]), r"from 0 to 2 .*got 0 to 3: .*num_classes"),
    "only labels out of range": (FEATURES, torch.full((4,), 7), r"from 0 to 2 .*got 7: .*num_classes"),
    "a large unsigned label": (FEATURES, (LABELS + 253).to(torch.uint8), r"from 0 to 2 .*got 253 to 255: "),
    "NaN": (spoiled(torch.nan), LABELS, r"finite features, got 1 .*of 16 values in 1 rows \(rows 2\): correct or drop"),
    "infinity": (spoiled(torch.inf, (0, 3)), LABELS, r"finite features, got 2 .*in 2 rows \(rows 0, 3\): "),
    "infinities of both signs": (
        torch.stack([spoiled(torch.inf)[2], FEATURES[1], spoiled(-torch.inf)[2], FEATURES[3]]),
        LABELS,
        r"finite features, got 2 .*in 2 rows \(rows 0, 2\): ",
    ),
}


@pytest.mark.parametrize("block_rows", [2048, 2], ids=["one block", "blocks"])
@pytest.mark.parametrize(("features", "labels", "message"), BAD_BATCHES.values(), ids=BAD_BATCHES.keys())
def test_a_bad_batch_is_refused_with_a_hint_and_changes_nothing(
    state, features, labels, message, block_rows, monkeypatch
):
    monkeypatch.setattr(waiting, "_HOST_ROWS", block_rows)
    before = state.packed.clone()
    with pytest.raises(InputError, match=f"^expected .*{message}") as error:
        state.update(features, labels)
    assert "\n" not in str(error.value)
    assert torch.equal(state.packed, before)


def test_only_the_first_of_many_bad_rows_are_named():
    features = torch.full((9, 2), torch.nan)
    with pytest.raises(InputError, match=r"got 18 .*of 18 values in 9 rows \(rows 0, 1, 2, 3, 4, \.\.\.\)"):
        of_batch(features, torch.zeros(9, dtype=torch.int64), 1)


def test_bad_rows_are_numbered_as_the_user_gave_them_whatever_is_ignored():
    with pytest.raises(InputError, match=r"\(rows 2\)"):
        of_batch(spoiled(torch.nan), torch.tensor([-1, -1, 2, 0]), 3, ignore_index=-1)


def test_from_batch_refuses_features_that_have_no_dimension():
    with pytest.raises(InputError, match=r"expected features of shape \(N, d\), got \(4,\): "):
        of_batch(torch.ones(4), LABELS, 3)


@pytest.mark.parametrize("shape", [(2, 4), (3, 5), (4, 3)])
def test_moments_of_another_size_do_not_merge(state, shape):
    before = state.packed.clone()
    with pytest.raises(InputError, match=rf"^expected .*K=3, d=4, got K={shape[0]}, d={shape[1]}: "):
        state.merge(ClassMoments.zeros(*shape))
    assert torch.equal(state.packed, before)


@pytest.mark.parametrize(
    ("size", "message"),
    [((0, 4), "num_classes .*got 0"), ((3, 0), "feature_dim .*got 0"), ((3, 2.0), r"feature_dim .*got 2\.0")],
)
def test_sizes_below_one_or_no_integers_are_refused(size, message):
    with pytest.raises(InputError, match=f"expected {message}"):
        ClassMoments.zeros(*size)


@pytest.mark.parametrize(
    "packed", [torch.zeros(35), torch.zeros(33).double(), torch.zeros(36).double(), torch.zeros(1, 35).double()]
)
def test_a_packed_state_of_another_size_or_dtype_is_refused(packed):
    with pytest.raises(InputError, match=r"expected .*float64 .*\(35,\), got "):
        ClassMoments(packed, 3, 4)


@pytest.mark.parametrize("size", [1e3, 1e4, 1e5])
@pytest.mark.parametrize("batch", [20, 400])
def test_an_outlier_leaves_the_other_samples_exact_in_float32(size, batch):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 10
    features = (
        torch.randn(10, 512, generator=generator)[labels] + 1e-3 * torch.randn(400, 512, generator=generator) + 100
    )
    features[0] += size * torch.randn(512, generator=generator)
    single, double = ClassMoments.zeros(10, 512), ClassMoments.zeros(10, 512)
    for part in torch.arange(400).split(batch):
        single.update(features[part], labels[part])
        double.update(features[part].double(), labels[part])
    assert nc1(single) == pytest.approx(nc1(double), rel=1e-6)


def test_a_pickled_copy_goes_on_as_the_original_does():
    import pickle

    features, labels = torch.randn(20, 4), torch.arange(20) % 3
    original = ClassMoments.from_batch(features, labels, 3)
    copy = pickle.loads(pickle.dumps(original)).update(features, labels)
    assert copy.merge(ClassMoments.zeros(3, 4)).num_samples == 40
    assert original.num_samples == 20


@pytest.mark.parametrize("looked", [False, True])
@pytest.mark.parametrize("means_dtype", [torch.float64, torch.float32])
def test_moments_restored_from_a_snapshot_go_on_bit_for_bit(looked, means_dtype, monkeypatch):
    monkeypatch.setattr(waiting, "_HOST_ROWS", 16)
    features, labels = torch.randn(100, 300), torch.arange(100) % 7
    whole, first = (ClassMoments.zeros(7, 300, means_dtype=means_dtype) for _ in range(2))
    for number, (part, part_labels) in enumerate(zip(features.split(9), labels.split(9), strict=True)):
        whole.update(part, part_labels)
        if number == 5:
            kept = first.snapshot()
            if looked:
                assert float(first.means.abs().sum()) > 0  # a look at the first changes nothing in what was kept
            first = ClassMoments.restored(kept)
        first.update(part, part_labels)
    assert torch.equal(first.packed, whole.packed)


def test_moments_made_in_inference_mode_can_be_updated_outside():
    with torch.inference_mode():
        moments = ClassMoments.from_batch(torch.randn(4, 2), torch.arange(4) % 2, 2)
    assert moments.update(torch.randn(4, 2), torch.arange(4) % 2).num_samples == 8


@pytest.mark.parametrize("looked", [False, True])
def test_moments_restored_in_inference_mode_can_be_updated_outside(looked):
    features, labels = torch.randn(4000, 2), torch.arange(4000) % 2  # more than wait
    first = of_batch(features, labels, 2)
    with torch.inference_mode():
        moments = ClassMoments.restored(first.snapshot())
        if looked:
            assert moments.num_samples == 4000
    assert moments.update(features, labels).num_samples == 8000


@pytest.mark.parametrize("ignore_index", ["a", 1.5, True, [1]])
def test_an_ignored_label_that_is_no_integer_is_refused(ignore_index):
    moments = ClassMoments.zeros(2, 3)
    with pytest.raises(InputError, match="expected ignore_index as an integer"):
        moments.update(torch.ones(2, 3), torch.zeros(2, dtype=torch.int64), ignore_index=ignore_index)
    assert moments.num_samples == 0
    assert moments.update(torch.ones(2, 3), torch.arange(2), ignore_index=np.int64(1)).num_samples == 1


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.ones(2, 3).to(torch.float8_e4m3fn), "got torch.float8_e4m3fn: convert them with features.float()"),
        (torch.ones(2, 3).to_sparse(), "got torch.sparse_coo: convert them with features.to_dense()"),
    ],
)
def test_floats_that_torch_can_store_but_not_add_are_refused(features, message):
    with pytest.raises(InputError, match=re.escape(message)):
        of_batch(features, torch.zeros(2, dtype=torch.int64), 2)


def test_sizes_of_batches_add_up_to_the_samples():
    moments = ClassMoments.zeros(2, 3)
    with pytest.raises(InputError, match="sizes of 5 samples in all, got 4"):
        moments.update_batches(torch.ones(5, 3), torch.zeros(5, dtype=torch.int64), [2, 2])
    assert moments.num_samples == 0


def test_the_users_matmul_precision_changes_nothing_and_stays():
    torch.manual_seed(0)
    features, labels = 100 + torch.randn(64, 300), torch.arange(64) % 4
    plain = ClassMoments.from_batch(features, labels, 4)
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(ClassMoments.from_batch(features, labels, 4).packed, plain.packed)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_moments_of_means_have_no_spread():
    means = torch.randn(3, 4)
    moments = ClassMoments.from_means(torch.tensor([2, 5, 1]), means)
    assert moments.counts.tolist() == [2, 5, 1]
    assert torch.equal(moments.means, means.double())
    assert float(moments.scatter.abs().max()) == 0


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4)])
def test_float32_means_take_half_the_places_and_are_near(shape):
    num_classes, dim = shape
    features, labels = clusters(num_classes, dim, 60)
    exact = of_batch(features, labels, num_classes)
    small = ClassMoments.zeros(num_classes, dim, means_dtype=torch.float32)
    for part, part_labels in zip(torch.as_tensor(features).split(7), torch.as_tensor(labels).split(7), strict=True):
        small.update(part, part_labels)
    assert small.means.dtype == torch.float32
    assert small.packed.dtype == torch.float64
    assert exact.packed.numel() - small.packed.numel() == num_classes * dim // 2
    assert_near(small.means.double(), exact.means, 1e-6)
    assert_near(small.scatter, exact.scatter, 1e-6)
    assert_near(small.spreads, exact.spreads, 1e-6)
    assert_near(small.global_mean, exact.global_mean, 1e-6)
    assert small.counts.tolist() == exact.counts.tolist()
    assert nc1(small) == pytest.approx(nc1(exact), rel=1e-5)


def test_float32_means_merge_copy_and_pickle_as_such(tmp_path):
    features, labels = clusters(4, 3, 40)
    parts = [of_batch(features[i::2], labels[i::2], 4, means_dtype=torch.float32) for i in range(2)]
    merged = parts[0].merge(parts[1])
    assert merged.means.dtype == torch.float32
    assert nc1(merged) == pytest.approx(nc1(of_batch(features, labels, 4)), rel=1e-5)
    again = copy.deepcopy(merged)
    again.update(torch.ones(1, 3), torch.zeros(1, dtype=torch.int64))
    assert again.num_samples == 41
    assert float((again.means - merged.means)[0].abs().max()) > 0
    with pytest.raises(InputError, match=r"means in torch.float32, got means in torch.float64: "):
        merged.merge(of_batch(features, labels, 4))
    with pytest.raises(InputError, match=r"means_dtype torch.float64 or torch.float32, got torch.float16"):
        ClassMoments.zeros(4, 3, means_dtype=torch.float16)


def test_float32_means_made_in_inference_mode_can_be_updated_outside():
    with torch.inference_mode():
        moments = of_batch(torch.randn(4, 2), torch.arange(4) % 2, 2, means_dtype=torch.float32)
    assert moments.update(torch.randn(4, 2), torch.arange(4) % 2).num_samples == 8


def test_equal_values_do_not_round_the_diagonal_of_float32_products_one_way():
    signs = torch.randint(0, 2, (2000, 300), generator=torch.Generator().manual_seed(0)) * 2 - 1
    features = signs.float() / 3
    features[:2] = 0  # the references
    labels = torch.arange(2000) % 2
    in_float32, exact = of_batch(features, labels, 2), of_batch(features.double(), labels, 2)
    off = in_float32.scatter - exact.scatter
    assert float(off.abs().max()) > 0  # the products were indeed in float32
    relative = off.diagonal().abs() / exact.scatter.diagonal()
    assert float(relative.max()) < 1e-13  # of the product itself it is 2e-6
    assert_near(in_float32.spreads, exact.spreads, 1e-13)


def test_rounding_of_float32_products_averages_out():
    features, labels = clusters(6, 300, 700)
    features = torch.as_tensor(features, dtype=torch.float32)
    in_float32, exact = of_batch(features, labels, 6), of_batch(features.double(), labels, 6)
    assert nc1(in_float32) == pytest.approx(nc1(exact), rel=1e-7)
    assert nc1_cdnv(in_float32) == pytest.approx(nc1_cdnv(exact), rel=1e-9)


@pytest.mark.parametrize("scale", [1e-12, 1e-18, 1e-22, 1e18])
def test_a_class_too_small_or_large_for_float32_squares_is_added_up_in_float64(scale):
    features, labels = clusters(3, 300, 200)
    features[labels == 1] *= scale
    features = torch.as_tensor(features, dtype=torch.float32)
    in_float32, exact = of_batch(features, labels, 3), of_batch(features.double(), labels, 3)
    torch.testing.assert_close(in_float32.spreads, exact.spreads, rtol=1e-6, atol=0)
    assert_near(in_float32.scatter, exact.scatter, 1e-6)


@pytest.mark.parametrize("rows", [2048, 64, 7])
def test_a_product_over_several_blocks_is_that_of_each(monkeypatch, rows):
    features, labels = clusters(40, 300, 150)
    features = torch.as_tensor(features, dtype=torch.float32)
    monkeypatch.setattr(shifted, "_PASS_VALUES", 300 * 20)
    monkeypatch.setattr(waiting, "_HOST_ROWS", rows)
    assert_moments_of(of_batch(features, labels, 40), features, labels, 1e-6)


def test_a_block_that_float32_cannot_hold_is_added_in_float64_beside_others(monkeypatch):
    features, labels = clusters(4, 300, 80)
    features[75] *= 1e12  # one row outweighs its block, the last
    features = torch.as_tensor(features, dtype=torch.float32)
    monkeypatch.setattr(waiting, "_HOST_ROWS", 20)
    got = of_batch(features, labels, 4)
    exact = of_batch(features.double(), labels, 4)
    assert_near(got.scatter, exact.scatter, 1e-13)
    assert_near(got.spreads, exact.spreads, 1e-13)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_an_ignored_label_does_not_wrap_in_small_integers(dtype):
    """-100 is 156 in a byte: samples of class 156 are no ignored ones."""
    labels = torch.tensor([0, 156, 2, 156])
    features = torch.randn(4, 3)
    moments = ClassMoments.from_batch(features, labels.to(dtype), 157, ignore_index=-100)
    assert moments.num_samples == 4
    assert kept_rows(features, labels.to(dtype), -100).all()
    assert kept_rows(features, labels.to(dtype), 156).tolist() == [True, False, True, False]


def test_what_was_handed_out_stays_whatever_comes_after_it():
    features, labels = clusters(3, 4, 50)
    features, labels = torch.from_numpy(features), torch.from_numpy(labels)
    for before in (ClassMoments.zeros(3, 4), ClassMoments.from_batch(features, labels, 3)):
        seen = before.packed, before.means, before.scatter
        kept = [each.clone() for each in seen]
        before.update(features + 1, labels)
        _ = before.packed
        assert all(torch.equal(each, copy) for each, copy in zip(seen, kept, strict=True))
        seen, kept = (before.packed,), [before.packed.clone()]
        before.absorb(ClassMoments.from_batch(features, labels, 3))
        before.round_at_least(1.0)
        assert torch.equal(seen[0], kept[0])
        assert not torch.equal(before.packed, kept[0])


@pytest.mark.parametrize("sizes", [[1, 20, 4], [10] * 10, [100, 3, 1]])
def test_batches_that_fill_several_blocks_are_added_at_once(sizes, monkeypatch):
    monkeypatch.setattr(waiting, "_HOST_ROWS", 16)
    monkeypatch.setattr(waiting, "_FEWEST_ROWS", 1)
    features, labels = clusters(3, 4, sum(sizes))
    moments = ClassMoments.zeros(3, 4).update(torch.from_numpy(features[:5]), torch.from_numpy(labels[:5]))
    moments.update_batches(torch.from_numpy(features), torch.from_numpy(labels), sizes)
    both = np.concatenate([features[:5], features]), np.concatenate([labels[:5], labels])
    assert_moments_of(moments, *both, 1e-9)


def test_wider_features_in_inference_mode_leave_later_updates_possible():
    features, labels = clusters(3, 4, 60)
    moments = ClassMoments.zeros(3, 4)
    kept = labels != 2
    moments.update(torch.from_numpy(features[kept]).float(), torch.from_numpy(labels[kept]))
    with torch.inference_mode():
        moments.update(torch.from_numpy(features[kept]), torch.from_numpy(labels[kept]))
        _ = moments.num_samples
    moments.update(torch.from_numpy(features), torch.from_numpy(labels))
    assert moments.num_samples == 60 + 2 * kept.sum()


@pytest.mark.parametrize("wrong", [None, "moments.pt", Path("moments.pt"), {}, torch.ones(4, 3), 3])
def test_what_is_no_moments_is_answered_by_how_to_make_them(wrong):
    moments, weight = ClassMoments.from_batch(torch.eye(4), torch.arange(4) % 3, 3), torch.ones(3, 4)
    for function in (
        *(nc.measures, nc.worst_pairs, nc.more_measures, nc.spectra, nc.per_class, nc.directional_cdnv, moments.merge),
        lambda given: nc.gnc(given, weight),
        lambda given: nc.uniform_duality(given, weight),
        lambda given: nc.few_shot_error(given, 5),
        lambda given: nc.nc5(moments, given),
        lambda given: nc.standard_errors([moments, given]),
        lambda given: nc.ufm.certify_head_moments(given, 0.5, weight, None, 0.01),
    ):
        with pytest.raises(nc.InputError, match=r"as ClassMoments, got \w+: make them with ClassMoments.from_batch\("):
            function(wrong)


def test_a_capture_is_answered_by_its_moments():
    capture = nc.collect(torch.nn.Linear(4, 3), [(torch.eye(4), torch.arange(4) % 3)], progress=False)
    with pytest.raises(nc.InputError, match="got Capture: give its attribute moments"):
        nc.measures(capture)
