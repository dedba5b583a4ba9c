"""The test set beside the training set: its own measures, and its samples against the class means of the training."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import neuralcollapse as nc
from neuralcollapse.capture import sums
from neuralcollapse.capture.collect import collect, collect_test
from neuralcollapse.capture.features import measure_features_by_class
from neuralcollapse.geometry import intake
from neuralcollapse.geometry.measures import CLASSIFIER_MEASURES, FEATURE_MEASURES, WEIGHT_MEASURES
from neuralcollapse.loops.kept import classes_of
from tests.helpers import Dispatched, SmallNet

K = 3


class TwoLayers(nn.Module):
    def __init__(self, classes=K):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.fc = nn.Linear(4, 7), nn.Linear(7, 5), nn.Linear(5, classes)

    def forward(self, inputs):
        return self.fc(self.second(self.first(inputs).relu()).tanh())

    @torch.no_grad()
    def features(self, inputs):
        first = self.first(inputs)
        second = self.second(first.relu())
        return {"": second.tanh(), "first": first, "second": second}


def samples(count, seed, classes=K):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    return torch.randn(count, 4, generator=generator) + labels[:, None], labels


TRAIN, TEST = samples(50, 1), samples(31, 2)


def batches(data, size=8):
    return DataLoader(TensorDataset(*data), batch_size=size)


def means_of(features, labels, classes=K):
    """Class means, infinitely far away for a class without samples, so that it is never the nearest."""
    rows = [features[labels == k].double().mean(0) for k in range(classes)]
    return torch.stack([torch.full_like(row, 1e30) if row.isnan().any() else row for row in rows])


def by_hand(features, labels, predicted, means):
    """(nc4, ncc_accuracy) from the definitions."""
    nearest = torch.cdist(features.double(), means, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
    return float((nearest != predicted).double().mean()), float((nearest == labels).double().mean())


def same(got, want):
    assert got.keys() == want.keys()
    assert got == pytest.approx(want, rel=1e-6, nan_ok=True)


def expected_test(model, layer="", train=TRAIN, test=TEST, classes=K):
    """What `measure` gives for the test set, in one layer."""
    (inputs, labels), (test_inputs, test_labels) = train, test
    with torch.no_grad():
        logits = model(test_inputs)
    features = model.features(test_inputs)[layer]
    moments = nc.ClassMoments.from_batch(features, test_labels, classes)
    head = () if layer else (model.fc.weight, model.fc.bias)
    want = {name: x for name, x in nc.measures(moments, *head).items() if name not in WEIGHT_MEASURES}
    means = means_of(model.features(inputs)[layer], labels, classes)
    want["nc4"], want["ncc_accuracy"] = by_hand(features, test_labels, logits.argmax(1), means)
    if not layer:
        want["accuracy"] = float((logits.argmax(1) == test_labels).double().mean())
        want["loss"] = float(F.cross_entropy(logits.double(), test_labels))
        want["num_samples"] = len(test_labels)
    return want


# What it gives


@pytest.mark.parametrize("size", [1, 8, 1000])
def test_it_gives_what_the_definitions_give(size):
    model = TwoLayers()
    got = nc.measure(model, batches(TRAIN, size), layers=["first", "second"], test_loader=batches(TEST, size))
    layers = got["test"].pop("layers")
    same(got["test"], expected_test(model))
    for name in ("first", "second"):
        same(layers[name], expected_test(model, name))
    measured = {*FEATURE_MEASURES, *CLASSIFIER_MEASURES} - {*WEIGHT_MEASURES}
    assert measured < set(got["test"])
    assert 0 < got["test"]["ncc_accuracy"] < 1  # else they would be tested against trivial values
    assert 0 < got["test"]["nc4"] < 1


def test_the_training_part_is_what_it_is_without_a_test_set_and_has_the_accuracy_of_the_nearest_mean():
    model, (inputs, labels) = TwoLayers(), TRAIN
    got = nc.measure(model, batches(TRAIN), layers=["first"], test_loader=batches(TEST))
    got.pop("test")
    want = nc.measure(model, batches(TRAIN), layers=["first"])
    same(got.pop("layers")["first"], want.pop("layers")["first"])
    same(got, want)
    predicted = model(inputs).argmax(1)
    for name, part in (("", got), ("first", nc.measure(model, batches(TRAIN), layers=["first"])["layers"]["first"])):
        features = model.features(inputs)[name]
        wanted = by_hand(features, labels, predicted, means_of(features, labels))
        assert (part["nc4"], part["ncc_accuracy"]) == pytest.approx(wanted, abs=1e-12)


def test_the_training_set_as_its_own_test_set_has_the_same_measures():
    model = TwoLayers()
    got = nc.measure(model, batches(TRAIN), layers=["first"], test_loader=batches(TRAIN))
    test = got.pop("test")
    same(test.pop("layers")["first"], got.pop("layers")["first"])
    assert test == pytest.approx({name: x for name, x in got.items() if name not in WEIGHT_MEASURES}, rel=1e-9)


def test_collapsed_features_have_the_values_of_collapse():
    labels = torch.arange(30) % K
    inputs = F.one_hot(labels, K).float()
    model = nn.Sequential(nn.Identity(), nn.Linear(K, K))
    with torch.no_grad():
        model[1].weight.copy_(3 * torch.eye(K))
        model[1].bias.zero_()
    test = nc.measure(model, [(inputs, labels)], test_loader=[(inputs[:9], labels[:9])])["test"]
    assert test["ncc_accuracy"] == test["accuracy"] == 1
    assert test["nc4"] == 0
    assert test["nc1"] == pytest.approx(0, abs=1e-9)
    assert test["nc3"] == pytest.approx(0, abs=1e-6)


def test_a_test_loader_needs_to_be_run_through_once_only():
    model = TwoLayers()
    got = nc.measure(model, batches(TRAIN), test_loader=iter(list(batches(TEST))))
    same(got["test"], expected_test(model))


def test_features_that_are_too_many_to_be_kept_are_seen_twice(monkeypatch):
    model = TwoLayers()
    want = nc.measure(model, batches(TRAIN), layers=["first"], test_loader=batches(TEST))
    monkeypatch.setattr(sums, "_KEEP_BYTES", 50 * 5 * 4 + 100)  # the features alone would fit, not the layer's
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    got = nc.measure(model, batches(TRAIN), layers=["first"], test_loader=batches(TEST))
    assert len(calls) == 7 + 7 + 4
    assert got.pop("layers") == want.pop("layers")
    assert got == want


def test_without_nc4_there_is_none_of_the_test_set():
    got = nc.measure(TwoLayers(), batches(TRAIN), layers=["first"], test_loader=batches(TEST), nc4=False)
    for part in (got, got["layers"]["first"], got["test"], got["test"]["layers"]["first"]):
        assert not {"nc4", "ncc_accuracy"} & set(part)


# Classes


def test_test_samples_of_classes_without_training_samples_count_as_wrong():
    model, (inputs, labels) = TwoLayers(), TRAIN
    seen = labels != 1
    train = inputs[seen], labels[seen]
    with pytest.warns(nc.NeuralCollapseWarning) as caught:
        got = nc.measure(model, [train], test_loader=batches(TEST))
    text = next(str(each.message) for each in caught if "reference" in str(each.message))
    assert text == (
        "the training set, or reference, has no samples of class 1: those samples here, 10, count as wrong in "
        "ncc_accuracy"
    )
    same(got["test"], expected_test(model, train=train))
    assert got["test"]["ncc_accuracy"] <= 21 / 31


def test_classes_without_test_samples_are_left_out_of_its_measures_alone():
    model, (inputs, labels) = TwoLayers(), TEST
    kept = labels != 2
    test = inputs[kept], labels[kept]
    with pytest.warns(nc.NeuralCollapseWarning, match="^test set: no samples of class 2"):
        got = nc.measure(model, batches(TRAIN), test_loader=[test])
    with pytest.warns(nc.NeuralCollapseWarning, match="^no samples of class 2"):
        want = expected_test(model, test=test)
    same(got["test"], want)  # a sample may lie nearest to the mean of class 2


def test_a_test_set_of_one_class_has_what_is_defined_for_it():
    model, (inputs, labels) = TwoLayers(), TEST
    test = inputs[labels == 2], labels[labels == 2]
    with pytest.warns(nc.NeuralCollapseWarning) as caught:
        got = nc.measure(model, batches(TRAIN), test_loader=[test])["test"]
    assert all(str(each.message).startswith("test set: ") for each in caught)
    assert math.isnan(got["nc1"])
    assert got["ncc_accuracy"] == pytest.approx(
        by_hand(model.features(test[0])[""], test[1], test[1], means_of(model.features(TRAIN[0])[""], TRAIN[1]))[1]
    )


@pytest.mark.parametrize("options", [{"classes": [0, 2, 3]}, {"min_count": 10}])
def test_chosen_classes_are_those_of_the_test_set_too(options):
    model = TwoLayers(classes=5)
    inputs, labels = samples(50, 1)
    labels = torch.where(labels == 1, 3, labels)  # classes 0, 2 and 3, and one sample of class 4
    labels[0] = 4
    test_inputs, test_labels = samples(40, 2, classes=5)
    got = nc.measure(model, [(inputs, labels)], test_loader=[(test_inputs, test_labels)], layers=["first"], **options)
    place = torch.tensor([0, -1, 1, 2, -1])
    train_kept, kept = place[labels] >= 0, place[test_labels] >= 0
    targets = place[test_labels[kept]]
    logits = model(test_inputs[kept]).detach()
    for name, part in (("", got["test"]), ("first", got["test"]["layers"]["first"])):
        means = means_of(model.features(inputs[train_kept])[name], place[labels[train_kept]])
        wanted = by_hand(model.features(test_inputs[kept])[name], targets, place[logits.argmax(1)], means)
        assert (part["nc4"], part["ncc_accuracy"]) == pytest.approx(wanted, abs=1e-12)
    assert got["test"]["num_samples"] == int(kept.sum())
    assert got["test"]["loss"] == pytest.approx(float(F.cross_entropy(logits, test_labels[kept])), rel=1e-5)


def test_ignored_samples_are_left_out_of_the_test_set_too():
    model, (inputs, labels) = TwoLayers(), TEST
    ignored = labels.clone()
    ignored[::4] = -100
    kept = ignored >= 0
    got = nc.measure(model, batches(TRAIN), test_loader=batches((inputs, ignored)), ignore_index=-100)
    same(got["test"], expected_test(model, test=(inputs[kept], labels[kept])))


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.fc = nn.Embedding(11, 12), nn.Linear(12, 11)

    def forward(self, input_ids):
        return self.fc(self.embed(input_ids))


def test_next_tokens_of_a_test_set_are_measured_against_the_means_of_the_training():
    model, generator = Tokens(), torch.Generator().manual_seed(3)
    ids, test_ids = (torch.randint(0, 11, (count, 9), generator=generator) for count in (40, 20))
    got = nc.measure(
        model,
        [{"input_ids": ids, "labels": ids}],
        next_token=True,
        test_loader=[{"input_ids": test_ids, "labels": test_ids}],
    )["test"]
    features = [model.embed(each[:, :-1]).detach().flatten(0, 1) for each in (ids, test_ids)]
    labels = [each[:, 1:].flatten() for each in (ids, test_ids)]
    assert got["num_samples"] == 160
    wanted = by_hand(features[1], labels[1], model.fc(features[1]).argmax(1), means_of(features[0], labels[0], 11))
    assert (got["nc4"], got["ncc_accuracy"]) == pytest.approx(wanted, abs=1e-12)


def test_float32_means_and_sampled_pairs_reach_the_test_set():
    model = TwoLayers()
    got = nc.measure(model, batches(TRAIN), test_loader=batches(TEST), means_dtype=torch.float32, pairwise=2)["test"]
    want = nc.measure(model, batches(TRAIN), test_loader=batches(TEST))["test"]
    assert got["num_pairs"] == 2
    assert {"nc1_cdnv_error", "max_equiangularity_means_error"} < set(got)
    assert got["nc1"] == pytest.approx(want["nc1"], rel=1e-4)
    assert got["ncc_accuracy"] == want["ncc_accuracy"]
    assert "nc1_cdnv" not in nc.measure(model, batches(TRAIN), test_loader=batches(TEST), pairwise=False)["test"]


# A reference


def test_a_pass_is_compared_with_the_means_of_a_reference():
    model = TwoLayers()
    train = collect(model, batches(TRAIN), layers=["first"], progress=False)
    want = nc.measure(model, batches(TRAIN), layers=["first"], test_loader=batches(TEST))["test"]
    for reference in (train, {"": train.moments, **train.layers}):
        got = nc.measure(model, iter(list(batches(TEST))), layers=["first"], reference=reference)
        layers = got.pop("layers")["first"], want["layers"]["first"]
        same(*layers)
        assert {name: got[name] for name in want if name != "layers"} == pytest.approx(
            {name: x for name, x in want.items() if name != "layers"}, rel=1e-9
        )
    own = nc.measure(model, batches(TEST))
    assert own["ncc_accuracy"] != nc.measure(model, batches(TEST), reference=train.moments)["ncc_accuracy"]


def test_a_test_set_beside_a_reference_is_compared_with_the_reference():
    model = TwoLayers()
    train = collect(model, batches(TRAIN), progress=False).moments
    other = samples(20, 5)
    got = nc.measure(model, batches(other), test_loader=batches(TEST), reference=train)
    want = nc.measure(model, batches(TRAIN), test_loader=batches(TEST))
    same(got["test"], want["test"])


def test_a_reference_of_all_classes_serves_some_of_them():
    model = TwoLayers()
    train = collect(model, batches(TRAIN), progress=False).moments
    some = collect(model, batches(TRAIN), classes=[0, 2], progress=False)
    got = nc.measure(model, batches(TEST), classes=[0, 2], reference=train)
    want = nc.measure(model, batches(TEST), classes=[0, 2], reference=some)
    assert got == pytest.approx(want, rel=1e-9)
    with pytest.raises(nc.InputError, match="measured with classes 0, 2, got all classes: measure the same"):
        nc.measure(model, batches(TEST), reference=some)
    with pytest.raises(nc.InputError, match="with 3 classes, got 2: measure the same classes"):
        nc.measure(model, batches(TEST), reference=some.moments)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("train", "expected reference as ClassMoments, or a dict of them by layer, got a str"),
        ({}, "expected reference moments of the features, got those of none"),
        (nc.ClassMoments.zeros(K, 5), "the features with samples, got none: update them first"),
        (nc.ClassMoments.zeros(4, 5), "the features with 3 classes, got 4"),
        (nc.ClassMoments.from_means(torch.ones(K, dtype=torch.long), torch.randn(K, 6)), "dimension 5, got 6"),
    ],
)
def test_a_wrong_reference_is_refused(reference, message):
    with pytest.raises(nc.InputError, match=message):
        nc.measure(TwoLayers(), batches(TEST), reference=reference)


def test_a_reference_has_to_know_the_layers_and_needs_nc4():
    model = TwoLayers()
    train = collect(model, batches(TRAIN), progress=False)
    with pytest.raises(nc.InputError, match="moments of the inner layer 'first', got those of '': give a dict"):
        nc.measure(model, batches(TEST), layers=["first"], reference=train.moments)
    with pytest.raises(nc.InputError, match="reference is for nc4 and ncc_accuracy"):
        nc.measure(model, batches(TEST), reference=train.moments, nc4=False)


# Refusals


def test_the_table_of_classes_has_the_accuracy_on_the_test_set():
    torch.manual_seed(0)
    features, tested, labels = torch.randn(50, 5), torch.randn(31, 5), torch.arange(50) % K
    weight, other = torch.randn(K, 5), torch.arange(31) % 2  # none of class 2
    right = (tested @ weight.T).argmax(1) == other
    expected = [float(right[other == k].double().mean()) for k in range(2)]
    with pytest.warns(nc.NeuralCollapseWarning, match="test set: no samples of class 2"):
        _, table, _ = measure_features_by_class(features, labels, weight, test_features=tested, test_labels=other)
    assert table.test_accuracy[:2].tolist() == expected
    assert math.isnan(table.test_accuracy[2])
    assert "test acc." in str(table)
    seen = []
    recorder = nc.Recorder(
        batches(TRAIN), batches(TEST), progress=False, on_record=lambda _, capture: seen.append(capture)
    )
    accuracy = recorder.measure(TwoLayers(), 0).test["accuracy"]
    counts = TEST[1].bincount()
    assert float(seen[0].per_class().test_accuracy @ counts.double()) == pytest.approx(accuracy * len(TEST[1]))
    assert classes_of(0, seen[0], pairwise=True).columns["test_accuracy"].tolist() == pytest.approx(
        seen[0].per_class().test_accuracy.tolist()
    )


def test_more_measures_come_with_the_pass():
    capture = collect(TwoLayers(), batches(TRAIN))
    found = nc.measure(TwoLayers(), batches(TRAIN), more=True, test_loader=batches(TEST))
    assert found["more"] == pytest.approx(nc.more_measures(capture.moments, capture.weight), nan_ok=True)
    assert "more" not in found["test"]


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ([], "^test_loader: the loader gave no samples"),
        ([TEST, (TEST[0], TEST[1] + 1)], "^test_loader: batch 2: expected labels from 0 to 2"),
        (
            [TEST, (TEST[0][:, :3], TEST[1])],
            r"^test_loader: batch 2: .* takes, got float32 \(31, 3\), on which it raised",
        ),
        ([(TEST[0] * math.nan, TEST[1])], "^test_loader: batch 1: expected finite features"),
        (TensorDataset(*TEST), "^expected test_loader as a loader that gives batches"),
        (3, "^expected test_loader as a loader that gives batches"),
    ],
)
def test_a_wrong_test_loader_is_named(loader, message):
    with pytest.raises(nc.InputError, match=message):
        nc.measure(TwoLayers(), batches(TRAIN), test_loader=loader)


# Right predictions by class


@pytest.mark.parametrize("size", [1, 7, 50])
def test_right_predictions_are_counted_by_class(size):
    model, (inputs, labels) = TwoLayers(), TRAIN
    capture = collect(model, batches(TRAIN, size), progress=False)
    right = model(inputs).argmax(1) == labels
    assert capture.correct.dtype == torch.int64
    assert capture.correct.tolist() == [int(right[labels == k].sum()) for k in range(K)]
    assert capture.accuracy == pytest.approx(float(right.double().mean()))


def test_right_predictions_of_chosen_classes_are_numbered_like_them():
    model = TwoLayers(classes=5)
    inputs, labels = samples(60, 4, classes=5)
    capture = collect(model, [(inputs, labels)], classes=[1, 4], progress=False)
    right = model(inputs).argmax(1) == labels
    assert capture.correct.tolist() == [int(right[labels == k].sum()) for k in (1, 4)]


# An accelerator


@pytest.mark.parametrize("layers", [[], ["body.0"]])
def test_no_batch_of_a_test_set_waits(monkeypatch, layers):
    """CPU tensors are treated as those of an accelerator."""
    monkeypatch.setattr(intake, "waits_for_nothing", lambda device: False)
    model = SmallNet(seed=0)
    generator = torch.Generator().manual_seed(0)
    train = [(torch.randn(16, 4, generator=generator), torch.arange(16) % 3) for _ in range(5)]
    capture = collect(model, train, layers=layers, progress=False)
    waits = []
    for count in (12, 42):
        test = [(torch.randn(16, 4, generator=generator), torch.arange(16) % 3) for _ in range(count)]
        with Dispatched() as seen:
            collect_test(model, test, capture, layers=layers, progress=False)
        waits.append(len(seen.waits))
    assert waits[0] == waits[1]


# Features in memory


@pytest.mark.parametrize("options", [{}, {"classes": [0, 2]}, {"ignore_index": 1}])
def test_features_in_memory_are_measured_beside_a_test_set(options):
    model = TwoLayers()
    (features, labels), (test_features, test_labels) = (
        (model.features(inputs)[""], labels) for inputs, labels in (TRAIN, TEST)
    )
    weight, bias = model.fc.weight.detach(), model.fc.bias.detach()
    test = {"test_features": test_features.numpy(), "test_labels": test_labels.tolist()}
    head = nn.Sequential(nn.Identity(), model.fc)
    batch, test_batch = (features, labels), (test_features, test_labels)
    if "ignore_index" in options:
        with pytest.warns(nc.NeuralCollapseWarning, match="no samples of class 1"):
            got = nc.measure_features(features, labels, weight, bias, **test, **options)
        with pytest.warns(nc.NeuralCollapseWarning, match="no samples of class 1"):
            want = nc.measure(head, [batch], test_loader=[test_batch], **options)
    else:
        got = nc.measure_features(features, labels, weight, bias, **test, **options)
        want = nc.measure(head, [batch], test_loader=[test_batch], **options)
    del want["test"]["loss"]
    same(got["test"], want["test"])


def test_without_a_classifier_the_test_set_has_the_measures_of_features():
    (features, labels), (test_features, test_labels) = samples(60, 3), samples(20, 4, classes=5)
    with pytest.warns(nc.NeuralCollapseWarning) as caught:
        got = nc.measure_features(features, labels, num_classes=5, test_features=test_features, test_labels=test_labels)
    assert any("no samples of classes 3, 4: those samples here, 8, count" in str(each.message) for each in caught)
    nearest = torch.cdist(test_features.double(), means_of(features, labels)).argmin(1)
    assert got["test"]["ncc_accuracy"] == pytest.approx(float((nearest == test_labels).double().mean()))
    assert set(got["test"]) == {*FEATURE_MEASURES, "num_samples", "ncc_accuracy"}


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ({"test_features": TEST[0]}, "expected test_features and test_labels together, got one of them"),
        ({"test_features": TEST[0][:0], "test_labels": TEST[1][:0]}, "^test set: got no samples"),
        (
            {"test_features": TEST[0][:, :3], "test_labels": TEST[1]},
            "^test set: expected features of dimension 4",
        ),
        ({"test_features": TEST[0], "test_labels": TEST[1][:5]}, "^test set: expected"),
        ({"test_features": TEST[0] * math.nan, "test_labels": TEST[1]}, "^test set: expected finite features"),
    ],
)
def test_wrong_test_features_are_refused(test, message):
    with pytest.raises(nc.InputError, match=message):
        nc.measure_features(*TRAIN, **test)
