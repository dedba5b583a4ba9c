"""A layer whose scale, rows, signs or bias are changed, in whatever way, is the layer of its new state at once."""

import copy
import itertools
import pickle

import pytest
import torch
from torch.nn import functional as F

import neuralcollapse as nc
from neuralcollapse.heads import fixed
from tests.heads.test_invariants import features_of, filled, make, product  # noqa: F401

F64 = torch.float64


def owner(layer, name):
    """The module that holds a tensor, and the name there."""
    path, _, leaf = name.rpartition(".")
    return layer.get_submodule(path), leaf


def in_place(layer, name, value):
    with torch.no_grad():
        layer.get_parameter(name).copy_(value) if name == "bias" else layer.get_buffer(name).copy_(value)


def in_the_state_dict(layer, name, value):
    layer.state_dict()[name].copy_(value)


def through_data(layer, name, value):
    module, leaf = owner(layer, name)
    getattr(module, leaf).data.copy_(value)


def with_other_memory(layer, name, value):
    module, leaf = owner(layer, name)
    getattr(module, leaf).data = value


def with_another_tensor(layer, name, value):
    module, leaf = owner(layer, name)
    setattr(module, leaf, torch.nn.Parameter(value) if leaf == "bias" else value)


def by_swapping(layer, name, value):
    module, leaf = owner(layer, name)
    torch.utils.swap_tensors(getattr(module, leaf), torch.nn.Parameter(value) if leaf == "bias" else value)


def by_loading(layer, name, value):
    layer.load_state_dict(layer.state_dict() | {name: value})


def by_assigning(layer, name, value):
    layer.load_state_dict(layer.state_dict() | {name: value}, assign=True)


WAYS = [
    in_place,
    in_the_state_dict,
    through_data,
    with_other_memory,
    with_another_tensor,
    by_swapping,
    by_loading,
    by_assigning,
]


def changeable(layer):
    """The names of all tensors that the logits depend on."""
    return [name for name in layer.state_dict() if name.split(".")[-1] in ("scale", "bias", "signs", "rows")]


def another(layer, name):
    """Another value for a tensor of the state."""
    old = layer.state_dict()[name]
    if name.endswith("signs"):
        return old * (2 * torch.randint(0, 2, old.shape, generator=torch.Generator().manual_seed(5)) - 1).to(old.dtype)
    return old.flip(0) if old.dim() == 2 else old + 1


def logits_of_the_state(build, layer, features):
    """Those of a dense layer with the weight that a new layer with this state has."""
    new = build(dtype=layer.scale.dtype)
    new.load_state_dict(copy.deepcopy(layer.state_dict()))
    return F.linear(features, new.weight, new.bias)


@pytest.mark.parametrize("kept", [True, False])
def test_a_change_shows_at_the_next_call(make, kept, monkeypatch):  # noqa: F811
    if not kept:
        monkeypatch.setattr(fixed, "_KEPT", 0)
    layer = filled(make, dtype=F64, scale=3.0)
    features = features_of(layer, 4)
    for way, name in itertools.product(WAYS, changeable(layer)):
        before = layer(features).detach()  # a graph that lives on holds tensors, which torch then refuses to swap
        torch.func.vmap(layer)(features)
        way(layer, name, another(layer, name))
        wanted = logits_of_the_state(make, layer, features)
        assert not torch.allclose(before, wanted)
        torch.testing.assert_close(layer(features), wanted)
        torch.testing.assert_close(torch.func.vmap(layer)(features), wanted)


@pytest.mark.parametrize("way", [in_place, through_data, by_loading])
def test_a_learnt_scale_shows_at_the_next_call(make, way):  # noqa: F811
    layer = filled(lambda **options: make(learn_scale=True, **options), dtype=F64)
    features = features_of(layer, 4)
    layer(features)
    with torch.no_grad():
        layer.scale.mul_(2)
    torch.testing.assert_close(layer(features), logits_of_the_state(make, layer, features))


def test_copies_do_not_follow_changes_and_are_not_followed(make):  # noqa: F811
    layer = filled(make, dtype=F64, scale=3.0)
    features = features_of(layer, 4)
    before = layer(features)
    others = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
    for name in changeable(layer):
        through_data(layer, name, another(layer, name))
        in_place(others[0], name, another(others[0], name))
    for module in [layer, *others]:
        torch.testing.assert_close(module(features), logits_of_the_state(make, module, features))
    torch.testing.assert_close(others[1](features), before)
    assert not torch.allclose(layer(features), before)


@pytest.mark.parametrize("learnt", [True, False])
def test_casts_and_moves_make_everything_again(make, learnt):  # noqa: F811
    """torch gives a parameter the numbers of another type or device without making it another parameter."""
    layer = filled(lambda **options: make(learn_scale=learnt, **options), scale=3.0)
    narrow, wide = features_of(layer, 4), features_of(layer, 4).double()
    layer(narrow), layer(wide)
    torch.testing.assert_close(layer.double()(wide), F.linear(wide, layer.weight, layer.bias), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.float()(narrow), F.linear(narrow, layer.weight, layer.bias))
    assert layer.to("meta")(narrow.to("meta")).device.type == "meta"


def test_a_step_of_the_optimiser_on_a_learnt_scale_makes_no_matrix_again(make, monkeypatch):  # noqa: F811
    layer = make(learn_scale=True)
    features = features_of(layer, 4)
    layer(features)
    if layer.rotation_name == "nearest" or layer.frame == "softmax_code":
        monkeypatch.setattr(layer, "_new_matrix", None)
    else:
        monkeypatch.setattr(layer, "_rows", None)
    with torch.no_grad():
        layer.scale.mul_(2)
    layer(features)


COMPILED = {
    "blocks": lambda **options: nc.ETFClassifier(24, 5, **options),
    "fast": lambda **options: nc.ETFClassifier(24, 5, rotation="fast", **options),
    "nearest": lambda **options: nc.ETFClassifier(24, 5, rotation="nearest", **options),
    "orthoplex": lambda **options: nc.OrthoplexClassifier(6, 9, rotation="fast", **options),
    "code": lambda **options: nc.SoftmaxCodeClassifier(3, 10, steps=5, **options),
}


# to compile takes long: the quick tests do it for two frames
@pytest.fixture(
    params=[name if name in ("blocks", "fast") else pytest.param(name, marks=pytest.mark.slow) for name in COMPILED]
)
def build(request):
    torch.compiler.reset()
    return COMPILED[request.param]


@pytest.mark.parametrize("way", [in_place, through_data, by_assigning])
def test_a_change_before_compiling_shows(build, way):
    layer = filled(build, dtype=F64, scale=3.0)
    features = features_of(layer, 4)
    before = layer(features)
    for name in changeable(layer):
        way(layer, name, another(layer, name))
    wanted = logits_of_the_state(build, layer, features)
    assert not torch.allclose(before, wanted)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="eager")(features), wanted)


def test_a_change_after_compiling_shows_but_that_of_signs_in_place(build):
    layer = filled(build, dtype=F64, scale=3.0)
    features = features_of(layer, 4)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    compiled(features)
    for way in (in_place, through_data, with_another_tensor, by_loading, by_assigning):
        before = layer(features)
        for name in changeable(layer):
            if way in (by_loading, by_assigning, with_another_tensor) or not name.endswith("signs"):
                way(layer, name, another(layer, name))
        wanted = logits_of_the_state(build, layer, features)
        assert not torch.allclose(before, wanted)
        torch.testing.assert_close(compiled(features), wanted)


@pytest.mark.parametrize("name", ["fast", "orthoplex"])
def test_signs_changed_in_place_after_compiling_show_once_the_layer_is_moved(name):
    torch.compiler.reset()
    layer = filled(COMPILED[name], dtype=F64)
    features = features_of(layer, 4)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    compiled(features)
    through_data(layer, "rotation.signs", another(layer, "rotation.signs"))
    layer.to(layer.scale.device)
    torch.testing.assert_close(compiled(features), logits_of_the_state(COMPILED[name], layer, features))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 7, 300])
@pytest.mark.parametrize("dim", [10, 40])
def test_the_first_batch_gives_the_bits_of_the_second(batch, dim, dtype):
    """Else a run that is resumed, whose layer has nothing ready, ends otherwise than one that was never stopped."""
    for learn_scale in (True, False):
        layer = nc.ETFClassifier(dim, 10, learn_scale=learn_scale, scale=1.3).to(dtype)
        features = torch.randn(batch, dim, dtype=dtype)
        first, second = layer(features), layer(features)
        assert torch.equal(first, second)
