"""Weights from files, read without unpickling objects and fitted into a model whatever prefix their names have."""

from __future__ import annotations

import argparse
import pickle
import re
import sys
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from neuralcollapse.checkpoints.sharded import check_written, is_sharded, read_sharded
from neuralcollapse.checks import is_dtensor
from neuralcollapse.errors import InputError, NeuralCollapseWarning, listed, one_line
from neuralcollapse.heads.fixed import FixedClassifier
from neuralcollapse.runs.tensors import read_tensors

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".tar")
"""Suffixes of files of weights; all but the first are written by torch.save."""

_HOW = "save the weights alone, with safetensors.torch.save_file or torch.save(model.state_dict(), path)"
_COMPILED = ("_orig_mod",)  # torch.compile puts this into names
_WRAPPED = ("_orig_mod", "module")  # and DataParallel this, around parts of the model
_FEW = 4  # names in a message


def check_kind(path: Path) -> None:
    """Raise unless a file of this name, or a folder of torch.distributed.checkpoint, can hold weights."""
    check_written(path)
    if not is_sharded(path) and path.suffix.lower() not in SUFFIXES:
        raise InputError(
            f"expected weights in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}, got {path}: leave it out, or {_HOW}"
        )


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, on the CPU; nothing but tensors and plain values is ever unpickled.

    The keys around a state dict become part of the names: the file {"epoch": 3, "state_dict": {"fc.weight": W}} gives
    "state_dict.fc.weight", a prefix that `fit_weights` finds. States of optimisers are left out.

    Args:
        path: a .safetensors file, or one written by `torch.save` (.pt, .pth, .ckpt, .bin, .tar); a folder written by
            torch.distributed.checkpoint; or the index of several .safetensors files (.safetensors.index.json).

    Returns:
        Name to tensor. Tensors of a torch file may be memory-mapped: keep the file while they are in use.

    Raises:
        InputError: no such file, another kind of file, a damaged file, pickled objects, or no tensors.
    """
    path = Path(path)
    check_kind(path)
    if not path.is_file() and not is_sharded(path):
        raise InputError(f"no file {path}: expected a checkpoint with the weights of a model")
    if is_sharded(path):
        content: Any = read_sharded(path)
    else:
        content = _safetensors(path) if path.suffix.lower() == ".safetensors" else _torch(path)
    weights = dict(_flat(content, ""))
    if not weights:
        raise InputError(f"{path} holds no tensors by name: expected the state dict of a model: {_HOW}")
    return weights


def _safetensors(path: Path) -> Mapping[str, Tensor]:
    try:
        return read_tensors(path)[0]
    except Exception as error:  # safetensors raises errors of its own
        raise InputError(f"cannot read {path} ({one_line(error)}): copy it again, or {_HOW}") from None


def _torch(path: Path) -> Any:
    # timm and others keep a script's options beside the weights, as a Namespace: attributes alone, no code.
    allowed = torch.serialization.safe_globals([argparse.Namespace])
    try:
        zipped = zipfile.is_zipfile(path)
        if zipped and _is_program(path):
            raise ValueError("TorchScript")  # torch before 2.6 would load its tensors
        with allowed:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # a damaged file can raise any error
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named or (isinstance(error, pickle.UnpicklingError) and "Unsupported" in str(error)):
            what = f" ({named[1]})" if named else ""
            raise InputError(f"{path} holds pickled objects{what}, which are never loaded: {_HOW}") from None
        if "TorchScript" in str(error):
            raise InputError(f"{path} is a TorchScript program, which is never loaded: {_HOW}") from None
        raise InputError(
            f"cannot read {path}, which is damaged or not written by torch.save: copy it again, or {_HOW}"
        ) from None


def _is_program(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _flat(content: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors in nested mappings, their keys joined by dots."""
    if not isinstance(content, Mapping):
        return
    for key, value in content.items():
        if not isinstance(key, str):  # optimisers have numbers as keys
            continue
        if isinstance(value, Tensor) and value.layout == torch.strided:
            yield prefix + key, value
        elif not key.startswith("optim"):
            yield from _flat(value, f"{prefix}{key}.")


def fit_weights(
    model: nn.Module, weights: Mapping[str, Tensor], source: object = "the checkpoint", *, prefix: str | None = None
) -> None:
    """Load weights into a model, in place, whatever prefix their names have.

    The prefix is the one under which the file has all of the model's weights, in the model's shapes: "module." of DDP,
    "model." of a Lightning module, "state_dict.model.", or none. Names that torch.compile adds are ignored, in the file
    and in the model, and so are wrappers around the model. The model keeps its devices and floating types. Two kinds of
    entries may be missing: tensors that share their memory with one that is there (tied weights), and the batch counts
    of batch normalisation. If an error is raised, the model is unchanged.

    Args:
        model: any module.
        weights: by name, as `read_weights` returns them.
        source: how errors call the weights, such as their file.
        prefix: the prefix, if several fit.

    Raises:
        InputError: weights that are missing, have another shape or type; a fixed classifier of another frame; several
            prefixes that fit, such as those of a model and of its moving average.
    """
    state = model.state_dict()
    own = {name: value for name, value in state.items() if isinstance(value, Tensor) and not _is_extra_state(name)}
    if not own:
        raise InputError(f"expected a model with weights, got a {type(model).__name__} without any")
    nearest: tuple[_Match, dict[str, Tensor]] | None = None
    for named, ignored in product((own, _as_transformers_saves(model, own)), (_COMPILED, _WRAPPED)):
        found, best = _find_matches(named, weights, ignored, prefix)
        if found:
            break
        if best is not None and (nearest is None or _nearness(best) > _nearness(nearest[0])):
            nearest = best, named
    else:
        raise _no_fit(own if nearest is None else nearest[1], weights, nearest and nearest[0], source, prefix)
    if len(found) > 1 and prefix is None:
        names = listed([repr(match.prefix) for match in found])
        raise InputError(
            f"{source} holds the model's weights {len(found)} times, under the prefixes {names}: choose one with prefix"
        )
    chosen = found[0]
    for path, layer in model.named_modules():
        if isinstance(layer, FixedClassifier):
            layer.check_frame(_entries_of(path, chosen.keys, weights), f"{path} in {source}")
    if chosen.unused:
        warnings.warn(
            f"the checkpoint has weights that the model does not have, left out: {listed(chosen.unused, _FEW)}",
            NeuralCollapseWarning,
            stacklevel=2,
        )
    with torch.no_grad():
        for name, key in chosen.keys.items():
            _fill(named[name], weights[key])


def _fill(own: Any, value: Tensor) -> None:
    """Copy a whole tensor into one of the model's, or this process's part of it into its part."""
    if not is_dtensor(own):
        own.copy_(value)
        return
    from torch.distributed.tensor import DTensor, Replicate

    mesh = own.device_mesh
    given = DTensor.from_local(
        value.to(own.device, own.dtype), mesh, [Replicate()] * mesh.ndim, run_check=False
    )  # every process has it, so that nothing is sent
    own.copy_(given.redistribute(placements=own.placements))


def _is_extra_state(name: str) -> bool:
    """Whether an entry is a layer's extra state (the name of a fixed frame), not a weight."""
    return name.rpartition(".")[2] == "_extra_state"


def _entries_of(path: str, keys: Mapping[str, str], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All entries of a file for the layer at a path, by name in the layer; the model may not have some of them."""
    start = f"{path}." if path else ""
    inside = {name.removeprefix(start): key for name, key in keys.items() if name.startswith(start)}
    places = {key.removesuffix(name) for name, key in inside.items() if key.endswith(name)}
    return {key.removeprefix(at): value for key, value in weights.items() for at in places if key.startswith(at)}


def _as_transformers_saves(model: nn.Module, own: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors by their names in a file, which transformers may choose to differ from those in memory."""
    library = sys.modules.get("transformers.core_model_loading")  # before transformers 5 the names were the same
    if library is None:
        return own
    kind = sys.modules["transformers"].PreTrainedModel
    path, part = next(((path, part) for path, part in model.named_modules() if isinstance(part, kind)), ("", None))
    if part is None:
        return own
    start = f"{path}." if path else ""
    inside = {name.removeprefix(start): value for name, value in own.items() if name.startswith(start)}
    try:
        saved = library.revert_weight_conversion(part, inside)
    except Exception:  # a private function: if it has changed, keep the names in memory
        return own
    known = {value.untyped_storage().data_ptr() for value in inside.values()}
    if not all(value.untyped_storage().data_ptr() in known for value in saved.values()):  # converted too
        return own
    outside = {name: value for name, value in own.items() if not name.startswith(start)}
    return outside | {start + name: value for name, value in saved.items()}


class _Match(NamedTuple):
    """How well the entries under a prefix fit a model's weights."""

    prefix: str
    keys: dict[str, str]  # the model's name to the file's
    missing: list[str]
    misfits: list[str]  # of another shape or kind
    unused: list[str]


def _find_matches(
    own: Mapping[str, Tensor], weights: Mapping[str, Tensor], ignored: Iterable[str], prefix: str | None
) -> tuple[list[_Match], _Match | None]:
    """The matches that fit, one for each set of tensors, and the one that comes nearest."""
    plain_keys = {_without(key, ignored): key for key in weights}
    wanted = None if prefix is None else _without(prefix.rstrip(".") + "." * bool(prefix), ignored)
    fitting: dict[tuple[int, ...], _Match] = {}
    nearest: _Match | None = None
    for names in _unwrapped({name: _without(name, ignored) for name in own}):
        if fitting and not any("." in name for name in names.values()):
            break  # a name such as "weight" alone would be found everywhere
        for found in [wanted] if wanted is not None else _prefixes(names.values(), plain_keys):
            match = _match(own, names, weights, plain_keys, found)
            if not match.missing and not match.misfits:
                fitting.setdefault(tuple(weights[key].data_ptr() for key in match.keys.values()), match)
            if nearest is None or _nearness(match) > _nearness(nearest):
                nearest = match
    return list(fitting.values()), nearest


def _without(name: str, ignored: Iterable[str]) -> str:
    return ".".join(part for part in name.split(".") if part not in ignored)


def _unwrapped(names: dict[str, str]) -> Iterator[dict[str, str]]:
    """The names, then the names without their first part while all share it: the model may be wrapped."""
    yield names
    while len({name.partition(".")[0] for name in names.values()}) == 1 and all("." in x for x in names.values()):
        names = {name: shown.partition(".")[2] for name, shown in names.items()}
        yield names


def _prefixes(names: Iterable[str], keys: Iterable[str]) -> list[str]:
    """The prefixes of the model's names in the file, the most frequent first."""
    wanted = set(names)
    counts: Counter[str] = Counter()
    for key in keys:
        parts = key.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in wanted:
                counts["".join(f"{part}." for part in parts[:start])] += 1
    return [prefix for prefix, _ in counts.most_common()]


def _match(
    own: Mapping[str, Tensor],
    names: Mapping[str, str],
    weights: Mapping[str, Tensor],
    plain_keys: Mapping[str, str],
    prefix: str,
) -> _Match:
    keys = {name: plain_keys[prefix + shown] for name, shown in names.items() if prefix + shown in plain_keys}
    there = {_memory(own[name]) for name in keys}
    missing = [
        name
        for name in own
        if name not in keys and not name.endswith("num_batches_tracked") and _memory(own[name]) not in there
    ]
    misfits = [name for name, key in keys.items() if not _fits(own[name], weights[key])]
    used = set(keys.values())
    unused = [
        shown
        for shown, key in plain_keys.items()
        if shown.startswith(prefix) and key not in used and not _is_extra_state(shown)
    ]
    return _Match(prefix, keys, missing, misfits, unused)


def _memory(value: Tensor) -> object:
    """A key that tensors share if they share their memory."""
    split: Any = value
    pointer = split.to_local().data_ptr() if is_dtensor(value) else value.data_ptr()
    return (pointer, value.shape, value.stride()) if pointer else id(value)


def _fits(own: Tensor, other: Tensor) -> bool:
    return own.shape == other.shape and own.is_floating_point() == other.is_floating_point()


def _nearness(match: _Match) -> tuple[int, int]:
    return len(match.keys), -len(match.misfits)


def _no_fit(
    own: Mapping[str, Tensor], weights: Mapping[str, Tensor], match: _Match | None, source: object, prefix: str | None
) -> InputError:
    under = f" under the prefix {match.prefix!r}" if match and match.prefix else ""
    if match is None or not match.keys:
        return InputError(
            f"{source} holds none of the model's weights{under}: expected {listed(list(own), _FEW)}, got "
            f"{listed(list(weights), _FEW)}: build the model that was trained"
        )
    if match.missing:
        other = "" if prefix is None else ", or leave out the prefix"
        return InputError(
            f"{source} is missing {len(match.missing)} of the model's {len(own)} weights{under}: "
            f"{listed(match.missing, _FEW)}: build the model that was trained{other}"
        )
    name = match.misfits[0]
    value = weights[match.keys[name]]
    return InputError(
        f"expected {name} as {_kind(own[name])}, got {_kind(value)} in {source}: build the model that was trained"
    )


def _kind(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
