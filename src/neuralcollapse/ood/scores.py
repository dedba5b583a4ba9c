r"""Outlier scores of a classifier's features and logits, as pure functions; each is higher in distribution.

Throughout, h is a feature, `z = Wh + b` its logits, k the class of the largest logit, mu_G the mean of the training
features, mu_k that of class k, S_W their within-class and S_T their total covariance. `OODScorer` works out what the
functions here take (projections, lengths, coordinates) for many features at once.
"""

from __future__ import annotations

import torch
from torch import Tensor


def neco(coordinates: Tensor, lengths: Tensor, max_logits: Tensor | None = None) -> Tensor:
    r"""NECO: :math:`|P^\top x| / |x|`, in [0, 1], with :math:`x = h - \mu_G`.

    P holds the q eigenvectors of S_T with the largest eigenvalues. It is 1 for a training feature under collapse (where
    q = K-1), 0 for a feature perpendicular to all class means, and its square has the mean q/d for an x without a
    preferred direction. Where x = 0 it is 0.

    Source: [Ammar et al. 2024], "NECO: neural collapse based out-of-distribution detection", ICLR. Their code divides
    every entry of x by its standard deviation first (`neco_standardize`) and, for networks other than ResNets,
    multiplies the score by the largest logit (`neco_max_logit`). pytorch-ood does both by default, and takes the
    denominator without centring, which differs only where features are not standardised.

    Args:
        coordinates: (N, q) `P'x`.
        lengths: (N,) `|x|`, above 0.
        max_logits: (N,) factors of the score.
    """
    score = torch.linalg.vector_norm(coordinates, dim=1) / lengths
    return score if max_logits is None else score * max_logits


def nci(projections: Tensor, lengths: Tensor, sums: Tensor | None = None, alpha: float = 0.0) -> Tensor:
    r"""NCI: :math:`\langle w_k, h - \mu_G \rangle / |h - \mu_G| + \alpha |h|_1`.

    With alpha = 0 it is the length of the rows for a training feature under collapse. Where h = mu_G the first term
    is 0.

    Source: [Liu and Qin 2025], "Detecting out-of-distribution through the lens of neural collapse", CVPR. OpenOOD and
    pytorch-ood define it in the same way; alpha is 0 in pytorch-ood, and searched on validation data in OpenOOD.

    Args:
        projections: (N,) `<w_k, h - mu_G>`, k the class of the largest logit.
        lengths: (N,) `|h - mu_G|`, above 0.
        sums: (N,) `|h|_1`; needed where alpha is not 0.
        alpha: at least 0.
    """
    score = projections / lengths
    return score if sums is None or alpha == 0 else score + alpha * sums


def fdbd(logits: Tensor, largest: Tensor, inverse_distances: Tensor, lengths: Tensor) -> Tensor:
    r"""fDBD: the mean over classes :math:`j \ne k` of :math:`\frac{z_k - z_j}{|w_k - w_j|}`, over :math:`|h - \mu_G|`.

    Each term is the distance of h to the boundary between the classes k and j. A class whose row equals that of k has
    no boundary with it and is left out of the mean. On a collapsed simplex head a training feature has the value
    :math:`\sqrt{K / (2(K-1))}`, a feature perpendicular to the simplex has 0.

    Source: [Liu and Qin 2024], "Fast decision boundary based out-of-distribution detector", ICML. pytorch-ood defines
    it in the same way, and so does OpenOOD, but with the sum over the classes in place of the mean (K-1 times as much)
    and with a choice, by validation, of |h| in place of |h - mu_G| (here `fdbd_center="origin"`).

    Args:
        logits: (N, K).
        largest: (N,) the largest logit of each row.
        inverse_distances: (N, K) `1 / |w_k - w_j|` over the number of classes that have a boundary with k; 0 for those
            that have none. A number (N, 1) stands for a whole row.
        lengths: (N,) `|h - mu_G|`, above 0.
    """
    return (largest[:, None] - logits).mul_(inverse_distances).sum(1) / lengths


def residual(coordinates: Tensor) -> Tensor:
    r"""Residual: :math:`-|R^\top (h - o)|`, at most 0.

    The origin :math:`o = -W^+ b` is the point of the least norm at which the logits are smallest in length (all 0 where
    K <= d). R holds the eigenvectors of the second moment :math:`\frac{1}{N} \sum (h - o)(h - o)^\top` beyond the
    `vim_dim` largest.

    Source: [Wang et al. 2022], "ViM: out-of-distribution with virtual-logit matching", CVPR. OpenOOD and pytorch-ood
    define it in the same way; OpenOOD takes the directions from its validation set, and both take them from a routine
    for matrices without symmetry, which may give complex ones.

    Args:
        coordinates: (N, d - vim_dim) `R'(h - o)`.
    """
    return -torch.linalg.vector_norm(coordinates, dim=1)


def vim(energies: Tensor, residuals: Tensor, alpha: float) -> Tensor:
    r"""ViM: :math:`\log \sum_j e^{z_j} - \alpha |R^\top (h - o)|`.

    alpha is the mean of the largest logit over the mean of :math:`|R^\top (h - o)|`, both over the training features.

    Source: [Wang et al. 2022], as for `residual`. OpenOOD and pytorch-ood define it in the same way.

    Args:
        energies: (N,) of `energy`.
        residuals: (N,) of `residual`.
        alpha: the residual's weight.
    """
    return energies + alpha * residuals


def mahalanobis(within: Tensor, beyond: Tensor) -> Tensor:
    r"""Mahalanobis: :math:`-\min_k (h - \mu_k)^\top S_W^{-1} (h - \mu_k)`, at most 0.

    S_W averages over the samples. Where it is singular, the pseudo-inverse takes its place.

    Source: [Lee et al. 2018], "A simple unified framework for detecting out-of-distribution samples and adversarial
    attacks", NeurIPS; the last features alone, without their perturbation of the input. OpenOOD has half of it, a sum
    over layers, and that perturbation. pytorch-ood multiplies it by 1/(2N), since its S_W is a sum over the samples,
    and adds 1e-6 to the diagonal of that sum.

    Args:
        within: (N, r) coordinates of `h - mu_k` for the nearest class, along the directions in which class means
            differ, in units of S_W.
        beyond: (N, m) its other coordinates.
    """
    return -(within.square().sum(1) + beyond.square().sum(1))


def relative_mahalanobis(within: Tensor, total: Tensor, shares: Tensor) -> Tensor:
    r"""Relative Mahalanobis: `mahalanobis` plus :math:`(h - \mu_G)^\top S_T^{-1} (h - \mu_G)`.

    The two distances are equal along all directions in which class means do not differ, so that at most K-1 are needed.

    Source: [Ren et al. 2021], "A simple fix to Mahalanobis distance for improving near-OOD detection". OpenOOD defines
    it in the same way. pytorch-ood has 1/N of it, since its covariances are sums over the samples, with 1e-6 added to
    their diagonals.

    Args:
        within: (N, r) as for `mahalanobis`.
        total: (N, r) coordinates of `h - mu_G` along the same directions, in the same units.
        shares: (r,) of the variance along them, that within classes: `1 / (1 + lambda)`, with lambda the variance of
            the class means.
    """
    return total.square() @ shares - within.square().sum(1)


def energy(largest: Tensor, others: Tensor) -> Tensor:
    r"""Energy: :math:`\log \sum_j e^{z_j}` at temperature 1.

    Source: [Liu et al. 2020], "Energy-based out-of-distribution detection", NeurIPS. OpenOOD defines it in the same
    way; pytorch-ood gives its negative, as it does for every score.

    Args:
        largest: (N,) the largest logit.
        others: (N,) of `others`.
    """
    return largest + others.log1p()


def max_logit(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The largest logit `z_k`, and k.

    Source: [Hendrycks et al. 2022], "Scaling out-of-distribution detection for real-world settings", ICML. OpenOOD and
    pytorch-ood define it in the same way.

    Args:
        logits: (N, K).
    """
    largest, predicted = logits.max(1)
    return largest, predicted


def msp(others: Tensor) -> Tensor:
    r"""MSP, the largest softmax probability :math:`1 / \sum_j e^{z_j - z_k}`, in (0, 1].

    In float64, whatever the logits have: float32 cannot tell 1 - 1e-9 from 1, and a network that fits its training set
    gives most inputs such a probability.

    Source: [Hendrycks and Gimpel 2017], "A baseline for detecting misclassified and out-of-distribution examples in
    neural networks", ICLR. OpenOOD and pytorch-ood define it in the same way, in float32.

    Args:
        others: (N,) of `others`.
    """
    wide = others if others.device.type == "mps" else others.double()  # MPS has no float64
    return 1 / (1 + wide)


def others(logits: Tensor, largest: Tensor, predicted: Tensor) -> Tensor:
    """(N,) `sum_(j != k) exp(z_j - z_k)`, in which nothing is lost beside the term 1 of class k itself."""
    return (logits - largest[:, None]).exp_().scatter_(1, predicted[:, None], 0).sum(1)
