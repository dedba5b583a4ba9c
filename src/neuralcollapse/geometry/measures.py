"""NC0..NC4 and their variants, as pure functions of class moments and a classifier (W, b).

Notation: K classes with samples, mu_k (d,) their means, mu_G the mean of the samples, M the K x d matrix of rows
`mu_k - mu_G`, `S_W = (1/N) sum_i (h_i - mu_y)(h_i - mu_y)'` averaged over samples,
`S_B = (1/K) sum_k (mu_k - mu_G)(mu_k - mu_G)'` averaged over classes, `E = (I - 11'/K)/sqrt(K-1)`.

Each function returns a float, and raises `neuralcollapse.errors.Undefined` if the measure has no value; `measures`
gives NaN then, and one warning for each reason. Classes without samples are left out, and `measures` names them in a
warning. Nothing here costs more than O(K d^2 + d^3) time or O(K d + d^2) memory, and no second K x d matrix is made
when K is large. The measures over all pairs of classes, O(K^2 d) time, are in pairs.py.

Sources: [Zhu 2021] Zhu et al., NeurIPS 2021, arXiv 2105.02375. [Papyan 2020] Papyan, Han, Donoho,
PNAS 2020. [Galanti 2021] Galanti, Gyorgy, Hutter, arXiv 2112.15121. [Tirer 2023] Tirer, Huang,
Niles-Weed, ICML 2023.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from neuralcollapse.checks import check_classifier, check_features, check_finite, check_labels, in_one_piece
from neuralcollapse.errors import InputError, NeuralCollapseWarning, Undefined, listed
from neuralcollapse.geometry.class_shard import ClassShard, local_rows
from neuralcollapse.geometry.matrix import BlockedMatrix, as_matrix, at_least_two, distance_to_etf
from neuralcollapse.geometry.means import OVERFLOW, CentredMeans
from neuralcollapse.geometry.moments import ClassMoments, check_moments
from neuralcollapse.geometry.nearest import NearestMeans
from neuralcollapse.geometry.pairs import Estimate, cdnv, draw, excess_cosine
from neuralcollapse.geometry.sharded import ShardedMeans
from neuralcollapse.geometry.undefined import Reasons, whose

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
    "nc0",
    "nc_bias",
    "nc_bias_centered",
    "equinorm_weights",
    "equiangularity_weights",
    "max_equiangularity_weights",
)
WEIGHT_MEASURES = ("nc2", "nc0", "equinorm_weights", "equiangularity_weights", "max_equiangularity_weights")
"""Those of the weight alone, which are the same whatever the features are."""
PAIRWISE_MEASURES = ("nc1_cdnv", "max_equiangularity_means", "max_equiangularity_weights")


def measures(
    moments: ClassMoments | ClassShard,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    pairwise: bool | int = True,
) -> dict[str, float]:
    """All measures of the class moments and of the classifier, by name.

    Args:
        moments: moments of the features that the classifier receives. With a `ClassShard` all its ranks call this
            together and get the same result; weight and bias are then the rows of the rank's own classes, or DTensors
            that are split by rows.
        weight: (K, d) rows w_k of the classifier. Without it, the measures of the classifier are left out.
        bias: (K,); zero by default.
        pairwise: False leaves out the three measures over pairs of classes (`PAIRWISE_MEASURES`), whose cost grows
            with K^2. A number P takes them over a sample of P pairs, always the same; the result then has their
            standard errors ("nc1_cdnv_error" and so on) and "num_pairs". If there are at most P pairs, all are used.

    Returns:
        name -> float. A measure without a value is NaN, with one warning for each reason.

    Raises:
        InputError: weight or bias of the wrong shape or dtype, or not finite.
    """
    return _measures(moments, weight, bias, pairwise)


def measures_of(
    moments: ClassMoments,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    pairwise: bool | int = True,
    held_out: bool = False,
    layer: str = "",
    numbers: Tensor | None = None,
    means: CentredMeans | None = None,
) -> dict[str, float]:
    """`measures` of what a pass has seen.

    Args:
        moments: of the K classes that were measured.
        weight: (K, d) of these classes, or None.
        bias: (K,), or None.
        pairwise: as there.
        held_out: the features are those of a test set, and the classifier that of the training set: the measures of the
            weight alone are left out, and warnings say whose they are.
        layer: the name of an inner layer, with which warnings begin then. What they would say of the labels alone is
            left out, as it was said of the features that the classifier receives.
        numbers: (K,) by which warnings name the classes, where they are some of more.
        means: the centred means of the moments under these numbers, if they are at hand.
    """
    return _measures(moments, weight, bias, pairwise, held_out, layer, numbers, means)


def _measures(
    moments: ClassMoments | ClassShard,
    weight: Tensor | None,
    bias: Tensor | None,
    pairwise: bool | int,
    held_out: bool = False,
    layer: str = "",
    numbers: Tensor | None = None,
    means: CentredMeans | None = None,
) -> dict[str, float]:
    """`measures_of`, also of a `ClassShard`."""
    if isinstance(moments, ClassShard):
        weight, bias = local_rows(weight), local_rows(bias)
        means = ShardedMeans.agreed("measures", moments, weight, bias, pairwise=repr(pairwise))
    else:
        check_moments(moments)
        weight, bias = in_one_piece(weight), in_one_piece(bias)
        check_classifier(weight, bias, moments.num_classes, moments.feature_dim)
        means = means or CentredMeans(moments, numbers)
    sample = draw(len(means.seen), pairwise, means.seen.device)
    jobs: dict[str, Callable[[], Tensor | Estimate]] = {
        "nc1": lambda: _nc1(means),
        "nc1_quotient": lambda: _nc1_quotient(means),
        "nc1_cdnv": lambda: cdnv(means, sample),
        "nc2_means": lambda: distance_to_etf(means.matrix),
        "equinorm_means": lambda: _equinorm(means.matrix),
        "equiangularity_means": lambda: _equiangularity(means.matrix),
        "max_equiangularity_means": lambda: excess_cosine(means.matrix, sample),
    }
    if weight is not None:
        weights = means.rows(weight.detach().to(means.seen.device))
        logits = cache(lambda: _mean_logits(weights, means, bias))
        jobs |= {
            "nc2": lambda: distance_to_etf(weights),
            "nc3": lambda: distance_to_etf(weights, means.matrix),
            "nc3_distance": lambda: _nc3_distance(weights, means.matrix),
            "nc0": lambda: _nc0(weights),
            "nc_bias": lambda: torch.linalg.vector_norm(logits()),
            "nc_bias_centered": lambda: torch.linalg.vector_norm(logits() - logits().mean()),
            "equinorm_weights": lambda: _equinorm(weights),
            "equiangularity_weights": lambda: _equiangularity(weights),
            "max_equiangularity_weights": lambda: excess_cosine(at_least_two(weights), sample),
        }
    left_out = (*(PAIRWISE_MEASURES if pairwise is False else ()), *(WEIGHT_MEASURES if held_out else ()))
    jobs = {name: job for name, job in jobs.items() if name not in left_out}

    if len(means.seen) == 0:
        if not layer:
            text = f"{whose(held_out)}undefined (NaN): no samples were seen: {', '.join(jobs)}"
            warnings.warn(text, NeuralCollapseWarning, stacklevel=3)
        return dict.fromkeys(jobs, math.nan)
    found: dict[str, Tensor] = {}
    undefined = Reasons()
    for name, job in jobs.items():
        value = undefined.attempt([name], job, None)
        if isinstance(value, Estimate):
            value, error = value
            if error is not None:
                found[f"{name}_error"] = error
        if value is not None:
            found[name] = value
    read = torch.stack(list(found.values())).tolist() if found else []  # the device is waited for once
    values = dict.fromkeys(jobs, math.nan) | dict(zip(found, read, strict=True))
    for name in jobs:
        if name in found and not math.isfinite(values[name]):
            values[name] = math.nan
            undefined.add(OVERFLOW, [name])
    if sample is not None:
        values["num_pairs"] = float(len(sample.first))
    _warn(means, undefined, held_out, layer)
    return values


def _warn(means: CentredMeans, undefined: Reasons, held_out: bool, layer: str) -> None:
    features = whose(held_out, layer)
    if means.unseen and not layer:
        warnings.warn(
            f"{features}no samples of class{'es' * (len(means.unseen) > 1)} {listed(means.unseen)}: measured over the "
            f"{len(means.seen)} class{'es' * (len(means.seen) > 1)} seen (W cut to their rows, a simplex of as many)",
            NeuralCollapseWarning,
            stacklevel=4,
        )
    if means.single and not layer:
        warnings.warn(
            f"{features}every class has one sample: NC1 is 0 whatever the features, since nothing varies within a "
            "class",
            NeuralCollapseWarning,
            stacklevel=4,
        )
    undefined.warn(5, about=f"{features}undefined (NaN)")
    if means.left_out:
        warnings.warn(features + means.left_out, NeuralCollapseWarning, stacklevel=4)
    count, dim = len(means.seen), means.moments.feature_dim
    if count > dim + 1 and not held_out:  # of the training set that is said already
        floor = math.sqrt(2 - 2 * math.sqrt(dim / (count - 1)))
        warnings.warn(
            f"{features}K={count} classes in d={dim} dimensions hold no simplex ETF (needs d >= K-1): "
            f"nc2, nc2_means and nc3 cannot go below {floor:.4f}",
            NeuralCollapseWarning,
            stacklevel=4,
        )


def centred_means(moments: ClassMoments) -> Tensor:
    """(K, d) the rows `mu_k - mu_G` of the classes that have samples, in class order; mu_G is the mean of the samples.

    Rows that are rounding alone are zero.

    Raises:
        InputError: fewer than two classes have samples, or all class means coincide.
    """
    try:
        matrix = CentredMeans(moments).matrix
        return torch.where(matrix.norms[:, None] > 0, matrix.block(slice(None)), 0.0)
    except Undefined as reason:
        raise InputError(f"no centred class means: {reason}") from None


def nc0(weight: Tensor) -> float:
    r"""What the rows of the classifier have in common: :math:`|1^\top W|^2 / (K |W|_F^2)`, in [0, 1], goes to 0.

    It is the share of :math:`|W|_F^2` that lies in the mean of the rows: about 1/K for random rows, 1 for equal ones,
    0 for those of a simplex ETF. `NC2(W) >= |1'W|^2 / (K |WW'|_F) >= nc0`, so NC2 cannot vanish before it. Under a loss
    of the softmax, weight decay alone moves 1'W: see `neuralcollapse.ufm.row_sum_left`.

    Args:
        weight: (K, d) rows of the classifier.
    """
    return float(_nc0(as_matrix(weight)))


def nc1(moments: ClassMoments) -> float:
    r"""Variability collapse: :math:`\mathrm{tr}(S_W S_B^+)/K`, >= 0, goes to 0 under collapse.

    As published, S_W averages over samples, and S_B over classes about the mean of the samples. The pseudo-inverse
    keeps the at most K-1 directions that the class means span. It leaves out those along which all variance may be
    the rounding of the features' own dtype, which would add noise over noise (after a LayerNorm or a bottleneck whose
    dimension is below K-1); `measures` says how many. Source: [Zhu 2021], [Papyan 2020].
    """
    return float(_nc1(CentredMeans(moments)))


def nc1_quotient(moments: ClassMoments) -> float:
    r"""Trace quotient :math:`\mathrm{tr} S_W / \mathrm{tr} S_B`, >= 0, goes to 0 under collapse.

    Averages as in `nc1`. Source: [Tirer 2023].
    """
    return float(_nc1_quotient(CentredMeans(moments)))


def nc2(vectors: Tensor) -> float:
    r"""Distance to a simplex ETF: :math:`| V V^\top / |V V^\top|_F - E |_F`, in [0, 2], goes to 0.

    For the rows of a classifier this is NC2 of [Zhu 2021]; `measures` gives it for W ("nc2") and for the
    centred class means ("nc2_means"). Every class weighs the same. For K > d+1 it cannot go below
    `sqrt(2 - 2 sqrt(d/(K-1)))`.

    Args:
        vectors: (K, d).
    """
    return float(distance_to_etf(as_matrix(vectors)))


def nc3(weight: Tensor, means: Tensor) -> float:
    r"""Self-duality: :math:`| W M^\top / |W M^\top|_F - E |_F`, in [0, 2], goes to 0 under collapse.

    Every class weighs the same. Source: [Zhu 2021].

    Args:
        weight: (K, d) rows of the classifier.
        means: (K, d) centred class means (`centred_means`).
    """
    return float(distance_to_etf(*_same_shape(weight, means)))


def nc3_distance(weight: Tensor, means: Tensor) -> float:
    r"""Self-duality: :math:`| W/|W|_F - M/|M|_F |_F`, in [0, 2], goes to 0 under collapse. Source: [Papyan 2020]."""
    return float(_nc3_distance(*_same_shape(weight, means)))


def nc_bias(moments: ClassMoments, weight: Tensor, bias: Tensor | None = None) -> float:
    r""":math:`| b + W \mu_G |_2` over the classes seen, >= 0. Goes to 0 with a decay on the bias.

    As published. Without decay on the bias it need not vanish even at an exact optimum, since adding the same number to
    every logit changes nothing: see `nc_bias_centered`. Source: [Zhu 2021].
    """
    return float(torch.linalg.vector_norm(_logits_of(moments, weight, bias)))


def nc_bias_centered(moments: ClassMoments, weight: Tensor, bias: Tensor | None = None) -> float:
    r""":math:`| C (b + W \mu_G) |_2`, `C = I - 11'/K`: `nc_bias` without the part common to all logits; goes to 0."""
    logits = _logits_of(moments, weight, bias)
    return float(torch.linalg.vector_norm(logits - logits.mean()))


def equinorm(vectors: Tensor) -> float:
    """Standard deviation over mean of the K lengths (population), >= 0, goes to 0. Source: [Papyan 2020]."""
    return float(_equinorm(as_matrix(vectors)))


def equiangularity(vectors: Tensor) -> float:
    """Standard deviation of the pairwise cosines (population), in [0, 1], goes to 0. Source: [Papyan 2020]."""
    return float(_equiangularity(as_matrix(vectors)))


@torch.no_grad()
def nc4_disagreements(features: Tensor, predicted: Tensor, moments: ClassMoments) -> int:
    r"""The number of samples whose predicted class is not that of the nearest mean; over N this is NC4, and goes to 0.

    Distances are taken in float64, about the mean of the samples, to the means of the classes that have samples. Every
    sample weighs the same. Source: [Papyan 2020].

    Args:
        features: (N, d).
        predicted: (N,) the class with the largest logit.
        moments: moments of the whole data set, from an earlier pass.

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
    return int(NearestMeans(moments).disagreements(features, predicted))


def _nc0(weight: BlockedMatrix) -> Tensor:
    if weight.largest == 0:
        raise Undefined("the classifier's weight is all zero")

    def columns(part: slice) -> Tensor:
        rows = weight.block(part) / weight.largest  # whose squares cannot overflow
        return torch.stack([rows.sum(0), rows.square().sum(0)])

    if weight.small:
        common, squares = weight.polar.shares @ weight.polar.unit, weight.polar.shares.square()
    else:
        common, squares = weight.total(columns)
    share = common.square().sum() / squares.sum() / weight.count
    return share.clamp(max=1)  # above 1 by rounding alone


def _nc1(means: CentredMeans) -> Tensor:
    return means.within_over_between / means.matrix.count


def _nc1_quotient(means: CentredMeans) -> Tensor:
    return means.variances.sum() / means.matrix.norms.square().mean()


def _nc3_distance(weight: BlockedMatrix, means: BlockedMatrix) -> Tensor:
    sizes = [torch.linalg.vector_norm(matrix.norms) for matrix in (weight, means)]
    if weight.directed == 0 or means.directed == 0:
        raise Undefined("the classifier's weight or the centred means are all zero")
    if weight.small:
        rows = weight.polar.unit * (weight.polar.lengths / sizes[0])[:, None]
        rows.addcmul_(means.polar.unit, (means.polar.lengths / sizes[1])[:, None], value=-1)
        return torch.linalg.vector_norm(rows)
    apart = weight.total(lambda part: (weight.block(part) / sizes[0] - means.block(part) / sizes[1]).square().sum())
    return apart.sqrt()


def _equinorm(matrix: BlockedMatrix) -> Tensor:
    if matrix.directed == 0:
        raise Undefined("all vectors are zero")
    return matrix.norms.std(correction=0) / matrix.norms.mean()


def _equiangularity(matrix: BlockedMatrix) -> Tensor:
    """With K > d+1 from d x d matrices: the cosines sum to |sum_k u_k|^2, and their squares to |U'U|_F^2."""
    pairs = at_least_two(matrix).count * (matrix.count - 1)
    if matrix.small:
        cosines = matrix.with_directions().cosines
        mean = (cosines.sum() - cosines.trace()) / pairs
        return (cosines - mean).fill_diagonal_(0).square_().sum().div(pairs).sqrt()
    total = matrix.total(lambda part: matrix.unit(part).sum(0)).square().sum()
    mean = (total - matrix.count) / pairs
    squares = (matrix.gram_of(matrix.unit).square().sum() - matrix.count) / pairs
    return (squares - mean * mean).clamp(min=0).sqrt()


def _same_shape(weight: Tensor, means: Tensor) -> tuple[BlockedMatrix, BlockedMatrix]:
    """Both as matrices, after checking that they have as many rows and columns."""
    first, second = as_matrix(weight), as_matrix(means)
    shapes = (first.count, first.dim), (second.count, second.dim)
    if shapes[0] != shapes[1]:
        raise InputError(
            f"expected weight and means of the same shape (K, d), got {shapes[0]} and {shapes[1]}: one row for each "
            "class"
        )
    return first, second


def _logits_of(moments: ClassMoments, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`_mean_logits`, after checking what was given."""
    check_classifier(weight, bias, moments.num_classes, moments.feature_dim)
    means = CentredMeans(moments)
    if len(means.seen) == 0:
        raise Undefined("no samples were seen")
    return _mean_logits(BlockedMatrix(weight.detach().to(means.seen.device), means.seen), means, bias)


def _mean_logits(weight: BlockedMatrix, means: CentredMeans, bias: Tensor | None) -> Tensor:
    """(K',) `b + W mu_G` of the classes seen, the rows of `weight`."""
    logits = weight.times(means.centre)
    return logits if bias is None else logits + means.values(bias.detach().to(means.centre))
