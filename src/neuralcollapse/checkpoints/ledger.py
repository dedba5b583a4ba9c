"""checkpoints.json of a run folder: which file gave which record, a line for each, appended as they are measured."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from neuralcollapse.errors import InputError
from neuralcollapse.runs.files import parse_json, read_text, write_atomically, write_end
from neuralcollapse.runs.records import Record

NAME = "checkpoints.json"
_END = b"\n}\n"
_BYTES = 2**31


@dataclass(frozen=True)
class Done:
    """A measured checkpoint: its file as it was then, and its record."""

    size: int
    mtime_ns: int
    record: Record


def read_ledger(file: Path) -> dict[str, Done]:
    """What was measured, by checkpoint; of several entries for one the last counts.

    The last entry is left out where a process was killed while it wrote that.

    Raises:
        InputError: the file holds something else.
    """
    text = read_text(file, _BYTES).rstrip("\0")  # a crash of the machine may leave zeros that were never filled
    try:
        try:
            found = parse_json(text)
        except ValueError:
            one_byte = ",}\n"  # where the first byte of an entry has replaced the first of the end
            whole = text.removesuffix(one_byte) if text.endswith(one_byte) else text.rpartition(",\n")[0]
            if not whole.endswith("]"):
                raise
            found = parse_json(whole + _END.decode())
        done = {}
        for name, (size, mtime_ns, record) in found.items():
            if type(size) is not int or type(mtime_ns) is not int:
                raise ValueError("expected the size and the time of each file")
            done[name] = Done(size, mtime_ns, Record.from_dict(record))
        return done
    except (ValueError, TypeError, AttributeError):
        raise InputError(f"{file} is damaged: restore it, or measure in another folder") from None


def write_ledger(file: Path, done: Mapping[str, Done]) -> None:
    """Write all entries, in order of their records."""
    ordered = sorted(done.items(), key=lambda item: item[1].record.epoch)
    write_atomically(file, b"{\n" + b",\n".join(_line(name, each) for name, each in ordered) + _END)


def append_to_ledger(file: Path, name: str, done: Done) -> bool:
    """Add an entry; False, and nothing is written, where there is no file that an entry can be added to.

    The cost does not depend on how many entries there are.
    """
    try:
        with cast(BinaryIO, file.open("r+b", buffering=0)) as raw:
            size = raw.seek(0, os.SEEK_END)
            raw.seek(max(0, size - len(_END) - 1))
            if raw.read() != b"]" + _END:
                return False
            write_end(raw, size - len(_END), b",\n" + _line(name, done) + _END)
            return True
    except FileNotFoundError:
        return False


def _line(name: str, done: Done) -> bytes:
    return f"{json.dumps(name)}: {json.dumps((done.size, done.mtime_ns, done.record.to_dict()))}".encode()
