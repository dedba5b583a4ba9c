r"""Hyperspherical uniformity: how evenly vectors are spread over the sphere, by logarithmic and Riesz kernels.

Both kernels grow without bound as two vectors come together. All sums are of powers relative to the largest so far, so
that nothing overflows whatever the power, and of differences from the mean, so that a spread of 1e-10 is not lost.

Sources: [Liu 2023] Liu et al., Generalizing and Decoupling Neural Collapse via Hyperspherical Uniformity Gap, ICLR
2023, arXiv 2303.06484. [Wu 2024] Wu, Papyan, Linguistic Collapse, NeurIPS 2024, arXiv 2405.17767.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from neuralcollapse.errors import InputError, Undefined
from neuralcollapse.geometry.matrix import BlockedMatrix, as_matrix, at_least_two
from neuralcollapse.geometry.means import CentredMeans
from neuralcollapse.geometry.moments import ClassMoments, check_moments
from neuralcollapse.geometry.pairs import draw
from neuralcollapse.geometry.undefined import Reasons

_CHUNK_VALUES = 2**20  # values of the rows of close pairs held in memory at a time
_POWERS = 1e-6, 1e6  # of s in size: below, the digits are those of rounding; above, they may overflow
_CANCELS = 1e-6  # a squared distance below this is computed from differences
UNIFORMITY_KEYS = ("uniformity_log", "uniformity_log_cov", "uniformity_riesz", "uniformity_riesz_cov")


class Uniformity(NamedTuple):
    r"""Kernels of the distances between unit vectors, over pairs (`neuralcollapse.uniformity`).

    Attributes:
        log: the mean of :math:`\log(1/|u_i - u_j|)`. For K <= d+1 no vectors have less than those of a simplex, whose
            value is `log(sqrt((K-1)/(2K)))`.
        log_cov: the coefficient of variation of that: the standard deviation (population) over the absolute mean. It
            goes to 0 under collapse.
        riesz: :math:`(\mathrm{mean}\,|u_i - u_j|^{-s})^{1/s}`, a mean of inverse distances that no power s makes
            overflow; `riesz**s` is the mean of the Riesz kernel. A simplex has `sqrt((K-1)/(2K))` for every s, the
            least possible for K <= d+1.
        riesz_cov: the coefficient of variation of the Riesz kernel itself; goes to 0 under collapse.
        s: the power.
        num_pairs: the number of pairs i < j looked at, or drawn.
        log_error: the standard error of `log` where pairs were drawn, else 0.
        riesz_error: that of `riesz`.
    """

    log: float
    log_cov: float
    riesz: float
    riesz_cov: float
    s: float
    num_pairs: int
    log_error: float = 0.0
    riesz_error: float = 0.0


@torch.no_grad()
def uniformity(vectors: ClassMoments | Tensor, *, s: float = 2.0, pairwise: bool | int = True) -> Uniformity:
    r"""How evenly the centred class means are spread over the sphere: kernels of their distances at length one.

    Every pair of classes weighs the same. The kernels are :math:`\log(1/|u_i - u_j|)` and :math:`1/|u_i - u_j|^s`, with
    :math:`u_k = (\mu_k - \mu_G)/|\mu_k - \mu_G|` and mu_G the mean of the samples. All pairs are looked at in tiles, in
    O(K^2 d) time, unless a sample is asked for.

    Args:
        vectors: moments of features, of which the classes that have samples count; or a (K, d) floating-point tensor
            whose rows are taken as they are, such as a classifier's weight.
        s: the power of the Riesz kernel, a number from 1e-6 to 1e6 in size; below 0 it is one of distances. [Wu 2024]
            and the package neural-collapse take d-2.
        pairwise: True for all pairs; a number P for a sample of P pairs, always the same, with standard errors.

    Returns:
        The means and coefficients of variation. Where two vectors have the same direction, a vector is zero, or there
        is one class, all are NaN, with a warning that says why.

    Raises:
        InputError: not moments or vectors, another s, or another `pairwise`.

    Source: [Liu 2023], [Wu 2024].

    >>> round(uniformity(torch.eye(3).double()).riesz ** 2, 6)  # all distances are sqrt(2)
    0.5
    """
    check_power(s)
    if pairwise is False:
        raise InputError("expected pairwise True or a number of pairs, got False: nothing would be left to measure")
    if hasattr(vectors, "moments"):
        check_moments(vectors, "vectors")
    given = CentredMeans(vectors) if isinstance(vectors, ClassMoments) else as_matrix(vectors)
    reasons = Reasons()

    def found() -> Uniformity:
        return uniformity_of(given.matrix if isinstance(given, CentredMeans) else given, s, pairwise)

    draw(2, pairwise, vectors.device)  # refuses what it cannot take before anything is undefined
    nothing = Uniformity(math.nan, math.nan, math.nan, math.nan, float(s), 0)
    values = reasons.attempt(["log", "log_cov", "riesz", "riesz_cov"], found, nothing)
    reasons.warn()
    return values


def check_power(s: float) -> None:
    """Raise unless s is a number from 1e-6 to 1e6 in size."""
    if isinstance(s, bool) or not isinstance(s, int | float) or not _POWERS[0] <= abs(s) <= _POWERS[1]:
        raise InputError(
            f"expected s as a number from 1e-6 to 1e6 in size, got {s!r}: the limit s -> 0 is the log kernel"
        )


def uniformity_of(matrix: BlockedMatrix, s: float, pairwise: bool | int) -> Uniformity:
    """`uniformity` of the rows of a matrix."""
    at_least_two(matrix).with_directions()
    least = (matrix.noise_squares + matrix.rounding**2 / 2) / matrix.norms.square()
    names = range(matrix.count) if matrix.numbers is None else matrix.numbers.tolist()
    sample = draw(matrix.count, pairwise, matrix.norms.device)
    log, riesz = _Moments(), _Moments()
    for squares, first, second in _all(matrix) if sample is None else _drawn(matrix, *sample):
        equal = (squares <= least[first] + least[second]).nonzero()
        if len(equal):
            i, j = (names[int(each[int(equal[0, 0])])] for each in (first, second))
            raise Undefined(f"classes {i} and {j} have the same direction")
        logs = squares.log().div_(-2)
        log.add(logs)
        riesz.add(logs, s)
    drawn = sample is not None
    log_mean, log_deviation = float(log.mean), math.sqrt(float(log.squares) / log.count)
    share = math.sqrt(float(riesz.squares) / riesz.count) / float(riesz.mean)
    power_mean = math.exp((float(riesz.scale) + math.log(float(riesz.mean))) / s)
    root = math.sqrt(max(log.count - 1, 1))  # standard deviation of a sample over sqrt(count)
    return Uniformity(
        log_mean,
        log_deviation / abs(log_mean) if log_mean else math.inf if log_deviation else 0.0,
        power_mean,
        share,
        float(s),
        log.count,
        log_deviation / root if drawn else 0.0,
        power_mean * share / abs(s) / root if drawn else 0.0,
    )


class _Moments:
    """Mean and sum of squared deviations of values v, or of `e^(s v)` relative to a scale, block after block."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.squares = self.scale = torch.zeros((), dtype=torch.float64, device="cpu")

    def add(self, values: Tensor, s: float = 0.0) -> None:
        """Add values; with s the `e^(s v)`, kept as shares of e^scale."""
        if len(values) == 0:
            return
        scale = torch.zeros((), dtype=torch.float64, device=values.device)
        if s:
            values = values * s
            scale = values.max()
            values = (values - scale).exp_()
        mean = values.mean()
        squares = (values - mean).square_().sum()
        if self.count == 0:
            self.count, self.mean, self.squares, self.scale = len(values), mean, squares, scale
            return
        common = torch.maximum(scale, self.scale)
        theirs, mine = (scale - common).exp(), (self.scale - common).exp()
        mean, before = mean * theirs, self.mean * mine
        total = self.count + len(values)
        apart = mean - before
        self.squares = squares * theirs.square() + self.squares * mine.square()
        self.squares = self.squares + apart.square() * (self.count * len(values) / total)
        self.mean = before + apart * (len(values) / total)
        self.count, self.scale = total, common


def _all(matrix: BlockedMatrix) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(P,) squared distances of unit rows i < j, and (P,) i and (P,) j, tile by tile."""
    for first, second in matrix.tiles():
        left, right = matrix.unit(first), matrix.unit(second)
        squares = torch.addmm(left.new_full((), 2.0), left, right.T, alpha=-2)
        rows, columns = squares.shape
        places = (
            torch.triu_indices(rows, columns, 1, device=squares.device)
            if first == second
            else torch.stack(
                [
                    each.flatten()
                    for each in torch.meshgrid(
                        torch.arange(rows, device=squares.device),
                        torch.arange(columns, device=squares.device),
                        indexing="ij",
                    )
                ]
            )
        )
        values = squares[places[0], places[1]]
        near = (values < _CANCELS).nonzero().flatten()
        for some in near.split(max(1, _CHUNK_VALUES // matrix.dim)):
            i, j = places[:, some]
            values[some] = (left[i] - right[j]).square().sum(1)
        yield values, places[0] + first.start, places[1] + second.start


def _drawn(matrix: BlockedMatrix, first: Tensor, second: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The same of pairs that were drawn."""
    size = max(1, _CHUNK_VALUES // matrix.dim)
    for i, j in zip(first.split(size), second.split(size), strict=True):
        yield (matrix.unit(i) - matrix.unit(j)).square().sum(1), i, j
