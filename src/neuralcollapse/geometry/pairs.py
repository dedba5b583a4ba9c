"""Measures over pairs of classes: over every pair, in tiles, or over a sample of pairs, with the standard error."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from neuralcollapse.checks import check_class_names, check_count
from neuralcollapse.errors import InputError, Undefined
from neuralcollapse.geometry.intake import waits_for_nothing
from neuralcollapse.geometry.matrix import BlockedMatrix, as_matrix, at_least_two
from neuralcollapse.geometry.means import CentredMeans
from neuralcollapse.geometry.moments import ClassMoments, check_moments
from neuralcollapse.geometry.sampling_noise import SamplingNoise

_CHUNK_VALUES = 2**20  # values of the rows of sampled pairs held in memory at a time
_CANCELS = 1e-6  # a squared distance below this share of |m_i|^2 + |m_j|^2 is computed from differences


class Estimate(NamedTuple):
    """A mean over pairs, and its standard error if the pairs are a sample, as tensors that nothing has waited for."""

    mean: Tensor
    error: Tensor | None = None


class _Pair(NamedTuple):
    first: int
    second: int
    cdnv: float


class ClassPair(_Pair):
    """Two classes and their class-distance normalised variance, infinite where their means coincide.

    Attributes:
        first: the number of a class.
        second: that of another one.
        cdnv: of the two.
        names: their names; None if those are not known. They are no part of the tuple.
    """

    names: tuple[str, str] | None = None

    def __repr__(self) -> str:
        named = "" if self.names is None else f", names={self.names!r}"
        return f"ClassPair(first={self.first}, second={self.second}, cdnv={self.cdnv!r}{named})"


class Sample(NamedTuple):
    """P pairs of different class numbers, (P,) and (P,), drawn uniformly with replacement."""

    first: Tensor
    second: Tensor

    def chunks(self, dim: int) -> list[Sample]:
        """The pairs in chunks whose rows of `dim` values take little memory."""
        size = max(1, _CHUNK_VALUES // dim)
        return [Sample(*both) for both in zip(self.first.split(size), self.second.split(size), strict=True)]


def draw(count: int, pairwise: bool | int, device: torch.device) -> Sample | None:
    """A sample of `pairwise` pairs of `count` classes, always the same; None to look at all pairs.

    Raises:
        InputError: `pairwise` is neither a bool nor an integer of at least 2.
    """
    if isinstance(pairwise, bool):
        return None
    if isinstance(pairwise, float):
        raise InputError(f"expected pairwise True, False or a number of pairs, got {pairwise!r}: give an integer")
    pairs = check_count(pairwise, "pairwise (pairs of classes to sample)", 2)
    if pairs >= count * (count - 1) // 2:
        return None
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(count, (pairs,), generator=generator, device="cpu")
    second = torch.randint(count - 1, (pairs,), generator=generator, device="cpu")
    second += second >= first
    return Sample(first.to(device), second.to(device))


def nc1_cdnv(moments: ClassMoments) -> float:
    r"""Class-distance normalised variance, >= 0, goes to 0 under collapse.

    The mean over pairs of classes of :math:`(V_i + V_j) / (2 |\mu_i - \mu_j|^2)`, with V_k the mean of
    :math:`|h - \mu_k|^2` in class k. Every pair of classes weighs the same. Source: [Galanti 2021].
    """
    return float(cdnv(CentredMeans(moments), None).mean)


def max_equiangularity(vectors: Tensor) -> float:
    """The mean over pairs of `|cos + 1/(K-1)|`, in [0, 2], goes to 0 under collapse. Source: [Papyan 2020]."""
    return float(excess_cosine(at_least_two(as_matrix(vectors)), None).mean)


def worst_pairs(
    moments: ClassMoments,
    count: int = 10,
    *,
    pairwise: bool | int = True,
    names: Sequence[str] | Mapping[int, str] | None = None,
) -> list[ClassPair]:
    r"""The pairs of classes with the largest :math:`(V_i + V_j) / (2 |\mu_i - \mu_j|^2)`, the worst first.

    Args:
        moments: of the features.
        count: how many pairs to return.
        pairwise: True to look at every pair, O(K^2 d) time; a number P to look at a sample of P pairs.
        names: of the K classes, in their order or by number; the pairs then have the attribute `names`.

    Raises:
        InputError: fewer than two classes with samples, all class means equal, a count below 1, or names of another
            number of classes.
    """
    check_moments(moments)
    check_count(count, "count", 1)
    known = None if names is None else check_class_names(names, moments.num_classes)
    return worst_pairs_of(CentredMeans(moments), count, pairwise, known)


def worst_pairs_of(
    means: CentredMeans, count: int, pairwise: bool | int, known: Sequence[str] | None
) -> list[ClassPair]:
    """`worst_pairs` of these means, with the names that are `known` of all K classes of the moments."""
    try:
        matrix, variances = means.matrix, means.class_variances
        least = rounding_squares(matrix)
    except Undefined as reason:
        raise InputError(f"no pairs of classes to compare: {reason}") from None
    best = (variances.new_empty(0), means.seen.new_empty(0), means.seen.new_empty(0))

    def keep(values: Tensor, first: Tensor, second: Tensor) -> None:
        nonlocal best
        joined = [torch.cat([old.to(new), new]) for old, new in zip(best, (values, first, second), strict=True)]
        top = joined[0].topk(min(count, len(joined[0]))).indices
        best = joined[0][top], joined[1][top], joined[2][top]

    sample = draw(matrix.count, pairwise, matrix.norms.device)
    if sample is None:
        for first, second in matrix.tiles():
            distances = tile_distances(matrix, first, second)
            distances[distances <= least[first, None] + least[None, second]] = 0
            cdnvs = ratios(distances, variances[first, None], variances[None, second])
            if first == second:
                cdnvs = cdnvs.triu(1)
            values, places = cdnvs.flatten().topk(min(count, cdnvs.numel()))
            keep(values, first.start + places // cdnvs.shape[1], second.start + places % cdnvs.shape[1])
    else:
        ordered = torch.stack(sample).sort(0).values.unique(dim=1)
        for left, right in Sample(*ordered).chunks(matrix.dim):
            distances = pair_distances(matrix, left, right)
            distances[distances <= least[left] + least[right]] = 0
            keep(ratios(distances, variances[left], variances[right]), left, right)
    pairs = min(count, matrix.count * (matrix.count - 1) // 2)
    numbers = means.seen.cpu()
    found = zip(*(part.tolist() for part in best), strict=True)
    worst = [ClassPair(int(numbers[int(i)]), int(numbers[int(j)]), value) for value, i, j in found][:pairs]
    if known is not None:
        for pair in worst:
            pair.names = known[pair.first], known[pair.second]
    return worst


def cdnv(
    means: CentredMeans, sample: Sample | None, noise: SamplingNoise | None = None, apart: float = 1.0
) -> Estimate:
    """The mean of `nc1_cdnv` over all pairs, or over a sample; less the sampling noise of the means, where it is given.

    `Undefined` when two means are equal, or their squared distance is at most `apart` times their noise.
    """
    matrix = means.matrix
    least = rounding_squares(matrix)
    inflation = torch.zeros_like(least) if noise is None else noise.inflation
    variances = means.class_variances if noise is None else noise.traces
    least = least + apart * inflation
    at_once = waits_for_nothing(least.device)  # then a tile is corrected as it comes
    flags = torch.zeros(2, dtype=torch.bool, device=least.device)  # any nearly equal means, any equal ones

    def on_tile(first: slice, second: slice, exact: bool = at_once) -> Tensor:
        nonlocal flags
        distances, near = _expanded(matrix, first, second)
        if exact:
            _correct(matrix, distances, near, first, second)
        equal = distances <= least[first, None] + least[None, second]
        flags = flags | torch.stack([near.any(), equal.any()])
        if noise is not None:
            distances -= inflation[first, None] + inflation[None, second]
        return (variances[first, None] + variances[None, second]) / (2 * distances)

    def on_pairs(first: Tensor, second: Tensor) -> Tensor:
        nonlocal flags
        distances = pair_distances(matrix, first, second)
        flags = flags | (distances <= least[first] + least[second]).any()
        return (variances[first] + variances[second]) / (2 * (distances - inflation[first] - inflation[second]))

    found = _mean(matrix, sample, on_tile, on_pairs)
    near_ones, equal_ones = matrix.joined(flags.double()).tolist()  # the device is waited for once, not for every tile
    if near_ones and sample is None and not at_once:
        flags = torch.zeros_like(flags)
        found = _mean(matrix, sample, partial(on_tile, exact=True), on_pairs)
        equal_ones = float(matrix.joined(flags[1].double()))
    if equal_ones:
        raise _coincide(means, sample, least, noise is not None)
    return found


def excess_cosine(matrix: BlockedMatrix, sample: Sample | None) -> Estimate:
    """The mean of `max_equiangularity` over all pairs, or over a sample."""
    least = 1 / (matrix.count - 1)
    matrix.with_directions()

    def on_tile(first: slice, second: slice) -> Tensor:
        cosines = matrix.cosines[first, second] if matrix.small else matrix.unit(first) @ matrix.unit(second).T
        excess = (cosines + least).abs_()
        return excess.fill_diagonal_(0) if first == second else excess

    def on_pairs(first: Tensor, second: Tensor) -> Tensor:
        return (matrix.unit(first) * matrix.unit(second)).sum(1).add_(least).abs_()

    return _mean(matrix, sample, on_tile, on_pairs)


def _mean(
    matrix: BlockedMatrix,
    sample: Sample | None,
    on_tile: Callable[[slice, slice], Tensor],
    on_pairs: Callable[[Tensor, Tensor], Tensor],
) -> Estimate:
    if sample is None:
        sums = [on_tile(*tile).sum() * (1 if tile[0] == tile[1] else 2) for tile in matrix.tiles()]
        total = torch.stack([torch.zeros_like(matrix.norms[0]), *sums]).sum()
        return Estimate(matrix.joined(total) / (matrix.count * (matrix.count - 1)))
    values = torch.cat([on_pairs(*chunk) for chunk in sample.chunks(matrix.dim)])
    return Estimate(values.mean(), values.std() / math.sqrt(len(values)))


def rounding_squares(matrix: BlockedMatrix) -> Tensor:
    """(K,) bounds: a squared distance of at most the sum of the bounds of two classes is rounding alone."""
    return matrix.noise_squares + matrix.rounding**2 / 2


def tile_distances(matrix: BlockedMatrix, first: slice, second: slice) -> Tensor:
    """|m_i - m_j|^2 for i in `first` and j in `second`; infinite for i = j."""
    distances, near = _expanded(matrix, first, second)
    _correct(matrix, distances, near, first, second)
    return distances


def _expanded(matrix: BlockedMatrix, first: slice, second: slice) -> tuple[Tensor, Tensor]:
    """`|m_i|^2 + |m_j|^2 - 2 <m_i, m_j>`, infinite for i = j, and where that cancels."""
    left, right = matrix.block(first), matrix.block(second)
    sizes = left.square().sum(1)[:, None] + right.square().sum(1)[None]
    distances = torch.addmm(sizes, left, right.T, alpha=-2)
    if first == second:
        distances.fill_diagonal_(math.inf)
    return distances, distances < sizes.mul_(_CANCELS)


def _correct(matrix: BlockedMatrix, distances: Tensor, near: Tensor, first: slice, second: slice) -> None:
    """Replace the distances that cancel by those of differences, which do not."""
    found = near.nonzero()
    if len(found) == 0:
        return
    left, right = matrix.block(first), matrix.block(second)
    for pairs in found.split(max(1, _CHUNK_VALUES // matrix.dim)):
        distances[pairs[:, 0], pairs[:, 1]] = (left[pairs[:, 0]] - right[pairs[:, 1]]).square().sum(1)


def pair_distances(matrix: BlockedMatrix, first: Tensor, second: Tensor) -> Tensor:
    """(P,) |m_i - m_j|^2 for pairs of rows, from their differences."""
    return (matrix.block(first) - matrix.block(second)).square().sum(1)


def ratios(distances: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """`(V_i + V_j) / (2 |m_i - m_j|^2)`, infinite where the means coincide."""
    return torch.where(distances > 0, (first + second) / (2 * distances), math.inf)


def _coincide(means: CentredMeans, sample: Sample | None, least: Tensor, noisy: bool) -> Undefined:
    """Which classes have the same mean, or one within the noise, looked for again now that some do."""
    matrix = means.matrix
    if sample is None:
        place = math.inf
        for first, second in matrix.tiles():
            distances = tile_distances(matrix, first, second)
            equal = (distances <= least[first, None] + least[None, second]).nonzero()
            if len(equal):
                ordered = (equal + equal.new_tensor([first.start, second.start])).sort(1).values
                place = min(place, int((ordered[:, 0] * matrix.count + ordered[:, 1]).min()))
        pair = divmod(int(matrix.least(place)), matrix.count)
    else:
        for left, right in sample.chunks(matrix.dim):
            equal = (pair_distances(matrix, left, right) <= least[left] + least[right]).nonzero()
            if len(equal):
                pair = int(left[equal[0, 0]]), int(right[equal[0, 0]])
                break
    if noisy:
        return hardly_apart(means, *pair)
    return Undefined("classes {} and {} have the same mean".format(*means.called(means.seen[list(pair)])))


def hardly_apart(means: CentredMeans, first: int, second: int) -> Undefined:
    """Why two means, at these places of the classes seen, cannot be told apart."""
    names = "classes {} and {}".format(*means.called(means.seen[[first, second]]))
    return Undefined(f"the means of {names} are hardly further apart than the noise of so few samples explains")
