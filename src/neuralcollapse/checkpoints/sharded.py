"""Checkpoints in several files: those of torch.distributed.checkpoint, and Hugging Face's with an index."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from neuralcollapse.checkpoints.distributed import HOW, METADATA, PART, DistributedFolder, file_inside
from neuralcollapse.errors import InputError, one_line
from neuralcollapse.runs.tensors import read_tensors

INDEX = ".safetensors.index.json"

_INDEX_BYTES = 2**26


def is_sharded(path: Path) -> bool:
    """Whether a path is a folder of torch.distributed.checkpoint, or an index of Hugging Face's safetensors files."""
    return path.name.endswith(INDEX) or (path / METADATA).is_file()


def check_written(path: Path) -> None:
    """Raise if a folder holds the parts of a checkpoint without the file that is written last."""
    if path.is_dir() and not is_sharded(path) and any(file.name.endswith(PART) for file in path.iterdir()):
        raise InputError(
            f"expected a whole checkpoint, got {path} without {METADATA}, which torch.distributed.checkpoint writes "
            "last: wait until it is written, or leave it out"
        )


def read_sharded(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint in several files, by name, whole and on the CPU.

    Raises:
        InputError: a file is missing or damaged, lies outside the folder, or holds objects.
    """
    try:
        return _by_index(path) if path.name.endswith(INDEX) else DistributedFolder(path).weights()
    except InputError:
        raise
    except Exception as error:  # a damaged file can raise any error
        raise InputError(f"cannot read {path} ({one_line(error)}): {HOW}") from None


def _by_index(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise InputError(f"no file {path}: expected the index of a checkpoint")
    if path.stat().st_size > _INDEX_BYTES:
        raise InputError(f"expected an index of at most {_INDEX_BYTES} bytes, got {path}: {HOW}")
    content = json.loads(path.read_bytes())
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not all(isinstance(file, str) for file in names.values()):
        raise InputError(f"expected a weight_map from names to files in {path}, got none: {HOW}")
    found: dict[str, Tensor] = {}
    for file in sorted(set(names.values())):
        if not file.endswith(".safetensors"):
            raise InputError(f"expected .safetensors files in {path}, got {file!r:.80}: {HOW}")
        wanted = [name for name, place in names.items() if place == file]
        tensors, _ = read_tensors(file_inside(path.parent, file), wanted)
        missing = [name for name in wanted if name not in tensors]
        if missing:
            raise InputError(f"{path} says that {file} holds {missing[0]!r:.80}, and it does not: {HOW}")
        found |= tensors
    return found
