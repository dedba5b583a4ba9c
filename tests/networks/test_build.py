import pytest
import torch
from torch import nn

import neuralcollapse as nc
from neuralcollapse.networks.build import classifier_name


@pytest.mark.parametrize(("classifier", "kind"), [("learned", nn.Linear), ("etf", nc.ETFClassifier)])
def test_the_mlp_has_its_classifier_at_fc(classifier, kind):
    network = nc.build_network("mlp", 5, 12, classifier, in_features=9, width=7, depth=2)
    assert isinstance(network.fc, kind)
    assert classifier_name(network) == "fc"
    assert network.fc.weight.shape == (5, 12)
    assert network(torch.randn(4, 1, 3, 3)).shape == (4, 5)


@pytest.mark.parametrize("options", [{}, {"width": None, "depth": None, "in_features": None, "in_channels": None}])
def test_the_mlps_defaults_stand_where_none_is_given(options):
    state = nc.build_network("mlp", 10, **options).state_dict()
    weights = {name: tuple(value.shape) for name, value in state.items() if value.dim() == 2}
    assert weights == {
        "features.1.weight": (512, 64),
        "features.4.weight": (512, 512),
        "features.7.weight": (256, 512),
        "fc.weight": (10, 256),
    }


@pytest.mark.parametrize("name", ["mlp", "resnet18_width"])
def test_the_fixed_classifier_saves_exactly_the_weight(name):
    def trainable(**options) -> int:
        network = nc.build_network(name, 10, 32, width=16, **options)
        return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)

    learned = trainable()
    assert learned - trainable(classifier="etf") == 10 * 32
    assert learned - trainable(classifier="etf", learn_scale=True) == 10 * 32 - 1


@pytest.mark.parametrize("rotation", [None, "blocks", "none", "fast"])
def test_the_fixed_classifier_has_the_frame_asked_for_and_blocks_by_default(rotation):
    options = {} if rotation is None else {"rotation": rotation}
    layer = nc.build_network("mlp", 5, 16, "etf", **options).fc
    assert layer.rotation_name == (rotation or "blocks")
    assert torch.equal(layer.weight, nc.ETFClassifier(16, 5, rotation=rotation or "blocks").weight)
    torch.testing.assert_close(layer.weight @ layer.weight.T, torch.eye(5) * 1.25 - 0.25)
    used = {"none": 5, "fast": 16}.get(rotation, 15)
    assert int((layer.weight.abs().sum(0) > 0).sum()) == used


@pytest.mark.parametrize(
    ("frame", "kind", "options"),
    [
        ("learned", nn.Linear, {}),
        ("simplex", nc.ETFClassifier, {}),
        ("orthoplex", nc.OrthoplexClassifier, {"rotation": "none", "learn_scale": True}),
        ("orthoplex", nc.OrthoplexClassifier, {}),
        ("softmax_code", nc.SoftmaxCodeClassifier, {"learn_scale": True}),
    ],
)
def test_a_frame_by_its_name(frame, kind, options):
    layer = nc.build_network("mlp", 5, 6, frame=frame, **options).fc
    assert isinstance(layer, kind)
    if frame == "orthoplex":
        assert layer.rotation_name == options.get("rotation", "fast")
    if options.get("learn_scale"):
        assert isinstance(layer.scale, nn.Parameter)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("mpl", 10), {}, "'mpl'.*did you mean 'mlp'.*resnet50.*transformers:NAME"),
        ((None, 10), {}, "expected a network's name, such as 'mlp', got None: there are: mlp, resnet18"),
        (("resnet18", 1), {}, "num_classes.*at least 2, got 1"),
        (("mlp", 10, 8, "fixed"), {}, "'learned' or 'etf'"),
        (("mlp", 10, 8, "etf"), {}, "d >= K-1 = 9.*d=8"),
        (("resnet18_width", 10, 8, "etf"), {"width": 4}, "d >= K-1 = 9.*d=8"),
        (("mlp", 10), {"learn_scale": True}, "learn_scale is for a fixed frame"),
        (("mlp", 10), {"rotation": "fast"}, "rotation is for a fixed frame.*got 'fast'"),
        (("mlp", 10, 16, "etf"), {"rotation": "haar"}, "rotation 'blocks', 'none', 'fast' for simplex, got 'haar'"),
        (("mlp", 10, 16), {"frame": "etf"}, "frame 'learned', 'simplex', 'orthoplex', 'softmax_code', got 'etf'"),
        (("mlp", 10, 16), {"frame": "simplx"}, "did you mean 'simplex'"),
        (("mlp", 10, 16, "etf"), {"frame": "orthoplex"}, "classifier='etf', frame='orthoplex': leave one out"),
        (("mlp", 10, 4), {"frame": "orthoplex"}, "d"),
        (("mlp", 10, 4), {"frame": "orthoplex", "rotation": "blocks"}, "rotation 'none', 'fast' for orthoplex"),
        (("mlp", 10, 4), {"frame": "softmax_code", "rotation": "fast"}, "rotation 'none' for softmax_code"),
        (("mlp", 10), {"stem": "small"}, "no stem for 'mlp', got 'small': only the ResNets"),
        (("timm:resnet18", 10), {"stem": "small"}, "no stem for 'timm:resnet18'"),
        (("mlp", 10), {"widht": 3}, "no option 'widht' .did you mean 'width'.*in_features, width, depth"),
        (("mlp", 10), {"depth": 0}, "depth.*at least 1, got 0"),
        (("mlp", 10), {"bias": "false"}, "bias of mlp to be true or false, got 'false'"),
        (("resnet18_width", 10), {"channels": 1}, "did you mean 'in_channels'.*it takes in_channels, width, bias"),
    ],
)
def test_what_cannot_be_built_says_why(arguments, options, message):
    with pytest.raises(nc.InputError, match=message) as caught:
        nc.build_network(*arguments, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "options"), [("mlp", {"width": 8}), ("resnet18_width", {"width": 2})])
def test_the_classifier_without_a_bias(name, options):
    assert nc.build_network(name, 4, 8, bias=False, **options).fc.bias is None
    assert nc.build_network(name, 4, 8, frame="simplex", bias=False, **options).fc.bias is None
    assert nc.build_network(name, 4, 8, **options).fc.bias is not None
