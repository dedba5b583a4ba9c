"""A folder of torch.distributed.checkpoint, read row by row without running code.

Its `.metadata` is a pickle: it is read by an unpickler that knows a dozen names, replaces every class by a plain holder
of its fields, and raises for any other name. The tensors in the files beside it are read with `weights_only`. The file
names in it are those of files in the folder, or are refused.
"""

from __future__ import annotations

import io
import math
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuralcollapse.errors import InputError

METADATA = ".metadata"
PART = ".distcp"  # ends the names of the files beside it
HOW = "copy the checkpoint again, or save the weights alone, with safetensors.torch.save_file"

_METADATA_BYTES = 2**28
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


class DistributedFolder:
    """The tensors of a checkpoint, each made of parts, of which those are read that are asked for.

    Raises:
        InputError: the metadata are those of something else, or hold objects.
        Exception: of any kind where a file is damaged; here and in the methods.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        metadata = _read_metadata(folder / METADATA)
        self._entries = {
            name: entry for name, entry in metadata.state_dict_metadata.items() if hasattr(entry, "chunks")
        }
        self._places = {}
        for index, info in metadata.storage_data.items():
            self._places[index.fqn, tuple(getattr(index, "offset", None) or ())] = info

    @property
    def names(self) -> list[str]:
        """Of all tensors, those of an optimiser included."""
        return list(self._entries)

    def weights(self) -> dict[str, Tensor]:
        """All tensors by name, whole, without those of an optimiser."""
        return {name: self.rows(name) for name in self._entries if not name.startswith("optim")}

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the whole tensor."""
        return tuple(self._entries[name].size)

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """The rows from `start` to `stop` of a tensor, or all of it, on the CPU."""
        entry = self._entries[name]
        shape, dtype = self.shape(name), entry.properties.dtype
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"{name} has no type")
        _check_declared(self.folder, name, shape, dtype, entry.chunks)
        if not shape:
            return self._part(name, entry.chunks[0]).to(dtype)
        stop = shape[0] if stop is None else stop
        found = torch.empty((stop - start, *shape[1:]), dtype=dtype, device="cpu")
        for chunk in entry.chunks:
            at = chunk.offsets[0]
            first, last = max(start, at), min(stop, at + chunk.sizes[0])
            if first < last:
                part = self._part(name, chunk)[first - at : last - at]
                place = (slice(first - start, last - start), *_others(chunk))
                found[place] = part
        return found

    def _part(self, name: str, chunk: Any) -> Tensor:
        part = _read_part(self.folder, self._places[name, tuple(chunk.offsets)])
        if tuple(part.shape) != tuple(chunk.sizes):
            raise ValueError(f"a part of {name} has the shape {tuple(part.shape)}, not {tuple(chunk.sizes)}")
        return part


def _others(chunk: Any) -> tuple[slice, ...]:
    """Where a part lies along all axes but the first."""
    return tuple(slice(at, at + size) for at, size in zip(chunk.offsets[1:], chunk.sizes[1:], strict=True))


def _check_declared(folder: Path, name: str, shape: Any, dtype: torch.dtype, chunks: Any) -> None:
    """Raise unless the parts of a tensor make it up, each entry once, and are no larger than what the folder holds."""
    size = math.prod(shape)
    held = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    if size * dtype.itemsize > held:
        raise ValueError(f"{name} would be larger than the whole checkpoint")
    sizes = [tuple(chunk.sizes) for chunk in chunks]
    if sum(map(math.prod, sizes)) != size or not _are_apart(shape, [tuple(chunk.offsets) for chunk in chunks], sizes):
        raise ValueError(f"the parts of {name} do not make it up")


def _are_apart(shape: Any, offsets: list[tuple[int, ...]], sizes: list[tuple[int, ...]]) -> bool:
    """Whether parts lie inside a tensor, and no entry is in two of them."""
    boxes = [(at, part) for at, part in zip(offsets, sizes, strict=True) if math.prod(part) != 0]
    if any(len(at) != len(shape) or len(part) != len(shape) for at, part in boxes):
        return False
    if not boxes or not shape:
        return len(boxes) <= 1
    starts, lengths = (torch.tensor(each, dtype=torch.int64, device="cpu") for each in zip(*boxes, strict=True))
    ends = starts + lengths
    if bool((starts < 0).any() or (lengths < 0).any() or (ends > torch.tensor(tuple(shape), device="cpu")).any()):
        return False
    for place in range(1, len(boxes)):
        meets = (starts[:place] < ends[place]) & (starts[place] < ends[:place])
        if bool(meets.all(1).any()):
            return False
    return True


def _read_part(folder: Path, info: Any) -> Tensor:
    if getattr(info, "transform_descriptors", None):
        raise InputError(f"expected a checkpoint without compression, got {folder}: {HOW}")
    path, offset, length = file_inside(folder, info.relative_path), int(info.offset), int(info.length)
    if not 0 <= offset <= offset + length <= path.stat().st_size:
        raise ValueError(f"{path.name} is cut off")
    with path.open("rb") as file:
        file.seek(offset)
        content = file.read(length)
    part = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    if not isinstance(part, Tensor):
        raise ValueError(f"{path.name} holds another object than a tensor")
    return part


def file_inside(folder: Path, name: str) -> Path:
    """The file of that name in the folder.

    Links are followed, as the caches of Hugging Face are full of them; what leads out of the folder is the name itself.
    """
    if name != Path(name).name or "\\" in name or name in ("", ".", ".."):
        raise InputError(f"expected the name of a file in {folder}, got {name!r:.80}, which leads out of it: {HOW}")
    if not (folder / name).is_file():
        raise InputError(f"no file {folder / name}: expected a part of the checkpoint: {HOW}")
    return folder / name


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
        raise InputError(f"expected metadata of at most {_METADATA_BYTES} bytes, got {path}: {HOW}")
    try:
        with path.open("rb") as file:
            metadata = _Metadata(file).load()
    except InputError as error:
        raise InputError(f"{error}: {HOW}") from None
    if not isinstance(getattr(metadata, "state_dict_metadata", None), dict) or not isinstance(
        getattr(metadata, "storage_data", None), dict
    ):
        raise InputError(f"expected the metadata of torch.distributed.checkpoint, got others in {path}: {HOW}")
    return metadata
