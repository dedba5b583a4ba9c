"""Softmax codes by default: the smallest angle of two rows beside the best known, and the seconds that it takes."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

import harness
import neuralcollapse as nc

# K, d -> the largest cosine of the best code known (Sloane's tables of spherical codes; Cohn's table).
BEST = {
    (13, 3): math.cos(math.radians(57.13670)),
    (24, 3): math.cos(math.radians(43.69077)),
    (24, 4): 1 / 2,
    (11, 4): math.cos(math.radians(76.67913)),
    (56, 7): 1 / 3,
    (72, 6): 1 / 2,
    (126, 7): 1 / 2,
    (240, 8): 1 / 2,
    (100, 22): 1 / 11,
    (162, 21): 1 / 7,
}
UNKNOWN = ((100, 10), (1000, 128))


def codes(quick: bool) -> harness.Table:
    """The default for codes whose best is known, and for two sizes of which it is not."""
    sizes = [(13, 3), (56, 7)] if quick else [*BEST, *UNKNOWN]
    descent = harness.Row("300 steps of descent, K=100, d=10", lambda: nc.softmax_code(100, 10, steps=300), note=_angle)
    rows = [
        harness.Row(
            f"K={count:,}, d={dim}",
            _maker(count, dim),
            asked="within 0.1 degrees, 5 s" if (count, dim) in BEST else "",
            note=_angle,
            rounds=3,
        )
        for count, dim in sizes
    ]
    return harness.Table("Softmax codes: the smallest angle of two rows", [descent, *rows], rounds=5, compared=False)


def _maker(count: int, dim: int) -> Callable[[], torch.Tensor]:
    return lambda: nc.softmax_code(count, dim, dtype=torch.float64)


def _angle(rows: torch.Tensor) -> str:
    """The angle in degrees; raises when it is further from the best known than asked."""
    angle = math.degrees(math.acos(nc.coherence(rows)))
    cosine = BEST.get((len(rows), rows.shape[1]))
    if cosine is None:
        return f"{angle:.3f} degrees"
    best = math.degrees(math.acos(cosine))
    if angle < best - 0.1:
        raise AssertionError(f"{angle} degrees, and the best known is {best}")
    return f"{angle:.3f} degrees, best known {best:.3f}"
