"""What holds for every fixed layer, whatever its frame and rotation: it is the dense layer of its weight."""

import copy
import io
import pickle
from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import load, save
from torch.nn import functional as F

import neuralcollapse as nc
from neuralcollapse.heads import fixed

F64 = torch.float64


def etf(dim, num_classes, rotation):
    return lambda **options: nc.ETFClassifier(dim, num_classes, rotation=rotation, **options)


def orthoplex(dim, num_classes, rotation):
    return lambda **options: nc.OrthoplexClassifier(dim, num_classes, rotation=rotation, **options)


LAYERS = {
    **{
        f"simplex {rotation} K={num_classes} d={dim}": etf(dim, num_classes, rotation)
        for rotation in ("blocks", "none", "fast", "nearest")
        for num_classes, dim in ((2, 1), (5, 4), (5, 5), (10, 64))  # d = K-1, K, and blocks of 6 with 4 left over
    },
    **{
        f"orthoplex {rotation} K={num_classes} d={dim}": orthoplex(dim, num_classes, rotation)
        for rotation in ("none", "fast")
        for num_classes, dim in ((10, 6), (9, 6), (10, 5))  # even, odd, K = 2d
    },
    "softmax code K=10 d=3": lambda **options: nc.SoftmaxCodeClassifier(3, 10, steps=20, **options),
    "softmax code K=4 d=8": lambda **options: nc.SoftmaxCodeClassifier(8, 4, steps=20, **options),
}
LARGEST_COSINE = {"simplex": lambda count: -1 / (count - 1), "orthoplex": lambda _: 0.0}


@pytest.fixture(params=["matrix", "structure"])
def product(request, monkeypatch):
    """Small layers multiply by a matrix; with no size small and no number of classes few, by the structure."""
    if request.param == "structure":
        monkeypatch.setattr(fixed, "_SMALL", {"cpu": (0, 0)})
        monkeypatch.setattr(fixed, "_SMALL_FAST", {"cpu": (0, 0)})
        monkeypatch.setattr(fixed, "_FEW_CLASSES", 0)
    return request.param


@pytest.fixture(params=LAYERS)
def make(request, product):
    return LAYERS[request.param]


def filled(make, **options):
    """A layer with a bias that is not zero; one that follows class means has left its first frame."""
    torch.manual_seed(0)
    layer = make(**options)
    if layer.bias is not None:
        torch.nn.init.normal_(layer.bias)
    if layer.rotation_name == "nearest":
        labels = torch.arange(3 * layer.num_classes) % layer.num_classes
        layer.follow(labels, torch.randn(len(labels), layer.in_features, dtype=layer.scale.dtype))
    return layer


def features_of(layer, *shape):
    return torch.randn(*shape, layer.in_features, dtype=layer.scale.dtype, generator=torch.Generator().manual_seed(1))


# The dense layer


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_rows_have_the_length_of_the_scale_and_the_angles_of_the_frame(make, scale):
    layer = filled(make, dtype=F64, scale=scale)
    unit = layer.weight / scale
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(layer.num_classes, dtype=F64), rtol=1e-12, atol=0)
    if layer.frame in LARGEST_COSINE:
        assert nc.coherence(unit) == pytest.approx(LARGEST_COSINE[layer.frame](layer.num_classes), abs=1e-12)
    if layer.frame == "simplex":
        assert float(unit.sum(0).norm()) < 1e-12


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"scale": 2.5}, {"scale": 0.1, "learn_scale": True}], ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (4,), (2, 1, 3)])
def test_logits_and_gradients_are_those_of_the_dense_layer(make, options, shape):
    layer = filled(make, dtype=F64, **options)
    features = features_of(layer, *shape).requires_grad_()
    again = features.detach().clone().requires_grad_()
    rows = layer.weight.detach() / layer.scale.detach()
    scale = layer.scale.detach().clone().requires_grad_(options.get("learn_scale", False))
    bias = None if layer.bias is None else layer.bias.detach().clone().requires_grad_()
    logits, wanted = layer(features), F.linear(again, scale * rows, bias)
    assert logits.shape == (*shape, layer.out_features)
    torch.testing.assert_close(logits, wanted, rtol=1e-12, atol=1e-13)
    pull = torch.randn_like(wanted)
    mine = torch.autograd.grad(logits, [features, *layer.parameters()], pull)
    named = {"bias": bias, "scale": scale}
    theirs = torch.autograd.grad(wanted, [again, *(named[name] for name, _ in layer.named_parameters())], pull)
    torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)


def test_gradients_agree_with_finite_differences_to_second_order(make):
    layer = filled(make, dtype=F64)
    features = features_of(layer, 2).requires_grad_()
    assert torch.autograd.gradcheck(layer, features)
    assert torch.autograd.gradgradcheck(layer, features)


@pytest.mark.parametrize("axis", [-2, -3, -4])
def test_maps_give_what_a_pointwise_convolution_gives(make, axis):
    layer = make(dtype=F64, axis=axis)
    torch.nn.init.normal_(layer.bias)
    convolve = {-2: F.conv1d, -3: F.conv2d, -4: F.conv3d}[axis]
    features = torch.randn(3, layer.in_features, *(2, 5, 2)[: -1 - axis], dtype=F64)
    kernel = layer.weight.reshape(*layer.weight.shape, *[1] * (-1 - axis))
    torch.testing.assert_close(layer(features), convolve(features, kernel, layer.bias), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("wrong", [-1, 1])
def test_features_of_another_dimension_are_refused(make, wrong):
    layer = make()
    with pytest.raises(nc.InputError, match=f"dimension {layer.in_features}, got"):
        layer(torch.zeros(2, layer.in_features + wrong))


def test_features_without_weight_change_nothing_and_get_no_gradient(make):
    layer = filled(make, dtype=F64)
    unused = ~(layer.weight != 0).any(0)
    assert not (layer.rotation_name == "fast" and layer.in_features > layer.num_classes and unused.any())
    features = features_of(layer, 3).requires_grad_()
    layer(features).square().sum().backward()
    assert not features.grad[:, unused].any()
    changed = torch.where(unused, 7.0, features.detach())
    torch.testing.assert_close(layer(changed), layer(features), rtol=1e-12, atol=1e-12)


def test_the_same_permutation_of_rows_and_labels_gives_the_same_loss(make):
    layer = filled(make, dtype=F64)
    labels = torch.arange(6) % layer.num_classes
    order = torch.randperm(layer.num_classes, generator=torch.Generator().manual_seed(2))
    features = features_of(layer, 6)
    renamed = F.linear(features, layer.weight[order], layer.bias[order])
    mine, theirs = F.cross_entropy(layer(features), labels), F.cross_entropy(renamed, order.argsort()[labels])
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-13)


def test_train_and_eval_mode_give_the_same_logits(make):
    layer = filled(make)
    features = features_of(layer, 5)
    assert torch.equal(layer.train()(features), layer.eval()(features))


# What is trained and stored


def test_only_the_bias_and_a_learnt_scale_are_trained(make):
    assert [name for name, _ in make().named_parameters()] == ["bias"]
    assert {name for name, _ in make(learn_scale=True).named_parameters()} == {"bias", "scale"}
    assert list(make(bias=False).parameters()) == []


def test_frames_without_rows_of_their_own_store_no_matrix(make):
    layer = make()
    held = sum(value.numel() for value in layer.state_dict().values() if value.dtype != torch.uint8)
    if layer.frame != "softmax_code" and layer.rotation_name != "nearest":
        assert held <= layer.num_classes + 2 * layer.in_features + 1


# Copies and state dicts


def saved_and_read(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return [state, torch.load(buffer, weights_only=True), load(save(state))]


def test_copies_and_state_dicts_bring_back_the_same_layer_exactly(make):
    layer = filled(make, scale=3.0)
    features = features_of(layer, 4)
    others = [copy.copy(layer), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
    for state in saved_and_read(layer.state_dict()):
        other = make(seed=9) if layer.rotation_name == "fast" or layer.frame == "softmax_code" else make()
        other.load_state_dict(state)
        others.append(other)
    for other in others:
        assert torch.equal(other(features), layer(features))
        assert other.state_dict().keys() == layer.state_dict().keys()


@pytest.mark.parametrize("strict", [True, False])
def test_the_state_of_every_other_frame_is_refused_and_changes_nothing(make, strict):
    holder, words = torch.nn.ModuleDict({"fc": make()}), make().frame_words()
    before = copy.deepcopy(holder.state_dict())
    others = [layer for layer in (other() for other in LAYERS.values()) if layer.frame_words() != words]
    assert len(others) > 10
    for other in others:
        with pytest.raises(nc.InputError, match=r"^the state dict's fc has the frame .*, and this layer .*: build"):
            holder.load_state_dict(torch.nn.ModuleDict({"fc": other}).state_dict(), strict=strict)
        torch.testing.assert_close(holder.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("bias", [False, True])
def test_a_dense_checkpoint_of_this_frame_loads_and_another_is_refused(make, bias):
    layer = filled(make, bias=bias, scale=2.0)
    dense = torch.nn.Linear(layer.in_features, layer.num_classes, bias=bias)
    with torch.no_grad():
        dense.weight.copy_(layer.weight)
    checkpoint = torch.nn.ModuleDict({"fc": dense}).state_dict()
    keys = list(checkpoint)
    torch.nn.ModuleDict({"fc": layer}).load_state_dict(checkpoint)
    assert list(checkpoint) == keys
    layer.load_state_dict(dense.state_dict())
    features = features_of(layer, 3)
    torch.testing.assert_close(layer(features), dense(features))
    with torch.no_grad():
        dense.weight.normal_()
    with pytest.raises(nc.InputError, match="is not this layer's "):
        layer.load_state_dict(dense.state_dict())


# Dtypes and devices


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float16, 0.02), (torch.bfloat16, 0.1)])
def test_half_precision_keeps_its_dtype_and_stays_near(make, dtype, atol):
    layer = filled(make)
    features = features_of(layer, 6)
    wanted = layer(features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(layer(features).float(), wanted, rtol=0, atol=0.1)
    half = layer.to(dtype)
    logits = half(features.to(dtype))
    assert logits.dtype == half.weight.dtype == dtype
    torch.testing.assert_close(logits.float(), wanted, rtol=0, atol=atol)


def test_casts_and_moves_take_everything_along(make):
    layer = filled(make)
    features = features_of(layer, 3)
    torch.testing.assert_close(layer.double()(features.double()).float(), layer.float()(features))
    moved = layer.to("meta")
    assert {value.device.type for value in (*moved.parameters(), *moved.buffers())} == {"meta"}
    assert moved(features.to("meta")).shape == (3, layer.num_classes)


# Compilers


@pytest.mark.parametrize("dim", [9, 24])
@pytest.mark.parametrize("rotation", ["blocks", "none", "fast"])
def test_compiled_and_exported_it_gives_the_same_logits_and_gradients(rotation, dim):
    torch.compiler.reset()
    layer = filled(etf(dim, 10, rotation), dtype=F64)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    shapes = ({0: torch.export.Dim("batch")},)
    exported = torch.export.export(layer, (features_of(layer, 4),), dynamic_shapes=shapes).module()
    for batch in (4, 7):
        features = features_of(layer, batch).requires_grad_()
        torch.testing.assert_close(exported(features), layer(features))
        upstream = torch.randn(batch, 10, dtype=F64)
        mine, theirs = (torch.autograd.grad(module(features), features, upstream) for module in (compiled, layer))
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("name", ["simplex blocks K=10 d=64", "simplex fast K=5 d=5", "softmax code K=10 d=3"])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_a_tracer_sees_operations_whatever_is_ready(name, product):
    layer = filled(LAYERS[name])
    features = features_of(layer, 3)
    layer(features)
    traced = torch.jit.trace(layer.eval(), (features,))
    others = 2 * features_of(layer, 5)
    torch.testing.assert_close(traced(others), layer(others))


@pytest.mark.parametrize("name", [name for name in LAYERS if "nearest" not in name and "code" not in name])
@pytest.mark.parametrize("product", ["structure"], indirect=True)  # the gradient of a matrix is torch's own
def test_autocast_does_not_reach_the_gradient_of_a_structure(name, product):
    layer = filled(LAYERS[name], dtype=torch.float32)
    features = features_of(layer, 5).requires_grad_()
    upstream = torch.randn(5, layer.num_classes)
    (expected,) = torch.autograd.grad(layer(features), features, upstream)
    with torch.autocast("cpu", torch.bfloat16):
        (gradient,) = torch.autograd.grad(layer(features), features, upstream)
    torch.testing.assert_close(gradient, expected)


def test_without_values_a_layer_has_its_shapes(make):
    with torch.device("meta"):
        layer = make()
    assert layer.weight.shape == (layer.num_classes, layer.in_features)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.ones(3, layer.in_features, device="meta")).shape == (3, layer.num_classes)


def test_a_layer_made_in_inference_mode_is_a_layer(make):
    with torch.inference_mode():
        layer = make()
        features = features_of(layer, 3)
        expected = F.linear(features, layer.weight, layer.bias)
        for _ in range(2):
            torch.testing.assert_close(layer(features), expected)
        layer.to(F64)
        torch.testing.assert_close(layer(features.to(F64)), expected.to(F64), rtol=1e-5, atol=1e-5)


def test_every_layer_is_measured_as_a_classifier(make):
    layer = filled(make, dtype=F64)
    labels = torch.arange(6 * layer.num_classes) % layer.num_classes
    rows = layer.weight.detach() - layer.weight.detach().mean(0)  # an odd orthoplex and a code do not sum to zero
    metric = nc.NeuralCollapse(layer.num_classes, layer.in_features, layer, pairwise=False)
    metric.update(rows[labels] + 0.01 * torch.randn(len(labels), layer.in_features, dtype=F64), labels)
    crowded = layer.num_classes > layer.in_features + 1
    with pytest.warns(nc.NeuralCollapseWarning, match="no simplex ETF") if crowded else nullcontext():
        values = metric.compute()
    assert float(values["nc3_distance"]) < 0.3
    assert float(values["nc1_quotient"]) < 0.01
