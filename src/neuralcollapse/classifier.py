"""ETFClassifier: a last layer fixed to a simplex ETF, without a weight matrix.

With the canonical frame W = sqrt(K/(K-1)) (I - 11'/K) P', P the first K coordinates, the product is a
centring, W h = sqrt(K/(K-1)) (h_1..K - their mean): O(K) a sample where a matrix costs O(K d), nothing to
store, no weight gradient. Source: Zhu et al., NeurIPS 2021, section 4 (the fixed classifier); the rest is
algebra.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neuralcollapse._checks import check_etf_exists
from neuralcollapse._errors import InputError, listed
from neuralcollapse.fixed import FixedClassifier
from neuralcollapse.frames import drop_ones, frame_name
from neuralcollapse.heads import find_head, find_heads, find_module, head_axis, head_names, head_tensors
from neuralcollapse.nearest import NearestSimplex
from neuralcollapse.other_frames import CodeClassifier, OrthoplexClassifier

__all__ = [
    "ETFClassifier",
    "find_head",
    "find_heads",
    "find_module",
    "fix_classifier",
    "head_axis",
    "head_names",
    "head_tensors",
]


class ETFClassifier(FixedClassifier):
    r"""Logits s W h + b with W a fixed simplex ETF (unit rows); a drop-in for `nn.Linear`.

    Args:
        in_features: d >= K-1. Of d > K features the first K are used (all of them with a rotation). Each class
            then hangs on one feature: after a ReLU without normalisation, use rotation="fast".
        num_classes: K >= 2.
        bias: learn a bias b (K,), zero at first.
        scale: s, the length of every row.
        learn_scale: make s a parameter instead of a constant.
        rotation: "none"; "fast": turn the frame by a seeded orthonormal transform (random signs around
            Walsh-Hadamard transforms), O(d sqrt(d)) a sample, which spreads each class over all d features; or
            "nearest": turn it to the running class means, see `follow`.
        seed: of the fast rotation.
        momentum: for rotation="nearest", the share of a batch's class mean in the running one, above 0 and up to 1.
        update_every: for rotation="nearest", calls of `follow` from one turn of the frame to the next.
        device, dtype: of bias and scale.

    Shapes: (..., d) -> (..., K).

    Raises:
        InputError: K < 2, d < K-1 (no simplex ETF exists), scale not positive and finite, a rotation by another name,
            or a momentum or update_every out of range.

    The state dict holds `bias`, `scale` and the rotation's signs, never a K x d matrix (but with
    rotation="nearest", whose frame and running means are a state of their own). Loading one with a `weight` (a
    checkpoint of a dense layer) works when that weight is this very frame, and is refused otherwise.

    >>> ETFClassifier(3, 3, bias=False)(torch.tensor([1.0, 0.0, 0.0])).mul(6**0.5).round()
    tensor([ 2., -1., -1.])
    """

    frame = "simplex"
    rotations = ("none", "fast", "nearest")

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        bias: bool = True,
        *,
        scale: float = 1.0,
        learn_scale: bool = False,
        rotation: str = "none",
        seed: int = 0,
        momentum: float = 0.1,
        update_every: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_etf_exists(num_classes, in_features)
        super().__init__(
            in_features,
            num_classes,
            bias,
            scale=scale,
            learn_scale=learn_scale,
            rotation=rotation,
            seed=seed,
            device=device,
            dtype=dtype,
        )
        self._factor = math.sqrt(num_classes / (num_classes - 1))
        self.nearest: NearestSimplex | None = None
        if rotation == "nearest":
            self.nearest = NearestSimplex(self._canonical(), momentum, update_every)
        elif (momentum, update_every) != (0.1, 1):
            raise InputError("momentum and update_every are for rotation='nearest': leave them out")
        self._kept: Tensor | None = None

    def forward(self, features: Tensor) -> Tensor:
        """(..., d) features to (..., K) logits."""
        logits = super().forward(features)
        if self.nearest is not None and self.training:
            self._kept = features.detach()
        return logits

    def follow(self, labels: Tensor, features: Tensor | None = None, *, ignore_index: int | None = None) -> None:
        """With rotation="nearest": tell the layer the classes of a training batch; it turns its frame to the means.

        The rule, once a step after the forward pass: for each class k in the batch with mean m_k, the running mean
        M_k <- (1 - momentum) M_k + momentum m_k (M_k <- m_k the first time). Every `update_every`-th call, once all
        classes have been seen, W becomes the simplex ETF nearest to the rows M_k less their mean over classes
        (orthogonal Procrustes, `nearest_simplex_etf`). Until then W stays; at first it is the canonical frame. No
        gradient goes through W. A turn is a singular value decomposition, O(K^2 d): with thousands of classes take a
        large `update_every`. Processes of DistributedDataParallel take over the first one's state.

        Args:
            labels: integers of the shape of the features but for their last dimension.
            features: (..., d); those of the last forward pass in training mode when not given.
            ignore_index: samples with this label are left out.

        Raises:
            InputError: another rotation, no features to go with the labels, or labels that do not fit.

        Source: after Markou, Ajanthan and Gould (NeurIPS 2024), who follow the nearest simplex by Riemannian
        optimisation with gradients through it; this is the plain Procrustes version.
        """
        if self.nearest is None:
            raise InputError("expected rotation='nearest' to follow class means, got a layer with a fixed frame")
        features = self._kept if features is None else features.detach()
        self._kept = None
        if features is None:
            raise InputError(
                "expected a forward pass in training mode before follow(labels), got none: or pass features"
            )
        self.nearest.follow(features.flatten(0, -2), labels.flatten(), ignore_index)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": None}  # a saved layer has no batch of its own

    def _rows(self) -> Tensor:
        return self._canonical() if self.nearest is None else self.nearest.rows.to(self.scale.dtype)

    def _canonical(self) -> Tensor:
        """The frame on the first features."""
        width = min(self.in_features, self.num_classes)
        rows = self._centred(torch.eye(width, device=self.scale.device, dtype=self.scale.dtype)).T * self._factor
        return F.pad(rows, (0, self.in_features - width))

    def _product(self, features: Tensor) -> Tensor:
        if self.nearest is not None:
            return F.linear(features, self.nearest.rows.to(features.dtype)) * self.scale.to(features.dtype)
        used = features if self.in_features <= self.num_classes else features[..., : self.num_classes]
        centred = self._centred(used)
        return centred * (self._factor * self.scale).to(centred.dtype)

    def _centred(self, used: Tensor) -> Tensor:
        if self.in_features == self.num_classes - 1:
            return drop_ones(used)
        return used - used.mean(-1, keepdim=True)

    @property
    def _frame_words(self) -> str:
        return "simplex ETF"


_FRAMES: dict[str, type[FixedClassifier]] = {
    "simplex": ETFClassifier,
    "orthoplex": OrthoplexClassifier,
    "softmax_code": CodeClassifier,
}


def fix_classifier(model: nn.Module, name: str | nn.Module = "fc", *, frame: str = "auto", **options: Any) -> nn.Module:
    """Swap a model's last `nn.Linear` for a layer of the same shape whose rows are fixed, in place.

    For K <= d+1 that is an `ETFClassifier`. More classes than that hold no simplex: up to K = 2d they get the
    orthoplex (`OrthoplexClassifier`), beyond it an optimised softmax code (`CodeClassifier`).

    Simplex and orthoplex are turned by the fast rotation unless `rotation="none"` is given: the plain frames read one
    feature for each class, and one that a ReLU has silenced takes its class with it.

    The new layer keeps the old one's device and dtype, has a bias where the old one had (zero at first:
    the old bias belonged to the old rows), and no trainable weight. Make the optimiser afterwards. Where another
    layer shares the old weight, such as a language model's embedding, that one stays as it is.

    Args:
        model: holds an `nn.Linear` at `name`.
        name: dotted path of the layer, such as "fc", "classifier" or "head.1".
        frame: "auto", or one of "simplex", "orthoplex", "softmax_code".
        options: passed to the layer (bias, scale, learn_scale, rotation, seed, ...).

    Returns:
        The same model, or the new layer when `model` is itself an `nn.Linear`.

    Raises:
        InputError: no layer of that name (those that exist are listed), not an nn.Linear, or a frame that cannot hold
            so many classes.
    """
    if isinstance(model, nn.Linear):
        return _like(model, frame, options)
    layer = find_module(model, name)
    if not isinstance(layer, nn.Linear):
        raise InputError(
            f"expected {name!r} to be an nn.Linear, got {type(layer).__name__}; the model's linear layers: "
            f"{listed(head_names(model)) or 'none'}"
        )
    fixed = _like(layer, frame, options)
    for path in [path for path, module in model.named_modules(remove_duplicate=False) if module is layer]:
        parent, _, leaf = path.rpartition(".")  # several where the model holds it under two names
        setattr(model.get_submodule(parent), leaf, fixed)
    return model


def _like(layer: nn.Linear, frame: str, options: dict[str, Any]) -> FixedClassifier:
    if frame != "auto" and frame not in _FRAMES:
        raise InputError(f"expected frame 'auto', {', '.join(map(repr, _FRAMES))}, got {frame!r}")
    best = frame_name(layer.out_features, layer.in_features)
    if frame == "simplex" != best:
        raise InputError(
            f"expected d >= K-1 = {layer.out_features - 1} for a simplex ETF of K={layer.out_features} classes, got "
            f"d={layer.in_features}: widen the features, or take frame='auto', here {best!r}"
        )
    chosen = best if frame == "auto" else frame
    like: dict[str, Any] = {
        "bias": layer.bias is not None,
        "device": layer.weight.device,
        "dtype": layer.weight.dtype,
    }
    if "fast" in _FRAMES[chosen].rotations:
        like["rotation"] = "fast"
    try:
        fixed = _FRAMES[chosen](layer.in_features, layer.out_features, **(like | options))
    except TypeError as error:
        raise InputError(f"the layer of the frame {chosen!r} takes no such option: {error}") from None
    return fixed.train(layer.training)
