"""What users mistake for a model, a loader or an option: one line that says what to do."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import neuralcollapse as nc

X, Y = torch.randn(12, 5, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3
BATCHES = [(X, Y)]


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))


def exported() -> object:
    return torch.export.export(model(), (X,))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda: (nn.Sequential, BATCHES), "got the class Sequential: make one first"),
        (lambda: (model().state_dict(), BATCHES), "got a state dict: load it into a network"),
        (lambda: (None, BATCHES), "expected the network as a torch.nn.Module, got a NoneType"),
        (lambda: ("model.pt", BATCHES), "got the text 'model.pt'"),
        (lambda: (BATCHES, model()), "expected the network as a torch.nn.Module, got a list"),
        (lambda: (DataLoader(TensorDataset(X, Y)), model()), "torch.nn.Module, got a DataLoader"),
        (lambda: (torch.jit.trace(model(), X), BATCHES), "whose layers can be hooked, got a TopLevelTracedModule"),
        (lambda: (torch.jit.script(model()), BATCHES), "whose layers can be hooked, got a RecursiveScriptModule"),
        (lambda: (exported(), BATCHES), "whose layers can be hooked, got a ExportedProgram"),
        (lambda: (model(), None), "loader that gives batches .*, got None"),
        (lambda: (model(), model()), "got the network Sequential: are the arguments in order"),
        (lambda: (model(), TensorDataset(X, Y)), "wrap it in torch.utils.data.DataLoader"),
        (lambda: (model(), (X, Y)), r"a tuple of arrays: give DataLoader"),
        (lambda: (model(), X), "got Tensor"),
        (lambda: (model(), [(X.numpy(), Y)]), "batch 1: expected inputs as tensors, got a numpy.ndarray"),
        (lambda: (model(), [{"input": X.numpy(), "labels": Y}]), "batch 1: expected inputs as tensors, got a numpy"),
    ],
)
def test_a_mistaken_argument_is_one_line(arguments, message):
    with pytest.raises(nc.InputError, match=message) as error:
        nc.measure(*arguments())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": {0, 1}}, r"got a set: give sorted\(classes\)"),
        ({"classes": "cat"}, "classes as"),
        ({"device": "cuda:99"}, "expected a device that this machine has, got 'cuda:99'"),
        ({"device": "gpu"}, "expected a device that this machine has, got 'gpu'"),
        ({"classifier": "3"}, "no layer '3'"),
        ({"classifier": "1"}, "an nn.Linear or a 1x1 convolution, got ReLU"),
        ({"classifier": 2}, "layer's name"),
        ({"layers": {"2": "HW"}}, "layout of layer '2'"),
        ({"layers": 2}, "layers as dotted names of inner layers, got 2"),
        ({"layers": [2]}, r"layers as dotted names of inner layers, got \[2\]"),
        ({"ignore_index": "pad"}, "ignore_index as an integer, got 'pad'"),
        ({"ignore_index": True}, "ignore_index as an integer, got True"),
        ({"min_count": "2"}, "min_count to be an integer of at least 1, got '2'"),
        ({"means_dtype": torch.float16}, "^expected means_dtype torch.float64 or torch.float32, got torch.float16"),
    ],
)
def test_a_mistaken_option_is_one_line(options, message):
    with pytest.raises(nc.InputError, match=message) as error:
        nc.measure(model(), BATCHES, **options)
    assert "\n" not in str(error.value)


def test_the_classifier_is_found_by_itself_and_at_the_end_of_a_sequential():
    network = nn.Sequential()
    network.body, network.classifier = nn.Sequential(nn.Linear(5, 8), nn.ReLU()), model()
    network.classifier[0] = nn.Linear(8, 8)
    want = nc.measure(network, BATCHES, "classifier.2")
    assert nc.measure(network, BATCHES) == nc.measure(network, BATCHES, "classifier") == want


def test_a_bare_linear_layer_is_a_model():
    head = nn.Linear(5, 3)
    want = nc.measure_features(X, Y, head.weight.detach(), head.bias.detach())
    assert {name: nc.measure(head, BATCHES)[name] for name in want} == pytest.approx(want)


def test_numpy_labels_do():
    assert nc.measure(model(), [(X, Y.numpy().astype(np.uint8))]) == nc.measure(model(), BATCHES)


def test_a_transposed_weight_is_named_with_the_right_shape():
    weight = model()[2].weight.detach()
    features = torch.randn(12, 8)
    with pytest.raises(nc.InputError, match=r"\(K, d\) = \(3, 8\), got \(8, 3\): transpose it"):
        nc.measure_features(features, Y, weight.T)


def test_inputs_in_lists_go_to_the_device_and_the_model():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = model()

        def forward(self, both):
            return self.net(both[0] + both[1])

    torch.manual_seed(0)
    pair = Pair()
    assert nc.measure(pair, [([X, X * 0], Y)]) == nc.measure(pair.net, BATCHES)
