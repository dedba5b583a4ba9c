"""Point: the variables of the unconstrained feature model as one vector, with its algebra and its checks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from neuralcollapse.errors import InputError
from neuralcollapse.geometry.packed import state_device


@dataclass
class Point:
    """W (..., K, d), H (..., d, N) with the samples ordered by class, b (..., K) or None; all float64."""

    W: Tensor
    H: Tensor
    b: Tensor | None = None

    def __add__(self, other: Point) -> Point:
        return self._with(other, torch.add)

    def __sub__(self, other: Point) -> Point:
        return self._with(other, torch.sub)

    def __mul__(self, factor: float) -> Point:
        return Point(self.W * factor, self.H * factor, None if self.b is None else self.b * factor)

    __rmul__ = __mul__

    def _with(self, other: Point, operation: object) -> Point:
        bias = None if self.b is None or other.b is None else operation(self.b, other.b)  # type: ignore[operator]
        return Point(operation(self.W, other.W), operation(self.H, other.H), bias)  # type: ignore[operator]

    def dot(self, other: Point) -> Tensor:
        """The inner product, (...)."""
        total = (self.W * other.W).sum((-1, -2)) + (self.H * other.H).sum((-1, -2))
        return total if self.b is None or other.b is None else total + (self.b * other.b).sum(-1)

    def norm(self) -> float:
        """The Euclidean length."""
        parts = [self.W, self.H] if self.b is None else [self.W, self.H, self.b]
        return math.hypot(*(float(torch.linalg.vector_norm(part)) for part in parts))

    def vector(self) -> Tensor:
        """All entries as one (..., n) vector: W, H, b."""
        parts = [self.W.flatten(-2), self.H.flatten(-2)]
        return torch.cat(parts if self.b is None else [*parts, self.b], dim=-1)


def check_parts(point: Point, shapes: dict[str, tuple[int, ...] | None]) -> None:
    """Raise unless W, H and b have these shapes (None: there is no such part), are float64 and finite.

    Raises:
        InputError: which part, what was expected and what was given.
    """
    if not isinstance(point, Point):
        raise InputError(f"expected a Point(W, H, b), got {type(point).__name__}: model.point(vector) makes one")
    for name, shape in shapes.items():
        part = getattr(point, name)
        if (part is None) != (shape is None):
            raise InputError(
                f"expected {'no b: the model has no bias' if shape is None else f'{name} of shape {shape}'}, "
                f"got {'none' if part is None else type(part).__name__}"
            )
        if part is None:
            continue
        if not isinstance(part, Tensor):
            raise InputError(f"expected {name} as a torch.Tensor, got {type(part).__name__}: use torch.as_tensor")
        if tuple(part.shape) != shape:
            raise InputError(f"expected {name} of shape {shape}, got {tuple(part.shape)}")
        if part.dtype != torch.float64:
            how = ".double()" if state_device(part.device) == part.device else ".cpu().double()"
            raise InputError(f"expected {name} in float64, got {part.dtype}: convert it with {how}")
        if not bool(torch.isfinite(part.sum())) and (bad := int((~torch.isfinite(part)).sum())):
            raise InputError(f"expected finite {name}, got {bad} NaN or infinite values")


def check_signs(point: Point) -> None:
    """Raise unless every feature of a point is at least 0."""
    if bool((point.H < 0).any()):
        raise InputError(
            f"expected H >= 0 in a model with features='nonnegative', got {int((point.H < 0).sum())} negative "
            "entries: model.project(point) sets them to 0"
        )
