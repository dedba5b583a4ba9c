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
from neuralcollapse._errors import InputError, listed, nearest
from neuralcollapse.frames import drop_ones


class ETFClassifier(nn.Module):
    r"""Logits s W h + b with W a fixed simplex ETF (unit rows); a drop-in for `nn.Linear`.

    Args:
        in_features: d >= K-1. Of d > K features the first K are used (all of them with `rotation`). Each class
            then hangs on one feature: after a ReLU without normalisation, use rotation="fast".
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
        with torch.autocast(self.scale.device.type, enabled=False):
            width = min(self.in_features, self.num_classes)
            rows = self._centred(torch.eye(width, device=self.scale.device, dtype=self.scale.dtype)).T * self._factor
            rows = F.pad(rows, (0, self.in_features - width))
            return self.scale * (rows if self.rotation is None else self.rotation.inverse(rows))

    def forward(self, features: Tensor) -> Tensor:
        """(..., d) features to (..., K) logits."""
        if features.shape[-1] != self.in_features:
            raise InputError(f"expected features of dimension {self.in_features}, got {tuple(features.shape)}")
        logits = self._product(features)
        return logits if self.bias is None else logits + self.bias.to(logits.dtype)

    def _product(self, features: Tensor) -> Tensor:
        if self.rotation is not None:
            features = self.rotation(features)
        used = features if self.in_features <= self.num_classes else features[..., : self.num_classes]
        centred = self._centred(used)
        return centred * (self._factor * self.scale).to(centred.dtype)

    def _centred(self, used: Tensor) -> Tensor:
        if self.in_features == self.num_classes - 1:
            return drop_ones(used)
        return used - used.mean(-1, keepdim=True)

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
            if weight.shape != own.shape or not bool((weight - own).norm() <= 1e-2 * own.norm()):
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
        for signs in self.signs:
            features = self._mix((features * signs.to(features.dtype)).flip(-1))
        return features

    def inverse(self, features: Tensor) -> Tensor:
        """The way back: the transposed transform."""
        for signs in self.signs.flip(0):
            features = self._mix(features).flip(-1) * signs.to(features.dtype)
        return features

    def _mix(self, features: Tensor) -> Tensor:
        """The Walsh-Hadamard transform of the first p features, its own inverse."""
        rows, columns = self._grid
        left, right = _hadamard(rows, features), _hadamard(columns, features)
        grid = features[..., : rows * columns].unflatten(-1, (rows, columns))
        mixed = (left @ (grid @ right)).flatten(-2)
        rest = features[..., rows * columns :]
        return torch.cat([mixed.to(rest.dtype), rest], dim=-1)


def _hadamard(size: int, like: Tensor) -> Tensor:
    """The orthonormal Walsh-Hadamard matrix of a power of two."""
    matrix = torch.ones(1, 1, dtype=like.dtype, device=like.device)
    while matrix.shape[0] < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)]) / math.sqrt(2)
    return matrix


def fix_classifier(model: nn.Module, name: str | nn.Module = "fc", **options: Any) -> nn.Module:
    """Swap a model's last `nn.Linear` for an `ETFClassifier` of the same shape, in place.

    The frame is turned by the fast rotation unless `rotation="none"` is given: the plain frame reads one
    feature for each class, and one that a ReLU has silenced takes its class with it.

    The new layer keeps the old one's device and dtype, has a bias where the old one had (zero at first:
    the old bias belonged to the old rows), and no trainable weight. Make the optimiser afterwards.

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
    path = name if isinstance(name, str) else next(path for path, module in model.named_modules() if module is layer)
    parent, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(parent), leaf, _like(layer, options))
    return model


def _like(layer: nn.Linear, options: dict[str, Any]) -> ETFClassifier:
    like: dict[str, Any] = {
        "bias": layer.bias is not None,
        "rotation": "fast",
        "device": layer.weight.device,
        "dtype": layer.weight.dtype,
    }
    options = like | options
    fixed = ETFClassifier(layer.in_features, layer.out_features, **options)
    return fixed.train(layer.training)


def find_module(model: nn.Module, name: str | nn.Module) -> nn.Module:
    """The submodule at a dotted path (or the submodule itself); an error names the linear layers that exist."""
    known = dict(model.named_modules())
    if isinstance(name, nn.Module):
        if any(module is name for module in known.values()):
            return name
        raise InputError(f"expected a layer of the model or its name, got a {type(name).__name__} outside the model")
    if not isinstance(name, str):
        raise InputError(f"expected a layer's name, such as 'fc', got {name!r}")
    if name in known and name:
        return known[name]
    linear = linear_names(model)
    hint = nearest(name, [path for path in known if path]) if name else ""
    raise InputError(
        f"the model ({type(model).__name__}) has no layer {name!r}{hint}; its linear layers: "
        f"{listed(linear[-8:]) or 'none'}"
    )


def linear_names(model: nn.Module) -> list[str]:
    """Dotted paths of the model's classifiers-to-be: nn.Linear and ETFClassifier layers."""
    return [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear | ETFClassifier)]
