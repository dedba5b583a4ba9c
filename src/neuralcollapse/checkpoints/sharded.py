"""Checkpoints in several files: those of torch.distributed.checkpoint, and Hugging Face's with an index.

Neither may run code. The `.metadata` of torch.distributed.checkpoint is a pickle: it is read by an unpickler that knows
a dozen names, replaces every class by a plain holder of its fields, and raises for any other name. The tensors in the
files beside it are read with `weights_only`. The file names in both are those of files in the folder, or are refused.
"""

from __future__ import annotations

import io
import json
import math
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuralcollapse.errors import InputError, one_line
from neuralcollapse.runs.tensors import read_tensors

INDEX = ".safetensors.index.json"
METADATA = ".metadata"

_HOW = "copy the checkpoint again, or save the weights alone, with safetensors.torch.save_file"
_METADATA_BYTES = 2**28
_INDEX_BYTES = 2**26
_FIELDS = {
    "torch.distributed.checkpoint.metadata": (
        "Metadata",
        "TensorStorageMetadata",
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "TensorProperties",
        "MetadataIndex",
        "StorageMeta",
        "_MEM_FORMAT_ENCODING",
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo", "_StoragePrefix"),
}
_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")


def is_sharded(path: Path) -> bool:
    """Whether a path is a folder of torch.distributed.checkpoint, or an index of Hugging Face's safetensors files."""
    return path.name.endswith(INDEX) or (path / METADATA).is_file()


def read_sharded(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint in several files, by name, whole and on the CPU.

    Raises:
        InputError: a file is missing or damaged, lies outside the folder, or holds objects.
    """
    try:
        return _by_index(path) if path.name.endswith(INDEX) else _distributed(path)
    except InputError:
        raise
    except Exception as error:  # a damaged file can raise any error
        raise InputError(f"cannot read {path} ({one_line(error)}): {_HOW}") from None


def _by_index(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise InputError(f"no file {path}: expected the index of a checkpoint")
    if path.stat().st_size > _INDEX_BYTES:
        raise InputError(f"expected an index of at most {_INDEX_BYTES} bytes, got {path}: {_HOW}")
    content = json.loads(path.read_bytes())
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not all(isinstance(file, str) for file in names.values()):
        raise InputError(f"expected a weight_map from names to files in {path}, got none: {_HOW}")
    found: dict[str, Tensor] = {}
    for file in sorted(set(names.values())):
        if not file.endswith(".safetensors"):
            raise InputError(f"expected .safetensors files in {path}, got {file!r:.80}: {_HOW}")
        wanted = [name for name, place in names.items() if place == file]
        tensors, _ = read_tensors(_inside(path.parent, file), wanted)
        missing = [name for name in wanted if name not in tensors]
        if missing:
            raise InputError(f"{path} says that {file} holds {missing[0]!r:.80}, and it does not: {_HOW}")
        found |= tensors
    return found


def _inside(folder: Path, name: str) -> Path:
    """The file of that name in the folder.

    Links are followed, as the caches of Hugging Face are full of them; what leads out of the folder is the name itself.
    """
    if name != Path(name).name or "\\" in name or name in ("", ".", ".."):
        raise InputError(f"expected the name of a file in {folder}, got {name!r:.80}, which leads out of it: {_HOW}")
    if not (folder / name).is_file():
        raise InputError(f"no file {folder / name}: expected a part of the checkpoint: {_HOW}")
    return folder / name


def _distributed(folder: Path) -> dict[str, Tensor]:
    metadata = _read_metadata(folder / METADATA)
    entries, places = metadata.state_dict_metadata, {}
    for index, info in metadata.storage_data.items():
        places[index.fqn, tuple(getattr(index, "offset", None) or ())] = info
    found = {}
    for name, entry in entries.items():
        if not hasattr(entry, "chunks") or name.startswith("optim"):
            continue
        shape, dtype = tuple(entry.size), entry.properties.dtype
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"{name} has no type")
        _check_declared(folder, name, shape, dtype, entry.chunks)
        whole = torch.empty(shape, dtype=dtype, device="cpu")
        for chunk in entry.chunks:
            offsets, sizes = tuple(chunk.offsets), tuple(chunk.sizes)
            part = _read_part(folder, places[name, offsets])
            if tuple(part.shape) != sizes:
                raise ValueError(f"a part of {name} has the shape {tuple(part.shape)}, not {sizes}")
            whole[tuple(slice(at, at + size) for at, size in zip(offsets, sizes, strict=True))] = part
        found[name] = whole
    return found


def _check_declared(folder: Path, name: str, shape: Any, dtype: torch.dtype, chunks: Any) -> None:
    """Raise unless the parts of a tensor make it up, and are no larger than what the folder holds."""
    size = math.prod(shape)
    held = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    if sum(math.prod(chunk.sizes) for chunk in chunks) != size:
        raise ValueError(f"the parts of {name} do not make it up")
    if size * dtype.itemsize > held:
        raise ValueError(f"{name} would be larger than the whole checkpoint")


def _read_part(folder: Path, info: Any) -> Tensor:
    if getattr(info, "transform_descriptors", None):
        raise InputError(f"expected a checkpoint without compression, got {folder}: {_HOW}")
    path, offset, length = _inside(folder, info.relative_path), int(info.offset), int(info.length)
    if not 0 <= offset <= offset + length <= path.stat().st_size:
        raise ValueError(f"{path.name} is cut off")
    with path.open("rb") as file:
        file.seek(offset)
        content = file.read(length)
    part = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    if not isinstance(part, Tensor):
        raise ValueError(f"{path.name} holds another object than a tensor")
    return part


class _Fields:
    """The fields of an object whose class is never imported."""

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) == 2 and state[0] is None and isinstance(state[1], dict):
            state = state[1]
        if isinstance(state, dict):
            self.__dict__.update({name: value for name, value in state.items() if isinstance(name, str)})
        elif isinstance(state, tuple):  # of TensorProperties, which begins with the type
            self.dtype = state[0] if state else None


class _Metadata(pickle.Unpickler):
    """Unpickles fields, sizes and types, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name in the pickle."""
        if name in _FIELDS.get(module, ()):
            return _Fields
        if (module, name) == ("torch", "Size"):
            return torch.Size
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype | torch.layout):
            return getattr(torch, name)
        if (module, name) == ("torch.serialization", "_get_layout"):
            return _Fields
        if module.split(".")[0] == "pathlib" and name in _PATHS:
            return _Fields
        raise InputError(f"the checkpoint's {METADATA} holds pickled objects ({module}.{name}), which are never loaded")


def _read_metadata(path: Path) -> Any:
    if path.stat().st_size > _METADATA_BYTES:
        raise InputError(f"expected metadata of at most {_METADATA_BYTES} bytes, got {path}: {_HOW}")
    try:
        with path.open("rb") as file:
            metadata = _Metadata(file).load()
    except InputError as error:
        raise InputError(f"{error}: {_HOW}") from None
    if not isinstance(getattr(metadata, "state_dict_metadata", None), dict) or not isinstance(
        getattr(metadata, "storage_data", None), dict
    ):
        raise InputError(f"expected the metadata of torch.distributed.checkpoint, got others in {path}: {_HOW}")
    return metadata
