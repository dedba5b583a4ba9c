"""How the logits that a model returns follow from the outputs of its heads.

A hook sees the outputs of one layer, while accuracy and loss are those of what the model returns. Usually the two are
the same, or one is the softmax of the other. Otherwise some rows of every batch show how they are related:

    the outputs of another head, or an average (any weighted sum) of the outputs of several heads;
    a scale or a shift after the head, for all classes or for each, which then belong to its weight and bias;
    an increasing function of the outputs (a soft cap, a ReLU);
    another linear map of the head's input (an adapter beside the head), found by least squares if the inputs
    determine it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from neuralcollapse.capture.linear_map import Form, distance
from neuralcollapse.errors import listed
from neuralcollapse.geometry.rounding import rounding

_ROUNDED = 2.0  # spacings: outputs and logits are rounded once each
_KEPT_VALUES = 2**26  # values of features and logits kept for least squares
_KEPT = 64  # rows kept over all batches, to find the relation again if the first rows did not determine it


@dataclass(frozen=True)
class Relation:
    """How the returned logits follow from the outputs z of the head that is measured.

    Attributes:
        name: of the head.
        kind: one of `KINDS`, from the most to the least specific:
            "same": z.
            "scaled": s z + c.
            "shared": a weighted sum of the outputs of heads that see the same features.
            "heads": a weighted sum of the outputs of heads, or those of another head.
            "linear": another linear map of the features.
            "increasing": an increasing function of each output.
            "pooled": the mean of z over positions, after a ReLU.
            "other": none of these.
        after: what is applied to that: "" for nothing, "softmax", or "shift", a number for each sample (log-softmax).
        scale: for "scaled" the scale s, a number or (K,).
        shift: for "scaled" the shift c (K,); None for zero.
        heads: for "heads" and "shared", name -> weight of that head in the returned logits.
        others: names of other heads with the same number of outputs.
        masked: the number of classes with the same logit for all samples, which are not compared.
        off: for "other", the relative distance of the returned logits from the outputs of the head.
    """

    name: str
    kind: str = "same"
    after: str = ""
    scale: float | Tensor = 1.0
    shift: Tensor | None = None
    heads: dict[str, float] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    masked: int = 0
    off: float = 0.0

    @classmethod
    def of(
        cls, name: str, outputs: Tensor, returned: Tensor, others: Mapping[str, tuple[Tensor, bool]] | None = None
    ) -> Relation:
        """The relation between rows (n, K) of the outputs of a head and of the returned logits.

        `others` are the outputs (n, K) of other heads, by name, and whether they receive the same features.
        """
        others = others or {}
        eps = _ROUNDED * max(torch.finfo(outputs.dtype).eps, torch.finfo(returned.dtype).eps, rounding(returned))
        z, r = outputs.double(), returned.double()
        open_ = _open_classes(z, r)
        z, r = z[:, open_], r[:, open_]
        masked = int((~open_).sum())
        if z.shape[1] == 0:
            return cls(name, "other", others=tuple(others), off=float("inf"))
        rows = {other: values.double()[:, open_] for other, (values, _) in others.items()}
        found = _linear(name, z, r, rows, eps) or _softened(name, z, r, eps)
        if found is None and _increasing(z, r, eps):
            found = cls(name, "increasing")
        if found is None:
            off = float((z - r).norm() / r.norm().clamp(min=1e-300))
            return cls(name, "other", others=tuple(others), off=off)
        if found.kind == "heads" and all(other == name or others[other][1] for other in found.heads):
            found = replace(found, kind="shared")
        if masked:  # scale and shift are of the classes that were compared
            found = replace(found, scale=_all_classes(found.scale, open_, 1.0), masked=masked)
            shift = None if found.shift is None else _all_classes(found.shift, open_, 0.0)
            found = replace(found, shift=shift if isinstance(shift, Tensor) else None)
        return found

    @classmethod
    def of_positions(cls, name: str, outputs: Tensor, returned: Tensor) -> Relation | None:
        """Relation "pooled", if (N, K) logits are the mean over T of (N, T, K) outputs after a ReLU (SqueezeNet)."""
        z, r = outputs.double().relu().mean(1), returned.double()
        eps = 4 * _ROUNDED * max(torch.finfo(outputs.dtype).eps, torch.finfo(returned.dtype).eps)
        return cls(name, "pooled") if _close(z, r, eps, z.abs() + z.abs().mean()) else None

    @property
    def rank(self) -> int:
        """The place of the kind in `KINDS`: the lower, the more specific."""
        return KINDS.index(self.kind)

    def words(self) -> str | None:
        """What the user should know about the relation; None if there is nothing."""
        head = repr(self.name)
        parts = " + ".join(f"{share:.3g} {name}" for name, share in self.heads.items())
        plus = "" if self.shift is None else " plus a shift for each class"
        found = {
            "scaled": f"{self._how}the outputs of {head}{plus}: measured with a weight and bias that give the same",
            "shared": f"the outputs of several heads ({parts}) of the same features: measured as one",
            "heads": f"the outputs of several heads ({parts}): {head} was measured, accuracy and loss are the model's",
            "linear": f"another linear map of the input of {head} than its outputs (an adapter beside it?): measured "
            "with the matrix that made them, found by least squares",
            "increasing": f"a function of the outputs of {head}: accuracy and loss are of what it returns",
            "pooled": f"a mean over positions of the outputs of {head} after a ReLU: accuracy and loss are of what it "
            "returns",
            "other": f"something else than the outputs of {head} ({100 * self.off:.3g} % off); other heads with as "
            f"many outputs: {listed(self.others)}: accuracy and loss are the model's",
        }.get(self.kind)
        if self.kind == "heads" and len(self.heads) == 1 and self.name not in self.heads:
            (other,) = self.heads
            found = (
                f"the outputs of {other!r}, and {head} was measured; accuracy and loss are the model's: name {other!r} "
                "to measure that head"
            )
        notes = [] if found is None else [f"the model returns {found}"]
        if self.after == "softmax":
            notes.append("the model returns a softmax: the loss is the cross-entropy of these probabilities")
        if self.masked:
            notes.append(f"the model masks {self.masked} classes: their logits are not compared")
        return "; ".join(notes) or None

    @property
    def _how(self) -> str:
        if isinstance(self.scale, Tensor):
            return "a scale for each class times "
        return "" if self.scale == 1 else f"about {self.scale:.4g} times "


KINDS = ("same", "scaled", "shared", "heads", "linear", "increasing", "pooled", "other")


class Comparison:
    """Finds the relation between a head's outputs and a model's logits, and compares later rows with it."""

    def __init__(self, name: str) -> None:
        self.relation: Relation | None = None
        self._name = name
        self._kept: list[tuple[Tensor, Tensor, Mapping[str, tuple[Tensor, bool]]]] = []

    @property
    def needs_others(self) -> bool:
        """Whether the next batch needs the outputs of other heads."""
        few = sum(len(rows) for rows, _, _ in self._kept) < 8
        return self.relation is None or few or self.relation.kind in ("heads", "shared", "other")

    def add(self, outputs: Tensor, returned: Tensor, others: Mapping[str, tuple[Tensor, bool]]) -> None:
        """Compare (n, K) rows of a batch, and find the relation again if they do not fit it."""
        if sum(len(rows) for rows, _, _ in self._kept) < _KEPT:
            self._kept.append((outputs, returned, others))
        kept = [*self._kept]
        if self.relation is not None and kept[-1][0] is not outputs:
            if Relation.of(self._name, outputs, returned, others).kind == self.relation.kind == "same":
                return
            kept.append((outputs, returned, others))
        names = set.intersection(*(set(each) for _, _, each in kept))
        together = {
            name: (torch.cat([each[name][0] for _, _, each in kept]), all(each[name][1] for _, _, each in kept))
            for name in sorted(names)
        }
        z, r = torch.cat([part[0] for part in kept]), torch.cat([part[1] for part in kept])
        self.relation = Relation.of(self._name, z, r, together)


class LeastSquares:
    """The linear map from features to returned logits, if the features determine it."""

    def __init__(self) -> None:
        self._features: list[Tensor] = []
        self._logits: list[Tensor] = []
        self._rows = 0

    def add(self, features: Tensor, logits: Tensor) -> None:
        """Keep rows until there are enough."""
        enough = min(4 * (features.shape[1] + 1), _KEPT_VALUES // (features.shape[1] + logits.shape[1]))
        count = min(len(features), enough - self._rows)
        if count > 0:
            self._features.append(features[:count].clone())
            self._logits.append(logits[:count].clone())
            self._rows += count

    @property
    def has_few(self) -> bool:
        """Whether the rows are so few that some map always fits."""
        return self._rows < (self._features[0].shape[1] if self._features else 0) + 2

    def solve(self) -> tuple[Tensor, Tensor] | None:
        """(K, d) A and (K,) c of `z = A h + c`; None if they are not determined, or the map is not linear."""
        if self.has_few:
            return None
        h, z = torch.cat(self._features), torch.cat(self._logits)
        x, y = h.double(), z.double()
        middle = x.mean(0)
        u, s, v = torch.linalg.svd(x - middle, full_matrices=False)
        if float(s[-1]) <= 16 * torch.finfo(h.dtype).eps * float(s[0]):
            return None
        matrix = ((v.T / s) @ (u.T @ (y - y.mean(0)))).T
        shift = y.mean(0) - matrix @ middle
        form = Form(matrix=matrix, shift=shift)
        parts = torch.arange(len(shift), device=h.device).split(4096)
        if max(distance(form, h, z, matrix, shift, part) for part in parts) > _FITTED:
            return None
        return matrix.to(h.dtype), shift.to(h.dtype)


_FITTED = 4.0  # times what rounding explains, since the fitted matrix has errors of its own


def _linear(name: str, z: Tensor, r: Tensor, rows: Mapping[str, Tensor], eps: float) -> Relation | None:
    """The relation if the logits are a linear function of the outputs of heads."""
    if _close(z, r, eps, z.abs() + z.abs().mean(1, keepdim=True) / 4):
        return Relation(name)
    for other, values in rows.items():
        if _close(values, r, eps, values.abs() + values.abs().mean(1, keepdim=True) / 4):
            return Relation(name, "heads", heads={other: 1.0})
    fitted = _scale_and_shift(z, r, eps)
    if fitted is not None:
        return Relation(name, "scaled", scale=fitted[0], shift=fitted[1])
    heads = _weighted_sum({name: z, **rows}, r, eps)
    return Relation(name, "heads", heads=heads) if heads else None


def _softened(name: str, z: Tensor, r: Tensor, eps: float) -> Relation | None:
    """The relation if the logits are a softmax of `s z + c`, its logarithm, or another shift of each sample."""
    size = 1 + z.abs().amax(1, keepdim=True)
    if bool((r >= 0).all()) and _close(
        r.sum(1), torch.ones_like(r[:, 0]), 4 * eps, torch.full_like(r[:, 0], r.shape[1])
    ):
        if _close(torch.softmax(z, 1), r, eps, size * r + eps):
            return Relation(name, after="softmax")
        soft, after = r.clamp(min=1e-300).log(), "softmax"
    else:
        soft, after = r, "shift"
    x, y = (values - values.mean(1, keepdim=True) for values in (z, soft))
    size = (size + soft.abs().amax(1, keepdim=True)).expand_as(y)
    if _close(x, y, eps, size):
        return Relation(name, after=after)
    fitted = _scale_and_shift(x, y, eps, size) if x.shape[1] > 2 else None
    return None if fitted is None else Relation(name, "scaled", after, *fitted)


def _open_classes(z: Tensor, r: Tensor) -> Tensor:
    """(K,) bool, false for masked classes: those with an infinite logit, or the same low logit for all samples."""
    finite = torch.isfinite(r).all(0) & torch.isfinite(z).all(0)
    if len(r) < 2:
        return finite
    constant = (r == r[:1]).all(0) & ~(z == z[:1]).all(0)
    lowest = r[:, finite & ~constant].min() if bool((finite & ~constant).any()) else r.new_zeros(())
    return finite & ~(constant & (r[0] < lowest))


def _all_classes(values: float | Tensor, open_: Tensor, otherwise: float) -> float | Tensor:
    if not isinstance(values, Tensor):
        return values
    found = torch.full((len(open_),), otherwise, dtype=values.dtype, device=values.device)
    found[open_] = values
    return found


def _close(a: Tensor, b: Tensor, eps: float, size: Tensor) -> bool:
    return a.shape == b.shape and bool(((a - b).abs() <= eps * size).all())


def _weighted_sum(heads: Mapping[str, Tensor], returned: Tensor, eps: float) -> dict[str, float]:
    """The weight of each head if the returned logits are a weighted sum of their outputs; empty if they are not."""
    columns = torch.stack([rows.flatten() for rows in heads.values()], 1)
    # With few entries some weighted sum always fits.
    if len(heads) < 2 or returned.numel() < 4 * len(heads) or not bool(torch.isfinite(columns).all()):
        return {}
    shares = torch.linalg.lstsq(columns.cpu(), returned.flatten()[:, None].cpu(), driver="gelsd").solution[:, 0]
    shares = torch.where(shares.abs() < max(1e-4, 4 * eps), torch.zeros_like(shares), shares).to(columns)
    parts = columns * shares
    if not _close(parts.sum(1), returned.flatten(), 2 * eps, parts.abs().sum(1) + parts.abs().sum(1).mean()):
        return {}
    return {name: share for name, share in sorted(zip(heads, shares.tolist(), strict=True)) if share != 0}


def _scale_and_shift(
    z: Tensor, r: Tensor, eps: float, size: Tensor | None = None
) -> tuple[float | Tensor, Tensor | None] | None:
    """`s` and `c` of `r = s z + c`: one s, or with enough rows one for each class; None if none fits."""
    for each in (False, True):
        if each and len(z) < 4:
            return None
        middle, target = (z.mean(0), r.mean(0)) if len(z) > 1 else (torch.zeros_like(z[0]), torch.zeros_like(r[0]))
        x, y = z - middle, r - target
        norm, dot = x.square().sum(0), (x * y).sum(0)
        if each:
            scale = torch.where(norm > 0, dot / norm.clamp(min=1e-300), torch.ones_like(norm))
        else:
            scale = dot.sum() / norm.sum().clamp(min=1e-300)
            scale = torch.ones_like(scale) if abs(float(scale) - 1) <= 4 * eps else scale
        if not bool((scale != 0).any()):
            return None
        shift = target - scale * middle
        bound = (scale * z).abs() + shift.abs() + (scale * z).abs().mean() if size is None else size
        if _close(scale * z + shift, r, 2 * eps, bound):
            small = bool((shift.abs() <= 2 * eps * bound.amax(0)).all())
            return scale if each else float(scale), None if small else shift
    return None


def _increasing(z: Tensor, r: Tensor, eps: float) -> bool:
    """Whether r is an increasing function of z, the same for all entries."""
    order = z.flatten().argsort()
    steps = r.flatten()[order].diff()
    grows = float(r.max() - r.min())
    return len(order) > 8 and grows > 0 and bool((steps >= -2 * eps * float(r.abs().max())).all())
