"""What the library writes into a run folder, in one table, and what of a folder is not its own (no torch)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from neuralcollapse.errors import InputError
from neuralcollapse.runs.locks import NAME as LOCK
from neuralcollapse.runs.plain import parse_json, read_mapping

FILES = ("config.yaml", "environment.json", "checkpoints.json", "report.html", "state.pt", "records.jsonl")
NUMBERED = {"geometry": ".npz", "checkpoints": ".safetensors"}
LOGS = "logs"
EARLIER = ".earlier"  # the run that a new one is about to take the place of

_EPOCH = r"epoch-([0-9]{5}|[1-9][0-9]{5,11})"
_VERSION = r"version_[0-9]+"
_OWN = [  # every path, from the folder, that a run may have, beside those of wandb, which keeps what it likes
    *map(re.escape, FILES),
    *(f"{folder}/{_EPOCH}{re.escape(suffix)}" for folder, suffix in NUMBERED.items()),
    rf"({'|'.join(NUMBERED)})/\.(epoch-)?[0-9]+[^/]*\.tmp",
    rf"(({'|'.join(NUMBERED)})/)?\.({'|'.join(map(re.escape, FILES))})\.[^/]*\.tmp",
    rf"{LOGS}/csv/{_VERSION}/(metrics\.csv|hparams\.yaml)",
    rf"{LOGS}/tensorboard/{_VERSION}/(events\.out\.tfevents\.[^/]+|hparams\.yaml)",
    rf"{LOGS}/mlflow\.db(-journal|-wal|-shm)?",
]
_OWN_FILE = re.compile("|".join(f"(?:{pattern})" for pattern in _OWN))
_OWN_FOLDER = re.compile(rf"{'|'.join(NUMBERED)}|{LOGS}|{LOGS}/(?:csv|tensorboard)(?:/{_VERSION})?")
_SCRAP = re.compile(r"(?:.*/)?\.[^/]*\.tmp")
_WANDB = f"{LOGS}/wandb"
_FIGURE = re.compile(r"figures/[\w.-]+\.(?:png|svg|pdf)")  # of `neuralcollapse report --format`; left where they are
_TRAINING = re.compile(rf"checkpoints/.*|state\.pt|{LOGS}/.*")  # what only a training of ours writes


class Contents(NamedTuple):
    """Of a folder, what a run wrote, with its folders after what is in them, and the first things that others did."""

    own: list[Path]
    foreign: list[Path]


def contents(folder: Path, *, training: bool) -> Contents:
    """What is in a run folder, nothing followed that is a link.

    Args:
        folder: the run folder.
        training: it is of a training by this library, which keeps weights, a state and logs; of another run those
            are not its own.
    """
    own: list[Path] = []
    foreign: list[Path] = []
    now, earlier = training, (folder / EARLIER).is_dir() and is_training(folder / EARLIER)
    loggers = {False: _loggers(folder), True: _loggers(folder / EARLIER)}
    for path in _walk(folder, ""):
        name = path.relative_to(folder).as_posix()
        inside = name.removeprefix(f"{EARLIER}/")
        training = now if inside == name else earlier
        if inside == EARLIER or name == LOCK:
            own += [path] if inside == EARLIER and not path.is_symlink() else []
            foreign += [path] if path.is_symlink() or (name == LOCK and not path.is_file()) else []
        elif inside.startswith(f"{LOGS}/") and not _kind_of_log(inside) & loggers[inside != name]:
            foreign.append(path)
        elif inside == _WANDB or inside.startswith(f"{_WANDB}/"):
            (own if training else foreign).append(path)
        elif path.is_symlink():
            foreign.append(path)
        elif path.is_dir():
            if _OWN_FOLDER.fullmatch(inside):
                own.append(path)
            elif name != "figures":
                foreign.append(path)
        elif not path.is_file():
            foreign.append(path)
        elif _OWN_FILE.fullmatch(inside) and (training or not _TRAINING.fullmatch(inside) or _SCRAP.fullmatch(inside)):
            own.append(path)
        elif not _FIGURE.fullmatch(name):
            foreign.append(path)
    return Contents(own, foreign)


def _loggers(folder: Path) -> set[str]:
    """The loggers of a run, by its configuration; all that there are where it does not say."""
    try:
        found = read_mapping(folder / "config.yaml").get("loggers")
    except InputError:
        found = None
    return (
        {str(name) for name in found} if isinstance(found, list | tuple) else {"csv", "tensorboard", "wandb", "mlflow"}
    )


def _kind_of_log(inside: str) -> set[str]:
    """The logger that a path below `LOGS` is of, by its name."""
    return {inside.split("/")[1].removesuffix("-journal").removesuffix("-wal").removesuffix("-shm").removesuffix(".db")}


def _walk(folder: Path, inside: str) -> Iterator[Path]:
    """Everything in it, the contents of a folder before the folder, those of folders that are not ours left out."""
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


def remove(paths: Iterable[Path]) -> None:
    """Remove files, links and empty folders, in this order; a folder that others put something in stays."""
    for path in list(paths):
        if path.is_dir() and not path.is_symlink():
            with suppress(OSError):
                path.rmdir()
        else:
            path.unlink(missing_ok=True)


def used(folder: Path) -> bool:
    """Whether there is anything in it but a lock and scraps of ours."""
    return any(path.name != LOCK and not (path.is_file() and _SCRAP.fullmatch(path.name)) for path in folder.iterdir())


def is_run(folder: Path) -> bool:
    """Whether a run of this library is, or began, in a folder.

    Its mark is an environment.json that names the library's version, or records; a run that was killed before it
    wrote those has left empty records and nothing else but its configuration.
    """
    try:
        if "neuralcollapse" in read_mapping(folder / "environment.json", yaml=False):
            return True
    except InputError:
        pass
    records = folder / "records.jsonl"
    try:
        if not records.is_file():
            return (folder / EARLIER).is_dir() and is_run(folder / EARLIER)
        if records.stat().st_size == 0:
            others = {path.name for path in folder.iterdir() if path.name not in (LOCK, EARLIER)}
            others = {name for name in others if not _SCRAP.fullmatch(name)}
            empty = not any(any((folder / name).iterdir()) for name in NUMBERED if (folder / name).is_dir())
            return others <= {"records.jsonl", "config.yaml", *NUMBERED} and empty
        with records.open(encoding="utf-8-sig") as file:
            first = parse_json(file.readline(2**24))
    except (OSError, ValueError):
        return False
    return isinstance(first, dict) and {"epoch", "seconds", "learning_rate", "train", "measures"} <= set(first)


def is_training(folder: Path) -> bool:
    """Whether the configuration of a run is that of a training by this library, and of no other loop."""
    try:
        config = read_mapping(folder / "config.yaml")
    except InputError:
        return (folder / EARLIER).is_dir() and is_training(folder / EARLIER)
    return {"network", "data", "checkpoint_every"} <= set(config) and not {"unit", "layer"} & set(config)


def in_the_way(folder: Path, given: Iterable[str | Path] = ()) -> str | None:
    """Why a run in this folder may not be overwritten, in words; None where it may be.

    Args:
        folder: a folder that is in use.
        given: files and folders of the user that are still needed.
    """
    if folder.is_symlink():
        return f"is a symbolic link to {os.path.realpath(folder)}"
    if not is_run(folder):
        return "is not empty and holds no run that could be overwritten"
    place = os.path.realpath(folder)
    for path in given:
        if Path(os.path.realpath(path)).is_relative_to(place):
            return f"holds {path}, which is still needed"
    foreign = contents(folder, training=is_training(folder)).foreign
    if foreign:
        name = foreign[0].relative_to(folder).as_posix()
        kind = "the symbolic link " if foreign[0].is_symlink() else ""
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        return f"holds {kind}{name}{more}, not written by this library"
    return None


def is_epoch_file(path: Path) -> bool:
    """Whether this is a file of an epoch by its whole name, and no copy such as "epoch-00001 (1).npz"."""
    return re.fullmatch(_EPOCH, path.stem, re.ASCII) is not None and path.is_file()


def epoch_of(path: Path) -> int:
    """The number in the name of such a file."""
    return int(path.stem.removeprefix("epoch-"))
