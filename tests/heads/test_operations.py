"""How many operations that compute a fixed layer dispatches: what a small batch on a GPU costs.

Views and allocations (VIEWS) start no kernel and are not counted.
"""

import pytest
import torch

from neuralcollapse.heads import fixed, products
from tests.heads.test_invariants import make, product  # noqa: F401
from tests.helpers import Dispatched

VIEWS = {
    "view",
    "_unsafe_view",
    "t",
    "slice",
    "unfold",
    "detach",
    "expand",
    "unsqueeze",
    "transpose",
    "unbind",
    "alias",
}
VIEWS |= {"new_empty", "select"}


def computing(dispatched):
    return [name for name in dispatched.names if name.split(".")[1] not in VIEWS]


def operations(layer, dtype, autocast=False):
    """The names of the operations of a forward and of a backward pass, once constants are there."""
    features = torch.randn(4, layer.in_features, dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        layer(features)
        with Dispatched() as forward:
            logits = layer(features)
    pull = torch.randn_like(logits)
    with Dispatched() as backward:
        torch.autograd.grad(logits, [features, *layer.parameters()], pull)
    assert forward.waits == backward.waits == []
    return computing(forward), computing(backward)


def turned(layer, way):
    """Operations of a fast rotation by its structure: two rounds of a sign, a reversal and two products, and a copy."""
    return 9 if layer.rotation_name == "fast" and way == "structure" else 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_forward_and_backward_take_at_most_four_operations(make, product, dtype, bias):  # noqa: F811
    layer = make(dtype=dtype, bias=bias)
    forward, backward = operations(layer, dtype)
    assert len(forward) <= 4 + turned(layer, product), forward
    assert len(backward) <= 4 + turned(layer, product), backward


@pytest.mark.parametrize("bias", [True, False])
def test_a_learnt_scale_takes_two_more_backward(make, product, bias, monkeypatch):  # noqa: F811
    """A product by the scale, and one for its gradient; of the structures, blocks take a fifth forward.

    That is on an accelerator. A CPU takes autograd's own, one more for a matrix.
    """
    if product == "matrix":
        forward, backward = operations(make(bias=bias, learn_scale=True), torch.float32)
        assert len(forward) <= 3, forward
        assert len(backward) <= 5, backward
    monkeypatch.setattr(fixed, "_QUICK", ())
    monkeypatch.setattr(products, "_READ_AT_ONCE", ())
    layer = make(bias=bias, learn_scale=True)
    forward, backward = operations(layer, torch.float32)
    assert len(forward) <= 5 + turned(layer, product), forward
    assert len(backward) <= 6 + turned(layer, product), backward
    if product == "matrix":
        assert len(forward) <= 4
        assert len(backward) <= 4
    _, half = operations(make(bias=bias, learn_scale=True, dtype=torch.bfloat16), torch.bfloat16)
    assert len(half) <= len(backward) + 1, half  # its sum is taken in float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_adds_the_casts_of_features_and_bias(make, product, dtype):  # noqa: F811
    layer = make()
    forward, backward = operations(layer, dtype, autocast=True)
    casts = dtype != torch.float32 and product == "structure"  # that of the bias
    assert len(forward) <= 4 + casts + turned(layer, product), forward
    assert len(backward) <= 4 + casts + turned(layer, product), backward


def test_a_changed_scale_makes_the_constants_again(make):  # noqa: F811
    layer = make(bias=False)
    features = torch.randn(3, layer.in_features)
    before = layer(features)
    with torch.no_grad():
        layer.scale.mul_(2)
    torch.testing.assert_close(layer(features), 2 * before)
    with torch.inference_mode():
        layer.scale = layer.scale * 2
        layer(features)
    layer.scale = torch.tensor(3.0)
    with torch.inference_mode():
        layer(features)
    features.requires_grad_()
    layer(features).sum().backward()  # constants made in inference mode can be trained with
    torch.testing.assert_close(layer(features), 3 * before)


def test_transforms_and_forward_mode_give_the_dense_derivatives(make):  # noqa: F811
    layer = make(dtype=torch.float64)
    features = torch.randn(3, layer.in_features, dtype=torch.float64)
    along = torch.randn_like(features)
    wanted = along @ layer.weight.T
    torch.testing.assert_close(torch.func.jvp(layer, (features,), (along,))[1], wanted.detach())
    torch.testing.assert_close(torch.func.vmap(torch.func.jacrev(layer))(features)[0], layer.weight)
    with torch.autograd.forward_ad.dual_level():
        dual = layer(torch.autograd.forward_ad.make_dual(features, along))
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(dual).tangent, wanted)
    matrix = torch.autograd.functional.jacobian(layer, features[0], vectorize=True)
    torch.testing.assert_close(matrix, layer.weight)
