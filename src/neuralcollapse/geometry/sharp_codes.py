"""The spherical codes that have a short formula, exactly: layers of the roots of E8, of the Leech lattice, of H4.

A layer is the set of vectors with given products with a few fixed vectors, projected away from those. No codes with as
many points have a smaller largest cosine (Cohn and Kumar, J. AMS 2007, table 1); for the roots of D4 (the 24-cell), D5,
E6 and E7 none are known. The simplex and the orthoplex are in frames.py.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

_GOLDEN = (1 + math.sqrt(5)) / 2


def _roots_of_e8() -> Tensor:
    """(240, 8) of squared length 2: all `+-e_i +- e_j`, and all of entries +-1/2 with an even number of minus signs."""
    axes = torch.eye(8, dtype=torch.float64)
    pairs = [
        s * axes[i] + t * axes[j] for i, j in itertools.combinations(range(8), 2) for s in (1, -1) for t in (1, -1)
    ]
    signs = torch.tensor(list(itertools.product((0.5, -0.5), repeat=8)), dtype=torch.float64)
    return torch.cat([torch.stack(pairs), signs[signs.prod(1) > 0]])


def _vertices_of_the_600_cell() -> Tensor:
    """(120, 4) unit vectors: the 24 Hurwitz units, and the even permutations of `(+-phi, +-1, +-1/phi, 0)/2`."""
    axes = torch.eye(4, dtype=torch.float64)
    halves = torch.tensor(list(itertools.product((0.5, -0.5), repeat=4)), dtype=torch.float64)
    signed = torch.tensor(list(itertools.product((0.5, -0.5), repeat=3)), dtype=torch.float64)
    base = torch.cat([signed * torch.tensor([_GOLDEN, 1, 1 / _GOLDEN], dtype=torch.float64), signed.new_zeros(8, 1)], 1)
    even = [order for order in itertools.permutations(range(4)) if torch.linalg.det(axes[list(order)]) > 0]
    return torch.cat([axes, -axes, halves, *(base[:, list(order)] for order in even)])


def _shortest_of_the_leech_lattice() -> Tensor:
    """(196560, 24) of squared length 32: shapes (+-2)^8 0^16, (-+3) (+-1)^23 and (+-4)^2 0^22 over the Golay code."""
    words = _golay_code()
    sizes = words.sum(1)
    signs = torch.tensor(list(itertools.product((2, -2), repeat=8)))
    signs = signs[signs.prod(1) > 0]
    octads = words[sizes == 8]
    twos = octads.new_zeros(len(octads), len(signs), 24)
    twos.scatter_(
        2, octads.nonzero()[:, 1].view(-1, 1, 8).expand(-1, len(signs), -1), signs.expand(len(octads), -1, -1)
    )
    threes = (1 - 4 * torch.eye(24, dtype=torch.int64)) * (1 - 2 * words)[:, None]
    axes = 4 * torch.eye(24, dtype=torch.int64)
    fours = [
        s * axes[i] + t * axes[j] for i, j in itertools.combinations(range(24), 2) for s in (1, -1) for t in (1, -1)
    ]
    return torch.cat([torch.stack(fours), twos.flatten(0, 1), threes.flatten(0, 1)]).double()


def _golay_code() -> Tensor:
    """(4096, 24) words of 0 and 1: the quadratic residue code of length 23 with a bit of parity."""
    polynomial = torch.tensor([1, 0, 1, 0, 1, 1, 1, 0, 0, 0, 1, 1] + [0] * 11)  # divides x^23 - 1 modulo 2
    generators = torch.stack([polynomial.roll(shift) for shift in range(12)])
    words = torch.tensor(list(itertools.product((0, 1), repeat=12))) @ generators % 2
    return torch.cat([words, words.sum(1, keepdim=True) % 2], 1)


class _Layer(NamedTuple):
    """The vectors with these products with the fixed ones, which are given by their first entries."""

    vectors: Callable[[], Tensor]
    fixed: tuple[tuple[float, ...], ...] = ()
    products: tuple[float, ...] = ()


_H4, _E8, _LEECH = _vertices_of_the_600_cell, _roots_of_e8, _shortest_of_the_leech_lattice
_SIMPLE = ((1.0, -1.0), (0.0, 1.0, -1.0), (1.0, 1.0), (0.0, 0.0, 1.0, -1.0))  # roots of A1, A2, A3, D4
_CLOSE = ((1.0, 1.0), (1.0, 0.0, 1.0), (1.0, 0.0, 0.0, 1.0), (1.0, 0.0, 0.0, 0.0, 1.0))  # roots at 60 degrees
_LONG, _FIRST, _SECOND = (5.0, *[1.0] * 23), (4.0, 4.0), (4.0, 0.0, 4.0)

# (K, d) -> the layer, with the largest cosine of two of its vectors as a comment.
_CODES = {
    (12, 3): _Layer(_H4, ((1.0,),), (_GOLDEN / 2,)),  # 1/sqrt(5), the icosahedron
    (120, 4): _Layer(_H4),  # cos 36 degrees
    (24, 4): _Layer(_E8, _SIMPLE, (0.0,) * 4),  # 1/2, the 24-cell (roots of D4)
    (40, 5): _Layer(_E8, _SIMPLE[:3], (0.0,) * 3),  # 1/2, roots of D5
    (72, 6): _Layer(_E8, _SIMPLE[:2], (0.0,) * 2),  # 1/2, roots of E6
    (126, 7): _Layer(_E8, _SIMPLE[:1], (0.0,)),  # 1/2, roots of E7
    (240, 8): _Layer(_E8),  # 1/2
    (56, 7): _Layer(_E8, _CLOSE[:1], (1.0,)),  # 1/3
    (27, 6): _Layer(_E8, _CLOSE[:2], (1.0,) * 2),  # 1/4, the Schlaefli configuration
    (16, 5): _Layer(_E8, _CLOSE[:3], (1.0,) * 3),  # 1/5, the half cube
    (10, 4): _Layer(_E8, _CLOSE[:4], (1.0,) * 4),  # 1/6, midpoints of the edges of a simplex
    (196560, 24): _Layer(_LEECH),  # 1/2
    (4600, 23): _Layer(_LEECH, (_FIRST,), (16.0,)),  # 1/3
    (891, 22): _Layer(_LEECH, (_FIRST, _SECOND), (16.0, 16.0)),  # 1/4
    (552, 23): _Layer(_LEECH, (_LONG,), (24.0,)),  # 1/5, 276 equiangular lines
    (275, 22): _Layer(_LEECH, (_LONG, _FIRST), (24.0, 16.0)),  # 1/6, the McLaughlin graph
    (162, 21): _Layer(_LEECH, (_LONG, _FIRST, _SECOND), (24.0, 16.0, 16.0)),  # 1/7
    (112, 21): _Layer(_LEECH, (_LONG, _FIRST, _SECOND), (24.0, 16.0, 8.0)),  # 1/9
    (100, 22): _Layer(_LEECH, (_LONG, (4.0, -4.0)), (24.0, 16.0)),  # 1/11, the Higman-Sims graph
}


def known_codes(dim: int) -> list[int]:
    """The numbers of points, in ascending order, of the codes in so many dimensions that `sharp_code` makes."""
    return sorted(count for count, in_dim in _CODES if in_dim == dim)


def sharp_code(count: int, dim: int) -> Tensor:
    """The (count, dim) unit rows, float64, of a code that `known_codes` names."""
    layer = _CODES[count, dim]
    rows = layer.vectors()
    if layer.fixed:
        fixed = rows.new_zeros(len(layer.fixed), rows.shape[1])
        for row, entries in zip(fixed, layer.fixed, strict=True):
            row[: len(entries)] = torch.tensor(entries)
        chosen = torch.isclose(rows @ fixed.T, rows.new_tensor(layer.products)).all(1)
        basis = torch.linalg.qr(fixed.T, mode="complete").Q[:, len(fixed) :]
        rows = rows[chosen] @ basis
    return torch.nn.functional.normalize(rows, dim=1)
