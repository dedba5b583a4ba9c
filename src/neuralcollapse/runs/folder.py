"""The run folder and its records: what a run leaves on disk, and how to read it (no torch).

    config.yaml         the configuration, as `neuralcollapse train --config` reads it
    environment.json    versions and hardware
    records.jsonl       one line for each measured epoch (`Record`)
    checkpoints.json    which file gave which record (`neuralcollapse.measure_checkpoints`)
    geometry/*.npz      class means and classifier at some epochs (`Geometry`)
    checkpoints/*.safetensors   the network's weights
    state.pt            where the run stands, to go on from (`neuralcollapse train --resume`)
    logs/               what other loggers wrote
    report.html         the page
    .lock               while a process writes here (`_locks`)

Every file is written beside its place and moved there, so that a reader never meets half of one. What is read is data:
bounded in size, checked, and never run.
"""

from __future__ import annotations

import io
import os
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

import neuralcollapse.runs.locks as _locks
import neuralcollapse.runs.owned as _owned
from neuralcollapse.errors import InputError, one_line
from neuralcollapse.runs.plain import finite, read_text
from neuralcollapse.runs.records import MEASURES, Geometry, Record, read_geometry

__all__ = ["MEASURES", "Geometry", "Record", "RunFolder", "finite", "write_atomically"]

_RECORDS_BYTES = 2**28
_LINE = 2**22  # characters


class RunFolder:
    """A run on disk.

    A writer holds the folder's lock: from `create`, or `lock`, until `unlock`, or the end of this object.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._hold: _locks.Hold | None = None

    @classmethod
    def create(cls, path: str | Path, *, force: bool = False, given: Iterable[str | Path] = ()) -> RunFolder:
        """Make the folder and lock it; one with anything in it is refused, or with `force` cleared of an earlier run.

        The earlier run is set aside, and goes when the first record of the new one is there; `discard` brings it back.

        Args:
            path: the folder.
            force: overwrite an earlier run, if it is one of this library, with nothing of others in it.
            given: files and folders that are still needed and must not be overwritten.

        Raises:
            InputError: the folder is in use or cannot be written, or holds what others made.
        """
        given = list(given)
        run = cls.check_free(path, force=force, given=given)
        try:
            run.path.mkdir(parents=True, exist_ok=True)
            run.lock()
            try:
                cls.check_free(path, force=force, given=given)  # again: another may have been here before the lock
                run._set_aside()
                run.make_folders()
                write_atomically(run.path / "records.jsonl", b"")
            except BaseException:
                run.unlock()
                raise
        except OSError as error:
            raise InputError(f"cannot write the run folder {run.path}: {error.strerror or error}") from None
        return run

    @classmethod
    def check_free(cls, path: str | Path, *, force: bool = False, given: Iterable[str | Path] = ()) -> RunFolder:
        """Raise where `create` would refuse the folder; nothing is written.

        Raises:
            InputError: the folder is in use, cannot be read, or holds what others made.
        """
        run = cls(path)
        try:
            if not os.path.lexists(run.path) or not _owned.used(run.path):
                return run
            _locks.check_unlocked(run.path)
            reason = _owned.in_the_way(run.path, given)
        except OSError as error:
            raise InputError(f"cannot write the run folder {run.path}: {error.strerror or error}") from None
        if reason is not None:
            also = "" if reason.startswith("is not empty") else "is not empty and "
            raise InputError(f"the run folder {run.path} {also}{reason}: choose another (--out, out=)")
        if not force:
            raise InputError(f"the run folder {run.path} is not empty: {run.way_out(given)}")
        return run

    def way_out(self, given: Iterable[str | Path] = ()) -> str:
        """What to do about a folder in use, for a message: to overwrite it only where nothing would be lost by that."""
        other = "choose another (--out, out=)"
        if _owned.in_the_way(self.path, given) is not None:
            return other
        return f"{other}, or overwrite the run in it (--force, force=True)"

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """An existing run, to read.

        Raises:
            InputError: the folder does not exist or holds no run.
        """
        run = cls(path)
        if not run.path.is_dir():
            raise InputError(f"no run folder {run.path}: make one with 'neuralcollapse train --out {run.path}'")
        if not (run.path / "records.jsonl").is_file():
            raise InputError(f"{run.path} holds no records.jsonl: expected a folder that 'neuralcollapse train' wrote")
        return run

    def lock(self) -> None:
        """Keep other writers out.

        Raises:
            InputError: one is there already, or the folder cannot be written.
        """
        if self._hold is None:
            try:
                self._hold = _locks.hold(self.path)
            except OSError as error:
                raise InputError(f"cannot write the run folder {self.path}: {error.strerror or error}") from None

    def unlock(self) -> None:
        """Let other writers in."""
        if self._hold is not None:
            self._hold.release()
            self._hold = None

    def make_folders(self) -> None:
        """Make the folders inside."""
        for name in _owned.NUMBERED:
            (self.path / name).mkdir(exist_ok=True)

    def _own(self) -> list[Path]:
        return _owned.contents(self.path, training=_owned.is_training(self.path)).own

    @property
    def _earlier(self) -> Path:
        return self.path / _owned.EARLIER

    @property
    def replaces_earlier(self) -> bool:
        """Whether an earlier run is set aside, for as long as this one has no record."""
        return self._earlier.is_dir()

    def _set_aside(self) -> None:
        """Move an earlier run's files out of the way; of two, the one with records."""
        if self._earlier.is_dir() and not (self._earlier / "records.jsonl").is_file():
            self._bring_back()  # killed while they moved: the records go last
        records = self.path / "records.jsonl"
        if not records.is_file() or records.stat().st_size == 0:
            return self._clear()
        self._forget_earlier()
        self._clear(scraps=True)
        self._earlier.mkdir()
        for name in (*_owned.NUMBERED, _owned.LOGS, *_owned.FILES):
            if (self.path / name).exists():
                (self.path / name).rename(self._earlier / name)

    def _bring_back(self) -> None:
        if self._earlier.is_dir():
            for path in list(self._earlier.iterdir()):
                place = self.path / path.name
                if place.is_dir() and not any(place.iterdir()):
                    place.rmdir()
                if not place.exists():
                    path.rename(place)
            self._forget_earlier()

    def _forget_earlier(self) -> None:
        if self._earlier.is_dir():
            _owned.remove(path for path in self._own() if path.is_relative_to(self._earlier))

    def _clear(self, *, scraps: bool = False) -> None:
        own = (path for path in self._own() if not path.is_relative_to(self._earlier))
        _owned.remove(path for path in own if not scraps or path.name.endswith(".tmp"))

    def sweep(self) -> None:
        """Remove the temporary files that a killed process left."""
        self._clear(scraps=True)

    def rewind(self, epoch: float) -> None:
        """Forget what came after an epoch: a resumed run makes it again (-1: forget everything that was measured)."""
        kept = [record for record in self._parse() if record.epoch <= epoch]
        text = "".join(record.to_json() + "\n" for record in kept)
        write_atomically(self.path / "records.jsonl", text.encode())
        for folder in _owned.NUMBERED:
            for file in self._numbered(folder):
                if _owned.epoch_of(file) > epoch:
                    file.unlink()

    @property
    def state(self) -> Path:
        """The place of the state to resume from."""
        return self.path / "state.pt"

    @property
    def logs(self) -> Path:
        """The place of other loggers' files."""
        return self.path / "logs"

    def discard(self) -> None:
        """Remove the run's files, and the folders that are empty then, and bring an earlier run back, if one was here.

        A failed run leaves nothing half-written.
        """
        self._clear()
        self._bring_back()
        if not (self.path / "records.jsonl").exists():
            (self.path / _locks.NAME).unlink(missing_ok=True)
            if not any(self.path.iterdir()):
                self.path.rmdir()
        self.unlock()

    def append(self, record: Record) -> None:
        """Add a record."""
        file = self.path / "records.jsonl"
        write_atomically(file, file.read_bytes() + record.to_json().encode() + b"\n")
        self._forget_earlier()

    def put(self, record: Record) -> None:
        """Add a record in its place by epoch; one of the same epoch gives way to it."""
        others = [other for other in self._parse() if other.epoch != record.epoch]
        text = "".join(each.to_json() + "\n" for each in sorted([*others, record], key=lambda each: each.epoch))
        write_atomically(self.path / "records.jsonl", text.encode())
        self._forget_earlier()

    def records(self) -> list[Record]:
        """All records, in order.

        Raises:
            InputError: there are none, a line is not a record, or they are out of order.
        """
        records = self._parse()
        if not records:
            raise InputError(f"{self.path} holds no records yet: train for at least one epoch")
        for before, after in pairwise(records):
            if after.epoch < before.epoch:
                raise InputError(
                    f"{self.path / 'records.jsonl'} has epoch {after.epoch} after epoch {before.epoch}: put its lines "
                    "in order, or train again"
                )
        return records

    def _parse(self) -> list[Record]:
        file = self.path / "records.jsonl"
        lines = read_text(file, _RECORDS_BYTES).split("\n")
        records: list[Record] = []
        for at, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                if len(line) > _LINE:
                    raise ValueError(f"it has more than {_LINE:,} characters")
                records.append(Record.from_json(line))
            except ValueError as error:
                why = one_line(error)
                raise InputError(f"{file} line {at} is not a record ({why}): restore it or train again") from None
        return records

    def write_geometry(self, geometry: Geometry) -> None:
        """Keep the class means and the classifier of an epoch, as float32."""
        buffer = io.BytesIO()
        arrays = {name: np.asarray(value, np.float32) for name, value in vars(geometry).items() if name != "epoch"}
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        write_atomically(self.path / "geometry" / f"epoch-{geometry.epoch:05d}.npz", buffer.getvalue())

    def geometries(self) -> Iterator[Geometry]:
        """The kept geometries, in order of epochs.

        Raises:
            InputError: a file is damaged, or they are not all of one shape.
        """
        shape = None
        for file in self._numbered("geometry"):
            try:
                found = read_geometry(file)
                shape = shape or found.means.shape
                if found.means.shape != shape:
                    raise ValueError(f"its class means are {found.means.shape}, those before it {shape}")
            except (ValueError, OSError, EOFError, NotImplementedError, MemoryError, zipfile.BadZipFile) as error:
                why = one_line(error)
                raise InputError(f"{file} is damaged ({why}): delete it to go on without that epoch") from None
            yield found

    def keep_geometries(self, epochs: Iterable[int]) -> None:
        """Keep the geometries of these epochs, and delete all others."""
        kept = set(epochs)
        for file in self._numbered("geometry"):
            if _owned.epoch_of(file) not in kept:
                file.unlink()

    def _numbered(self, folder: str) -> list[Path]:
        """The files of epochs in a folder, in order; copies under other names are none."""
        found = (self.path / folder).glob(f"epoch-*{_owned.NUMBERED[folder]}")
        return sorted((file for file in found if _owned.is_epoch_file(file)), key=_owned.epoch_of)

    def checkpoint(self, epoch: int) -> Path:
        """The place of an epoch's weights."""
        return self.path / "checkpoints" / f"epoch-{epoch:05d}.safetensors"

    def checkpoints(self) -> list[tuple[int, Path]]:
        """(epoch, file) of the kept weights, in order."""
        return [(_owned.epoch_of(file), file) for file in self._numbered("checkpoints")]

    def write_text(self, name: str, text: str) -> Path:
        """Write a text file of the folder."""
        return write_atomically(self.path / name, text.encode())

    def read_text(self, name: str) -> str:
        """Read a text file of the folder.

        Raises:
            InputError: it is not there.
        """
        return read_text(self.path / name)


def write_atomically(path: Path, content: bytes) -> Path:
    """Write a whole file or nothing."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
