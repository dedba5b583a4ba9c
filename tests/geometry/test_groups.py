"""Samples dealt to groups: every class evenly in any order of samples; together the groups are all samples."""

import itertools
import math

import pytest
import torch

import neuralcollapse as nc
from neuralcollapse.geometry import groups, intake
from neuralcollapse.geometry.groups import GroupedMoments, joined, number_of_groups, without


def data(count=997, classes=6, dim=9, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    means = torch.randn(classes, dim, generator=generator, dtype=torch.float64)
    return (means[labels] + torch.randn(count, dim, generator=generator, dtype=torch.float64)).to(dtype), labels


def same(one, other, rel=1e-10):
    assert torch.equal(one.counts, other.counts)
    for name in ("means", "spreads", "scatter"):
        first, second = getattr(one, name), getattr(other, name)
        assert torch.allclose(first, second, rtol=rel, atol=rel * float(second.abs().max())), name
    assert one.rounding == other.rounding


ORDERS = {
    "shuffled": lambda labels: torch.randperm(len(labels), generator=torch.Generator().manual_seed(1)),
    "by class": lambda labels: labels.argsort(stable=True),
    "as they come": lambda labels: torch.arange(len(labels)),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("batch", [1, 50, 997])
@pytest.mark.parametrize("rows", [8192, 64])
def test_each_class_is_dealt_evenly(order, batch, rows, monkeypatch):
    monkeypatch.setattr(groups, "_ROWS", rows)
    features, labels = data()
    places = ORDERS[order](labels)
    grouped = GroupedMoments(6, 9, 10)
    for part in places.split(batch):
        grouped.update(features[part], labels[part])
    parts = grouped.parts()
    counts = torch.stack([part.counts for part in parts])
    assert bool((counts.amax(0) - counts.amin(0) <= 1).all())
    whole = nc.ClassMoments.from_batch(features, labels, 6)
    same(grouped.whole(), whole)
    same(joined(parts), whole)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("means_dtype", [torch.float64, torch.float32])
def test_the_groups_joined_are_one_pass_and_one_left_out_is_a_pass_over_the_others(dtype, means_dtype):
    features, labels = data(400, 5, 7, dtype=dtype)
    grouped = GroupedMoments(5, 7, 4, means_dtype=means_dtype)
    grouped.update(features + 100, labels)
    rel = 1e-9 if means_dtype == torch.float64 else 1e-5
    whole = grouped.whole()
    same(whole, nc.ClassMoments.from_batch(features + 100, labels, 5, means_dtype=means_dtype), rel)
    parts = grouped.parts()
    for left in range(4):
        others = [part for number, part in enumerate(parts) if number != left]
        same(without(whole, parts[left]), joined(others), rel)
        merged = others[0].merge(others[1]).merge(others[2])
        same(joined(others), merged, rel)


def test_moments_that_were_joined_or_left_out_do_not_change():
    features, labels = data(200)
    parts = [nc.ClassMoments.from_batch(*each, 6) for each in zip(features.split(50), labels.split(50), strict=True)]
    before = [part.packed.clone() for part in parts]
    whole = joined(parts)
    kept = whole.packed.clone()
    without(whole, parts[0])
    assert torch.equal(whole.packed, kept)
    assert all(torch.equal(part.packed, old) for part, old in zip(parts, before, strict=True))
    with pytest.raises(nc.InputError, match="both need the same num_classes"):
        joined([parts[0], nc.ClassMoments.zeros(7, 9)])


@pytest.mark.parametrize(("samples", "number"), [(3, 4), (4, 4), (5, 5), (9, 5), (10, 10), (19, 10), (20, 20)])
def test_small_classes_get_fewer_groups_each_with_its_share_of_a_class(samples, number):
    features, _ = data(12 * samples, 12, 5)
    grouped = GroupedMoments(12, 5, 20)
    grouped.update(features, torch.arange(12 * samples) % 12)
    parts = grouped.parts()
    assert len(parts) == number
    counts = torch.stack([part.counts for part in parts])
    assert int(counts.min()) == samples // number
    assert int(counts.max()) == math.ceil(samples / number)


def test_a_wrong_batch_is_refused_as_a_whole_and_named():
    features, labels = data(30)
    grouped = GroupedMoments(6, 9, 5)
    grouped.update_batches(features, labels, [10, 20])
    wrong = features.clone()
    wrong[25, 0] = torch.nan
    with pytest.raises(nc.InputError, match="batch 5: expected finite features"):
        grouped.update_batches(wrong, labels, [10, 10, 10])
    with pytest.raises(nc.InputError, match="expected labels from 0 to 5"):
        grouped.update(features, labels + 1)
    with pytest.raises(nc.InputError, match="use one layer throughout"):
        grouped.update(features[:, :5], labels)
    grouped.update(features[:0], labels[:0])
    assert grouped.whole().num_samples == 30


def test_how_many_groups():
    assert number_of_groups(False, 10, 64) == 0
    assert number_of_groups(True, 10, 512) == 20
    assert number_of_groups(7, 10**6, 4096) == 7
    assert number_of_groups(True, 1000, 2048) == 20
    assert number_of_groups(True, 10_000, 1024) == 11
    with pytest.raises(nc.InputError, match="to take up to 4 GiB"):
        number_of_groups(True, 50_000, 2048)
    for wrong in (1, 0, -3, 2.0, "many", None):
        with pytest.raises(nc.InputError, match="errors"):
            number_of_groups(wrong, 10, 10)


def test_features_of_several_dtypes_go_into_one():
    features, labels = data(120)
    grouped = GroupedMoments(6, 9, 5)
    dtypes = itertools.cycle([torch.float32, torch.float64, torch.bfloat16])
    for part, numbers in zip(features.split(30), labels.split(30), strict=True):
        grouped.update(part.to(next(dtypes)), numbers)
    assert grouped.whole().num_samples == 120


@pytest.fixture
def accelerator(monkeypatch):
    """CPU tensors are treated as those of an accelerator, with some 60 rows waiting."""
    for module in (groups, intake):
        monkeypatch.setattr(module, "waits_for_nothing", lambda device: False)
    monkeypatch.setattr(groups, "_ROWS", 60)
    monkeypatch.setattr(groups, "_FEWEST_ROWS", 60)


@pytest.mark.parametrize("batch", [1, 7, 40, 997])
def test_groups_on_an_accelerator_are_those_on_the_cpu(accelerator, batch):
    features, labels = data()
    grouped = GroupedMoments(6, 9, 10)
    for part, numbers in zip(features.split(batch), labels.split(batch), strict=True):
        grouped.update(part, numbers)
    for number, part in enumerate(grouped.parts()):
        assert part.num_samples == pytest.approx(100, abs=3), number
    same(grouped.whole(), nc.ClassMoments.from_batch(features, labels, 6))


@pytest.mark.parametrize(("wrong", "message"), [("value", "finite features, got NaN"), ("label", "labels from 0 to 5")])
@pytest.mark.parametrize("size", [10, 30])
def test_an_accelerator_names_a_wrong_batch_later_and_counts_the_others(accelerator, wrong, message, size):
    features, labels = data(20 * size)
    broken, numbers = features.clone(), labels.clone()
    for row in (4 * size + 3, 7 * size):  # of batches 5 and 8
        if wrong == "value":
            broken[row, 0] = torch.nan
        else:
            numbers[row] = 6
    grouped, raised = GroupedMoments(6, 9, 5), []
    for batch in range(20):
        part = slice(batch * size, (batch + 1) * size)
        try:
            grouped.update(broken[part], numbers[part])
        except nc.InputError as error:
            raised.append(str(error))
    try:
        grouped.whole()
    except nc.InputError as error:
        raised.append(str(error))
    assert f"batch 5: expected {message}" in raised[0]
    assert "batch 8" in raised[-1] or "1 later" in raised[0]
    kept = torch.ones(20, dtype=torch.bool)
    kept[[4, 7]] = False
    kept = kept.repeat_interleave(size)
    same(grouped.whole(), nc.ClassMoments.from_batch(features[kept], labels[kept], 6))
