"""Checks of the arguments of a measuring pass, before it runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from neuralcollapse.capture.hooks import Head
from neuralcollapse.errors import InputError, one_line
from neuralcollapse.heads.linear import head_outputs, head_shape
from neuralcollapse.heads.search import head_names, main_heads, named_head
from neuralcollapse.heads.split import check_not_flat


def check_model(model: Any) -> nn.Module:
    """The network, without the wrapper of torch.compile.

    Raises:
        InputError: not a module whose layers can be hooked.
    """
    if isinstance(model, torch.jit.ScriptModule | torch.jit.ScriptFunction) or type(model).__name__ in (
        "ExportedProgram",
        "AOTICompiledModel",
    ):
        raise InputError(
            f"expected a model whose layers can be hooked, got a {type(model).__name__}: give the nn.Module it was "
            "made from"
        )
    if not isinstance(model, nn.Module):
        got, hint = f"a {type(model).__name__}", "give the network itself"
        if isinstance(model, type):
            got, hint = f"the class {model.__name__}", f"make one first, as in {model.__name__}(...)"
        elif isinstance(model, Mapping):
            got = "a state dict" if any(isinstance(value, Tensor) for value in model.values()) else got
            hint = "load it into a network with load_state_dict and give that"
        elif isinstance(model, str):
            got, hint = f"the text {model!r}", "make the network and load its weights into it"
        raise InputError(f"expected the network as a torch.nn.Module, got {got}: {hint}")
    check_not_flat(model)
    inner = getattr(model, "_orig_mod", model)  # private to torch: where torch.compile keeps the module it wraps
    return inner if isinstance(inner, nn.Module) else model


def check_loader(loader: Any, name: str = "loader") -> Iterable[Any]:
    """The loader.

    Raises:
        InputError: not an iterable of batches.
    """
    expected = f"expected {name} as a loader that gives batches (inputs, labels)"
    if isinstance(loader, type):
        raise InputError(f"{expected}, got the class {loader.__name__}: make one first, as in {loader.__name__}(...)")
    if isinstance(loader, nn.Module):
        raise InputError(f"{expected}, got the network {type(loader).__name__}: are the arguments in order?")
    if isinstance(loader, Dataset) or hasattr(loader, "column_names"):
        raise InputError(
            f"{expected}, got the data set {type(loader).__name__}: wrap it in torch.utils.data.DataLoader"
        )
    can_iterate = hasattr(loader, "__iter__") or (hasattr(loader, "__getitem__") and hasattr(loader, "__len__"))
    if isinstance(loader, str | bytes | Mapping | Tensor | np.ndarray) or not can_iterate:
        got = repr(loader) if isinstance(loader, str | bytes | bool | int | float | None) else type(loader).__name__
        raise InputError(f"{expected}, got {got}: give a torch.utils.data.DataLoader of the data set")
    if isinstance(loader, Sequence) and len(loader) and isinstance(loader[0], Tensor | np.ndarray):
        raise InputError(
            f"{expected}, got a {type(loader).__name__} of arrays: give "
            "DataLoader(TensorDataset(inputs, labels), batch_size=256)"
        )
    return loader


def check_device(device: torch.device | str | int | None) -> torch.device | None:
    """The device, or None if none is given.

    Raises:
        InputError: this machine has no such device.
    """
    if device is None:
        return None
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError, ValueError) as error:
        raise InputError(
            f"expected a device that this machine has, got {str(device)!r} ({one_line(error, 120)}): give "
            "'cpu', or leave it out"
        ) from None
    return found


def find_classifier(
    model: nn.Module, classifier: str | nn.Module | None, num_classes: int | None
) -> tuple[Head, list[Head]]:
    """The head to measure, and other layers of the model with the same number of outputs.

    `classifier` is a layer or its name, an nn.Sequential that ends in the head, or None to find it.

    Raises:
        InputError: no such head, or one with a single output.
    """
    paths = {id(module): path for path, module in reversed(list(model.named_modules(remove_duplicate=False)))}
    module = (
        model.get_submodule(main_heads(model, num_classes)[0]) if classifier is None else named_head(model, classifier)
    )
    head = Head(paths[id(module)], module)
    outputs = head_outputs(module) or head_shape(module)[0]
    if outputs == 1:
        raise InputError(
            f"expected a classifier with an output for each class, got one output at {head.name!r}: a binary head of a "
            "single logit z is one of two logits (0, z): make it nn.Linear(d, 2) with a first row of zeros, or measure "
            "the features alone by measure_features"
        )
    others = [Head(name, model.get_submodule(name)) for name in head_names(model, outputs)]
    return head, [other for other in others if other.module is not module]
