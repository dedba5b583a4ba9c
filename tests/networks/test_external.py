import copy
import importlib
import json
import sys
import types
from collections import namedtuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import neuralcollapse as nc
from neuralcollapse.networks.build import classifier_name
from neuralcollapse.networks.external import ExternalNetwork

VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 8,
    "patch_size": 4,
    "num_channels": 1,
}
RESNET = {"num_channels": 1, "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}


class Small(nn.Module):
    """A user's network: its classifier is at `head.1`, and `aux` comes after it."""

    def __init__(self, num_classes, width=6, bias=True, wrap=lambda logits: logits):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU())
        self.head = nn.Sequential(nn.Dropout(0.0), nn.Linear(width, num_classes, bias=bias))
        self.aux = nn.Linear(3, 2)
        self.wrap = wrap

    def forward(self, images):
        return self.wrap(self.head(self.body(images)))


def made(returns, monkeypatch, **functions):
    """The name of a network in a module of which `function` returns `returns`."""
    module = types.ModuleType("made_here")
    module.function = lambda num_classes: returns
    vars(module).update(functions)
    monkeypatch.setitem(sys.modules, "made_here", module)
    return "made_here:function"


def features_into(network, images):
    caught = []
    layer = network.get_submodule(classifier_name(network))
    handle = layer.register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0]))
    network(images)
    handle.remove()
    return caught[0]


# The wrapper


@pytest.mark.parametrize("num_classes", [3, 6])
def test_the_classifier_is_the_last_layer_with_as_many_outputs_as_classes(num_classes):
    """With six classes the layer before it has as many outputs too."""
    network = ExternalNetwork(Small(num_classes), num_classes)
    assert classifier_name(network) == network.classifier_name == "network.head.1"
    assert network.fc is network.network.head[1]
    assert classifier_name(torch.compile(network)) == "network.head.1"


def test_a_network_that_is_its_own_classifier():
    network = ExternalNetwork(nn.Linear(4, 3), 3)
    assert classifier_name(network) == "network"
    network.fc = nn.Linear(4, 3, bias=False)
    assert list(network.state_dict()) == ["network.weight"]


def test_assigning_fc_replaces_the_layer_in_the_network():
    network = ExternalNetwork(Small(3), 3)
    names = list(network.state_dict())
    layer = nn.Linear(6, 3)
    network.fc = layer
    assert network.fc is network.network.head[1] is layer
    assert list(network.state_dict()) == names
    assert "fc" not in network._modules
    torch.testing.assert_close(network(torch.ones(1, 64)), layer(network.network.body(torch.ones(1, 64))))


def test_a_layer_held_under_two_names_is_replaced_under_both():
    inner = Small(3)
    inner.also = inner.head[1]
    network = ExternalNetwork(inner, 3)
    network.fc = nn.Linear(6, 3)
    assert inner.also is inner.head[1] is network.fc


def test_a_copy_has_a_classifier_of_its_own():
    network = ExternalNetwork(Small(3), 3)
    twin = copy.deepcopy(network)
    twin.fc = nn.Linear(6, 3)
    assert twin.fc is twin.network.head[1] is not network.fc


@pytest.mark.parametrize(
    "wrap",
    [
        lambda logits: types.SimpleNamespace(logits=logits),
        lambda logits: {"loss": None, "logits": logits},
        lambda logits: (logits, None),
        lambda logits: [logits],
        lambda logits: namedtuple("Output", "aux logits")(None, logits),
    ],
    ids=["object", "dict", "tuple", "list", "namedtuple"],
)
def test_the_logits_are_taken_out_of_what_a_network_returns(wrap):
    inner = Small(3, wrap=wrap)
    images = torch.randn(2, 8, 8)
    torch.testing.assert_close(ExternalNetwork(inner, 3)(images), inner.head(inner.body(images)))


@pytest.mark.parametrize("output", [None, {"loss": 1}, (), (None,)])
def test_an_output_without_logits_is_refused(output):
    with pytest.raises(nc.InputError, match=r"expected Small to return logits, got \w+: return a tensor"):
        ExternalNetwork(Small(3, wrap=lambda logits: output), 3)(torch.ones(1, 64))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Small(5), "4 outputs .the classes., got 2 outputs at 'aux': have the network take"),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten()), "4 outputs .*got one without any nn.Linear"),
    ],
)
def test_a_network_without_such_a_layer_is_refused(network, message, monkeypatch):
    with pytest.raises(nc.InputError, match=message):
        nc.build_network(made(network, monkeypatch), 4)


# The features' dimension, and the fixed classifier


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("classifier", ["learned", "etf"])
@pytest.mark.parametrize("dim", [None, 6, 4])
def test_the_classifier_sees_features_of_the_dimension_asked_for(dim, classifier, bias, monkeypatch, tmp_path):
    network = nc.build_network(made(Small(3, bias=bias), monkeypatch), 3, dim, classifier)
    projected = dim == 4
    assert classifier_name(network) == ("network.head.1.fc" if projected else "network.head.1")
    assert isinstance(network.fc, nn.Linear if classifier == "learned" else nc.ETFClassifier)
    assert network.fc.weight.shape == (3, dim or 6)
    assert (network.fc.bias is not None) is bias
    assert features_into(network, torch.randn(2, 64)).shape == (2, dim or 6)
    state = network.state_dict()
    assert ("network.head.1.project.weight" in state) is projected
    assert "network.head.1.project.bias" not in state

    save_file(state, tmp_path / "weights.safetensors")
    other = nc.build_network(made(Small(3, bias=bias), monkeypatch), 3, dim, classifier)
    other.load_state_dict(load_file(tmp_path / "weights.safetensors"), strict=True)
    images = torch.randn(2, 64)
    torch.testing.assert_close(other(images), network(images))


@pytest.mark.parametrize(("dim", "name"), [(None, "network.head.1"), (4, "network.head.1.fc")])
def test_an_outside_network_can_be_measured_and_fixed(dim, name, monkeypatch):
    torch.manual_seed(0)
    network = nc.build_network(made(Small(3), monkeypatch), 3, dim)
    loader = [(torch.randn(12, 8, 8), torch.arange(12) % 3) for _ in range(2)]
    result = nc.measure(network, loader, classifier_name(network), progress=False)
    features = torch.cat([features_into(network, images) for images, _ in loader]).detach()
    labels = torch.cat([labels for _, labels in loader])
    expected = nc.measure_features(features, labels, network.fc.weight, network.fc.bias)
    assert result["num_samples"] == 24
    assert result["nc1"] == pytest.approx(expected["nc1"], rel=1e-4)
    nc.fix_classifier(network, name)
    assert isinstance(network.fc, nc.ETFClassifier)


def test_too_few_features_for_the_fixed_classifier(monkeypatch):
    with pytest.raises(nc.InputError, match=r"d >= K-1 = 7.*d=6"):
        nc.build_network(made(Small(8), monkeypatch), 8, None, "etf")


@pytest.mark.parametrize("learn_scale", [True, False])
def test_a_network_keeps_the_fixed_classifier_that_it_brings(learn_scale, monkeypatch):
    inner = nn.Sequential(nn.Flatten(), nc.ETFClassifier(64, 3, scale=2.0, learn_scale=learn_scale))
    name = made(inner, monkeypatch)
    assert nc.build_network(name, 3, None, "etf", learn_scale=learn_scale).fc is inner[1]
    with pytest.raises(nc.InputError, match=f"own ETFClassifier.*use frame='simplex', learn_scale={learn_scale}"):
        nc.build_network(name, 3)
    with pytest.raises(nc.InputError, match="own ETFClassifier"):
        nc.build_network(name, 3, None, "etf", learn_scale=not learn_scale)


# A function of the user's


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


MODEL = """
from torch import nn

def build(num_classes, width=8):
    import beside_my_model
    return nn.Sequential(nn.Flatten(), nn.Linear(4, width), nn.ReLU(), nn.Linear(width, num_classes))

class Net(nn.Linear):
    def __init__(self, num_classes):
        super().__init__(4, num_classes)

def forwards(num_classes, **options):
    return build(num_classes, **options)

def breaks(num_classes):
    return 1 + None

anything = 3
"""


def test_a_function_in_the_current_folder(folder):
    (folder / "my_model.py").write_text(MODEL)
    (folder / "beside_my_model.py").write_text("")
    before = list(sys.path)
    network = nc.build_network("my_model:build", 3, width=5, depth=None)
    assert network.fc.weight.shape == (3, 5)
    assert network(torch.randn(2, 1, 2, 2)).shape == (2, 3)
    assert nc.build_network("my_model:Net", 3).fc.weight.shape == (3, 4)
    assert sys.path == before


def test_a_function_in_a_package(folder):
    (folder / "my_package").mkdir()
    (folder / "my_package" / "nets.py").write_text(MODEL)
    assert nc.build_network("my_package.nets:Net", 3).fc.out_features == 3


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("no_such_model:build", {}, "no module 'no_such_model' in the current folder .* the installed packages"),
        ("my_model.inner:build", {}, r"no module 'my_model.inner' in the current folder"),
        ("torchvison:resnet18", {}, "no module 'torchvison' .did you mean 'torchvision'"),
        ("my_model:biuld", {}, "my_model .*my_model.py. has no function 'biuld' .did you mean 'build'"),
        ("my_model:anything", {}, "has no function 'anything'"),
        ("./my_model.py:build", {}, "package.module:function, got './my_model.py:build'"),
        ("my_model:", {}, "package.module:function"),
        ("my_model:build", {"widht": 3}, r"arguments num_classes, widht, got \(num_classes, width=8\).*'widht'"),
        ("my_model:forwards", {"widht": 3}, "my_model:forwards does not take these arguments: .*'widht'"),
        ("imports_more:build", {}, "import of 'imports_more' failed inside it: ModuleNotFoundError.*'not_there'"),
        (
            "imports_name:build",
            {},
            "import of 'imports_name' failed inside it: ImportError.*cannot import name 'nowhere'",
        ),
        ("builtins:dict", {}, "expected builtins:dict to return a torch.nn.Module, got dict"),
    ],
)
def test_a_function_that_cannot_be_used_says_why(folder, name, options, message):
    (folder / "my_model.py").write_text(MODEL)
    (folder / "imports_more.py").write_text("import not_there")
    (folder / "imports_name.py").write_text("from torch import nowhere")
    with pytest.raises(nc.InputError, match=message) as caught:
        nc.build_network(name, 3, **options)
    assert "\n" not in str(caught.value)


def test_a_mistake_inside_the_function_is_shown_as_it_is(folder):
    (folder / "my_model.py").write_text(MODEL)
    with pytest.raises(TypeError, match="unsupported operand"):
        nc.build_network("my_model:breaks", 3)


# Libraries


def build_fake(name, num_classes=1000, **options):
    return Small(num_classes, **options)


@pytest.fixture(params=["torchvision", "timm"])
def library(request, monkeypatch):
    """The name of a library that has resnet18 and resnet34."""
    module = types.ModuleType(request.param)
    module.list_models = lambda: ["resnet18", "resnet34", "vit_b_16"]
    module.get_model = module.create_model = build_fake
    module.models = module
    monkeypatch.setitem(sys.modules, request.param, module)
    return request.param


def test_a_librarys_model_has_k_classes(library):
    network = nc.build_network(f"{library}:resnet18", 3, width=5)
    assert network.fc is network.network.head[1]
    assert network.fc.weight.shape == (3, 5)
    assert nc.build_network(f"{library}:resnet18", 3, 4, "etf").fc.weight.shape == (3, 4)


def test_timms_names_may_have_a_tag(library):
    if library == "timm":
        assert nc.build_network("timm:resnet18.a1_in1k", 3).fc.out_features == 3


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("resnet81", {}, "{} has no model 'resnet81': the nearest are resnet18, resnet34"),
        ("", {}, "{} has no model '': it has resnet18, resnet34, vit_b_16"),
        ("resnet18", {"widht": 5}, "{}:resnet18 could not be built with these options: .*'widht'"),
    ],
)
def test_a_librarys_model_that_cannot_be_built_says_why(library, model, options, message):
    with pytest.raises(nc.InputError, match=message.format(library)) as caught:
        nc.build_network(f"{library}:{model}", 3, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("library", ["torchvision", "timm", "transformers"])
@pytest.mark.parametrize("error", [ModuleNotFoundError("No module"), RuntimeError("operator nms\ndoes not exist")])
def test_a_library_that_does_not_import_says_how_to_install_it(library, error, monkeypatch):
    def fail(name):
        raise error

    monkeypatch.setattr(importlib, "import_module", fail)
    kind = type(error).__name__
    with pytest.raises(nc.InputError, match=f"{library} is not installed.*{kind}.*: pip install {library}$") as caught:
        nc.build_network(f"{library}:resnet18", 3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "classifier"),
    [
        ("torchvision:resnet18", "network.fc"),
        ("torchvision:mobilenet_v3_small", "network.classifier.3"),
        ("torchvision:vit_b_16", "network.heads.head"),
        ("timm:resnet18", "network.fc"),
        ("timm:vit_tiny_patch16_224", "network.head"),
    ],
)
def test_the_real_libraries_where_they_are_installed(name, classifier):
    pytest.importorskip(name.partition(":")[0])
    network = nc.build_network(name, 3, 7).eval()
    assert classifier_name(network) == f"{classifier}.fc"
    assert features_into(network, torch.randn(1, 3, 224, 224)).shape == (1, 7)
    with pytest.raises(nc.InputError, match="has no model"):
        nc.build_network(f"{name}x", 3)


# transformers


@pytest.fixture
def vit_folder(tmp_path):
    """A folder with a small ViT's configuration, of seven classes and half precision."""
    pytest.importorskip("transformers")
    config = {"model_type": "vit", "id2label": {str(k): str(k) for k in range(7)}, "dtype": "float16", **VIT}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize(
    ("kind", "options", "classifier"),
    [("vit", VIT, "network.classifier"), ("resnet", RESNET, "network.classifier.1")],
)
def test_a_model_type_of_transformers(kind, options, classifier):
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    network = nc.build_network(f"transformers:{kind}", 3, **options)
    assert classifier_name(network) == classifier
    images, labels = torch.randn(6, 1, 8, 8), torch.arange(6) % 3
    logits = network(images)
    assert logits.shape == (6, 3)
    nn.functional.cross_entropy(logits, labels).backward()
    assert network.fc.weight.grad.abs().sum() > 0
    assert nc.measure(network, [(images, labels)], classifier, progress=False)["num_samples"] == 6
    fixed = nc.build_network(f"transformers:{kind}", 3, 4, "etf", **options)
    assert classifier_name(fixed) == f"{classifier}.fc"
    assert features_into(fixed, images).shape == (6, 4)


def test_a_configuration_in_a_folder(vit_folder, monkeypatch):
    network = nc.build_network(f"transformers:{vit_folder}", 3, hidden_size=8)
    assert network.fc.weight.shape == (3, 8)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    monkeypatch.chdir(vit_folder.parent)
    assert nc.build_network(f"transformers:{vit_folder.name}", 3).fc.weight.shape == (3, 16)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("vitt", {}, "no model type 'vitt' .did you mean 'vit'.*a hub id such as"),
        ("bert", {}, "to classify images, got the type 'bert': use one of .*resnet.*vit"),
        ("vit", {"hiden_size": 8}, "no option 'hiden_size' .did you mean 'hidden_size'"),
        ("vit", {"hidden_size": "wide"}, "transformers:vit could not be built with these options: "),
        ("vit", {"num_labels": 8}, "no option 'num_labels' for transformers:vit: it is the data's number of classes"),
        ("vit", {"trust_remote_code": True}, "no option 'trust_remote_code'.*never run"),
        ("./no/such/folder", {}, "no configuration './no/such/folder' on the .*hub .*config.json"),
    ],
)
def test_a_model_that_transformers_cannot_build_says_why(model, options, message):
    pytest.importorskip("transformers")
    with pytest.raises(nc.InputError, match=message) as caught:
        nc.build_network(f"transformers:{model}", 3, **options)
    assert "\n" not in str(caught.value)


def test_without_the_hub_the_message_names_the_local_way(monkeypatch):
    transformers = pytest.importorskip("transformers")

    def offline(*arguments, **options):
        assert options["trust_remote_code"] is False
        raise OSError("We couldn't connect to 'https://huggingface.co'\nto load the files")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", offline)
    with pytest.raises(nc.InputError, match=r"'some/model'.*offline.*transformers:\./FOLDER .We couldn't") as caught:
        nc.build_network("transformers:some/model", 3)
    assert "\n" not in str(caught.value)


def test_a_folders_own_code_is_not_run(vit_folder):
    code = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}
    (vit_folder / "config.json").write_text(json.dumps(code))
    (vit_folder / "mine.py").write_text("raise SystemExit('this ran')")
    with pytest.raises(nc.InputError, match=r"no configuration that transformers can use: .*custom code"):
        nc.build_network(f"transformers:{vit_folder}", 3)


def test_a_folders_unknown_option_is_named(vit_folder):
    with pytest.raises(nc.InputError, match=r"no option 'hiden_size' .did you mean 'hidden_size'"):
        nc.build_network(f"transformers:{vit_folder}", 3, hiden_size=8)


@pytest.mark.parametrize("classifier", ["learned", "etf"])
@pytest.mark.parametrize("dim", [None, 4])
def test_a_head_that_is_a_1x1_convolution_is_projected_and_fixed_as_one(dim, classifier, monkeypatch):
    inner = nn.Sequential(nn.Conv2d(1, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 3, 1), nn.Flatten())
    network = nc.build_network(made(inner, monkeypatch), 3, dim, classifier)
    assert classifier_name(network) == ("network.2.fc" if dim else "network.2")
    assert isinstance(network.fc, nn.Conv2d if classifier == "learned" else nc.ETFClassifier)
    assert network.fc.weight.flatten(1).shape == (3, dim or 6)
    logits = network(torch.randn(2, 1, 8, 8))
    assert logits.shape == (2, 3)
    logits.square().sum().backward()
    assert bool(inner[0].weight.grad.any())
