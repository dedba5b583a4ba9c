"""Tensors on disk: safetensors files and states of `torch.save`, each with a checksum of its own content.

The checksum is the SHA-256 of the file with zeros in the place of the checksum, so a flipped bit is reported and never
used. Files without one, written by others or by version 0.1.0, are read too; a file whose checksum itself was damaged
does not pass for one of them, because the text around the checksum shows that there was one. torch is imported when
tensors are read or written, not before.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuralcollapse.runs.files import write_atomically

if TYPE_CHECKING:
    from torch import Tensor

_BLANK = b"0" * 64
_KEY, _KIND = "neuralcollapse", "sha256 "
_METADATA = {_KEY: _KIND + _BLANK.decode()}  # a single entry, since safetensors keeps no order among several
_MARKS = (f'"{_KEY}":"'.encode(), f'"{_KIND}'.encode())  # in the header; one flipped bit leaves one of the two
_HEADER_BYTES = 10**8  # the most that safetensors itself accepts
_CHUNK = 2**24

_END, _END_BYTES = b"PK\x05\x06", 22  # the last record of a zip, before its comment
_COMMENT = b"neuralcollapse sha256 "


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> Path:
    """Write a safetensors file with its checksum, whole or not at all."""
    from safetensors.torch import save

    content = save(tensors, _METADATA)
    digest = hashlib.sha256(content).hexdigest().encode()
    return write_atomically(path, content.replace(_BLANK, digest, 1))  # the first: the header precedes the tensors


def read_tensors(path: Path, names: Sequence[str] | None = None) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a safetensors file, or those of `names` that it has, and the names of those that were not read.

    Raises:
        ValueError, OSError: the file is damaged or cannot be read.
        safetensors.SafetensorError: it is not a safetensors file.
    """
    from safetensors import safe_open

    _check_header_and_sum(path)
    with safe_open(path, framework="pt") as file:
        there = list(file.keys())
        tensors = {name: file.get_tensor(name) for name in (there if names is None else names) if name in there}
    return tensors, sorted(set(there) - set(tensors))


def write_state(path: Path, state: Mapping[str, Any]) -> Path:
    """Write tensors and plain values with `torch.save` and their checksum, whole or not at all."""
    import torch

    buffer = io.BytesIO()
    torch.save(state, buffer)
    comment = _COMMENT + _BLANK  # the comment of the zip that torch.save makes, which has none
    content = buffer.getvalue()[:-2] + len(comment).to_bytes(2, "little") + comment
    return write_atomically(path, content[: -len(_BLANK)] + hashlib.sha256(content).hexdigest().encode())


def read_state(path: Path) -> Any:
    """What `write_state` wrote; nothing but tensors and plain values is ever unpickled.

    Raises:
        ValueError: the file is cut off, was changed since it was written, or holds other objects.
        OSError: it cannot be read.
    """
    import torch

    content = path.read_bytes()
    _check_zip(content)
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch and pickle raise errors of many kinds
        pickled = "weights_only" in str(error) or "Weights only" in str(error)
        why = "it holds pickled objects, which are never loaded" if pickled else "it is cut off or another file"
        raise ValueError(why) from None


def _check_header_and_sum(path: Path) -> None:
    """Raise ValueError if a safetensors file has a checksum that is not that of its content."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(_HEADER_BYTES, path.stat().st_size):
            raise ValueError("it is damaged or not a safetensors file: its header would be longer than the file")
        header = file.read(length)
        try:
            values = json.loads(header)
            metadata = values.get("__metadata__") or {} if isinstance(values, dict) else None
        except (ValueError, RecursionError):
            metadata = None
        if not isinstance(metadata, dict):
            raise ValueError("it is damaged or not a safetensors file: its header is not JSON")
        if not any(mark in header for mark in _MARKS):
            return
        stated = str(metadata.get(_KEY, "")).removeprefix(_KIND).encode()
        if len(metadata) != 1 or len(stated) != len(_BLANK) or header.count(stated) != 1:
            raise ValueError(_changed("its checksum is damaged"))
        found = hashlib.sha256(length.to_bytes(8, "little"))
        found.update(header.replace(stated, _BLANK, 1))
        while part := file.read(_CHUNK):
            found.update(part)
    if found.hexdigest().encode() != stated:
        raise ValueError(_changed("its checksum is not that of its content"))


def _check_zip(content: bytes) -> None:
    """Raise ValueError if a zip is cut off, declares more than it holds, or has a checksum that is not its own."""
    end = content.rfind(_END)
    if end < 0 or len(content) < end + _END_BYTES:
        raise ValueError("it is cut off or another file")
    comment = content[end + _END_BYTES - 2 :]
    if comment != b"\0\0":  # the length of an empty comment
        start = len(_COMMENT + _BLANK).to_bytes(2, "little") + _COMMENT
        if not comment.startswith(start) or len(comment) != len(start) + len(_BLANK):
            raise ValueError(_changed("its checksum is damaged"))
        if hashlib.sha256(content[: -len(_BLANK)] + _BLANK).hexdigest().encode() != comment[len(start) :]:
            raise ValueError(_changed("its checksum is not that of its content"))
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            declared = sum(info.file_size for info in archive.infolist())
    except zipfile.BadZipFile as error:
        raise ValueError(str(error)) from None
    if declared > len(content):  # torch stores its entries uncompressed, so nothing grows when it is read
        raise ValueError("it declares more than it holds")


def _changed(why: str) -> str:
    return f"it was changed or damaged since it was written: {why}"
