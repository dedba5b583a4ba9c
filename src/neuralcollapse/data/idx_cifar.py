"""Data sets in binary files: IDX (MNIST and its relatives) and CIFAR."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuralcollapse.data.splits import ImageSet, Split, empty_split, list_folder
from neuralcollapse.errors import InputError, listed, one_line


def idx_folder(folder: Path, names: Sequence[str] | None) -> ImageSet:
    """Four IDX files. Without `names` the classes are called by their numbers, and the test files may be missing."""
    there = list_folder(folder)
    found, missing = {}, []
    for split in ("train", "t10k"):
        for kind, dimensions in (("images", "34" if names is None else "3"), ("labels", "1")):
            spellings = [
                f"{split}-{kind}{mark}idx{dimension}-ubyte{suffix}"
                for dimension in dimensions
                for mark in "-."
                for suffix in ("", ".gz")
            ]
            present = next((spelling for spelling in spellings if spelling in there), None)
            if present is None:
                missing.append(spellings[0])
            else:
                found[split, kind] = folder / present
    no_test = names is None and not any(split == "t10k" for split, _ in found)
    if missing and not (no_test and len(missing) == 2):
        raise _missing_files(folder, there, missing, "each may end in .gz")
    train = _idx_split(found["train", "images"], found["train", "labels"])
    test = empty_split() if no_test else _idx_split(found["t10k", "images"], found["t10k", "labels"])
    if names is None:
        names = [str(label) for label in range(int(train.labels.max()) + 1)]
    return ImageSet(train, test, tuple(names))


def _idx_split(image_file: Path, label_file: Path) -> Split:
    images, labels = _idx(image_file, (3, 4)), _idx(label_file, (1,))
    if len(images) != len(labels):
        raise InputError(
            f"expected a label for each image, got {len(images)} images in {image_file} and {len(labels)} labels in "
            f"{label_file}"
        )
    images = images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2).contiguous()
    return Split(images, labels.long())


def _idx(file: Path, dimensions: tuple[int, ...]) -> Tensor:
    """An IDX file: 0, 0, 8 for uint8, the number of dimensions; each dimension as a big-endian uint32; the values."""
    content = _content(file)
    kinds = [bytes((0, 0, 8, dimension)) for dimension in dimensions]
    if bytes(content[:4]) not in kinds:
        wanted = " or ".join(kind.hex(" ") for kind in kinds)
        raise InputError(f"{file}: expected an IDX file that begins with {wanted}, got {content[:4].hex(' ')!r}")
    header = 4 + 4 * content[3]
    shape = struct.unpack(f">{content[3]}I", content[4:header]) if len(content) >= header else ()
    expected = header + math.prod(shape) if shape else header
    if len(content) != expected:
        raise InputError(f"{file}: expected {expected} bytes by its header, got {len(content)}: download it again")
    if expected == header:
        raise InputError(f"{file}: expected samples, got none (its header says {' x '.join(map(str, shape))})")
    return torch.frombuffer(content, dtype=torch.uint8, offset=header).view(shape)


def cifar_folder(folder: Path, inner: str, files: list[str], label_bytes: int, names: Sequence[str]) -> ImageSet:
    """CIFAR's binary version, in the folder or in its subfolder `inner`; the last of the files is the test set."""
    there = list_folder(folder)
    if inner in there:
        folder = folder / inner
        there = list_folder(folder)
    archive = f"cifar-{len(names)}-binary.tar.gz"
    if missing := [file for file in files if file not in there]:
        pickled = {f"cifar-{len(names)}-python", "cifar-10-batches-py", *(file.removesuffix(".bin") for file in files)}
        if not pickled.isdisjoint(there):
            raise InputError(
                f"{folder} holds CIFAR's python version, which is pickled and never opened: get the binary version, "
                f"{archive}"
            )
        raise _missing_files(folder, there, missing, f"they come in {archive}")
    parts = [_cifar(folder / file, label_bytes, len(names)) for file in files]
    images, labels = (torch.cat(tensors) for tensors in zip(*parts[:-1], strict=True))
    return ImageSet(Split(images, labels), Split(*parts[-1]), tuple(names))


def _cifar(file: Path, label_bytes: int, num_classes: int) -> tuple[Tensor, Tensor]:
    """Records of `label_bytes` bytes, whose last is the label, and an image of 3 x 32 x 32."""
    record = label_bytes + 3 * 32 * 32
    content = _content(file)
    if not content or len(content) % record:
        raise InputError(
            f"{file}: expected a multiple of {record} bytes, a record each, got {len(content)}: download it again"
        )
    records = torch.frombuffer(content, dtype=torch.uint8).view(-1, record)
    labels = records[:, label_bytes - 1].long()
    if int(labels.max()) >= num_classes:
        raise InputError(f"{file}: expected labels below {num_classes}, got {int(labels.max())}: download it again")
    return records[:, label_bytes:].reshape(-1, 3, 32, 32), labels


def _content(file: Path) -> bytearray:
    content = bytearray()
    try:
        opener: Callable[..., Any] = gzip.open if file.suffix == ".gz" else open
        with opener(file, "rb") as opened:
            while chunk := opened.read(1 << 20):
                content += chunk
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{file} is damaged or cannot be read ({one_line(error)}): download it again") from None
    return content


def _missing_files(folder: Path, there: Sequence[str], missing: Sequence[str], hint: str) -> InputError:
    holds = listed(there) if there else "nothing"
    return InputError(f"{folder} is missing {listed(missing)} ({hint}); it holds {holds}")
