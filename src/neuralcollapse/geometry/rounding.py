"""The dtype that features were rounded to, judged by their values, and so how much of them may be rounding.

Features may be stored in a wider dtype than the one they were computed in (`features.float()` of a bfloat16 network,
`features.double()`). Half of all values rounded to a dtype have its last bit set. Small integers, one-hot vectors and
other exact values fit into every dtype, but do not use the last bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

_COARSE = (torch.bfloat16, torch.float16, torch.float32)
NAMES = {torch.finfo(dtype).eps: str(dtype).removeprefix("torch.") for dtype in (*_COARSE, torch.float64)}
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
# The last bits of a number that are zero in every coarser dtype of `_COARSE`; those of a small float16 need not be.
_SPARE_BITS = {torch.float32: 2**13 - 1, torch.float64: 2**29 - 1}
_LOOKED_AT = 1024  # values, or four rows if those are more
_GLANCED_AT = 64  # values, of the first row
TOO_FEW = 16  # so few nonzero values say nothing about their dtype
_LAST_BIT_USED = 0.05  # share of values: about one half is expected, fewer after sums that cancel, none if exact


def sampled(features: Tensor) -> Tensor:
    """The rows that `rounding` looks at."""
    wanted = max(4, _LOOKED_AT // features.shape[1])
    return features.detach()[:: max(1, len(features) // wanted)][:wanted]


def rounding(features: Tensor) -> float:
    """The spacing (eps) of the coarsest dtype that the (N, d) values appear to be rounded to; 0 for exact values."""
    own = torch.finfo(features.dtype).eps
    rows = sampled(features).cpu()
    values = rows[rows != 0]
    if len(values) < TOO_FEW or features.element_size() not in _BITS:
        return own
    for dtype in _COARSE:
        if torch.finfo(dtype).eps > own:
            narrow = values.to(dtype)
            if torch.equal(narrow.to(values.dtype), values) and _last_bits(_lower(narrow)) > _LAST_BIT_USED:
                return torch.finfo(dtype).eps
    lower = _lower(values)
    return own if _last_bits(lower if len(lower) >= TOO_FEW else values) > 0 else 0.0


def coarsest(features: Tensor, known: float) -> float:
    """The larger of `known` and `rounding(features)`, which a few values can show to be no larger than the dtype's."""
    if known >= torch.finfo(features.dtype).eps:
        if features.dtype == torch.bfloat16:
            return known
        few, spare = features.detach()[0, :_GLANCED_AT], _SPARE_BITS.get(features.dtype, 0)
        if spare and bool((few.view(_BITS[few.element_size()]) & spare).any()):
            return known
    return max(known, rounding(features))


def _lower(values: Tensor) -> Tensor:
    """The values below the largest power of two reached: integers use the last bit only above it."""
    exponents = torch.frexp(values.double().abs()).exponent
    return values[exponents < exponents.max()]


def _last_bits(values: Tensor) -> float:
    """The share of the values whose last bit is set; 0 for too few values."""
    if len(values) < TOO_FEW // 2:
        return 0.0
    return float((values.view(_BITS[values.element_size()]) & 1).double().mean())
