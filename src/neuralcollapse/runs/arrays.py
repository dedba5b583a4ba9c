"""Arrays of .npz files: only those asked for, never more bytes than declared, never a pickle (no torch)."""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

_DIRECTORY_BYTES = 2**20  # the most for a zip's list of members, which Python reads whole


def read_arrays(path: Path, names: Sequence[str], *, most: int) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays of `names` that a file has, and the names of those that were not read.

    Raises:
        ValueError: the file is damaged or not a .npz file, these arrays have more than `most` bytes together
            uncompressed, or an array's header does not agree with its size.
        OSError, EOFError, zipfile.BadZipFile, NotImplementedError, MemoryError: likewise.
    """
    _check_directory(path)
    with zipfile.ZipFile(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        if len(members) != len(archive.infolist()):
            raise ValueError("two arrays have one name")
        wanted = {name: members[name] for name in names if name in members}
        total = sum(info.file_size for info in wanted.values())
        if total > most:
            raise ValueError(f"its arrays would have {total:,} bytes, expected at most {most:,}")
        arrays = {name: _read(archive, info) for name, info in wanted.items()}
    return arrays, sorted(set(members) - set(wanted))


def check_shapes(arrays: Mapping[str, np.ndarray], dims: Mapping[str, str]) -> None:
    """Raise ValueError unless all arrays are there, floating-point, and their shapes agree.

    Args:
        arrays: by name.
        dims: name to a letter for each axis, as in {"means": "Kd", "bias": "K"}; a letter stands for one size.
    """
    sizes: dict[str, int] = {}
    for name, letters in dims.items():
        if name not in arrays:
            raise ValueError(f"it has no array {name}")
        value = arrays[name]
        if value.dtype.kind != "f":
            raise ValueError(f"expected {name} as floats, got {value.dtype}")
        expected = ", ".join(str(sizes.get(letter, letter)) for letter in letters)
        fits = value.ndim == len(letters) and 0 not in value.shape
        if not fits or any(sizes.setdefault(a, size) != size for a, size in zip(letters, value.shape, strict=True)):
            raise ValueError(f"expected {name} of shape ({expected}), got {value.shape}")


def _check_directory(path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - 65_557))  # the longest comment, and the record before it
        tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) < at + 22:
        raise ValueError("it is cut off or not a .npz file")
    (length,) = struct.unpack_from("<I", tail, at + 12)
    if length > _DIRECTORY_BYTES:
        raise ValueError("it lists more members than arrays could be")


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """An array whose header agrees with the declared size."""
    if info.flag_bits & 1:
        raise ValueError("it is encrypted")
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(member)
        elif version == (2, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(member)
        else:
            raise ValueError(f"its arrays are of version {version}")
        if dtype.hasobject:
            raise ValueError("it holds pickled objects, which are never loaded")
        size = math.prod(shape) * dtype.itemsize
        if any(length < 0 for length in shape) or size != info.file_size - member.tell():
            raise ValueError("an array's shape does not fit its data")
        data = _exactly(member, size)
        if member.read(1):
            raise ValueError("an array goes on after its end")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def _exactly(member: Any, size: int) -> bytearray:
    data = bytearray()
    while len(data) < size:
        part = member.read(min(size - len(data), 2**24))
        if not part:
            raise ValueError("an array is cut off")
        data += part
    return data
