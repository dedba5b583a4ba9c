"""NC1, its quotient and the CDNV of the population, from the moments of samples: without what sampling noise adds.

From n samples a class the three come out too small: the squared distances of the class means are too large by
`tr S / n`, and the scatter has only N - K degrees of freedom. Here the variances are unbiased, and from each square of
means goes its noise (`sampling_noise.py`). With `C = I - 1n'/N`, which centres about mu_G, `D = diag(tr S_k / n_k)`,
`T = diag(tr S_k S / n_k)` and c the share of S in S_B:

    G = M M' - C D C',    A = M S M' - C T C',    NC1 = tr(G^+ A G^+)      where the means span K-1 directions,
    B = S_B - c S,                                NC1 = tr(S B^-1)/K       where they span fewer.

A ratio of unbiased numbers is unbiased up to the squares of their relative errors; the jackknife of
`standard_errors.py` removes most of that too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from neuralcollapse.errors import Undefined
from neuralcollapse.geometry.means import CentredMeans
from neuralcollapse.geometry.pairs import Estimate, Sample, cdnv
from neuralcollapse.geometry.sampling_noise import SamplingNoise

# The least that a squared distance of means, and the spread of the means along any direction, must be as a multiple of
# what their noise explains. Below, intervals miss more often than they say (tests/geometry/test_standard_errors.py).
_APART, _SPANNED = 2.0, 5.0
_HIDDEN = "the class means span a direction in which the noise of so few samples explains most of their spread"


class Corrected:
    """The bias-corrected measures of some moments.

    Args:
        means: of the moments.
        basis: (d, r) the directions to take NC1 over; None for all that K classes may span in d dimensions.
        strict: `Undefined` unless the means are well apart for the noise in them, which the jackknife asks of all
            samples together.
    """

    def __init__(self, means: CentredMeans, basis: Tensor | None, *, strict: bool = True) -> None:
        self._means, self._basis = means, basis
        self._apart, self._spanned = (_APART, _SPANNED) if strict else (1.0, 1.0)
        self._noise = SamplingNoise(means)
        self._shares = means.counts / means.counts.sum()

    def nc1(self) -> Tensor:
        """`tr(S_W S_B^+) / K`."""
        matrix = self._means.matrix
        few = self._basis is None and matrix.count - 1 <= matrix.dim
        return self._over_classes() if few else self._over_directions()

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
        return cdnv(self._means, sample, self._noise, self._apart)

    def _over_classes(self) -> Tensor:
        matrix, noise = self._means.matrix, self._noise
        unit = matrix.norms.max()  # squares are taken as shares of its square
        rows = matrix.block(slice(None)) / unit
        product = (rows @ noise.covariance) @ rows.T / unit**2
        means = rows @ rows.T
        lengths = self._centred(noise.inflation / unit**2)
        across = self._centred(noise.square_trace / unit**4 * noise.scales / noise.counts)
        null = noise.counts / torch.linalg.vector_norm(noise.counts)  # G and A are zero along it
        null = means.trace() / matrix.count * null[:, None] * null
        self._check_apart(means + null, lengths)
        inverse = _inverse(means - lengths + null)
        return ((inverse @ (product - across)) * inverse).sum()

    def _over_directions(self) -> Tensor:
        matrix, noise, basis = self._means.matrix, self._noise, self._basis
        unit = matrix.norms.max()
        between, within = matrix.gram / (matrix.count * unit**2), noise.covariance / unit**2
        if basis is not None:
            between, within = (basis.T @ each @ basis for each in (between, within))
        lost = within * ((noise.scales / noise.counts).mean() - (2 * noise.scales.mean() - 1) / noise.counts.sum())
        self._check_apart(between, lost)
        return (within * _inverse(between - lost)).sum() / matrix.count

    def _centred(self, noise: Tensor) -> Tensor:
        """(K, K) `C diag(noise) C'`."""
        moved = noise * self._shares
        return noise.diag() - moved[:, None] - moved + moved @ self._shares

    def _check_apart(self, squares: Tensor, noise: Tensor) -> None:
        if self._spanned > 1 and int(torch.linalg.cholesky_ex(squares - self._spanned * noise).info) > 0:
            raise Undefined(_HIDDEN)


def _inverse(matrix: Tensor) -> Tensor:
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if int(failed) > 0:
        raise Undefined(_HIDDEN)
    return torch.cholesky_inverse(factor)
