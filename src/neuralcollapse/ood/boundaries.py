"""The distances |w_k - w_j| between the rows of a head, as fDBD divides by them: a number, a table, or row by row.

On a simplex all distances are equal. For other heads of some thousand classes they are kept as a K x K table; beyond
that the rows of the classes that a block of inputs is taken for are computed with it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from neuralcollapse.errors import Undefined

_TABLE = 2048  # up to so many classes the table is small (16 MB in float32)
_PROBES = 3
_NEIGHBOURS = 3
_SPACINGS = 4  # of the weight's dtype: rows this near, in their own length, are equal
_SIMPLEX = 64  # the same for distances that count as one
_FINEST = 1e-12  # what float64 products of some thousand terms may be off
_CANCELS = 1e-4  # |a|^2 + |b|^2 - 2<a, b> keeps twelve digits of float64 down to this share of |a|^2 + |b|^2
_CHUNK_VALUES = 2**22


class Boundaries:
    """The boundaries between the classes of a head.

    Args:
        weight: (K, d) float64 rows.
        eps: spacing of the dtype that they were stored in.

    Attributes:
        merged: the number of classes whose row equals that of another class, so that they have no boundary with it.
        common: the distance of all pairs of rows if that is one, as for a simplex; else None.

    Raises:
        Undefined: there is no boundary at all.
    """

    def __init__(self, weight: Tensor, eps: float) -> None:
        eps = min(eps, torch.finfo(torch.float32).eps)  # coarser weights differ by more than rounding, or not at all
        self._rows = weight - weight.mean(0)
        self._squares = self._rows.square().sum(1)
        self._equal = (_SPACINGS * eps) ** 2
        self._sizes = weight.square().sum(1)  # of the rows as stored, whose rounding is in proportion to them
        self.merged = 0
        self._tables: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        if not bool(self._squares.max() > self._equal * self._sizes.max()):
            raise Undefined("all rows of the head are equal, so that no two classes have a boundary")
        self.common = self._common_distance(max(_SIMPLEX * eps, _FINEST))
        if self.common is None and len(weight) <= _TABLE:
            table = self._computed(torch.arange(len(weight), device=weight.device))
            self.merged = int((table == 0).sum(1).gt(1).sum())  # each is at distance 0 from itself
            self._tables[table.device, table.dtype] = table
        elif self.common is None:
            self.merged = self._equal_neighbours()

    def inverse(self, classes: Tensor, dtype: torch.dtype) -> Tensor:
        """`1 / |w_k - w_j|` over the number of classes that have a boundary with k; 0 where there is none.

        (N, K) for the (N,) classes, in a dtype on their device; (1, 1) where all distances are one.
        """
        if self.common is not None:
            return torch.full((1, 1), 1 / (self.common * (len(self._rows) - 1)), dtype=dtype, device=classes.device)
        if self._tables:
            if (classes.device, dtype) not in self._tables:
                first = next(iter(self._tables.values()))
                self._tables[classes.device, dtype] = first.to(dtype=dtype, device=classes.device)
            return self._tables[classes.device, dtype][classes]
        different, places = classes.unique(return_inverse=True)
        return self._computed(different.to(self._rows.device)).to(dtype=dtype, device=classes.device)[places]

    def _equal_neighbours(self) -> int:
        """The number of rows that equal another, without looking at all pairs.

        Equal rows lie side by side in the order of their products with a random vector. Another row may come between
        two of them by chance, so that the next few are looked at.
        """
        host: dict[str, Any] = {"generator": torch.Generator().manual_seed(0), "device": "cpu"}
        probe = torch.randn(self._rows.shape[1], dtype=torch.float64, **host)
        order = (self._rows @ probe.to(self._rows.device)).argsort()
        equal = torch.zeros(len(order), dtype=torch.bool, device=order.device)
        for step in range(1, _NEIGHBOURS + 1):
            for first, second in zip(order[:-step].split(_TABLE), order[step:].split(_TABLE), strict=True):
                squares = (self._rows[first] - self._rows[second]).square().sum(1)
                same = squares <= self._equal * (self._sizes[first] + self._sizes[second])
                equal[first[same]] = equal[second[same]] = True
        return int(equal.sum())

    def _computed(self, classes: Tensor) -> Tensor:
        """(n, K) float64, for the numbers (n,) of classes."""
        inverse = self._distances(classes).reciprocal_()
        inverse.masked_fill_(inverse.isinf(), 0)
        return inverse.div_((inverse > 0).sum(1, keepdim=True).clamp_(min=1))

    def _distances(self, classes: Tensor) -> Tensor:
        """(n, K) float64 distances; exactly 0 for equal rows."""
        left = self._rows[classes]
        sizes = self._squares[classes][:, None] + self._squares
        squares = torch.addmm(sizes, left, self._rows.T, alpha=-2)
        for pairs in (squares < _CANCELS * sizes).nonzero().split(max(1, _CHUNK_VALUES // left.shape[1])):
            first, second = pairs.unbind(1)
            squares[first, second] = (left[first] - self._rows[second]).square().sum(1)
        squares.masked_fill_(squares <= self._equal * (self._sizes[classes][:, None] + self._sizes), 0)
        return squares.sqrt_()

    def _common_distance(self, tolerance: float) -> float | None:
        """The distance of all pairs if that is one, up to rounding.

        All distances are s if and only if the centred rows C have the Gram matrix `CC' = s^2/2 (I - 11'/K)`, which
        agrees with another matrix on a random vector with probability zero: so O(K d) and no K x K matrix.
        """
        count, dim = self._rows.shape
        if dim < count - 1:
            return None
        generator = torch.Generator().manual_seed(0)
        probes = torch.randn(count, _PROBES, generator=generator, dtype=torch.float64).to(self._rows.device)
        probes -= probes.mean(0)
        scale = self._squares.sum() / (count - 1)
        off = (self._rows @ (self._rows.T @ probes) - scale * probes).abs().amax()
        if bool(off > tolerance * scale * probes.abs().amax()):
            return None
        return float((2 * scale).sqrt())
