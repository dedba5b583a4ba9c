"""FixedClassifier: what last layers with fixed rows share, whatever their frame."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from neuralcollapse.checks import check_count
from neuralcollapse.errors import InputError, NeuralCollapseWarning
from neuralcollapse.geometry.frames import frame_name
from neuralcollapse.heads.rotation import FastRotation


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
        axis: where the features are in the input and the logits in the output, counted from the end: -1, or -3 for
            maps (N, d, H, W) as a 1x1 convolution takes them.
        device, dtype: of bias and scale.

    Shapes: (..., d) -> (..., K), or with axis=-3 (..., d, H, W) -> (..., K, H, W).

    The state dict names its frame: one that was saved from another frame is refused. In that of version 0.1.0, which
    did not, the buffers tell which it was.

    Raises:
        InputError: scale not positive and finite, an axis that is not negative, or a rotation by another name.
    """

    frame = ""  # its name
    rotations: tuple[str, ...] = ("none", "fast")
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
        axis: int = -1,
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
        if not isinstance(axis, int) or isinstance(axis, bool) or axis >= 0:
            raise InputError(
                f"expected axis counted from the end, such as -1, or -3 for maps (N, d, H, W), got {axis!r}"
            )
        self.axis = axis
        self.rotation_name = rotation
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
        if features.dim() < -self.axis or features.shape[self.axis] != self.in_features:
            where = "" if self.axis == -1 else f" at axis {self.axis}"
            raise InputError(f"expected features of dimension {self.in_features}{where}, got {tuple(features.shape)}")
        features = self._last(features)
        logits = self._product(features if self.rotation is None else self.rotation(features))
        logits = logits if self.bias is None else logits + self.bias.to(logits.dtype)
        return logits if self.axis == -1 else logits.movedim(-1, self.axis)

    def _last(self, features: Tensor) -> Tensor:
        """The features with their dimension d at the end."""
        return features if self.axis == -1 else features.movedim(self.axis, -1)

    def _rows(self) -> Tensor:
        """(K, d) unit rows of the frame, before any rotation, in the dtype of the scale."""
        raise NotImplementedError

    def _product(self, features: Tensor) -> Tensor:
        """The logits s W h of (..., d) features that have been rotated."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """The arguments, as `nn.Linear` shows its own."""
        axis = "" if self.axis == -1 else f", axis={self.axis}"
        return (
            f"in_features={self.in_features}, num_classes={self.num_classes}, frame={self.frame!r}, "
            f"bias={self.bias is not None}, learn_scale={isinstance(self.scale, nn.Parameter)}, "
            f"rotation={self.rotation_name!r}{axis}"
        )

    def frame_words(self) -> str:
        """The frame in full, as the state dict names it: two layers of the same words have the same rows."""
        return _words(self.frame, self._rotation_kept(), self.num_classes, self.in_features)

    def _rotation_kept(self) -> str:
        """The rotation, one name for those that make the same rows here."""
        return self.rotation_name

    def get_extra_state(self) -> Tensor:
        """The name of the frame, as the bytes of its text: formats that hold only tensors keep it too."""
        return torch.tensor(list(self.frame_words().encode()), dtype=torch.uint8, device="cpu")

    def set_extra_state(self, state: Any) -> None:
        """Nothing to set: the name was compared before anything was loaded."""

    def check_frame(self, held: Mapping[str, Any], where: str = "") -> None:
        """Raise unless the entries of a state dict were saved by a layer with these rows.

        Args:
            held: name in this layer ("scale", "bias", "_extra_state", ...) to tensor.
            where: what errors call the layer, such as "fc".

        Raises:
            InputError: another frame, rotation, K or d, or a state of version 0.1.0 that does not tell.
        """
        own, place = self.frame_words(), f"the state dict's {where or 'layer'}"
        named = held.get("_extra_state")
        if isinstance(named, Tensor):
            if named.device.type == "meta":
                return
            found = bytes(named.flatten().to(torch.uint8).tolist()).decode(errors="replace")
        elif "scale" in held:
            found, place = self._unnamed(held), f"{place} (of version 0.1.0, which did not name it)"
        else:
            if "bias" in held:
                warnings.warn(
                    f"{place} does not say of which frame it is: taken to be of {own}",
                    NeuralCollapseWarning,
                    stacklevel=2,
                )
            return
        if found != own:
            turned = [name for name in self.rotations if own.replace(repr(self._rotation_kept()), repr(name)) == found]
            how = f"with rotation={turned[0]!r}" if turned else "as it was when saved"
            raise InputError(f"{place} has the frame {found}, and this layer {own}: build it {how}")

    def _unnamed(self, held: Mapping[str, Any]) -> str:
        """The frame of a state dict of version 0.1.0: a rotation left entries of its own, K and d chose the frame."""
        rotation, dim, classes = "none", self.in_features, self.num_classes
        if "rows" in held:
            return _words("softmax_code", rotation, *held["rows"].shape)
        if "bias" in held:
            classes = held["bias"].shape[0]
        if "rotation.signs" in held:
            rotation, dim = "fast", held["rotation.signs"].shape[-1]
        elif "nearest.rows" in held:
            rotation, (classes, dim) = "nearest", held["nearest.rows"].shape
        return _words(frame_name(classes, dim), rotation, classes, dim)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("axis", -1)
        if "rotation_name" not in self.__dict__:  # a layer pickled whole by version 0.1.0
            turned = "nearest" if getattr(self, "nearest", None) is not None else "none"
            self.rotation_name = "fast" if self.rotation is not None else turned

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        weight = state_dict.get(prefix + "weight")
        if weight is not None:
            own = self.weight.to(device=weight.device, dtype=weight.dtype)
            flat = weight.flatten(1) if weight.dim() > 2 and weight.shape[2:].numel() == 1 else weight
            if flat.shape != own.shape or not bool((flat - own).norm() <= 1e-2 * own.norm()):
                raise InputError(
                    f"the checkpoint's {prefix}weight {tuple(weight.shape)} is not this layer's {self._frame_words} "
                    f"{tuple(own.shape)}: load it into the layer that was saved, or drop that key to train with the "
                    "fixed frame"
                )
            state_dict.pop(prefix + "weight")
            for name, value in self.state_dict().items():
                if name != "bias":
                    state_dict.setdefault(prefix + name, value)
        held = {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}
        self.check_frame(held, prefix.rstrip("."))
        if "scale" in held:
            state_dict.setdefault(prefix + "_extra_state", self.get_extra_state())
        super()._load_from_state_dict(state_dict, prefix, *args)

    @property
    def _frame_words(self) -> str:
        return self.frame.replace("_", " ")


def _words(frame: str, rotation: str, num_classes: int, dim: int) -> str:
    return f"{frame}, rotation={rotation!r}, K={num_classes}, d={dim}"
