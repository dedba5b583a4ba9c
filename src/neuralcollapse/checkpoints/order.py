"""Which files are the checkpoints of a training, and the order in which they were made, from their names."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from neuralcollapse.checkpoints.sharded import check_written, is_sharded
from neuralcollapse.checkpoints.weights import check_kind
from neuralcollapse.errors import InputError, listed

_PARTS = 3  # of a path, from its end, that name a checkpoint
# As Hugging Face's save_pretrained calls them.
_PRETRAINED = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
_WORDS = {
    "epoch": ("epoch", "epochs", "ep"),
    "step": ("step", "steps", "iter", "iters", "iteration", "iterations", "checkpoint", "ckpt"),
}


class TrainingOrder(NamedTuple):
    """Checkpoints in the order of training.

    Attributes:
        unit: what the numbers count: "epoch", "step" or "checkpoint".
        checkpoints: (number, file), by increasing number.
        counted: the numbers are 1, 2, 3, ..., because the names hold none.
    """

    unit: str
    checkpoints: list[tuple[int, Path]]
    counted: bool


def training_order(paths: Iterable[str | Path]) -> TrainingOrder:
    """The order in which checkpoints were made, from the numbers in their names and folders.

    If the names differ in numbers alone, these are tried in turn: the number next to the word epoch, the one next to
    step, iter, checkpoint or ckpt, and the only one that differs; the first that distinguishes all checkpoints is
    taken. Otherwise the checkpoints are counted in the natural order of their names (2 before 10).

    Raises:
        InputError: a checkpoint is given twice, or the last parts of two paths are the same.
    """
    files: dict[str, Path] = {}
    for path in map(Path, paths):
        other = files.setdefault(short_name(path), path)
        if other is not path:
            raise InputError(
                f"the checkpoint {path} is given twice: leave one out"
                if other.absolute() == path.absolute()
                else f"expected checkpoints with names of their own, got {other} and {path}: measure them one by one"
            )
    split = {name: re.split(r"(\d+)", name) for name in files}
    if len({tuple(parts[::2]) for parts in split.values()}) == 1:
        columns = list(zip(*([int(part) for part in parts[1::2]] for parts in split.values()), strict=True))
        for unit, column in _choices(next(iter(split.values()))[::2], columns):
            if len(set(column)) == len(files):
                return TrainingOrder(unit, sorted(zip(column, files.values(), strict=True)), False)
    natural = sorted(files, key=lambda name: ([int(x) if at % 2 else x for at, x in enumerate(split[name])], name))
    return TrainingOrder("checkpoint", [(number, files[name]) for number, name in enumerate(natural, start=1)], True)


def _choices(texts: Sequence[str], columns: Sequence[tuple[int, ...]]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Numbers that may give the order, with their unit, the likeliest first; `texts` are what surrounds the numbers."""
    for unit, words in _WORDS.items():
        for column, before, after in reversed(list(zip(columns, texts[:-1], texts[1:], strict=True))):
            word = re.search(r"([a-z]+)[^a-z0-9/]*$", before.lower())  # epoch=3, ep_3
            joined = re.match(r"[a-z]+", after.lower())  # 3epochs
            if (word and word[1] in words) or (joined and joined[0] in words):
                yield unit, column
    different = [column for column in columns if len(set(column)) > 1]
    if len(different) == 1:
        yield "checkpoint", different[0]


def find_checkpoints(checkpoints: str | Path | Sequence[str | Path]) -> list[Path]:
    """The files that paths and glob patterns name; a folder means the weights that save_pretrained wrote there."""
    given: Any = [checkpoints] if isinstance(checkpoints, str | os.PathLike) else checkpoints
    found: list[Path] = []
    for each in given if isinstance(given, Iterable) else [given]:
        if not isinstance(each, str | os.PathLike):
            raise InputError(
                f"expected checkpoints as a pattern, a path or a list of them, got {type(given).__name__} "
                f"({type(each).__name__}): give one, as in 'checkpoints/*.safetensors'"
            )
        pattern = os.path.expanduser(os.fspath(each))
        matches = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern, recursive=True))
        if not matches:
            where = "" if os.path.isabs(pattern) else f" in {os.getcwd()}"
            raise InputError(f"no checkpoint {str(each)!r}{where}: expected files, as in 'checkpoints/*.safetensors'")
        found += [_weights_in(Path(match)) for match in matches]
    if not found:
        raise InputError("expected checkpoints, got an empty list: give a pattern, as in 'checkpoints/*.safetensors'")
    for path in found:
        check_kind(path)
    return found


def _weights_in(path: Path) -> Path:
    if not path.is_dir() or is_sharded(path):
        return path
    for name in _PRETRAINED:
        if (path / name).is_file():
            return path / name
    check_written(path)
    raise InputError(
        f"expected a checkpoint, got the folder {path} without {listed(_PRETRAINED)}: give the files in it, as in "
        f"'{path}/*.safetensors'"
    )


def short_name(path: Path) -> str:
    """The last parts of a path, which name a checkpoint the same from every current folder."""
    return "/".join(Path(os.path.abspath(path)).parts[1:][-_PARTS:])
