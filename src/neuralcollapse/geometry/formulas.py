"""NC0..NC4 and their variants, each a pure function of class moments and a classifier (W, b).

Notation: K classes with samples, mu_k (d,) their means, mu_G the mean of the samples, M the K x d matrix of rows
`mu_k - mu_G`, `S_W = (1/N) sum_i (h_i - mu_y)(h_i - mu_y)'` averaged over samples,
`S_B = (1/K) sum_k (mu_k - mu_G)(mu_k - mu_G)'` averaged over classes, `E = (I - 11'/K)/sqrt(K-1)`.

Each function returns a float, and raises `neuralcollapse.errors.Undefined` if the measure has no value. Beside those
that take what a user has are those that `measures` takes (`nc1_of`), of centred means and matrices, which return a
tensor and so wait for no device. Nothing here costs more than O(K d^2 + d^3) time or O(K d + d^2) memory, and no
second K x d matrix is made when K is large. The measures over all pairs of classes, O(K^2 d) time, are in pairs.py.

Sources: [Zhu 2021] Zhu et al., NeurIPS 2021, arXiv 2105.02375. [Papyan 2020] Papyan, Han, Donoho,
PNAS 2020. [Galanti 2021] Galanti, Gyorgy, Hutter, arXiv 2112.15121. [Tirer 2023] Tirer, Huang,
Niles-Weed, ICML 2023.
"""

from __future__ import annotations

import torch
from torch import Tensor

from neuralcollapse.checks import check_classifier, check_features, check_finite, check_labels
from neuralcollapse.errors import InputError, Undefined
from neuralcollapse.geometry.matrix import BlockedMatrix, as_matrix, at_least_two, distance_to_etf
from neuralcollapse.geometry.means import CentredMeans
from neuralcollapse.geometry.moments import ClassMoments
from neuralcollapse.geometry.nearest import NearestMeans


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
    return float(nc0_of(as_matrix(weight)))


def nc1(moments: ClassMoments) -> float:
    r"""Variability collapse: :math:`\mathrm{tr}(S_W S_B^+)/K`, >= 0, goes to 0 under collapse.

    As published, S_W averages over samples, and S_B over classes about the mean of the samples. The pseudo-inverse
    keeps the at most K-1 directions that the class means span. It leaves out those along which all variance may be
    the rounding of the features' own dtype, which would add noise over noise (after a LayerNorm or a bottleneck whose
    dimension is below K-1); `measures` says how many. Source: [Zhu 2021], [Papyan 2020].
    """
    return float(nc1_of(CentredMeans(moments)))


def nc1_quotient(moments: ClassMoments) -> float:
    r"""Trace quotient :math:`\mathrm{tr} S_W / \mathrm{tr} S_B`, >= 0, goes to 0 under collapse.

    Averages as in `nc1`. Source: [Tirer 2023].
    """
    return float(nc1_quotient_of(CentredMeans(moments)))


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
    return float(nc3_distance_of(*_same_shape(weight, means)))


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
    return float(equinorm_of(as_matrix(vectors)))


def equiangularity(vectors: Tensor) -> float:
    """Standard deviation of the pairwise cosines (population), in [0, 1], goes to 0. Source: [Papyan 2020]."""
    return float(equiangularity_of(as_matrix(vectors)))


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


def nc0_of(weight: BlockedMatrix) -> Tensor:
    """`nc0` of the rows of a classifier."""
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


def nc1_of(means: CentredMeans) -> Tensor:
    """`nc1` of centred means."""
    return means.within_over_between / means.matrix.count


def nc1_quotient_of(means: CentredMeans) -> Tensor:
    """`nc1_quotient` of centred means."""
    return means.variances.sum() / means.matrix.norms.square().mean()


def nc3_distance_of(weight: BlockedMatrix, means: BlockedMatrix) -> Tensor:
    """`nc3_distance` of two matrices of one shape."""
    sizes = [torch.linalg.vector_norm(matrix.norms) for matrix in (weight, means)]
    if weight.directed == 0 or means.directed == 0:
        raise Undefined("the classifier's weight or the centred means are all zero")
    if weight.small:
        rows = weight.polar.unit * (weight.polar.lengths / sizes[0])[:, None]
        rows.addcmul_(means.polar.unit, (means.polar.lengths / sizes[1])[:, None], value=-1)
        return torch.linalg.vector_norm(rows)
    apart = weight.total(lambda part: (weight.block(part) / sizes[0] - means.block(part) / sizes[1]).square().sum())
    return apart.sqrt()


def equinorm_of(matrix: BlockedMatrix) -> Tensor:
    """`equinorm` of the rows."""
    if matrix.directed == 0:
        raise Undefined("all vectors are zero")
    shares = matrix.norms / matrix.norms.max()  # whose squares neither over- nor underflow
    return shares.std(correction=0) / shares.mean()


def equiangularity_of(matrix: BlockedMatrix) -> Tensor:
    """`equiangularity` of the rows.

    With K > d+1 from d x d matrices: the cosines sum to |sum_k u_k|^2, and their squares to |U'U|_F^2.
    """
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
    """`mean_logits`, after checking what was given."""
    check_classifier(weight, bias, moments.num_classes, moments.feature_dim)
    means = CentredMeans(moments)
    if len(means.seen) == 0:
        raise Undefined("no samples were seen")
    return mean_logits(BlockedMatrix(weight.detach().to(means.seen.device), means.seen), means, bias)


def mean_logits(weight: BlockedMatrix, means: CentredMeans, bias: Tensor | None) -> Tensor:
    """(K',) `b + W mu_G` of the classes seen, the rows of `weight`."""
    logits = weight.times(means.centre)
    return logits if bias is None else logits + means.values(bias.detach().to(means.centre))
