"""Some classes alone: measured as if the others' samples and rows had never been."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import neuralcollapse as nc
from neuralcollapse.geometry.classes import LEFT_OUT, ClassSubset, label_counts

K, D, N = 7, 9, 160
KEPT = [1, 2, 4, 6]


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(K, (N,), generator=generator)
    features = torch.randn(K, D, generator=generator)[labels] + 0.3 * torch.randn(N, D, generator=generator)
    return features, labels


@pytest.fixture
def head():
    torch.manual_seed(1)
    return nn.Linear(D, K)


def alone(features, labels, head):
    """The measures of the kept classes' samples, numbered anew by hand."""
    kept = torch.isin(labels, torch.tensor(KEPT))
    renamed = torch.tensor([KEPT.index(int(label)) for label in labels[kept]])
    moments = nc.ClassMoments.from_batch(features[kept], renamed, len(KEPT))
    return nc.measures(moments, head.weight[KEPT], head.bias[KEPT]), kept


def test_frequent_classes_are_those_with_enough_samples():
    counts = torch.tensor([0, 5, 3, 12, 4])
    assert nc.frequent_classes(counts, 4).tolist() == [1, 3, 4]
    assert nc.frequent_classes(counts, 1).tolist() == [1, 2, 3, 4]
    with pytest.raises(nc.InputError, match="at least 13 samples, got at most 12"):
        nc.frequent_classes(counts, 13)
    with pytest.raises(nc.InputError, match="at_least"):
        nc.frequent_classes(counts, 0)


def test_relabelling_numbers_the_kept_classes_and_leaves_out_the_rest():
    subset = ClassSubset([4, 1, 6, 2], K)
    assert len(subset) == 4
    labels = torch.tensor([0, 1, 2, 3, 4, 5, 6, -100])
    assert subset.relabel(labels, -100).tolist() == [LEFT_OUT, 0, 1, LEFT_OUT, 2, LEFT_OUT, 3, LEFT_OUT]
    assert subset.relabel(torch.tensor([6], dtype=torch.int64)).tolist() == [3]
    assert subset.rows(torch.arange(K)).tolist() == KEPT
    assert subset.relabel(labels[:0]).tolist() == []


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([0, K], f"classes from 0 to {K - 1}, got {K}"),
        ([-1, 2], "got -1"),
        ([1, 1], "each class once, got 1 twice"),
        ([], "list of class numbers"),
        (torch.ones(K, dtype=torch.bool), "mask"),
        ([[1, 2]], "list of class numbers"),
    ],
)
def test_what_are_no_classes_is_refused(classes, message):
    with pytest.raises(nc.InputError, match=message):
        ClassSubset(classes, K)


def test_labels_that_are_no_classes_are_refused_by_their_own_numbers():
    with pytest.raises(nc.InputError, match=f"labels from 0 to {K - 1} .*got {K}"):
        ClassSubset(KEPT, K).relabel(torch.tensor([K]))
    with pytest.raises(nc.InputError, match="got -1"):
        ClassSubset(KEPT, K).relabel(torch.tensor([1, -1]))
    with pytest.raises(nc.InputError, match="got 9"):
        label_counts(torch.tensor([9]), K)


def test_features_of_some_classes(data, head):
    features, labels = data
    expected, kept = alone(features, labels, head)
    weight, bias = head.weight.detach(), head.bias.detach()
    found = nc.measure_features(features, labels, weight, bias, classes=KEPT)
    assert found["num_samples"] == int(kept.sum())
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-12), name
    logits = features[kept].double() @ weight.double().T + bias
    predicted = logits.argmax(1)
    assert found["accuracy"] == pytest.approx(float((predicted == labels[kept]).double().mean()))
    means = torch.stack([features[labels == k].double().mean(0) for k in KEPT])
    nearest = torch.tensor(KEPT)[torch.cdist(features[kept].double(), means).argmin(1)]
    assert found["nc4"] == pytest.approx(float((nearest != predicted).double().mean()))
    assert 0 < found["nc4"] < 1


def test_features_of_frequent_classes(data, head):
    features, labels = data
    few = labels.bincount().argmin()
    at_least = int(labels.bincount()[few]) + 1
    classes = nc.frequent_classes(labels.bincount(minlength=K), at_least)
    assert nc.measure_features(features, labels, min_count=at_least) == nc.measure_features(
        features, labels, classes=classes
    )
    for call in (nc.measure_features, lambda *args, **options: nc.measure(head, [args], head, **options)):
        with pytest.raises(nc.InputError, match="expected min_count to be an integer"):
            call(features, labels, min_count=0)
        with pytest.raises(nc.InputError, match="classes or min_count, got both"):
            call(features, labels, classes=[1], min_count=2)


def test_features_of_classes_that_never_come(data):
    features, labels = data
    with pytest.raises(nc.InputError, match="none of the samples"):
        nc.measure_features(features, torch.zeros_like(labels), num_classes=K, classes=[1, 2])


def test_a_model_measured_on_some_classes(data, head):
    features, labels = data
    labels = labels.clone()
    labels[::10] = -100
    loader = DataLoader(TensorDataset(features, labels), batch_size=32)
    whole = labels != -100
    weight, bias = head.weight.detach(), head.bias.detach()
    expected = nc.measure_features(features[whole], labels[whole], weight, bias, classes=KEPT)
    found = nc.measure(nn.Sequential(head), loader, "0", classes=KEPT, ignore_index=-100)
    kept = whole & torch.isin(labels, torch.tensor(KEPT))
    loss = float(nn.functional.cross_entropy(features[kept] @ weight.T + bias, labels[kept]))
    assert found.pop("loss") == pytest.approx(loss, rel=1e-6)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-9), name


def test_a_model_measured_on_frequent_classes_counts_them_first(data, head):
    features, labels = data
    counts = labels.bincount(minlength=K)
    at_least = int(counts.sort().values[2])
    loader = DataLoader(TensorDataset(features, labels), batch_size=32)
    found = nc.measure(nn.Sequential(head), loader, "0", min_count=at_least)
    assert found == nc.measure(nn.Sequential(head), loader, "0", classes=nc.frequent_classes(counts, at_least))
    assert found["num_samples"] == int(counts[counts >= at_least].sum())


def test_the_metric_of_some_classes_over_batches_merges_and_devices(data, head):
    features, labels = data
    expected, _ = alone(features, labels, head)
    parts = [nc.NeuralCollapse(K, D, head, classes=KEPT, ignore_index=-100) for _ in range(2)]
    for index, (block, block_labels) in enumerate(zip(features.split(40), labels.split(40), strict=True)):
        parts[index % 2].update(block, block_labels)
    parts[0].update(features[:3], torch.full((3,), -100))
    parts[0].merge_state(parts[1])
    for name, value in parts[0].compute().items():
        assert float(value) == pytest.approx(expected[name], rel=1e-9), name
    with pytest.raises(nc.InputError, match="metric of the same classes"):
        parts[0].merge_state(nc.NeuralCollapse(K, D, head, classes=[0, 1, 2, 3]))
    with pytest.raises(nc.InputError, match=f"batch 6: .*got {K}"):
        parts[0].update(features[:1], torch.tensor([K]))


def test_what_is_wrong_is_called_by_its_number_in_the_users_data(data, head):
    features, labels = data
    weight = head.weight.detach().clone()
    weight[6] = 0
    with pytest.warns(nc.NeuralCollapseWarning, match=r"no direction \(class 6\)") as caught:
        nc.measure_features(features, labels, weight, classes=KEPT, more=True)
    assert not any("number" in str(each.message) for each in caught)
    row = int((labels == 4).nonzero()[-1])
    wrong = features.clone()
    wrong[row] = torch.nan
    with pytest.raises(nc.InputError, match=rf"\(rows {row}\)"):
        nc.measure_features(wrong, labels, classes=KEPT)


def test_a_capture_whose_moments_grow_measures_them_anew(data, head):
    features, labels = data
    capture = nc.collect(nn.Sequential(head), [(features, labels)], progress=False)
    before = capture.measures()["nc1"]
    assert capture.measures()["nc1"] == before
    capture.moments.update(3 * features, labels)
    both = nc.ClassMoments.from_batch(torch.cat([features, 3 * features]), torch.cat([labels, labels]), K)
    assert capture.measures()["nc1"] == pytest.approx(nc.measures(both)["nc1"], rel=1e-9)
    assert capture.per_class().count.sum() == 2 * N
