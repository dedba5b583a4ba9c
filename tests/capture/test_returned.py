"""Models that return something else than the outputs of the head that is measured."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import neuralcollapse as nc
from tests.capture.test_linear_map import INPUTS, D, K, N, Net, assert_agree, batches, data, measured, right

assert data  # a fixture


class Heads(nn.Module):
    """Two heads, of the same features or of others, and how they are put together."""

    def __init__(self, together=lambda a, b: (a + b) / 2, same=False):
        super().__init__()
        torch.manual_seed(1)
        self.body = nn.Sequential(nn.Linear(INPUTS, D), nn.Tanh())
        self.head, self.head_dist = nn.Linear(D, K), nn.Linear(D, K)
        self.together, self.same = together, same

    def forward(self, x):
        features = self.body(x)
        return self.together(self.head(features), self.head_dist(features if self.same else features.roll(1, 1)))


@torch.no_grad()
def of_model(net, data):
    logits = net.eval()(data[0])
    logits = logits[0] if isinstance(logits, tuple) else logits
    return {
        "accuracy": float((logits.argmax(1) == data[1]).double().mean()),
        "loss": float(F.cross_entropy(logits.double(), data[1])),
    }


@pytest.mark.parametrize("named", ["head", "head_dist", None])
def test_an_average_of_heads_is_said_and_accuracy_is_the_models(data, named):
    net = Heads()
    got, words = measured(net, batches(data), classifier=named)
    head = net.head_dist if named == "head_dist" else net.head
    with torch.no_grad():
        features = net.body(data[0])
        features = features.roll(1, 1) if named == "head_dist" else features
    want = nc.measure_features(features, data[1], head.weight.detach(), head.bias.detach())
    assert "0.5 head + 0.5 head_dist" in words
    want.pop("accuracy")
    assert_agree(got, want | of_model(net, data))


def test_heads_of_the_same_features_are_one(data):
    net = Heads(lambda a, b: 0.7 * a + 0.3 * b, same=True)
    got, words = measured(net, batches(data), classifier="head")
    assert "0.7 head + 0.3 head_dist" in words
    weight = 0.7 * net.head.weight + 0.3 * net.head_dist.weight
    assert_agree(got, right(net, data, weight, 0.7 * net.head.bias + 0.3 * net.head_dist.bias) | of_model(net, data))


def test_another_heads_logits_are_said(data):
    net = Heads(lambda a, b: a)
    got, words = measured(net, batches(data), classifier="head_dist")
    assert "returns the outputs of 'head', and 'head_dist' was measured" in words
    assert_agree(got, of_model(net, data))
    assert_agree(nc.measure(net, batches(data)), right(net, data, net.head.weight, net.head.bias))  # found, and quietly


def test_a_head_that_only_trains_is_not_taken_for_the_classifier(data):
    net = Heads(lambda a, b: (a, b))
    assert_agree(nc.measure(net, batches(data)), right(net, data, net.head.weight, net.head.bias) | of_model(net, data))


def test_a_last_layer_that_does_not_run_or_has_other_outputs_is_not_taken(data):
    net = Net(nn.Linear(D, K))
    want = nc.measure(net, batches(data), "fc")
    net.spare = nn.Linear(3, 2)
    assert nc.measure(net, batches(data)) == want
    net.after = lambda logits, features: (logits, net.spare(features[:, :3]))
    assert nc.measure(net, batches(data)) == want
    with pytest.raises(nc.InputError, match="made by 'fc': name it"):
        nc.measure(net, iter(batches(data)))  # the first batch is gone


@pytest.mark.parametrize(
    ("after", "weight", "shift"),
    [
        (lambda z, h: 3 * z, 3.0, 0.0),
        (lambda z, h: z.mul_(3), 3.0, 0.0),
        (lambda z, h: z + torch.arange(K), 1.0, torch.arange(K)),
        (lambda z, h: z.mul_(0.5).add_(torch.arange(K)), 0.5, torch.arange(K)),
    ],
    ids=["scale", "scale in place", "shift", "both in place"],
)
def test_a_scale_and_a_shift_after_the_head_belong_to_it(data, after, weight, shift):
    torch.manual_seed(0)
    net = Net(nn.Linear(D, K), after)
    got, words = measured(net, batches(data))
    assert_agree(got, right(net, data, weight * net.fc.weight, weight * net.fc.bias + shift) | of_model(net, data))
    assert "the model returns" in words


@pytest.mark.parametrize("size", [1, 16])
def test_softmax_changes_neither_the_head_nor_the_loss(data, size):
    torch.manual_seed(0)
    plain = Net(nn.Linear(D, K))
    want = nc.measure(plain, batches(data))
    plain.after = lambda z, h: z.log_softmax(1)
    got, words = measured(plain, batches(data, size))
    assert_agree(got, want, rel=1e-5)
    assert words == ""
    plain.after = lambda z, h: z.softmax(1)
    got, words = measured(plain, batches(data, size))
    assert_agree(got, want, rel=1e-5)
    assert "softmax" in words


def test_a_soft_cap_is_measured_and_said(data):
    torch.manual_seed(0)
    net = Net(nn.Linear(D, K), lambda z, h: 2 * torch.tanh(z / 2))
    got, words = measured(net, batches(data))
    assert "a function of the outputs" in words
    assert_agree(got, right(net, data, net.fc.weight, net.fc.bias) | of_model(net, data))


@pytest.mark.parametrize(
    "after", [lambda z, h: z**2, lambda z, h: z * h[:, :1], lambda z, h: torch.randn(len(z), K)], ids=range(3)
)
def test_logits_that_are_not_the_heads_are_refused(data, after):
    torch.manual_seed(0)
    with pytest.raises(nc.InputError, match=r"expected the model to return the outputs of 'fc'.*% off"):
        nc.measure(Net(nn.Linear(D, K), after), batches(data))


@pytest.mark.parametrize("wrap", [lambda z: {"logits": z, "other": z * 0}, lambda z: (z, z * 0), lambda z: [z], list])
def test_logits_are_found_in_what_is_returned(data, wrap):
    torch.manual_seed(0)
    net = Net(nn.Linear(D, K))
    want = nc.measure(net, batches(data))
    net.after = lambda z, h: wrap(z) if wrap is not list else [torch.zeros(()), z]
    assert nc.measure(net, batches(data)) == want


class Map(nn.Module):
    """A 1x1 convolution as the head, of pooled or unpooled maps."""

    def __init__(self, pooled, end=lambda maps: maps.mean((2, 3))):
        super().__init__()
        torch.manual_seed(1)
        self.body = nn.Sequential(nn.Conv2d(1, D, 3), nn.Tanh())
        self.fc = nn.Conv2d(D, K, 1)
        self.pooled, self.end = pooled, end

    def forward(self, x):
        maps = self.body(x)
        return self.fc(maps.mean((2, 3), keepdim=True)).flatten(1) if self.pooled else self.end(self.fc(maps))


@pytest.mark.parametrize("kind", ["pooled", "unpooled", "relu before pooling"])
def test_a_pointwise_convolution_is_a_linear_head(kind):
    images, labels = torch.randn(N, 1, 6, 6, generator=torch.Generator().manual_seed(0)), torch.arange(N) % K
    relu = kind == "relu before pooling"
    net = Map(kind == "pooled", (lambda maps: maps.relu_().mean((2, 3))) if relu else (lambda maps: maps.mean((2, 3))))
    got, words = measured(net, [(images[:32], labels[:32]), (images[32:], labels[32:])])
    with torch.no_grad():
        features = net.body(images).mean((2, 3))
    want = nc.measure_features(features, labels, net.fc.weight.detach()[:, :, 0, 0], net.fc.bias.detach())
    if relu:  # the model's logits are no linear function of the mean features
        want.pop("accuracy")
        assert "after a ReLU" in words
    else:
        assert words == ""
    assert_agree(got, want | of_model(net, (images, labels)))
    pixels = [(images, labels[:, None, None].expand(N, 4, 4))] if kind == "unpooled" else []
    for batch in pixels:  # a label for each position
        dense = Map(False, lambda maps: maps)
        found = nc.measure(dense, [batch])
        with torch.no_grad():
            rows = dense.body(images).movedim(1, -1).flatten(0, 2)
        weight, bias = dense.fc.weight.detach()[:, :, 0, 0], dense.fc.bias.detach()
        assert_agree(found, nc.measure_features(rows, batch[1].flatten(), weight, bias))


def test_one_logit_says_what_to_do(data):
    with pytest.raises(nc.InputError, match=r"one output at 'fc'.*nn\.Linear\(d, 2\)"):
        nc.measure(Net(nn.Linear(D, 1)), batches(data))


def test_what_is_kept_is_a_copy(data):
    torch.manual_seed(0)
    net = Net(nn.Linear(D, K))
    want = nc.measure(net, batches(data))
    net.after = lambda z, h: (z, h.zero_())[0]  # the head's input overwritten after the head
    assert nc.measure(net, batches(data)) == want

    class Reusing:
        """A loader with one buffer for all batches."""

        def __iter__(self):
            inputs, labels = torch.empty(16, D), torch.empty(16, dtype=torch.long)
            for x, y in batches((torch.randn(N, D, generator=torch.Generator().manual_seed(3)), data[1])):
                inputs[: len(x)], labels[: len(y)] = x, y
                yield inputs[: len(x)], labels[: len(y)]

    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(D, K)

        def forward(self, x):
            return self.fc(x)

    bare = Bare()
    fresh = [(x.clone(), y.clone()) for x, y in Reusing()]
    assert nc.measure(bare, Reusing()) == nc.measure(bare, fresh)
