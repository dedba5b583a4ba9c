"""ShardedMeans: the centred class means where each rank holds those of its own classes, and weights split alike.

Sums over the rows (`M'M`, column sums, traces) are taken over a rank's rows and joined, O(d^2) values; what is one
number a class (counts, lengths) is gathered, O(K). Sampled pairs of rows are gathered some at a time, and for all pairs
the rows of each rank visit the others, block by block. With at most d+1 classes the whole matrix is no larger than the
scatter that every rank holds: it is gathered, and measured as in one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, cast

import torch
from torch import Tensor

from neuralcollapse.errors import InputError
from neuralcollapse.geometry.class_shard import ClassShard
from neuralcollapse.geometry.matrix import TILE_ROWS, BlockedMatrix, below, largest, mirror
from neuralcollapse.geometry.means import CentredMeans
from neuralcollapse.geometry.moments import ClassMoments
from neuralcollapse.geometry.products import add_gram
from neuralcollapse.geometry.ranks import Ranks


class ShardedMatrix(BlockedMatrix):
    """A matrix of which each rank has some rows; all ranks must call every method alike.

    Rows have the numbers that they have in the whole matrix. `parts` covers those of this rank, and `block` gives them;
    inside `tiles` also the visiting rows of another rank, and for a tensor of numbers the rows of any rank.

    Args:
        vectors: (N_r, d) a tensor with this rank's rows.
        index: (K_r,) which of them make this rank's rows of the matrix.
        shift: (d,) what is subtracted from each row; by default nothing.
        rounding: a row of at most this length counts as zero.
        ranks: among which the matrix is split.
        sizes: the number of rows of each rank.
    """

    def __init__(
        self,
        vectors: Tensor,
        index: Tensor | None,
        shift: Tensor | None,
        rounding: float,
        ranks: Ranks,
        sizes: list[int],
    ) -> None:
        super().__init__(vectors, index, shift, rounding)
        self.count, self.small = sum(sizes), False
        self._ranks, self._sizes = ranks, sizes
        self._starts = [sum(sizes[:rank]) for rank in range(len(sizes))]
        self._start = self._starts[ranks.rank]
        self._stop = self._start + sizes[ranks.rank]
        self._visitors: tuple[slice, Tensor] | None = None

    def block(self, part: slice | Tensor) -> Tensor:
        """The given rows, float64: a slice of this rank's (or visiting ones), or a tensor of any numbers."""
        if isinstance(part, Tensor):
            own = (part >= self._start) & (part < self._stop)
            rows = torch.zeros(len(part), self.dim, dtype=torch.float64, device=self._vectors.device)
            rows[own] = super().block(part[own] - self._start)
            return self.joined(rows)  # every row is one rank's, and others add zeros: exact
        if self._visitors is not None and part == self._visitors[0]:
            return self._visitors[1]
        return super().block(slice(part.start - self._start, part.stop - self._start))

    def parts(self, most: int | None = None) -> list[slice]:
        """Slices that cover this rank's rows; one without rows if it has none."""
        return self._parts_of(self._ranks.rank, most) or [slice(self._start, self._start)]

    def _parts_of(self, rank: int, most: int | None) -> list[slice]:
        start, stop = self._starts[rank], self._starts[rank] + self._sizes[rank]
        size = self._block_rows(most)
        return [slice(first, min(first + size, stop)) for first in range(start, stop, size)]

    def joined(self, found: Tensor) -> Tensor:
        """The sum over the ranks."""
        return self._ranks.total(found)

    def least(self, found: float) -> float:
        """The least of the ranks' numbers."""
        return -self._ranks.most(-found)

    def settled(self, *found: Tensor) -> tuple[Tensor, ...]:
        """What the first rank found: eigenvectors may differ in their last bits, and what is called next with them."""
        return tuple(self._ranks.sent(each, 0) for each in found)

    def rowwise(self, of: Callable[[slice], Tensor]) -> Tensor:
        """(K,) what a function gives for each row of a block, of all ranks."""
        return self._ranks.gathered(super().rowwise(of), self._sizes)

    def gram_of(self, rows: Callable[[slice], Tensor]) -> Tensor:
        """(d, d) `R'R` of what becomes of the rows, block by block."""
        upper = torch.zeros(self.dim, self.dim, dtype=torch.float64, device=self._vectors.device)
        for part in self.parts():
            add_gram(upper, rows(part))
        return mirror(self.joined(upper))

    @cached_property
    def largest(self) -> float:
        """The largest absolute value of an entry."""
        return self._ranks.most(max(_largest(self.block(part)) for part in self.parts()))

    @cached_property
    def triangle(self) -> Tensor:
        """R (d, d) of a QR decomposition of the whole: that of one rank after another is put below it."""
        own = super().triangle
        square = torch.zeros(self.dim, self.dim, dtype=own.dtype, device=own.device)
        square[: len(own)] = own
        upper = square.new_zeros(0, self.dim)
        for rank in range(self._ranks.size):
            upper = below(upper, self._ranks.sent(square.clone(), rank))
        return upper

    def tiles(self) -> Iterator[tuple[slice, slice]]:
        """Pairs of slices, this rank's share of those that cover each pair of rows once.

        All ranks must go through them to the end. The rows of each rank visit the others, one block after another. Of
        two blocks on different ranks either rank may take the pair: they take turns, so that all have as much to do.
        """
        mine, size = self.parts(TILE_ROWS), self._block_rows(TILE_ROWS)
        for owner in range(self._ranks.size):
            here = owner == self._ranks.rank
            for second in self._parts_of(owner, TILE_ROWS):
                if here:
                    rows = self._ranks.sent(
                        super().block(slice(second.start - self._start, second.stop - self._start)), owner
                    )
                else:
                    shape = second.stop - second.start, self.dim
                    rows = self._ranks.sent(torch.empty(shape, dtype=torch.float64, device=self._vectors.device), owner)
                self._visitors = second, rows
                for first in mine:
                    if first.start == first.stop:
                        continue
                    even = (first.start // size + second.start // size) % 2 == 0
                    if first.start <= second.start if here else (first.start < second.start) == even:
                        yield first, second
        self._visitors = None


class ShardedMeans(CentredMeans):
    """The matrix M of rows mu_k - mu_G over the classes seen, of which each rank has the rows of its own classes."""

    def __init__(self, shard: ClassShard) -> None:
        self._shard = shard
        # A JoinedMoments has all of ClassMoments that is used here, with the means of this rank's classes.
        super().__init__(cast(ClassMoments, shard.joined()))
        own = (self.seen >= shard.classes.start) & (self.seen < shard.classes.stop)
        self._index = self.seen[own] - shard.classes.start
        firsts = list(accumulate(shard.sizes, initial=0))
        seen = self.moments.counts.cpu() > 0
        self._seen_of_ranks = [int(seen[a:b].sum()) for a, b in pairwise(firsts)]

    @classmethod
    def agreed(
        cls, call: str, shard: ClassShard, weight: Tensor | None, bias: Tensor | None, **options: Any
    ) -> ShardedMeans:
        """Those of a shard, once all ranks have said that they make the same call with rows of the same classifier."""
        problem, found = "", None if weight is None else str(getattr(weight, "dtype", type(weight)))
        try:
            shard.check_classifier(weight, bias)
        except InputError as error:
            problem = str(error)
        shard.ranks.agree(call, problem, **{"dtype of the weight": found, "use of a bias": bias is not None}, **options)
        return cls(shard)

    def _rows(self, vectors: Tensor, shift: Tensor | None, rounding: float) -> BlockedMatrix:
        """The rows of the classes seen, less a shift, of a matrix with a row for each of this rank's classes."""
        ranks, (count, dim) = self._shard.ranks, (len(self.seen), vectors.shape[1])
        if count > dim + 1:
            index = None if self.complete else self._index
            return ShardedMatrix(vectors, index, shift, rounding, ranks, self._seen_of_ranks)
        return BlockedMatrix(ranks.gathered(vectors[self._index], self._seen_of_ranks), None, shift, rounding)

    def values(self, vector: Tensor) -> Tensor:
        """(K',) those of the classes seen by any rank, of a vector with a value for each of this rank's classes."""
        return self._shard.ranks.gathered(vector[self._index], self._seen_of_ranks)

    @cached_property
    def _largest(self) -> float:
        return self._shard.ranks.most(_largest(self.moments.means))


def _largest(values: Tensor) -> float:
    """The largest absolute value; 0 of none."""
    return float(largest(values)) if values.numel() else 0.0
