"""FixedClassifier: what last layers with fixed rows share, whatever their frame."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from neuralcollapse._checks import check_count
from neuralcollapse._errors import InputError
from neuralcollapse.rotation import FastRotation


class FixedClassifier(nn.Module):
    """Logits s W h + b with fixed unit rows W: bias, scale, rotation and checkpoints; a frame gives the rows.

    Args:
        in_features: d.
        num_classes: K.
        bias: learn a bias b (K,), zero at first.
        scale: s, the length of every row.
        learn_scale: make s a parameter instead of a constant.
        rotation: "none", or "fast": turn the frame by a seeded orthonormal transform.
        seed: of the rotation.
        device, dtype: of bias and scale.

    Shapes: (..., d) -> (..., K).

    Raises:
        InputError: scale not positive and finite, or a rotation by another name.
    """

    frame = ""  # its name
    rotations: tuple[str, ...] = ("none", "fast")
    axis = -1  # of the features in the input and of the classes in the output
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
        check_count(num_classes, "num_classes", 2)
        check_count(in_features, "in_features", 1)
        if not (math.isfinite(scale) and scale > 0):
            raise InputError(f"expected scale to be positive and finite, got {scale}")
        if rotation not in self.rotations:
            raise InputError(f"expected rotation {' or '.join(map(repr, self.rotations))}, got {rotation!r}")
        self.in_features = in_features
        self.num_classes = num_classes
        dtype = dtype or torch.get_default_dtype()
        value = torch.tensor(float(scale), device=device, dtype=dtype)
        if learn_scale:
            self.scale = nn.Parameter(value)
        else:
            self.register_buffer("scale", value)
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
            rows = self._rows()
            return self.scale * (rows if self.rotation is None else self.rotation.inverse(rows))

    def forward(self, features: Tensor) -> Tensor:
        """(..., d) features to (..., K) logits."""
        if features.shape[-1] != self.in_features:
            raise InputError(f"expected features of dimension {self.in_features}, got {tuple(features.shape)}")
        logits = self._product(features if self.rotation is None else self.rotation(features))
        return logits if self.bias is None else logits + self.bias.to(logits.dtype)

    def _rows(self) -> Tensor:
        """(K, d) unit rows of the frame, before any rotation, in the dtype of the scale."""
        raise NotImplementedError

    def _product(self, features: Tensor) -> Tensor:
        """The logits s W h of (..., d) features that have been rotated."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """The arguments, as `nn.Linear` shows its own."""
        return (
            f"in_features={self.in_features}, num_classes={self.num_classes}, frame={self.frame!r}, "
            f"bias={self.bias is not None}, learn_scale={isinstance(self.scale, nn.Parameter)}"
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        weight = state_dict.get(prefix + "weight")
        if weight is not None:
            own = self.weight.to(device=weight.device, dtype=weight.dtype)
            if weight.shape != own.shape or not bool((weight - own).norm() <= 1e-2 * own.norm()):
                raise InputError(
                    f"the checkpoint's {prefix}weight {tuple(weight.shape)} is not this layer's {self._frame_words} "
                    f"{tuple(own.shape)}: load it into an nn.Linear, or drop that key to train with the fixed frame"
                )
            state_dict.pop(prefix + "weight")
            for name, value in self.state_dict().items():
                if name != "bias":
                    state_dict.setdefault(prefix + name, value)
        super()._load_from_state_dict(state_dict, prefix, *args)

    @property
    def _frame_words(self) -> str:
        return self.frame.replace("_", " ")
