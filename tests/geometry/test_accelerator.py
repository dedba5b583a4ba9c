"""Moments on an accelerator: nothing waits for the device, few operations, and wrong batches come to light at a look.

There need not be a GPU: the path for one runs on CPU tensors, where every dispatched operation is looked at, and on
fake tensors, which have no values that anything could wait for.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from neuralcollapse.errors import InputError
from neuralcollapse.geometry import intake, products, waiting
from neuralcollapse.geometry.formulas import nc1
from neuralcollapse.geometry.moments import ClassMoments
from tests import oracles
from tests.geometry.test_moments import assert_moments_of, clusters
from tests.helpers import Dispatched


@pytest.fixture(params=["fast float64", "slow float64"])
def accelerator(request, monkeypatch):
    """CPU tensors are treated as those of an accelerator, with blocks of 40 rows."""
    monkeypatch.setattr(intake, "waits_for_nothing", lambda device: False)
    monkeypatch.setattr(products, "fast_float64", lambda device: request.param == "fast float64")
    monkeypatch.setattr(waiting, "_DEVICE_ROWS", 40)


def added(features, labels, num_classes, batch, **options):
    moments = ClassMoments.zeros(num_classes, features.shape[1])
    for part, part_labels in zip(features.split(batch), labels.split(batch), strict=True):
        moments.update(part, part_labels, **options)
    return moments


def float32_clusters(num_classes, dim, count, **options):
    features, labels = clusters(num_classes, dim, count, **options)
    return torch.from_numpy(features).float(), torch.from_numpy(labels)


@pytest.mark.parametrize("batch", [1, 7, 40, 100])
@pytest.mark.parametrize(("num_classes", "dim"), [(5, 6), (5, 300), (90, 300)])
def test_moments_equal_brute_force(accelerator, num_classes, dim, batch):
    features, labels = float32_clusters(num_classes, dim, 700, noise=1e-3, offset=100.0)
    assert set(labels.tolist()) == set(range(num_classes))
    moments = added(features, labels, num_classes, batch)
    assert_moments_of(moments, features.double().numpy(), labels.numpy(), 1e-6)
    exact = oracles.nc1(features.double().numpy(), labels.numpy(), num_classes)
    assert nc1(moments) == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_dtype_is_taken(accelerator, dtype):
    features, labels = float32_clusters(5, 300, 150)
    features = features.to(dtype)
    moments = added(features, labels, 5, 25)
    assert_moments_of(moments, features.double().numpy(), labels.numpy(), 1e-6)
    assert moments.rounding == torch.finfo(torch.float32 if dtype == torch.float64 else dtype).eps


def test_the_features_stay_as_they_were(accelerator):
    features, labels = float32_clusters(5, 6, 150)
    features = features.double()
    before = features.clone()
    _ = added(features, labels, 5, 100).means
    assert torch.equal(features, before)


@pytest.mark.parametrize("ignored", [-100, 2])
def test_samples_with_the_ignored_label_are_left_out_whatever_their_features(accelerator, ignored):
    features, labels = float32_clusters(4, 6, 150)
    marked = labels.clone()
    marked[::3] = ignored
    kept = marked != ignored
    features[~kept] = torch.nan
    moments = added(features, marked, 4, 25, ignore_index=ignored)
    assert_moments_of(moments, features[kept].double().numpy(), marked[kept].numpy(), 1e-6)


@pytest.mark.parametrize("batch", [10, 100], ids=["smaller than a block", "larger than a block"])
@pytest.mark.parametrize("place", [0, 5, 99])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("label", "expected labels from 0 to 3"),
        ("negative", "expected labels from 0"),
        ("NaN", "finite"),
        ("inf", "fin"),
    ],
)
def test_a_wrong_batch_is_named_at_the_next_look_and_nothing_of_it_is_counted(
    accelerator, batch, place, wrong, message
):
    features, labels = float32_clusters(4, 6, 300)
    spoiled, mislabelled = features.clone(), labels.clone()
    at = 100 + place
    if wrong in ("label", "negative"):
        mislabelled[at] = 4 if wrong == "label" else -1
    else:
        spoiled[at] = torch.nan if wrong == "NaN" else torch.inf
    moments = added(spoiled, mislabelled, 4, batch)
    number = at // batch + 1
    with pytest.raises(InputError, match=f"^batch {number}: .*{message}.*nothing of that batch was counted"):
        moments.num_samples  # noqa: B018
    right = (torch.arange(300) // batch + 1) != number
    assert_moments_of(moments, features[right].double().numpy(), labels[right].numpy(), 1e-6)


def test_the_first_of_several_wrong_batches_is_named(accelerator):
    features, labels = float32_clusters(4, 6, 300)
    features[250] = torch.nan
    labels[130] = 9
    with pytest.raises(InputError, match=r"^batch 14: expected labels"):
        _ = added(features, labels, 4, 10).means


def test_a_look_in_between_changes_nothing(accelerator):
    features, labels = float32_clusters(4, 300, 300)
    looked, whole = ClassMoments.zeros(4, 300), added(features, labels, 4, 30)
    for part, part_labels in zip(features.split(30), labels.split(30), strict=True):
        looked.update(part, part_labels)
        assert float(looked.scatter.trace()) == pytest.approx(float(looked.spreads.sum()), rel=1e-12)
    for mine, theirs in ((looked.means, whole.means), (looked.scatter, whole.scatter)):
        assert float((mine - theirs).abs().max()) < 1e-6 * float(theirs.abs().max())


@pytest.mark.parametrize("scale", [1e-30, 1e16, 1e30])
def test_no_product_leaves_float32(accelerator, scale):
    features, labels = float32_clusters(3, 300, 90)
    features *= scale
    assert_moments_of(added(features, labels, 3, 30), features.double().numpy(), labels.numpy(), 1e-6)


@pytest.mark.parametrize("ignored", [None, -1])
def test_an_update_dispatches_four_operations_and_a_block_forty_and_none_of_them_waits(accelerator, ignored):
    features, labels = float32_clusters(20, 300, 160)
    moments = ClassMoments.zeros(20, 300)
    moments.update(features[:10], labels[:10], ignore_index=ignored)
    counts = []
    for start in range(10, 160, 10):
        part = features[start : start + 10], labels[start : start + 10]
        with Dispatched() as seen:
            moments.update(*part, ignore_index=ignored)
        assert not seen.waits
        counts.append(len(seen.names))
    between = [count for number, count in enumerate(counts) if number % 4 != 2]
    assert max(between) <= 4
    assert len(between) == 11
    slow = not products.fast_float64(features.device)
    assert max(counts) <= 4 + 40 + 25 * slow, seen.names
    assert min(count for number, count in enumerate(counts) if number % 4 == 2) > 4  # these were full blocks


def test_tensors_without_values_pass_through(accelerator):
    """Fake tensors raise where an operation depends on values."""
    with FakeTensorMode():
        moments = ClassMoments.zeros(10, 300)
        for _ in range(30):
            moments.update(torch.empty(16, 300), torch.empty(16, dtype=torch.int64))


def test_an_error_about_an_earlier_batch_leaves_out_no_other(accelerator, monkeypatch):
    monkeypatch.setattr(intake, "MARKS", 8)
    features, labels = float32_clusters(4, 6, 100)
    spoiled = features.clone()
    spoiled[25] = torch.nan
    moments, other = ClassMoments.zeros(4, 6), ClassMoments.zeros(4, 6)
    for start in range(0, 80, 10):
        moments.update(spoiled[start : start + 10], labels[start : start + 10])
    with pytest.raises(InputError, match=r"^batch 3: "):
        moments.update(features[80:90], labels[80:90])
    other.update(spoiled[20:30], labels[20:30])
    with pytest.raises(InputError, match=r"^batch 1: "):
        other.absorb(ClassMoments.from_batch(features[90:], labels[90:], 4))
    moments.absorb(other)
    right = [*range(20), *range(30, 100)]
    assert_moments_of(moments, features[right].double().numpy(), labels[right].numpy(), 1e-6)
