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
_NAME = "minimizer"
_EXPECTED = f', "{_NAME}": '  # begins the part of a line that is the same in most lines
_ELSEWHERE = f"{_EXPECTED}0}}"  # stands for that part, and in no record of ours
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
        records = [record for _, found in _parsed(file) for record in found]
    if any(after.epoch <= before.epoch for before, after in pairwise(records)):
        last = {record.epoch: record for record in records}
        records = [last[epoch] for epoch in sorted(last)]
    return records


def last_record(file: Path) -> Record | None:
    """The record that was appended last, from the end of the file alone; None where there is none yet.

    Raises:
        InputError: the file cannot be read, or its end is no record.
    """
    try:
        with file.open("rb") as source:
            size = source.seek(0, os.SEEK_END)
            source.seek(max(0, size - _LINE_BYTES))
            lines = source.read(_LINE_BYTES).decode(errors="replace").split("\n")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror or error}") from None
    whole = [line for line in lines[:-1] if line.strip()]  # what follows the last newline is being written
    return _one_by_one(file, whole[-1:], 0, True)[0] if whole else None


def keep_records(file: Path, epoch: float) -> None:
    """Write the file again, in order, without what came after an epoch."""
    lines: dict[int, str] = {}
    with _no_collections():
        for text, records in _parsed(file):
            filled = (line for line in text.split("\n") if line.strip())
            lines |= {each.epoch: line for each, line in zip(records, filled, strict=False) if each.epoch <= epoch}
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
    line, given = line.rstrip("\0"), line
    if not (line.startswith(_START) or _START.startswith(line)):
        return False
    if line != given:
        return True
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return True
    return False


def _parsed(file: Path) -> Iterator[tuple[str, list[Record]]]:
    """Some lines of the file, and their records, until there are no more; a torn last line has none."""
    count = 0
    for text, complete in _blocks(file):
        records = _all_at_once(text)
        yield text, _one_by_one(file, text.split("\n"), count, complete) if records is None else records
        count += text.count("\n") + 1


def _all_at_once(text: str) -> list[Record] | None:
    """The records of lines, parsed as one JSON array; None where that does not work.

    It takes a third of the time that the lines take one by one. What theory expects stands at the end of a line and is
    the same in most lines of a run, so that it is parsed once. Escaped characters are left to `Record.from_json`, as
    one may be half of another.
    """
    count = text.count("\n") + 1
    first = text.partition("\n")[0]
    _, found, expected = first.partition(_EXPECTED)
    if "\\u" in text or _ELSEWHERE in text:
        return None
    shared = text.count(_EXPECTED + expected) if found else 0
    if shared:
        text = text.replace(_EXPECTED + expected, _ELSEWHERE)
    try:
        values = json.loads("[" + text.replace("\n", ",") + "]")
        parts = json.loads("{" + _EXPECTED[2:] + expected) if shared else {}
        for value in values if shared else ():
            if value.get(_NAME) == 0:
                shared -= 1
                for name, part in parts.items():
                    value[name] = part.copy()
        return [Record.from_dict(value) for value in values] if len(values) == count and not shared else None
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None


def _one_by_one(file: Path, lines: list[str], before: int, complete: bool) -> list[Record]:
    """The records of lines that are not blank; unless they are `complete`, the last may be torn."""
    records = []
    for at, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            records.append(Record.from_json(line))
        except ValueError as error:
            if at == len(lines) and not complete and _is_torn(line):
                break
            raise InputError(
                f"{file} line {before + at} is not a record ({one_line(error)}): restore it or train again"
            ) from None
    return records


def _blocks(file: Path) -> Iterator[tuple[str, bool]]:
    """The lines of a file, some at a time, and whether the last of them has its newline, which is left out."""
    encoding = "utf-8-sig"
    for content in _bytes(file):
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            raise InputError(f"cannot read {file}: it is not text") from None
        encoding = "utf-8"
        yield text.removesuffix("\n"), text.endswith("\n")


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
