"""A scorer on disk: moments, head and options in one safetensors file, checked when it is read, never pickled."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from neuralcollapse.checks import check_classifier
from neuralcollapse.errors import InputError, one_line
from neuralcollapse.geometry.moments import ClassMoments
from neuralcollapse.geometry.packed import packed_size
from neuralcollapse.ood.options import ScoreOptions
from neuralcollapse.runs.files import parse_json
from neuralcollapse.runs.tensors import read_tensors, write_tensors

_NAMES = ("moments", "weight", "bias", "options")
_OPTIONS_BYTES = 2**16


def write_scorer(
    path: Path, moments: ClassMoments, weight: Tensor, bias: Tensor | None, options: ScoreOptions, layer: str
) -> Path:
    """Write what a scorer is made of, whole or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    float32_means = moments.means.dtype == torch.float32
    said = json.dumps({**asdict(options), "layer": layer, "float32_means": float32_means}).encode()
    tensors = {"moments": moments.packed.cpu(), "weight": weight.cpu().contiguous()}
    tensors["options"] = torch.frombuffer(bytearray(said), dtype=torch.uint8)
    if bias is not None:
        tensors["bias"] = bias.cpu().contiguous()
    try:
        return write_tensors(path, tensors)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None


def read_scorer(path: Path) -> tuple[ClassMoments, Tensor, Tensor | None, ScoreOptions, str]:
    """What `write_scorer` wrote.

    Raises:
        InputError: no such file, or one that is damaged, was changed, or holds something else.
    """
    if not path.is_file():
        raise InputError(f"no file {path}: a scorer is written by its save()")
    try:
        tensors, _ = read_tensors(path, _NAMES)
    except Exception as error:  # safetensors raises kinds of its own
        raise InputError(f"cannot read {path}: {one_line(error)}") from None
    try:
        return _checked(tensors)
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is not a scorer that this version wrote: {one_line(error)}") from None


def _checked(tensors: dict[str, Tensor]) -> tuple[ClassMoments, Tensor, Tensor | None, ScoreOptions, str]:
    missing = [name for name in _NAMES if name not in tensors and name != "bias"]
    if missing:
        raise ValueError(f"it has no tensor {missing[0]!r}")
    packed, weight, said = (tensors[name] for name in ("moments", "weight", "options"))
    if said.dtype != torch.uint8 or said.dim() != 1 or len(said) > _OPTIONS_BYTES:
        raise ValueError("its options are no text")
    options = parse_json(bytes(said.tolist()).decode())
    if not isinstance(options, dict):
        raise ValueError("its options are no mapping")
    layer, float32_means = options.pop("layer", ""), options.pop("float32_means", False)
    if not isinstance(layer, str) or not isinstance(float32_means, bool):
        raise ValueError("its options have wrong values")
    if weight.dim() != 2 or 0 in weight.shape:
        raise ValueError(f"expected weight of shape (K, d), got {tuple(weight.shape)}")
    count, dim = weight.shape
    means_dtype = torch.float32 if float32_means else torch.float64
    if packed.dtype != torch.float64 or tuple(packed.shape) != (packed_size(count, dim, means_dtype),):
        raise ValueError(f"its moments are not those of K={count} classes in d={dim} dimensions")
    check_classifier(weight, tensors.get("bias"), count, dim)
    counts = packed[:count]
    if not bool((counts >= 0).all()) or not bool((counts == counts.round()).all()) or not bool(counts.any()):
        raise ValueError("its class counts are no counts")
    moments = ClassMoments(packed, count, dim, means_dtype)
    for values in (moments.means, moments.spreads, moments.upper.triu()):
        if not bool(torch.isfinite(values).all()):
            raise ValueError("its moments are not finite")
    return moments, weight, tensors.get("bias"), ScoreOptions.of(options), layer
