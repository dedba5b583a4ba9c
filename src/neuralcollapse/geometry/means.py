"""The centred class means of the classes seen, and which of their directions are more than rounding.

Directions that hold only the rounding of the features' own dtype have no geometry. Along a unit vector u, rounding adds
a variance of about `eps^2/25 sum_j u_j^2 E h_j^2`, to which a coordinate that is small, but exact, contributes little.
What float32 computed earlier (the mean in a LayerNorm) may err in all coordinates at once, which adds up to d times as
much (Cauchy-Schwarz): for float32 features of equal coordinates the bound is `eps^2 E |h|^2`. Values that lay on a grid
before may also round alike in all coordinates, so a direction with a little more variance still counts as rounding if
a gap separates it from all directions that are kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from neuralcollapse.errors import Undefined
from neuralcollapse.geometry.matrix import (
    NARROW,
    BlockedMatrix,
    Noise,
    between_directions,
    inverse_gram,
    largest,
    many_directions,
    quadratic_forms,
)
from neuralcollapse.geometry.moments import ClassMoments
from neuralcollapse.geometry.products import in_float32
from neuralcollapse.geometry.rounding import NAMES

OVERFLOW = "squares of the values leave the range of float64: scale the features and weights"
# Entries of mu_k - mu_G below this share of the largest entry of the class means are rounding alone.
_ROUNDING = {torch.float64: 1e-13, torch.float32: 1e-6}
_SINGLE, _DOUBLE = torch.finfo(torch.float32).eps, torch.finfo(torch.float64).eps
_TINY = 1e-300
_PRODUCTS = 8  # spacings by which the sums of products in the scatter may be off along a direction
# As shares of eps^2 E h_j^2: a variance up to the first is rounding; up to the second it is if the next larger one is
# _GAP times as large. tests/geometry/test_means.py holds them to features of known rank in each dtype.
_ROUNDED, _ALIKE, _GAP = 0.25, 8.0, 64.0
# A LayerNorm of rows whose mean is far larger than their spread errs by more than its outputs show. Up to _FAR_ROWS
# times as much, a direction counts as rounding if its class means are no further apart than _EXPLAINED times what its
# own scatter explains, and _FAR_GAP times nearer than along any direction that is kept.
_FAR_ROWS, _EXPLAINED, _FAR_GAP = 1e4, 4.0, 1e6


class Directions(NamedTuple):
    """Variances along orthonormal directions that the centred class means span, and which are rounding alone."""

    vectors: Tensor  # (d, r) the directions, as columns
    between: Tensor  # (r,) variance of the class means along each, over the classes
    within: Tensor  # (r,) variance about the class means, over the samples
    left_out: Tensor  # (r,) bool


class CentredMeans:
    """The matrix M of rows mu_k - mu_G over the classes seen, mu_G the mean of the samples.

    Args:
        moments: of the features.
        numbers: (K,) by which the user knows the classes of the moments, where they are some of more.

    Attributes:
        seen: (K',) the places in the moments of the classes that have samples.
        unseen: the others, as the user knows them.
        counts: (K',) the samples of the classes seen, float64.
        num_samples: all of them.
        single: whether no class has more than one sample.
        left_out: which directions were left out as rounding, in words, once `directions` has been read.
    """

    def __init__(self, moments: ClassMoments, numbers: Tensor | None = None) -> None:
        self.moments = moments
        self.numbers = numbers
        counts = moments.counts
        every = counts.cpu()
        self.complete = bool((every > 0).all())
        self.seen = torch.arange(len(counts), device=counts.device) if self.complete else counts.nonzero().flatten()
        self.unseen = self.called((every == 0).nonzero().flatten())
        self.single = int(every.max()) == 1  # whether every class has one sample
        self.num_samples = int(every.sum())
        self.counts = (counts if self.complete else counts[self.seen]).double()
        self.left_out = ""

    def called(self, places: Tensor) -> list[int]:
        """The classes at these places of the moments, as the user knows them."""
        found: list[int] = (places if self.numbers is None else self.numbers[places.to(self.numbers.device)]).tolist()
        return found

    @cached_property
    def matrix(self) -> BlockedMatrix:
        """M; `Undefined` for fewer than two classes, or when all means coincide."""
        moments = self.moments
        if len(self.seen) == 0:
            raise Undefined("no samples were seen")
        if len(self.seen) == 1:
            raise Undefined(
                f"only class {self.called(self.seen)[0]} has samples, and a spread between classes needs two"
            )
        rounding = _ROUNDING[moments.means.dtype] * self._largest
        matrix = self.rows(moments.means, self.centre, math.sqrt(moments.feature_dim) * rounding)
        size = matrix.largest
        if not math.isfinite(size * size * matrix.count * matrix.dim):
            raise Undefined(OVERFLOW)
        if size <= rounding:
            raise Undefined("all class means coincide, so there is no spread between classes")
        matrix.noise = self._noise
        if matrix.directed == 0:
            raise Undefined(f"all class means coincide up to the rounding of {self._type}")
        return matrix

    def centred_blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """M in blocks of rows that are the caller's own, even where it is zero."""
        for part in self._given.parts():
            yield part, self._given.block(part) - self.centre

    @cached_property
    def centre(self) -> Tensor:
        """(d,) mu_G."""
        return self.moments.global_mean

    @cached_property
    def _given(self) -> BlockedMatrix:
        """The class means as they are."""
        return self.rows(self.moments.means)

    def rows(self, vectors: Tensor, shift: Tensor | None = None, rounding: float = 0.0) -> BlockedMatrix:
        """The rows of the classes seen, less a shift, of a matrix with a row for each class, such as a weight."""
        matrix = self._rows(vectors, shift, rounding)
        matrix.numbers = self._seen_numbers
        return matrix

    def _rows(self, vectors: Tensor, shift: Tensor | None, rounding: float) -> BlockedMatrix:
        return BlockedMatrix(vectors, None if self.complete else self.seen, shift, rounding)

    @cached_property
    def _seen_numbers(self) -> Tensor:
        """(K',) the classes seen, as the user knows them."""
        return self.seen if self.numbers is None else self.numbers[self.seen.to(self.numbers.device)]

    def values(self, vector: Tensor) -> Tensor:
        """(K',) those of the classes seen, of a vector with a value for each class, such as a bias."""
        return vector[self.seen]

    @cached_property
    def _largest(self) -> float:
        """The largest absolute entry of the class means."""
        return float(largest(self.moments.means))

    @cached_property
    def variances(self) -> Tensor:
        """(d,) the diagonal of S_W."""
        return self.moments.upper.diagonal() / self.counts.sum()

    @cached_property
    def within_over_between(self) -> Tensor:
        """`tr(S_W S_B^+)` over the directions that are more than rounding."""
        if self._certain is not None:
            return self._certain
        found = self.directions
        return torch.where(found.left_out, 0.0, found.within / found.between).sum()

    @property
    def basis(self) -> Tensor | None:
        """(d, r) the directions that are more than rounding; None if they are all that K classes may have in d."""
        if self._certain is not None:
            return None
        kept = self.directions.vectors[:, ~self.directions.left_out]
        return None if kept.shape[1] == min(self.matrix.count - 1, self.matrix.dim) else kept

    @cached_property
    def _certain(self) -> Tensor | None:
        return self._without_doubt()

    def _without_doubt(self) -> Tensor | None:
        """`tr(S_W S_B^+)` by an inverse; None unless it is certain that no direction is rounding, nor lost by it.

        For many classes in many dimensions this takes a small part of the time of the eigenvectors.
        """
        matrix, dim = self.matrix, self.moments.feature_dim
        if not many_directions(matrix):
            return None
        inverse, least, most = inverse_gram(matrix, self.counts)
        size, spread = (each.max() for each in self._sizes)  # no direction has more
        single = dim * min(self._rounding, _SINGLE) ** 2
        shares = dim * _ROUNDING[self.moments.means.dtype] ** 2, _ALIKE * self._rounding**2 + single
        bound = torch.maximum(max(shares) * size, _FAR_ROWS * single * spread)
        if not bool((least > NARROW * most) & (least / matrix.count > bound)):
            return None
        if dim < matrix.count:
            products = self.moments.upper * inverse
            total = 2 * products.triu().sum() - products.trace()
        else:
            rows = (inverse * matrix.polar.lengths) @ matrix.polar.unit
            total = quadratic_forms(self.moments.upper, rows.T).sum()
        return total / self.counts.sum() * matrix.count

    @cached_property
    def directions(self) -> Directions:
        """The directions of S_B; `Undefined` when all are rounding alone."""
        matrix = self.matrix
        vectors, squares, left_out = between_directions(matrix, self._rounding_alone)
        dropped, kept = torch.stack([(left_out & ~self._zero).sum(), (~left_out).sum()]).tolist()
        if dropped:  # more than those that are zero up to float64
            self.left_out = (
                f"{dropped} of {min(matrix.count - 1, matrix.dim)} directions of the class means hold only the "
                f"rounding of {self._type}: nc1 is taken over the other {kept} (rank {kept})"
            )
        if kept == 0:
            raise Undefined(f"the class means differ only by the rounding of {self._type}")
        return Directions(vectors, squares / matrix.count, self._within, left_out)

    def _rounding_alone(self, vectors: Tensor, squares: Tensor) -> Tensor:
        """(r,) bool: the directions along which all variance, within classes and between them, may be rounding.

        Keeps the variances within classes, and which directions are zero up to float64, for `directions`.
        """
        eps, dim, between = self._rounding, self.moments.feature_dim, squares / self.matrix.count
        self._within = quadratic_forms(self.moments.upper, vectors).div_(self.counts.sum()).clamp_(min=0)
        size, spread, scatter = torch.stack([*self._sizes, self.variances]) @ vectors.square()
        lost, self._zero = (
            between <= dim * relative**2 * size
            for relative in (_ROUNDING[self.moments.means.dtype], _ROUNDING[torch.float64])
        )
        if eps > 0:
            lost = lost | self._typed(eps, between, self._within, size, spread, scatter)
        return lost

    def _typed(
        self, eps: float, between: Tensor, within: Tensor, size: Tensor, spread: Tensor, scatter: Tensor
    ) -> Tensor:
        """(r,) bool: the directions that hold no more than the rounding of a dtype with this spacing."""
        unsure = self._unsure(scatter)
        alone = rounding_alone(between + (within - unsure).clamp(min=0), size, eps, self.moments.feature_dim)
        far = _FAR_ROWS * computed_alike(eps, self.moments.feature_dim) * spread
        explained = _EXPLAINED * (within + unsure) * (1 / self.counts).mean()
        perhaps = (between <= far) & (within <= far + unsure) & (between <= explained)
        return _with_those_below_a_gap(alone, perhaps, between / spread.clamp(min=_TINY), _FAR_GAP)

    def _unsure(self, scatter: Tensor) -> Tensor:
        """(r,) by how much products may have put the variances off, given `sum_j u_j^2 S_jj` of the directions u."""
        eps, dim = self._rounding, self.moments.feature_dim
        return _PRODUCTS * (_SINGLE if in_float32(eps, dim) else _DOUBLE) * scatter

    def spread_is_rounding(self, vectors: Tensor, variances: Tensor) -> Tensor:
        """(r,) bool: which variances of the samples (r,), along directions (d, r), may be rounding alone.

        The variances are eigenvalues of S_W or of a sum with it.
        """
        size, scatter = torch.stack([self._sizes[0], self.variances]) @ vectors.square()
        lost = variances <= self.moments.feature_dim * _ROUNDING[self.moments.means.dtype] ** 2 * size
        beyond = (variances - self._unsure(scatter)).clamp(min=0)
        return lost | rounding_alone(beyond, size, self._rounding, self.moments.feature_dim)

    @cached_property
    def largest_rounding(self) -> float:
        """A variance that rounding alone reaches along no direction."""
        dim, eps = self.moments.feature_dim, self._rounding
        size, scatter = self._sizes[0].max(), self.variances.max()
        share = max(dim * _ROUNDING[self.moments.means.dtype] ** 2, _ALIKE * eps**2 + computed_alike(eps, dim))
        return float(share * size + self._unsure(scatter))

    @cached_property
    def _sizes(self) -> tuple[Tensor, Tensor]:
        """(d,) `E h_j^2` and the variance of h_j: over samples, or with equal weight for each class if that is more."""
        weights = torch.stack([self.counts / self.counts.sum(), torch.full_like(self.counts, 1 / len(self.counts))])

        def squares(part: slice) -> Tensor:
            means = self._given.block(part)
            return torch.stack([weights[:, part] @ means.square(), weights[:, part] @ (means - self.centre).square_()])

        size, spread = self._given.total(squares)
        return torch.maximum(size[0] + self.variances, size[1]), torch.maximum(spread[0] + self.variances, spread[1])

    @cached_property
    def _noise(self) -> Noise:
        """What the rounding of the features may leave in each class mean.

        The larger of two variances: eps^2/4 over the number of samples, as rounding moves a sample by eps/2 at most;
        and eps^2/12 less the spread of the class, as rounding may move all samples of a class without spread alike.
        """
        size, square = self._sizes[0], self._rounding**2
        spreads = self.class_variances / size.sum().clamp(min=_TINY)
        return Noise(torch.maximum(square / (4 * self.counts), square / 12 - spreads), size)

    @cached_property
    def class_variances(self) -> Tensor:
        """(K',) V_k of the classes seen: the mean of `|h - mu_k|^2`."""
        spreads = self.moments.spreads
        return (spreads if self.complete else spreads[self.seen]) / self.counts

    @cached_property
    def _rounding(self) -> float:
        return self.moments.rounding

    @property
    def _type(self) -> str:
        """The name of the coarsest dtype involved."""
        eps = max(self._rounding, torch.finfo(self.moments.means.dtype).eps)
        return NAMES.get(eps, f"a type of spacing {eps:.1e}")


def computed_alike(eps: float, dim: int) -> float:
    """As a share of `E h_j^2`, the variance that values computed in float32 or finer may err by in all coordinates."""
    return dim * min(eps, _SINGLE) ** 2


def rounding_alone(squares: Tensor, sizes: Tensor, eps: float, dim: int) -> Tensor:
    """(r,) bool: which squares along r directions u hold no more than the rounding of values to a spacing eps.

    Args:
        squares: (r,) variances, or squared lengths.
        sizes: (r,) `sum_j u_j^2 size_j`, with size_j the mean square (or the sum of squares) of coordinate j.
        eps: of the coarsest dtype.
        dim: d.
    """
    shares, computed = squares / sizes.clamp(min=_TINY), computed_alike(eps, dim)
    alone = shares <= _ROUNDED * eps**2 + computed
    return _with_those_below_a_gap(alone, shares <= _ALIKE * eps**2 + computed, shares, _GAP)


def _with_those_below_a_gap(alone: Tensor, perhaps: Tensor, sizes: Tensor, gap: float) -> Tensor:
    """`alone`, and the smallest sizes of `perhaps` up to the last gap, where the next size is `gap` times as large."""
    ordered, order = sizes.sort()
    ends = (alone | perhaps)[order][:-1].cumprod(0).bool() & (ordered[1:] > gap * ordered[:-1])
    below = torch.cat([ends.flip(0).cummax(0).values.flip(0), ends.new_zeros(1)])  # whether a gap follows
    return alone | torch.zeros_like(alone).scatter(0, order, below)
