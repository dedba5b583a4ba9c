"""NC1, its quotient and the CDNV of some moments, with as much of the bias of few samples gone as moments can tell.

From n samples a class the three come out too small: the squared distances of the class means are too large by
`tr S / n`, and the scatter has only N - K degrees of freedom. Here the variances are unbiased, and from the squares in
the quotient and the CDNV goes their noise (`sampling_noise.py`), whatever the distribution of the samples. NC1 has an
inverse, in which to subtract estimates adds more noise than it removes, most of all where the covariances of classes
differ in shape: its means are left as they are, and the jackknife of `standard_errors.py` removes the bias, as it does
what is left of the others'. Whether all directions of the means stand out of the noise is looked at first: with
`C = I - 1n'/N`, which centres about mu_G, and `D = diag(tr S_k / n_k)`, it is `C D C'` in `M M'`, a share of S in S_B.
"""

from __future__ import annotations

import torch
from torch import Tensor

from neuralcollapse.errors import Undefined
from neuralcollapse.geometry.matrix import BlockedMatrix
from neuralcollapse.geometry.means import CentredMeans
from neuralcollapse.geometry.pairs import Estimate, Sample, cdnv, hardly_apart, tile_distances
from neuralcollapse.geometry.sampling_noise import SamplingNoise, root

# The least that a squared distance of means, and the spread of the means along any direction, must be as a multiple of
# what their noise explains, and samples a class over NC1. Below, intervals miss more often than they say
# (tests/geometry/test_standard_errors.py, and features of digits).
_APART, _SPANNED, _SAMPLES = 2.0, 1.5, 4.0
# The most that the noise of two means along their line may be, as a share of their squared distance without noise: in
# few dimensions two means that are one come to lie apart by chance, and 1/d^2 is far from a straight line there.
_ALONG = 1 / 12
_HIDDEN = "the class means span a direction that is lost in the noise of so few samples"


class Corrected:
    """The bias-corrected measures of some moments.

    Args:
        means: of the moments.
        basis: of the means of all samples: (d, r) the directions to take NC1 over; None for all there may be.
        strict: `Undefined` unless the means are well apart for the noise in them, which the jackknife asks of all
            samples together.
    """

    def __init__(self, means: CentredMeans, basis: Tensor | None, *, strict: bool = True) -> None:
        self._means, self._basis = means, basis
        self._strict = strict
        self._apart = _APART if strict else 1.0
        self._noise = SamplingNoise(means)
        self._shares = means.counts / means.counts.sum()

    def nc1(self) -> Tensor:
        """`tr(S_W S_B^+) / K`, S_W over N - K samples."""
        means, matrix = self._means, self._means.matrix
        if self._strict:
            self._check_spanned()
        elif (means.basis is None) != (self._basis is None):
            raise Undefined("without some of the samples, other directions of the class means are more than rounding")
        freedom = means.counts.sum() - matrix.count
        value = means.within_over_between / matrix.count * (means.counts.sum() / freedom)
        if self._strict and bool(value * (1 / means.counts).mean() > 1 / _SAMPLES):
            raise Undefined(_HIDDEN)
        return value

    def nc1_quotient(self) -> Tensor:
        """`tr S_W / tr S_B`."""
        inflation, shares = self._noise.inflation, self._shares
        lost = (inflation * (1 - 2 * shares)).mean() + inflation @ shares.square()
        squares = self._means.matrix.norms.square().mean() - lost
        if bool(squares <= (self._apart - 1) * lost):
            raise Undefined("the class means are hardly further apart than the noise of so few samples explains")
        return self._noise.traces @ shares / squares

    def nc1_cdnv(self, sample: Sample | None) -> Estimate:
        """The mean over pairs of `(V_i + V_j) / (2 |mu_i - mu_j|^2)`."""
        found = cdnv(self._means, sample, self._noise, self._apart)
        if self._strict and bool(self._noise.trace > 0):
            self._check_along(sample)
        return found

    def _check_along(self, sample: Sample | None) -> None:
        """`Undefined` unless the noise along the line of any two means is small for their distance."""
        matrix, inflation = self._means.matrix, self._noise.inflation
        turned = root(self._noise.covariance / self._noise.trace)

        def near(distances: Tensor, forms: Tensor, lost: Tensor) -> Tensor:
            return forms * lost > _ALONG * distances * (distances - lost)

        if sample is None:
            along = BlockedMatrix(matrix.block(slice(None)) @ turned)
            for first, second in matrix.tiles():
                distances, forms = (tile_distances(each, first, second) for each in (matrix, along))
                wrong = near(distances, forms, inflation[first, None] + inflation[None, second])
                if first == second:
                    wrong.fill_diagonal_(False)
                if bool(wrong.any()):
                    i, j = wrong.nonzero()[0].tolist()
                    raise hardly_apart(self._means, first.start + i, second.start + j)
        else:
            for left, right in sample.chunks(matrix.dim):
                apart = matrix.block(left) - matrix.block(right)
                forms = (apart @ turned).square().sum(1)
                wrong = near(apart.square().sum(1), forms, inflation[left] + inflation[right])
                if bool(wrong.any()):
                    place = wrong.nonzero()[0, 0]
                    raise hardly_apart(self._means, int(left[place]), int(right[place]))

    def _check_spanned(self) -> None:
        """`Undefined` unless the spread of the means is more than noise in all directions that they span."""
        matrix, noise = self._means.matrix, self._noise
        unit = matrix.norms.max()  # squares are taken as shares of its square
        if self._basis is None and matrix.count - 1 <= matrix.dim:
            rows = matrix.block(slice(None)) / unit
            null = noise.counts / torch.linalg.vector_norm(noise.counts)  # M'M is zero along it
            squares = rows @ rows.T
            squares += squares.trace() / matrix.count * null[:, None] * null
            moved = noise.inflation / unit**2 * self._shares
            lost = (noise.inflation / unit**2).diag() - moved[:, None] - moved + moved @ self._shares
        else:
            squares, lost = matrix.gram / (matrix.count * unit**2), noise.covariance / unit**2
            if self._basis is not None:
                squares, lost = (self._basis.T @ each @ self._basis for each in (squares, lost))
            lost *= (noise.scales / noise.counts).mean() - (2 * noise.scales.mean() - 1) / noise.counts.sum()
        if int(torch.linalg.cholesky_ex(squares - _SPANNED * lost).info) > 0:
            raise Undefined(_HIDDEN)
