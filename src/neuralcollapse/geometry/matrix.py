"""BlockedMatrix: K vectors as the rows of a float64 matrix that is read in blocks, and the linear algebra on it.

Nothing here makes a second K x d matrix when K is large, nor a K x K matrix when K > d+1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from neuralcollapse.checks import check_vectors
from neuralcollapse.errors import Undefined, listed
from neuralcollapse.geometry.products import add_gram

_TILE = 1024  # rows of a block, so that a tile of class pairs takes 8 MB of float64
_LOST = 16  # float64 spacings that a matrix product may lose, relative to the sizes of its factors
_EXACT_SVD = 512  # up to this many directions a full SVD costs less than a second


class Noise(NamedTuple):
    """What rounding may have put into each entry of K vectors: the square of entry (k, j) is shares[k] sizes[j]."""

    shares: Tensor  # (K,)
    sizes: Tensor  # (d,)


class BlockedMatrix:
    """The (K, d) float64 matrix `V[index] - shift`, made one block of rows at a time.

    V stays as it is given, in whatever dtype. `block` converts some of its rows to float64.

    Args:
        vectors: (N, d) V.
        index: (K,) the rows of V that make the matrix; by default all.
        shift: (d,) what is subtracted from each row; by default nothing.
        rounding: a row of at most this length counts as zero.
    """

    def __init__(
        self, vectors: Tensor, index: Tensor | None = None, shift: Tensor | None = None, rounding: float = 0.0
    ) -> None:
        self._vectors = vectors
        self._index = index
        self._shift = shift
        self.rounding = rounding
        self.noise: Noise | None = None  # what rounding may have put into V
        self.count = len(vectors) if index is None else len(index)
        self.dim = vectors.shape[1]

    def block(self, part: slice | Tensor) -> Tensor:
        """The given rows, float64."""
        taken = self._vectors[part] if self._index is None else self._vectors[self._index[part]]
        rows = taken.to(torch.float64)
        return rows if self._shift is None else rows - self._shift

    @cached_property
    def whole(self) -> Tensor:
        """The whole matrix (K, d), for small K."""
        return self.block(slice(None))

    @cached_property
    def gram(self) -> Tensor:
        """(d, d) `M'M`."""
        return gram(map(self.block, self.parts()))

    @cached_property
    def norms(self) -> Tensor:
        """(K,) the lengths of the rows; zero for those that are rounding alone."""
        norms = torch.cat([torch.linalg.vector_norm(self.block(part), dim=1) for part in self.parts()])
        return torch.where(norms > self.noise_squares.sqrt().clamp(min=self.rounding), norms, 0.0)

    @cached_property
    def noise_squares(self) -> Tensor:
        """(K,) the squared length that rounding alone may give each row."""
        if self.noise is None:
            return torch.zeros(self.count, dtype=torch.float64, device=self._vectors.device)
        return self.noise.shares * self.noise.sizes.sum()

    @cached_property
    def largest(self) -> float:
        """The largest absolute value of an entry."""
        return max(largest(self.block(part)) for part in self.parts())

    def unit(self, part: slice | Tensor) -> Tensor:
        """The given rows, normalised to length one; `Undefined` when a row of the matrix is zero."""
        norms = self.norms[part, None]
        if not bool(norms.all()):
            zero = (self.norms == 0).nonzero().flatten().tolist()
            raise Undefined(f"vectors of zero length have no direction (number {listed(zero)})")
        return self.block(part).div_(norms) if self._shift is not None else self.block(part) / norms

    def parts(self) -> list[slice]:
        """Slices of at most `_TILE` rows that cover the matrix."""
        return [slice(start, min(start + _TILE, self.count)) for start in range(0, self.count, _TILE)]


def as_matrix(vectors: Tensor) -> BlockedMatrix:
    """The vectors as a BlockedMatrix, after checking that they are a finite (K, d) floating-point tensor."""
    check_vectors(vectors)
    return BlockedMatrix(vectors.detach())


def at_least_two(matrix: BlockedMatrix) -> BlockedMatrix:
    """The matrix; `Undefined` when it has a single row, and so no pair of rows."""
    if matrix.count < 2:
        raise Undefined("one class has no pairs")
    return matrix


def gram(blocks: Iterable[Tensor]) -> Tensor:
    """(d, d) `M'M` of the matrix M that the blocks of rows make together."""
    upper: Tensor | None = None
    for rows in blocks:
        if upper is None:
            upper = rows.new_zeros(rows.shape[1], rows.shape[1])
        add_gram(upper, rows)
    assert upper is not None
    return upper.triu_() + upper.triu(1).T


def distance_to_etf(left: BlockedMatrix, right: BlockedMatrix | None = None) -> float:
    """`|A/|A|_F - E|_F` for `A = left right'` (`left left'` without `right`), `E = (I - 11'/K)/sqrt(K-1)`."""
    if left.count < 2:
        raise Undefined("one class spans no simplex")
    count, dim = left.count, left.dim
    other = left if right is None else right
    if count <= dim + 1:
        product = unit_size(left.whole) @ unit_size(other.whole).T
        norm = torch.linalg.vector_norm(product)
        _check_product(left, right, float(norm), (_LOST * torch.finfo(norm.dtype).eps) ** 2)
        etf = (torch.eye(count, dtype=product.dtype, device=product.device) - 1 / count) / math.sqrt(count - 1)
        return float(torch.linalg.vector_norm(product / norm - etf))
    # With K > d+1 the rank of A is too low for it to be near E, so this expansion does not cancel, and
    # |A|_F^2 = <left'left, right'right> needs no K x K matrix.
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


def _check_product(left: BlockedMatrix, right: BlockedMatrix | None, norm: float, lost: float) -> None:
    """Raise `Undefined` unless `left right'` is more than rounding.

    `norm` is its Frobenius norm over the largest entries of both; `lost` is the share of |left|^2 |right|^2 that the
    product loses in float64.
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
    means: BlockedMatrix, rounding_alone: Callable[[Tensor, Tensor], Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Orthonormal directions (d, r) that the class means span, r <= K-1, and their squared singular values (r,).

    By SVD; for large matrices from the eigenvectors of the smaller Gram matrix, as long as the spectrum of what is kept
    is narrow enough for an accuracy of 1e-8. `rounding_alone(directions, squares)` says which directions to leave out.
    """
    pick = rounding_alone or (lambda _, squares: torch.zeros_like(squares, dtype=torch.bool))
    keep = min(means.count - 1, means.dim)
    wide = means.dim < means.count
    if min(means.count, means.dim) > _EXACT_SVD:
        small = means.gram if wide else means.whole @ means.whole.T
        squares, vectors = torch.linalg.eigh(small)
        squares, vectors = squares[-keep:].clamp(min=0), vectors[:, -keep:]
        unsure = squares <= 1e-8 * squares[-1]
        if not wide:
            vectors = means.whole.T @ vectors
            vectors /= torch.where(unsure, torch.linalg.vector_norm(vectors, dim=0), squares.sqrt()).clamp(min=1e-300)
        if bool(unsure.any()):  # the Gram matrix has lost their digits: take them from the rows
            lengths = [(means.block(part) @ vectors[:, unsure]).square().sum(0) for part in means.parts()]
            squares[unsure] = torch.stack(lengths).sum(0)
        left_out = pick(vectors, squares)
        if not bool((unsure & ~left_out).any()):
            return vectors[:, ~left_out], squares[~left_out]
    _, singular, right = torch.linalg.svd(triangle(means) if wide else means.whole, full_matrices=False)
    least = float(singular[0]) * max(means.count, means.dim) * torch.finfo(singular.dtype).eps
    real = singular[:keep] > least
    vectors, squares = right[:keep][real].T, singular[:keep][real].square()
    left_out = pick(vectors, squares)
    return vectors[:, ~left_out], squares[~left_out]


def triangle(matrix: BlockedMatrix) -> Tensor:
    """R (d, d) of a QR decomposition, block by block: it has the singular values and right vectors of the matrix."""
    upper = matrix.block(slice(0, 0))
    for part in matrix.parts():
        _, upper = torch.linalg.qr(torch.cat([upper, matrix.block(part)]), mode="r")
    return upper


def tiles(matrix: BlockedMatrix) -> Iterator[tuple[slice, slice]]:
    """Pairs of slices that cover the upper triangle of the K x K pairs of rows."""
    parts = matrix.parts()
    return ((first, second) for i, first in enumerate(parts) for second in parts[i:])


def unit_size(rows: Tensor) -> Tensor:
    """The rows divided by their largest entry, so that products neither under- nor overflow."""
    size = largest(rows)
    return rows / size if 0 < size < math.inf else rows


def largest(values: Tensor) -> float:
    """The largest absolute value."""
    return float(torch.linalg.vector_norm(values, ord=math.inf))
