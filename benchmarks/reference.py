"""Reference loops, written from the formulas in the way that published code has them: what the library is held against.

Nothing of the library is used here.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

Batches = list[tuple[Tensor, Tensor]]  # ((B, d) features, (B,) labels)


def class_means(batches: Batches, num_classes: int) -> tuple[Tensor, Tensor]:
    """A first pass: (K, d) means of the classes and (K,) counts, in the type of the features."""
    sums, counts = batches[0][0].new_zeros(num_classes, batches[0][0].shape[1]), torch.zeros(num_classes)
    for features, labels in batches:
        sums.index_add_(0, labels, features)
        counts += labels.bincount(minlength=num_classes)
    return sums / counts[:, None], counts


def scatter_by_outer(batches: Batches, means: Tensor) -> Tensor:
    """A second pass, sample by sample: the (d, d) sum of (h - mu_y)(h - mu_y)' by `torch.outer`."""
    scatter = means.new_zeros(means.shape[1], means.shape[1])
    for features, labels in batches:
        for row, label in zip(features, labels.tolist(), strict=True):
            centred = row - means[label]
            scatter += torch.outer(centred, centred)
    return scatter


def scatter_by_column_times_row(batches: Batches, means: Tensor) -> Tensor:
    """The same as the paper's code has it, a column times a row."""
    scatter = means.new_zeros(means.shape[1], means.shape[1])
    for features, labels in batches:
        for row, label in zip(features, labels.tolist(), strict=True):
            centred = row - means[label]
            scatter += centred.unsqueeze(1) @ centred.unsqueeze(0)
    return scatter


def scatter_by_batches(batches: Batches, means: Tensor) -> Tensor:
    """A second pass, batch by batch: products of the centred features."""
    scatter = means.new_zeros(means.shape[1], means.shape[1])
    for features, labels in batches:
        centred = features - means[labels]
        scatter += centred.T @ centred
    return scatter


def nc1_of(scatter: Tensor, means: Tensor, counts: Tensor) -> float:
    """tr(S_W S_B^+)/K, by the pseudo-inverse of the (d, d) matrix S_B."""
    shares = (counts / counts.sum()).to(means)
    centred = means - shares @ means
    between = centred.T @ centred / len(means)
    return float(torch.trace(scatter / counts.sum() @ torch.linalg.pinv(between, hermitian=True))) / len(means)


def nc1_in_two_passes(batches: Batches, num_classes: int) -> float:
    """NC1 from features: the means, then the centred products, then the pseudo-inverse."""
    means, counts = class_means(batches, num_classes)
    return nc1_of(scatter_by_batches(batches, means), means, counts)


def cdnv_by_pairs(means: Tensor, variances: Tensor) -> float:
    """The mean over pairs of classes of (V_i + V_j) / (2 |mu_i - mu_j|^2), one pair at a time."""
    total, pairs = 0.0, 0
    for i in range(len(means)):
        for j in range(i + 1, len(means)):
            distance = (means[i] - means[j]).square().sum()
            total += float((variances[i] + variances[j]) / (2 * distance))
            pairs += 1
    return total / pairs


def agreement(value: float, exact: float, within: float = math.inf) -> str:
    """Words on how far a number is from the exact one; an AssertionError when farther than the given share."""
    error = abs(value / exact - 1)
    assert error <= within, f"expected {exact} up to a share of {within}, got {value}"
    return f"relative error {error:.0e}"
