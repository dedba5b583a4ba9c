"""K vectors as the rows of a matrix: the linear algebra behind the measures, never K x K when K > d+1."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from neuralcollapse.checks import check_finite
from neuralcollapse.errors import InputError, listed
from neuralcollapse.geometry.moments import add_gram
from neuralcollapse.geometry.undefined import Undefined

_TILE = 1024  # rows of a tile of class pairs: 8 MB of float64
_LOST = 16  # float64 spacings that a matrix product may lose, of the sizes of its factors
_EXACT_SVD = 512  # up to this many directions a full SVD costs less than a second


class Noise(NamedTuple):
    """What rounding may have put into each entry of K vectors: its square is shares[k] sizes[j]."""

    shares: Tensor  # (K,)
    sizes: Tensor  # (d,)


class Rows:
    """K vectors as the rows of a float64 matrix, with the products that several measures share.

    The vectors stay as they are given, in whatever type: `block` makes float64 rows of a part of them, so that with
    large K no second K x d matrix is made.

    Args:
        vectors: (N, d), of which the rows are taken.
        index: (K,) the rows that are meant; all of them when not given.
        shift: (d,) what is subtracted from each.
        rounding: differences up to it are rounding's: a vector that short counts as zero.
    """

    def __init__(
        self, vectors: Tensor, index: Tensor | None = None, shift: Tensor | None = None, rounding: float = 0.0
    ) -> None:
        self._vectors = vectors
        self._index = index
        self._shift = shift
        self.rounding = rounding
        self.noise: Noise | None = None  # what the vectors may owe to the rounding of what they were made from
        self.count = len(vectors) if index is None else len(index)
        self.dim = vectors.shape[1]

    def block(self, part: slice | Tensor) -> Tensor:
        """The given rows, float64."""
        taken = self._vectors[part] if self._index is None else self._vectors[self._index[part]]
        rows = taken.to(torch.float64)
        return rows if self._shift is None else rows - self._shift

    @cached_property
    def rows(self) -> Tensor:
        """(K, d) all of them; for few rows."""
        return self.block(slice(None))

    @cached_property
    def gram(self) -> Tensor:
        """(d, d) sum_k r_k r_k'."""
        return gram(map(self.block, self.parts()))

    @cached_property
    def norms(self) -> Tensor:
        """(K,) lengths."""
        norms = torch.cat([torch.linalg.vector_norm(self.block(part), dim=1) for part in self.parts()])
        return torch.where(norms > self.noise_squares.sqrt().clamp(min=self.rounding), norms, 0.0)

    @cached_property
    def noise_squares(self) -> Tensor:
        """(K,) squared lengths that the vectors may owe to the rounding of what they were made from."""
        if self.noise is None:
            return torch.zeros(self.count, dtype=torch.float64, device=self._vectors.device)
        return self.noise.shares * self.noise.sizes.sum()

    @cached_property
    def largest(self) -> float:
        """The largest size of an entry."""
        return max(largest(self.block(part)) for part in self.parts())

    def unit(self, part: slice | Tensor) -> Tensor:
        """The given rows at length one; undefined when one of them is zero."""
        norms = self.norms[part, None]
        if not bool(norms.all()):
            zero = (self.norms == 0).nonzero().flatten().tolist()
            raise Undefined(f"vectors of zero length have no direction (number {listed(zero)})")
        return self.block(part).div_(norms) if self._shift is not None else self.block(part) / norms

    def parts(self) -> list[slice]:
        """The rows in parts of `_TILE`."""
        return [slice(start, min(start + _TILE, self.count)) for start in range(0, self.count, _TILE)]


def as_rows(vectors: Tensor | Rows) -> Rows:
    """The vectors as Rows, after checking that they are a (K, d) floating-point matrix."""
    if isinstance(vectors, Rows):
        return vectors
    if not isinstance(vectors, Tensor) or vectors.dim() != 2 or not vectors.is_floating_point():
        got = f"{tuple(vectors.shape)} {vectors.dtype}" if isinstance(vectors, Tensor) else type(vectors).__name__
        raise InputError(f"expected vectors as a (K, d) floating-point tensor, got {got}: one row for each class")
    check_finite(vectors, "vectors")
    return Rows(vectors.detach())


def same_shape(left: Tensor | Rows, right: Tensor | Rows) -> tuple[Rows, Rows]:
    """Both as Rows, after checking that they have as many rows and columns."""
    first, second = as_rows(left), as_rows(right)
    shapes = (first.count, first.dim), (second.count, second.dim)
    if shapes[0] != shapes[1]:
        raise InputError(
            f"expected weight and means of the same shape (K, d), got {shapes[0]} and {shapes[1]}: one row for each "
            "class"
        )
    return first, second


def at_least_two(vectors: Tensor | Rows) -> Rows:
    """The vectors as rows; undefined where there are no two of them, and so no pair."""
    rows = as_rows(vectors)
    if rows.count < 2:
        raise Undefined("one class has no pairs")
    return rows


def gram(blocks: Iterable[Tensor]) -> Tensor:
    """The sum over blocks of rows of rows' rows, (d, d)."""
    upper: Tensor | None = None
    for rows in blocks:
        if upper is None:
            upper = rows.new_zeros(rows.shape[1], rows.shape[1])
        add_gram(upper, rows)
    assert upper is not None
    return upper.triu_() + upper.triu(1).T


def distance_to_etf(left: Rows, right: Rows | None) -> float:
    """|A/|A|_F - E|_F for A = left right' (right = left when None)."""
    if left.count < 2:
        raise Undefined("one class spans no simplex")
    count, dim = left.count, left.dim
    other = left if right is None else right
    if count <= dim + 1:
        product = unit_size(left.rows) @ unit_size(other.rows).T
        norm = torch.linalg.vector_norm(product)
        _check_product(left, right, float(norm), (_LOST * torch.finfo(norm.dtype).eps) ** 2)
        etf = (torch.eye(count, dtype=product.dtype, device=product.device) - 1 / count) / math.sqrt(count - 1)
        return float(torch.linalg.vector_norm(product / norm - etf))
    # More classes than d+1: A is never near E (its rank is too low), so this expansion does not cancel,
    # and |A|_F^2 = <left'left, right'right> needs no K x K matrix.
    norm = math.sqrt(float((left.gram * other.gram).sum()))
    lost = _LOST * torch.finfo(torch.float64).eps  # of the square, which is itself a sum that cancels
    _check_product(left, right, norm and norm / left.largest / other.largest, lost)
    trace, sums = 0.0, [0.0 * left.gram[0], 0.0 * left.gram[0]]
    for part in left.parts():
        first = left.block(part)
        second = first if right is None else right.block(part)
        trace += float((first * second).sum())
        sums = [sums[0] + first.sum(0), sums[1] + second.sum(0)]
    total = float(sums[0] @ sums[1])
    return math.sqrt(2 - 2 * (trace - total / count) / (math.sqrt(count - 1) * norm))


def _check_product(left: Rows, right: Rows | None, norm: float, lost: float) -> None:
    """Raise unless left right', whose size is `norm` times the largest entries of both, is more than rounding.

    `lost` is the share of |left|^2 |right|^2 that the product loses in float64.
    """
    if norm == 0:
        raise Undefined("the vectors are all zero")
    if right is None:
        return
    columns = torch.stack([(left.block(part) / left.largest).square().sum(0) for part in left.parts()]).sum(0)
    sizes = torch.stack([(right.block(part) / right.largest).square().sum(0) for part in right.parts()]).sum(0)
    least = lost * float(columns.sum() * sizes.sum())
    if right.noise is not None:
        least += float(right.noise.shares.sum() * (columns @ right.noise.sizes)) / right.largest**2
    if norm * norm <= least:
        raise Undefined("weight and means are perpendicular up to rounding: their products have no geometry")


def between_directions(
    means: Rows, rounding_alone: Callable[[Tensor, Tensor], Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Orthonormal directions (d, r) that the class means span, and the squares (r,) of their singular values.

    r <= K-1. By SVD; for large matrices by the eigenvectors of the smaller Gram matrix, as long as the spectrum of what
    is kept is wide enough to be exact to 1e-8. Directions that `rounding_alone` picks are left out.
    """
    pick = rounding_alone or (lambda _, squares: torch.zeros_like(squares, dtype=torch.bool))
    keep = min(means.count - 1, means.dim)
    wide = means.dim < means.count
    if min(means.count, means.dim) > _EXACT_SVD:
        small = means.gram if wide else means.rows @ means.rows.T
        squares, vectors = torch.linalg.eigh(small)
        squares, vectors = squares[-keep:].clamp(min=0), vectors[:, -keep:]
        unsure = squares <= 1e-8 * squares[-1]
        if not wide:
            vectors = means.rows.T @ vectors
            vectors /= torch.where(unsure, torch.linalg.vector_norm(vectors, dim=0), squares.sqrt()).clamp(min=1e-300)
        if bool(unsure.any()):  # what the Gram matrix lost
            lengths = [(means.block(part) @ vectors[:, unsure]).square().sum(0) for part in means.parts()]
            squares[unsure] = torch.stack(lengths).sum(0)
        left_out = pick(vectors, squares)
        if not bool((unsure & ~left_out).any()):
            return vectors[:, ~left_out], squares[~left_out]
    _, singular, right = torch.linalg.svd(triangle(means) if wide else means.rows, full_matrices=False)
    least = float(singular[0]) * max(means.count, means.dim) * torch.finfo(singular.dtype).eps
    real = singular[:keep] > least
    vectors, squares = right[:keep][real].T, singular[:keep][real].square()
    left_out = pick(vectors, squares)
    return vectors[:, ~left_out], squares[~left_out]


def triangle(rows: Rows) -> Tensor:
    """R (d, d) of a QR decomposition of the rows, part by part: it has their singular values and right vectors."""
    upper = rows.block(slice(0, 0))
    for part in rows.parts():
        _, upper = torch.linalg.qr(torch.cat([upper, rows.block(part)]), mode="r")
    return upper


def tiles(rows: Rows) -> Iterator[tuple[slice, slice]]:
    """Pairs of blocks of rows that cover the upper triangle of the K x K pairs."""
    parts = rows.parts()
    return ((first, second) for i, first in enumerate(parts) for second in parts[i:])


def unit_size(rows: Tensor) -> Tensor:
    """The rows over their largest entry, so that products neither under- nor overflow."""
    size = largest(rows)
    return rows / size if 0 < size < math.inf else rows


def largest(values: Tensor) -> float:
    """The largest absolute value."""
    return float(torch.linalg.vector_norm(values, ord=math.inf))
