"""From uint8 pixels to the network's input, on the device: normalised, and augmented while training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from neuralcollapse.checks import sent


class Pixels(nn.Module):
    """(x - mean) / std of each channel, grey images repeated to `channels`.

    Args:
        data_mean: of each of the C channels, in units of the uint8 values.
        data_std: likewise, above 0.
        channels: C, or more if C is 1.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, data_mean: Sequence[float], data_std: Sequence[float], channels: int) -> None:
        super().__init__()
        mean, std = (
            torch.tensor(values, dtype=torch.float64).expand(channels)[:, None, None]
            for values in (data_mean, data_std)
        )
        self.register_buffer("scale", (1 / std).float(), persistent=False)
        self.register_buffer("shift", (mean / std).float(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) uint8 as (N, channels, H, W) float32, or the type that the module was cast to."""
        return (images * self.scale).sub_(self.shift)


class Shift(nn.Module):
    """Shift each image by up to `padding` (rows, columns), filling with zeros, and mirror it with probability 1/2.

    One gather moves all images, each pixel from its place in the padded image, so no pixel value changes. The shifts
    are drawn from torch's global generator on the CPU, which makes them the same on every device.
    """

    def __init__(self, padding: tuple[int, int], *, flip: bool) -> None:
        super().__init__()
        self.padding = padding
        self.flip = flip

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) of any type; the result has the same shape and type."""
        count, channels, height, width = images.shape
        down, right = self.padding
        rows = torch.randint(2 * down + 1, (count, 1)) + torch.arange(height)
        columns = torch.arange(width).expand(count, width)
        if self.flip:
            columns = torch.where(torch.rand(count, 1) < 0.5, columns.flip(1), columns)
        columns = columns + torch.randint(2 * right + 1, (count, 1))
        rows, columns = sent(rows, images.device), sent(columns, images.device)
        places = (rows[:, :, None] * (width + 2 * right) + columns[:, None, :]).view(count, 1, height * width)
        padded = functional.pad(images, (right, right, down, down)).flatten(2)
        return padded.gather(2, places.expand(-1, channels, -1)).view_as(images)


def augmentation(kind: Literal["none", "crop", "flip", "crop+flip"], size: tuple[int, int]) -> nn.Module | None:
    """Random changes of normalised images (N, C, H, W), drawn for each image; None for "none".

    Args:
        kind: "crop": shifted by up to an eighth of the size and filled with zeros; "flip": mirrored left to right with
            probability 1/2; or both.
        size: (H, W).
    """
    if kind == "none":
        return None
    padding = (size[0] // 8, size[1] // 8) if "crop" in kind else (0, 0)
    return Shift(padding, flip="flip" in kind)
