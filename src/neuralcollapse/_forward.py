"""One batch through a network: what its classifier and inner layers saw, caught by hooks."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from neuralcollapse._checks import check_features, check_labels
from neuralcollapse._errors import InputError
from neuralcollapse.moments import kept_rows

_LABEL_KEYS = ("labels", "label", "targets", "target", "y")


@dataclass
class Seen:
    """One batch as the classifier met it, without the ignored samples."""

    features: Tensor
    labels: Tensor
    logits: Tensor
    layers: dict[str, Tensor]


class Forward:
    """Runs a batch through the model and hands back what the hooked layers saw."""

    def __init__(
        self,
        model: nn.Module,
        head: nn.Module,
        layers: Mapping[str, nn.Module],
        ignore_index: int | None,
        device: torch.device | str | None,
    ) -> None:
        self.model = model
        self.head = head
        self.layers = layers
        self.ignore_index = ignore_index
        self.other_output: tuple[int, int] | None = None
        first = next(model.parameters(), None)
        self.device = torch.device(device) if device else torch.device("cpu") if first is None else first.device

    def __call__(self, batch: Any) -> Seen:
        inputs, labels = _unpack(batch)
        caught: dict[str, Any] = {}

        def on_head(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            caught["calls"] = caught.get("calls", 0) + 1
            caught["features"] = args[0] if args else next(iter(kwargs.values()))
            caught["logits"] = output

        hooks = [self.head.register_forward_hook(on_head, with_kwargs=True)]
        for name, layer in self.layers.items():

            def on_layer(_: nn.Module, args: tuple[Any, ...], output: Any, name: str = name) -> None:
                caught[name] = _tensor(output, name).clone()  # an in-place layer may overwrite it next

            hooks.append(layer.register_forward_hook(on_layer))
        try:
            with _eval_mode(self.model), torch.no_grad():
                inputs = _to(inputs, self.device)
                returned = _call(self.model, inputs)
        finally:
            for hook in hooks:
                hook.remove()
        if caught.get("calls") != 1:
            raise InputError(
                f"expected the model to call its classifier once a batch, got {caught.get('calls', 0)} calls: "
                "name the layer that makes the logits"
            )
        seen = self._tidy(caught, _to(labels, self.device))
        if isinstance(returned, Tensor) and returned.dim() > 1 and returned.shape[-1] != caught["logits"].shape[-1]:
            self.other_output = (caught["logits"].shape[-1], returned.shape[-1])
        return seen

    def _tidy(self, caught: dict[str, Any], labels: Any) -> Seen:
        features, logits = _tensor(caught["features"], "classifier"), _tensor(caught["logits"], "classifier")
        labels = as_tensor(labels, "labels").to(features.device)
        if features.dim() > 2 and labels.dim() > 1 and labels.shape == features.shape[:-1]:  # a label for each token
            features, logits, labels = features.flatten(0, -2), logits.flatten(0, -2), labels.flatten()
        check_features(features)
        labels = check_labels(labels, features.shape[0])
        layers = {name: _pool(_tensor(caught.get(name), name), len(labels), name) for name in self.layers}
        if self.ignore_index is not None:
            keep = kept_rows(features, labels, self.ignore_index)
            features, labels, logits = features[keep], labels[keep], logits[keep]
            layers = {name: outputs[keep] for name, outputs in layers.items()}
        return Seen(features, labels, logits, layers)


def _unpack(batch: Any) -> tuple[Any, Any]:
    """(inputs, labels) of a batch."""
    if isinstance(batch, Mapping):
        for key in _LABEL_KEYS:
            if key in batch:
                return {name: value for name, value in batch.items() if name != key}, batch[key]
        raise InputError(f"expected a batch with labels under one of {_LABEL_KEYS}, got the keys {sorted(batch)}")
    if isinstance(batch, Sequence) and len(batch) >= 2:
        return batch[0], batch[1]
    raise InputError(f"expected a batch (inputs, labels) or a dict with labels, got {type(batch).__name__}")


def _call(model: nn.Module, inputs: Any) -> Any:
    """The model's output; a dict of inputs goes in by keyword."""
    if not isinstance(inputs, Mapping):
        return model(inputs)
    try:
        inspect.signature(model.forward).bind(**inputs)
    except TypeError as error:
        raise InputError(
            f"the batch's keys {sorted(inputs)} do not fit the model's forward ({error}): rename them, or let the "
            "loader give (inputs, labels)"
        ) from None
    return model(**inputs)


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return {name: _to(item, device) for name, item in value.items()}
    return value


def _tensor(output: Any, name: str) -> Tensor:
    """The tensor of a layer's output, which may be a tuple or an object with fields."""
    if isinstance(output, Mapping) and output:
        output = next(iter(output.values()))
    while isinstance(output, Sequence) and len(output):
        output = output[0]
    if not isinstance(output, Tensor):
        raise InputError(
            f"expected a tensor from layer {name!r}, got {type(output).__name__}: is it called in forward?"
        )
    return output.detach()


def _pool(outputs: Tensor, count: int, name: str) -> Tensor:
    """(N, ...) outputs of an inner layer as (N, C): averaged over positions, or a row for each token."""
    if outputs.dim() == 4:
        outputs = outputs.mean((2, 3))
    elif outputs.dim() == 3:
        outputs = outputs.flatten(0, 1) if outputs.shape[0] * outputs.shape[1] == count else outputs.mean(1)
    if outputs.dim() != 2 or outputs.shape[0] != count:
        raise InputError(
            f"expected layer {name!r} to give one output for each of {count} samples, got {tuple(outputs.shape)}"
        )
    return outputs


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, and uncompiled, as compiled modules may skip hooks; afterwards every submodule is as it was."""
    modes = [(module, module.training, module._compiled_call_impl) for module in model.modules()]
    model.eval()
    for module, _, compiled in modes:
        if compiled is not None:
            module._compiled_call_impl = None
    try:
        yield
    finally:
        for module, training, compiled in modes:
            module.training = training
            if compiled is not None:
                module._compiled_call_impl = compiled


def as_tensor(values: Any, name: str) -> Tensor:
    """A tensor of an array or list of numbers; `name` says in errors what it is."""
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"expected {name} as an array of numbers: {str(error).splitlines()[0]}") from None
