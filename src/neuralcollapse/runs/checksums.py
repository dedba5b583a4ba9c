"""Checksums within files: what a flipped bit has changed is named, and never used (no torch).

Each is the SHA-256 of its file with zeros in the place of the checksum. A file whose checksum was itself
hit does not pass for one of an earlier version, which had none: what stands around it says that it was there.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

_BLANK = b"0" * 64
_KEY, _KIND = "neuralcollapse", "sha256 "
_HEADER_BYTES = 10**8  # of a safetensors file, as that library has it
_END, _END_BYTES = b"PK\x05\x06", 22  # the last record of a zip, before its comment
_COMMENT = b"neuralcollapse sha256 "
_CHUNK = 2**24

_SIGNS = (f'"{_KEY}":"'.encode(), f'"{_KIND}'.encode())  # in the header; one flipped bit leaves one of the two

METADATA = {_KEY: _KIND + _BLANK.decode()}  # one entry: of several the order is not always the same
"""What to save a safetensors file with before `stamped_safetensors`."""


def stamped_safetensors(content: bytes) -> bytes:
    """A safetensors file saved with `METADATA`, with its checksum."""
    digest = hashlib.sha256(content).hexdigest().encode()
    return content.replace(_BLANK, digest, 1)  # the first: the header comes before the tensors


def check_safetensors(path: Path) -> None:
    """Raise if a file has a checksum that is not its own; files of others, and of earlier versions, have none.

    Raises:
        ValueError: it is damaged.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(_HEADER_BYTES, path.stat().st_size):
            raise ValueError("it is damaged, or no safetensors file: its header would be longer than the file")
        header = file.read(length)
        try:
            values = json.loads(header)
            marks = values.get("__metadata__") or {} if isinstance(values, dict) else None
        except (ValueError, RecursionError):
            marks = None
        if not isinstance(marks, dict):
            raise ValueError("it is damaged, or no safetensors file: its header is no JSON")
        said = str(marks.get(_KEY, "")).removeprefix(_KIND).encode()
        if not any(mark in header for mark in _SIGNS):
            return
        if len(marks) != 1 or len(said) != len(_BLANK) or header.count(said) != 1:
            raise ValueError(_damaged("its checksum is damaged"))
        found = hashlib.sha256(length.to_bytes(8, "little"))
        found.update(header.replace(said, _BLANK, 1))
        while part := file.read(_CHUNK):
            found.update(part)
    if found.hexdigest().encode() != said:
        raise ValueError(_damaged("its checksum is not that of its content"))


def stamped_zip(content: bytes) -> bytes:
    """A zip without a comment, as `torch.save` makes, with its checksum as the comment."""
    comment = _COMMENT + _BLANK
    content = content[:-2] + len(comment).to_bytes(2, "little") + comment
    return content[: -len(_BLANK)] + hashlib.sha256(content).hexdigest().encode()


def check_zip(content: bytes) -> None:
    """Raise if a zip has a checksum that is not its own; those of earlier versions have none.

    Raises:
        ValueError: it is damaged, or no zip.
    """
    end = content.rfind(_END)
    if end < 0 or len(content) < end + _END_BYTES:
        raise ValueError("it is cut off or another file")
    rest = content[end + _END_BYTES - 2 :]
    if rest == b"\0\0":  # no comment
        return
    comment = _COMMENT + _BLANK
    start = len(comment).to_bytes(2, "little") + _COMMENT
    if not rest.startswith(start) or len(rest) != 2 + len(comment):
        raise ValueError(_damaged("its checksum is damaged"))
    if hashlib.sha256(content[: -len(_BLANK)] + _BLANK).hexdigest().encode() != rest[len(start) :]:
        raise ValueError(_damaged("its checksum is not that of its content"))


def _damaged(why: str) -> str:
    return f"it was changed or damaged since it was written: {why}"
