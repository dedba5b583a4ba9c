"""ETFClassifier: a last layer fixed to a simplex ETF, without a weight matrix.

With W = sqrt(K/(K-1)) (I - 11'/K) P', column k of P spread evenly over features of its own, the product is a sum over
each class's features and a centring: O(d) a sample where a matrix costs O(K d), nothing to store, no weight gradient.
Source: Zhu et al., NeurIPS 2021, section 4 (the fixed classifier, P the first K coordinates); the rest is algebra.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neuralcollapse.checks import check_etf_exists
from neuralcollapse.errors import InputError
from neuralcollapse.geometry.frames import drop_ones, frame_name
from neuralcollapse.heads.beyond_simplex import CodeClassifier, OrthoplexClassifier
from neuralcollapse.heads.fixed import FixedClassifier
from neuralcollapse.heads.linear import head_axis, head_outputs, head_tensors, is_tuned
from neuralcollapse.heads.nearest_simplex import NearestSimplex
from neuralcollapse.heads.search import find_heads, named_head


class ETFClassifier(FixedClassifier):
    r"""Logits s W h + b with W a fixed simplex ETF (unit rows); a drop-in for `nn.Linear`.

    Args:
        in_features: d >= K-1.
        num_classes: K >= 2.
        bias: learn a bias b (K,), zero at first.
        scale: s, the length of every row.
        learn_scale: make s a parameter instead of a constant.
        rotation: how the frame lies among the d features.
            "blocks": each class has floor(d/K) features of its own, the first ones the first class, and what is left of
            d is not used. Features >= 0 reach this simplex, and no class hangs on one feature that may die: for use
            behind a ReLU, and anywhere else.
            "none": the paper's frame, each class on one of the first K features; the same as "blocks" for d < 2K.
            "fast": turned by a seeded orthonormal transform (random signs around Walsh-Hadamard transforms),
            O(d sqrt(d)) a sample, so that all features are used. Features >= 0 cannot reach this simplex at d = K, and
            only part of its margin beyond: not for use behind a ReLU.
            "nearest": turned to the running class means, see `follow`.
        seed: of the fast rotation.
        momentum: for rotation="nearest", the share of a batch's class mean in the running one, above 0 and up to 1.
        update_every: for rotation="nearest", calls of `follow` from one turn of the frame to the next.
        axis: where the features are in the input and the logits in the output, counted from the end: -3 for maps
            (N, d, H, W) as a 1x1 convolution takes them.
        device, dtype: of bias and scale.

    Shapes: (..., d) -> (..., K), or with axis=-3 (..., d, H, W) -> (..., K, H, W).

    Raises:
        InputError: K < 2, d < K-1 (no simplex ETF exists), scale not positive and finite, a rotation by another name,
            an axis that is not negative, or a momentum or update_every out of range.

    The state dict holds `bias`, `scale`, the name of the frame and the rotation's signs, never a K x d matrix (but
    with rotation="nearest", whose frame and running means are a state of their own). One of another frame is refused.
    Loading one with a `weight` (a checkpoint of a dense layer) works when that weight is this very frame, and is
    refused otherwise.

    >>> ETFClassifier(3, 3, bias=False)(torch.tensor([1.0, 0.0, 0.0])).mul(6**0.5).round()
    tensor([ 2., -1., -1.])
    """

    frame = "simplex"
    rotations = ("blocks", "none", "fast", "nearest")
    _block = 1  # features of each class

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        bias: bool = True,
        *,
        scale: float = 1.0,
        learn_scale: bool = False,
        rotation: str = "blocks",
        seed: int = 0,
        axis: int = -1,
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
            axis=axis,
            device=device,
            dtype=dtype,
        )
        if rotation == "blocks":
            self._block = max(1, in_features // num_classes)
        self._factor = math.sqrt(num_classes / (num_classes - 1) / self._block)
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
            self._kept = self._last(features.detach())
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
            labels: integers of the shape of the features but for their dimension d.
            features: as in the forward pass; those of the last forward pass in training mode when not given.
            ignore_index: samples with this label are left out.

        Raises:
            InputError: another rotation, no features to go with the labels, or labels that do not fit.

        Source: after Markou, Ajanthan and Gould (NeurIPS 2024), who follow the nearest simplex by Riemannian
        optimisation with gradients through it; this is the plain Procrustes version.
        """
        if self.nearest is None:
            raise InputError("expected rotation='nearest' to follow class means, got a layer with a fixed frame")
        features = self._kept if features is None else self._last(features.detach())
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
        """The frame before any rotation: (K, d), zeros for features that are not used."""
        own = torch.eye(min(self.in_features, self.num_classes), device=self.scale.device, dtype=self.scale.dtype)
        rows = (self._centred(own).T * self._factor).repeat_interleave(self._block, -1)
        return F.pad(rows, (0, self.in_features - rows.shape[-1]))

    def _product(self, features: Tensor) -> Tensor:
        if self.nearest is not None:
            return F.linear(features, self.nearest.rows.to(features.dtype)) * self.scale.to(features.dtype)
        factor = self._factor * self.scale
        if self._block == 1:
            used = features if self.in_features <= self.num_classes else features[..., : self.num_classes]
        else:
            blocks = features.unfold(-1, self._block, self._block)  # its gradient is written once, a slice's twice
            if features.dtype == torch.float16:  # a sum of many features may be beyond its range, their mean is not
                used, factor = blocks.mean(-1), factor * self._block
            else:
                used = blocks.sum(-1, dtype=features.dtype)  # autocast would take it to float32
            used = used[..., : self.num_classes]
        centred = self._centred(used)
        return centred * factor.to(centred.dtype)

    def _centred(self, used: Tensor) -> Tensor:
        if self.in_features == self.num_classes - 1:
            return drop_ones(used)
        return used - used.mean(-1, keepdim=True)

    def _rotation_kept(self) -> str:
        return "none" if self.rotation_name == "blocks" and self._block == 1 else self.rotation_name

    @property
    def _frame_words(self) -> str:
        return "simplex ETF"


_FRAMES: dict[str, type[FixedClassifier]] = {
    "simplex": ETFClassifier,
    "orthoplex": OrthoplexClassifier,
    "softmax_code": CodeClassifier,
}


def fix_classifier(
    model: nn.Module,
    name: str | nn.Module | Sequence[str | nn.Module] | None = None,
    *,
    frame: str = "auto",
    **options: Any,
) -> nn.Module:
    """Swap a model's last linear layer for one of the same shape whose rows are fixed, in place.

    For K <= d+1 that is an `ETFClassifier`. More classes than that hold no simplex: up to K = 2d they get the
    orthoplex (`OrthoplexClassifier`, turned by the fast rotation unless `rotation="none"` is given), beyond it an
    optimised softmax code (`CodeClassifier`).

    The new layer keeps the old one's device and dtype, has a bias where the old one had (zero at first:
    the old bias belonged to the old rows), and no trainable weight. Make the optimiser afterwards. Where another
    layer shares the old weight, such as a language model's embedding, that one stays as it is. A parametrisation of the
    old layer (weight_norm, spectral_norm, pruning) goes with it.

    Args:
        model: holds a linear head: an `nn.Linear`, a 1x1 convolution (the new layer takes the same maps), or
            transformers' Conv1D.
        name: dotted path of the head, such as "fc", "classifier.6", or of an `nn.Sequential` that ends in it; several
            in a list. When not given, the model's heads are found (`neuralcollapse.heads.etf.find_heads`), and all of
            them are fixed: those of a distilled DeiT, an auxiliary head too.
        frame: "auto", or one of "simplex", "orthoplex", "softmax_code".
        options: passed to the layer (bias, scale, learn_scale, rotation, seed, ...).

    Returns:
        The same model, or the new layer when `model` is itself a linear head.

    Raises:
        InputError: no layer of that name (those that exist are listed), no linear head, one with a single output or
            with an adapter (LoRA), or a frame that cannot hold so many classes. The model is then as it was.
    """
    if head_outputs(model) is not None:
        return _like(model, "the layer", frame, options)
    names = find_heads(model) if name is None else [name] if isinstance(name, str | nn.Module) else list(name)
    if not names:
        raise InputError("expected the name of a head or several, got none: leave it out to have the heads found")
    said = {id(layer): (_said(name), layer) for name in names for layer in [named_head(model, name)]}
    fixed = {key: _like(layer, where, frame, options) for key, (where, layer) in said.items()}  # all, before any swap
    for path, module in list(model.named_modules(remove_duplicate=False)):  # the model may hold one under two names
        if id(module) in fixed:
            parent, _, leaf = path.rpartition(".")
            setattr(model.get_submodule(parent), leaf, fixed[id(module)])
    return model


def _said(name: str | nn.Module) -> str:
    return repr(name) if isinstance(name, str) else "the layer"


def _like(layer: nn.Module, where: str, frame: str, options: dict[str, Any]) -> FixedClassifier:
    """A fixed layer of the same shape, device, dtype and mode."""
    if frame != "auto" and frame not in _FRAMES:
        raise InputError(f"expected frame 'auto', {', '.join(map(repr, _FRAMES))}, got {frame!r}")
    if is_tuned(layer):
        raise InputError(
            f"expected {where} to be a plain linear layer, got {type(layer).__name__} with an adapter: fix the head "
            "first, then add adapters to other layers, with modules_to_save for the head's bias"
        )
    if isinstance(layer, FixedClassifier):
        raise InputError(f"expected {where} to be a learned layer, got {type(layer).__name__}, which is fixed already")
    weight, bias = head_tensors(layer)
    num_classes, dim = weight.shape
    if num_classes == 1:
        raise InputError(
            f"expected at least 2 classes, got {where} with one logit: for two classes use nn.Linear({dim}, 2) with "
            "cross_entropy on labels 0 and 1"
        )
    best = frame_name(num_classes, dim)
    if frame == "simplex" != best:
        raise InputError(
            f"expected d >= K-1 = {num_classes - 1} for a simplex ETF of K={num_classes} classes, got "
            f"d={dim}: widen the features, or take frame='auto', here {best!r}"
        )
    chosen = best if frame == "auto" else frame
    floating = next((x.dtype for x in (weight, bias) if x is not None and x.is_floating_point()), None)
    like: dict[str, Any] = {
        "bias": bias is not None,
        "device": weight.device,
        "dtype": floating,
        "axis": head_axis(layer),
    }
    if chosen == "orthoplex":
        like["rotation"] = "fast"
    try:
        fixed = _FRAMES[chosen](dim, num_classes, **(like | options))
    except TypeError as error:
        raise InputError(f"the layer of the frame {chosen!r} takes no such option: {error}") from None
    return fixed.train(layer.training)
