"""The directional CDNV: variance along the line through two class means, over their squared distance."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from neuralcollapse.errors import InputError, Undefined
from neuralcollapse.geometry.matrix import BlockedMatrix
from neuralcollapse.geometry.means import CentredMeans
from neuralcollapse.geometry.moments import ClassMoments, check_moments
from neuralcollapse.geometry.pairs import draw, pair_distances, tile_distances
from neuralcollapse.geometry.sampling_noise import SamplingNoise, root
from neuralcollapse.geometry.undefined import Reasons

_APART = 2.0  # the least squared distance of two means, as a multiple of what their noise explains


@torch.no_grad()
def directional_cdnv(moments: ClassMoments, *, pairwise: bool | int = True, corrected: bool = True) -> float:
    r"""Variance along the line through two class means over their squared distance, >= 0, goes to 0 under collapse.

    The mean over pairs of classes of :math:`u^\top S u / |\mu_i - \mu_j|^2`, with u the unit vector along
    :math:`\mu_i - \mu_j` and S the pooled within-class covariance: the moments hold no other. The CDNV has the variance
    in all directions in its place; for telling two classes apart only this one counts, given enough samples:
    :math:`\Phi(-1 / (2 \sqrt{v}))` is the error of their nearest means at a directional CDNV of v.

    Both the distance and the variance along it are taken without the noise of the class means, unless `corrected` is
    False; S is the scatter over N - K then, else over N.

    Args:
        moments: of the features; at least two samples a class where it is corrected.
        pairwise: True for every pair of classes; a number P for a sample of P pairs.
        corrected: whether the noise of the means is subtracted.

    Returns:
        NaN, with a warning that says why, for fewer than two classes, a class of one sample where it is corrected, and
        two means that are equal or no further apart than their noise explains.

    Source: Luthra, Salunkhe, Galanti, arXiv 2603.03530, in the normalisation of `nc1_cdnv`: with (S_i + S_j)/2 for S.
    """
    check_moments(moments)
    draw(2, pairwise, moments.device)  # refuses what it cannot take before anything is undefined
    if pairwise is False:
        raise InputError("expected pairwise True or a number of pairs, got False: nothing would be left to measure")
    reasons = Reasons()
    value = reasons.attempt(
        ["directional_cdnv"], lambda: _over_pairs(CentredMeans(moments), pairwise, corrected), math.nan
    )
    reasons.warn()
    return value


def _over_pairs(means: CentredMeans, pairwise: bool | int, corrected: bool) -> float:
    moments, matrix = means.moments, means.matrix
    covariance = moments.scatter / means.counts.sum()
    inflation, across = torch.zeros_like(means.counts), torch.zeros_like(means.counts)
    if corrected:
        noise = SamplingNoise(means)
        covariance, inflation = noise.covariance, noise.inflation
        across = noise.square_trace * noise.scales / noise.counts
    along = BlockedMatrix(matrix.block(slice(None)) @ root(covariance))
    least = _APART * inflation + matrix.noise_squares + matrix.rounding**2 / 2

    def ratios(distances: Tensor, forms: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """The values of pairs; infinite where the means are not told apart."""
        apart = distances > least[first] + least[second]
        squares = (distances - inflation[first] - inflation[second]).square()
        forms = (forms - across[first] - across[second]).clamp(min=0)
        return torch.where(apart, forms / squares, torch.inf)

    numbers = torch.arange(matrix.count, device=inflation.device)
    sample = draw(matrix.count, pairwise, inflation.device)
    if sample is None:
        sums = []
        for first, second in matrix.tiles():
            places = numbers[first, None], numbers[None, second]
            distances, forms = (tile_distances(each, first, second) for each in (matrix, along))
            values = ratios(distances, forms, *places)
            if first == second:
                values.fill_diagonal_(0)
            sums.append(values.sum() * (1 if first == second else 2))
        value = torch.stack(sums).sum() / (matrix.count * (matrix.count - 1))
    else:
        found = [
            ratios(pair_distances(matrix, first, second), pair_distances(along, first, second), first, second)
            for first, second in sample.chunks(matrix.dim)
        ]
        value = torch.cat(found).mean()
    if bool(value.isinf()):
        raise Undefined("two class means are equal, or hardly further apart than the noise of their samples explains")
    return float(value)
