"""records.jsonl: a line for each record, appended as it is made and put in order when it is read (no torch).

A process that is killed while it appends leaves a torn last line: the beginning of a record, without a newline.
Reading leaves that line out, and the next append cuts it off. Of several records of one epoch the last counts.
"""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, cast

from neuralcollapse.errors import InputError, one_line
from neuralcollapse.runs.files import write_atomically, write_end
from neuralcollapse.runs.records import Record

_FILE_BYTES = 2**31
_LINE_BYTES = 2**22
_START = '{"epoch": '
_EXPECTED = ', "minimizer": '  # begins the part of a line that is the same in most lines
_BLOCK_BYTES = 2**22  # read at a time: beside the records, no more of the file is in memory


def append_record(file: Path, record: Record) -> None:
    """Add a record at the end of an existing file. The cost does not depend on how many there are."""
    line = record.to_json().encode() + b"\n"
    with cast(BinaryIO, file.open("r+b", buffering=0)) as raw:
        end, complete = _end(raw, file)
        write_end(raw, end, line if complete else b"\n" + line)


def read_records(file: Path) -> list[Record]:
    """All records, in order of epochs; there may be none.

    Raises:
        InputError: the file cannot be read, or a line is not a record.
    """
    with _no_collections():
        records = [record for _, record in _parsed(file)]
    if any(after.epoch <= before.epoch for before, after in pairwise(records)):
        last = {record.epoch: record for record in records}
        records = [last[epoch] for epoch in sorted(last)]
    return records


def keep_records(file: Path, epoch: float) -> None:
    """Write the file again, in order, without what came after an epoch."""
    lines = {record.epoch: line for line, record in _parsed(file) if record.epoch <= epoch}
    write_atomically(file, "".join(lines[each] + "\n" for each in sorted(lines)).encode())


@contextmanager
def _no_collections() -> Iterator[None]:
    """Without the garbage collector, which would look through all records again and again as they are made."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def _end(raw: BinaryIO, file: Path) -> tuple[int, bool]:
    """Where the whole lines of a file end, and whether the last of them has its newline."""
    size = raw.seek(0, os.SEEK_END)
    if size == 0:
        return 0, True
    raw.seek(size - 1)
    if raw.read(1) == b"\n":
        return size, True
    start = max(0, size - _LINE_BYTES)
    raw.seek(start)
    tail = raw.read(size - start)
    newline = tail.rfind(b"\n")
    if newline < 0 < start:
        raise InputError(f"the last line of {file} has more than {_LINE_BYTES:,} bytes: restore it or train again")
    return (start + newline + 1, True) if _is_torn(tail[newline + 1 :].decode(errors="replace")) else (size, False)


def _is_torn(line: str) -> bool:
    """Whether a last line without its newline is the beginning of a record, and perhaps zeros that were never filled.

    Anything else was written by somebody else, and is neither left out nor cut off.
    """
    line = line.rstrip("\0")
    if not (line.startswith(_START) or _START.startswith(line)):
        return False
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return True
    return False


def _parsed(file: Path) -> Iterator[tuple[str, Record]]:
    """Each line that is not blank, with its record, in the order of the file."""
    count = 0
    for lines, last in _blocks(file):
        yield from _parsed_block(file, lines, count, last)
        count += len(lines)


def _parsed_block(file: Path, lines: list[str], before: int, last: bool) -> Iterator[tuple[str, Record]]:
    """The records of some lines; `last` says that the last line has no newline."""
    filled = [line for line in lines if line and not line.isspace()]
    found = _all_at_once(filled)
    if found is not None:
        yield from zip(filled, found, strict=True)
        return
    for at, line in enumerate(lines, start=before + 1):
        if not line.strip():
            continue
        try:
            yield line, Record.from_json(line)
        except ValueError as error:
            if last and at == before + len(lines) and _is_torn(line):
                return
            why = one_line(error)
            raise InputError(f"{file} line {at} is not a record ({why}): restore it or train again") from None


def _all_at_once(lines: list[str]) -> list[Record] | None:
    """The records of lines, parsed as one JSON array, in half the time; None where that does not work.

    What theory expects stands at the end of a line and is the same in most lines of a run: it is parsed once.
    Escaped characters, which may be halves of one, are left to `Record.from_json`.
    """
    parts = [line.partition(_EXPECTED) for line in lines]
    text = ",".join([f"{start}}}" if end else start for start, _, end in parts])
    ends = {end: f"{{{_EXPECTED[2:]}{end}" if end else "{}" for _, _, end in parts}
    if "\\u" in text or any("\\u" in end for end in ends):
        return None
    try:
        values = json.loads(f"[{text}]")
        expected = {end: json.loads(line) for end, line in ends.items()}
        if len(values) != len(lines):
            return None
        return [
            Record.from_dict(value | {name: dict(part) for name, part in expected[end].items()} if end else value)
            for value, (_, _, end) in zip(values, parts, strict=True)
        ]
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None


def _blocks(file: Path) -> Iterator[tuple[list[str], bool]]:
    """The lines of a file, a block at a time, and whether the last line of the block has no newline."""
    first = True
    for content in _bytes(file):
        try:
            text = content.decode("utf-8-sig" if first else "utf-8")
        except UnicodeDecodeError:
            raise InputError(f"cannot read {file}: it is not text") from None
        first = False
        whole = text.endswith("\n")
        yield (text[:-1] if whole else text).split("\n"), not whole


def _bytes(file: Path) -> Iterator[bytes]:
    """The content of a file in blocks that end with a line."""
    try:
        with file.open("rb") as source:
            size = os.fstat(source.fileno()).st_size
            if size > _FILE_BYTES:
                raise InputError(f"cannot read {file}: expected at most {_FILE_BYTES:,} bytes, got {size:,}")
            read: Callable[[], bytes] = lambda: source.read(_BLOCK_BYTES)  # noqa: E731
            rest, lines = b"", 0
            for block in iter(read, b""):
                cut = block.rfind(b"\n") + 1
                if cut:
                    yield rest + block[:cut]
                    lines += rest.count(b"\n") + block.count(b"\n")
                    rest = b""
                rest += block[cut:]
                if len(rest) > _LINE_BYTES:
                    raise InputError(
                        f"{file} line {lines + 1} is not a record (it has more than {_LINE_BYTES:,} characters): "
                        "restore it or train again"
                    )
            if rest:
                yield rest
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror or error}") from None
