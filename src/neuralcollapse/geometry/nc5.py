"""NC5: whether outliers lie across the directions of the classes.

Source: [Ammar 2024] Ammar et al., NECO: Neural Collapse Based Out-of-distribution Detection, ICLR 2024, arXiv
2310.06823.
"""

from __future__ import annotations

import math

import torch

from neuralcollapse.checks import check_finite
from neuralcollapse.errors import InputError, Undefined
from neuralcollapse.geometry.means import CentredMeans
from neuralcollapse.geometry.moments import ClassMoments, check_moments
from neuralcollapse.geometry.undefined import Reasons


@torch.no_grad()
def nc5(moments: ClassMoments, outside: ClassMoments, *, centred: bool = False) -> float:
    r"""The mean over the classes of :math:`|\cos(\mu_k, \mu_{out})|`, in [0, 1]; goes to 0 under collapse.

    As published, all means are seen from the origin. Features behind a ReLU are >= 0, and the means of any two sets of
    them then have a cosine above 0; with `centred` the means are seen from the mean of the inside samples,
    :math:`|\cos(\mu_k - \mu_G, \mu_{out} - \mu_G)|`. Every class weighs the same.

    Args:
        moments: of the features of the training set, K classes.
        outside: of the features of outliers of any number of classes, such as
            `ClassMoments.from_batch(features, torch.zeros(len(features), dtype=torch.int64), 1)`; mu_out is the mean of
            all its samples.
        centred: see all means from the mean of the inside samples.

    Returns:
        NaN, with a warning, where there are no samples or a mean is zero.

    Raises:
        InputError: features of another dimension.

    Source: [Ammar 2024], equation 5 and the deviation of its appendix D.
    """
    check_moments(moments)
    check_moments(outside, "outside")
    if moments.feature_dim != outside.feature_dim:
        raise InputError(
            f"expected outliers with features of dimension {moments.feature_dim}, got {outside.feature_dim}: use the "
            "same layer"
        )
    reasons = Reasons()
    value = reasons.attempt(["nc5"], lambda: _nc5(moments, outside, centred), math.nan)
    reasons.warn()
    return value


def _nc5(moments: ClassMoments, outside: ClassMoments, centred: bool) -> float:
    means = CentredMeans(moments)
    if len(means.seen) == 0 or outside.num_samples == 0:
        raise Undefined("no samples were seen" + (" of the outliers" if len(means.seen) else ""))
    matrix = means.matrix if centred else means.rows(moments.means)
    away = outside.global_mean.to(means.centre) - (means.centre if centred else 0)
    check_finite(away, "mean of the outliers")
    length = torch.linalg.vector_norm(away)
    eps = max(moments.rounding, outside.rounding, torch.finfo(torch.float64).eps)
    noise = eps * torch.linalg.vector_norm(means.centre) if centred else 0
    if not bool(length > noise):
        raise Undefined(f"the mean of the outliers is {'that of the inside samples' if centred else 'zero'}")
    away = away / length
    cosines = torch.cat([matrix.unit(part) @ away for part in matrix.parts()])
    return min(1.0, float(cosines.abs().mean()))
