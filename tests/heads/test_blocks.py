"""The simplex in blocks of features: its rows, its margin behind a ReLU, its states, and what a network learns."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize
from torch import nn
from torch.nn import functional as F

import neuralcollapse as nc
from neuralcollapse.training.config import TrainConfig
from tests.helpers import etf_layer

F64 = torch.float64
SIZES = [(2, 1), (2, 2), (2, 3), (2, 7), (3, 2), (3, 8), (5, 4), (5, 5), (5, 9), (5, 10), (5, 64), (10, 512), (7, 100)]


def oracle(num_classes, dim):
    """sqrt(K/(K-1)) (I - J/K) P' with P written out entry by entry."""
    group = dim // num_classes
    if group == 0:
        return nc.simplex_etf(num_classes, dim, dtype=F64)
    spread = torch.zeros(dim, num_classes, dtype=F64)
    for k in range(num_classes):
        for j in range(k * group, (k + 1) * group):
            spread[j, k] = 1 / math.sqrt(group)
    centring = torch.eye(num_classes, dtype=F64) - 1 / num_classes
    return math.sqrt(num_classes / (num_classes - 1)) * centring @ spread.T


@pytest.mark.parametrize(("num_classes", "dim"), SIZES)
def test_the_rows_are_the_formula_written_out(num_classes, dim):
    rows = etf_layer(num_classes, dim, scale=2.5, learn_scale=True).weight
    torch.testing.assert_close(rows, 2.5 * oracle(num_classes, dim), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("strides", ["transposed", "every_other", "expanded"])
def test_features_need_not_lie_in_one_piece(strides):
    layer = etf_layer(5, 16)
    features = {
        "transposed": torch.randn(16, 6, dtype=F64).T,
        "every_other": torch.randn(6, 32, dtype=F64)[:, ::2],
        "expanded": torch.randn(1, 16, dtype=F64).expand(6, 16),
    }[strides]
    torch.testing.assert_close(layer(features), F.linear(features, layer.weight, layer.bias), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("num_classes", "dim"), [(5, 4), (5, 5), (5, 9), (2, 3)])
def test_with_less_than_two_features_a_class_it_is_the_papers_frame(num_classes, dim):
    blocks, plain = (nc.ETFClassifier(dim, num_classes, rotation=name) for name in ("blocks", "none"))
    assert torch.equal(blocks.weight, plain.weight)
    features = torch.randn(4, dim)
    assert torch.equal(blocks(features), plain(features))
    plain.load_state_dict(blocks.state_dict())  # one frame, one name


def test_it_is_the_default():
    assert nc.ETFClassifier(64, 10).rotation_name == "blocks"
    assert nc.fix_classifier(nn.Linear(64, 10)).rotation_name == "blocks"
    assert nc.build_network("mlp", 10, 64, "etf").fc.rotation_name == "blocks"
    assert TrainConfig(frame="simplex").rotation == "blocks"


def test_a_sum_beyond_the_range_of_half_precision_is_no_harm():
    layer = nc.ETFClassifier(4096, 2, bias=False, dtype=torch.float16)
    features = torch.full((1, 4096), 60.0, dtype=torch.float16)
    features[:, 2048:] = 0  # their sum is 122,880, and the logit 60 sqrt(2048) / sqrt(2)
    wanted = 60 * math.sqrt(2048) / math.sqrt(2)
    assert layer(features).tolist() == [[pytest.approx(wanted, rel=2e-3), pytest.approx(-wanted, rel=2e-3)]]


def test_maps_of_other_channels_and_axes_that_cannot_be_are_refused():
    with pytest.raises(nc.InputError, match=r"dimension 12 at axis -3, got \(2, 3, 12\)"):
        nc.ETFClassifier(12, 5, axis=-3)(torch.zeros(2, 3, 12))
    with pytest.raises(nc.InputError, match=r"dimension 12 at axis -3, got \(12, 3\)"):
        nc.ETFClassifier(12, 5, axis=-3)(torch.zeros(12, 3))
    for axis in (0, 1, 1.0, None, True):
        with pytest.raises(nc.InputError, match="axis counted from the end"):
            nc.ETFClassifier(12, 5, axis=axis)


# The margin that unit features >= 0 reach


def least_margin(rows):
    """min over classes k of max over |h| = 1, h >= 0 of min over j of (w_k - w_j) h; 0 where none is positive.

    With the differences as rows of G it is 1/|h| of the shortest h >= 0 with G h >= 1. Whether there is one says a
    linear program; its length |h|^2 is that of the dual, max over u >= 0 of 2 sum(u) - |max(G'u, 0)|^2.
    """
    rows, margins = np.asarray(rows), []
    for k in range(len(rows)):
        wins = np.delete(rows[k] - rows, k, axis=0)
        slack = np.hstack([-wins, np.ones((len(wins), 1))])  # t - G h <= 0
        most = linprog(-np.eye(rows.shape[1] + 1)[-1], slack, np.zeros(len(wins)), bounds=(0, 1))
        if -most.fun < 1e-9:
            return 0.0

        def dual(u, wins=wins):
            reached = np.maximum(wins.T @ u, 0)
            return reached @ reached - 2 * u.sum(), 2 * (wins @ reached - 1)

        best = minimize(dual, np.ones(len(wins)), jac=True, bounds=[(0, None)] * len(wins), tol=1e-14)
        margins.append(1 / math.sqrt(-best.fun))
    return min(margins)


@pytest.mark.parametrize("dim", [10, 19, 64, 100])
@pytest.mark.parametrize("rotation", ["blocks", "none"])
def test_features_above_zero_reach_nearly_the_whole_margin(rotation, dim):
    """The signed optimum is K/(K-1) = 1.111; features >= 0 reach sqrt(K/(K-1)) = 1.054."""
    rows = nc.ETFClassifier(dim, 10, rotation=rotation, dtype=F64).weight
    assert least_margin(rows) == pytest.approx(math.sqrt(10 / 9), abs=1e-9)
    signed = ((rows[:, None] - rows) * rows[:, None]).sum(-1)
    assert float(signed[~torch.eye(10, dtype=torch.bool)].min()) == pytest.approx(10 / 9)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_features_above_zero_cannot_tell_classes_apart_under_the_fast_rotation_at_d_equal_to_k(seed):
    assert least_margin(nc.ETFClassifier(10, 10, rotation="fast", seed=seed, dtype=F64).weight) == 0


def test_the_fast_rotation_wins_back_a_part_with_more_features():
    found = {dim: least_margin(nc.ETFClassifier(dim, 10, rotation="fast", dtype=F64).weight) for dim in (64, 512)}
    assert found == {64: pytest.approx(0.68, abs=0.02), 512: pytest.approx(0.75, abs=0.02)}


# State dicts: what frame they are of


KINDS = {
    "blocks": lambda: nc.ETFClassifier(64, 10),
    "none": lambda: nc.ETFClassifier(64, 10, rotation="none"),
    "fast": lambda: nc.ETFClassifier(64, 10, rotation="fast"),
    "nearest": lambda: nc.ETFClassifier(64, 10, rotation="nearest"),
    "other d": lambda: nc.ETFClassifier(65, 10),
    "other K": lambda: nc.ETFClassifier(64, 11, bias=False),
    "orthoplex": lambda: nc.OrthoplexClassifier(64, 10),
    "turned orthoplex": lambda: nc.OrthoplexClassifier(64, 10, rotation="fast"),
    "code": lambda: nc.SoftmaxCodeClassifier(64, 10, steps=2),
}


def without_name(layer):
    """The state dict of version 0.1.0, which did not name the frame."""
    return {name: value for name, value in layer.state_dict().items() if not name.endswith("_extra_state")}


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("own", KINDS)
def test_a_state_of_the_first_version_is_loaded_right_or_refused(own, strict):
    for other in ("none", "fast", "nearest", "code"):
        layer, saved = KINDS[own](), KINDS[other]()
        nn.init.normal_(saved.bias)
        state = without_name(saved)
        if other == own:
            layer.load_state_dict(state, strict=strict)
            features = torch.randn(3, 64)
            assert torch.equal(layer(features), saved(features))
            continue
        with pytest.raises(nc.InputError, match=r"0\.1\.0, which did not name it"):
            layer.load_state_dict(state, strict=strict)


def test_a_state_of_the_first_version_loads_where_blocks_are_the_papers_frame():
    saved, layer = nc.ETFClassifier(10, 10, rotation="none", scale=3.0), nc.ETFClassifier(10, 10)
    nn.init.normal_(saved.bias)
    layer.load_state_dict(without_name(saved))
    features = torch.randn(3, 10)
    assert torch.equal(layer(features), saved(features))
    message = r"rotation='fast', K=10, d=10, and this layer .*'none', K=10, d=10: build it with rotation='fast' \(--rot"
    with pytest.raises(nc.InputError, match=message):
        nc.ETFClassifier(10, 10).load_state_dict(without_name(nc.ETFClassifier(10, 10, rotation="fast")), strict=False)


def test_an_orthoplex_of_many_classes_of_the_first_version_is_loaded():
    saved, layer = nc.OrthoplexClassifier(6, 10, scale=2.0), nc.OrthoplexClassifier(6, 10)
    layer.load_state_dict(without_name(saved))
    assert float(layer.scale) == 2


def test_a_part_of_a_state_says_nothing_and_loads_with_a_warning():
    layer = nc.ETFClassifier(64, 10)
    with pytest.warns(nc.NeuralCollapseWarning, match="does not say of which frame it is: taken to be of simplex"):
        layer.load_state_dict({"bias": torch.ones(10)}, strict=False)
    assert torch.equal(layer.bias, torch.ones(10))
    layer.load_state_dict({}, strict=False)


def test_the_average_of_weights_keeps_the_name():
    model = nn.Sequential(nn.Linear(4, 64), nc.ETFClassifier(64, 10))
    averaged = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    averaged.update_parameters(model)
    averaged.update_parameters(model)
    model.load_state_dict(averaged.module.state_dict())


@pytest.mark.parametrize(("rotation", "dim"), [("none", 64), ("fast", 64), ("nearest", 64), ("none", 9)])
def test_a_layer_pickled_whole_by_the_first_version_is_read(rotation, dim):
    layer = nc.ETFClassifier(dim, 10, rotation=rotation)
    old = copy.deepcopy(layer)
    for name in ("axis", "rotation_name", "_block"):  # what there was not
        old.__dict__.pop(name, None)
    back = pickle.loads(pickle.dumps(old))
    assert back.rotation_name == rotation
    assert back.axis == -1
    features = torch.randn(3, dim)
    assert torch.equal(back(features), layer(features))
    layer.load_state_dict(back.state_dict())


# A small network without normalisation, which no single feature a class may carry


def relu_net(rotation, seed, dim=64, epochs=40):
    """The training accuracy of a ReLU network on the digits."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images, labels = torch.tensor(images / 8 - 1, dtype=torch.float32), torch.tensor(labels)
    torch.manual_seed(seed)
    layers = [nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, dim), nn.ReLU()]
    network = nn.Sequential(*layers, nc.ETFClassifier(dim, 10, rotation=rotation))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(network(images[batch]), labels[batch]).backward()
            optimizer.step()
    return float((network(images).argmax(1) == labels).double().mean())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_relu_network_without_normalisation_learns_the_digits_under_blocks(seed):
    assert relu_net("blocks", seed) >= 0.99


def test_the_same_network_loses_classes_with_the_papers_frame():
    assert relu_net("none", 0) < 0.95
