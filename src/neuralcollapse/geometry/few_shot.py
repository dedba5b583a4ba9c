"""The error of the nearest mean of m samples a class, predicted for new classes from their moments.

An episode takes some of the classes, m labelled samples ("shots") of each, and classifies another sample x, of class y,
by the nearest of the m-shot means. With `D_j = |mu_j - mu_y|` the margin to class j,

    Z_j = |x - mean_j|^2 - |x - mean_y|^2,

has for features of covariances S_k the mean `D_j^2 + (tr S_j - tr S_y)/m` and the variance

    4 delta'S_y delta + 4 delta'S_j delta/m + 4 tr(S_y S_j)/m + 2 tr S_j^2/m^2 + 4 tr S_y^2/m + 2 tr S_y^2/m^2,

`delta = mu_j - mu_y`; with one covariance this is `4 D^2 s (1 + 1/m) + 8 tr S^2/m + 4 tr S^2/m^2`, s the variance
along delta. The margins are taken as normal. Two of them share the last two terms, through the mean of y, and
`4 delta_i'S_y delta_j`, through x. Given these two, the margins are independent: for many classes the share of right
answers is the mean, over draws of the two, of a product of normal probabilities.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from neuralcollapse.checks import check_count
from neuralcollapse.errors import InputError, Undefined
from neuralcollapse.geometry.means import CentredMeans
from neuralcollapse.geometry.moments import ClassMoments
from neuralcollapse.geometry.sampling_noise import SamplingNoise, root, unbiased_square_trace

_SETS = 400  # sets of classes that are drawn where there are more
_QUERIES = 256  # classes of the sample x that are looked at, where there are more
_DRAWS = 2**22  # margins drawn for a set of classes, at most
_CHUNK_VALUES = 2**22  # of them in memory at a time
_FEWEST, _MOST = 32, 1024  # draws for each class of x
_TINY = 1e-150


class FewShotError(NamedTuple):
    """A predicted error.

    Attributes:
        error: the share of samples whose nearest m-shot mean is not that of their class, in [0, 1].
        limit: the same with the class means themselves, for m without bound: what more shots cannot go below.
        shots: m.
        ways: the number of classes of an episode.
    """

    error: float
    limit: float
    shots: int
    ways: int


@torch.no_grad()
def few_shot_error(
    moments: ClassMoments, shots: int, ways: int | None = 2, *, scatters: Tensor | None = None
) -> FewShotError:
    r"""The error of nearest-mean classification from a few samples of each class, predicted without drawing an episode.

    The moments are those of classes that the network need not have seen in training, in any number of samples. For two
    classes with one covariance S, `D = |mu_1 - mu_2|` and s the variance along the line through the means, the error is

    .. math:: \Phi\left(-D^2 \Big/ \sqrt{4 D^2 s (1 + 1/m) + 8\,\mathrm{tr} S^2/m + 4\,\mathrm{tr} S^2/m^2}\right),

    the mean over pairs of classes. For more, it is taken over sets of classes, drawn with a fixed seed where there are
    many, and over the dependence of an episode's margins. Squared distances and variances are those of the population:
    the noise of the means that were measured is subtracted.

    Without `scatters`, the covariance of a class is the pooled one times its own share of variance,
    `(tr S_k / tr S) S`.

    Args:
        moments: of the features of the new classes, at least two samples a class.
        shots: m, the labelled samples of each class in an episode.
        ways: the number of classes of an episode; None for all that have samples.
        scatters: (K, d, d) the covariance of each class, divided by n_k - 1, in place of the pooled one.

    Returns:
        The error, in [0, 1], with its limit for many shots.

    Raises:
        InputError: fewer than two classes with two samples each, shots below 1, or more ways than classes.

    Source: the two-class formula follows Luthra, Salunkhe, Galanti, arXiv 2603.03530.
    """
    shots = check_count(shots, "shots", 1)
    episodes = _Episodes(moments, scatters)
    count = len(episodes.means.seen)
    ways = count if ways is None else check_count(ways, "ways", 2)
    if ways > count:
        raise InputError(
            f"expected ways up to the {count} classes with samples, got {ways}: give fewer, or None for all"
        )
    errors = [episodes.of_two(each) if ways == 2 else episodes.of_many(each, ways) for each in (shots, math.inf)]
    return FewShotError(errors[0], min(errors), shots, ways)


class _Margins(NamedTuple):
    """The margins of samples of one class to other classes: means (J,), and variances by where they come from."""

    mean: Tensor  # (J,)
    query: Tensor  # (J,) 4 delta'S_y delta
    own: Tensor  # (J,) of the mean of class j
    shared: Tensor  # () of the mean of class y
    shrink: Tensor  # (J,) what the noise of the measured means has added to the root of delta'S_y delta, as a factor


class _Episodes:
    """The classes of the moments, ready for episodes."""

    def __init__(self, moments: ClassMoments, scatters: Tensor | None) -> None:
        self.means = CentredMeans(moments)
        try:
            self.matrix = self.means.matrix
            self.noise = SamplingNoise(self.means)
        except Undefined as reason:
            raise InputError(f"no few-shot error: {reason}") from None
        self.rows = self.matrix.block(slice(None))
        self.scatters = None if scatters is None else self._checked(scatters)
        if self.scatters is None:
            self.roots = root(self.noise.covariance)[None]
            self.projected = self.rows @ self.roots[0]
            self.squares = self.noise.square_trace * self.noise.scales.square()
        else:
            self.roots = torch.stack([root(each) for each in self.scatters])
            freedom = (self.noise.counts - 1).tolist()
            pairs = zip(self.scatters, freedom, strict=True)
            self.squares = torch.stack([unbiased_square_trace(each, free) for each, free in pairs])

    def _checked(self, scatters: Tensor) -> Tensor:
        shape = (self.means.moments.num_classes, self.matrix.dim, self.matrix.dim)
        if not isinstance(scatters, Tensor) or tuple(scatters.shape) != shape or not scatters.is_floating_point():
            got = tuple(scatters.shape) if isinstance(scatters, Tensor) else type(scatters).__name__
            raise InputError(
                f"expected scatters of shape (K, d, d) = {shape}, got {got}: one covariance for each class"
            )
        return scatters.to(self.rows)[self.means.seen]

    def along(self, query: int, others: Tensor) -> Tensor:
        """(J, r) rows whose products are `delta_i'S_y delta_j`, y the query."""
        if self.scatters is None:
            return (self.projected[others] - self.projected[query]) * self.noise.scales[query].sqrt()
        return (self.rows[others] - self.rows[query]) @ self.roots[query]

    def margins(self, query: int, others: Tensor, along: Tensor, shots: float) -> _Margins:
        """The margins of a sample of class `query`."""
        noise, scales, part = self.noise, self.noise.scales, 1 / shots
        delta = self.rows[others] - self.rows[query]
        distances = delta.square().sum(1) - noise.inflation[others] - noise.inflation[query]
        raw = along.square().sum(1)
        own = self.squares[query]
        if self.scatters is None:
            both = noise.square_trace * scales[query] * scales[others]
            theirs = scales[others] / scales[query].clamp(min=_TINY)
            line = raw - own / noise.counts[query] - both / noise.counts[others]
            line_other = theirs * line
        else:
            both = (self.scatters[others] * self.scatters[query]).sum((1, 2))
            line = raw - own / noise.counts[query] - both / noise.counts[others]
            lost = both / noise.counts[query] + self.squares[others] / noise.counts[others]
            line_other = torch.einsum("jd,jde,je->j", delta, self.scatters[others], delta) - lost
        line, line_other, distances = (each.clamp(min=0) for each in (line, line_other, distances))
        return _Margins(
            distances + (noise.traces[others] - noise.traces[query]) * part,
            4 * line,
            4 * part * (line_other + both) + 2 * part**2 * self.squares[others],
            (4 * part + 2 * part**2) * own,
            (line / raw.clamp(min=_TINY)).sqrt(),
        )

    def of_two(self, shots: float) -> float:
        """The mean over ordered pairs of classes."""
        count = self.matrix.count
        everyone, total = torch.arange(count, device=self.rows.device), []
        queries = _some(count, _QUERIES if count > 4 * _QUERIES else count)
        for query in queries:
            others = everyone[everyone != query]
            found = self.margins(query, others, self.along(query, others), shots)
            total.append(_below_zero(found.mean, found.query + found.own + found.shared).mean())
        return float(torch.stack(total).mean())

    def of_many(self, shots: float, ways: int) -> float:
        """The mean over sets of classes, or over the one of all classes."""
        count, device = self.matrix.count, self.rows.device
        generator = torch.Generator().manual_seed(0)
        if math.comb(count, ways) <= _SETS:
            sets = list(map(torch.tensor, itertools.combinations(range(count), ways)))
        else:
            sets = [torch.randperm(count, generator=generator)[:ways] for _ in range(_SETS)]
        queries = _some(ways, min(_QUERIES, ways))
        draws = min(_MOST, max(_FEWEST, _DRAWS // (len(sets) * ways * len(queries))))
        right = []
        for chosen in (each.to(device) for each in sets):
            for query in queries:
                others = torch.cat([chosen[:query], chosen[query + 1 :]])
                right.append(self._right(int(chosen[query]), others, shots, draws, generator))
        return 1 - float(torch.stack(right).mean())

    def _right(self, query: int, others: Tensor, shots: float, draws: int, generator: torch.Generator) -> Tensor:
        """The share of episodes in which all margins of a sample of class `query` are above 0."""
        along = self.along(query, others)
        factor = along if len(others) > along.shape[1] else root(along @ along.T)
        sample = torch.randn(draws // 2, factor.shape[1] + 1, dtype=torch.float64, generator=generator).to(factor)
        sample = torch.cat([sample, -sample])  # the mean of the draws is then exact
        found = self.margins(query, others, along, shots)
        logs = torch.zeros(len(sample), dtype=torch.float64, device=factor.device)
        step = max(1, _CHUNK_VALUES // len(sample))
        for start in range(0, len(others), step):
            part = slice(start, start + step)
            centre = found.mean[part] + 2 * found.shrink[part] * (sample[:, :-1] @ factor[part].T)
            centre += found.shared.sqrt() * sample[:, -1:]
            logs += torch.special.log_ndtr(centre / found.own[part].sqrt().clamp(min=_TINY)).sum(1)
        return logs.exp().mean()


def _below_zero(mean: Tensor, variance: Tensor) -> Tensor:
    """The probability that a normal number is below zero; 1/2 for a number that is always zero."""
    return torch.special.ndtr(-mean / variance.sqrt().clamp(min=_TINY))


def _some(count: int, most: int) -> list[int]:
    """So many of the numbers below `count`, evenly spread."""
    return [number * count // most for number in range(most)]
