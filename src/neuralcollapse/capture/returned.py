"""What a model returns, held against the outputs of its heads.

A hook sees the outputs of one layer; accuracy and loss are those of what the model returns. Mostly the two are the
same, or one is the softmax of the other. Where they are not, some rows tell how they are related:

    another head's outputs, or an average (any weighted sum) of the outputs of several heads;
    a scale or a shift after the head, which belong to its weight and bias;
    an increasing function of the outputs (a soft cap, a ReLU);
    another linear map of the head's input (an adapter beside the head), found by least squares where the inputs
    determine it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from neuralcollapse._errors import listed
from neuralcollapse.capture.linear_map import rounding

_SLACK = 16.0  # times the rounding of the type, relative to the largest value
_KEPT_VALUES = 2**26  # features and logits kept for least squares


def logits_of(returned: Any, shape: Sequence[int], num_classes: int, like: Tensor | None = None) -> Tensor | None:
    """The logits in what a model returned, as one row for each label; None where there are none.

    Args:
        returned: a tensor, a mapping or an object with `logits`, or a sequence that holds a tensor of logits.
        shape: of the labels, (N,) or (N, T).
        num_classes: K.
        like: outputs of the head as rows; of several tensors that could be logits the one equal to them is taken.
    """
    found = [rows for rows in (_rows(value, shape, num_classes) for value in _tensors(returned)) if rows is not None]
    for rows in found[1:]:
        if like is not None and rows.shape == like.shape and torch.equal(rows, like.to(rows.dtype)):
            return rows
    return found[0] if found else None


def num_outputs(returned: Any) -> int | None:
    """The number of classes of what a model returned; None where it holds no tensor that could be logits."""
    found = _tensors(returned)
    return found[0].shape[-1] if found else None


def _tensors(returned: Any) -> list[Tensor]:
    logits = returned.get("logits") if isinstance(returned, Mapping) else getattr(returned, "logits", None)
    if isinstance(logits, Tensor):
        return [logits]
    if isinstance(returned, Mapping):
        returned = list(returned.values())
    values = [returned] if isinstance(returned, Tensor) else returned if isinstance(returned, Sequence) else []
    return [value for value in values if isinstance(value, Tensor) and value.dim() > 1]


def _rows(logits: Tensor, shape: Sequence[int], num_classes: int) -> Tensor | None:
    """(rows, K) of a tensor with K on its last axis, or on axis 1 as for images or torch's cross-entropy."""
    shape, count = tuple(shape), torch.Size(shape).numel()
    ones = (1,) * (logits.dim() - 2)
    if tuple(logits.shape) == (*shape, num_classes) or tuple(logits.shape) == (count, num_classes):
        return logits.reshape(count, num_classes)
    if tuple(logits.shape) == (shape[0], num_classes, *shape[1:]):
        return logits.movedim(1, -1).reshape(count, num_classes)
    if tuple(logits.shape) == (count, num_classes, *ones):
        return logits.reshape(count, num_classes)
    return None


@dataclass(frozen=True)
class Relation:
    """How the returned logits follow from the outputs of the head that is measured.

    Attributes:
        name: of the head.
        kind: "same"; "shifted", the outputs plus a number for each sample, as their logarithmic softmax; "softmax" of
            the outputs; "scaled", s z + c; "heads", a weighted sum of other
            heads' outputs; "shared", one of heads that see the same features; "increasing", a function of each output;
            "pooled", a mean over positions after a ReLU; "linear", a linear map of the features; or "other".
        scale: of "scaled", s.
        shift: (K,) of "scaled", c; None for none.
        heads: of "heads" and "shared", name -> its share in the returned logits.
        others: names of other heads with as many outputs.
        off: of "other", the relative distance of the returned logits from the head's outputs.
    """

    name: str
    kind: str = "same"
    scale: float = 1.0
    shift: Tensor | None = None
    heads: dict[str, float] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    off: float = 0.0

    @classmethod
    def of(
        cls, name: str, outputs: Tensor, returned: Tensor, others: Mapping[str, tuple[Tensor, bool]] | None = None
    ) -> Relation:
        """Of (n, K) rows of a head's outputs and of the returned logits.

        Args:
            name: of the head.
            outputs: (n, K).
            returned: (n, K).
            others: of other heads the outputs (n, K), and whether they see the same features.
        """
        others = others or {}
        z, r = outputs.double(), returned.double()
        near = _SLACK * rounding(outputs, returned)
        if _close(z, r, near):
            return cls(name)
        if _close(_row_centred(z), _row_centred(r), near):
            return cls(name, "shifted")
        if _close(torch.softmax(z, 1), r, near):
            return cls(name, "softmax")
        rows = {other: values.double() for other, (values, _) in others.items()}
        for other, values in rows.items():
            if _close(values, r, near):
                return cls(name, "heads", heads={other: 1.0})
        scale, shift = _scale_and_shift(z, r)
        if scale and _close(scale * z + shift, r, near * max(1.0, abs(scale))):
            small = float(shift.abs().max()) <= near * float(r.abs().max())
            scale = 1.0 if abs(scale - 1) <= near else scale
            return cls(name, "scaled", scale, None if small else shift.to(outputs.dtype))
        heads = _weighted_sum({name: z, **rows}, r, near)
        if heads:
            shared = all(other == name or others[other][1] for other in heads)
            return cls(name, "shared" if shared else "heads", heads=heads)
        if _increasing(z, r, near):
            return cls(name, "increasing")
        off = float((z - r).norm() / r.norm().clamp(min=1e-300))
        return cls(name, "other", others=tuple(others), off=off)

    @classmethod
    def of_positions(cls, name: str, outputs: Tensor, returned: Tensor) -> Relation | None:
        """Of (N, T, K) outputs at T positions and (N, K) logits: their mean after a ReLU (SqueezeNet), or None."""
        near = _SLACK * rounding(outputs, returned)
        return cls(name, "pooled") if _close(outputs.double().relu().mean(1), returned.double(), near) else None

    @property
    def keeps_loss(self) -> bool:
        """Whether the cross-entropy of the head's outputs is that of what the model returns."""
        return self.kind in ("same", "shifted", "softmax")

    @property
    def is_head(self) -> bool:
        """Whether the returned logits are those of what is measured: a linear map of the features."""
        return self.kind in ("same", "scaled", "shared", "linear") or (self.kind == "other" and not self.others)

    def holds(self, outputs: Tensor, returned: Tensor) -> bool:
        """Whether later rows of the head's outputs and of the returned logits are related so too."""
        if self.kind in ("heads", "shared", "pooled", "other"):
            return True
        if self.kind == "scaled":
            shift = 0 if self.shift is None else self.shift.double()
            near = _SLACK * rounding(outputs, returned) * max(1.0, abs(self.scale))
            return _close(self.scale * outputs.double() + shift, returned.double(), near)
        return Relation.of(self.name, outputs, returned).kind in (self.kind, "same")  # as may happen by chance

    def words(self) -> str | None:
        """What the user should know of it; None where there is nothing."""
        head = repr(self.name)
        parts = " + ".join(f"{share:.3g} {name}" for name, share in self.heads.items())
        if self.kind == "scaled":
            how = "" if self.scale == 1 else f"{self.scale:.4g} times "
            plus = "" if self.shift is None else " plus a shift"
            return f"the model returns {how}the outputs of {head}{plus}: measured with weight and bias like that"
        if self.kind == "heads" and len(self.heads) == 1:
            (other,) = self.heads
            return (
                f"the model returns the outputs of {other!r}, and {head} was measured; accuracy and loss are the "
                f"model's: name {other!r} to measure that head"
            )
        if self.kind == "heads":
            return (
                f"the model returns the outputs of several heads ({parts}): {head} was measured, accuracy and loss are "
                "the model's"
            )
        if self.kind == "shared":
            return f"the model returns the outputs of several heads ({parts}) of the same features: measured as one"
        if self.kind == "linear":
            return (
                f"the model returns another linear map of the input of {head} than its outputs (an adapter beside "
                "it?): measured with the matrix that made them, found by least squares"
            )
        if self.kind == "softmax":
            return f"the model returns the softmax of the outputs of {head}: the loss is the one of these probabilities"
        if self.kind in ("increasing", "pooled"):
            how = "a mean over positions of the outputs" if self.kind == "pooled" else "a function of the outputs"
            after = " after a ReLU" if self.kind == "pooled" else ""
            return f"the model returns {how} of {head}{after}: accuracy and loss are of what it returns"
        if self.kind == "other":
            return (
                f"the model does not return the outputs of {head} ({100 * self.off:.3g} % off); other heads with as "
                f"many outputs: {listed(self.others)}: accuracy and loss are the model's"
            )
        return None


class LeastSquares:
    """The linear map from features to returned logits, where the features determine it exactly."""

    def __init__(self) -> None:
        self._features: list[Tensor] = []
        self._logits: list[Tensor] = []
        self._values = 0
        self._rows = 0

    def add(self, features: Tensor, logits: Tensor) -> None:
        """Keep rows, until there are more than enough."""
        if self._rows <= 4 * (features.shape[1] + 1) and self._values <= _KEPT_VALUES:
            self._features.append(features.clone())
            self._logits.append(logits.clone())
            self._values += features.numel() + logits.numel()
            self._rows += len(features)

    def solve(self) -> tuple[Tensor, Tensor] | None:
        """(K, d) A and (K,) c with logits = A h + c; None where they are not determined, or the map is not linear."""
        if not self._features:
            return None
        h, z = torch.cat(self._features), torch.cat(self._logits)
        x, y = h.double(), z.double()
        middle = x.mean(0)
        x, y = x - middle, y - y.mean(0)
        if len(x) < h.shape[1] + 2:  # a map with as many numbers as there are rows fits anything
            return None
        u, s, v = torch.linalg.svd(x, full_matrices=False)
        eps = rounding(h, z)
        if float(s[-1]) <= 16 * eps * float(s[0]):
            return None
        matrix = (v.T @ ((u.T @ y) / s[:, None])).T
        error = (y - x @ matrix.T).abs()
        bound = x.abs() @ matrix.abs().T + z.double().abs()
        if bool((error > _SLACK * eps * bound).any()):
            return None
        shift = z.double().mean(0) - matrix @ middle
        return matrix.to(h.dtype), shift.to(h.dtype)


def _close(a: Tensor, b: Tensor, near: float) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= near * b.abs().max().clamp(min=1e-300))


def _row_centred(values: Tensor) -> Tensor:
    return values - values.mean(1, keepdim=True)


def _weighted_sum(heads: Mapping[str, Tensor], returned: Tensor, near: float) -> dict[str, float]:
    """Each head's share where the returned logits are a weighted sum of their outputs; empty where they are not."""
    if len(heads) < 2 or returned.numel() < 4 * len(heads):  # a few numbers are a sum of anything
        return {}
    columns = torch.stack([rows.flatten() for rows in heads.values()], 1)
    shares = torch.linalg.lstsq(columns.cpu(), returned.flatten()[:, None].cpu(), driver="gelsd").solution[:, 0]
    shares = torch.where(shares.abs() < 1e-4, torch.zeros_like(shares), shares).to(columns)
    largest = (columns.abs() @ shares.abs()).max()
    if float((columns @ shares - returned.flatten()).abs().max()) > 4 * near * float(largest):
        return {}
    return {name: share for name, share in sorted(zip(heads, shares.tolist(), strict=True)) if share != 0}


def _scale_and_shift(z: Tensor, r: Tensor) -> tuple[float, Tensor]:
    """S and c of the best r = s z + c, c for each class; without c for a single row."""
    middle, target = (z.mean(0), r.mean(0)) if len(z) > 1 else (torch.zeros_like(z[0]), torch.zeros_like(r[0]))
    x, y = z - middle, r - target
    size = float(x.square().sum())
    scale = float((x * y).sum()) / size if size > 0 else 0.0
    return scale, target - scale * middle


def _increasing(z: Tensor, r: Tensor, near: float) -> bool:
    """Whether one function that never falls gives all of r from z."""
    order = z.flatten().argsort()
    steps = r.flatten()[order].diff()
    grows = float(r.max() - r.min())
    return len(order) > 8 and grows > 0 and bool((steps >= -near * float(r.abs().max())).all())
