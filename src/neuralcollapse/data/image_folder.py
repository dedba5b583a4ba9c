"""Data sets of encoded pictures: a folder for each class, and pictures stacked into one tensor."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from neuralcollapse.data.splits import ImageSet, Split, empty_split, list_folder, resize
from neuralcollapse.errors import InputError, listed, one_line
from neuralcollapse.extras import needed_by

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
_TRAIN = ("train", "training")
# The test set is the first of these that holds classes.
_HELD_OUT = ("test", "testing", "val", "valid", "validation", "eval", "evaluation", "dev")
_OF_SYSTEMS = ("thumbs.db", "desktop.ini", "__macosx")  # Windows and macOS leave them in folders


def image_folder(folder: Path, size: int | None) -> ImageSet:
    """FOLDER/train/CLASS/* and FOLDER/test (or val, valid, ...); without train, FOLDER/CLASS/* and no test set.

    The names of the splits may be in upper or lower case.
    """
    there = _folders(folder)
    splits = {name.lower(): name for name in reversed(there)}
    train = next((splits[name] for name in _TRAIN if name in splits), None)
    sets = [splits[name] for name in _HELD_OUT if name in splits]
    held_out = next((name for name in sets if _folders(folder / name)), sets[0] if sets else None)
    if train is None or not (_folders(folder / train) or held_out):  # a class may have that name
        if held_out and _folders(folder / held_out):
            raise InputError(f"{folder} holds {held_out}/ but no train/: call the folder of training images train")
        return ImageSet(_class_folders(folder, there, size), empty_split(), tuple(there))
    names = _folders(folder / train)
    images = _class_folders(folder / train, names, size)
    if held_out is None:
        return ImageSet(images, empty_split(), tuple(names))
    tested = _folders(folder / held_out)
    if foreign := [name for name in tested if name not in names]:
        raise InputError(f"{folder / held_out}: expected only classes that {train}/ has, got also {listed(foreign)}")
    return ImageSet(images, _class_folders(folder / held_out, names, size, all_of_them=False), tuple(names))


def _folders(folder: Path) -> list[str]:
    return [name for name in list_folder(folder) if (folder / name).is_dir() and name.lower() not in _OF_SYSTEMS]


def _class_folders(folder: Path, names: Sequence[str], size: int | None, *, all_of_them: bool = True) -> Split:
    """FOLDER/CLASS/* as a split; of a test set, some classes may have no images."""
    files, labels, empty = [], [], []
    for label, name in enumerate(names):
        found = _images(folder / name) if (folder / name).is_dir() else []
        files += found
        labels += [label] * len(found)
        if not found:
            empty.append(name)
    if not files:
        raise InputError(f"{folder}: expected a folder of images for each class, got no images")
    if empty and all_of_them:
        raise InputError(
            f"{folder}: expected images of all {len(names)} classes, got none of {listed(empty)}: fill "
            "these folders, or remove them"
        )
    return Split(stack_pictures(((str(file), file) for file in files), len(files), size), torch.tensor(labels))


def _images(folder: Path) -> list[Path]:
    files = [folder / name for name in list_folder(folder) if name.lower() not in _OF_SYSTEMS]
    for path in files:
        if path.is_dir():
            raise InputError(
                f"{path}: expected images in a class's folder, got a folder: move its images up, or call the parts of "
                "the data set train/ and test/"
            )
        if path.suffix.lower() not in SUFFIXES or not path.is_file():
            raise InputError(f"{path}: expected images ({', '.join(SUFFIXES)}) in a class's folder: remove it")
    return files


def stack_pictures(pictures: Iterable[tuple[str, Path | IO[bytes]]], count: int, size: int | None) -> Tensor:
    """Decode pictures, each with a title for errors, into (count, C, H, W) uint8; 3 channels if any has colour."""
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
    with needed_by("a data set of image files"):
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
        raise InputError(f"{title}: expected an image, got a damaged file ({one_line(error)})") from None
    tensor = torch.from_numpy(pixels)
    return tensor[None] if grey else tensor.permute(2, 0, 1)
