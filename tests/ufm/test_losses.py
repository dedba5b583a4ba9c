import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralcollapse import InputError
from neuralcollapse.ufm.losses import CrossEntropy, Focal, SquaredError, find_loss
from tests.ufm import oracles

LOSSES = {
    "cross_entropy": (CrossEntropy(), oracles.cross_entropy()),
    "smoothing_0.1": (CrossEntropy(0.1), oracles.cross_entropy(0.1)),
    "smoothing_0.5": (CrossEntropy(0.5), oracles.cross_entropy(0.5)),
    "focal_0": (Focal(0.0), oracles.focal(0.0)),
    "focal_1": (Focal(1.0), oracles.focal(1.0)),
    "focal_2": (Focal(2.0), oracles.focal(2.0)),
    "focal_3.5": (Focal(3.5), oracles.focal(3.5)),
    "mse": (SquaredError(), oracles.squared_error()),
}
CONVEX = ["cross_entropy", "smoothing_0.1", "smoothing_0.5", "mse"]
every_loss = pytest.mark.parametrize("name", LOSSES)
convex_losses = pytest.mark.parametrize("name", CONVEX)

LABELS = torch.tensor([0, 1, 2, 3, 1, 0])


def normal(*shape, seed=0, scale=2.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@every_loss
def test_value_is_the_loops(name):
    loss, oracle = LOSSES[name]
    logits = normal(4, 6)
    expected = [oracle(logits[:, i].tolist(), int(LABELS[i])) for i in range(6)]
    np.testing.assert_allclose(loss.value(logits, loss.targets(LABELS, 4)), expected, rtol=1e-13, atol=1e-14)


@every_loss
def test_gradient_is_autograd_of_the_value_and_differences_of_the_loops(name):
    loss, oracle = LOSSES[name]
    logits = normal(4, 6, seed=1).requires_grad_()
    targets = loss.targets(LABELS, 4)
    loss.value(logits, targets).sum().backward()
    gradient = loss.gradient(logits.detach(), targets)
    torch.testing.assert_close(gradient, logits.grad, rtol=1e-11, atol=1e-13)
    for i in range(6):
        column = logits[:, i].detach().numpy()
        expected = oracles.gradient_by_differences(lambda z, i=i: oracle(list(z), int(LABELS[i])), column)
        np.testing.assert_allclose(gradient[:, i], expected, atol=1e-8)


@every_loss
def test_curvature_is_the_second_derivative_of_the_loops(name):
    loss, oracle = LOSSES[name]
    logits, direction = normal(4, 6, seed=2), normal(4, 6, seed=3)
    bent = loss.curvature(logits, loss.targets(LABELS, 4), direction)
    for i in range(6):
        matrix = oracles.hessian_by_differences(lambda z, i=i: oracle(list(z), int(LABELS[i])), logits[:, i].numpy())
        np.testing.assert_allclose(bent[:, i], matrix @ direction[:, i].numpy(), atol=3e-6)


@every_loss
def test_curvature_is_autograd_of_the_gradient(name):
    loss, _ = LOSSES[name]
    logits, direction = normal(4, 6, seed=2).requires_grad_(), normal(4, 6, seed=3)
    targets = loss.targets(LABELS, 4)
    slopes = torch.autograd.grad(loss.value(logits, targets).sum(), logits, create_graph=True)[0]
    expected = torch.autograd.grad((slopes * direction).sum(), logits)[0]
    torch.testing.assert_close(loss.curvature(logits.detach(), targets, direction), expected, rtol=1e-10, atol=1e-12)


@every_loss
def test_leading_dimensions_are_independent(name):
    loss, _ = LOSSES[name]
    logits, direction = normal(3, 4, 6, seed=4), normal(3, 4, 6, seed=5)
    targets = loss.targets(LABELS, 4)
    values = loss.value(logits, targets)
    gradients = loss.gradient(logits, targets)
    bent = loss.curvature(logits, targets, direction)
    shared = loss.curvature(logits[0], targets, direction)
    assert values.shape == (3, 6)
    for i in range(3):
        torch.testing.assert_close(values[i], loss.value(logits[i], targets))
        torch.testing.assert_close(gradients[i], loss.gradient(logits[i], targets))
        torch.testing.assert_close(bent[i], loss.curvature(logits[i], targets, direction[i]))
        torch.testing.assert_close(shared[i], loss.curvature(logits[0], targets, direction[i]))


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "mse"])
def test_saturated_logits_stay_finite_with_no_curvature_left(name):
    loss, oracle = LOSSES[name]
    logits = torch.tensor([[60.0, -60.0, 800.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    targets = loss.targets(torch.tensor([0, 0, 0]), 3)
    expected = [oracle(logits[:, i].tolist(), 0) for i in range(3)]
    np.testing.assert_allclose(loss.value(logits, targets), expected, atol=1e-12)
    assert torch.isfinite(loss.gradient(logits, targets)).all()
    bent = loss.curvature(logits, targets, normal(3, 3))
    assert torch.isfinite(bent).all()
    torch.testing.assert_close(bent[:, [0, 2]], torch.zeros(3, 2, dtype=torch.float64), rtol=0, atol=1e-12)


def test_focal_without_focus_is_cross_entropy():
    logits, targets = normal(4, 6), Focal(0).targets(LABELS, 4)
    torch.testing.assert_close(Focal(0).value(logits, targets), CrossEntropy().value(logits, targets))
    torch.testing.assert_close(Focal(0).gradient(logits, targets), CrossEntropy().gradient(logits, targets))


def test_cross_entropy_is_torchs():
    logits = normal(4, 6)
    for smoothing in (0.0, 0.1):
        loss = CrossEntropy(smoothing)
        expected = torch.nn.functional.cross_entropy(logits.T, LABELS, reduction="none", label_smoothing=smoothing)
        torch.testing.assert_close(loss.value(logits, loss.targets(LABELS, 4)), expected)


def test_smoothed_targets_move_a_share_to_all_classes():
    targets = CrossEntropy(0.2).targets(torch.tensor([1]), 4)
    torch.testing.assert_close(targets[:, 0], torch.tensor([0.05, 0.85, 0.05, 0.05], dtype=torch.float64))


@convex_losses
def test_bias_derivatives_are_weighted_sums_over_columns(name):
    loss, _ = LOSSES[name]
    logits, weights = normal(4, 6), torch.rand(6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    targets = loss.targets(LABELS, 4)
    zero, bias = torch.zeros(len(logits), dtype=torch.float64), normal(len(logits), 1)[:, 0]
    value, gradient, diagonal, factor = loss.bias_derivatives(logits, zero, targets, weights)
    hessian = torch.diag(diagonal) - (0 if factor is None else factor @ factor.T)
    moved = loss.bias_derivatives(logits, bias, targets, weights)[0]
    difference = (loss.value(logits + bias[:, None], targets) - loss.value(logits, targets)) @ weights
    assert moved - value == pytest.approx(float(difference))
    torch.testing.assert_close(gradient, loss.gradient(logits, targets) @ weights)
    for k in range(4):
        unit = torch.zeros(4, 6, dtype=torch.float64)
        unit[k] = 1
        torch.testing.assert_close(hessian[:, k], loss.curvature(logits, targets, unit) @ weights)


@convex_losses
@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.01, 10), other=st.floats(0.01, 10), share=st.floats(0, 1))
def test_fenchels_inequality_holds_for_any_slopes_in_the_domain(name, seed, scale, other, share):
    loss, _ = LOSSES[name]
    targets = loss.targets(LABELS, 4)
    logits, elsewhere = normal(4, 6, seed=seed, scale=scale), normal(4, 6, seed=seed + 1, scale=other)
    slopes = loss.gradient(elsewhere, targets)
    slopes = slopes * share * min(loss.largest_scale(slopes, targets), 3.0)
    below = (logits * slopes).sum(-2) + loss.dual(slopes, targets)
    value = loss.value(logits, targets)
    assert (value >= below - 1e-12 * (1 + value.abs() + logits.abs().sum(-2))).all()


@convex_losses
@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.01, 10))
def test_fenchels_inequality_is_equality_at_the_logits_of_the_slopes(name, seed, scale):
    loss, _ = LOSSES[name]
    logits, targets = normal(4, 6, seed=seed, scale=scale), loss.targets(LABELS, 4)
    slopes = loss.gradient(logits, targets)
    touching = (logits * slopes).sum(-2) + loss.dual(slopes, targets)
    torch.testing.assert_close(loss.value(logits, targets), touching, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", ["cross_entropy", "smoothing_0.1", "smoothing_0.5"])
def test_largest_scale_is_where_a_probability_reaches_zero(name):
    loss, _ = LOSSES[name]
    targets = loss.targets(LABELS, 4)
    slopes = loss.gradient(normal(4, 6), targets)
    scale = loss.largest_scale(slopes, targets)
    assert scale >= 1
    assert float((targets + scale * slopes).min()) == pytest.approx(0, abs=1e-14)
    assert float((targets + 1.001 * scale * slopes).min()) < 0


def test_largest_scale_is_unlimited_without_falling_slopes_and_for_squared_error():
    zeros = torch.zeros(4, 6, dtype=torch.float64)
    assert CrossEntropy().largest_scale(zeros, CrossEntropy().targets(LABELS, 4)) == math.inf
    assert SquaredError().largest_scale(normal(4, 6), SquaredError().targets(LABELS, 4)) == math.inf


def test_the_focal_loss_is_not_convex_and_claims_no_dual():
    loss = Focal(2.0)
    logits, targets = normal(4, 6), loss.targets(LABELS, 4)
    assert not loss.convex
    far = torch.tensor([[-6.0], [0.0]], dtype=torch.float64)  # a badly wrong sample: the curvature is negative
    away = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    assert float((away * loss.curvature(far, loss.targets(torch.tensor([0]), 2), away)).sum()) < 0
    for refused in (loss.dual, loss.largest_scale):
        with pytest.raises(InputError, match="not convex"):
            refused(logits, targets)
    with pytest.raises(InputError, match="not convex"):
        loss.bias_derivatives(logits, logits[:, 0], targets[:, 0], torch.ones(6, dtype=torch.float64))


def test_losses_are_found_by_name_or_pass_through():
    assert isinstance(find_loss("cross_entropy"), CrossEntropy)
    assert find_loss("label_smoothing").smoothing == 0.1
    assert find_loss("focal").gamma == 2
    assert isinstance(find_loss("mse"), SquaredError)
    own = Focal(3.5)
    assert find_loss(own) is own
    assert [CrossEntropy().name, CrossEntropy(0.1).name, own.name] == ["cross_entropy", "label_smoothing", "focal"]


def test_an_unknown_loss_offers_the_nearest_name():
    with pytest.raises(InputError, match="did you mean 'cross_entropy'") as error:
        find_loss("crossentropy")
    assert "label_smoothing, focal, mse" in str(error.value)
    with pytest.raises(InputError, match="no loss 'xyzw'; there are"):
        find_loss("xyzw")


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, math.nan])
def test_smoothing_out_of_range_is_refused(smoothing):
    with pytest.raises(InputError, match="smoothing"):
        CrossEntropy(smoothing)


@pytest.mark.parametrize("gamma", [-1.0, math.nan, math.inf])
def test_gamma_out_of_range_is_refused(gamma):
    with pytest.raises(InputError, match="gamma"):
        Focal(gamma)
