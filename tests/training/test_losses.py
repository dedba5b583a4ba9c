import math

import pytest
import torch
from torch.nn import functional as F

from neuralcollapse import InputError
from neuralcollapse.training.step import loss_function
from neuralcollapse.ufm.losses import find_loss

F64 = torch.float64
NAMES = ["cross_entropy", "label_smoothing:0.2", "label_smoothing", "focal:3", "focal", "focal:0", "focal:0.5", "mse"]
N, K = 12, 5


def samples() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return 3 * torch.randn(N, K, dtype=F64, generator=generator), torch.arange(N) % K


@pytest.mark.parametrize("name", NAMES)
def test_value_and_gradient_are_those_of_the_feature_models_loss(name):
    logits, labels = samples()
    logits.requires_grad_()
    value = loss_function(name)(logits, labels)
    value.backward()
    loss = find_loss(name)
    targets = loss.targets(labels, K)
    columns = logits.detach().T
    assert value.item() == pytest.approx(loss.value(columns, targets).mean().item(), rel=1e-12)
    torch.testing.assert_close(logits.grad, loss.gradient(columns, targets).T / N, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("cross_entropy", lambda p, z, k: -math.log(p[k])),
        ("label_smoothing:0.2", lambda p, z, k: -0.8 * math.log(p[k]) - 0.2 / K * sum(map(math.log, p))),
        ("focal:3", lambda p, z, k: -((1 - p[k]) ** 3) * math.log(p[k])),
        ("mse", lambda p, z, k: sum((z[j] - (j == k)) ** 2 for j in range(K)) / 2),
    ],
)
def test_the_value_is_that_of_the_formula(name, formula):
    logits, labels = samples()
    rows = zip(logits.softmax(1).tolist(), logits.tolist(), labels.tolist(), strict=True)
    wanted = sum(formula(*row) for row in rows) / N
    assert float(loss_function(name)(logits, labels)) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("name", ["focal:0.5", "focal:1", "focal:2", "focal:0"])
@pytest.mark.parametrize("right", [True, False], ids=["right", "wrong"])
def test_very_confident_samples_have_finite_gradients(name, right):
    logits = torch.zeros(3, K)
    logits[:, 1] = torch.tensor([1e4, 30.0, 17.0])  # 1 - p is 0 in float32, or nearly so
    logits.requires_grad_()
    labels = torch.full((3,), 1 if right else 2)
    value = loss_function(name)(logits, labels)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(logits.grad).all()
    if right:
        assert logits.grad.abs().max() < 1e-3
    else:
        torch.testing.assert_close(logits.grad[0], torch.tensor([0.0, 1, -1, 0, 0]) / 3)


def test_the_focal_loss_without_focus_is_cross_entropy():
    logits, labels = samples()
    torch.testing.assert_close(loss_function("focal:0")(logits, labels), F.cross_entropy(logits, labels))


@pytest.mark.parametrize("name", NAMES)
def test_the_mean_is_over_samples(name):
    logits, labels = samples()
    loss = loss_function(name)
    torch.testing.assert_close(loss(logits.repeat(3, 1), labels.repeat(3)), loss(logits, labels))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cross_entrpy", "mean 'cross_entropy'"),
        ("focall:2", "mean 'focal'"),
        ("focal:much", "focal"),
        ("focal:-1", "gamma"),
        ("label_smoothing:1", "smoothing"),
        ("mse:2", "mse"),
        ("", "loss"),
    ],
)
def test_a_loss_that_is_none_says_why(name, message):
    with pytest.raises(InputError, match=message):
        loss_function(name)
