"""The type that features were rounded to, seen from their values: what rounding alone can have put into them.

Features may lie in a wider type than the one that they were computed in (`features.float()` of a bfloat16 network,
`features.double()`). Values rounded to a type have, one in two, its last bit set; small integers, one-hot vectors and
other exact values are held by every type but do not use the last bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

NAMES = {torch.finfo(dtype).eps: str(dtype).removeprefix("torch.") for dtype in (torch.float64, torch.float32)} | {
    torch.finfo(torch.float16).eps: "float16",
    torch.finfo(torch.bfloat16).eps: "bfloat16",
}
_COARSE = (torch.bfloat16, torch.float16, torch.float32)
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_LOOKED_AT = 1024  # values, or four rows where those are more
_TOO_FEW = 16  # values other than zero that say nothing about their type
_LAST_BIT_USED = 0.05  # of the values: one half is expected, less where sums cancel, and none of exact values


def rounding(features: Tensor) -> float:
    """The spacing (eps) of the coarsest type that the (N, d) values look rounded to; 0 for exact values."""
    own = torch.finfo(features.dtype).eps
    wanted = max(4, _LOOKED_AT // features.shape[1])
    rows = features.detach()[:: max(1, len(features) // wanted)][:wanted].cpu()
    values = rows[rows != 0]
    if len(values) < _TOO_FEW or features.element_size() not in _BITS:
        return own
    for dtype in _COARSE:
        if torch.finfo(dtype).eps > own:
            narrow = values.to(dtype)
            if torch.equal(narrow.to(values.dtype), values) and _last_bits(_lower(narrow)) > _LAST_BIT_USED:
                return torch.finfo(dtype).eps
    lower = _lower(values)
    return own if _last_bits(lower if len(lower) >= _TOO_FEW else values) > 0 else 0.0


def _lower(values: Tensor) -> Tensor:
    """Those below the largest power of two that was reached: integers use the last bit at the top alone."""
    exponents = torch.frexp(values.double().abs()).exponent
    return values[exponents < exponents.max()]


def _last_bits(values: Tensor) -> float:
    """The share of the values whose last bit is set; 0 when they are too few to tell."""
    if len(values) < _TOO_FEW // 2:
        return 0.0
    return float((values.view(_BITS[values.element_size()]) & 1).double().mean())
