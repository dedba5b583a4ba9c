"""The losses of training, in torch, each the same function as its namesake in the unconstrained feature model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from neuralcollapse.ufm.losses import CrossEntropy, Focal, find_loss

LossFunction = Callable[[Tensor, Tensor], Tensor]


def loss_function(name: str) -> LossFunction:
    r"""(logits (N, K), labels (N,)) -> the mean loss, from a name such as "focal:3".

    cross_entropy, label_smoothing[:a], focal[:gamma] :math:`-(1-p)^\gamma \log p`, mse
    :math:`\frac12 |z - y|^2` with one-hot y.

    Raises:
        InputError: an unknown name (the nearest is offered), or a parameter that is no number or out of range.
    """
    loss = find_loss(name)
    if isinstance(loss, CrossEntropy):
        smoothing = loss.smoothing
        return lambda logits, labels: F.cross_entropy(logits, labels, label_smoothing=smoothing)
    if isinstance(loss, Focal):
        gamma = loss.gamma
        return lambda logits, labels: _focal(logits, labels, gamma)
    return _squared_error


def _focal(logits: Tensor, labels: Tensor, gamma: float) -> Tensor:
    log_p = -F.cross_entropy(logits, labels, reduction="none")
    # 1 - p is 0 in float32 for a confident sample; its power's slope must not become 0 * infinity there
    rest = (-torch.expm1(log_p)).clamp(min=torch.finfo(log_p.dtype).tiny)
    return -(rest**gamma * log_p).mean()


def _squared_error(logits: Tensor, labels: Tensor) -> Tensor:
    targets = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    return (logits - targets).square().sum(1).mean() / 2
