"""Class names are found where a model or a data set has them, and nothing else is taken for one."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset

import neuralcollapse as nc
from neuralcollapse.capture.class_by_class import measured_names
from neuralcollapse.capture.class_names import find_class_names

NAMES = ("cat", "dog", "eel")


def data(**attributes):
    found = TensorDataset(torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3)
    vars(found).update(attributes)
    return found


def model(**config):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    if config:
        net.config = SimpleNamespace(**config)
    return net


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (["cat", "dog", "eel"], NAMES),
        (("cat", "dog", "eel"), NAMES),
        ([("cat", "house cat"), ("dog",), ("eel", "fish")], NAMES),  # as ImageNet of torchvision has them
        ([7, 8, 9], ("7", "8", "9")),
        (["a\nb", "", " c "], ("a b", "", "c")),
        (["cat", "dog"], None),
        (3, None),
        (torch.arange(3), None),
        ("abc", None),
        (None, None),
        ({"cat": 0, "dog": 1, "eel": 2}, None),
    ],
)
def test_the_classes_of_a_data_set(classes, expected):
    loader = DataLoader(Subset(Subset(data(classes=classes), range(9)), range(6)))
    assert find_class_names(model(), loader, 3) == expected


def test_data_sets_that_are_joined_have_the_names_that_all_have():
    joined = ConcatDataset([data(classes=list(NAMES)), Subset(data(classes=NAMES), range(3))])
    assert find_class_names(model(), DataLoader(joined), 3) == NAMES
    assert find_class_names(model(), ConcatDataset([data(classes=list(NAMES)), data(classes=list("abc"))]), 3) is None


def test_the_label_column_of_a_data_set_of_the_hub():
    for column in ("label", "labels"):
        features = {"image": object(), column: SimpleNamespace(names=list(NAMES))}
        assert find_class_names(model(), data(features=features), 3) == NAMES
    assert find_class_names(model(), data(features=torch.ones(3)), 3) is None


@pytest.mark.parametrize("key", [int, str])
def test_the_configuration_of_a_model_wherever_it_is(key):
    inner = model(id2label={key(2): "eel", key(0): "cat", key(1): "dog"})
    for outer in (inner, nn.Sequential(inner)):
        assert find_class_names(outer, data(classes=["x", "y", "z"]), 3) == NAMES


def test_numbers_as_texts_are_put_in_order():
    names = {str(number): f"n{number}" for number in range(12)}
    assert find_class_names(model(id2label=names), data(), 12) == tuple(f"n{number}" for number in range(12))


@pytest.mark.parametrize(
    "names", [{0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}, {0: "a", 1: "b"}, {0: "a", 1: "b", 3: "c"}, None, 3]
)
def test_other_configurations_are_passed_over(names):
    assert find_class_names(model(id2label=names), data(classes=list(NAMES)), 3) == NAMES
    assert find_class_names(model(id2label=names), data(), 3) is None


def test_a_pass_finds_them_and_names_given_by_hand_win():
    capture = nc.collect(model(), DataLoader(data(classes=list(NAMES)), batch_size=4), progress=False)
    assert capture.class_names == NAMES
    assert [row["name"] for row in capture.per_class().rows()] == list(NAMES)
    assert [row["name"] for row in capture.per_class(["x", "y", "z"]).rows()] == ["x", "y", "z"]
    with pytest.raises(nc.InputError, match="names of 3 classes, got 2"):
        capture.per_class(["x", "y"])


def test_the_accuracy_by_class_is_that_of_the_predictions():
    net, found = model(), data()
    capture = nc.collect(net, DataLoader(found, batch_size=5), progress=False)
    features, labels = found.tensors
    right = net(features).argmax(1) == labels
    assert capture.per_class().accuracy.tolist() == [float(right[labels == k].double().mean()) for k in range(3)]


def test_some_classes_keep_their_own_numbers_and_names():
    net, loader = model(), DataLoader(data(classes=list(NAMES)), batch_size=5)
    table = nc.collect(net, loader, classes=[0, 2], progress=False).per_class()
    assert table.number.tolist() == [0, 2]
    assert table.nearest.tolist() == [2, 0]
    first, second = table.rows()
    assert (first["name"], first["nearest_name"], second["name"]) == ("cat", "eel", "eel")
    few = DataLoader(Subset(loader.dataset, [0, 1, 2, 3, 5]), batch_size=5)
    with pytest.warns(nc.NeuralCollapseWarning, match="one sample of class 1: variance, cdnv"):
        nc.collect(net, few, classes=[1, 2], progress=False).per_class()
    with pytest.warns(nc.NeuralCollapseWarning, match="has samples, and a spread between classes needs two"):
        alone = nc.collect(net, loader, classes=[2], progress=False).per_class()
    assert (alone.number.tolist(), alone.nearest.tolist()) == ([2], [-1])


def test_names_of_all_classes_or_of_those_measured():
    chosen = torch.tensor([1, 4])
    assert measured_names(["p", "q"], chosen, 2) == ("p", "q")
    assert measured_names(list("abcde"), chosen, 2) == ("b", "e")
    assert measured_names({4: "e"}, chosen, 2) == ("1", "e")
    assert measured_names(["p"], chosen, 2) is None
    assert measured_names([], None, 2) is None
    with pytest.raises(nc.InputError):
        measured_names(["p"], chosen, 2, strict=True)
