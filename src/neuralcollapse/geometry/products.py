"""Sums of products R'R of centred rows, added to the upper triangle of a float64 matrix in the precision they need.

In float32 a sum rounds to about 1e-7 of its largest terms. That is enough for rows of like size, whose entries average
the rounding out, but not for a row beside others that outweigh it, nor near the ends of float32's range: a block with
such rows is multiplied in float64. The diagonal, where all terms add up, is the caller's, in float64: equal values
would round it all one way.
"""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor

from neuralcollapse.geometry.precision import full_precision

# Below this dimension products run in float64: they are cheap, and rounding averages over too few entries.
_FLOAT32_FROM_DIM = 256
# Rows whose squares sum to less or more than this might under- or overflow in float32's products.
_SAFE_TRACE = (1e-24, 1e36)
# A row with this share of the sum of squares would lose the other rows to rounding.
_DOMINANT = 0.25
# Compute capabilities of the chips whose float64 products are as fast as their float32 ones (P100, V100, A100, H100,
# H200, B200); on other chips they take 32 to 64 times as long.
_FAST_FLOAT64 = {(6, 0), (7, 0), (8, 0), (9, 0), (10, 0)}


def in_float32(eps: float, feature_dim: int) -> bool:
    """Whether products of features of a dtype with this spacing may run in float32."""
    return feature_dim >= _FLOAT32_FROM_DIM and eps > torch.finfo(torch.float64).eps


def fast_float64(device: torch.device) -> bool:
    """Whether float64 products on an accelerator take about as long as float32 ones."""
    if device.type != "cuda" or torch.version.hip is not None:
        return True
    return torch.cuda.get_device_capability(device) in _FAST_FLOAT64


def add_gram(upper: Tensor, rows: Tensor, sign: int = 1) -> None:
    """Add `sign R'R` for R = rows to the upper triangle. On a CPU, only blocks of it are computed, 5/8 at most."""
    dim = rows.shape[1]
    step = min(512, max(128, -(-dim // 4))) if rows.device.type == "cpu" else dim
    for start in range(0, dim, step):
        block, left, right = upper[start : start + step, start:], rows[:, start : start + step].T, rows[:, start:]
        if rows.dtype == upper.dtype:
            block.addmm_(left, right, alpha=sign)
        else:
            block.add_(left @ right, alpha=sign)


def add_single(upper: Tensor, rows: Tensor, diagonal: Tensor, sign: int = 1) -> None:
    """Add `sign R'R` of rows that `fits_float32`, in float32; `diagonal` (d,) is that of R'R, float64."""
    diagonal = upper.diagonal() + sign * diagonal
    with full_precision(rows.device):
        add_gram(upper, rows, sign)
    upper.diagonal().copy_(diagonal)


def fits_float32(squares: Tensor) -> bool:
    """Whether float32 products can hold rows of these squared lengths (N,), on the CPU."""
    trace = float(squares.sum())
    return _SAFE_TRACE[0] < trace < _SAFE_TRACE[1] and float(squares.max()) < _DOMINANT * trace


def add_unchecked(upper: Tensor, rows: Tensor, squares: Tensor) -> None:
    """Add `R'R` of float64 rows on an accelerator without waiting for it, in float32 where float64 is slow there.

    Float32 takes the rows divided by a power of two, so that nothing overflows, and a second product with what the
    division into float32 left over.
    """
    if fast_float64(rows.device) or not in_float32(1.0, rows.shape[1]):
        upper.addmm_(rows.T, rows)
        return
    diagonal = upper.diagonal() + rows.square().sum(0)
    largest = squares.max().sqrt_().clamp_(min=torch.finfo(torch.float64).tiny)
    scale = torch.frexp(largest).exponent.to(torch.float64).exp2_()
    scaled = rows / scale
    single = scaled.to(torch.float32)
    rest = scaled.sub_(single).to(torch.float32)
    with full_precision(rows.device):
        crossed = single.T @ rest
        product = (single.T @ single).to(torch.float64).add_(crossed).add_(crossed.T)
    upper.addcmul_(product, scale * scale)
    upper.diagonal().copy_(diagonal)


_buffers = threading.local()


def scratch(name: str, shape: tuple[int, ...] | torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory for a block, reused from batch to batch: allocating fresh pages costs as much as the arithmetic."""
    size = math.prod(shape)
    key = (name, device, dtype)
    kept: dict[object, Tensor] = _buffers.__dict__.setdefault("kept", {})
    if key not in kept or kept[key].numel() < size:
        with torch.inference_mode(False):
            kept[key] = torch.empty(size, dtype=dtype, device=device)
    return kept[key][:size].view(shape)
