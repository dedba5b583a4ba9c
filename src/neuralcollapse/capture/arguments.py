"""What users hand to a measuring pass, checked before it runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from neuralcollapse._errors import InputError
from neuralcollapse.capture.hooks import Head
from neuralcollapse.heads import head_names, head_outputs, main_heads, named_head


def check_model(model: Any) -> nn.Module:
    """The network, out of torch.compile's wrapper.

    Raises:
        InputError: anything else than a module whose layers can be hooked.
    """
    if isinstance(model, type):
        raise InputError(
            f"expected a model, got the class {model.__name__}: make one first, as in {model.__name__}(...)"
        )
    if isinstance(model, Mapping):
        raise InputError("expected a model, got a state dict: make the network and load it by load_state_dict")
    if isinstance(model, torch.jit.ScriptModule | torch.jit.ScriptFunction) or type(model).__name__ in (
        "ExportedProgram",
        "AOTICompiledModel",
    ):
        raise InputError(
            f"expected a model whose layers can be hooked, got a {type(model).__name__}: give the nn.Module it was "
            "made from"
        )
    if not isinstance(model, nn.Module):
        if _is_loader(model):
            raise InputError(f"expected a model first, got a {type(model).__name__}: the loader comes second")
        raise InputError(f"expected a model (torch.nn.Module), got {_kind(model)}: give the network itself")
    inner = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, nn.Module) else model


def check_loader(loader: Any) -> Iterable[Any]:
    """The loader.

    Raises:
        InputError: what gives no batches.
    """
    if isinstance(loader, nn.Module):
        raise InputError(f"expected a loader of batches, got a {type(loader).__name__}: the model comes first")
    if isinstance(loader, Dataset):
        raise InputError("expected a loader of batches, got a Dataset: wrap it in torch.utils.data.DataLoader")
    bare = isinstance(loader, tuple) and len(loader) == 2 and all(isinstance(part, Tensor) for part in loader)
    if bare or isinstance(loader, Tensor | np.ndarray | Mapping | str | bytes):
        what = "one batch" if bare or isinstance(loader, Mapping) else _kind(loader)
        raise InputError(f"expected a loader of batches (inputs, labels), got {what}: give a list, [(inputs, labels)]")
    if not isinstance(loader, Iterable) and not hasattr(loader, "__getitem__"):
        raise InputError(
            f"expected a loader of batches (inputs, labels), got {_kind(loader)}: give a torch.utils.data.DataLoader"
        )
    return loader


def check_device(device: torch.device | str | int | None) -> torch.device | None:
    """The device, where one is named.

    Raises:
        InputError: no such device on this machine.
    """
    if device is None:
        return None
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError, ValueError) as error:
        raise InputError(
            f"expected a device that this machine has, got {str(device)!r} ({str(error).splitlines()[0][:120]}): give "
            "'cpu', or leave it out"
        ) from None
    return found


def find_classifier(
    model: nn.Module, classifier: str | nn.Module | None, num_classes: int | None
) -> tuple[Head, list[Head]]:
    """The head to measure, and other layers of the model with as many outputs.

    Args:
        model: the network.
        classifier: a layer or its name, an nn.Sequential that ends in the head, or None to find it.
        num_classes: K, where the user gave it.

    Raises:
        InputError: no such head, or one with a single output.
    """
    paths = {id(module): path for path, module in reversed(list(model.named_modules(remove_duplicate=False)))}
    module = (
        model.get_submodule(main_heads(model, num_classes)[0]) if classifier is None else named_head(model, classifier)
    )
    head = Head(paths[id(module)], module)
    outputs = head_outputs(module)
    if outputs == 1:
        raise InputError(
            f"expected a classifier with an output for each class, got one output at {head.name!r}: a binary head of a "
            "single logit z is one of two logits (0, z): make it nn.Linear(d, 2) with a first row of zeros, or measure "
            "the features alone by measure_features"
        )
    others = [Head(name, model.get_submodule(name)) for name in head_names(model, outputs)]
    return head, [other for other in others if other.module is not module]


def _is_loader(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping | Tensor | np.ndarray)


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return f"the text {value!r}"
    if isinstance(value, Sequence) and not value:
        return f"an empty {type(value).__name__}"
    return "None" if value is None else f"a {type(value).__name__}"
