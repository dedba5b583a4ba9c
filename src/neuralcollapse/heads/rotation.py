"""FastRotation: a seeded orthonormal transform that spreads a frame over all features, in O(d sqrt(d)) a sample."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class FastRotation(nn.Module):
    """A seeded orthonormal transform of d features: twice random signs, a reversal, and a Hadamard product.

    The Walsh-Hadamard transform of the largest power of two p <= d is taken as a product of two small
    matrices over a grid of p = a b, so it runs as two matmuls. As p > d/2, two rounds with the order
    reversed between them reach every feature, and leave the mixed ones first.

    Shapes: (..., d) -> (..., d).
    """

    signs: Tensor

    def __init__(self, dim: int, seed: int = 0, *, device: torch.device | str | None = None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        signs = torch.randint(0, 2, (2, dim), generator=generator).to(device=device, dtype=torch.int8) * 2 - 1
        self.register_buffer("signs", signs)
        bits = dim.bit_length() - 1
        self._grid = (2 ** (bits // 2), 2 ** (bits - bits // 2))

    def forward(self, features: Tensor) -> Tensor:
        """(..., d) to (..., d), lengths and angles kept."""
        for signs in self.signs:
            features = self._mix((features * signs.to(features.dtype)).flip(-1))
        return features

    def inverse(self, features: Tensor) -> Tensor:
        """The way back: the transposed transform."""
        for signs in self.signs.flip(0):
            features = self._mix(features).flip(-1) * signs.to(features.dtype)
        return features

    def _mix(self, features: Tensor) -> Tensor:
        """The Walsh-Hadamard transform of the first p features, its own inverse."""
        rows, columns = self._grid
        left, right = _hadamard(rows, features), _hadamard(columns, features)
        grid = features[..., : rows * columns].unflatten(-1, (rows, columns))
        mixed = (left @ (grid @ right)).flatten(-2)
        rest = features[..., rows * columns :]
        return torch.cat([mixed.to(rest.dtype), rest], dim=-1)


def _hadamard(size: int, like: Tensor) -> Tensor:
    """The orthonormal Walsh-Hadamard matrix of a power of two."""
    matrix = torch.ones(1, 1, dtype=like.dtype, device=like.device)
    while matrix.shape[0] < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)]) / math.sqrt(2)
    return matrix
