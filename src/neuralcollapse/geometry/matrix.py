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

_TILE = 1024  # rows of a block on a CPU, so that a tile of class pairs takes 8 MB of float64
# On an accelerator, where each operation has its price, blocks have more rows: values of a block, rows of a tile.
_DEVICE_VALUES, TILE_ROWS = 2**25, 8192
_MIRRORED = 128  # rows of a block in which a triangle is mirrored on a CPU
_LOST = 16  # float64 spacings that a matrix product may lose, relative to the sizes of its factors
_EXACT_SVD = 512  # up to this many directions a full SVD costs less than a second
NARROW = 1e-8  # the least share of the largest eigenvalue of a Gram matrix that is good to 1e-8
_PLAIN = (1e-100, 1e100)  # entries up to these sizes have squares, and sums of squares, that are float64 numbers


class Noise(NamedTuple):
    """What rounding may have put into each entry of K vectors: the square of entry (k, j) is shares[k] sizes[j]."""

    shares: Tensor  # (K,)
    sizes: Tensor  # (d,)


class Polar(NamedTuple):
    """Rows as lengths and directions. Products of these neither under- nor overflow."""

    lengths: Tensor  # (K,)
    unit: Tensor  # (K, d), zero for a row of zeros

    @property
    def shares(self) -> Tensor:
        """(K,) the lengths over the longest."""
        return self.lengths / self.lengths.max()


class BlockedMatrix:
    """The (K, d) float64 matrix `V[index] - shift`, made one block of rows at a time.

    V stays as it is given, in whatever dtype. `block` converts some of its rows to float64. What several measures need
    (lengths, products) is computed once and kept.

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
        self.numbers: Tensor | None = None  # (K,) of the classes that the rows are of, as the user knows them
        self.count = len(vectors) if index is None else len(index)
        self.dim = vectors.shape[1]
        self.small = self.count <= self.dim + 1  # then K x K matrices are no larger than the matrix itself

    def block(self, part: slice | Tensor) -> Tensor:
        """The given rows, float64."""
        taken = self._vectors[part] if self._index is None else self._vectors[self._index[part]]
        rows = taken.to(torch.float64)
        return rows if self._shift is None else rows - self._shift

    def joined(self, found: Tensor) -> Tensor:
        """The sum over all rows, given that over the rows of this process: those are all, but in a `ShardedMatrix`."""
        return found

    def least(self, found: float) -> float:
        """The least over all rows, given that over the rows of this process."""
        return found

    def settled(self, *found: Tensor) -> tuple[Tensor, ...]:
        """What was computed from numbers of the whole matrix, the same bits in every process."""
        return found

    def total(self, of: Callable[[slice], Tensor]) -> Tensor:
        """The sum over all rows of what a function gives for a block of them."""
        first, *others = self.parts()
        return self.joined(sum((of(part) for part in others), of(first)))

    def rowwise(self, of: Callable[[slice], Tensor]) -> Tensor:
        """(K,) what a function gives for each row of a block."""
        return torch.cat([of(part) for part in self.parts()])

    @cached_property
    def gram(self) -> Tensor:
        """(d, d) `M'M`."""
        return self.gram_of(self.block)

    def gram_of(self, rows: Callable[[slice], Tensor]) -> Tensor:
        """(d, d) `R'R` of what becomes of the rows, block by block."""
        return gram(map(rows, self.parts()))

    @cached_property
    def triangle(self) -> Tensor:
        """R (d, d) of a QR decomposition, block by block, with the singular values and right vectors of the matrix."""
        upper = torch.zeros(0, self.dim, dtype=torch.float64, device=self._vectors.device)
        for part in self.parts():
            upper = below(upper, self.block(part))
        return upper

    @cached_property
    def polar(self) -> Polar:
        """The whole matrix, for small K."""
        return self._whole[1]

    @cached_property
    def _whole(self) -> tuple[float, Polar]:
        """For small K, its largest absolute entry, and its rows as lengths and directions."""
        rows = self.block(slice(None))
        size = float(largest(rows))
        scale = 1.0 if _PLAIN[0] < size < _PLAIN[1] else size or 1.0
        if scale != 1:
            rows = rows / scale
        lengths = torch.linalg.vector_norm(rows, dim=1)
        divisors = torch.where(lengths > 0, lengths, 1.0)[:, None]
        ours = self._shift is not None or self._index is not None or rows.dtype != self._vectors.dtype
        return size, Polar(lengths * scale, rows.div_(divisors) if ours else rows / divisors)

    @cached_property
    def cosines(self) -> Tensor:
        """(K, K) the products of the rows at length one, for small K."""
        return gram([self.polar.unit.T])

    @cached_property
    def norms(self) -> Tensor:
        """(K,) the lengths of the rows; zero for those that are rounding alone."""
        if self.small:
            norms = self.polar.lengths
        else:
            norms = self.rowwise(lambda part: torch.linalg.vector_norm(self.block(part), dim=1))
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
        return (
            self._whole[0]
            if self.small
            else float(torch.stack([largest(self.block(part)) for part in self.parts()]).max())
        )

    def times(self, vector: Tensor) -> Tensor:
        """(K,) the matrix times a vector (d,)."""
        if self.small:
            return self.polar.lengths * (self.polar.unit @ vector)
        return self.rowwise(lambda part: self.block(part) @ vector)

    @cached_property
    def directed(self) -> int:
        """How many rows are more than rounding."""
        return int(self.norms.count_nonzero())

    def with_directions(self) -> BlockedMatrix:
        """The matrix; `Undefined` when a row is zero."""
        if self.directed < self.count:
            zero, what = (self.norms == 0).nonzero().flatten(), "number"
            if self.numbers is not None:
                zero, what = self.numbers[zero.to(self.numbers.device)], "class" if len(zero) == 1 else "classes"
            raise Undefined(f"vectors of zero length have no direction ({what} {listed(zero.tolist())})")
        return self

    def unit(self, part: slice | Tensor) -> Tensor:
        """The given rows, normalised to length one; `Undefined` when a row of the matrix is zero."""
        self.with_directions()
        return self.polar.unit[part] if self.small else self.block(part) / self.norms[part, None]

    def parts(self, most: int | None = None) -> list[slice]:
        """Slices of so many rows, or as suits the device, that cover the matrix."""
        size = self._block_rows(most)
        return [slice(start, min(start + size, self.count)) for start in range(0, self.count, size)]

    def _block_rows(self, most: int | None) -> int:
        on_cpu = self._vectors.device.type == "cpu"
        return min(most or self.count, _TILE if on_cpu else max(_TILE, _DEVICE_VALUES // self.dim))

    def tiles(self) -> Iterator[tuple[slice, slice]]:
        """Pairs of slices that cover the upper triangle of the K x K pairs of rows."""
        parts = self.parts(TILE_ROWS)
        return ((first, second) for i, first in enumerate(parts) for second in parts[i:])


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
    return mirror(upper)


def mirror(upper: Tensor) -> Tensor:
    """The symmetric matrix of an upper triangle, made in place: on a CPU in blocks, which stay in cache."""
    step = _MIRRORED if upper.device.type == "cpu" else len(upper)
    for start in range(0, len(upper), step):
        stop = start + step
        corner = upper[start:stop, start:stop]
        corner.copy_(corner.triu() + corner.triu(1).T)
        if stop < len(upper):
            upper[stop:, start:stop] = upper[start:stop, stop:].T
    return upper


def quadratic_forms(upper: Tensor, vectors: Tensor) -> Tensor:
    """(r,) `v'Sv` for each column v of the vectors (d, r), S symmetric: only its upper triangle (d, d) is read."""
    dim = len(upper)
    step = max(256, -(-dim // 8)) if upper.device.type == "cpu" else dim
    total = torch.zeros_like(vectors[0])
    for start in range(0, dim, step):
        near, stop = vectors[start : start + step], start + step
        corner = upper[start:stop, start:stop]
        product = (corner.triu() + corner.triu(1).T) @ near
        if stop < dim:
            product.addmm_(upper[start:stop, stop:], vectors[stop:], alpha=2)
        total += product.mul_(near).sum(0)
    return total


def distance_to_etf(left: BlockedMatrix, right: BlockedMatrix | None = None) -> Tensor:
    """`|A/|A|_F - E|_F` for `A = left right'` (`left left'` without `right`), `E = (I - 11'/K)/sqrt(K-1)`."""
    if left.count < 2:
        raise Undefined("one class spans no simplex")
    count = left.count
    other = left if right is None else right
    if left.largest == 0 or other.largest == 0:
        raise Undefined("the vectors are all zero")
    if left.small:
        product = left.cosines.clone() if right is None else left.polar.unit @ right.polar.unit.T
        product.mul_(left.polar.shares[:, None]).mul_(other.polar.shares)
        norm = torch.linalg.vector_norm(product)
        if right is not None:
            squares = left.polar.shares.square() @ left.polar.unit.square(), right.polar.shares.square().sum()
            lost = (_LOST * torch.finfo(norm.dtype).eps) ** 2
            _check_product(norm.square(), *squares, lost, right.noise, right.polar.lengths.max())
        product.div_(norm).add_(1 / (count * math.sqrt(count - 1)))
        product.diagonal().sub_(1 / math.sqrt(count - 1))
        return torch.linalg.vector_norm(product)
    # With K > d+1 the rank of A is too low for it to be near E, so this expansion does not cancel, and
    # |A|_F^2 = <left'left, right'right> needs no K x K matrix.
    norm = (left.gram * other.gram).sum().sqrt()
    if right is not None:
        columns, sizes = _column_squares(left), _column_squares(right)
        lost = _LOST * torch.finfo(torch.float64).eps  # of the square, which is itself a sum that cancels
        square = (norm / left.largest / right.largest).square()
        _check_product(square, columns, sizes.sum(), lost, right.noise, right.largest)

    def columns_of(part: slice) -> Tensor:
        first = left.block(part)
        second = first if right is None else right.block(part)
        return torch.stack([(first * second).sum(0), first.sum(0), second.sum(0)])

    products, ours, theirs = left.total(columns_of)
    return (2 - 2 * (products.sum() - ours @ theirs / count) / (math.sqrt(count - 1) * norm)).sqrt()


def _column_squares(matrix: BlockedMatrix) -> Tensor:
    """(d,) the squared length of each column, over the square of the largest entry."""
    return matrix.total(lambda part: (matrix.block(part) / matrix.largest).square().sum(0))


def _check_product(
    square: Tensor, columns: Tensor, size: Tensor, lost: float, noise: Noise | None, scale: Tensor | float
) -> None:
    """Raise `Undefined` unless the product `left right'` is more than rounding.

    Args:
        square: its squared Frobenius norm.
        columns: (d,) the squared lengths of the columns of `left`.
        size: the squared Frobenius norm of `right`.
        lost: the share of |left|^2 |right|^2 that the product loses in float64.
        noise: that of `right`.
        scale: what `right` was divided by in the above.
    """
    least = lost * columns.sum() * size
    if noise is not None:
        least += noise.shares.sum() * (columns @ noise.sizes) / scale**2
    if not bool(square > least):
        raise Undefined("weight and means are perpendicular up to rounding: their products have no geometry")


def between_directions(
    means: BlockedMatrix, rounding_alone: Callable[[Tensor, Tensor], Tensor], most: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Orthonormal directions (d, r) that the class means span, r <= K-1, and their squared singular values (r,).

    Or those of another matrix, of at most `most` directions. By SVD; for large matrices from the eigenvectors of the
    smaller Gram matrix, as long as the spectrum of what is kept is narrow enough for an accuracy of 1e-8.
    `rounding_alone(directions, squares)` says which directions to leave out, as a mask (r,) that is returned too.
    """
    keep = min(means.count - 1 if most is None else most, means.dim)
    wide = means.dim < means.count
    if many_directions(means):
        squares, vectors = means.settled(*torch.linalg.eigh(means.gram if wide else _small_gram(means)))
        squares, vectors = squares[-keep:].clamp(min=0), vectors[:, -keep:]
        unsure = squares <= NARROW * squares[-1]
        doubts = bool(unsure.any())
        if not wide:
            vectors = means.polar.unit.T @ (means.polar.lengths[:, None] * vectors)
            sizes = torch.where(unsure, torch.linalg.vector_norm(vectors, dim=0), squares.sqrt()) if doubts else None
            vectors /= squares.sqrt() if sizes is None else sizes.clamp(min=1e-300)
        if doubts:  # the Gram matrix has lost their digits: take them from the rows
            squares[unsure] = means.total(lambda part: (means.block(part) @ vectors[:, unsure]).square().sum(0))
        (left_out,) = means.settled(rounding_alone(vectors, squares))
        if not (doubts and bool((unsure & ~left_out).any())):
            return vectors, squares, left_out
    whole = means.triangle if wide else means.block(slice(None))
    singular, right = means.settled(*torch.linalg.svd(whole, full_matrices=False)[1:])
    real = int((singular[:keep] > singular[0] * max(means.count, means.dim) * torch.finfo(singular.dtype).eps).sum())
    vectors, squares = right[:real].T, singular[:real].square()  # in descending order
    return vectors, squares, rounding_alone(vectors, squares)


def many_directions(matrix: BlockedMatrix) -> bool:
    """Whether there are so many that an SVD of the matrix takes long."""
    return min(matrix.count, matrix.dim) > _EXACT_SVD


def inverse_gram(matrix: BlockedMatrix, null: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The inverse of `M'M`, or for small K of `MM' + a nn'`, by Cholesky, and bounds on the eigenvalues of the latter.

    The term with n = `null`, for which `n'M = 0`, makes up for the one direction that M is missing: then the inverse
    times M is `(MM')^+ M`.

    Returns:
        inverse: (d, d) or (K, K).
        least: at most the smallest eigenvalue of what was inverted; 0 or NaN if it is singular.
        most: at least the largest.
    """
    if matrix.dim < matrix.count:
        whole = matrix.gram
    else:
        whole = _small_gram(matrix)
        whole += (whole.trace() / matrix.count / null.square().sum()) * null[:, None] * null
    factor, failed = torch.linalg.cholesky_ex(whole)
    ones = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
    factor = torch.where(failed > 0, ones, factor)
    inverse = gram([torch.linalg.solve_triangular(factor, ones, upper=False)])  # cholesky_inverse is slow on 2 threads
    least = torch.where(failed > 0, 0.0, 1 / torch.linalg.vector_norm(inverse))
    settled = matrix.settled(inverse, least, torch.linalg.vector_norm(whole))
    return settled[0], settled[1], settled[2]


def _small_gram(matrix: BlockedMatrix) -> Tensor:
    """(K, K) `MM'`, for small K."""
    lengths = matrix.polar.lengths
    return matrix.cosines * lengths[:, None] * lengths


def below(upper: Tensor, rows: Tensor) -> Tensor:
    """R of a QR decomposition of the rows (n, d) below another R."""
    return torch.linalg.qr(torch.cat([upper, rows]), mode="r")[1]


def largest(values: Tensor) -> Tensor:
    """The largest absolute value."""
    return torch.linalg.vector_norm(values, ord=math.inf)
