import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import neuralcollapse as nc
from neuralcollapse.heads.fast_rotation import FastRotation
from neuralcollapse.heads.search import head_names
from tests.helpers import etf_layer

F64 = torch.float64
SIZES = [(2, 1), (2, 2), (2, 3), (3, 2), (5, 5), (5, 8), (10, 9), (10, 64)]  # (K, d), d = K-1 included
KINDS = [{}, {"rotation": "none"}, {"rotation": "fast"}, {"learn_scale": True}]
KIND_NAMES = ["blocks", "plain", "rotated", "learnt_scale"]


def assert_simplex_etf(rows, atol=1e-12):
    count = len(rows)
    wanted = (count * torch.eye(count, dtype=F64) - 1) / (count - 1)
    torch.testing.assert_close(rows @ rows.T, wanted, rtol=0, atol=atol)


# The product


@pytest.mark.parametrize(("num_classes", "dim"), SIZES)
def test_the_rows_are_those_of_the_canonical_frame(num_classes, dim):
    frame = nc.simplex_etf(num_classes, dim, dtype=F64)
    torch.testing.assert_close(etf_layer(num_classes, dim, rotation="none").weight, frame, rtol=1e-12, atol=1e-12)


def test_it_presents_itself_as_a_linear_layer_would():
    layer = nc.ETFClassifier(8, 5)
    assert (layer.in_features, layer.out_features) == (8, 5)
    assert torch.equal(layer.bias, torch.zeros(5))
    assert "in_features=8, num_classes=5, frame='simplex', bias=True" in repr(layer)


# The fast rotation

DIMS = [2, 3, 4, 5, 7, 8, 12, 13, 16, 17, 31, 64, 96, 127, 129]


@pytest.mark.parametrize("dim", DIMS)
def test_a_rotated_frame_is_an_exact_simplex_etf(dim):
    for num_classes in {2, min(4, dim + 1), dim, dim + 1}:
        assert_simplex_etf(nc.ETFClassifier(dim, num_classes, rotation="fast", seed=dim, dtype=F64).weight)
    assert_simplex_etf(nc.ETFClassifier(1, 2, rotation="fast", dtype=F64).weight)


@pytest.mark.parametrize("dim", [8, 13, 64])
def test_a_rotation_is_fixed_by_its_seed(dim):
    first, again, other = (nc.ETFClassifier(dim, 4, rotation="fast", seed=seed).weight for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-2)
    assert not torch.allclose(first, nc.simplex_etf(4, dim), atol=1e-2)


def test_drawing_a_rotation_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    nc.ETFClassifier(32, 4, rotation="fast", seed=1)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("dim", [64, 96, 129, 384, 768, 1000, 1024])
def test_a_rotation_spreads_every_class_over_all_features(dim):
    weight = nc.ETFClassifier(dim, 10, rotation="fast", dtype=F64).weight
    energy = weight.square().sum(0)  # of each feature; 10/d on average
    assert int((energy > 0.01 * 10 / dim).sum()) > 0.9 * dim
    assert float(weight.abs().max()) < 0.5  # no class sits on a few features


@pytest.mark.parametrize("dim", [33, 300, 1000, 1024])
def test_a_batch_is_rotated_as_its_samples_are(dim):
    """Few and many samples take other products."""
    turn = FastRotation(dim, seed=1)
    generator = torch.Generator().manual_seed(0)
    features, pulls = torch.randn(2, 2**15 // dim + 1, dim, dtype=F64, generator=generator)
    features.requires_grad_()
    alone = torch.cat([turn(each) for each in features.detach().split(1)])
    torch.testing.assert_close(turn(features), alone, atol=1e-12, rtol=0)
    (gradient,) = torch.autograd.grad(turn(features), features, pulls)
    torch.testing.assert_close(turn.inverse(alone), features, atol=1e-12, rtol=0)
    torch.testing.assert_close(gradient, torch.cat([turn.inverse(each) for each in pulls.split(1)]), atol=1e-12, rtol=0)


@pytest.mark.parametrize("rows", [2, 300])  # few and many samples take other products
@pytest.mark.parametrize("dim", [300, 1024])
def test_autocast_does_not_reach_a_rotation_nor_its_gradient(dim, rows):
    turn = FastRotation(dim, seed=1)
    features = torch.randn(rows, dim, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        turned = turn(features)
        (gradient,) = torch.autograd.grad(turned, features, features)
    torch.testing.assert_close(turned, turn(features))
    torch.testing.assert_close(gradient, turn.inverse(features))


# State dicts


@pytest.mark.parametrize("scale", [1.0, 1e-3])
@pytest.mark.parametrize("change", ["random", "zero", "rows", "shape", "twice"])
def test_a_dense_checkpoint_of_another_frame_is_refused(scale, change):
    layer = etf_layer(5, 12, bias=False, scale=scale)
    weight = layer.weight.detach()
    weight = {
        "random": torch.randn_like(weight) * scale,
        "zero": torch.zeros_like(weight),
        "rows": weight.flip(0),
        "shape": weight[:, :8],
        "twice": 2 * weight,
    }[change]
    with pytest.raises(nc.InputError, match="not this layer's frame"):
        layer.load_state_dict({"weight": weight})


def test_a_missing_or_unknown_key_is_still_an_error():
    with pytest.raises(RuntimeError, match="Missing key"):
        nc.ETFClassifier(8, 5).load_state_dict({"scale": torch.tensor(1.0)})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        nc.ETFClassifier(8, 5, bias=False).load_state_dict({"scale": torch.tensor(1.0), "extra": torch.tensor(1.0)})


# Errors


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((3, 5), {}, "d >= K-1 = 4.*got d=3"),
        ((3, 1), {}, "num_classes to be an integer of at least 2, got 1"),
        ((0, 2), {}, "at least 1, got 0"),
        ((5, 5), {"scale": 0}, "positive and finite, got 0"),
        ((5, 5), {"scale": -1.0}, "positive and finite"),
        ((5, 5), {"scale": math.nan}, "positive and finite, got nan"),
        ((5, 5), {"scale": math.inf}, "positive and finite"),
        ((5, 5), {"rotation": "haar"}, "'blocks' or 'none' or 'fast' or 'nearest', got 'haar'"),
    ],
)
def test_layers_that_cannot_be_are_refused(arguments, options, message):
    with pytest.raises(nc.InputError, match=message):
        nc.ETFClassifier(*arguments, **options)


# fix_classifier


class Network(nn.Module):
    def __init__(self, dim=8, num_classes=5, bias=True):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(6, dim), nn.ReLU())
        self.fc = nn.Linear(dim, num_classes, bias=bias)

    def forward(self, inputs):
        return self.fc(self.backbone(inputs))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, F64])
def test_the_last_layer_is_swapped_like_for_like(bias, training, dtype):
    network = Network(bias=bias).to(dtype).train(training)
    assert nc.fix_classifier(network) is network
    layer = network.fc
    assert isinstance(layer, nc.ETFClassifier)
    assert layer.training is training
    assert layer.scale.dtype == dtype
    assert (layer.bias is not None) is bias
    if bias:
        assert layer.bias.dtype == dtype
        assert not layer.bias.any()
    assert network(torch.randn(3, 6, dtype=dtype)).shape == (3, 5)


def test_the_new_layer_is_on_the_old_ones_device():
    assert nc.fix_classifier(Network().to("meta")).fc.bias.device.type == "meta"


def test_options_are_passed_on():
    layer = nc.fix_classifier(Network(), bias=False, scale=4.0, learn_scale=True, rotation="fast", seed=3).fc
    assert layer.bias is None
    assert isinstance(layer.scale, nn.Parameter)
    wanted = nc.ETFClassifier(8, 5, scale=4.0, rotation="fast", seed=3)
    torch.testing.assert_close(layer.weight, wanted.weight)


def test_a_dotted_name_reaches_inside():
    model = nn.Sequential(nn.Linear(3, 6), nn.ModuleDict({"head": nn.Sequential(nn.ReLU(), nn.Linear(6, 4))}))
    nc.fix_classifier(model, "1.head.1")
    assert isinstance(model[1]["head"][1], nc.ETFClassifier)
    assert isinstance(model[0], nn.Linear)


def test_a_linear_layer_alone_gives_the_new_layer():
    layer = nc.fix_classifier(nn.Linear(8, 5, bias=False, dtype=F64))
    assert isinstance(layer, nc.ETFClassifier)
    assert layer.bias is None
    assert layer.scale.dtype == F64


@pytest.mark.parametrize(
    ("network", "name", "message"),
    [
        (Network(), "fcc", r"no layer 'fcc' \(did you mean 'fc'\?\).*backbone\.0, fc"),
        (Network(), "", "no layer ''"),
        (Network(), "backbone.1", "got ReLU.*backbone.0, fc"),
        (Network(), "backbone", "got Sequential"),
        (nn.Sequential(nn.ReLU()), "fc", "linear layers: none"),
        (Network(), 3, "expected the name of a head or several, got 3"),
    ],
)
def test_a_refusal_says_why_and_leaves_the_model_as_it_was(network, name, message):
    before = dict(network.named_modules())
    with pytest.raises(nc.InputError, match=message):
        nc.fix_classifier(network, name)
    assert dict(network.named_modules()) == before


@pytest.mark.parametrize("options", KINDS, ids=KIND_NAMES)
def test_a_network_learns_under_the_fixed_layer(options):
    torch.manual_seed(0)
    labels = torch.arange(60) % 5
    inputs = 2 * nc.simplex_etf(5, 6)[labels] + 0.3 * torch.randn(60, 6)
    network = nc.fix_classifier(Network(), scale=4.0, **options)
    fixed = network.fc.weight.detach() / network.fc.scale.detach()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = F.cross_entropy(network(inputs), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    torch.testing.assert_close(network.fc.weight / network.fc.scale, fixed)


def test_a_dense_weight_that_is_only_entrywise_near_is_refused():
    layer = nc.ETFClassifier(300, 300, bias=False)
    with pytest.raises(nc.InputError, match="not this layer's frame"):
        layer.load_state_dict({"weight": torch.eye(300)})


def test_fix_classifier_gives_each_class_features_of_its_own_unless_told_otherwise():
    def fixed(**options) -> nn.Module:
        return nc.fix_classifier(nn.Linear(64, 4), **options)

    blocks = nc.simplex_etf(4, 4).repeat_interleave(16, 1) / 4
    torch.testing.assert_close(fixed().weight, blocks)
    torch.testing.assert_close(fixed(rotation="none").weight, nc.simplex_etf(4, 64))
    assert bool((fixed(rotation="fast").weight != 0).any(0).all())


# More classes than a simplex holds


@pytest.mark.parametrize(
    ("dim", "num_classes", "frame", "kind"),
    [
        (8, 9, "simplex", nc.ETFClassifier),
        (8, 10, "orthoplex", nc.OrthoplexClassifier),
        (8, 16, "orthoplex", nc.OrthoplexClassifier),
        (8, 17, "softmax_code", nc.SoftmaxCodeClassifier),
    ],
)
def test_the_frame_is_the_best_known_for_so_many_classes_and_says_its_name(dim, num_classes, frame, kind):
    network = Network(dim=dim, num_classes=num_classes)
    old = network.fc
    layer = nc.fix_classifier(network, "fc").fc
    assert type(layer) is kind
    assert layer.frame == frame
    assert f"frame='{frame}'" in repr(layer)
    assert layer.weight.shape == old.weight.shape
    assert [name for name, _ in layer.named_parameters()] == ["bias"]
    assert layer.rotation_name == {"simplex": "blocks", "orthoplex": "fast", "softmax_code": "none"}[frame]
    assert "fc" in head_names(network)


@pytest.mark.parametrize("frame", ["simplex", "orthoplex", "softmax_code"])
def test_a_frame_can_be_asked_for(frame):
    layer = nc.fix_classifier(nn.Linear(8, 5), frame=frame)
    assert layer.frame == frame
    cosines = layer.weight @ layer.weight.T
    largest = float((cosines - 2 * torch.eye(5)).max())
    assert largest == pytest.approx({"simplex": -0.25, "orthoplex": 0, "softmax_code": -0.25}[frame], abs=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frame": "simplex"}, "d >= K-1 = 19.*got d=8.*frame='softmax_code'"),
        ({"frame": "orthoplex"}, "at most 2d = 16 classes.*got K=20"),
        ({"frame": "etf"}, "frame 'auto', 'simplex', 'orthoplex', 'softmax_code', got 'etf'"),
        ({"momentum": 0.1}, "frame 'softmax_code' takes no such option.*momentum"),
        ({"rotation": "fast"}, "rotation 'none', got 'fast'"),
    ],
)
def test_a_frame_that_cannot_be_is_refused(options, message):
    network = Network(dim=8, num_classes=20)
    old = network.fc
    with pytest.raises(nc.InputError, match=message):
        nc.fix_classifier(network, "fc", **options)
    assert network.fc is old


def test_an_embedding_that_shares_the_weight_stays_as_it_is():
    network = nn.ModuleDict({"embedding": nn.Embedding(30, 8), "lm_head": nn.Linear(8, 30, bias=False)})
    network["lm_head"].weight = network["embedding"].weight
    before = network["embedding"].weight.clone()
    nc.fix_classifier(network, "lm_head")
    assert isinstance(network["lm_head"], nc.SoftmaxCodeClassifier)
    assert [name for name, _ in network.named_parameters()] == ["embedding.weight"]
    assert torch.equal(network["embedding"].weight, before)
    network["lm_head"](network["embedding"](torch.tensor([3, 4]))).sum().backward()
    assert float(network["embedding"].weight.grad.abs().sum()) > 0


def test_a_layer_that_the_model_holds_twice_is_swapped_under_both_names():
    network = Network()
    network.head = network.fc
    nc.fix_classifier(network, "fc")
    assert network.head is network.fc
    assert isinstance(network.fc, nc.ETFClassifier)


@pytest.mark.parametrize("wrong", [None, "net", {}, nn.Linear])
def test_what_is_no_network_is_refused_in_a_line(wrong):
    with pytest.raises(nc.InputError, match=r"expected the network as a torch\.nn\.Module, got"):
        nc.fix_classifier(wrong)
