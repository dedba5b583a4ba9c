"""Which files of a run folder are the library's own: they may be overwritten, and nothing else may (no torch)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from neuralcollapse.errors import InputError
from neuralcollapse.runs.files import parse_json, read_mapping
from neuralcollapse.runs.locks import NAME as LOCK

FILES = ("config.yaml", "environment.json", "checkpoints.json", "report.html", "state.pt", "records.jsonl")
# folders of files called epoch-NUMBER
EPOCH_FILES = {"geometry": ".npz", "checkpoints": ".safetensors", "classes": ".npz"}
LOGS = "logs"
PARTS = "state"  # folders of torch.distributed.checkpoint, by number, that state.pt names
EARLIER = ".earlier"  # the run that a new one is about to replace

_EPOCH = r"epoch-([0-9]{5}|[1-9][0-9]{5,11})"
_VERSION = r"version_[0-9]+"
_PART = r"[0-9]{5,12}"
_OWN = [  # every path that a run may have in its folder; wandb, which keeps files of any name, has its own rule below
    *map(re.escape, FILES),
    *(f"{folder}/{_EPOCH}{re.escape(suffix)}" for folder, suffix in EPOCH_FILES.items()),
    rf"({'|'.join(EPOCH_FILES)})/\.(epoch-)?[0-9]+[^/]*\.tmp",
    rf"(({'|'.join(EPOCH_FILES)})/)?\.({'|'.join(map(re.escape, FILES))})\.[^/]*\.tmp",
    rf"{PARTS}/({_PART}|\.{_PART}\.tmp)/(\.metadata|__[0-9]+_[0-9]+\.distcp)(\.tmp)?",
    rf"{LOGS}/csv/{_VERSION}/(metrics\.csv|hparams\.yaml)",
    rf"{LOGS}/tensorboard/{_VERSION}/(events\.out\.tfevents\.[^/]+|hparams\.yaml)",
    rf"{LOGS}/mlflow\.db(-journal|-wal|-shm)?",
]
_OWN_FILE = re.compile("|".join(f"(?:{pattern})" for pattern in _OWN))
_OWN_FOLDER = re.compile(
    rf"{'|'.join(EPOCH_FILES)}|{LOGS}|{LOGS}/(?:csv|tensorboard)(?:/{_VERSION})?|{PARTS}(?:/{_PART}|/\.{_PART}\.tmp)?"
)
_TEMPORARY = re.compile(r"(?:.*/)?\.[^/]*\.tmp")
_WANDB = f"{LOGS}/wandb"
_LOGGERS = {"csv", "tensorboard", "wandb", "mlflow"}
_FIGURE = re.compile(r"figures/[\w.-]+\.(?:png|svg|pdf)")  # `neuralcollapse report --format` writes them; they stay
_OF_TRAINING = re.compile(
    rf"checkpoints/.*|state\.pt|{PARTS}(?:/.*)?|{LOGS}/.*"
)  # written by `neuralcollapse train` alone


class FolderContents(NamedTuple):
    """Paths in a run folder: those that a run wrote, each folder after its contents, and those that others made."""

    own: list[Path]
    foreign: list[Path]


def list_contents(folder: Path) -> FolderContents:
    """What is in a run folder. Links are never followed."""
    own: list[Path] = []
    foreign: list[Path] = []
    earlier = folder / EARLIER
    training = {False: is_training(folder), True: earlier.is_dir() and is_training(earlier)}
    loggers = {False: _loggers(folder), True: _loggers(earlier)}
    for path in _walk(folder, ""):
        name = path.relative_to(folder).as_posix()
        inside = name.removeprefix(f"{EARLIER}/")
        of_earlier = inside != name
        if inside == LOCK and not of_earlier:
            if path.is_symlink() or not path.is_file():
                foreign.append(path)
        elif inside == EARLIER:
            (foreign if path.is_symlink() else own).append(path)
        elif not _is_figure(path, name):
            mine = _is_own(path, inside, training[of_earlier], loggers[of_earlier])
            (own if mine else foreign).append(path)
    return FolderContents(own, foreign)


def _is_figure(path: Path, name: str) -> bool:
    """Whether a path is a figure of `neuralcollapse report`, or their folder: neither removed nor in the way."""
    if path.is_symlink():
        return False
    return name == "figures" if path.is_dir() else path.is_file() and _FIGURE.fullmatch(name) is not None


def _is_own(path: Path, inside: str, training: bool, loggers: set[str]) -> bool:
    """Whether a run wrote a path, called `inside` in the run; `training`: the run is of `neuralcollapse train`."""
    if inside.startswith(f"{LOGS}/") and _logger_of(inside) not in loggers:
        return False
    if inside == _WANDB or inside.startswith(f"{_WANDB}/"):  # links too, which wandb makes to its latest run
        return training
    if path.is_symlink():
        return False
    if path.is_dir():
        return _OWN_FOLDER.fullmatch(inside) is not None
    if not path.is_file() or not _OWN_FILE.fullmatch(inside):
        return False
    return training or not _OF_TRAINING.fullmatch(inside) or _TEMPORARY.fullmatch(inside) is not None


def _loggers(folder: Path) -> set[str]:
    """The loggers in a run's configuration; all that there are where it names none."""
    try:
        found = read_mapping(folder / "config.yaml").get("loggers")
    except InputError:
        found = None
    return {str(name) for name in found} if isinstance(found, list | tuple) else _LOGGERS


def _logger_of(inside: str) -> str:
    """The logger that wrote a path below `LOGS`: its folder or the name of its database."""
    return re.sub(r"\.db(-journal|-wal|-shm)?$", "", inside.split("/")[1])


def _walk(folder: Path, inside: str) -> Iterator[Path]:
    """All paths in a folder, each folder after its contents; folders that no run makes are not entered."""
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        name = f"{inside}{entry.name}"
        known = name.removeprefix(f"{EARLIER}/")
        if entry.is_dir(follow_symlinks=False) and (
            known in (EARLIER, "figures") or known.startswith(_WANDB) or _OWN_FOLDER.fullmatch(known)
        ):
            yield from _walk(Path(entry.path), f"{name}/")
        yield Path(entry.path)


def is_temporary(path: Path) -> bool:
    """Whether a killed process of ours left this file, half-written."""
    return _TEMPORARY.fullmatch(path.name) is not None


def parts_in(folder: Path) -> list[Path]:
    """The folders of states in a run folder, in order, those that were not finished first."""
    found = (folder / PARTS).glob("*") if not (folder / PARTS).is_symlink() else ()
    return sorted(
        path for path in found if not path.is_symlink() and re.fullmatch(rf"{_PART}|\.{_PART}\.tmp", path.name)
    )


def remove(paths: Iterable[Path]) -> None:
    """Remove files, links and folders, in this order; folders that are not empty stay."""
    for path in list(paths):
        if path.is_dir() and not path.is_symlink():
            with suppress(OSError):
                path.rmdir()
        else:
            path.unlink(missing_ok=True)


def is_in_use(folder: Path) -> bool:
    """Whether a folder holds anything but a lock and temporary files of ours."""
    return any(path.name != LOCK and not (path.is_file() and is_temporary(path)) for path in folder.iterdir())


def is_run(folder: Path) -> bool:
    """Whether a run of this library is, or began, in a folder.

    Its mark is an environment.json with the library's version, or a record. A run that was killed before it wrote
    either has left an empty records.jsonl and nothing else but its configuration and the files of its loggers.
    """
    try:
        if "neuralcollapse" in read_mapping(folder / "environment.json"):
            return True
    except InputError:
        pass
    records = folder / "records.jsonl"
    try:
        if not records.is_file():
            return (folder / EARLIER).is_dir() and is_run(folder / EARLIER)
        if records.stat().st_size == 0:
            others = {path.name for path in folder.iterdir() if not is_temporary(path)} - {LOCK, EARLIER}
            empty = not any(any((folder / name).iterdir()) for name in EPOCH_FILES if (folder / name).is_dir())
            return others <= {"records.jsonl", "config.yaml", LOGS, *EPOCH_FILES} and empty
        with records.open(encoding="utf-8-sig") as file:
            first = parse_json(file.readline(2**24))
    except (OSError, ValueError):
        return False
    return isinstance(first, dict) and {"epoch", "seconds", "learning_rate", "train", "measures"} <= set(first)


def is_training(folder: Path) -> bool:
    """Whether `neuralcollapse train` wrote the configuration of a run, and no other loop."""
    try:
        config = read_mapping(folder / "config.yaml")
    except InputError:
        return (folder / EARLIER).is_dir() and is_training(folder / EARLIER)
    return {"network", "data", "checkpoint_every"} <= set(config) and not {"unit", "layer"} & set(config)


def why_not_overwrite(folder: Path, needed: Iterable[str | Path] = ()) -> str | None:
    """Why a run in this folder may not be overwritten, in words; None where it may. Nothing `needed` must be lost."""
    if folder.is_symlink():
        return f"is a symbolic link to {os.path.realpath(folder)}"
    if not is_run(folder):
        return "is not empty and holds no run that could be overwritten"
    place = os.path.realpath(folder)
    for path in needed:
        if Path(os.path.realpath(path)).is_relative_to(place):
            return f"holds {path}, which is still needed"
    foreign = list_contents(folder).foreign
    if foreign:
        name = foreign[0].relative_to(folder).as_posix()
        kind = "the symbolic link " if foreign[0].is_symlink() else ""
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        return f"holds {kind}{name}{more}, not written by this library"
    return None


def is_epoch_file(path: Path) -> bool:
    """Whether this is the file of an epoch by its whole name, and no copy such as "epoch-00001 (1).npz"."""
    return re.fullmatch(_EPOCH, path.stem, re.ASCII) is not None and path.is_file()


def epoch_of(path: Path) -> int:
    """The number in the name of such a file."""
    return int(path.stem.removeprefix("epoch-"))
