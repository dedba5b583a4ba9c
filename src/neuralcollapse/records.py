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

Every file is written beside its place and moved there, so that a reader never meets half of one.
"""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from neuralcollapse._errors import InputError

_OWN_FILES = ("config.yaml", "environment.json", "records.jsonl", "checkpoints.json", "report.html", "state.pt")
_OWN_LOGS = ("csv", "tensorboard", "wandb", "mlflow.db")
_OWN_FOLDERS = {"geometry": "*.npz", "checkpoints": "*.safetensors"}


@dataclass(frozen=True)
class Record:
    """One measured epoch.

    Attributes:
        epoch: epochs trained so far; 0 is the network as initialised. Of a run whose config says so, steps or
            checkpoints (`unit`).
        seconds: since the run began.
        learning_rate: of the epoch that ended.
        train: loss and accuracy in eval mode on the training set.
        test: loss and accuracy on the test set.
        measures: the keys of `neuralcollapse.measures` and nc4, on the training set.
        head: where asked for, the last layer's objective, exact minimum, their ratio and lower bound
            (`neuralcollapse.ufm.certify_head`).
        layers: where asked for, the feature measures of inner layers, by name.
        source: "eval": of a pass over the un-augmented training set in eval mode; "online": of the training steps of
            the epoch, while the weights moved.
    """

    epoch: int
    seconds: float
    learning_rate: float
    train: dict[str, float]
    test: dict[str, float] = field(default_factory=dict)
    measures: dict[str, float] = field(default_factory=dict)
    head: dict[str, float] = field(default_factory=dict)
    layers: dict[str, dict[str, float]] = field(default_factory=dict)
    source: str = "eval"

    def flat(self) -> dict[str, float]:
        """Every number by a name for loggers: "collapse/nc1", "train/loss", "test/accuracy", "head/ratio", ..."""
        groups = {"collapse": self.measures, "train": self.train, "test": self.test, "head": self.head}
        return {f"{group}/{name}": value for group, part in groups.items() for name, value in part.items()}

    def to_json(self) -> str:
        """One line of JSON; NaN as null."""
        return json.dumps(finite(asdict(self)))

    @classmethod
    def from_json(cls, line: str) -> Record:
        """The inverse of `to_json`."""
        values = json.loads(line)
        for name in ("seconds", "learning_rate"):
            values[name] = math.nan if values[name] is None else values[name]
        for group in ("train", "test", "measures", "head"):
            values[group] = _numbers(values.get(group, {}))
        values["layers"] = {name: _numbers(part) for name, part in values.get("layers", {}).items()}
        return cls(**values)


@dataclass(frozen=True)
class Geometry:
    """Class means (K, d) and their mean over samples (d,), and the classifier (K, d), (K,), at one epoch."""

    epoch: int
    means: np.ndarray
    global_mean: np.ndarray
    weight: np.ndarray
    bias: np.ndarray

    @property
    def centred(self) -> np.ndarray:
        """(K, d) class means about the mean of the samples."""
        return self.means - self.global_mean


class RunFolder:
    """A run on disk."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def create(cls, path: str | Path, *, force: bool = False) -> RunFolder:
        """Make the folder; one with anything in it is refused, or with `force` cleared of an earlier run's files.

        Raises:
            InputError: the folder is in use or cannot be written.
        """
        run = cls.check_free(path, force=force)
        try:
            run.path.mkdir(parents=True, exist_ok=True)
            run._clear()
            run.make_folders()
            write_atomically(run.path / "records.jsonl", b"")
        except OSError as error:
            raise InputError(f"cannot write the run folder {run.path}: {error.strerror or error}") from None
        return run

    @classmethod
    def check_free(cls, path: str | Path, *, force: bool = False) -> RunFolder:
        """Raise where `create` would refuse the folder; nothing is written.

        Raises:
            InputError: the folder is in use or cannot be read.
        """
        run = cls(path)
        try:
            used = run.path.exists() and any(run.path.iterdir())
            if used and not force:
                raise InputError(
                    f"the run folder {run.path} is not empty: choose another (--out, out=), or overwrite it (--force, "
                    "force=True)"
                )
            if used and not run._looks_like_one():
                raise InputError(
                    f"{run.path} is not empty and holds no run that could be overwritten: choose another (--out, out=)"
                )
        except OSError as error:
            raise InputError(f"cannot write the run folder {run.path}: {error.strerror or error}") from None
        return run

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """An existing run.

        Raises:
            InputError: the folder does not exist or holds no run.
        """
        run = cls(path)
        if not run.path.is_dir():
            raise InputError(f"no run folder {run.path}: make one with 'neuralcollapse train --out {run.path}'")
        if not (run.path / "records.jsonl").is_file():
            raise InputError(f"{run.path} holds no records.jsonl: expected a folder that 'neuralcollapse train' wrote")
        return run

    def make_folders(self) -> None:
        """Make the folders inside."""
        for name in _OWN_FOLDERS:
            (self.path / name).mkdir(exist_ok=True)

    def _clear(self) -> None:
        for name in _OWN_FILES:
            (self.path / name).unlink(missing_ok=True)
        for folder, pattern in _OWN_FOLDERS.items():
            for file in (self.path / folder).glob(pattern):
                file.unlink()
        for name in _OWN_LOGS:
            shutil.rmtree(self.logs / name, ignore_errors=True)
            if (self.logs / name).is_file():
                (self.logs / name).unlink()
        self.sweep()

    def _looks_like_one(self) -> bool:
        """Whether there are records here, or nothing but what a run that was killed early leaves."""
        own = {*_OWN_FILES, *_OWN_FOLDERS, "logs"}
        names = {path.name for path in self.path.iterdir() if not path.name.endswith(".tmp")}
        return "records.jsonl" in names or names <= own

    def sweep(self) -> None:
        """Remove the temporary files that a killed process left."""
        for folder in (self.path, *(self.path / name for name in _OWN_FOLDERS)):
            for file in folder.glob(".*.tmp"):
                file.unlink()

    def rewind(self, epoch: float) -> None:
        """Forget what came after an epoch: a resumed run makes it again (-1: forget everything that was measured)."""
        kept = [record for record in self._parse() if record.epoch <= epoch]
        text = "".join(record.to_json() + "\n" for record in kept)
        write_atomically(self.path / "records.jsonl", text.encode())
        for folder, pattern in _OWN_FOLDERS.items():
            for file in (self.path / folder).glob(f"epoch-{pattern}"):
                if _epoch(file) > epoch:
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
        """Remove the run's files, and the folders that are empty then: a failed run leaves nothing half-written."""
        self._clear()
        for folder in (*(self.path / name for name in _OWN_FOLDERS), self.logs, self.path):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def append(self, record: Record) -> None:
        """Add a record."""
        file = self.path / "records.jsonl"
        write_atomically(file, file.read_bytes() + record.to_json().encode() + b"\n")

    def put(self, record: Record) -> None:
        """Add a record in its place by epoch; one of the same epoch gives way to it."""
        others = [other for other in self._parse() if other.epoch != record.epoch]
        text = "".join(each.to_json() + "\n" for each in sorted([*others, record], key=lambda each: each.epoch))
        write_atomically(self.path / "records.jsonl", text.encode())

    def records(self) -> list[Record]:
        """All records, in order.

        Raises:
            InputError: there are none, or a line is not a record.
        """
        records = self._parse()
        if not records:
            raise InputError(f"{self.path} holds no records yet: train for at least one epoch")
        return records

    def _parse(self) -> list[Record]:
        lines = self.read_text("records.jsonl").splitlines()
        records = []
        for number, line in enumerate(lines, start=1):
            try:
                records.append(Record.from_json(line))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise InputError(
                    f"{self.path / 'records.jsonl'} line {number} is not a record ({error}): restore it or train again"
                ) from None
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
            InputError: a file is damaged.
        """
        for file in self._geometry_files():
            try:
                with np.load(file, allow_pickle=False) as loaded:
                    arrays = {name: loaded[name] for name in loaded.files}
                yield Geometry(_epoch(file), **arrays)
            except (ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
                raise InputError(f"{file} is damaged ({error}): delete it to go on without that epoch") from None

    def thin_geometries(self, most: int) -> None:
        """Keep at most so many geometries: the first, the last, and between them more where the epochs are few."""
        files = self._geometry_files()
        while len(files) > max(most, 2):
            place = [math.sqrt(_epoch(file)) for file in files]
            spare = min(range(1, len(files) - 1), key=lambda i: place[i + 1] - place[i - 1])
            files.pop(spare).unlink()

    def _geometry_files(self) -> list[Path]:
        return sorted((self.path / "geometry").glob("epoch-[0-9]*.npz"), key=_epoch)

    def checkpoint(self, epoch: int) -> Path:
        """The place of an epoch's weights."""
        return self.path / "checkpoints" / f"epoch-{epoch:05d}.safetensors"

    def checkpoints(self) -> list[tuple[int, Path]]:
        """(epoch, file) of the kept weights, in order."""
        files = sorted((self.path / "checkpoints").glob("epoch-[0-9]*.safetensors"), key=_epoch)
        return [(_epoch(file), file) for file in files]

    def write_text(self, name: str, text: str) -> Path:
        """Write a text file of the folder."""
        return write_atomically(self.path / name, text.encode())

    def read_text(self, name: str) -> str:
        """Read a text file of the folder.

        Raises:
            InputError: it is not there.
        """
        try:
            return (self.path / name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            raise InputError(f"cannot read {self.path / name}: {reason}") from None


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


def _epoch(file: Path) -> int:
    return int(file.stem.removeprefix("epoch-"))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _numbers(values: dict[str, float | None]) -> dict[str, float]:
    return {name: math.nan if x is None else float(x) for name, x in values.items()}


def finite(value: Any) -> Any:
    """The value with None for floats that are not finite, which JSON has no words for."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


MEASURES: dict[str, tuple[str, str]] = {
    "nc1": ("NC1", "tr(S_W S_B^+)/K: spread within classes against spread between them"),
    "nc1_quotient": ("NC1, quotient", "tr S_W / tr S_B"),
    "nc1_cdnv": ("NC1, CDNV", "variance over squared distance, mean over pairs of classes"),
    "nc2": ("NC2", "distance of the classifier's rows from a simplex ETF"),
    "nc2_means": ("NC2, means", "distance of the class means from a simplex ETF"),
    "nc3": ("NC3", "distance of W M from a simplex ETF: classifier against class means"),
    "nc3_distance": ("NC3, distance", "|W/|W| - M/|M||: classifier against class means"),
    "nc4": ("NC4", "share of samples not predicted as the class of the nearest mean"),
    "nc_bias": ("NC bias", "|b + W mu_G|: free to stay large when the bias has no decay"),
    "nc_bias_centered": ("NC bias, centred", "the same less what shifts all logits alike"),
    "equinorm_means": ("equinorm, means", "spread of the lengths of the class means"),
    "equinorm_weights": ("equinorm, rows", "spread of the lengths of the classifier's rows"),
    "equiangularity_means": ("equiangularity, means", "spread of the cosines between class means"),
    "equiangularity_weights": ("equiangularity, rows", "spread of the cosines between the classifier's rows"),
    "max_equiangularity_means": ("maximal angles, means", "mean |cos + 1/(K-1)| between class means"),
    "max_equiangularity_weights": ("maximal angles, rows", "mean |cos + 1/(K-1)| between the classifier's rows"),
}
"""Label and meaning of each measure, in the order of tables. All but nc_bias go to 0 under collapse."""
