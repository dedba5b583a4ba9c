"""NamedFrame: a layer whose state dict names its frame, so that the state of another frame is refused."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from neuralcollapse.errors import InputError, NeuralCollapseWarning
from neuralcollapse.geometry.frames import frame_name


class NamedFrame(nn.Module):
    """A layer with fixed rows. States of version 0.1.0 name no frame: it is then recognised by the buffers.

    Attributes:
        frame: the name of the frame.
        rotations: those that the layer may have, and `rotation_name` the one that it has.
        num_classes: K.
        in_features: d.
        weight: (K, d), the rows times the scale.
    """

    frame = ""
    rotations: tuple[str, ...] = ("none",)
    rotation_name: str
    num_classes: int
    in_features: int

    @property
    def weight(self) -> Tensor:
        """(K, d) the matrix of the layer."""
        raise NotImplementedError

    def frame_words(self) -> str:
        """The frame in full, as the state dict names it: two layers with the same words have the same rows."""
        return _words(self.frame, self._rotation_kept(), self.num_classes, self.in_features)

    def _rotation_kept(self) -> str:
        """The name of the rotation, the same for two rotations that give the same rows."""
        return self.rotation_name

    def get_extra_state(self) -> Tensor:
        """The frame in full as UTF-8 bytes in a tensor: file formats that hold only tensors can keep it."""
        return torch.tensor(list(self.frame_words().encode()), dtype=torch.uint8, device="cpu")

    def set_extra_state(self, state: Any) -> None:
        """Nothing to set: the name was compared before anything was loaded."""

    def check_frame(self, held: Mapping[str, Any], where: str = "") -> None:
        """Raise unless the entries of a state dict were saved by a layer with these rows.

        Args:
            held: name in this layer ("scale", "bias", "_extra_state", ...) to tensor.
            where: what errors call the layer, such as "fc".

        Raises:
            InputError: another frame, rotation, K or d.
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
            how = f"with rotation={turned[0]!r} (--rotation {turned[0]})" if turned else "as it was when saved"
            raise InputError(f"{place} has the frame {found}, and this layer {own}: build it {how}")

    def _unnamed(self, held: Mapping[str, Any]) -> str:
        """The frame of a state dict of version 0.1.0, from the buffers of its rotation and from K and d."""
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

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        weight = state_dict.get(prefix + "weight")
        if weight is not None:
            own = self.weight.to(device=weight.device, dtype=weight.dtype)
            flat = weight.flatten(1) if weight.dim() > 2 and weight.shape[2:].numel() == 1 else weight
            if flat.shape != own.shape or not bool((flat - own).norm() <= 1e-2 * own.norm()):
                raise InputError(
                    f"the checkpoint's {prefix}weight {tuple(weight.shape)} is not this layer's frame ({self.frame}) "
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


def _words(frame: str, rotation: str, num_classes: int, dim: int) -> str:
    return f"{frame}, rotation={rotation!r}, K={num_classes}, d={dim}"
