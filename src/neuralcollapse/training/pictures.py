"""Data sets of encoded pictures: a folder for each class, and pictures stacked into one tensor."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from neuralcollapse._errors import InputError, listed
from neuralcollapse.training.splits import Source, Split, entries, first_line, no_samples, resize

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


def image_folder(folder: Path, size: int | None) -> Source:
    """FOLDER/train/CLASS/* and FOLDER/test (or val, validation); without train, FOLDER/CLASS/* and no test set."""
    there = [name for name in entries(folder) if (folder / name).is_dir()]
    held_out = next((name for name in ("test", "val", "validation") if name in there), None)
    if "train" not in there:
        if held_out is not None:
            raise InputError(f"{folder} holds {held_out}/ and no train/: name the training images' folder train")
        return Source(*_class_folders(folder, there, size))
    names = [name for name in entries(folder / "train") if (folder / "train" / name).is_dir()]
    source = Source(*_class_folders(folder / "train", names, size))
    if held_out is None:
        return source
    tested = [name for name in entries(folder / held_out) if (folder / held_out / name).is_dir()]
    if foreign := [name for name in tested if name not in names]:
        raise InputError(f"{folder / held_out}: expected classes that train/ has, got {listed(foreign)} besides")
    return Source(source.train, _class_folders(folder / held_out, names, size)[0], source.class_names)


def _class_folders(folder: Path, names: Sequence[str], size: int | None) -> tuple[Split, Split, tuple[str, ...]]:
    """FOLDER/CLASS/* as a split, no second split, and the names."""
    files, labels = [], []
    for label, name in enumerate(names):
        if not (folder / name).is_dir():
            continue
        for file in entries(folder / name):
            path = folder / name / file
            if path.suffix.lower() not in SUFFIXES or not path.is_file():
                raise InputError(f"{path}: expected images ({', '.join(SUFFIXES)}) in a class's folder: take it away")
            files.append(path)
            labels.append(label)
    if not files:
        raise InputError(f"{folder}: expected a folder of images for each class, got no images")
    images = stacked(((str(file), file) for file in files), len(files), size)
    return Split(images, torch.tensor(labels)), no_samples(), tuple(names)


def stacked(pictures: Iterable[tuple[str, Path | IO[bytes]]], count: int, size: int | None) -> Tensor:
    """Encoded pictures with their titles as (count, C, H, W) uint8: 3 channels if any picture has colour."""
    images = torch.empty(0)
    first = ""
    for index, (title, file) in enumerate(pictures):
        picture = _decoded(title, file)
        if size is not None:
            picture = resize(picture[None], size)[0]
        if index == 0:
            first, images = title, torch.empty((count, *picture.shape), dtype=torch.uint8)
        if picture.shape[1:] != images.shape[2:]:
            sizes = [" x ".join(map(str, shape)) for shape in (images.shape[2:], picture.shape[1:])]
            raise InputError(
                f"expected images of one size, got {sizes[0]} ({first}) and {sizes[1]} ({title}): give an image_size"
            )
        if len(picture) > images.shape[1]:
            images = images.repeat(1, 3, 1, 1)
        images[index] = picture
    return images


def _decoded(title: str, file: Path | IO[bytes]) -> Tensor:
    from PIL import Image

    try:
        with Image.open(file) as image:
            if image.mode.startswith(("I", "F")):
                raise InputError(f"{title}: expected an image of 8 bits, got Pillow's mode {image.mode}: convert it")
            grey = image.mode in ("1", "L", "LA")
            pixels = np.array(image.convert("L" if grey else "RGB"))
    except InputError:
        raise
    except (OSError, EOFError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        raise InputError(f"{title}: expected an image, got a damaged file ({first_line(error)})") from None
    tensor = torch.from_numpy(pixels)
    return tensor[None] if grey else tensor.permute(2, 0, 1)
