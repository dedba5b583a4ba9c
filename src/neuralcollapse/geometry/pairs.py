"""Measures that look at pairs of classes: at every pair by tiles, or at a sample of pairs with its standard error."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from neuralcollapse.checks import check_count
from neuralcollapse.errors import InputError
from neuralcollapse.geometry.means import Means
from neuralcollapse.geometry.moments import ClassMoments
from neuralcollapse.geometry.rows import Rows, at_least_two, tiles
from neuralcollapse.geometry.undefined import Undefined, nan_when_undefined

_CHUNK_VALUES = 2**20  # of the rows of sampled pairs that are held at a time
_CANCELS = 1e-6  # of |m_i|^2 + |m_j|^2: a squared distance below it is taken from differences


class Estimate(NamedTuple):
    """A mean over pairs, and its standard error where the pairs are a sample (NaN where they are all)."""

    mean: float
    error: float = math.nan


class ClassPair(NamedTuple):
    """Two classes and their class-distance normalised variance, infinite where their means coincide."""

    first: int
    second: int
    cdnv: float


class Sample(NamedTuple):
    """Pairs of different numbers below K, (P,) and (P,), each pair as likely, drawn with replacement."""

    first: Tensor
    second: Tensor

    def chunks(self, dim: int) -> list[Sample]:
        """The pairs in parts whose rows of `dim` values take little memory."""
        size = max(1, _CHUNK_VALUES // dim)
        return [Sample(*both) for both in zip(self.first.split(size), self.second.split(size), strict=True)]


def draw(count: int, pairwise: bool | int, device: torch.device) -> Sample | None:
    """A sample of `pairwise` pairs of `count` classes, always the same; None where all pairs are meant, or fewer.

    Raises:
        InputError: neither a bool nor a number of at least 2.
    """
    if isinstance(pairwise, bool):
        return None
    if isinstance(pairwise, float):
        raise InputError(f"expected pairwise True, False or a number of pairs, got {pairwise!r}: give an integer")
    pairs = check_count(pairwise, "pairwise (pairs of classes to sample)", 2)
    if pairs >= count * (count - 1) // 2:
        return None
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(count, (pairs,), generator=generator)
    second = torch.randint(count - 1, (pairs,), generator=generator)
    second += second >= first
    return Sample(first.to(device), second.to(device))


@nan_when_undefined
def nc1_cdnv(moments: ClassMoments, means: Means | None = None) -> float:
    r"""Class-distance normalised variance, >= 0, goes to 0 under collapse.

    Mean over pairs of classes of :math:`(V_i + V_j) / (2 |\mu_i - \mu_j|^2)` with V_k the mean of
    :math:`|h - \mu_k|^2` in class k: every pair of classes weighs the same. Source: [Galanti 2021].
    """
    return cdnv(means or Means(moments), None).mean


@nan_when_undefined
def max_equiangularity(vectors: Tensor | Rows) -> float:
    """Mean over pairs of |cos + 1/(K-1)|, in [0, 2], goes to 0 under collapse. Source: [Papyan 2020]."""
    return excess_cosine(at_least_two(vectors), None).mean


def worst_pairs(moments: ClassMoments, count: int = 10, *, pairwise: bool | int = True) -> list[ClassPair]:
    r"""The pairs of classes with the largest :math:`(V_i + V_j) / (2 |\mu_i - \mu_j|^2)`, the worst first.

    Args:
        moments: of the features.
        count: pairs wanted.
        pairwise: True to look at every pair, by tiles, O(K^2 d) time; a number P to look at a sample of P pairs.

    Raises:
        InputError: fewer than two classes with samples, all class means equal, or a wrong count.
    """
    check_count(count, "count", 1)
    means = Means(moments)
    try:
        rows, variances = means.centred, _variances(means)
        least = _least(rows)
    except Undefined as reason:
        raise InputError(f"no pairs of classes to compare: {reason}") from None
    best = (torch.empty(0), torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64))

    def keep(values: Tensor, first: Tensor, second: Tensor) -> None:
        nonlocal best
        joined = [torch.cat([old.to(new), new]) for old, new in zip(best, (values, first, second), strict=True)]
        top = joined[0].topk(min(count, len(joined[0]))).indices
        best = joined[0][top], joined[1][top], joined[2][top]

    sample = draw(rows.count, pairwise, rows.norms.device)
    if sample is None:
        for first, second in tiles(rows):
            distances = _tile_distances(rows, first, second)
            distances[distances <= least[first, None] + least[None, second]] = 0
            ratios = _ratios(distances, variances[first, None], variances[None, second])
            if first == second:
                ratios = ratios.triu(1)
            values, places = ratios.flatten().topk(min(count, ratios.numel()))
            keep(values, first.start + places // ratios.shape[1], second.start + places % ratios.shape[1])
    else:
        ordered = torch.stack(sample).sort(0).values.unique(dim=1)
        for left, right in Sample(*ordered).chunks(rows.dim):
            distances = _pair_distances(rows, left, right)
            distances[distances <= least[left] + least[right]] = 0
            keep(_ratios(distances, variances[left], variances[right]), left, right)
    pairs = min(count, rows.count * (rows.count - 1) // 2)
    names = means.seen.cpu()
    found = zip(*(part.tolist() for part in best), strict=True)
    return [ClassPair(int(names[int(i)]), int(names[int(j)]), value) for value, i, j in found][:pairs]


def cdnv(means: Means, sample: Sample | None) -> Estimate:
    """The mean of `nc1_cdnv` over all pairs, or over a sample."""
    rows, variances = means.centred, _variances(means)
    least = _least(rows)

    def on_tile(first: slice, second: slice) -> Tensor:
        distances = _tile_distances(rows, first, second)
        equal = (distances <= least[first, None] + least[None, second]).nonzero()
        if len(equal):
            raise _coincide(means, first.start + int(equal[0, 0]), second.start + int(equal[0, 1]))
        return (variances[first, None] + variances[None, second]) / (2 * distances)

    def on_pairs(first: Tensor, second: Tensor) -> Tensor:
        distances = _pair_distances(rows, first, second)
        equal = (distances <= least[first] + least[second]).nonzero()
        if len(equal):
            raise _coincide(means, int(first[equal[0, 0]]), int(second[equal[0, 0]]))
        return (variances[first] + variances[second]) / (2 * distances)

    return _mean(rows, sample, on_tile, on_pairs)


def excess_cosine(rows: Rows, sample: Sample | None) -> Estimate:
    """The mean of `max_equiangularity` over all pairs, or over a sample."""
    least = 1 / (rows.count - 1)

    def on_tile(first: slice, second: slice) -> Tensor:
        excess = (rows.unit(first) @ rows.unit(second).T).add_(least).abs_()
        return excess.fill_diagonal_(0) if first == second else excess

    def on_pairs(first: Tensor, second: Tensor) -> Tensor:
        return (rows.unit(first) * rows.unit(second)).sum(1).add_(least).abs_()

    return _mean(rows, sample, on_tile, on_pairs)


def _mean(
    rows: Rows,
    sample: Sample | None,
    on_tile: Callable[[slice, slice], Tensor],
    on_pairs: Callable[[Tensor, Tensor], Tensor],
) -> Estimate:
    if sample is None:
        total = sum(float(on_tile(*tile).sum()) * (1 if tile[0] == tile[1] else 2) for tile in tiles(rows))
        return Estimate(total / (rows.count * (rows.count - 1)))
    values = torch.cat([on_pairs(*chunk) for chunk in sample.chunks(rows.dim)])
    return Estimate(float(values.mean()), float(values.std()) / math.sqrt(len(values)))


def _variances(means: Means) -> Tensor:
    """(K,) V_k of the classes seen."""
    moments = means.moments
    return (moments.spreads / moments.counts.clamp(min=1))[means.seen]


def _least(rows: Rows) -> Tensor:
    """(K,) of which a squared distance that is rounding's alone does not exceed the two classes' sum."""
    return rows.noise_squares + rows.rounding**2 / 2


def _tile_distances(rows: Rows, first: slice, second: slice) -> Tensor:
    """|m_i - m_j|^2 for i in `first` and j in `second`; infinite for i = j."""
    left, right = rows.block(first), rows.block(second)
    sizes = left.square().sum(1)[:, None] + right.square().sum(1)[None]
    distances = sizes - 2 * (left @ right.T)
    if first == second:
        distances.fill_diagonal_(math.inf)
    near = (distances < _CANCELS * sizes).nonzero()  # here the expansion cancels: take differences instead
    for pairs in near.split(max(1, _CHUNK_VALUES // rows.dim)):
        distances[pairs[:, 0], pairs[:, 1]] = (left[pairs[:, 0]] - right[pairs[:, 1]]).square().sum(1)
    return distances


def _pair_distances(rows: Rows, first: Tensor, second: Tensor) -> Tensor:
    return (rows.block(first) - rows.block(second)).square().sum(1)


def _ratios(distances: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """(V_i + V_j) / (2 |m_i - m_j|^2), infinite where the means coincide."""
    return torch.where(distances > 0, (first + second) / (2 * distances), math.inf)


def _coincide(means: Means, first: int, second: int) -> Undefined:
    return Undefined(f"classes {int(means.seen[first])} and {int(means.seen[second])} have the same mean")
