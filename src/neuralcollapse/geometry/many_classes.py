r"""Collapse with more classes than a simplex holds: GNC1 to GNC3, and how uniform self-duality is over the classes.

Sources: [Jiang 2024] Jiang et al., Generalized Neural Collapse for a Large Number of Classes, ICML 2024. [Wu 2024] Wu,
Papyan, Linguistic Collapse, NeurIPS 2024, arXiv 2405.17767.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from neuralcollapse.checks import check_classifier
from neuralcollapse.errors import InputError, Undefined
from neuralcollapse.geometry.matrix import BlockedMatrix, at_least_two
from neuralcollapse.geometry.means import CentredMeans
from neuralcollapse.geometry.moments import ClassMoments, check_moments
from neuralcollapse.geometry.undefined import Reasons

_ONE_LENGTH = 1e-2  # mean squared lengths of the classes may differ by this share (bfloat16 rounds by 4e-3)


class UniformDuality(NamedTuple):
    r"""The cosines between the rows of W and the centred class means (`neuralcollapse.uniform_duality`).

    Attributes:
        mean: of :math:`\cos(w_k, \mu_k - \mu_G)` over the classes, in [-1, 1]; goes to 1 under collapse.
        deviation: their standard deviation (population); goes to 0.
        variation: the coefficient of variation, `deviation / |mean|`; goes to 0.
    """

    mean: float
    deviation: float
    variation: float


class GNC(NamedTuple):
    r"""Generalised neural collapse, for any number of classes (`neuralcollapse.gnc`).

    Attributes:
        gnc1: NC1 of features at length one; goes to 0 under collapse.
        gnc2: the least one-vs-rest margin :math:`\min_k \rho_k` of the rows of W at length one: under collapse as large
            as K unit vectors allow. `K/(K-1)` for a simplex, 1 for an orthoplex, `1 - cos(2 pi/K)` on a circle.
        gnc3: :math:`1 - \mathrm{mean}_k \cos(w_k, \mu_k - \mu_G)`, in [0, 2]; goes to 0 under collapse.
        classes: (n,) the numbers of the classes whose margins were taken.
        margins: (n,) float64 their rho_k.
    """

    gnc1: float
    gnc2: float
    gnc3: float
    classes: Tensor
    margins: Tensor


@torch.no_grad()
def uniform_duality(moments: ClassMoments, weight: Tensor) -> UniformDuality:
    r"""Mean and spread over the classes of :math:`\cos(w_k, \mu_k - \mu_G)`, each class alike.

    Args:
        moments: moments of the features that the classifier receives; mu_G is the mean of the samples.
        weight: (K, d) rows w_k of the classifier.

    Returns:
        NaN, with a warning, where a row or a centred mean is zero.

    Raises:
        InputError: a weight of the wrong shape or dtype, or not finite.

    Source: [Wu 2024].
    """
    reasons = Reasons()
    means, rows = _given(moments, weight)
    nothing = UniformDuality(*[math.nan] * 3)
    found = reasons.attempt(["mean", "deviation", "variation"], lambda: duality_of(means, rows), nothing)
    reasons.warn()
    return found


@torch.no_grad()
def gnc(moments: ClassMoments, weight: Tensor, *, classes: Tensor | Sequence[int] | None = None) -> GNC:
    r"""GNC1, GNC2 and GNC3: collapse to a softmax code, which exists for any number of classes.

    The model of [Jiang 2024] has features of length one, so `gnc1` needs the moments of such features, as of
    `torch.nn.functional.normalize(features)`; of others it is NaN, with a warning. Length one is told by the mean
    squared lengths of the classes, which must agree to 1 %.

    Args:
        moments: of the features.
        weight: (K, d) rows w_k of the classifier.
        classes: take the margins of these classes alone, against all rows. By default those of all classes that have
            samples: some seconds for 1,000 rows, up to a second for each of tens of thousands. The least margin of a
            part is an upper bound of `gnc2`.

    Returns:
        The three numbers, and the margins. What has no value is NaN, with one warning for each reason.

    Raises:
        InputError: a weight of the wrong shape or dtype, or not finite; or classes that are none, or without samples.
    """
    reasons = Reasons()
    means, rows = _given(moments, weight)
    chosen = None
    if classes is not None:
        chosen = _places(means, classes)
    nothing = means.counts.new_zeros(0).cpu()
    gnc1 = reasons.attempt(["gnc1"], lambda: gnc1_of(means), math.nan)
    gnc3 = reasons.attempt(["gnc3"], lambda: 1 - duality_of(means, rows).mean, math.nan)
    numbers, margins = reasons.attempt(
        ["gnc2"], lambda: margins_by_class(means, rows, chosen), (nothing.long(), nothing)
    )
    reasons.warn()
    return GNC(gnc1, float(margins.min()) if len(margins) else math.nan, gnc3, numbers, margins)


def duality_of(means: CentredMeans, rows: BlockedMatrix) -> UniformDuality:
    """`uniform_duality` of centred means and the rows of the same classes."""
    matrix = means.matrix.with_directions()
    cosines = torch.cat([(rows.unit(part) * matrix.unit(part)).sum(1) for part in rows.parts()])
    mean, deviation = torch.stack([cosines.mean(), cosines.std(correction=0)]).tolist()
    return UniformDuality(mean, deviation, deviation / abs(mean) if mean else math.inf)


def gnc1_of(means: CentredMeans) -> float:
    """NC1 of features that all have one length; `Undefined` for others."""
    between = means.matrix.count
    lengths = means.class_variances + torch.cat(
        [means.moments.means[means.seen[part]].double().square().sum(1) for part in means.matrix.parts()]
    )
    least, most = torch.aminmax(lengths)
    if float(most - least) > _ONE_LENGTH * float(most):
        raise Undefined("the features are not of length one: take moments of torch.nn.functional.normalize(features)")
    return float(means.within_over_between) / between


def margins_by_class(means: CentredMeans, rows: BlockedMatrix, chosen: Tensor | None) -> tuple[Tensor, Tensor]:
    """Class numbers and one-vs-rest margins of the chosen rows, by default of all."""
    from neuralcollapse.geometry.margins import margins_of

    if rows.count == 0:
        raise Undefined("no samples were seen")
    found = margins_of(at_least_two(rows).with_directions(), chosen)
    return means.seen.cpu()[found.classes], found.rho


def _given(moments: ClassMoments, weight: Tensor) -> tuple[CentredMeans, BlockedMatrix]:
    check_moments(moments)
    if weight is None:
        raise InputError("expected the weight (K, d) of the classifier, got none: pass it")
    check_classifier(weight, None, moments.num_classes, moments.feature_dim)
    means = CentredMeans(moments)
    return means, rows_of(means, weight)


def rows_of(means: CentredMeans, weight: Tensor) -> BlockedMatrix:
    """The rows of the classes that have samples."""
    return means.rows(weight.detach().to(means.seen.device))


def _places(means: CentredMeans, classes: Tensor | Sequence[int]) -> Tensor:
    """Where the classes stand among those that have samples."""
    from neuralcollapse.checks import as_tensor
    from neuralcollapse.geometry.classes import ClassSubset

    subset = ClassSubset(as_tensor(classes, "classes"), means.moments.num_classes).classes.cpu()
    seen = means.seen.cpu()
    missing = subset[~torch.isin(subset, seen)].tolist()
    if missing:
        raise InputError(f"expected classes that have samples, got {missing[:8]}: leave them out")
    return torch.searchsorted(seen, subset)
