"""NC1..NC4 and their variants, as pure functions of class moments and a classifier (W, b).

Notation: K classes seen, mu_k (d,) their means, mu_G the mean of the samples, M the K x d matrix of
rows mu_k - mu_G, S_W = (1/N) sum_i (h_i - mu_y)(h_i - mu_y)' averaged over samples,
S_B = (1/K) sum_k (mu_k - mu_G)(mu_k - mu_G)' averaged over classes, E = (I - 11'/K)/sqrt(K-1).

Every function returns a float. Where a measure is undefined it returns NaN and warns with the reason
(`NeuralCollapseWarning`). Classes without samples are left out, and named in a warning by `measures`.
Nothing here costs more than O(K d^2 + d^3) time or O(K d + d^2) memory, and none of it makes a second K x d matrix
when K is large; the measures that look at every pair of classes, O(K^2 d) time, are in pairs.py.

Sources: [Zhu 2021] Zhu et al., NeurIPS 2021, arXiv 2105.02375. [Papyan 2020] Papyan, Han, Donoho,
PNAS 2020. [Galanti 2021] Galanti, Gyorgy, Hutter, arXiv 2112.15121. [Tirer 2023] Tirer, Huang,
Niles-Weed, ICML 2023.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from neuralcollapse.checks import check_classifier, check_features, check_finite, check_labels
from neuralcollapse.errors import InputError, NeuralCollapseWarning, listed
from neuralcollapse.geometry.means import OVERFLOW, Means, as_means
from neuralcollapse.geometry.moments import ClassMoments
from neuralcollapse.geometry.pairs import Estimate, cdnv, draw, excess_cosine
from neuralcollapse.geometry.rows import Rows, as_rows, at_least_two, distance_to_etf, gram, same_shape
from neuralcollapse.geometry.undefined import Undefined, nan_when_undefined, unguarded

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


def measures(
    moments: ClassMoments, weight: Tensor | None = None, bias: Tensor | None = None, *, pairwise: bool | int = True
) -> dict[str, float]:
    """Every measure that the given parts define, by name.

    Args:
        moments: of the features that the classifier sees.
        weight: (K, d) rows w_k of the classifier. Without it the measures of the classifier are left out.
        bias: (K,); zero when not given.
        pairwise: False leaves out the three measures that look at every pair of classes
            (`PAIRWISE_MEASURES`), whose cost grows with K^2; a number P takes them over a sample of P pairs, always
            the same. The result then says so: "num_pairs" is P, and "nc1_cdnv_error" and so on are the standard
            errors. Where there are no more than P pairs, all are looked at.

    Returns:
        name -> float; undefined ones are NaN, with one warning for each reason.

    Raises:
        InputError: weight or bias of the wrong shape or type, or not finite.
    """
    check_classifier(weight, bias, moments.num_classes, moments.feature_dim)
    means = Means(moments)
    sample = draw(len(means.seen), pairwise, means.seen.device)
    jobs: dict[str, Callable[[], float | Estimate]] = {
        "nc1": lambda: unguarded(nc1, moments, means),
        "nc1_quotient": lambda: unguarded(nc1_quotient, moments, means),
        "nc1_cdnv": lambda: cdnv(means, sample),
        "nc2_means": lambda: unguarded(nc2, means.centred),
        "equinorm_means": lambda: unguarded(equinorm, means.centred),
        "equiangularity_means": lambda: unguarded(equiangularity, means.centred),
        "max_equiangularity_means": lambda: excess_cosine(means.centred, sample),
    }
    if weight is not None:
        weights = Rows(weight.detach().to(means.seen.device), None if means.complete else means.seen)
        jobs |= {
            "nc2": lambda: unguarded(nc2, weights),
            "nc3": lambda: unguarded(nc3, weights, means.centred),
            "nc3_distance": lambda: unguarded(nc3_distance, weights, means.centred),
            "nc_bias": lambda: unguarded(nc_bias, moments, weight, bias),
            "nc_bias_centered": lambda: unguarded(nc_bias_centered, moments, weight, bias),
            "equinorm_weights": lambda: unguarded(equinorm, weights),
            "equiangularity_weights": lambda: unguarded(equiangularity, weights),
            "max_equiangularity_weights": lambda: excess_cosine(at_least_two(weights), sample),
        }
    if pairwise is False:
        jobs = {name: job for name, job in jobs.items() if name not in PAIRWISE_MEASURES}

    if len(means.seen) == 0:
        warnings.warn(f"undefined (NaN): no samples were seen: {', '.join(jobs)}", NeuralCollapseWarning, stacklevel=2)
        return dict.fromkeys(jobs, math.nan)
    values: dict[str, float] = {}
    undefined: dict[str, list[str]] = {}
    for name, job in jobs.items():
        try:
            value = job()
            if isinstance(value, Estimate):
                value, error = value
                if sample is not None:
                    values[f"{name}_error"] = error
            values[name] = value
            if not math.isfinite(values[name]):
                raise Undefined(OVERFLOW)
        except Undefined as reason:
            values[name] = math.nan
            undefined.setdefault(str(reason), []).append(name)
    if sample is not None:
        values["num_pairs"] = float(len(sample.first))
    _warn(means, undefined)
    return values


def _warn(means: Means, undefined: dict[str, list[str]]) -> None:
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
    if means.left_out:
        warnings.warn(means.left_out, NeuralCollapseWarning, stacklevel=3)
    count, dim = len(means.seen), means.moments.feature_dim
    if count > dim + 1:
        floor = math.sqrt(2 - 2 * math.sqrt(dim / (count - 1)))
        warnings.warn(
            f"K={count} classes in d={dim} dimensions hold no simplex ETF (needs d >= K-1): "
            f"nc2, nc2_means and nc3 cannot go below {floor:.4f}",
            NeuralCollapseWarning,
            stacklevel=3,
        )


def centred_means(moments: ClassMoments) -> Tensor:
    """(K, d) the rows mu_k - mu_G of the classes seen, in class order; mu_G is the mean of the samples.

    Rows that hold only rounding are zero.
    """
    try:
        rows = Means(moments).centred
        return torch.where(rows.norms[:, None] > 0, rows.rows, 0.0)
    except Undefined as reason:
        raise InputError(f"no centred class means: {reason}") from None


@nan_when_undefined
def nc1(moments: ClassMoments, means: Means | None = None) -> float:
    r"""Variability collapse: :math:`\mathrm{tr}(S_W S_B^+)/K`, >= 0, goes to 0 under collapse.

    S_W averages over samples, S_B over classes about the mean of the samples, as published. S_B has
    rank at most K-1: its pseudo-inverse keeps at most K-1 directions of the class means (fewer when d
    is smaller or the means are dependent), never a spurious one: along directions where all that varies may be the
    rounding of the features' own type it would be noise over noise (a LayerNorm or a bottleneck, K-1 above their
    dimension). `measures` says how many were left out. Source: [Zhu 2021], [Papyan 2020].
    """
    means = as_means(moments, means)
    directions = means.directions
    return float((directions.within / directions.between).sum()) / means.centred.count


@nan_when_undefined
def nc1_quotient(moments: ClassMoments, means: Means | None = None) -> float:
    r"""Trace quotient :math:`\mathrm{tr} S_W / \mathrm{tr} S_B`, >= 0, goes to 0 under collapse.

    Weights as in `nc1`. Source: [Tirer 2023].
    """
    means = as_means(moments, means)
    return float(means.covariance.trace() / means.centred.norms.square().mean())


@nan_when_undefined
def nc2(vectors: Tensor | Rows) -> float:
    r"""Distance to a simplex ETF: :math:`| V V^\top / |V V^\top|_F - E |_F`, in [0, 2], goes to 0.

    For the rows of a classifier this is NC2 of [Zhu 2021]; `measures` gives it for W ("nc2") and for the
    centred class means ("nc2_means"). Every class weighs the same. With K > d+1 it stays above
    sqrt(2 - 2 sqrt(d/(K-1))).

    Args:
        vectors: (K, d).
    """
    return distance_to_etf(as_rows(vectors), None)


@nan_when_undefined
def nc3(weight: Tensor | Rows, means: Tensor | Rows) -> float:
    r"""Self-duality: :math:`| W M^\top / |W M^\top|_F - E |_F`, in [0, 2], goes to 0 under collapse.

    Every class weighs the same. Source: [Zhu 2021].

    Args:
        weight: (K, d) rows of the classifier.
        means: (K, d) centred class means (`centred_means`).
    """
    return distance_to_etf(*same_shape(weight, means))


@nan_when_undefined
def nc3_distance(weight: Tensor | Rows, means: Tensor | Rows) -> float:
    r"""Self-duality: :math:`| W/|W|_F - M/|M|_F |_F`, in [0, 2], goes to 0 under collapse. Source: [Papyan 2020]."""
    left, right = same_shape(weight, means)
    sizes = torch.linalg.vector_norm(left.norms), torch.linalg.vector_norm(right.norms)
    if float(sizes[0]) == 0 or float(sizes[1]) == 0:
        raise Undefined("the classifier's weight or the centred means are all zero")
    squares = [(left.block(part) / sizes[0] - right.block(part) / sizes[1]).square().sum() for part in left.parts()]
    return math.sqrt(float(sum(squares)))


@nan_when_undefined
def nc_bias(moments: ClassMoments, weight: Tensor, bias: Tensor | None = None) -> float:
    r""":math:`| b + W \mu_G |_2` over the classes seen, >= 0. Goes to 0 with a decay on the bias.

    As published; without decay on the bias it need not vanish, even at an exact optimum, since adding the
    same number to every logit changes nothing: see `nc_bias_centered`. Source: [Zhu 2021].
    """
    return float(torch.linalg.vector_norm(_mean_logits(moments, weight, bias)))


@nan_when_undefined
def nc_bias_centered(moments: ClassMoments, weight: Tensor, bias: Tensor | None = None) -> float:
    r""":math:`| C (b + W \mu_G) |_2`, C = I - 11'/K: `nc_bias` less what shifts all logits alike; goes to 0."""
    logits = _mean_logits(moments, weight, bias)
    return float(torch.linalg.vector_norm(logits - logits.mean()))


@nan_when_undefined
def equinorm(vectors: Tensor | Rows) -> float:
    """Standard deviation over mean of the K lengths (population), >= 0, goes to 0. Source: [Papyan 2020]."""
    norms = as_rows(vectors).norms
    mean = float(norms.mean())
    if mean == 0:
        raise Undefined("all vectors are zero")
    return float(norms.std(correction=0)) / mean


@nan_when_undefined
def equiangularity(vectors: Tensor | Rows) -> float:
    """Standard deviation of the pairwise cosines (population), in [0, 1], goes to 0. Source: [Papyan 2020].

    With K > d+1 it comes from sums over d x d matrices: the cosines sum to |sum_k u_k|^2 and their squares
    to |U'U|_F^2.
    """
    rows = at_least_two(vectors)
    pairs = rows.count * (rows.count - 1)
    if rows.count <= rows.dim + 1:
        unit = rows.unit(slice(None))
        cosines = unit @ unit.T
        off_diagonal = cosines[~torch.eye(rows.count, dtype=torch.bool, device=cosines.device)]
        return float(off_diagonal.std(correction=0))
    total = torch.stack([rows.unit(part).sum(0) for part in rows.parts()]).sum(0).square().sum()
    mean = (float(total) - rows.count) / pairs
    squares = (float(gram(map(rows.unit, rows.parts())).square().sum()) - rows.count) / pairs
    return math.sqrt(max(0.0, squares - mean * mean))


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
    means = Rows(moments.means, None if len(seen) == moments.num_classes else seen, centre)
    centred = features.to(device=centre.device, dtype=torch.float64) - centre
    best = centred.new_full((len(features),), -math.inf)
    nearest = torch.zeros(len(features), dtype=torch.int64, device=centre.device)
    for part in means.parts():  # never all K scores of a sample at once
        block = means.block(part)
        score, place = (centred @ block.T - block.square().sum(1) / 2).max(1)
        nearest = torch.where(score > best, seen[part][place], nearest)
        best = torch.maximum(best, score)
    return int((nearest != predicted.to(centre.device)).sum())


def _mean_logits(moments: ClassMoments, weight: Tensor, bias: Tensor | None) -> Tensor:
    check_classifier(weight, bias, moments.num_classes, moments.feature_dim)
    seen = moments.counts.nonzero().flatten()
    if len(seen) == 0:
        raise Undefined("no samples were seen")
    mean = moments.global_mean
    rows = Rows(weight.detach().to(mean.device))
    logits = torch.cat([rows.block(part) @ mean for part in rows.parts()])
    if bias is not None:
        logits = logits + bias.detach().to(mean)
    return logits[seen]
