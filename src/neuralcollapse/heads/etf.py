"""ETFClassifier: a last layer fixed to a simplex ETF, without a weight matrix.

`W = sqrt(K/(K-1)) (I - 11'/K) P'`, where column k of P is spread evenly over features of its own. The product is then a
sum over each class's features followed by centring: O(d) a sample where a matrix costs O(K d), nothing to store, no
gradient of a weight.
Source: Zhu et al., NeurIPS 2021, section 4 (the fixed classifier, P the first K coordinates); the rest is algebra.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from neuralcollapse.checks import check_etf_exists
from neuralcollapse.errors import InputError
from neuralcollapse.heads.fixed import FixedClassifier
from neuralcollapse.heads.nearest_simplex import NearestSimplex
from neuralcollapse.heads.products import Simplex, SimplexConstants, simplex_constants, simplex_plain


class ETFClassifier(FixedClassifier):
    r"""Logits `s W h + b` with W a fixed simplex ETF (unit rows); a drop-in replacement for `nn.Linear`.

    Args:
        in_features: d >= K-1.
        num_classes: K >= 2.
        bias: learn a bias b (K,), zero at first.
        scale: s, the length of every row.
        learn_scale: make s a parameter instead of a constant.
        rotation: how the frame lies among the d features.
            "blocks": each class has floor(d/K) features of its own, the first class the first ones; the features left
            over are not used. Nonnegative features can reach this simplex, and no class depends on a single feature
            that may die: the right choice behind a ReLU, and good anywhere else.
            "none": the paper's frame, each class on one of the first K features; the same as "blocks" for d < 2K.
            "fast": rotated by a seeded orthonormal transform (random signs around Walsh-Hadamard transforms),
            O(d sqrt(d)) a sample, so that all features are used. Nonnegative features cannot reach this simplex at
            d = K, and only part of its margin for larger d: not for use behind a ReLU.
            "nearest": rotated towards the running class means, see `follow`.
        seed: seed of the fast rotation.
        momentum: for rotation="nearest", the weight of a batch's class mean in the running mean, above 0 and up to 1.
        update_every: for rotation="nearest", the number of `follow` calls between two updates of the frame.
        axis: the axis of the features in the input and of the logits in the output, counted from the end: -3 for maps
            (N, d, H, W) as a 1x1 convolution takes them.
        device, dtype: of bias and scale.

    Shapes: (..., d) -> (..., K), or with axis=-3 (..., d, H, W) -> (..., K, H, W).

    Raises:
        InputError: K < 2, d < K-1 (no simplex ETF exists), a scale that is not positive and finite, an unknown
            rotation, an axis that is not negative, or a momentum or update_every out of range.

    The state dict holds `bias`, `scale`, the name of the frame and the signs of the rotation, never a K x d matrix
    (except with rotation="nearest", whose frame and running means are state). Loading the state of another frame is
    refused. A state with a `weight` (a checkpoint of a dense layer) loads if that weight is exactly this frame, and is
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
            self._stored = self._keeps = True
        elif (momentum, update_every) != (0.1, 1):
            raise InputError("momentum and update_every are for rotation='nearest': leave them out")
        self._turn()

    def follow(self, labels: Tensor, features: Tensor | None = None, *, ignore_index: int | None = None) -> None:
        """With rotation="nearest": update the running class means from a training batch, and rotate the frame to them.

        Call it once a step, after the forward pass. For each class k in the batch with mean m_k, the running mean
        becomes `M_k <- (1 - momentum) M_k + momentum m_k` (`M_k <- m_k` the first time). On every `update_every`-th
        call, once all classes have been seen, W becomes the simplex ETF nearest to the rows M_k minus their mean over
        classes (orthogonal Procrustes, `nearest_simplex_etf`). Until then W is the canonical frame. No gradient flows
        through W. An update takes a singular value decomposition, O(K^2 d): with thousands of classes, choose a large
        `update_every`. Under DistributedDataParallel all processes take over the state of the first.

        Args:
            labels: integers, of the shape of the features without their dimension d.
            features: as in the forward pass; by default those of the last forward pass in training mode.
            ignore_index: samples with this label are left out.

        On an accelerator nothing waits for the device except a call that updates the frame. A batch with a wrong label,
        NaN or infinity is left out there, and the next such call raises.

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
        return super().__getstate__() | {"_kept": None}  # a saved layer keeps no batch

    def _rows(self) -> Tensor:
        return self._canonical() if self.nearest is None else self.nearest.rows.to(self.scale.dtype)

    def _canonical(self) -> Tensor:
        """The frame before any rotation: (K, d), zeros for features that are not used."""
        own = torch.eye(min(self.in_features, self.num_classes), device=self.scale.device, dtype=self.scale.dtype)
        rows = (simplex_plain(own, self.num_classes, 1).T * self._factor).repeat_interleave(self._block, -1)
        return F.pad(rows, (0, self.in_features - rows.shape[-1]))

    def _source(self) -> Tensor | None:
        return super()._source() if self.nearest is None else self.nearest._buffers["rows"]

    def _product(self, features: Tensor, bias: Tensor | None, scale: Tensor | None) -> Tensor:
        dtype = features.dtype
        constants = self._constants.get(
            (dtype, scale is None, "product"), scale, None, self._new_constants, dtype, scale
        )
        return Simplex.apply(features, bias, constants, self.num_classes, self._block)

    def _new_constants(self, dtype: torch.dtype, scale: Tensor | None) -> SimplexConstants:
        # In float32 at least: a scalar does not change the dtype of a product.
        wide = (torch.ones_like(self.scale) if scale is None else scale).to(torch.promote_types(dtype, torch.float32))
        gain = wide * (self._factor * self._block)
        return simplex_constants(gain, self.num_classes, self.in_features, self._block, dtype)

    def _plain(self, features: Tensor) -> Tensor:
        return simplex_plain(self._rotated(features), self.num_classes, self._block) * (self._factor * self._block)

    def _rotation_kept(self) -> str:
        return "none" if self.rotation_name == "blocks" and self._block == 1 else self.rotation_name
