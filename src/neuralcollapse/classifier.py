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

from neuralcollapse._checks import check_etf_exists
from neuralcollapse._errors import InputError, listed, nearest
from neuralcollapse.frames import drop_ones


class ETFClassifier(nn.Module):
    r"""Logits s W h + b with W a fixed simplex ETF (unit rows); a drop-in for `nn.Linear`.

    Args:
        in_features: d >= K-1. Of d > K features the first K are used (all of them with `rotation`).
        num_classes: K >= 2.
        bias: learn a bias b (K,), zero at first.
        scale: s, the length of every row.
        learn_scale: make s a parameter instead of a constant.
        rotation: "none", or "fast": turn the frame by a seeded orthonormal transform (random signs around
            Walsh-Hadamard transforms), O(d sqrt(d)) a sample, which spreads each class over all d features.
        seed: of the rotation.
        device, dtype: of bias and scale.

    Shapes: (..., d) -> (..., K).

    Raises:
        InputError: K < 2, d < K-1 (no simplex ETF exists), scale not positive and finite, or a rotation by
            another name.

    The state dict holds `bias`, `scale` and the rotation's signs, never a K x d
    matrix. Loading one with a `weight` (a checkpoint of a dense layer) works when that weight is this very
    frame, and is refused otherwise.

    >>> ETFClassifier(3, 3, bias=False)(torch.tensor([1.0, 0.0, 0.0])).mul(6**0.5).round()
    tensor([ 2., -1., -1.])
    """

    scale: Tensor
    bias: nn.Parameter | None

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
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_etf_exists(num_classes, in_features)
        if not (math.isfinite(scale) and scale > 0):
            raise InputError(f"expected scale to be positive and finite, got {scale}")
        if rotation not in ("none", "fast"):
            raise InputError(f"expected rotation 'none' or 'fast', got {rotation!r}")
        self.in_features = in_features
        self.num_classes = num_classes
        dtype = dtype or torch.get_default_dtype()
        value = torch.tensor(float(scale), device=device, dtype=dtype)
        if learn_scale:
            self.scale = nn.Parameter(value)
        else:
            self.register_buffer("scale", value)
        self._factor = math.sqrt(num_classes / (num_classes - 1))
        self.register_parameter(
            "bias", nn.Parameter(torch.zeros(num_classes, device=device, dtype=dtype)) if bias else None
        )
        self.rotation = FastRotation(in_features, seed, device=device) if rotation == "fast" else None

    @property
    def out_features(self) -> int:
        """K, under the name that `nn.Linear` has for it."""
        return self.num_classes

    @property
    def weight(self) -> Tensor:
        """(K, d) the matrix s W that the layer stands for, made anew at each request."""
        identity = torch.eye(self.in_features, device=self.scale.device, dtype=self.scale.dtype)
        return self._product(identity).T

    def forward(self, features: Tensor) -> Tensor:
        """(..., d) features to (..., K) logits."""
        if features.shape[-1] != self.in_features:
            raise InputError(f"expected features of dimension {self.in_features}, got {tuple(features.shape)}")
        logits = self._product(features)
        return logits if self.bias is None else logits + self.bias.to(logits.dtype)

    def _product(self, features: Tensor) -> Tensor:
        if self.rotation is not None:
            features = self.rotation(features)
        if self.in_features == self.num_classes - 1:
            centred = drop_ones(features)
        else:
            used = features if self.in_features == self.num_classes else features[..., : self.num_classes]
            centred = used - used.mean(-1, keepdim=True)
        return centred * (self._factor * self.scale).to(centred.dtype)

    def extra_repr(self) -> str:
        """The arguments, as `nn.Linear` shows its own."""
        return (
            f"in_features={self.in_features}, num_classes={self.num_classes}, bias={self.bias is not None}, "
            f"learn_scale={isinstance(self.scale, nn.Parameter)}"
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        weight = state_dict.get(prefix + "weight")
        if weight is not None:
            own = self.weight.to(device=weight.device, dtype=weight.dtype)
            if weight.shape != own.shape or not torch.allclose(
                weight, own, rtol=1e-3, atol=1e-3 * float(self.scale.detach())
            ):
                raise InputError(
                    f"the checkpoint's {prefix}weight {tuple(weight.shape)} is not this layer's simplex ETF "
                    f"{tuple(own.shape)}: load it into an nn.Linear, or drop that key to train with the fixed frame"
                )
            state_dict.pop(prefix + "weight")
            for name in ("scale", "rotation.signs"):
                if name in self.state_dict():
                    state_dict.setdefault(prefix + name, self.state_dict()[name])
        super()._load_from_state_dict(state_dict, prefix, *args)


class FastRotation(nn.Module):
    """A seeded orthonormal transform of d features: twice random signs, a reversal, and a Hadamard product.

    The Walsh-Hadamard transform of the largest power of two p <= d is taken as a product of two small
    matrices over a grid of p = a b, so it runs as two matmuls. As p > d/2, two rounds with the order
    reversed between them reach every feature, and leave the mixed ones first.

    Shapes: (..., d) -> (..., d).
    """

    signs: Tensor

    def __init__(self, dim: int, seed: int = 0, *, device: torch.device | str | None = None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        signs = torch.randint(0, 2, (2, dim), generator=generator).to(device=device, dtype=torch.int8) * 2 - 1
        self.register_buffer("signs", signs)
        bits = dim.bit_length() - 1
        self._grid = (2 ** (bits // 2), 2 ** (bits - bits // 2))

    def forward(self, features: Tensor) -> Tensor:
        """(..., d) to (..., d), lengths and angles kept."""
        rows, columns = self._grid
        left, right = _hadamard(rows, features), _hadamard(columns, features)
        for signs in self.signs:
            turned = (features * signs.to(features.dtype)).flip(-1)
            grid = turned[..., : rows * columns].unflatten(-1, (rows, columns))
            mixed = ((grid @ right).transpose(-1, -2) @ left).flatten(-2)  # left grid right, transposed
            rest = turned[..., rows * columns :]
            features = torch.cat([mixed.to(rest.dtype), rest], dim=-1)
        return features


def _hadamard(size: int, like: Tensor) -> Tensor:
    """The orthonormal Walsh-Hadamard matrix of a power of two."""
    matrix = torch.ones(1, 1, dtype=like.dtype, device=like.device)
    while matrix.shape[0] < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)]) / math.sqrt(2)
    return matrix


def fix_classifier(model: nn.Module, name: str = "fc", **options: Any) -> nn.Module:
    """Swap a model's last `nn.Linear` for an `ETFClassifier` of the same shape, in place.

    The new layer keeps the old one's device and dtype, has a bias where the old one had (zero at first:
    the old bias belonged to the old rows), and no trainable weight.

    Args:
        model: holds an `nn.Linear` at `name`.
        name: dotted path of the layer, such as "fc", "classifier" or "head.1".
        options: passed to `ETFClassifier` (bias, scale, learn_scale, rotation, seed).

    Returns:
        The same model, or the new layer when `model` is itself an `nn.Linear`.

    Raises:
        InputError: no layer of that name (those that exist are listed), not an nn.Linear, or d < K-1.
    """
    if isinstance(model, nn.Linear):
        return _like(model, options)
    layer = find_module(model, name)
    if not isinstance(layer, nn.Linear):
        raise InputError(
            f"expected {name!r} to be an nn.Linear, got {type(layer).__name__}; the model's linear layers: "
            f"{listed(linear_names(model)) or 'none'}"
        )
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, _like(layer, options))
    return model


def _like(layer: nn.Linear, options: dict[str, Any]) -> ETFClassifier:
    like: dict[str, Any] = {"bias": layer.bias is not None, "device": layer.weight.device, "dtype": layer.weight.dtype}
    options = like | options
    fixed = ETFClassifier(layer.in_features, layer.out_features, **options)
    return fixed.train(layer.training)


def find_module(model: nn.Module, name: str) -> nn.Module:
    """The submodule at a dotted path; an error names the linear layers that exist."""
    known = dict(model.named_modules())
    if name in known and name:
        return known[name]
    linear = linear_names(model)
    raise InputError(
        f"the model ({type(model).__name__}) has no layer {name!r}{nearest(name, known)}; its linear layers: "
        f"{listed(linear[-8:]) or 'none'}"
    )


def linear_names(model: nn.Module) -> list[str]:
    """Dotted paths of the model's classifiers-to-be: nn.Linear and ETFClassifier layers."""
    return [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear | ETFClassifier)]
