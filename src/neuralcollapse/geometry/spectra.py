r"""How many directions features and classifier use: the spectra of S_W, S_B, S_T and W, and how W lies to the means.

An eigenvalue that rounding alone may have made is left out, as `means.py` does for NC1. The matrices are taken from
their smaller side, so that neither many classes nor many dimensions cost a second K x d matrix.

Sources: [Roy 2007] Roy, Vetterli, EUSIPCO 2007 (effective rank). [Rudelson 2007] Rudelson, Vershynin, J. ACM 2007
(stable rank). [Garrido 2023] Garrido et al., ICML 2023, arXiv 2210.02885 (RankMe).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from neuralcollapse.checks import check_classifier
from neuralcollapse.errors import Undefined
from neuralcollapse.geometry.matrix import BlockedMatrix, between_directions
from neuralcollapse.geometry.means import OVERFLOW, CentredMeans, rounding_alone
from neuralcollapse.geometry.moments import ClassMoments, check_moments
from neuralcollapse.geometry.products import add_gram
from neuralcollapse.geometry.rounding import rounding, sampled
from neuralcollapse.geometry.undefined import Reasons

_SINGLE, _DOUBLE = torch.finfo(torch.float32).eps, torch.finfo(torch.float64).eps
_BOTH_SIDES = 2.0  # times the largest eigenvalue below zero (measured: up to 1.15)
MATRICES = ("within", "between", "total", "weight")
RANKS = ("effective_rank", "stable_rank", "participation_ratio", "rankme")


@dataclass(frozen=True, eq=False)
class Spectrum:
    r"""The eigenvalues of a positive semidefinite matrix, and how many of them count.

    Each of the four numbers below is at most `rank`, which is at most `ceiling`. All are 1 for a single direction and
    equal to the rank where all eigenvalues are equal. They do not change with the scale. Without eigenvalues they are
    NaN.

    Attributes:
        eigenvalues: (r,) float64, descending, those that are more than rounding.
        ceiling: the largest rank that N, K and d allow.
    """

    eigenvalues: Tensor
    ceiling: int

    @property
    def rank(self) -> int:
        """The number of eigenvalues that are more than rounding."""
        return len(self.eigenvalues)

    @property
    def effective_rank(self) -> float:
        r""":math:`\exp(-\sum_i p_i \log p_i)` with `p_i = lambda_i / sum lambda`. Source: [Roy 2007]."""
        return _exp_entropy(self._shares)

    @property
    def stable_rank(self) -> float:
        r""":math:`\sum_i \lambda_i / \lambda_1`; for W it is :math:`|W|_F^2 / |W|_2^2`. Source: [Rudelson 2007]."""
        return float(self._shares.sum()) if self.rank else math.nan

    @property
    def participation_ratio(self) -> float:
        r""":math:`(\sum_i \lambda_i)^2 / \sum_i \lambda_i^2`."""
        return float(self._shares.sum().square() / self._shares.square().sum()) if self.rank else math.nan

    @property
    def rankme(self) -> float:
        r""":math:`\exp(-\sum_i p_i \log p_i)` with `p_i = sqrt(lambda_i) / sum sqrt(lambda)`, of singular values.

        As published, but of centred features (RankMe is defined for them as they are) and without its constant 1e-7.
        Source: [Garrido 2023].
        """
        return _exp_entropy(self._shares.sqrt())

    @property
    def _shares(self) -> Tensor:
        """The eigenvalues over the largest, so that no square or sum of them overflows."""
        return self.eigenvalues / self.eigenvalues[:1]


@dataclass(frozen=True, eq=False)
class Spectra:
    r"""The spectra of features and classifier (`neuralcollapse.spectra`).

    Attributes:
        within: of S_W, the covariance about the class means; its rank is at most min(d, N-K). It vanishes under
            collapse.
        between: of S_B, the covariance of the K class means, each with weight 1/K; at most min(d, K-1), which a
            simplex reaches with equal eigenvalues.
        total: of S_T, the covariance of all samples about their mean; at most min(d, N-1). It is S_W plus the
            covariance of the class means in which each counts by its samples.
        weight: of `W'W`, whose eigenvalues are the squared singular values of W; at most min(d, K). W is taken as it
            is, not centred. None without a weight.
        energy: :math:`|W V|_F^2 / |W|_F^2` with V an orthonormal basis of the span of the centred class means: the
            share of W that lies in it, in [0, 1]. It goes to 1 under collapse. NaN without a weight.
        angles: (q,) the principal angles between the row space of W and that span in degrees, ascending from 0 to 90;
            q is the smaller of their dimensions. They go to 0 under collapse. Empty without a weight.
    """

    within: Spectrum
    between: Spectrum
    total: Spectrum
    weight: Spectrum | None
    energy: float
    angles: Tensor

    def values(self) -> dict[str, float]:
        """The numbers by name, such as "effective_rank_within"; the keys of `neuralcollapse.more_measures`."""
        found: dict[str, float] = {}
        for name in MATRICES:
            spectrum: Spectrum | None = getattr(self, name)
            if spectrum is None:
                continue
            found |= {f"rank_{name}": float(spectrum.rank), f"rank_ceiling_{name}": float(spectrum.ceiling)}
            found |= {f"{rank}_{name}": getattr(spectrum, rank) for rank in RANKS}
        if self.weight is not None:
            found["weight_energy"] = self.energy
            found["weight_angle"] = float(self.angles[-1]) if len(self.angles) else math.nan
        return found


@torch.no_grad()
def spectra(moments: ClassMoments, weight: Tensor | None = None) -> Spectra:
    """The spectra of S_W, S_B, S_T and W, with the ranks that they could have, and how W lies to the class means.

    Only classes with samples are looked at, K of them, with their rows of W. Nothing larger than K x d in the blocks
    that `measures` uses, or d x d, is made: O(K d min(K, d) + d^3) time. Of float32 features with d >= 256 eigenvalues
    of S_W and S_T below about 1e-7 of the largest cannot be told from the rounding of products, and are left out; those
    of `features.double()` are good to about 1e-13.

    Args:
        moments: moments of the features that the classifier receives.
        weight: (K, d) rows w_k of the classifier.

    Returns:
        The four spectra. A part without a value (S_B of one class, S_W of one sample a class) has no eigenvalues, and
        its numbers are NaN, with one warning for each reason.

    Raises:
        InputError: a weight of the wrong shape or dtype, or not finite.

    >>> features = torch.eye(3).double().repeat(2, 1) + torch.eye(6, 3)
    >>> found = spectra(ClassMoments.from_batch(features, torch.tensor([0, 1, 2, 0, 1, 2]), 3), torch.eye(3))
    >>> round(found.between.effective_rank, 6), found.between.ceiling, round(found.energy, 6)
    (2.0, 2, 0.666667)
    """
    check_moments(moments)
    check_classifier(weight, None, moments.num_classes, moments.feature_dim)
    reasons = Reasons()
    found = spectra_of(CentredMeans(moments), weight, reasons)
    reasons.warn()
    return found


def spectra_of(means: CentredMeans, weight: Tensor | None, reasons: Reasons) -> Spectra:
    """`spectra`, with what is undefined told to `reasons`."""
    moments, count, dim = means.moments, len(means.seen), means.moments.feature_dim
    nothing = means.counts.new_zeros(0)
    samples = int(means.counts.sum())
    ceilings = (min(dim, samples - count), min(dim, max(count - 1, 0)), min(dim, max(samples - 1, 0)))

    def spectrum(name: str, ceiling: int, job: Callable[[], Tensor]) -> Spectrum:
        names = [f"{rank}_{name}" for rank in RANKS]
        return Spectrum(reasons.attempt(names, job, nothing), ceiling)

    within = spectrum("within", ceilings[0], lambda: _within(means, ceilings[0]))
    between = spectrum("between", ceilings[1], lambda: _between(means))
    total = spectrum("total", ceilings[2], lambda: _total(means, ceilings[2]))
    if weight is None:
        return Spectra(within, between, total, None, math.nan, nothing)
    index = None if means.complete else means.seen
    rows = _Rows(weight.detach().to(moments.device), index)
    of_rows = spectrum("weight", rows.most, lambda: rows.squares)
    energy = reasons.attempt(["weight_energy"], lambda: _energy(rows, _span(means)), math.nan)
    angles = reasons.attempt(["weight_angle"], lambda: _angles(rows.vectors, _span(means)), nothing)
    return Spectra(within, between, total, of_rows, energy, angles)


def spectrum_of(vectors: Tensor, centre: Tensor | None = None) -> Spectrum:
    """The spectrum of `V'V` for vectors (K, d), or of `(V - c)'(V - c)/K` with a centre c (d,), their weighted mean.

    Without eigenvalues where the vectors are zero, or all at the centre.
    """
    rows = _Rows(vectors, shift=centre)
    try:
        squares = rows.squares
    except Undefined:
        squares = vectors.new_zeros(0, dtype=torch.float64)
    return Spectrum(squares if centre is None else squares / rows.matrix.count, rows.most)


def _exp_entropy(parts: Tensor) -> float:
    if len(parts) == 0:
        return math.nan
    shares = parts / parts.sum()
    return float(torch.special.entr(shares).sum().exp())


def _within(means: CentredMeans, most: int) -> Tensor:
    if len(means.seen) == 0:
        raise Undefined("no samples were seen")
    return _eigenvalues(means.moments.within_covariance, means, most, "nothing varies within classes beyond rounding")


def _between(means: CentredMeans) -> Tensor:
    variances = means.directions.between[~means.directions.left_out]
    return variances.sort(descending=True).values


def _total(means: CentredMeans, most: int) -> Tensor:
    if len(means.seen) == 0:
        raise Undefined("no samples were seen")
    total, shares = means.moments.scatter, means.counts.sqrt()
    for part, rows in means.centred_blocks():
        rows *= shares[part, None]
        add_gram(total, rows)  # the upper triangle, which alone is read
    return _eigenvalues(total / means.counts.sum(), means, most, "all samples are equal up to rounding")


def _eigenvalues(covariance: Tensor, means: CentredMeans, most: int, zero: str) -> Tensor:
    """The eigenvalues, descending, of the upper triangle of a covariance, that are more than rounding."""
    size = covariance.diagonal().max()
    if not math.isfinite(float(size) * len(covariance)):
        raise Undefined(OVERFLOW)
    values = torch.linalg.eigvalsh(covariance, UPLO="U")
    # What rounding made of zeros lies on both sides of zero, in float32 products at up to 1e-7 of the largest.
    lost = torch.maximum(len(values) * _DOUBLE * values[-1], -_BOTH_SIDES * values[0])
    if bool((values <= means.largest_rounding + lost).any()):  # then the directions decide
        values, vectors = torch.linalg.eigh(covariance, UPLO="U")
        values = values[~(means.spread_is_rounding(vectors, values) | (values <= lost))]
    if len(values) == 0 or most == 0:
        raise Undefined(zero)
    return values.flip(0)[:most]


class _Rows:
    """The rows of a matrix (K, d), less a shift, with the directions (d, p) that they span beyond rounding."""

    def __init__(self, weight: Tensor, index: Tensor | None = None, shift: Tensor | None = None) -> None:
        self.matrix = BlockedMatrix(weight, index, shift)
        self.most = min(self.matrix.count - (shift is not None), self.matrix.dim)
        self._given = BlockedMatrix(weight, index)
        # Frames repeat a few values, whose last bits may say nothing: what fits into float32 counts as rounded to it.
        rows = sampled(weight)
        single = torch.equal(rows.to(torch.float32).to(rows.dtype), rows)
        self.eps = max(rounding(weight), _SINGLE if single else _DOUBLE)
        self._found: tuple[Tensor, Tensor] | None = None

    @property
    def squares(self) -> Tensor:
        """(p,) the squared singular values, descending."""
        return self._directions[1]

    @property
    def vectors(self) -> Tensor:
        """(d, p) right singular vectors."""
        return self._directions[0]

    @property
    def _directions(self) -> tuple[Tensor, Tensor]:
        if self._found is None:
            matrix = self.matrix
            if matrix.count == 0 or matrix.largest == 0:
                raise Undefined("the rows are all zero" if matrix.count else "no samples were seen")
            square = matrix.largest * matrix.largest
            if not math.isfinite(square * matrix.count * matrix.dim):
                raise Undefined(OVERFLOW)
            if square < torch.finfo(torch.float64).tiny / _DOUBLE:
                raise Undefined("squares of the classifier's weight underflow float64: scale it up")
            vectors, squares, left_out = between_directions(matrix, self._rounding_alone, self.most)
            order = squares.argsort(descending=True)
            order = order[~left_out[order]]
            self._found = vectors[:, order], squares[order]
        return self._found

    def _rounding_alone(self, vectors: Tensor, squares: Tensor) -> Tensor:
        given = self._given
        columns = torch.stack([given.block(part).square().sum(0) for part in given.parts()]).sum(0)
        return rounding_alone(squares, columns @ vectors.square(), self.eps, given.dim)


def _span(means: CentredMeans) -> Tensor:
    """(d, r) an orthonormal basis of the span of the centred class means."""
    found = means.directions
    return torch.linalg.qr(found.vectors[:, ~found.left_out]).Q  # vectors of a Gram matrix are so up to 1e-8


def _energy(rows: _Rows, span: Tensor) -> float:
    matrix = rows.matrix
    if matrix.count == 0 or matrix.largest == 0:
        raise Undefined("the rows are all zero" if matrix.count else "no samples were seen")
    inside, whole = span.new_zeros(()), span.new_zeros(())
    for part in matrix.parts():
        block = matrix.block(part) / matrix.largest
        inside = inside + (block @ span).square().sum()
        whole = whole + block.square().sum()
    return float((inside / whole).clamp(max=1))  # above 1 by rounding alone


def _angles(rows: Tensor, span: Tensor) -> Tensor:
    """(q,) the principal angles between two column spaces in degrees: by sines where cosines lose digits."""
    rows = torch.linalg.qr(rows).Q
    large, small = (rows, span) if rows.shape[1] >= span.shape[1] else (span, rows)
    shared = large.T @ small
    cosines = torch.linalg.svdvals(shared).clamp(max=1)
    sines = torch.linalg.svdvals(small - large @ shared).clamp(max=1).flip(0)
    return torch.rad2deg(torch.where(cosines.square() < 0.5, cosines.acos(), sines.asin()))
