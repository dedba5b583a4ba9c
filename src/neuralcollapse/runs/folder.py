"""The run folder: what a run leaves on disk, how it is written, and how its records are read (no torch).

config.yaml         the configuration, as `neuralcollapse train --config` reads it
environment.json    versions and hardware
records.jsonl       a line for each measured epoch (`Record`, `runs.record_lines`)
checkpoints.json    which file gave which record (`neuralcollapse.measure_checkpoints`)
geometry/*.npz      class means and classifier at some epochs (`Geometry`)
classes/*.npz       the numbers of each class at the last record (`ClassRecord`)
checkpoints/*.safetensors   the network's weights
state.pt            the state of training, for `neuralcollapse train --resume`
state/*/            its tensors, where each process has parts of them (strategy fsdp2)
logs/               what other loggers wrote
report.html         the page
.lock               there while a process writes (`runs.locks`)
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from neuralcollapse.errors import InputError, one_line
from neuralcollapse.runs import locks, ownership
from neuralcollapse.runs.class_record import ClassRecord, read_class_record
from neuralcollapse.runs.files import as_path, read_text, write_atomically
from neuralcollapse.runs.html import as_table, named_values
from neuralcollapse.runs.record_lines import append_record, keep_records, read_records
from neuralcollapse.runs.records import Geometry, Record, read_geometry

_RECORDS = "records.jsonl"
_DAMAGED = (ValueError, OSError, EOFError, NotImplementedError, MemoryError, zipfile.BadZipFile)


class RunFolder:
    """A run on disk.

    A writer holds the folder's lock, from `create` or `lock` until `unlock` or the end of this object.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = as_path(path, "a run folder")
        self._hold: locks.Hold | None = None

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    def _repr_html_(self) -> str:
        """The folder in a notebook: what it holds."""
        if not (self.path / _RECORDS).is_file():
            return as_table(f"Run folder {self.path}", [], note="It holds no run.")
        try:
            epochs = [record.epoch for record in self.records(allow_none=True)]
        except InputError as error:
            return as_table(f"Run folder {self.path}", [], note=str(error))
        page = self.path / "report.html"
        rows = {
            "records": f"{len(epochs):,}" + (f", from {epochs[0]:,} to {epochs[-1]:,}" if epochs else ""),
            "checkpoints": f"{len(self.checkpoints()):,}",
            "page": page if page.is_file() else f"none yet: neuralcollapse report {self.path}",
        }
        return as_table(f"Run folder {self.path}", named_values(rows))

    @classmethod
    def create(cls, path: str | Path, *, force: bool = False, given: Iterable[str | Path] = ()) -> RunFolder:
        """Make the folder and lock it. One that is not empty is refused, unless `force` allows to overwrite its run.

        That earlier run is set aside, and removed once the new one has a record; `discard` brings it back.

        Args:
            path: the folder.
            force: overwrite an earlier run, if this library wrote everything in the folder.
            given: files and folders that are still needed: a folder that holds one is not overwritten.
        """
        given = list(given)
        run = cls.check_free(path, force=force, given=given)
        try:
            run.path.mkdir(parents=True, exist_ok=True)
            run.lock()
            try:
                cls.check_free(path, force=force, given=given)  # again, now that nobody else can write
                run._begin()
            except BaseException:
                run.unlock()
                raise
        except OSError as error:
            raise InputError(f"cannot write the run folder {run.path}: {error.strerror or error}") from None
        return run

    @classmethod
    def check_free(cls, path: str | Path, *, force: bool = False, given: Iterable[str | Path] = ()) -> RunFolder:
        """Raise where `create` would refuse the folder; nothing is written."""
        run = cls(path)
        try:
            if not os.path.lexists(run.path) or not ownership.is_in_use(run.path):
                return run
            locks.check_unlocked(run.path)
            reason = ownership.why_not_overwrite(run.path, given)
        except OSError as error:
            raise InputError(f"cannot write the run folder {run.path}: {error.strerror or error}") from None
        if reason is not None:
            also = "" if reason.startswith("is not empty") else "is not empty and "
            raise InputError(f"the run folder {run.path} {also}{reason}: choose another (--out, out=)")
        if not force:
            raise InputError(f"the run folder {run.path} is not empty: {run.way_out(given)}")
        return run

    def way_out(self, given: Iterable[str | Path] = ()) -> str:
        """What to do about a folder in use, for messages: overwriting is offered only if nothing else would be lost."""
        other = "choose another (--out, out=)"
        if ownership.why_not_overwrite(self.path, given) is not None:
            return other
        return f"{other}, or overwrite the run in it (--force, force=True)"

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """An existing run, to read.

        Raises:
            InputError: the folder does not exist or holds no run.
        """
        run = cls(path)
        if run.path.is_file():
            raise InputError(f"expected a run folder, got the file {run.path}: name the folder that a run wrote")
        if not run.path.is_dir():
            raise InputError(f"no run folder {run.path}: make one with 'neuralcollapse train --out {run.path}'")
        if not (run.path / _RECORDS).is_file():
            raise InputError(f"{run.path} holds no records.jsonl: expected a folder that 'neuralcollapse train' wrote")
        return run

    def lock(self) -> None:
        """Keep other writers out."""
        if self._hold is None:
            try:
                self._hold = locks.hold(self.path)
            except OSError as error:
                raise InputError(f"cannot write the run folder {self.path}: {error.strerror or error}") from None

    def unlock(self) -> None:
        """Let others write again."""
        if self._hold is not None:
            self._hold.release()
            self._hold = None

    def make_folders(self) -> None:
        """Make the folders inside; that of the classes comes with its first file."""
        for name in ("geometry", "checkpoints"):
            (self.path / name).mkdir(exist_ok=True)

    def _own(self, *, of_earlier: bool = False) -> list[Path]:
        """What this run wrote, or an earlier one that is set aside."""
        own = ownership.list_contents(self.path).own
        return [path for path in own if path.is_relative_to(self._earlier) == of_earlier]

    def _begin(self) -> None:
        """Set an earlier run aside and make the files of a new one, or leave all as it was."""
        records = self.path / _RECORDS
        try:
            self._set_aside()
            self.make_folders()
            write_atomically(records, b"")
        except BaseException:  # an interrupt too
            if records.is_file() and records.stat().st_size == 0:  # ours, or of a run that had none
                records.unlink()
            self._bring_back()
            if not records.is_file():
                self.discard()
            raise

    @property
    def _earlier(self) -> Path:
        return self.path / ownership.EARLIER

    @property
    def replaces_earlier(self) -> bool:
        """Whether an earlier run is set aside, because this one has no record yet."""
        return self._earlier.is_dir()

    def _set_aside(self) -> None:
        """Move an earlier run's files out of the way; of two, the one with records."""
        if self._earlier.is_dir() and not (self._earlier / _RECORDS).is_file():
            self._bring_back()  # a process was killed while it moved the files; the records go last
        records = self.path / _RECORDS
        if not records.is_file() or records.stat().st_size == 0:
            return ownership.remove(self._own())
        self._forget_earlier()
        self.remove_temporary()
        self._earlier.mkdir()
        for name in (*ownership.EPOCH_FILES, ownership.LOGS, ownership.PARTS, *ownership.FILES):
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
            ownership.remove(self._own(of_earlier=True))

    def remove_temporary(self) -> None:
        """Remove the half-written files of a process that was killed."""
        ownership.remove(path for path in self._own() if ownership.is_temporary(path))

    def truncate(self, epoch: float) -> None:
        """Remove what was measured after an epoch, since a resumed run measures it again (-1: everything).

        The records that stay are written in order.
        """
        keep_records(self.path / _RECORDS, epoch)
        for folder in ownership.EPOCH_FILES:
            for file in self._epoch_files(folder):
                if ownership.epoch_of(file) > epoch:
                    file.unlink()

    @property
    def state(self) -> Path:
        """The file of the state of training."""
        return self.path / "state.pt"

    @property
    def parts(self) -> Path:
        """Where the tensors of states lie that are split over processes, each in a folder."""
        return self.path / ownership.PARTS

    def new_parts(self) -> str:
        """The name of the next such folder, once its temporary folder `.NAME.tmp` is there and empty."""
        numbers = [int(place.name.strip(".").partition(".")[0]) for place in ownership.parts_in(self.path)]
        name = f"{max(numbers, default=0) + 1:05d}"
        (self.parts / f".{name}.tmp").mkdir(parents=True)
        return name

    def keep_parts(self, name: str | None) -> None:
        """Remove these folders but the one of that name."""
        for place in ownership.parts_in(self.path):
            if place.name != name:
                ownership.remove(path for path in self._own() if path.is_relative_to(place))
        if name is None and self.parts.is_dir():
            ownership.remove([self.parts])

    def discard(self) -> None:
        """Remove a run that failed: its files, then folders that are empty, and bring back the run that it replaced."""
        ownership.remove(self._own())
        self._bring_back()
        if not (self.path / _RECORDS).exists():
            (self.path / locks.NAME).unlink(missing_ok=True)
            if not any(self.path.iterdir()):
                self.path.rmdir()
        self.unlock()

    def append(self, record: Record) -> None:
        """Add a record, in any order of epochs: of several of one epoch the last counts."""
        append_record(self.path / _RECORDS, record)
        self._forget_earlier()

    def records(self, *, allow_none: bool = False) -> list[Record]:
        """All records, in order of epochs.

        Raises:
            InputError: no records (unless `allow_none`), or a line that is not a record.
        """
        records = read_records(self.path / _RECORDS)
        if not records and not allow_none:
            raise InputError(f"{self.path / _RECORDS} holds no records yet: train for at least one epoch")
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
            InputError: a file is damaged, or their shapes differ.
        """
        shape = None
        for file in self._epoch_files("geometry"):
            try:
                found = read_geometry(file)
                shape = shape or found.means.shape
                if found.means.shape != shape:
                    raise ValueError(f"its class means are {found.means.shape}, those before it {shape}")
            except _DAMAGED as error:
                raise _damaged(file, error, "that epoch") from None
            yield found

    def write_classes(self, classes: ClassRecord) -> None:
        """Keep the numbers of each class, in place of those of earlier epochs."""
        file = self.path / "classes" / f"epoch-{classes.epoch:05d}.npz"
        file.parent.mkdir(exist_ok=True)
        write_atomically(file, classes.to_bytes())
        for other in self._epoch_files("classes"):
            if other != file:
                other.unlink()

    def classes(self) -> ClassRecord | None:
        """The numbers of each class at the last record that has some.

        Raises:
            InputError: the file is damaged.
        """
        files = self._epoch_files("classes")
        if not files:
            return None
        try:
            return read_class_record(files[-1])
        except _DAMAGED as error:
            raise _damaged(files[-1], error, "the table of the classes") from None

    def keep_geometries(self, epochs: Iterable[int]) -> None:
        """Keep the geometries of these epochs, and delete all others."""
        kept = set(epochs)
        for file in self._epoch_files("geometry"):
            if ownership.epoch_of(file) not in kept:
                file.unlink()

    def _epoch_files(self, folder: str) -> list[Path]:
        """The files of epochs in a folder, in order, without copies under other names."""
        found = (self.path / folder).glob(f"epoch-*{ownership.EPOCH_FILES[folder]}")
        return sorted((file for file in found if ownership.is_epoch_file(file)), key=ownership.epoch_of)

    def checkpoint(self, epoch: int) -> Path:
        """The file of an epoch's weights."""
        return self.path / "checkpoints" / f"epoch-{epoch:05d}.safetensors"

    def checkpoints(self) -> list[tuple[int, Path]]:
        """(epoch, file) of the kept weights, in order."""
        return [(ownership.epoch_of(file), file) for file in self._epoch_files("checkpoints")]

    def write_text(self, name: str, text: str) -> Path:
        """Write a text file of the folder."""
        return write_atomically(self.path / name, text.encode())

    def read_text(self, name: str) -> str:
        """Read a text file of the folder."""
        return read_text(self.path / name)


def _damaged(file: Path, error: BaseException, what: str) -> InputError:
    return InputError(f"{file} is damaged ({one_line(error)}): delete it to go on without {what}")
