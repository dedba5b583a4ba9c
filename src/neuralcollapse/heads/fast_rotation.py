"""FastRotation: a seeded orthonormal transform in O(d sqrt(d)) a sample."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from neuralcollapse.geometry.precision import without_autocast
from neuralcollapse.heads.constants import Constants
from neuralcollapse.heads.products import is_differentiated, is_plain

# A CPU multiplies each sample by a matrix of fewer rows than this (d < 1,024) up to four times as slowly as it
# transposes all samples and takes one product, from so many values on. With more rows it is the other way round.
_BATCHED_ROWS, _TRANSPOSED_VALUES = 32, 2**14


class FastRotation(nn.Module):
    """A seeded orthonormal transform of d features: random signs, a reversal and a Walsh-Hadamard transform, twice.

    The Walsh-Hadamard transform acts on the first p features, p the largest power of two up to d. Over a grid of
    `p = a b` it is a product with two small matrices, so it runs as two matmuls: O(d sqrt(d)) a sample. Since p > d/2,
    two rounds with a reversal in between mix every feature, the first ones last.

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
        self._constants = Constants()

    @property
    def sides(self) -> int:
        """The sum of the sides of the grid: what a transform of a feature costs, in multiplications."""
        return sum(self._grid)

    def forward(self, features: Tensor) -> Tensor:
        """(..., d) to (..., d); lengths and angles are kept."""
        if is_plain():
            return self.transform(features)
        return _Rotate.apply(features, self, self.factors(features), False)

    def inverse(self, features: Tensor) -> Tensor:
        """The inverse, which is the transposed transform."""
        if is_plain():
            return self.transform_back(features)
        return _Rotate.apply(features, self, self.factors(features), True)

    def transform(self, features: Tensor) -> Tensor:
        """`forward` in plain operations."""
        for signs in self.signs:
            features = self._mix((features * signs.to(features.dtype)).flip(-1))
        return features

    def transform_back(self, features: Tensor) -> Tensor:
        """`inverse` in plain operations."""
        for signs in self.signs.flip(0):
            features = self._mix(features).flip(-1) * signs.to(features.dtype)
        return features

    def factors(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The two Hadamard matrices and the signs, in the dtype and on the device of `like`; kept."""
        return self._constants.get((like.dtype, like.device), self.signs, None, self._new_factors, like)

    def _new_factors(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows, columns = self._grid
        return _hadamard(rows, like), _hadamard(columns, like), self.signs.to(like.dtype)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_constants": Constants()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_constants", Constants())

    def _mix(self, features: Tensor) -> Tensor:
        """The Walsh-Hadamard transform of the first p features; it is its own inverse."""
        rows, columns = self._grid
        left, right = _hadamard(rows, features), _hadamard(columns, features)
        whole = features.shape[-1] == rows * columns
        first = features if whole else features[..., : rows * columns]
        mixed = (left @ (first.reshape(*first.shape[:-1], rows, columns) @ right)).reshape(first.shape)
        return mixed if whole else torch.cat([mixed, features[..., rows * columns :]], dim=-1)


class _Rotate(torch.autograd.Function):
    """The transform or its inverse on eager tensors, each the gradient of the other, with one buffer for all steps."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, rotation: FastRotation, factors: tuple[Tensor, Tensor, Tensor], inverse: bool
    ) -> Tensor:
        ctx.rotation, ctx.factors, ctx.inverse = rotation, factors, inverse
        with without_autocast(features.device):
            return _rotated(features, factors, inverse)

    @staticmethod
    def backward(ctx: Any, pull: Tensor) -> tuple[Tensor | None, ...]:
        # `backward()` may be called inside autocast, whose products do not fit the buffer.
        with without_autocast(pull.device):
            if is_differentiated(pull):
                back = ctx.rotation.transform(pull) if ctx.inverse else ctx.rotation.transform_back(pull)
            else:
                back = _rotated(pull, ctx.factors, not ctx.inverse)
        return back, None, None, None


def _rotated(features: Tensor, factors: tuple[Tensor, Tensor, Tensor], inverse: bool) -> Tensor:
    left, right, signs = factors
    rows, columns = len(left), len(right)

    def mix(flat: Tensor) -> None:
        grid = flat[:, : rows * columns].view(-1, rows, columns)
        if transposes:
            tall = (grid.reshape(-1, columns) @ right).view(grid.shape).transpose(1, 2).reshape(-1, rows)
            grid.copy_((tall @ left).view(-1, columns, rows).transpose(1, 2))
        else:
            torch.bmm(left.expand(len(flat), -1, -1), grid @ right, out=grid)

    flat = features.reshape(-1, features.shape[-1])
    transposes = flat.device.type == "cpu" and rows < _BATCHED_ROWS and flat.numel() >= _TRANSPOSED_VALUES
    if inverse:
        flat = flat.clone()
        mix(flat)
        flat = flat.flip(-1).mul_(signs[1])
        mix(flat)
        flat = flat.flip(-1).mul_(signs[0])
    else:
        for each in signs:
            flat = (flat * each).flip(-1)
            mix(flat)
    return flat.view(features.shape)


def _hadamard(size: int, like: Tensor) -> Tensor:
    """The orthonormal Walsh-Hadamard matrix of a power of two."""
    matrix = torch.ones(1, 1, dtype=like.dtype, device=like.device)
    while matrix.shape[0] < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)]) / math.sqrt(2)
    return matrix
