"""Images and labels as tensors in memory, and what all readers of data sets share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from neuralcollapse.errors import InputError

_CHUNK = 4096  # images resized at a time


@dataclass(frozen=True)
class Split:
    """Images (N, C, H, W) uint8 and labels (N,) int64."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class ImageSet:
    """A data set as it was read. The test split may be empty; both have the same channels and size."""

    train: Split
    test: Split
    class_names: tuple[str, ...]


def empty_split() -> Split:
    """A split without samples."""
    return Split(torch.empty((0, 1, 1, 1), dtype=torch.uint8), torch.empty(0, dtype=torch.int64))


def resize(images: Tensor, size: int) -> Tensor:
    """Images (N, C, H, W) uint8 at `size` x `size` pixels: bilinear, antialiased."""
    if images.shape[2:] == (size, size):
        return images
    resized = torch.empty((*images.shape[:2], size, size), dtype=torch.uint8)
    for start in range(0, len(images), _CHUNK):
        part = slice(start, start + _CHUNK)
        resized[part] = functional.interpolate(images[part], size=(size, size), mode="bilinear", antialias=True)
    return resized


def list_folder(folder: Path) -> list[str]:
    """The names of the files and folders in a folder, sorted, without hidden ones."""
    if not folder.is_dir():
        raise InputError(
            f"expected a folder of the data set's files, got {str(folder)!r}, which is not a folder (from {Path.cwd()})"
        )
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
