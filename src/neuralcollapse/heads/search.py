"""Which layers of a model are its heads: those that it declares, that have the name of a head, or that a user names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from torch import nn

from neuralcollapse.errors import InputError, did_you_mean, listed
from neuralcollapse.heads.fixed import FixedClassifier
from neuralcollapse.heads.linear import head_axis, head_outputs, head_tensors, why_no_head

_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
_HEAD = re.compile(r"^(heads?|classif|logits|score|aux)|(heads?|classifier)\d*$", re.IGNORECASE)
_LAST = re.compile(r"^(fc|out|output|output_layer|last_linear)$", re.IGNORECASE)
_AUXILIARY = re.compile(r"^aux|_aux$|^aux_|_aux_", re.IGNORECASE)
_PASSED = (nn.Dropout, nn.Identity, nn.Flatten, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)


def head_names(model: nn.Module, num_outputs: int | None = None) -> list[str]:
    """Dotted names of the layers that may be heads, in the order in which the model registers them.

    Candidates are the layers that `head_tensors` accepts, without projections inside attention (unless there are no
    others). A layer with a LoRA adapter is a single candidate, and so is a parametrised one (weight_norm,
    spectral_norm).

    Only layers with `num_outputs` outputs count. Without that number, 1x1 convolutions count only if no other candidate
    comes after them, since many networks are full of them.
    """
    found = list(_candidates(model))
    if num_outputs is not None:
        found = [(path, layer) for path, layer in found if head_outputs(layer) == num_outputs]
    else:
        convolution = [head_axis(layer) != -1 and not isinstance(layer, FixedClassifier) for _, layer in found]
        last = max((index for index, is_one in enumerate(convolution) if not is_one), default=-1)
        found = [pair for index, pair in enumerate(found) if index >= last or not convolution[index]]
    outside = [path for path, _ in found if not _ATTENTION.search(path)]
    return outside or [path for path, _ in found]


def find_heads(model: nn.Module, num_classes: int | None = None) -> list[str]:
    """Dotted names of all heads of the model: those that it declares, and others of K outputs named like heads.

    A model declares its heads by `get_classifier` (timm), `get_output_embeddings` (language models of transformers) or
    `classifier_name` (networks of this package). If it does not, the head is the last layer of K outputs, or the last
    of those named like a head (head, classifier, fc, ...) if there are any. Others of K outputs count if they have
    names like head_dist, aux_head, distillation_classifier or AuxLogits.

    K is `num_classes`. By default it is what the model says (`config.num_labels`, `num_classes`), or else the number of
    outputs of the head found. The names are in order of registration; "" is the model itself.

    Raises:
        InputError: no layer may be a head, none has K outputs, or without K several layers named like heads have
            different numbers of outputs.
    """
    everything = head_names(model)
    declared = _declared(model, num_classes)
    said = _said_classes(model) if num_classes is None and not declared else num_classes
    if not everything or (said == 0 and not declared):
        raise InputError(
            f"expected a network with a last nn.Linear{'' if not said else f' of {said} outputs (the classes)'}, got "
            f"{'one' if everything else 'one without any nn.Linear or 1x1 convolution'} ({type(model).__name__})"
            f"{' built with num_classes=0' if said == 0 else ''}: end it with one"
        )
    if not declared:
        names = everything if said is None else head_names(model, said)
        outputs = head_outputs(model.get_submodule(everything[-1]))
        if not names and num_classes is None and outputs != 1:  # a replaced head may have another K than the model says
            names = [name for name in everything if _is_called_head(name)]
        if not names:
            raise InputError(
                f"expected a last nn.Linear of {said} outputs (the classes), got {outputs} outputs at "
                f"{everything[-1]!r}: "
                + (
                    "for two classes use two outputs with cross_entropy"
                    if (said, outputs) == (2, 1)
                    else "have the network take its number of classes from num_classes, or name its head"
                )
            )
        likely = [name for name in names if _is_called_head(name)]
        _check_alike(model, likely)
        declared = (likely or names)[-1:]
    outputs = head_outputs(model.get_submodule(declared[-1]))
    called = [name for name in head_names(model, outputs) if any(_HEAD.search(part) for part in name.split("."))]
    called = [name for name in called if not _goes_on(model, name, everything)]
    order = {path: index for index, (path, _) in enumerate(_candidates(model))}
    return sorted({*declared, *called}, key=order.__getitem__)


def _goes_on(model: nn.Module, name: str, everything: list[str]) -> bool:
    """Whether a layer is in an nn.Sequential with another candidate after it, and so makes the input of that one."""
    words = name.split(".")
    for depth in range(len(words)):
        place = "".join(f"{word}." for word in words[:depth])
        if isinstance(model.get_submodule(place.rstrip(".")), nn.Sequential):
            inside = [other for other in everything if other.startswith(place)]
            if inside and not f"{inside[-1]}.".startswith(f"{place}{words[depth]}."):
                return True
    return False


def _check_alike(model: nn.Module, likely: list[str]) -> None:
    """Raise if layers named like heads, in different parts of the model, have different numbers of outputs."""
    parts: dict[str, str] = {}
    for name in likely:
        if not _is_auxiliary(name):
            words = name.split(".")
            first = next(index for index, word in enumerate(words) if _HEAD.search(word) or _LAST.search(word))
            parts[".".join(words[: first + 1])] = name  # the last of a part, such as the end of an nn.Sequential
    outputs = {name: head_outputs(model.get_submodule(name)) for name in parts.values()}
    if len(set(outputs.values())) > 1:
        shown = listed([f"{name} ({count} outputs)" for name, count in outputs.items()])
        raise InputError(f"{type(model).__name__} has several heads: {shown}: name one of them")


def find_head(model: nn.Module, num_classes: int | None = None) -> str:
    """The dotted name of the layer that makes the model's logits; arguments as for `find_heads`.

    Auxiliary heads, which only help training, do not count.

    Raises:
        InputError: no such layer, or several, which the message names.
    """
    main = main_heads(model, num_classes)
    if len(main) > 1:
        raise InputError(
            f"{type(model).__name__} has {len(main)} heads of {head_outputs(model.get_submodule(main[0]))} outputs: "
            f"{listed(main)}: name one of them"
        )
    return main[0]


def main_heads(model: nn.Module, num_classes: int | None = None) -> list[str]:
    """`find_heads` without auxiliary heads, unless all are auxiliary."""
    heads = find_heads(model, num_classes)
    return [name for name in heads if not _is_auxiliary(name)] or heads


def _is_called_head(name: str) -> bool:
    return any(_HEAD.search(part) or _LAST.search(part) for part in name.split("."))


def _is_auxiliary(name: str) -> bool:
    return any(_AUXILIARY.search(part) for part in name.split("."))


def find_module(model: nn.Module, name: str | nn.Module) -> nn.Module:
    """The submodule with a dotted name (or the submodule itself); errors list the linear layers that exist."""
    known = dict(model.named_modules(remove_duplicate=False))
    if isinstance(name, nn.Module):
        if any(module is name for module in known.values()):
            return name
        raise InputError(f"expected a layer of the model or its name, got a {type(name).__name__} outside the model")
    if not isinstance(name, str):
        raise InputError(f"expected a layer's name, such as 'fc', got {name!r}")
    if name in known and (name or head_outputs(model) is not None):
        return known[name]
    linear = head_names(model)
    hint = did_you_mean(name, [path for path in known if path]) if name else ""
    raise InputError(
        f"the model ({type(model).__name__}) has no layer {name!r}{hint}; its linear layers: "
        f"{listed(linear[-8:]) or 'none'}"
    )


def named_head(model: nn.Module, name: str | nn.Module) -> nn.Module:
    """The head with a dotted name: the last layer of an nn.Sequential, and the copy that runs of peft's wrapper.

    Raises:
        InputError: no layer of that name, or one that is not a linear head.
    """
    layer = found = find_module(model, name)
    while True:
        unused = _unused(found)
        if isinstance(found, nn.Sequential):
            inside = [part for part in found if not isinstance(part, _PASSED)]
        elif unused:
            copies: Any = found
            all_copies = (copies.original_module, *copies.modules_to_save.values())
            inside = [part for part in all_copies if all(part is not other for other in unused)]
        else:
            break
        if not inside:
            break
        found = inside[-1]
    if head_outputs(found) is None and not _has_weight(found):
        raise InputError(
            f"expected {name if isinstance(name, str) else 'the layer'!r} to be an nn.Linear or a 1x1 convolution, got "
            f"{type(layer).__name__}{why_no_head(layer)}; the model's linear layers: "
            f"{listed(head_names(model)[-8:]) or 'none'}"
        )
    return found


def _has_weight(module: nn.Module) -> bool:
    """Whether a layer that the search leaves out, as it contains others (a dropout), is a head when it is named."""
    if "embedding" in type(module).__name__.lower():
        return False
    try:
        return head_tensors(module)[0].is_floating_point()
    except InputError:
        return False


def _candidates(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Names and layers that may be heads, without the layers inside them."""
    inside = ""
    unused: set[int] = set()
    for path, module in model.named_modules():
        if inside and path.startswith(inside):
            continue
        unused |= set(map(id, _unused(module)))
        if id(module) in unused or isinstance(module, nn.MultiheadAttention):
            inside = f"{path}."
        elif head_outputs(module) is not None:
            yield path, module
            inside = f"{path}."


def _unused(module: nn.Module) -> list[nn.Module]:
    """The copies that do not run of a layer that peft trains as a whole (modules_to_save)."""
    original, copies = getattr(module, "original_module", None), getattr(module, "modules_to_save", None)
    if not isinstance(original, nn.Module) or not isinstance(copies, nn.ModuleDict):
        return []
    active = [] if getattr(module, "disable_adapters", False) else getattr(module, "active_adapters", [])
    runs = next((copies[name] for name in active if name in copies), original)
    return [part for part in (original, *copies.values()) if part is not runs]


def _said_classes(model: nn.Module) -> int | None:
    """The number of classes that the model itself declares."""
    model = _unwrapped(model)
    for holder, name in ((getattr(model, "config", None), "num_labels"), (model, "num_classes")):
        value = getattr(holder, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
    return None


def _unwrapped(model: Any) -> Any:
    """The model without the wrappers of torch.compile and of data parallelism."""
    while True:
        inner = getattr(model, "_orig_mod", None)  # private to torch: where torch.compile keeps the module it wraps
        if inner is None and type(model).__name__ in ("DataParallel", "DistributedDataParallel"):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def _declared(model: nn.Module, num_classes: int | None) -> list[str]:
    """Names of the heads that the model itself declares."""
    own: Any = _unwrapped(model)
    said: list[Any] = []
    name = getattr(own, "classifier_name", None)
    if isinstance(name, str):
        with suppress(AttributeError):
            said = [own.get_submodule(name)]
    for ask in ("get_output_embeddings", "get_classifier"):
        if not said and callable(getattr(own, ask, None)):
            with suppress(Exception):  # models without a head may raise anything
                answer = getattr(own, ask)()
                said = list(answer) if isinstance(answer, tuple | list) else [answer]
    said = [part for part in said if isinstance(part, nn.Module)]
    wanted = num_classes or _said_classes(own)
    found = []
    for part in said:
        inside = {id(layer) for layer in part.modules()}
        paths = [(path, layer) for path, layer in _candidates(model) if id(layer) in inside]
        fitting = [path for path, layer in paths if head_outputs(layer) == wanted]
        if num_classes is None and not fitting:
            fitting = [path for path, _ in paths[-1:]]
        found += fitting if isinstance(part, nn.ModuleList) else fitting[-1:]
    return found
