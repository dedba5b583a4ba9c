"""More measures, by name: uniformity, duality over the classes, generalised collapse, and the ranks of the spectra.

They are apart from `measures` because some take far longer, and because most say how features are spread rather than
how far they have collapsed.
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from neuralcollapse.checks import check_classifier
from neuralcollapse.errors import InputError, NeuralCollapseWarning, listed
from neuralcollapse.geometry.many_classes import (
    UniformDuality,
    duality_of,
    gnc1_of,
    margins_by_class,
    rows_of,
)
from neuralcollapse.geometry.matrix import BlockedMatrix
from neuralcollapse.geometry.means import CentredMeans
from neuralcollapse.geometry.moments import ClassMoments, check_moments
from neuralcollapse.geometry.pairs import draw
from neuralcollapse.geometry.spectra import spectra_of
from neuralcollapse.geometry.undefined import Reasons, whose
from neuralcollapse.geometry.uniformity import UNIFORMITY_KEYS, Uniformity, check_power, uniformity_of

RANK_MEASURES = {
    "rank": "eigenvalues that are more than rounding",
    "rank_ceiling": "the largest rank that N, K and d allow",
    "effective_rank": "exp of the entropy of the eigenvalues",
    "stable_rank": "their sum over the largest",
    "participation_ratio": "their squared sum over the sum of squares",
    "rankme": "exp of the entropy of their square roots",
}
RANKED = {"within": "S_W", "between": "S_B", "total": "S_T", "weight": "W'W"}
MORE_MEASURES = {
    "uniformity_log": "mean log(1/|u_i - u_j|) of the centred class means at length one",
    "uniformity_log_cov": "its coefficient of variation over pairs of classes: goes to 0",
    "uniformity_riesz": "(mean |u_i - u_j|^-s)^(1/s), s = 2 where nothing else was asked for",
    "uniformity_riesz_cov": "coefficient of variation of |u_i - u_j|^-s: goes to 0",
    "uniform_duality": "mean cos(w_k, mu_k - mu_G): goes to 1",
    "uniform_duality_deviation": "its standard deviation over the classes: goes to 0",
    "uniform_duality_variation": "that over |mean|: goes to 0",
    "gnc1": "NC1 of the features at length one: goes to 0",
    "gnc2": "least one-vs-rest margin of the rows at length one: grows to K/(K-1) for a simplex",
    "gnc2_mean": "mean of these margins",
    "gnc3": "1 - mean cos(w_k, mu_k - mu_G): goes to 0",
    **{
        f"{rank}_{name}": f"of {what}: {words}"
        for name, what in RANKED.items()
        for rank, words in RANK_MEASURES.items()
    },
    "weight_energy": "share of |W|^2 in the span of the centred class means: goes to 1",
    "weight_angle": "largest principal angle between the rows of W and that span, degrees: goes to 0",
}
"""The meaning of each of `more_measures`, in the order of tables."""


def more_measures(
    moments: ClassMoments,
    weight: Tensor | None = None,
    *,
    unit: ClassMoments | None = None,
    s: float = 2.0,
    pairwise: bool | int = True,
) -> dict[str, float]:
    """What `uniformity`, `uniform_duality`, `gnc` and `spectra` give, by name; `measures` has the measures of collapse.

    Args:
        moments: moments of the features that the classifier receives.
        weight: (K, d) rows w_k of the classifier. Without it, what is said of the classifier is left out.
        unit: moments of the same features at length one, for "gnc1", which is left out without them.
        s: the power of the Riesz kernel.
        pairwise: False leaves out the uniformity and the one-vs-rest margins, whose cost grows with K^2. A number P
            takes a sample of P pairs of classes, and margins of as many classes as have P pairs with all others
            together; the result then has the standard errors "uniformity_log_error", "uniformity_riesz_error" and
            "gnc2_mean_error", and "num_pairs" and "num_margins". "gnc2" is then the least of a sample, so at least the
            least of all.

    Returns:
        name -> float, in the order of `neuralcollapse.geometry.more.MORE_MEASURES`. What has no value is NaN, with one
        warning for each reason.

    Raises:
        InputError: a weight of the wrong shape or dtype, or not finite; moments that do not fit together; s of 0.
    """
    return more_measures_of(moments, weight, unit=unit, s=s, pairwise=pairwise)


@torch.no_grad()
def more_measures_of(
    moments: ClassMoments,
    weight: Tensor | None,
    *,
    unit: ClassMoments | None = None,
    s: float = 2.0,
    pairwise: bool | int = True,
    layer: str = "",
    labels_said: bool = False,
    numbers: Tensor | None = None,
    means: CentredMeans | None = None,
) -> dict[str, float]:
    """`more_measures` of what a pass has seen; `layer`, `numbers` (K,) and `means` are as of `measures_of`.

    With `labels_said`, as after `measures_of`, nothing is said of classes without samples.
    """
    check_moments(moments)
    check_classifier(weight, None, moments.num_classes, moments.feature_dim)
    check_power(s)
    if unit is not None and unit.shape[:2] != moments.shape[:2]:
        raise InputError(
            f"expected unit as moments of K, d = {moments.shape[:2]}, got {unit.shape[:2]}: use the same features"
        )
    means, reasons = means or CentredMeans(moments, numbers), Reasons()
    draw(2, pairwise, means.seen.device)  # refuses what it cannot take
    found: dict[str, float] = {}
    if pairwise is not False:
        found |= _uniformity(means, s, pairwise, reasons)
    if unit is not None:
        found["gnc1"] = reasons.attempt(["gnc1"], lambda: gnc1_of(CentredMeans(unit, numbers)), math.nan)
    if weight is not None:
        rows, nothing = rows_of(means, weight), UniformDuality(*[math.nan] * 3)
        names = ["uniform_duality", "uniform_duality_deviation", "uniform_duality_variation"]
        duality = reasons.attempt([*names, "gnc3"], lambda: duality_of(means, rows), nothing)
        found |= dict(zip(names, duality, strict=True))
        found["gnc3"] = 1 - duality.mean
        if pairwise is not False:
            found |= _margins(means, rows, pairwise, reasons)
    found |= spectra_of(means, weight, reasons).values()
    if means.unseen and len(means.seen) and not (layer or labels_said):
        _warn_unseen(means)
    reasons.warn(5, about=f"{whose(False, layer)}undefined (NaN)")
    order = {name: place for place, name in enumerate(MORE_MEASURES)}
    return dict(sorted(found.items(), key=lambda item: order.get(item[0], len(order))))


def _uniformity(means: CentredMeans, s: float, pairwise: bool | int, reasons: Reasons) -> dict[str, float]:
    nothing = Uniformity(math.nan, math.nan, math.nan, math.nan, s, 0)
    job = lambda: uniformity_of(means.matrix, s, pairwise)  # noqa: E731
    value = reasons.attempt(list(UNIFORMITY_KEYS), job, nothing)
    found = dict(zip(UNIFORMITY_KEYS, value[:4], strict=True))
    if draw(len(means.seen), pairwise, means.seen.device) is not None:
        found |= {"uniformity_log_error": value.log_error, "uniformity_riesz_error": value.riesz_error}
        found["num_pairs"] = float(value.num_pairs)
    return found


def _margins(means: CentredMeans, rows: BlockedMatrix, pairwise: bool | int, reasons: Reasons) -> dict[str, float]:
    count, chosen = rows.count, None
    if pairwise is not True and pairwise < count * (count - 1) // 2:
        wanted = math.ceil(pairwise / (count - 1))
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0), device="cpu")
        chosen = order[:wanted].sort().values
    nothing = (torch.zeros(0, dtype=torch.int64, device="cpu"), torch.zeros(0, dtype=torch.float64, device="cpu"))
    _, rho = reasons.attempt(["gnc2", "gnc2_mean"], lambda: margins_by_class(means, rows, chosen), nothing)
    known = len(rho) > 0
    found = {"gnc2": float(rho.min()) if known else math.nan, "gnc2_mean": float(rho.mean()) if known else math.nan}
    if chosen is not None:
        spread = float(rho.std()) / math.sqrt(len(rho)) if len(rho) > 1 else math.nan
        found |= {"gnc2_mean_error": spread, "num_margins": float(len(chosen))}
    return found


def _warn_unseen(means: CentredMeans) -> None:
    warnings.warn(
        f"no samples of class{'es' * (len(means.unseen) > 1)} {listed(means.unseen)}: measured over the "
        f"{len(means.seen)} class{'es' * (len(means.seen) > 1)} seen",
        NeuralCollapseWarning,
        stacklevel=5,
    )
