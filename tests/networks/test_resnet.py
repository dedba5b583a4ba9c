import pytest
import torch
from torch import nn
from torch.nn import functional as F

import neuralcollapse as nc
from neuralcollapse.networks.resnet import ResNet

# Trainable parameters: learned with its own d, learned with d=10, ETF with its own d, ETF with d=10.
COUNTS = {
    ("resnet18", "imagenet"): (11_181_642, 8_867_542, 11_176_522, 8_867_442),
    ("resnet18", "small"): (11_173_962, 8_859_862, 11_168_842, 8_859_762),
    ("resnet50", "imagenet"): (23_528_522, 22_481_110, 23_508_042, 22_481_010),
    ("resnet50", "small"): (23_520_842, 22_473_430, 23_500_362, 22_473_330),
}
# As in torchvision: parameters, running means and variances, and the counter of each batch normalisation.
KEYS = {
    "conv1.weight": (64, 3, 7, 7),
    "bn1.running_var": (64,),
    "bn1.num_batches_tracked": (),
    "layer1.0.conv1.weight": (64, 64, 3, 3),
    "layer2.0.downsample.0.weight": (128, 64, 1, 1),
    "layer2.0.downsample.1.running_mean": (128,),
    "layer4.1.bn2.weight": (512,),
    "fc.weight": (10, 512),
    "fc.bias": (10,),
}


def trainable(network):
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def twin(state, images, small=False):
    """A ResNet in eval mode, from nothing but its state dict."""

    def convolve(name, values, stride=1):
        weight = state[f"{name}.weight"]
        return F.conv2d(values, weight, stride=stride, padding=weight.shape[-1] // 2)

    def normalise(name, values):
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        scaled = (values - mean[:, None, None]) / (var + 1e-5)[:, None, None].sqrt()
        return scaled * state[f"{name}.weight"][:, None, None] + state[f"{name}.bias"][:, None, None]

    hidden = normalise("bn1", convolve("conv1", images, 1 if small else 2)).relu()
    hidden = hidden if small else F.max_pool2d(hidden, 3, 2, 1)
    blocks = sorted({name[:8] for name in state if name.startswith("layer")})
    for block in blocks:
        stride = 2 if block.endswith(".0") and block != "layer1.0" else 1
        three = f"{block}.conv3.weight" in state
        strides = (1, stride, 1) if three else (stride, 1)
        inner = hidden
        for index, step in enumerate(strides, start=1):
            inner = normalise(f"{block}.bn{index}", convolve(f"{block}.conv{index}", inner, step))
            inner = inner.relu() if index < len(strides) else inner
        if f"{block}.downsample.0.weight" in state:
            hidden = normalise(f"{block}.downsample.1", convolve(f"{block}.downsample.0", hidden, stride))
        hidden = (hidden + inner).relu()
    return hidden.mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]


@pytest.mark.parametrize(("name", "stem"), COUNTS)
def test_the_number_of_trainable_parameters_is_exact(name, stem):
    builds = [("learned", None), ("learned", 10), ("etf", None), ("etf", 10)]
    counts = [trainable(nc.build_network(name, 10, dim, classifier, stem)) for classifier, dim in builds]
    assert tuple(counts) == COUNTS[name, stem]


@pytest.mark.parametrize(
    ("name", "count", "entries"),
    [("resnet18", 11_689_512, 122), ("resnet34", 21_797_672, 218), ("resnet50", 25_557_032, 320)],
)
def test_for_imagenet_the_networks_are_the_originals(name, count, entries):
    network = nc.build_network(name, 1000)
    assert trainable(network) == count
    assert len(network.state_dict()) == entries


def test_the_state_dict_has_torchvisions_names():
    state = nc.build_network("resnet18", 10).state_dict()
    assert {name: tuple(state[name].shape) for name in KEYS} == KEYS
    assert "layer1.0.downsample.0.weight" not in state
    bottleneck = nc.build_network("resnet50", 10).state_dict()
    assert bottleneck["layer1.0.downsample.0.weight"].shape == (256, 64, 1, 1)
    assert bottleneck["layer4.2.conv3.weight"].shape == (2048, 512, 1, 1)


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_torchvisions_weights_load_and_give_its_logits(name):
    models = pytest.importorskip("torchvision").models
    theirs, ours = models.get_model(name).eval(), nc.build_network(name, 1000).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("stem", ["imagenet", "small"])
@pytest.mark.parametrize(("name", "dim"), [("resnet18", None), ("resnet34", 24), ("resnet50", 24)])
def test_the_forward_pass_is_that_of_a_naive_twin(name, dim, stem):
    torch.manual_seed(0)
    network = ResNet(name, 5, dim, stem=stem, width=8).double()
    with torch.no_grad():
        network(torch.randn(8, 3, 32, 32, dtype=torch.float64))  # running statistics that are not 0 and 1
        images = torch.randn(2, 3, 33, 32, dtype=torch.float64)
        expected = twin(network.state_dict(), images, stem == "small")
        torch.testing.assert_close(network.eval()(images), expected)


@pytest.mark.parametrize("stem", ["imagenet", "small"])
@pytest.mark.parametrize(("name", "dim", "seen"), [("resnet18", None, 512), ("resnet18", 20, 20), ("resnet50", 9, 9)])
def test_the_classifier_receives_features_of_dimension_d(name, dim, seen, stem):
    network = nc.build_network(name, 10, dim, "etf", stem).eval()
    caught = []
    network.fc.register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0]))
    with torch.no_grad():
        assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert caught[0].shape == (2, seen)
    assert bool((caught[0] >= 0).all())


@pytest.mark.parametrize(("stem", "size"), [("imagenet", 7), ("small", 28)])
def test_the_small_stem_keeps_small_images(stem, size):
    network = ResNet("resnet18", 10, stem=stem, width=4, in_channels=1)
    caught = []
    network.layer1.register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0]))
    network(torch.randn(2, 1, 28, 28))
    assert caught[0].shape == (2, 4, size, size)


@pytest.mark.parametrize(("name", "own", "last"), [("resnet18", 512, "conv2"), ("resnet50", 2048, "conv3")])
def test_d_is_chosen_in_the_last_block_alone(name, own, last):
    plain, same, narrow = (nc.build_network(name, 10, dim).state_dict() for dim in (None, own, 12))
    assert {key: value.shape for key, value in same.items()} == {key: value.shape for key, value in plain.items()}
    changed = {key for key in narrow if key not in plain or narrow[key].shape != plain[key].shape}
    index = {"resnet18": 1, "resnet50": 2}[name]
    block = f"layer4.{index}"
    moments = ("weight", "bias", "running_mean", "running_var")
    assert changed == {
        "fc.weight",
        f"{block}.{last}.weight",
        *(f"{block}.bn{last[-1]}.{key}" for key in moments),
        f"{block}.downsample.0.weight",
        *(f"{block}.downsample.1.{key}" for key in (*moments, "num_batches_tracked")),
    }
    assert narrow[f"{block}.downsample.0.weight"].shape == (12, own, 1, 1)
    assert narrow[f"{block}.{last}.weight"].shape[0] == 12


@pytest.mark.parametrize("width", [8, 16])
def test_the_width_scales_every_stage(width):
    network = nc.build_network("resnet18_width", 10, width=width)
    stages = [network.layer1, network.layer2, network.layer3, network.layer4]
    assert [stage[-1].conv2.out_channels for stage in stages] == [width, 2 * width, 4 * width, 8 * width]
    assert network.fc.in_features == 8 * width


def test_of_width_64_it_is_resnet18():
    ours = nc.build_network("resnet18_width", 10).state_dict()
    nc.build_network("resnet18", 10).load_state_dict(ours, strict=True)


def test_the_initialisation_is_hes():
    torch.manual_seed(0)
    network = nc.build_network("resnet18", 10)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
        if isinstance(module, nn.BatchNorm2d):
            assert bool((module.weight == 1).all())
            assert bool((module.bias == 0).all())


@pytest.mark.parametrize("stem", ["imagenet", "small"])
@pytest.mark.parametrize(("kind", "dim"), [("resnet18", None), ("resnet50", 12)])
def test_the_gradient_reaches_every_parameter(kind, dim, stem):
    torch.manual_seed(0)
    network = ResNet(kind, 5, dim, stem=stem, width=16)
    F.cross_entropy(network(torch.randn(10, 3, 32, 32)), torch.arange(10) % 5).backward()
    assert [name for name, parameter in network.named_parameters() if not bool(parameter.grad.any())] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stem": "tiny"}, "'imagenet' or 'small', got 'tiny'"),
        ({"feature_dim": 0}, "feature_dim.*at least 1, got 0"),
        ({"in_channels": 0}, "in_channels.*at least 1, got 0"),
        ({"width": 8}, "resnet18 has no option 'width'; it takes in_channels, bias"),
    ],
)
def test_what_cannot_be_built_says_why(options, message):
    with pytest.raises(nc.InputError, match=message):
        nc.build_network("resnet18", 10, **options)
