"""NC1..NC4 and their variants, as pure functions of class moments and a classifier (W, b).

Notation: K classes seen, mu_k (d,) their means, mu_G the mean of the samples, M the K x d matrix of
rows mu_k - mu_G, S_W = (1/N) sum_i (h_i - mu_y)(h_i - mu_y)' averaged over samples,
S_B = (1/K) sum_k (mu_k - mu_G)(mu_k - mu_G)' averaged over classes, E = (I - 11'/K)/sqrt(K-1).

Every function returns a float. Where a measure is undefined it returns NaN and warns with the reason
(`NeuralCollapseWarning`). Classes without samples are left out, and named in a warning by `measures`.
No function but `nc1_cdnv` and `max_equiangularity` costs more than O(K d^2 + d^3) time or O(K d + d^2)
memory; those two look at every pair of classes, by tiles: O(K^2 d) time.

Sources: [Zhu 2021] Zhu et al., NeurIPS 2021, arXiv 2105.02375. [Papyan 2020] Papyan, Han, Donoho,
PNAS 2020. [Galanti 2021] Galanti, Gyorgy, Hutter, arXiv 2112.15121. [Tirer 2023] Tirer, Huang,
Niles-Weed, ICML 2023.
"""

from __future__ import annotations

import functools
import inspect
import math
import warnings
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from neuralcollapse._checks import check_classifier, check_features, check_finite, check_labels
from neuralcollapse._errors import InputError, NeuralCollapseWarning, listed
from neuralcollapse._rows import (
    Rows,
    Undefined,
    as_rows,
    between_directions,
    distance_to_etf,
    gram,
    largest,
    same_shape,
    several,
    tiles,
)
from neuralcollapse.moments import ClassMoments

FEATURE_MEASURES = (
    "nc1",
    "nc1_quotient",
    "nc1_cdnv",
    "nc2_means",
    "equinorm_means",
    "equiangularity_means",
    "max_equiangularity_means",
)
CLASSIFIER_MEASURES = (
    "nc2",
    "nc3",
    "nc3_distance",
    "nc_bias",
    "nc_bias_centered",
    "equinorm_weights",
    "equiangularity_weights",
    "max_equiangularity_weights",
)
PAIRWISE_MEASURES = ("nc1_cdnv", "max_equiangularity_means", "max_equiangularity_weights")

_OVERFLOW = "squares of the values overflow float64: scale the features and weights down"
_ROUNDING = 1e-13  # of the largest entry of the class means: entries of mu_k - mu_G below it are rounding alone


def _nan_when_undefined(measure: Callable[..., float]) -> Callable[..., float]:
    @functools.wraps(measure)
    def guarded(*args: object, **options: object) -> float:
        try:
            return measure(*args, **options)
        except Undefined as reason:
            warnings.warn(f"{measure.__name__} is undefined (NaN): {reason}", NeuralCollapseWarning, stacklevel=2)
            return math.nan

    return guarded


def _value(measure: Callable[..., float], *args: object) -> float:
    """A measure without its guard: raises `Undefined` where the public function warns."""
    return inspect.unwrap(measure)(*args)


def measures(
    moments: ClassMoments, weight: Tensor | None = None, bias: Tensor | None = None, *, pairwise: bool | int = True
) -> dict[str, float]:
    """Every measure that the given parts define, by name.

    Args:
        moments: of the features that the classifier sees.
        weight: (K, d) rows w_k of the classifier. Without it the measures of the classifier are left out.
        bias: (K,); zero when not given.
        pairwise: False leaves out the three measures that look at every pair of classes
            (`PAIRWISE_MEASURES`), whose cost grows with K^2.

    Returns:
        name -> float; undefined ones are NaN, with one warning for each reason.

    Raises:
        InputError: weight or bias of the wrong shape or type, or not finite.
    """
    check_classifier(weight, bias, moments.num_classes, moments.feature_dim)
    means = _Means(moments)
    jobs: dict[str, Callable[[], float]] = {
        "nc1": lambda: _value(nc1, moments, means),
        "nc1_quotient": lambda: _value(nc1_quotient, moments, means),
        "nc1_cdnv": lambda: _value(nc1_cdnv, moments, means),
        "nc2_means": lambda: _value(nc2, means.centred),
        "equinorm_means": lambda: _value(equinorm, means.centred),
        "equiangularity_means": lambda: _value(equiangularity, means.centred),
        "max_equiangularity_means": lambda: _value(max_equiangularity, means.centred),
    }
    if weight is not None:
        rows = weight.detach().to(device=means.seen.device, dtype=torch.float64)
        weights = Rows(rows if means.complete else rows[means.seen])
        jobs |= {
            "nc2": lambda: _value(nc2, weights),
            "nc3": lambda: _value(nc3, weights, means.centred),
            "nc3_distance": lambda: _value(nc3_distance, weights, means.centred),
            "nc_bias": lambda: _value(nc_bias, moments, weight, bias),
            "nc_bias_centered": lambda: _value(nc_bias_centered, moments, weight, bias),
            "equinorm_weights": lambda: _value(equinorm, weights),
            "equiangularity_weights": lambda: _value(equiangularity, weights),
            "max_equiangularity_weights": lambda: _value(max_equiangularity, weights),
        }
    if not pairwise:
        jobs = {name: job for name, job in jobs.items() if name not in PAIRWISE_MEASURES}

    if len(means.seen) == 0:
        warnings.warn(f"undefined (NaN): no samples were seen: {', '.join(jobs)}", NeuralCollapseWarning, stacklevel=2)
        return dict.fromkeys(jobs, math.nan)
    values: dict[str, float] = {}
    undefined: dict[str, list[str]] = {}
    for name, job in jobs.items():
        try:
            values[name] = job()
            if not math.isfinite(values[name]):
                raise Undefined(_OVERFLOW)
        except Undefined as reason:
            values[name] = math.nan
            undefined.setdefault(str(reason), []).append(name)
    _warn(means, undefined)
    return values


def _warn(means: _Means, undefined: dict[str, list[str]]) -> None:
    if means.unseen:
        warnings.warn(
            f"no samples of class{'es' * (len(means.unseen) > 1)} {listed(means.unseen)}: measured over the "
            f"{len(means.seen)} class{'es' * (len(means.seen) > 1)} seen (W cut to their rows, a simplex of as many)",
            NeuralCollapseWarning,
            stacklevel=3,
        )
    if int(means.moments.counts.max()) == 1:
        warnings.warn(
            "every class has one sample: NC1 is 0 whatever the features, since nothing varies within a class",
            NeuralCollapseWarning,
            stacklevel=3,
        )
    for reason, names in undefined.items():
        warnings.warn(f"undefined (NaN): {reason}: {', '.join(names)}", NeuralCollapseWarning, stacklevel=3)
    count, dim = len(means.seen), means.moments.feature_dim
    if count > dim + 1:
        floor = math.sqrt(2 - 2 * math.sqrt(dim / (count - 1)))
        warnings.warn(
            f"K={count} classes in d={dim} dimensions hold no simplex ETF (needs d >= K-1): "
            f"nc2, nc2_means and nc3 cannot go below {floor:.4f}",
            NeuralCollapseWarning,
            stacklevel=3,
        )


class _Means:
    """The class means about the mean of the samples, over the classes seen."""

    def __init__(self, moments: ClassMoments) -> None:
        self.moments = moments
        self.seen = moments.counts.nonzero().flatten()
        self.complete = len(self.seen) == moments.num_classes
        self.unseen = (moments.counts == 0).nonzero().flatten().tolist()

    @cached_property
    def centred(self) -> Rows:
        """M, the rows mu_k - mu_G; undefined below two classes or when all means coincide."""
        moments = self.moments
        if len(self.seen) == 0:
            raise Undefined("no samples were seen")
        if len(self.seen) == 1:
            raise Undefined(f"only class {int(self.seen[0])} has samples, and a spread between classes needs two")
        means = moments.means if self.complete else moments.means[self.seen]
        rounding = _ROUNDING * largest(means)
        rows = Rows(means - moments.global_mean, math.sqrt(means.shape[1]) * rounding)
        size = largest(rows.rows)
        if not math.isfinite(size * size * rows.count * rows.dim):
            raise Undefined(_OVERFLOW)
        if size <= rounding:
            raise Undefined("all class means coincide, so there is no spread between classes")
        return rows


def _as_means(moments: ClassMoments, means: _Means | None) -> Rows:
    return (means or _Means(moments)).centred


def centred_means(moments: ClassMoments) -> Tensor:
    """(K, d) the rows mu_k - mu_G of the classes seen, in class order; mu_G is the mean of the samples."""
    try:
        return _Means(moments).centred.rows
    except Undefined as reason:
        raise InputError(f"no centred class means: {reason}") from None


@_nan_when_undefined
def nc1(moments: ClassMoments, means: _Means | None = None) -> float:
    r"""Variability collapse: :math:`\mathrm{tr}(S_W S_B^+)/K`, >= 0, goes to 0 under collapse.

    S_W averages over samples, S_B over classes about the mean of the samples, as published. S_B has
    rank at most K-1: its pseudo-inverse keeps at most K-1 directions of the class means (fewer when d
    is smaller or the means are dependent), never a spurious one. Source: [Zhu 2021], [Papyan 2020].
    """
    directions, squares = between_directions(_as_means(moments, means))
    within = ((moments.within_covariance @ directions) * directions).sum(0)
    return float((within / squares).sum())


@_nan_when_undefined
def nc1_quotient(moments: ClassMoments, means: _Means | None = None) -> float:
    r"""Trace quotient :math:`\mathrm{tr} S_W / \mathrm{tr} S_B`, >= 0, goes to 0 under collapse.

    Weights as in `nc1`. Source: [Tirer 2023].
    """
    between = _as_means(moments, means).norms.square().mean()
    return float(moments.within_covariance.trace() / between)


@_nan_when_undefined
def nc1_cdnv(moments: ClassMoments, means: _Means | None = None) -> float:
    r"""Class-distance normalised variance, >= 0, goes to 0 under collapse.

    Mean over pairs of classes of :math:`(V_i + V_j) / (2 |\mu_i - \mu_j|^2)` with V_k the mean of
    :math:`|h - \mu_k|^2` in class k: every pair of classes weighs the same. Source: [Galanti 2021].
    """
    means = means or _Means(moments)
    rows = means.centred.rows
    norms = means.centred.norms.square()
    variances = (moments.spreads / moments.counts.clamp(min=1))[means.seen]
    total = 0.0
    for first, second in tiles(means.centred):
        sizes = norms[first, None] + norms[None, second]
        distances = sizes - 2 * (rows[first] @ rows[second].T)
        if first == second:
            distances.fill_diagonal_(math.inf)
        near = (distances < 1e-6 * sizes).nonzero()  # here the expansion cancels: take differences instead
        for pairs in near.split(max(1, 2**20 // rows.shape[1])):
            apart = rows[first][pairs[:, 0]] - rows[second][pairs[:, 1]]
            distances[pairs[:, 0], pairs[:, 1]] = apart.square().sum(1)
        equal = (distances <= means.centred.rounding * means.centred.rounding).nonzero()
        if len(equal):
            pair = (int(means.seen[first][equal[0, 0]]), int(means.seen[second][equal[0, 1]]))
            raise Undefined(f"classes {pair[0]} and {pair[1]} have the same mean")
        ratio = float(((variances[first, None] + variances[None, second]) / (2 * distances)).sum())
        total += ratio if first == second else 2 * ratio
    return total / (len(rows) * (len(rows) - 1))


@_nan_when_undefined
def nc2(vectors: Tensor | Rows) -> float:
    r"""Distance to a simplex ETF: :math:`| V V^\top / |V V^\top|_F - E |_F`, in [0, 2], goes to 0.

    For the rows of a classifier this is NC2 of [Zhu 2021]; `measures` gives it for W ("nc2") and for the
    centred class means ("nc2_means"). Every class weighs the same. With K > d+1 it stays above
    sqrt(2 - 2 sqrt(d/(K-1))).

    Args:
        vectors: (K, d).
    """
    return distance_to_etf(as_rows(vectors), None)


@_nan_when_undefined
def nc3(weight: Tensor | Rows, means: Tensor | Rows) -> float:
    r"""Self-duality: :math:`| W M^\top / |W M^\top|_F - E |_F`, in [0, 2], goes to 0 under collapse.

    Every class weighs the same. Source: [Zhu 2021].

    Args:
        weight: (K, d) rows of the classifier.
        means: (K, d) centred class means (`centred_means`).
    """
    return distance_to_etf(*same_shape(weight, means))


@_nan_when_undefined
def nc3_distance(weight: Tensor | Rows, means: Tensor | Rows) -> float:
    r"""Self-duality: :math:`| W/|W|_F - M/|M|_F |_F`, in [0, 2], goes to 0 under collapse. Source: [Papyan 2020]."""
    left, right = same_shape(weight, means)
    sizes = torch.linalg.vector_norm(left.norms), torch.linalg.vector_norm(right.norms)
    if float(sizes[0]) == 0 or float(sizes[1]) == 0:
        raise Undefined("the classifier's weight or the centred means are all zero")
    squares = [(left.rows[part] / sizes[0] - right.rows[part] / sizes[1]).square().sum() for part in left.blocks()]
    return math.sqrt(float(sum(squares)))


@_nan_when_undefined
def nc_bias(moments: ClassMoments, weight: Tensor, bias: Tensor | None = None) -> float:
    r""":math:`| b + W \mu_G |_2` over the classes seen, >= 0. Goes to 0 with a decay on the bias.

    As published; without decay on the bias it need not vanish, even at an exact optimum, since adding the
    same number to every logit changes nothing: see `nc_bias_centered`. Source: [Zhu 2021].
    """
    return float(torch.linalg.vector_norm(_mean_logits(moments, weight, bias)))


@_nan_when_undefined
def nc_bias_centered(moments: ClassMoments, weight: Tensor, bias: Tensor | None = None) -> float:
    r""":math:`| C (b + W \mu_G) |_2`, C = I - 11'/K: `nc_bias` less what shifts all logits alike; goes to 0."""
    logits = _mean_logits(moments, weight, bias)
    return float(torch.linalg.vector_norm(logits - logits.mean()))


@_nan_when_undefined
def equinorm(vectors: Tensor | Rows) -> float:
    """Standard deviation over mean of the K lengths (population), >= 0, goes to 0. Source: [Papyan 2020]."""
    norms = as_rows(vectors).norms
    mean = float(norms.mean())
    if mean == 0:
        raise Undefined("all vectors are zero")
    return float(norms.std(correction=0)) / mean


@_nan_when_undefined
def equiangularity(vectors: Tensor | Rows) -> float:
    """Standard deviation of the pairwise cosines (population), in [0, 1], goes to 0. Source: [Papyan 2020].

    With K > d+1 it comes from sums over d x d matrices: the cosines sum to |sum_k u_k|^2 and their squares
    to |U'U|_F^2.
    """
    rows = several(vectors)
    pairs = rows.count * (rows.count - 1)
    if rows.count <= rows.dim + 1:
        unit = rows.unit(slice(None))
        cosines = unit @ unit.T
        off_diagonal = cosines[~torch.eye(rows.count, dtype=torch.bool, device=cosines.device)]
        return float(off_diagonal.std(correction=0))
    total = (rows.rows.T @ (1 / rows.norms)).square().sum()
    mean = (float(total) - rows.count) / pairs
    squares = (float(gram(map(rows.unit, rows.blocks())).square().sum()) - rows.count) / pairs
    return math.sqrt(max(0.0, squares - mean * mean))


@_nan_when_undefined
def max_equiangularity(vectors: Tensor | Rows) -> float:
    """Mean over pairs of |cos + 1/(K-1)|, in [0, 2], goes to 0 under collapse. Source: [Papyan 2020]."""
    rows = several(vectors)
    total = 0.0
    for first, second in tiles(rows):
        cosines = rows.unit(first) @ rows.unit(second).T
        excess = cosines.add_(1 / (rows.count - 1)).abs_()
        if first == second:
            excess.fill_diagonal_(0)
        total += float(excess.sum()) * (1 if first == second else 2)
    return total / (rows.count * (rows.count - 1))


@torch.no_grad()
def nc4_disagreements(features: Tensor, predicted: Tensor, moments: ClassMoments) -> int:
    r"""Samples whose predicted class is not the class of the nearest mean; over N this is NC4 and goes to 0.

    Distances are taken in float64 about the mean of the samples, over the classes seen. Weights every
    sample the same. Source: [Papyan 2020].

    Args:
        features: (N, d).
        predicted: (N,) the class with the largest logit.
        moments: of the whole data set, from an earlier pass.

    Raises:
        InputError: shapes that do not fit, features that are not finite, or moments of no samples.
    """
    check_features(features)
    check_labels(predicted, features.shape[0], "predictions")
    check_finite(features)
    if features.shape[1] != moments.feature_dim:
        raise InputError(
            f"expected features of dimension {moments.feature_dim}, got {features.shape[1]}: use the same layer"
        )
    if moments.num_samples == 0:
        raise InputError("the moments hold no samples, so there is no nearest class mean: update them first")
    centre = moments.global_mean
    seen = moments.counts.nonzero().flatten()
    means = (moments.means - centre)[seen]
    device = moments.means.device
    scores = (features.to(device=device, dtype=torch.float64) - centre) @ means.T - means.square().sum(1) / 2
    return int((seen[scores.argmax(1)] != predicted.to(device)).sum())


def _mean_logits(moments: ClassMoments, weight: Tensor, bias: Tensor | None) -> Tensor:
    check_classifier(weight, bias, moments.num_classes, moments.feature_dim)
    seen = moments.counts.nonzero().flatten()
    if len(seen) == 0:
        raise Undefined("no samples were seen")
    mean = moments.global_mean
    logits = weight.detach().to(mean) @ mean
    if bias is not None:
        logits = logits + bias.detach().to(mean)
    return logits[seen]
