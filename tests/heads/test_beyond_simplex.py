"""Fixed classifiers of other frames give what nn.Linear gives with their weight."""

import copy

import pytest
import torch
from torch.nn import functional as F

import neuralcollapse as nc

F64 = torch.float64
LAYERS = {
    "orthoplex": lambda **options: nc.OrthoplexClassifier(6, 10, **options),
    "odd": lambda **options: nc.OrthoplexClassifier(6, 9, **options),
    "full": lambda **options: nc.OrthoplexClassifier(5, 10, **options),
    "rotated": lambda **options: nc.OrthoplexClassifier(6, 10, rotation="fast", seed=3, **options),
    "code": lambda **options: nc.SoftmaxCodeClassifier(3, 10, steps=20, **options),
}


@pytest.fixture(params=LAYERS)
def make(request):
    return LAYERS[request.param]


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"scale": 2.5}, {"scale": 0.1, "learn_scale": True}], ids=str)
@pytest.mark.parametrize("shape", [(), (4,), (0,), (2, 3)])
def test_logits_and_gradients_are_those_of_the_dense_layer(make, options, shape):
    torch.manual_seed(0)
    layer = make(dtype=F64, **options)
    if layer.bias is not None:
        torch.nn.init.normal_(layer.bias)
    features = torch.randn(*shape, layer.in_features, dtype=F64, requires_grad=True)
    again = features.detach().clone().requires_grad_()
    logits, expected = layer(features), F.linear(again, layer.weight, layer.bias)
    assert logits.shape == (*shape, layer.out_features)
    assert torch.allclose(logits, expected, rtol=1e-12, atol=1e-14)
    pull = torch.randn_like(logits)
    logits.backward(pull)
    expected.backward(pull)
    assert torch.allclose(features.grad, again.grad, rtol=1e-12, atol=1e-14)


def test_rows_have_the_length_of_the_scale_and_the_frames_cosines(make):
    layer = make(dtype=F64, scale=3.0)
    rows = layer.weight
    assert torch.allclose(rows.norm(dim=1), torch.full((layer.num_classes,), 3.0, dtype=F64))
    if layer.frame == "orthoplex":
        assert nc.coherence(rows) == pytest.approx(0, abs=1e-12)
        assert float((rows[0] + rows[1]).norm()) < 1e-12


def test_nothing_but_bias_and_a_learnt_scale_is_trained(make):
    assert [name for name, _ in make().named_parameters()] == ["bias"]
    assert {name for name, _ in make(learn_scale=True).named_parameters()} == {"bias", "scale"}


def test_an_orthoplex_stores_no_matrix_and_a_code_its_rows():
    assert max(value.numel() for value in LAYERS["rotated"]().buffers()) == 12
    assert LAYERS["code"]().state_dict()["rows"].shape == (10, 3)


def test_a_state_dict_and_a_copy_bring_back_the_same_layer(make):
    torch.manual_seed(0)
    layer, features = make(), torch.randn(5, make().in_features)
    other = LAYERS["code"](seed=9) if layer.frame == "softmax_code" else make()
    other.load_state_dict(layer.state_dict())
    for same in (other, copy.deepcopy(layer)):
        assert torch.equal(same(features), layer(features))


def test_a_dense_checkpoint_of_this_frame_loads_and_another_is_refused(make):
    layer = make()
    state = {"weight": layer.weight.detach(), "bias": torch.ones(layer.num_classes)}
    layer.load_state_dict(state)
    assert torch.equal(layer.bias, torch.ones(layer.num_classes))
    state["weight"] = torch.randn_like(state["weight"])
    with pytest.raises(nc.InputError, match=f"is not this layer's {layer.frame.replace('_', ' ')} "):
        layer.load_state_dict(state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast_stay_near(make, dtype):
    torch.manual_seed(0)
    features = torch.randn(4, make().in_features)
    expected = make()(features)
    half = make(dtype=dtype)(features.to(dtype))
    assert half.dtype == dtype
    assert torch.allclose(half.float(), expected, atol=0.06)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.allclose(make()(features).float(), expected, atol=0.06)


def test_measures_take_them_as_classifiers(make):
    torch.manual_seed(0)
    layer = make()
    labels = torch.arange(60) % layer.num_classes
    rows = layer.weight.detach() - layer.weight.detach().mean(0)  # an odd orthoplex and a code do not sum to zero
    features = rows[labels] + 0.01 * torch.randn(60, layer.in_features)
    metric = nc.NeuralCollapse(layer.num_classes, layer.in_features, layer)
    metric.update(features, labels)
    with pytest.warns(nc.NeuralCollapseWarning, match="no simplex ETF"):
        values = metric.compute()
    assert float(values["nc3_distance"]) < 0.3
    assert float(values["nc1_quotient"]) < 0.01


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: nc.OrthoplexClassifier(4, 9), "at most 2d = 8 classes .*got K=9: use a softmax code"),
        (lambda: nc.OrthoplexClassifier(4, 1), "num_classes"),
        (lambda: nc.OrthoplexClassifier(4, 6, rotation="nearest"), "rotation 'none' or 'fast', got 'nearest'"),
        (lambda: nc.SoftmaxCodeClassifier(4, 9, rotation="fast"), "rotation 'none', got 'fast'"),
        (lambda: nc.SoftmaxCodeClassifier(4, 9, scale=-1), "scale to be positive"),
        (lambda: nc.SoftmaxCodeClassifier(1, 9), "dim to be an integer of at least 2"),
        (lambda: LAYERS["code"]()(torch.ones(2, 4)), r"features of dimension 3, got \(2, 4\)"),
    ],
)
def test_what_cannot_be_is_refused(build, message):
    with pytest.raises(nc.InputError, match=message):
        build()
