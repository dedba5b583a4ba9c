"""One batch through a network: what its classifier and inner layers saw, caught by hooks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from neuralcollapse._checks import check_features, check_labels
from neuralcollapse._errors import InputError
from neuralcollapse.moments import kept_rows
from neuralcollapse.subset import LEFT_OUT, ClassSubset

_NO_TOKEN = -100  # what libraries of language models, and torch's cross-entropy, take for "no label"
_LOGITS = 2**24  # logits that a loss takes at a time
_LABEL_KEYS = ("labels", "label", "targets", "target", "y")


@dataclass
class Seen:
    """One batch as the classifier met it, without the samples that are left out.

    Attributes:
        features: (N, d).
        labels: (N,) among the classes that are measured.
        targets: (N,) among all classes.
        layers: name -> (N, C) outputs of inner layers.
        logits: (M, K) of all samples, those left out too.
        kept: (N,) which of them are the samples here; None for all.
    """

    features: Tensor
    labels: Tensor
    targets: Tensor
    layers: dict[str, Tensor]
    logits: Tensor
    kept: Tensor | None

    def predicted(self) -> Tensor:
        """(N,) the classes of the largest logits, among all classes."""
        classes = self.logits.argmax(1)
        return classes if self.kept is None else classes[self.kept]

    def loss(self, loss: Callable[[Tensor, Tensor], Tensor]) -> float:
        """The sum over the samples of a mean loss of logits and labels; by parts, as the logits may be large."""
        size = max(1, _LOGITS // self.logits.shape[1])
        total, start = 0.0, 0
        parts: Iterable[slice | Tensor] = [slice(first, first + size) for first in range(0, len(self.targets), size)]
        if self.kept is not None:
            parts = self.kept.split(size) if len(self.kept) else ()
        for rows in parts:
            logits = self.logits[rows].float()
            targets = self.targets[start : start + len(logits)]
            total += float(loss(logits, targets)) * len(targets)
            start += len(targets)
        return total


class Forward:
    """Runs a batch through the model and hands back what the hooked layers saw."""

    def __init__(
        self,
        model: nn.Module,
        head: nn.Module,
        layers: Mapping[str, nn.Module],
        ignore_index: int | None = None,
        device: torch.device | str | None = None,
        *,
        next_token: bool = False,
    ) -> None:
        self.model = model
        self.head = head
        self.layers = layers
        self.ignore_index = ignore_index if ignore_index is not None or not next_token else _NO_TOKEN
        self.next_token = next_token
        self.subset: ClassSubset | None = None
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

    def labels(self, batch: Any) -> Tensor:
        """The labels of a batch, flat and without the ignored ones, with no pass through the network."""
        labels = self._shifted(as_tensor(_unpack(batch)[1], "labels")).flatten()
        return labels if self.ignore_index is None else labels[labels != self.ignore_index]

    def _shifted(self, labels: Tensor) -> Tensor:
        """With `next_token`, the label of each position moved to the one before, and none for the last."""
        if not self.next_token or self.ignore_index is None:
            return labels
        if labels.dim() != 2:
            raise InputError(
                f"expected labels (N, T) of T tokens with next_token, got {tuple(labels.shape)}: leave next_token out "
                "where each sample has one label"
            )
        return torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], self.ignore_index)], 1)

    def _tidy(self, caught: dict[str, Any], labels: Any) -> Seen:
        features, logits = _tensor(caught["features"], "classifier"), _tensor(caught["logits"], "classifier")
        labels = self._shifted(as_tensor(labels, "labels").to(features.device))
        if features.dim() > 2 and labels.dim() > 1 and labels.shape == features.shape[:-1]:  # a label for each token
            features, logits, labels = features.flatten(0, -2), logits.flatten(0, -2), labels.flatten()
        check_features(features)
        labels = check_labels(labels, features.shape[0])
        layers = {name: _pool(_tensor(caught.get(name), name), len(labels), name) for name in self.layers}
        targets, kept = labels, None
        if self.subset is not None:
            labels = self.subset.relabel(labels, self.ignore_index)
        left_out = self.ignore_index if self.subset is None else LEFT_OUT
        if left_out is not None:
            kept = kept_rows(features, labels, left_out).nonzero().flatten()
            features, labels, targets = features[kept], labels[kept], targets[kept]
            layers = {name: outputs[kept] for name, outputs in layers.items()}
        return Seen(features, labels, targets, layers, logits, kept)


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
