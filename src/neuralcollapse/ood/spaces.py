"""What the scores need of the training features, from their moments: principal directions, and coordinates in which
the within-class covariance is the identity.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from neuralcollapse.errors import InputError, Undefined
from neuralcollapse.geometry.moments import ClassMoments
from neuralcollapse.geometry.products import in_float32

_CLASSES = 4096  # class means in float64 at a time
_ROUNDED = 0.25  # the share of eps^2 E h_j^2 up to which a variance may be rounding alone, as in geometry/means.py
_SINGLE = 8 * torch.finfo(torch.float32).eps  # of the largest variance: what sums of float32 products may be off
_FEW = 8  # so few small variances may all be above 0 by chance
_DOUBLE = torch.finfo(torch.float64).eps
_ROUNDED_ROWS = 2  # spacings of the weight's dtype, relative to its largest singular value, that may be rounding
_FAR = 1e3  # times the variance: beyond this the squared distance of the mean to the origin outweighs it
_OUTSIDE = 1e-9  # the share of the variance of the class means that may lie where nothing varies within classes


class Spectrum(NamedTuple):
    """The directions of a covariance along which there is more than rounding, by falling variance."""

    variances: Tensor  # (r,)
    directions: Tensor  # (d, r), orthonormal


class Covariances:
    """Mean and covariances of the training features, float64.

    Raises InputError where the squares of the features overflow.

    Attributes:
        mean: (d,) mu_G.
        seen: (S,) the classes that have samples.
        within: (d, d) S_W, averaged over the samples.
        between: (d, d) S_B, averaged over the samples.
        total: (d, d) S_T.
    """

    def __init__(self, moments: ClassMoments) -> None:
        counts = moments.counts
        self.moments = moments
        self.mean = moments.global_mean
        self.seen = counts.nonzero().flatten()
        self.within = moments.within_covariance
        self.between = torch.zeros_like(self.within)
        for part in self.seen.split(_CLASSES):
            rows = self.centred(part) * (counts[part].double() / counts.sum()).sqrt()[:, None]
            self.between += rows.T @ rows
        self.total = self.within + self.between
        if not bool(torch.isfinite(self.total).all()):
            raise InputError("expected features whose squares are float64 numbers, got larger ones: scale them down")
        self.squares = self.mean.square() + self.total.diagonal()
        """(d,) the mean of h_j^2."""

    def centred(self, classes: Tensor) -> Tensor:
        """(n, d) `mu_k - mu_G` for the numbers of classes."""
        return self.moments.means[classes].double() - self.mean

    @property
    def noise(self) -> Tensor:
        """(d,) the variance that the rounding of the features may give each entry."""
        return _ROUNDED * self.moments.rounding**2 * self.squares

    def spectrum(self, matrix: Tensor, noise: Tensor | None = None) -> Spectrum:
        """The directions of a (d, d) covariance along which there is more than rounding."""
        return self._kept(*_falling(matrix), self.noise if noise is None else noise)

    def rank_about(self, shift: Tensor) -> int:
        """The number of directions, beyond rounding, of `S_T + shift shift'`."""
        directions = self.spectrum(self.total).directions
        outside = shift - directions @ (directions.T @ shift)
        rounding = (self.noise.sum() + _DOUBLE * self.squares.sum()).sqrt()
        return directions.shape[1] + int(bool(torch.linalg.vector_norm(outside) > rounding))

    @cached_property
    def within_spectrum(self) -> Spectrum:
        """That of S_W."""
        return self._kept(*self._within, self.noise)

    @cached_property
    def _single(self) -> bool:
        """Whether the products in S_W were of float32: then those that should be small are as often below 0 as above.

        The moments do not say: float32 features that were widened to float64 have exact sums.
        """
        if not in_float32(self.moments.rounding, self.moments.feature_dim):
            return False
        variances = self._within.variances
        small = variances[variances.abs() <= _SINGLE * variances[0]]
        return len(small) < _FEW or bool(small.min() < -len(variances) * _DOUBLE * variances[0])

    @cached_property
    def _within(self) -> Spectrum:
        return _falling(self.within)

    def _kept(self, variances: Tensor, directions: Tensor, noise: Tensor) -> Spectrum:
        least = directions.square().T @ noise + len(directions) * _DOUBLE * variances[0].abs()
        if self._single:
            least += _SINGLE * self._within.variances[0].abs()
        kept = int((variances > least).sum())
        return Spectrum(variances[:kept], directions[:, :kept])


def _falling(matrix: Tensor) -> Spectrum:
    variances, directions = torch.linalg.eigh(matrix)
    return Spectrum(variances.flip(0), directions.flip(1))


@dataclass(frozen=True)
class Whitened:
    """Coordinates in which S_W is the identity and S_B diagonal: those of linear discriminant analysis.

    Attributes:
        axes: (m, d) the coordinates of x are `axes x`. The first r are those along which the class means differ.
        within_shares: (r,) of the variance along these r, that within classes.
        means: (S, r) coordinates of `mu_k - mu_G` for the classes that have samples.
        background: (n, d) coordinates in which S_T is the identity, where those above do not give them; else None.
        left_out: d - m directions along which nothing varies within classes.
    """

    axes: Tensor
    within_shares: Tensor
    means: Tensor
    background: Tensor | None
    left_out: int


def whitened(covariances: Covariances) -> Whitened:
    """The coordinates of linear discriminant analysis, on the span of S_W.

    Raises:
        Undefined: nothing varies within classes.
    """
    variances, directions = covariances.within_spectrum
    if len(variances) == 0:
        raise Undefined("nothing varies within classes beyond rounding, so that S_W has no inverse on any direction")
    dim, rank = directions.shape
    units = (directions / variances.sqrt()).T
    between, axes = torch.linalg.eigh(units @ covariances.between @ units.T)
    count = min(len(covariances.seen) - 1, rank)
    between, axes = between.flip(0)[:count].clamp(min=0), axes.flip(1).T @ units
    means = torch.cat([covariances.centred(part) @ axes[:count].T for part in covariances.seen.split(_CLASSES)])
    background = None
    if rank < dim:
        inside = (directions * (covariances.between @ directions)).sum()
        whole = covariances.between.trace()
        if bool(whole - inside > _OUTSIDE * whole):
            total = covariances.spectrum(covariances.total)
            background = (total.directions / total.variances.sqrt()).T
    return Whitened(axes, 1 / (1 + between), means, background, dim - rank)


def principal(covariances: Covariances, wanted: int | float | None, scales: Tensor | None) -> Tensor:
    """(d, q) the directions of the largest variances, after each entry was divided by its scale.

    Args:
        covariances: of the training features.
        wanted: q, or the share of the variance that they hold, or None for the number of classes less one.
        scales: (d,) of the entries; None for 1.

    Raises:
        Undefined: there are fewer such directions, or q directions span all that there is.
    """
    matrix, noise, dim = covariances.total, None, len(covariances.mean)
    if scales is not None:
        matrix, noise = matrix / scales / scales[:, None], covariances.noise / scales.square()
    variances, directions = covariances.spectrum(matrix, noise)
    rank = len(variances)
    if rank == 0:
        raise Undefined("all training features are equal up to rounding, so that there are no principal directions")
    if isinstance(wanted, float):
        shares = variances.cumsum(0) / variances.sum()
        count = int((shares < wanted * (1 - 1e-12)).sum()) + 1
    else:
        count = min(len(covariances.seen) - 1, rank) if wanted is None else wanted
    if count > rank:
        raise Undefined(f"neco_dim={count} is above {rank}, the number of directions in which training features vary")
    if count == dim:
        why = "K-1" if wanted is None else f"neco_dim={wanted}"
        raise Undefined(
            f"{why} directions are all d={dim} of them, so that NECO is 1 for every input: give a smaller neco_dim"
        )
    if count == 0:
        raise Undefined("only one class has samples, so that K-1 is 0: give neco_dim")
    return directions[:, :count]


def scales(covariances: Covariances) -> Tensor:
    """(d,) the standard deviation of each entry of the features, or 1 where it is no more than rounding."""
    variances = covariances.total.diagonal()
    least = covariances.noise + _DOUBLE * covariances.squares
    return torch.where(variances > least, variances.clamp(min=0).sqrt(), 1.0)


def head_origin(weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """(d,) `o = -pinv(W) b`, with the weight's rounding (of spacing eps) taken for what it is.

    The rows of a simplex sum to zero but for rounding, by which an exact inverse would multiply the mean of the bias.
    """
    if not bool(bias.any()):
        return torch.zeros_like(weight[0])
    least = max(_ROUNDED_ROWS * eps, max(weight.shape) * _DOUBLE)
    solved = torch.linalg.lstsq(weight.cpu(), bias.cpu()[:, None], rcond=least, driver="gelsd").solution
    return -solved[:, 0].to(weight.device)


def residual_directions(covariances: Covariances, origin: Tensor, wanted: int | None) -> Tensor:
    """(d, d - q) the eigenvectors of the second moment about the origin beyond the q largest.

    By default q is no more than the rank: beyond it all eigenvalues are rounding, and any choice among their vectors
    would be one by chance.

    Raises:
        Undefined: there are none, or q is above the rank.
    """
    dim = len(origin)
    count = wanted or default_vim_dim(dim)
    if count >= dim:
        hint = "" if wanted is None else ": give a smaller one"
        raise Undefined(f"vim_dim={count} leaves none of the d={dim} directions of the features{hint}")
    shift = covariances.mean - origin
    rank = covariances.rank_about(shift)
    if wanted is not None and wanted > rank:
        raise Undefined(
            f"vim_dim={wanted} is above {rank}, the number of directions from the origin in which training features "
            "lie: give a smaller one"
        )
    count = min(count, rank)
    if bool(shift.square().sum() < _FAR * covariances.total.trace()):
        return torch.linalg.eigh(covariances.total + shift[:, None] * shift)[1][:, : dim - count]
    # Beside the square of a far origin the sum would lose the digits of the covariance; its root keeps twice as many.
    variances, directions = torch.linalg.eigh(covariances.total)
    root = variances.clamp(min=0).sqrt()[:, None] * directions.T
    return torch.linalg.svd(torch.cat([shift[None], root]), full_matrices=False)[2][count:].T


def default_vim_dim(dim: int) -> int:
    """1,000 if d >= 2,048, 512 if 768 <= d < 2,048 (as in the paper), and half of d below."""
    return 1000 if dim >= 2048 else 512 if dim >= 768 else max(1, dim // 2)
