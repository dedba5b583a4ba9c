"""The error of the nearest mean of m samples a class, predicted for new classes from their moments.

An episode takes some of the classes, m labelled samples ("shots") of each, and classifies another sample x, of class y,
by the nearest of the m-shot means. With `delta = mu_j - mu_y` and features of covariances S_k, the margin to class j,

    Z_j = |x - mean_j|^2 - |x - mean_y|^2,

has the mean `|delta|^2 + (tr S_j - tr S_y)/m` and the variance

    4 delta'S_y delta + 4 delta'S_j delta/m + 4 tr(S_y S_j)/m + 2 tr S_j^2/m^2 + 4 tr S_y^2/m + 2 tr S_y^2/m^2;

with one covariance this is `4 D^2 s (1 + 1/m) + 8 tr S^2/m + 4 tr S^2/m^2`, s the variance along delta. For two classes
the margin is taken as normal, which overstates small errors at few shots (0.138 for 0.104). For more classes, x and
mean_y are drawn. Given them the distances to the other means are independent, and each nearly a chi-squared variable.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from neuralcollapse.checks import check_count, check_finite
from neuralcollapse.errors import InputError
from neuralcollapse.geometry.means import CentredMeans
from neuralcollapse.geometry.moments import ClassMoments, check_moments
from neuralcollapse.geometry.sampling_noise import SamplingNoise, root, unbiased_square_trace
from neuralcollapse.geometry.undefined import Reasons

_SETS = 200  # sets of classes that are drawn where there are more
_QUERIES = 256  # classes of the sample x that are looked at, where there are more
_DRAWS = 2**22  # margins drawn for a set of classes, at most
_CHUNK_VALUES = 2**22  # of them in memory at a time
_FEWEST, _MOST = 32, 4096  # draws for each class of x; in all
_TINY = 1e-150
_NORMAL = 1e8  # degrees of freedom from which a chi-squared variable is as good as normal
_MANY = 1e9  # shots that stand for any number


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

    The moments are those of classes that the network need not have seen in training, in any number of samples. The
    features are taken as normal; where they have heavy tails, more is wrong than predicted at many shots. For two
    classes with one covariance S, `D = |mu_1 - mu_2|` and s the variance along the line through the means, the error is

    .. math:: \Phi\left(-D^2 \Big/ \sqrt{4 D^2 s (1 + 1/m) + 8\,\mathrm{tr} S^2/m + 4\,\mathrm{tr} S^2/m^2}\right),

    the mean over pairs of classes. For more, it is taken over sets of classes, drawn with a fixed seed where there are
    many, and over the dependence of an episode's margins. Squared distances and variances are those of the population:
    the noise of the means that were measured is subtracted.

    Without `scatters`, the covariance of a class is the pooled one times its own share of variance,
    `(tr S_k / tr S) S`.

    Args:
        moments: of the features of the new classes, at least two samples of each that has any.
        shots: m, the labelled samples of each class in an episode.
        ways: the number of classes of an episode; None for all that have samples.
        scatters: (K, d, d) the covariance of each class, divided by n_k - 1, in place of the pooled one.

    Returns:
        The error, in [0, 1], with its limit for many shots. NaN, with a warning that says why, for fewer than two
        classes with samples, a class of one sample, or means that all coincide.

    Raises:
        InputError: shots below 1, more ways than classes, or scatters of the wrong shape or not finite.

    Source: the two-class formula follows Luthra, Salunkhe, Galanti, arXiv 2603.03530.
    """
    check_moments(moments)
    shots = check_count(shots, "shots", 1)
    means, reasons = CentredMeans(moments), Reasons()
    count = len(means.seen)
    ways = count if ways is None else check_count(ways, "ways", 2)
    if ways > max(count, 2):
        raise InputError(
            f"expected ways up to the {count} classes with samples, got {ways}: give fewer, or None for all"
        )
    episodes = reasons.attempt(["few_shot_error"], lambda: _Episodes(means, scatters), None)
    reasons.warn()
    if episodes is None:
        return FewShotError(math.nan, math.nan, shots, ways)
    errors = [episodes.of_two(each) if ways == 2 else episodes.of_many(each, ways) for each in (shots, _MANY)]
    return FewShotError(errors[0], min(errors), shots, ways)


class _Margins(NamedTuple):
    """Samples of class y against J others; squares of means are without their noise."""

    distances: Tensor  # (J,) |delta|^2
    line: Tensor  # (J,) delta'S_y delta
    line_other: Tensor  # (J,) delta'S_j delta
    both: Tensor  # (J,) tr(S_y S_j)
    shrink: Tensor  # (J,) the root of what delta'S_y delta is without noise, over what it is with it


class _Episodes:
    """The classes of the moments, ready for episodes; `Undefined` where they have no distances or no variances."""

    def __init__(self, means: CentredMeans, scatters: Tensor | None) -> None:
        self.means, self.matrix, self.noise = means, means.matrix, SamplingNoise(means)
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
        check_finite(scatters, "scatters")
        return scatters.to(self.rows)[self.means.seen]

    def along(self, query: int, others: Tensor) -> Tensor:
        """(J, r) rows whose products are `delta_i'S_y delta_j`, y the query."""
        if self.scatters is None:
            return (self.projected[others] - self.projected[query]) * self.noise.scales[query].sqrt()
        return (self.rows[others] - self.rows[query]) @ self.roots[query]

    def margins(self, query: int, others: Tensor, along: Tensor) -> _Margins:
        """The margins of a sample of class `query`."""
        noise, scales = self.noise, self.noise.scales
        delta = self.rows[others] - self.rows[query]
        distances = delta.square().sum(1) - noise.inflation[others] - noise.inflation[query]
        raw, own = along.square().sum(1), self.squares[query]
        if self.scatters is None:
            both = noise.square_trace * scales[query] * scales[others]
            line = raw - own / noise.counts[query] - both / noise.counts[others]
            line_other = line * scales[others] / scales[query].clamp(min=_TINY)
        else:
            both = (self.scatters[others] * self.scatters[query]).sum((1, 2))
            line = raw - own / noise.counts[query] - both / noise.counts[others]
            lost = both / noise.counts[query] + self.squares[others] / noise.counts[others]
            line_other = torch.einsum("jd,jde,je->j", delta, self.scatters[others], delta) - lost
        line, line_other, distances = (each.clamp(min=0) for each in (line, line_other, distances))
        return _Margins(distances, line, line_other, both, (line / raw.clamp(min=_TINY)).sqrt())

    def of_two(self, shots: float) -> float:
        """The mean over ordered pairs of classes."""
        count, part = self.matrix.count, 1 / shots
        everyone, total = torch.arange(count, device=self.rows.device), []
        queries = _some(count, _QUERIES if count > 4 * _QUERIES else count)
        for query in queries:
            others = everyone[everyone != query]
            found = self.margins(query, others, self.along(query, others))
            variance = 4 * (found.line + part * (found.line_other + found.both + self.squares[query]))
            variance += 2 * part**2 * (self.squares[others] + self.squares[query])
            mean = found.distances + part * (self.noise.traces[others] - self.noise.traces[query])
            total.append(torch.special.ndtr(-mean / variance.sqrt().clamp(min=_TINY)).mean())
        return float(torch.stack(total).mean())

    def of_many(self, shots: float, ways: int) -> float:
        """The mean over sets of classes, or over the one of all classes."""
        count, device = self.matrix.count, self.rows.device
        generator = torch.Generator().manual_seed(0)
        if math.comb(count, ways) <= _SETS:
            sets = [torch.tensor(each, device="cpu") for each in itertools.combinations(range(count), ways)]
        else:
            sets = [torch.randperm(count, generator=generator, device="cpu")[:ways] for _ in range(_SETS)]
        queries = _some(ways, min(_QUERIES, ways))
        draws = min(_MOST, max(_FEWEST, _DRAWS // (len(sets) * ways * len(queries))))
        shape = 2, draws * max(1, _MOST // draws), self.roots.shape[-1]
        pool = torch.randn(shape, dtype=torch.float64, generator=generator, device="cpu").to(device)
        right: list[Tensor] = []
        for chosen in (each.to(device) for each in sets):
            for query in queries:
                start = len(right) * draws % shape[1]
                others = torch.cat([chosen[:query], chosen[query + 1 :]])
                sample = pool[:, start : start + draws]
                right.append(self._right(int(chosen[query]), others, shots, *sample))
        return 1 - float(torch.stack(right).mean())

    def _right(self, query: int, others: Tensor, shots: float, sample: Tensor, mean: Tensor) -> Tensor:
        """The share of draws of a sample of class `query`, and of its class's m-shot mean, that come out right.

        Both are given as standard normal numbers (n, r), in the basis of the columns of S_y's root, which are
        orthogonal: along them the variances are `spectrum`.
        """
        part, along = 1 / shots, self.along(query, others)
        found = self.margins(query, others, along)
        root = self.roots[0] * self.noise.scales[query].sqrt() if self.scatters is None else self.roots[query]
        spectrum = root.square().sum(0)
        length = sample.square() @ spectrum
        nearest = length - 2 * math.sqrt(part) * (sample * mean) @ spectrum + part * mean.square() @ spectrum
        logs = torch.zeros_like(length)
        step = max(1, _CHUNK_VALUES // len(sample) // (1 if self.scatters is None else len(spectrum)))
        for start in range(0, len(others), step):
            rows = slice(start, start + step)
            numbers, shrink = others[rows], found.shrink[rows]
            first = length[:, None] - 2 * shrink * (sample @ along[rows].T) + found.distances[rows]
            if self.scatters is None:  # S_j is S_y times a number
                ratio = self.noise.scales[numbers] / self.noise.scales[query].clamp(min=_TINY)
                second, third = (
                    ratio**power
                    * (
                        (sample.square() @ spectrum ** (power + 1))[:, None]
                        - 2 * shrink * ((sample * spectrum**power) @ along[rows].T)
                        + shrink**2 * (along[rows].square() @ spectrum ** (power - 1))
                    )
                    for power in (1, 2)
                )
                cubes = ratio**3 * (spectrum**3).sum()
            else:
                apart = (sample @ root.T)[:, None] - shrink[:, None] * (self.rows[numbers] - self.rows[query])
                moved = torch.einsum("njd,jde->nje", apart, self.scatters[numbers])
                second, third = (moved * apart).sum(2), moved.square().sum(2)
                cubes = (self.roots[numbers].square().sum(1) ** 3).sum(1)
            first = first + part * self.noise.traces[numbers]
            second = 2 * part**2 * self.squares[numbers] + 4 * part * second.clamp(min=0)
            third = 8 * part**3 * cubes + 24 * part**2 * third.clamp(min=0)
            logs += _log_above(nearest[:, None], first, second, third).sum(1)
        return logs.exp().mean()


def _log_above(value: Tensor, mean: Tensor, variance: Tensor, third: Tensor) -> Tensor:
    """The log-probability that a squared distance with these three cumulants is above a value.

    By a chi-squared variable of the same cumulants (Pearson 1959), as a normal one (Wilson, Hilferty 1931).
    """
    freedom = torch.where(third > 0, 8 * variance**3 / third.square().clamp(min=_TINY), _NORMAL)
    freedom = freedom.clamp(min=1e-6, max=_NORMAL)
    away = (value - mean) / variance.sqrt().clamp(min=_TINY)
    ratio = (1 + away * (2 / freedom).sqrt()).clamp(min=0)
    part = 2 / (9 * freedom)
    return torch.special.log_ndtr((1 - part - ratio ** (1 / 3)) / part.sqrt())


def _some(count: int, most: int) -> list[int]:
    """So many of the numbers below `count`, evenly spread."""
    return [number * count // most for number in range(most)]
