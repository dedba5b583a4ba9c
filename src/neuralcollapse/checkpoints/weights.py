"""Weights from files: read without unpickling anything, and fitted into a model under whatever prefix they lie."""

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

from neuralcollapse.errors import InputError, NeuralCollapseWarning, listed, one_line
from neuralcollapse.heads.fixed import FixedClassifier
from neuralcollapse.runs.checksums import check_safetensors

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".tar")
"""What files of weights are called; all but the first are torch's."""

_HOW = "save the weights alone, with safetensors.torch.save_file or torch.save(model.state_dict(), path)"
_COMPILED = ("_orig_mod",)  # what torch.compile puts into names
_WRAPPED = ("_orig_mod", "module")  # and DataParallel, around parts of the model
_FEW = 4


def check_kind(path: Path) -> None:
    """Raise unless a file of this name can hold weights.

    Raises:
        InputError: it has another suffix.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(
            f"expected weights in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}, got {path}: leave it out, or {_HOW}"
        )


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, on the CPU; nothing but tensors and plain values is ever unpickled.

    What training scripts put around a state dict becomes part of the names: the file
    {"epoch": 3, "state_dict": {"fc.weight": W}} gives "state_dict.fc.weight", and `fit_weights` finds that prefix.
    States of optimisers are left out.

    Args:
        path: a .safetensors file, or one of torch (.pt, .pth, .ckpt, .bin, .tar).

    Returns:
        Name to tensor. Tensors of a torch file may be mapped from it: keep the file while they are in use.

    Raises:
        InputError: no such file, another kind of file, a damaged one, one with pickled objects or without tensors.
    """
    path = Path(path)
    check_kind(path)
    if not path.is_file():
        raise InputError(f"no file {path}: expected a checkpoint with the weights of a model")
    content = _safetensors(path) if path.suffix.lower() == ".safetensors" else _torch(path)
    weights = dict(_flat(content, ""))
    if not weights:
        raise InputError(f"{path} holds no tensors by name: expected the state dict of a model: {_HOW}")
    return weights


def _safetensors(path: Path) -> Mapping[str, Tensor]:
    from safetensors.torch import load_file

    try:
        check_safetensors(path)
        return load_file(path)
    except Exception as error:  # safetensors raises kinds of its own
        raise InputError(f"cannot read {path} ({one_line(error)}): copy it again, or {_HOW}") from None


def _torch(path: Path) -> Any:
    # Options of a script, which timm and others keep beside the weights: attributes and nothing that runs.
    allowed = torch.serialization.safe_globals([argparse.Namespace])
    try:
        zipped = zipfile.is_zipfile(path)
        if zipped and _is_program(path):
            raise ValueError("TorchScript")  # torch before 2.6 loads what it can of one
        with allowed:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # damaged files raise whatever their bytes lead to
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named or (isinstance(error, pickle.UnpicklingError) and "Unsupported" in str(error)):
            what = f" ({named[1]})" if named else ""
            raise InputError(f"{path} holds pickled objects{what}, which are never loaded: {_HOW}") from None
        if "TorchScript" in str(error):
            raise InputError(f"{path} is a TorchScript program, which is never loaded: {_HOW}") from None
        raise InputError(f"cannot read {path}, damaged or no file of torch: copy it again, or {_HOW}") from None


def _is_program(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _flat(content: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors in nested mappings, their keys joined by dots."""
    if not isinstance(content, Mapping):
        return
    for key, value in content.items():
        if not isinstance(key, str):  # optimisers number their states
            continue
        if isinstance(value, Tensor) and value.layout == torch.strided:
            yield prefix + key, value
        elif not key.startswith("optim"):
            yield from _flat(value, f"{prefix}{key}.")


def fit_weights(
    model: nn.Module, weights: Mapping[str, Tensor], source: object = "the checkpoint", *, prefix: str | None = None
) -> None:
    """Load weights into a model, in place, whatever stands before their names.

    The prefix is the one under which all of the model's weights are, in the model's shapes: "module." of DDP, "model."
    of a Lightning module, "state_dict.model." or none. What torch.compile adds is passed over, in the file and in the
    model, and so is what the model itself is wrapped in. The model keeps its devices and floating types. Two kinds may
    be missing: a tensor that shares its memory with one that is there (tied weights), and the batch counts of batch
    normalisation. When an error is raised the model is as it was.

    Args:
        model: any module.
        weights: by name, as of `read_weights`.
        source: what errors call the weights, such as their file.
        prefix: the prefix itself, where several would do.

    Raises:
        InputError: weights that are missing, have other shapes or are no floating-point numbers; a fixed classifier of
            another frame; several prefixes that all would do, such as those of a model and of its moving average.
    """
    state = model.state_dict()
    own = {name: value for name, value in state.items() if isinstance(value, Tensor) and not _is_note(name)}
    if not own:
        raise InputError(f"expected a model with weights, got a {type(model).__name__} without any")
    nearest: tuple[_Match, dict[str, Tensor]] | None = None
    for named, passed_over in product((own, _as_transformers_saves(model, own)), (_COMPILED, _WRAPPED)):
        found, best = _fitting(named, weights, passed_over, prefix)
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
            layer.check_frame(_held(path, chosen.keys, weights), f"{path} in {source}")
    if chosen.unused:
        warnings.warn(
            f"the checkpoint has weights that the model does not have, left out: {listed(chosen.unused, _FEW)}",
            NeuralCollapseWarning,
            stacklevel=2,
        )
    with torch.no_grad():
        for name, key in chosen.keys.items():
            named[name].copy_(weights[key])


def _is_note(name: str) -> bool:
    """Whether an entry is a layer's note on itself (the name of a fixed frame), no weight."""
    return name.rpartition(".")[2] == "_extra_state"


def _held(path: str, keys: Mapping[str, str], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All that a file holds of the layer at a path, what the model does not have included, by the names in it."""
    start = f"{path}." if path else ""
    inside = {name.removeprefix(start): key for name, key in keys.items() if name.startswith(start)}
    places = {key.removesuffix(name) for name, key in inside.items() if key.endswith(name)}
    return {key.removeprefix(at): value for key, value in weights.items() for at in places if key.startswith(at)}


def _as_transformers_saves(model: nn.Module, own: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors by the names that they get in a file, where transformers gives them others than in memory."""
    library = sys.modules.get("transformers.core_model_loading")  # not there before transformers 5, nor needed
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
    except Exception:  # no public function: where it has changed, the names are those in memory
        return own
    known = {value.untyped_storage().data_ptr() for value in inside.values()}
    if not all(value.untyped_storage().data_ptr() in known for value in saved.values()):  # converted, not renamed
        return own
    outside = {name: value for name, value in own.items() if not name.startswith(start)}
    return outside | {start + name: value for name, value in saved.items()}


class _Match(NamedTuple):
    """What a prefix has of a model's weights."""

    prefix: str
    keys: dict[str, str]  # the model's name to the file's
    missing: list[str]
    misfits: list[str]  # of another shape or kind
    unused: list[str]


def _fitting(
    own: Mapping[str, Tensor], weights: Mapping[str, Tensor], passed_over: Iterable[str], prefix: str | None
) -> tuple[list[_Match], _Match | None]:
    """The matches that fit, one for each different set of tensors, and the one that comes nearest."""
    plain_keys = {_without(key, passed_over): key for key in weights}
    wanted = None if prefix is None else _without(prefix.rstrip(".") + "." * bool(prefix), passed_over)
    fitting: dict[tuple[int, ...], _Match] = {}
    nearest: _Match | None = None
    for names in _shortened({name: _without(name, passed_over) for name in own}):
        if fitting and not any("." in name for name in names.values()):
            break  # single tensors, such as "weight", would be found everywhere
        for found in [wanted] if wanted is not None else _prefixes(names.values(), plain_keys):
            match = _match(own, names, weights, plain_keys, found)
            if not match.missing and not match.misfits:
                fitting.setdefault(tuple(weights[key].data_ptr() for key in match.keys.values()), match)
            if nearest is None or _nearness(match) > _nearness(nearest):
                nearest = match
    return list(fitting.values()), nearest


def _without(name: str, passed_over: Iterable[str]) -> str:
    return ".".join(part for part in name.split(".") if part not in passed_over)


def _shortened(names: dict[str, str]) -> Iterator[dict[str, str]]:
    """The names as they are, then without what all of them begin with, part by part: the model may be wrapped."""
    yield names
    while len({name.partition(".")[0] for name in names.values()}) == 1 and all("." in x for x in names.values()):
        names = {name: shown.partition(".")[2] for name, shown in names.items()}
        yield names


def _prefixes(names: Iterable[str], keys: Iterable[str]) -> list[str]:
    """What stands before the model's names in the file, the most frequent first."""
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
        if shown.startswith(prefix) and key not in used and not _is_note(shown)
    ]
    return _Match(prefix, keys, missing, misfits, unused)


def _memory(value: Tensor) -> object:
    """The same for tensors that share their memory."""
    pointer = value.data_ptr()
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
            f"{source} lacks {len(match.missing)} of the model's {len(own)} weights{under}: "
            f"{listed(match.missing, _FEW)}: build the model that was trained{other}"
        )
    name = match.misfits[0]
    value = weights[match.keys[name]]
    return InputError(
        f"expected {name} as {_kind(own[name])}, got {_kind(value)} in {source}: build the model that was trained"
    )


def _kind(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
