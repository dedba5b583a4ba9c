"""Which layers are heads, their weight as (K, d), and `fix_classifier` on them."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import neuralcollapse as nc
from neuralcollapse.heads.linear import head_axis, head_tensors
from neuralcollapse.heads.search import find_head, find_heads, find_module, head_names, main_heads, named_head


def model_of(**parts):
    """A module that holds these parts, in this order."""
    model = nn.Module()
    for name, part in parts.items():
        setattr(model, name, part)
    return model


class Conv1D(nn.Module):
    """As transformers has it: x W + b with W (d, K)."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.zeros(nf))

    def forward(self, features):
        return features @ self.weight + self.bias


class Cosine(nn.Module):
    """A head of the user's own, with a weight (K, d)."""

    def __init__(self, dim, num_classes):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_classes, dim))


class BaseTunerLayer:
    """What peft's adapters derive from, by name."""


class Lora(nn.Module, BaseTunerLayer):
    def __init__(self, base):
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, base.out_features, bias=False)})
        self.weight, self.bias = base.weight, base.bias


# The weight


@pytest.mark.parametrize(
    ("layer", "shape", "axis"),
    [
        (nn.Linear(6, 4), (2, 6), -1),
        (nn.Conv1d(6, 4, 1), (2, 6, 3), -2),
        (nn.Conv2d(6, 4, 1), (2, 6, 3, 3), -3),
        (nn.Conv2d(6, 4, 1, padding="same"), (2, 6, 3, 3), -3),
        (nn.Conv3d(6, 4, 1, bias=False), (2, 6, 3, 3, 3), -4),
        (Conv1D(4, 6), (2, 6), -1),
        (parametrizations.weight_norm(nn.Linear(6, 4)), (2, 6), -1),
        (parametrizations.spectral_norm(nn.Conv2d(6, 4, 1)), (2, 6, 3, 3), -3),
        (nn.ModuleList([nc.ETFClassifier(6, 4)])[0], (2, 6), -1),
        (nc.ETFClassifier(6, 4, axis=-3), (2, 6, 3, 3), -3),
        (nc.SoftmaxCodeClassifier(6, 4, steps=2), (2, 6), -1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_weight_and_the_axis_make_the_logits(layer, shape, axis):
    torch.manual_seed(0)
    layer = layer.eval()
    weight, bias = head_tensors(layer)
    assert weight.shape == (4, 6)
    assert not weight.requires_grad
    assert head_axis(layer) == axis
    features = torch.randn(shape)
    logits = layer(features).movedim(axis, -1)
    wanted = features.movedim(axis, -1) @ weight.T + (0 if bias is None else bias)
    torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_quantised_linear_layer_is_read():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear})
    assert find_heads(quantised) == ["2"]
    weight, bias = head_tensors(quantised[2])
    torch.testing.assert_close(weight, model[2].weight.detach(), atol=0.02, rtol=0)
    torch.testing.assert_close(bias, model[2].bias.detach())


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.ReLU(), "got ReLU$"),
        (nn.Conv2d(6, 4, 3), "got Conv2d that is not a 1x1 convolution"),
        (nn.Conv2d(6, 4, 1, stride=2), "not a 1x1 convolution"),
        (nn.Conv2d(6, 4, 1, padding=1), "not a 1x1 convolution"),
        (nn.Conv2d(6, 4, 1, groups=2), "not a 1x1 convolution"),
        (nn.ConvTranspose2d(6, 4, 1), "got ConvTranspose2d"),
        (nn.Bilinear(3, 3, 4), "got Bilinear"),
        (nn.BatchNorm1d(4), "got BatchNorm1d"),
        (nn.LazyLinear(4), "run one batch through the model"),
    ],
)
def test_what_has_no_such_weight_is_refused_in_a_line(layer, message):
    with pytest.raises(nc.InputError, match=message) as caught:
        head_tensors(layer)
    assert "\n" not in str(caught.value)


# The candidates


def test_candidates_come_in_order_and_what_lies_inside_of_them_does_not():
    model = model_of(
        embedding=nn.Embedding(9, 4),
        conv=nn.Conv2d(3, 4, 1),
        block=nn.MultiheadAttention(4, 2),
        attention=model_of(query=nn.Linear(4, 4), dense=nn.Linear(4, 4)),
        tuned=Lora(nn.Linear(4, 4)),
        normed=parametrizations.weight_norm(nn.Linear(4, 4)),
        own=Cosine(4, 5),
        turned=Conv1D(6, 4),
        grouped=nn.Conv2d(4, 4, 1, groups=2),
        last=nn.Conv2d(4, 7, 1),
        norm=nn.LayerNorm(7),
    )
    assert head_names(model) == ["tuned", "normed", "own", "turned", "last"]
    assert head_names(model, 4) == ["conv", "tuned", "normed"]
    assert head_names(model, 6) == ["turned"]
    assert head_names(model, 8) == []
    only_attention = model_of(attention=model_of(query=nn.Linear(4, 4)))
    assert head_names(only_attention) == ["attention.query"]
    assert head_names(nn.Linear(3, 2)) == [""]


def wrapped(inner):
    return torch.compile(inner) if isinstance(inner, nn.Sequential) else nn.DataParallel(inner)


LINEAR = nn.Linear


@pytest.mark.parametrize(
    ("build", "heads", "main"),
    [
        (lambda: model_of(fc=LINEAR(8, 5), body=LINEAR(3, 8)), ["fc"], ["fc"]),
        (lambda: model_of(fc1=LINEAR(3, 8), fc2=LINEAR(8, 5)), ["fc2"], ["fc2"]),
        (lambda: nn.Sequential(LINEAR(5, 5), nn.ReLU(), LINEAR(5, 5)), ["2"], ["2"]),
        (lambda: model_of(head=nn.Sequential(LINEAR(8, 5), nn.ReLU(), LINEAR(5, 5))), ["head.2"], ["head.2"]),
        (lambda: model_of(head=LINEAR(8, 5), head_dist=LINEAR(8, 5)), ["head", "head_dist"], ["head", "head_dist"]),
        (lambda: model_of(aux_head=LINEAR(8, 5), head=LINEAR(8, 5)), ["aux_head", "head"], ["head"]),
        (lambda: model_of(AuxLogits=model_of(fc=LINEAR(6, 5)), fc=LINEAR(8, 5)), ["AuxLogits.fc", "fc"], ["fc"]),
        (
            lambda: model_of(head=nn.ModuleList([LINEAR(8, 5), LINEAR(6, 5)])),
            ["head.0", "head.1"],
            ["head.0", "head.1"],
        ),
        (lambda: model_of(body=nn.Conv2d(3, 8, 3), fc=nn.Conv2d(8, 5, 1)), ["fc"], ["fc"]),
        (lambda: wrapped(nn.Sequential(LINEAR(3, 8), LINEAR(8, 5))), ["_orig_mod.1"], ["_orig_mod.1"]),
        (lambda: wrapped(model_of(fc=LINEAR(8, 5), z=LINEAR(5, 5))), ["module.fc"], ["module.fc"]),
        (lambda: model_of(a=LINEAR(3, 8), classifier=Lora(LINEAR(8, 5))), ["classifier"], ["classifier"]),
        (lambda: LINEAR(8, 5), [""], [""]),
    ],
)
def test_heads_are_found(build, heads, main):
    model = build()
    assert find_heads(model) == find_heads(model, 5) == heads
    assert main_heads(model) == main
    if len(main) == 1:
        assert find_head(model) == main[0]
    else:
        with pytest.raises(nc.InputError, match=rf"2 heads of 5 outputs: {main[0]}, {main[1]}: name one of them"):
            find_head(model)


def test_what_a_model_says_of_itself_comes_first():
    model = model_of(score=LINEAR(8, 5), projection=LINEAR(8, 5))
    model.get_classifier = lambda: model.projection
    assert "projection" in find_heads(model)
    model.get_output_embeddings = lambda: model.score
    assert find_head(model) == "score"
    told = model_of(body=LINEAR(3, 7), fc=LINEAR(8, 5), other=LINEAR(8, 3))
    told.config = model_of()
    told.config.num_labels = 7
    assert find_head(told) == "body"
    told.config.num_labels = 3
    assert find_head(told) == "other"
    renewed = said(model_of(a=LINEAR(3, 8), heads=model_of(head=LINEAR(8, 5))), num_classes=1000)
    assert find_head(renewed) == "heads.head"  # a new head, and the old number of classes
    trained_whole = model_of(original_module=LINEAR(8, 5), modules_to_save=nn.ModuleDict({"default": LINEAR(8, 5)}))
    trained_whole.active_adapters = ["default"]
    assert find_heads(model_of(classifier=trained_whole)) == ["classifier.modules_to_save.default"]
    trained_whole.disable_adapters = True
    assert find_heads(model_of(classifier=trained_whole)) == ["classifier.original_module"]


def said(model, **values):
    for name, value in values.items():
        setattr(model, name, value)
    return model


@pytest.mark.parametrize(
    ("model", "num_classes", "message"),
    [
        (nn.Sequential(nn.ReLU()), None, "got one without any nn.Linear"),
        (nn.Sequential(nn.Conv2d(1, 4, 3)), 4, "of 4 outputs .the classes., got one without any nn.Linear"),
        (model_of(fc=LINEAR(8, 5)), 4, "last nn.Linear of 4 outputs .the classes., got 5 outputs at 'fc'"),
        (said(model_of(fc=LINEAR(8, 1)), num_classes=2), None, "1 outputs at 'fc': for two classes use two outputs"),
        (said(model_of(fc=LINEAR(8, 5)), num_classes=0), None, "built with num_classes=0"),
        (model_of(head_a=LINEAR(8, 5), head_b=LINEAR(8, 3)), None, r"head_a \(5 outputs\), head_b \(3 outputs\): name"),
    ],
)
def test_a_model_whose_head_is_not_clear_is_refused_in_a_line(model, num_classes, message):
    for find in (find_heads, find_head):
        with pytest.raises(nc.InputError, match=message) as caught:
            find(model, num_classes)
        assert "\n" not in str(caught.value)


def test_a_head_is_named_by_its_path_or_by_the_sequential_that_ends_in_it():
    model = nn.Sequential(nn.ReLU(), nn.Sequential(LINEAR(8, 6), nn.ReLU(), nn.Sequential(LINEAR(6, 5), nn.Dropout())))
    last = model[1][2][0]
    for name in ("1.2.0", "1.2", "1", last):
        assert named_head(model, name) is last
    assert find_module(model, "1") is model[1]
    for name, why in (("0", "got ReLU"), ("1.1", "got ReLU"), ("3", "no layer '3'")):
        with pytest.raises(nc.InputError, match=why):
            named_head(model, name)
    with pytest.raises(nc.InputError, match="Conv2d that is not a 1x1 convolution"):
        named_head(nn.Sequential(nn.Conv2d(3, 3, 3)), "0")


# fix_classifier on them


class Two(nn.Module):
    """The average of two heads, as a distilled transformer gives it in eval mode."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 12)
        self.head, self.head_dist = nn.Linear(12, 4), nn.Linear(12, 4, bias=False)

    def forward(self, inputs):
        features = self.body(inputs).relu()
        return (self.head(features) + self.head_dist(features)) / 2


@pytest.mark.parametrize("names", [None, ["head", "head_dist"], ("head_dist", "head"), ["head", "head", "head_dist"]])
def test_several_heads_are_fixed_at_once(names):
    model = Two()
    assert nc.fix_classifier(model, names) is model
    for layer, bias in ((model.head, True), (model.head_dist, False)):
        assert isinstance(layer, nc.ETFClassifier)
        assert (layer.bias is not None) is bias
    assert model.head is not model.head_dist
    assert {name for name, _ in model.named_parameters()} == {"body.weight", "body.bias", "head.bias"}
    model(torch.randn(3, 6)).square().sum().backward()
    assert bool(model.body.weight.grad.any())


def test_one_of_several_is_fixed_when_it_is_named_and_none_when_one_cannot_be():
    model = Two()
    nc.fix_classifier(model, "head")
    assert type(model.head_dist) is nn.Linear
    model = Two()
    for names, message in [
        (["head", "heads"], "no layer 'heads'"),
        (["head", "body.weight"], "no layer"),
        ([], "got none: leave it out"),
        (["head", 3], "expected a layer's name"),
    ]:
        with pytest.raises(nc.InputError, match=message):
            nc.fix_classifier(model, names)
    assert type(model.head) is type(model.head_dist) is nn.Linear


class Maps(nn.Module):
    """A head that is a 1x1 convolution, on pooled maps or before the pooling."""

    def __init__(self, pooled):
        super().__init__()
        self.pooled = pooled
        self.body = nn.Conv2d(3, 12, 3)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(), nn.Conv2d(12, 4, 1))

    def forward(self, images):
        maps = self.body(images)
        logits = self.classifier(self.pool(maps)) if self.pooled else self.pool(self.classifier(maps))
        return logits.flatten(1)


@pytest.mark.parametrize("name", [None, "classifier", "classifier.1"])
@pytest.mark.parametrize("pooled", [True, False])
def test_a_1x1_convolution_gives_way_to_a_fixed_layer_of_the_same_maps(pooled, name):
    torch.manual_seed(0)
    model = Maps(pooled).to(torch.float64).eval()
    nc.fix_classifier(model, name)
    layer = model.classifier[1]
    assert isinstance(layer, nc.ETFClassifier)
    assert layer.scale.dtype == torch.float64
    images = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    wanted = model.pool(model.body(images)).flatten(1) @ layer.weight.T  # linear: before or after the pooling
    torch.testing.assert_close(model(images), wanted, rtol=1e-12, atol=1e-12)
    twin = Maps(pooled).to(torch.float64)
    with torch.no_grad():
        twin.classifier[1].weight.copy_(layer.weight[..., None, None])
    model.load_state_dict(twin.state_dict())  # a dense checkpoint of this very frame, four-dimensional
    with pytest.raises(nc.InputError, match="not this layer's frame"):
        model.load_state_dict(Maps(pooled).to(torch.float64).state_dict())


def test_a_fixed_layer_on_maps_keeps_channels_last():
    layer = nc.ETFClassifier(12, 4, axis=-3)
    maps = torch.randn(2, 12, 5, 5).to(memory_format=torch.channels_last)
    assert layer(maps).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.Linear(8, 1), r"got 'fc' with one logit: for two classes use nn.Linear\(8, 2\)"),
        (nn.Conv2d(8, 1, 1), "with one logit"),
        (Lora(nn.Linear(8, 5)), "Lora with an adapter: fix the head first"),
        (nc.ETFClassifier(8, 5), "which is fixed already"),
        (nn.Conv2d(8, 5, 3), "not a 1x1 convolution"),
        (nn.LazyLinear(5), "run one batch through"),
        (nn.Embedding(8, 5), "got Embedding"),
    ],
)
def test_heads_that_cannot_be_fixed_are_refused_and_stay(layer, message):
    model = model_of(fc=layer)
    with pytest.raises(nc.InputError, match=message) as caught:
        nc.fix_classifier(model, "fc")
    assert "\n" not in str(caught.value)
    assert model.fc is layer


def test_a_parametrised_head_goes_with_its_parametrisation():
    for layer in (
        parametrizations.weight_norm(nn.Linear(8, 5)),
        parametrizations.spectral_norm(nn.Linear(8, 5)),
        Conv1D(5, 8),
    ):
        model = nn.Sequential(nn.ReLU(), layer)
        nc.fix_classifier(model)
        assert [name for name, _ in model.named_parameters()] == ["1.bias"]
        assert not parametrize.is_parametrized(model[1])
        assert model(torch.randn(2, 8)).shape == (2, 5)


def test_a_head_alone_gives_the_new_layer():
    assert nc.fix_classifier(nn.Conv2d(8, 5, 1)).axis == -3
    assert nc.fix_classifier(Conv1D(5, 8)).weight.shape == (5, 8)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_quantised_head_gets_a_layer_of_floats():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    assert nc.fix_classifier(quantised)[2].scale.dtype == torch.float32


# Real architectures, where their libraries are installed

TIMM = {
    "deit_tiny_distilled_patch16_224": ["head", "head_dist"],
    "levit_128s": ["head.linear", "head_dist.linear"],
    "crossvit_9_240": ["head.0", "head.1"],
    "repvit_m0_9": ["head.head.l", "head.head_dist.l"],
    "volo_d1_224": ["aux_head", "head"],
    "efficientformer_l1": ["head", "head_dist"],
    "dla34": ["fc"],
    "dpn48b": ["classifier"],
    "resnetv2_18d": ["head.fc"],
    "resnet18": ["fc"],
    "vgg11": ["head.fc"],
    "convnext_atto": ["head.fc"],
    "inception_next_atto": ["head.fc2"],
    "efficientnet_b0": ["classifier"],
}
TORCHVISION = {
    "squeezenet1_1": ["classifier.1"],
    "alexnet": ["classifier.6"],
    "vit_b_16": ["heads.head"],
    "googlenet": ["aux1.fc2", "aux2.fc2", "fc"],
    "shufflenet_v2_x0_5": ["fc"],
    "mobilenet_v3_small": ["classifier.3"],
    "swin_t": ["head"],
}


@pytest.mark.parametrize(
    ("library", "name", "heads"),
    [("timm", name, heads) for name, heads in TIMM.items()]
    + [("torchvision", name, heads) for name, heads in TORCHVISION.items()],
)
def test_the_heads_of_real_architectures(library, name, heads):
    if library == "timm":
        timm = pytest.importorskip("timm")
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=24)
    else:
        models = pytest.importorskip("torchvision.models")
        options = {"init_weights": False} if name == "googlenet" else {}
        with torch.device("meta"):
            model = models.get_model(name, num_classes=24, **options)
    assert find_heads(model) == find_heads(model, 24) == heads
    nc.fix_classifier(model)
    assert all(isinstance(model.get_submodule(path), nc.ETFClassifier) for path in heads)


def test_adapters_of_peft():
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}

    def bert():
        config = transformers.BertConfig(**small, vocab_size=30, num_labels=7)
        return transformers.BertForSequenceClassification(config)

    tuned = peft.get_peft_model(bert(), peft.LoraConfig(target_modules=["query", "classifier"]))
    assert find_head(tuned) == "base_model.model.classifier"
    with pytest.raises(nc.InputError, match="with an adapter: fix the head first"):
        nc.fix_classifier(tuned)
    whole = peft.get_peft_model(bert(), peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    assert find_head(whole) == "base_model.model.classifier.modules_to_save.default"
    nc.fix_classifier(whole)
    logits = whole(torch.randint(0, 30, (2, 5))).logits
    assert logits.shape == (2, 7)
    fixed = peft.get_peft_model(
        nc.fix_classifier(bert()), peft.LoraConfig(target_modules=["query"], modules_to_save=["classifier"])
    )
    assert find_head(fixed) == "base_model.model.classifier.modules_to_save.default"
    assert fixed(torch.randint(0, 30, (2, 5))).logits.shape == (2, 7)
