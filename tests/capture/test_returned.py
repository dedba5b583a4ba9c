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


class Towers(nn.Module):
    """Names that do not tell which layer makes the logits; the last one is called or not."""

    def __init__(self, call):
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Sequential(nn.Linear(INPUTS, D), nn.Tanh())
        self.second, self.third = nn.Linear(D, K), nn.Linear(D, 2)
        self.call = call

    def forward(self, x):
        features = self.first(x)
        return (self.second(features), self.third(features)) if self.call else self.second(features)


@pytest.mark.parametrize("call", [True, False])
def test_a_last_layer_that_does_not_make_the_logits_is_not_taken(data, call):
    net = Towers(call)
    assert nc.measure(net, batches(data)) == nc.measure(net, batches(data), "second")
    with pytest.raises(nc.InputError, match="made by 'second': name it"):
        nc.measure(net, iter(batches(data)))  # whose first batch is gone


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


def test_features_returned_beside_the_logits_are_not_taken_for_them(data):
    class Both(nn.Module):
        def __init__(self, wrap, features=D):
            super().__init__()
            torch.manual_seed(1)
            self.a, self.fc, self.wrap = nn.Linear(INPUTS, features), nn.Linear(features, K), wrap

        def forward(self, x):
            features = self.a(x)
            return self.wrap(features, self.fc(features))

    plain = Both(lambda h, z: z)
    want = nc.measure(plain, batches(data))
    for wrap in (lambda h, z: (h, z), lambda h, z: {"feat": h, "logit": z}, lambda h, z: {"out": {"logits": z}}):
        plain.wrap = wrap
        assert nc.measure(plain, batches(data)) == want
    plain.wrap = lambda h, z: (h, {"x": [2 * z]})
    got, words = measured(plain, batches(data))
    assert "about 2 times" in words
    assert got["nc2"] == pytest.approx(want["nc2"], rel=1e-5)
    square = Both(lambda h, z: (h, 2 * z), features=K)  # features that could be logits by their shape
    got, words = measured(square, batches(data), classifier="fc")
    assert "about 2 times" in words
    square.wrap = lambda h, z: 2 * z
    assert got == measured(square, batches(data), classifier="fc")[0]


@pytest.mark.parametrize("value", [-torch.inf, -1e9, torch.finfo(torch.float32).min])
def test_a_mask_after_the_head_is_said_and_the_models_accuracy_given(data, value):
    torch.manual_seed(0)
    net = Net(nn.Linear(D, K), lambda z, h: z.index_fill(1, torch.tensor([0]), value))
    labels = torch.where(data[1] == 0, 1, data[1])
    with torch.no_grad():
        accuracy = float((net.eval()(data[0]).argmax(1) == labels).double().mean())
    got, words = measured(net, batches((data[0], labels)))
    assert "masks 1 classes" in words
    assert got["accuracy"] == pytest.approx(accuracy)
    net.after = lambda z, h: z
    assert got["nc2"] == pytest.approx(measured(net, batches((data[0], labels)))[0]["nc2"], rel=1e-6)


def test_accuracy_and_loss_are_the_models_whatever_the_other_rows_are(data):
    def after(z, h):
        z = z.clone()
        z[1], z[3] = 0, z[3].flip(0)
        return z

    torch.manual_seed(0)
    net = Net(nn.Linear(D, K), after)
    got, _ = measured(net, [data])
    assert_agree({name: got[name] for name in ("accuracy", "loss")}, of_model(net, data), rel=1e-5)


@pytest.mark.parametrize(
    "after",
    [
        lambda z: z * torch.linspace(0.5, 2, K),
        lambda z: z * torch.linspace(0.5, 2, K) + torch.arange(K),
        lambda z: (z / 3).log_softmax(1),
        lambda z: (z / 3).softmax(1),
        lambda z: (z + torch.arange(K)).log_softmax(1),
        lambda z: -z,
    ],
    ids=["each its own", "each and a shift", "log_softmax of a scale", "softmax of a scale", "of a shift", "negative"],
)
def test_scales_and_shifts_of_every_kind_belong_to_the_head(data, after):
    torch.manual_seed(0)
    net = Net(nn.Linear(D, K), lambda z, h: after(z))
    got, words = measured(net, batches(data))
    with torch.no_grad():
        bare = after(torch.cat([net.fc.bias[None], net.fc.bias + net.fc.weight.T]))
        logits = after(net.eval().fc(net.body(data[0])))
    if bool((logits.sum(1) - 1).abs().max() < 1e-4):
        bare, logits = bare.log(), logits.log()
    weight = (bare[1:] - bare[0]).T  # up to what all classes share, where the model takes a softmax
    centred = bool((logits.exp().sum(1) - 1).abs().max() < 1e-4)
    want = nc.measure_features(net.body(data[0]).detach(), data[1], weight)
    assert words
    assert got["loss"] == pytest.approx(float(F.cross_entropy(logits, data[1])), rel=1e-5)
    assert got["accuracy"] == pytest.approx(float((logits.argmax(1) == data[1]).double().mean()))
    if not centred:
        assert got["nc2"] == pytest.approx(want["nc2"], rel=1e-4)
        assert got["nc3"] == pytest.approx(want["nc3"], rel=1e-4)


def test_tokens_of_an_untrained_head_are_those_of_the_rule_that_fits_all():
    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.embed, self.score = nn.Embedding(20, 6), nn.Linear(6, K, bias=False)
            nn.init.zeros_(self.score.weight)

        def forward(self, input_ids, attention_mask):
            logits = self.score(self.embed(input_ids))
            return logits[torch.arange(len(logits)), attention_mask.sum(1) - 1]

    ids, labels = torch.randint(1, 20, (N, 8), generator=torch.Generator().manual_seed(1)), torch.arange(N) % K
    lengths = torch.arange(N) % 5 + 3
    mask = (torch.arange(8) < lengths[:, None]).long()
    model = Decoder()
    batch = {"input_ids": ids * mask, "attention_mask": mask, "labels": labels}
    got, _ = measured(model, [batch])
    rows = model.embed(ids[torch.arange(N), lengths - 1]).detach()
    assert got["nc1"] == pytest.approx(nc.measure_features(rows, labels)["nc1"], rel=1e-5)


def test_least_squares_need_features_that_determine_the_map(data):
    torch.manual_seed(0)
    extra = torch.randn(K, D)
    net = Net(nn.Linear(D, K), lambda z, h: z + h @ extra.T)
    net.body = nn.Sequential(nn.Linear(INPUTS, 4), nn.Linear(4, D))  # in a subspace
    with pytest.raises(nc.InputError, match="% off"):
        nc.measure(net, batches(data))


def test_what_goes_by_the_name_of_logits_is_taken_before_the_outputs_of_a_head(data):
    net = Heads(lambda a, b: {"logits": (a + b) / 2, "cls_logits": a, "distillation_logits": b})
    got, words = measured(net, batches(data), classifier="head")
    assert "0.5 head + 0.5 head_dist" in words
    net.together = lambda a, b: (a + b) / 2
    assert_agree(got, of_model(net, data), rel=1e-6)
