"""One batch through a network: what its classifier and inner layers saw, caught by hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from neuralcollapse._checks import check_features, check_labels
from neuralcollapse._errors import InputError
from neuralcollapse.capture.batches import (
    call,
    class_numbers,
    first_samples,
    real_tokens,
    to_device,
    tokens_are_labels,
    unpack,
)
from neuralcollapse.capture.layers import InnerLayer, average, first_tensor
from neuralcollapse.capture.linear_map import ROWS, HeadMap
from neuralcollapse.capture.returned import LeastSquares, Relation, logits_of, num_outputs
from neuralcollapse.moments import kept_rows
from neuralcollapse.subset import LEFT_OUT, ClassSubset

_NO_TOKEN = -100  # what libraries of language models, and torch's cross-entropy, take for "no label"
_LOGITS = 2**24  # logits that a loss takes at a time


@dataclass
class Seen:
    """One batch as the classifier met it, without the samples that are left out.

    Attributes:
        features: (N, d).
        labels: (N,) among the classes that are measured.
        targets: (N,) among all classes.
        layers: name -> (N, C) outputs of inner layers.
        logits: (M, K) that the model returned of all samples, those left out too.
        own: (M, K) of the head that is measured; `logits` where the model returns those.
        kept: (N,) which of them are the samples here; None for all.
    """

    features: Tensor
    labels: Tensor
    targets: Tensor
    layers: dict[str, Tensor]
    logits: Tensor
    own: Tensor
    kept: Tensor | None

    def predicted(self) -> Tensor:
        """(N,) the classes of the largest returned logits, among all classes."""
        return self._largest(self.logits)

    def head_predicted(self) -> Tensor:
        """(N,) the classes of the head's largest outputs, among all classes."""
        return self._largest(self.own)

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

    def _largest(self, logits: Tensor) -> Tensor:
        classes = logits.argmax(1)
        return classes if self.kept is None else classes[self.kept]


@dataclass
class Head:
    """A layer that makes logits.

    Attributes:
        name: its dotted name.
        module: the layer.
        channels_first: it is a 1x1 convolution: features are on axis 1 of its input.
    """

    name: str
    module: nn.Module

    @property
    def channels_first(self) -> bool:
        weight: Any = getattr(self.module, "weight", None)
        if getattr(self.module, "channels_first", False):  # a fixed head in a convolution's place
            return True
        return isinstance(weight, Tensor) and weight.dim() > 2

    def last(self, values: Tensor) -> Tensor:
        """Its inputs or outputs with features or classes on the last axis."""
        return values.movedim(1, -1) if self.channels_first and values.dim() > 2 else values


@dataclass
class _Call:
    """What a hook saw of a head: its inputs (a copy, as the model may overwrite them) and its outputs."""

    inputs: Tensor
    outputs: Tensor
    rows: tuple[Tensor, Tensor]
    version: int
    times: int = 1


class Forward:
    """Runs a batch through the model and hands back what the hooked layers saw.

    Args:
        model: the network.
        head: the layer that is measured.
        others: other layers with as many outputs, which may make the logits in its place or together with it.
        layers: inner layers, by name.
        ignore_index: samples with this label are left out.
        device: where to run.
        next_token: see `neuralcollapse.measure`.
        chosen: the user named the head; otherwise one of the others is taken if the model returns its outputs.
    """

    def __init__(
        self,
        model: nn.Module,
        head: Head,
        others: Iterable[Head] = (),
        layers: Mapping[str, InnerLayer] | None = None,
        ignore_index: int | None = None,
        device: torch.device | None = None,
        *,
        next_token: bool = False,
        chosen: bool = True,
    ) -> None:
        self.model = model
        self.head = head
        self.others = list(others)
        self.layers = dict(layers or {})
        self.ignore_index = ignore_index if ignore_index is not None or not next_token else _NO_TOKEN
        self.next_token = next_token
        self.chosen = chosen
        self.subset: ClassSubset | None = None
        self.map = self._map()
        self.relation: Relation | None = None
        self.least_squares = LeastSquares()
        self.other_output: tuple[int, int] | None = None
        self.tokens_are_labels: bool | None = None
        first = next(model.parameters(), None)
        self.device = device or (torch.device("cpu") if first is None else first.device)

    def __call__(self, batch: Any) -> Seen:
        inputs, labels = unpack(batch)
        inputs = to_device(inputs, self.device)
        labels = class_numbers(labels).to(self.device)
        if not self.next_token and self.tokens_are_labels is not False and labels.dim() == 2:
            self.tokens_are_labels = tokens_are_labels(inputs, labels)
        labels = self._shifted(labels)
        pass_ = self._run(inputs)
        seen = self._tidy(pass_, inputs, labels)
        if seen is None:  # another head makes the logits
            return self(batch)
        return seen

    def labels(self, batch: Any) -> Tensor:
        """The labels of a batch, flat and without the ignored ones, with no pass through the network."""
        labels = self._shifted(class_numbers(unpack(batch)[1])).flatten()
        return labels if self.ignore_index is None else labels[labels != self.ignore_index]

    def _map(self) -> HeadMap:
        return HeadMap(self.head.module, self.head.name, channels_first=self.head.channels_first)

    def _run(self, inputs: Any) -> _Pass:
        """The model's output on inputs, and what its hooked layers saw."""
        seen = _Pass()
        hooks = []
        heads = [self.head, *(self.others if self.relation is None else ())]
        for head in heads:

            def on_head(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, h: Head = head) -> None:
                seen.add(h, args[0] if args else next(iter(kwargs.values())), out, whole=h is self.head)

            hooks.append(head.module.register_forward_hook(on_head, with_kwargs=True))
        for name, layer in self.layers.items():

            def on_layer(_: nn.Module, __: Any, out: Any, name: str = name, layer: InnerLayer = layer) -> None:
                seen.layers[name] = _copied(out)  # an in-place layer may overwrite it next

            hooks.append(layer.module.register_forward_hook(on_layer))
        try:
            with _eval_mode(self.model), torch.no_grad():
                seen.returned = call(self.model, inputs)
        finally:
            for hook in hooks:
                hook.remove()
        return seen

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

    def _tidy(self, seen: _Pass, inputs: Any, labels: Tensor) -> Seen | None:
        """The samples of a pass; None where another head turned out to make the logits."""
        caught = seen.heads.get(self.head.name)
        if caught is None or caught.times != 1:
            if caught is None and not self.chosen and self._switch(seen):
                return None
            raise InputError(
                f"expected the model to call its classifier {self.head.name!r} once a batch, got "
                f"{0 if caught is None else caught.times} calls: name the layer that makes the logits"
            )
        features, outputs = self.head.last(caught.inputs), self.head.last(caught.outputs)
        if features.device != labels.device:
            labels = labels.to(features.device)
        masks = real_tokens(inputs)
        shape, num_classes = tuple(labels.shape), outputs.shape[-1]
        by_position = features.dim() > 2 and shape == features.shape[:-1]  # a label for each token
        if by_position:
            features, own = features.flatten(0, -2), outputs.flatten(0, -2)
            labels = labels.flatten()
        elif features.dim() == 2:
            own = outputs
        else:
            returned = logits_of(seen.returned, shape, num_classes)
            features, own = self._one_position(features, outputs, returned, shape, masks)
        check_features(features)
        labels = check_labels(labels, features.shape[0])
        if caught.outputs._version != caught.version and own.data_ptr() == caught.outputs.data_ptr():
            own = self._recomputed(features)
        returned = logits_of(seen.returned, shape, num_classes, own)
        found = num_outputs(seen.returned)
        if returned is None and found is not None and found != num_classes:
            self.other_output = (num_classes, found)
        self.map.check(*caught.rows)
        features = self.map.form.features(features) if self.map.form is not None else features
        logits = own if returned is None else self._related(seen, features, own, returned)
        if logits is None:
            return None
        layers = {
            name: layer.rows(seen.layers.get(name), shape, masks, lambda name=name: self._sequence_first(inputs, name))
            for name, layer in self.layers.items()
        }
        targets, kept = labels, None
        if self.subset is not None:
            labels = self.subset.relabel(labels, self.ignore_index)
        left_out = self.ignore_index if self.subset is None else LEFT_OUT
        if left_out is not None:
            kept = kept_rows(features, labels, left_out).nonzero().flatten()
            features, labels, targets = features[kept], labels[kept], targets[kept]
            layers = {name: values[kept] for name, values in layers.items()}
        return Seen(features, labels, targets, layers, logits, own, kept)

    def _one_position(
        self,
        features: Tensor,
        outputs: Tensor,
        returned: Tensor | None,
        shape: tuple[int, ...],
        masks: Mapping[str, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """(N, d) features and (N, K) outputs of a head that sees several positions, for labels of whole samples.

        The model picks a position (the last token of a sentence) or takes a mean: which, the returned logits tell.
        """
        h, z = features.flatten(1, -2), outputs.flatten(1, -2)
        if h.shape[1] == 1:
            return h[:, 0], z[:, 0]
        if len(shape) != 1 or shape[0] != len(h) or (returned is None and not self.head.channels_first):
            check_features(features)  # raises: neither a row a sample nor one a label
        if returned is not None and len(h):
            same = (z.to(returned.dtype) == returned[:, None]).all(2)
            if bool(same.any(1).all()):
                last = same.shape[1] - 1 - same.flip(1).int().argmax(1)  # of equal positions the last
                rows = torch.arange(len(h), device=h.device)
                return h[rows, last], z[rows, last]
            for mask in (*(mask for mask in masks.values() if mask.shape == h.shape[:2]), None):
                mean = average(z, mask)
                if Relation.found("", mean, returned, {}).kind in ("same", "softmax"):
                    return average(h, mask), mean
        if self.head.channels_first:
            return average(h, None), average(z, None)
        raise InputError(
            f"the layer {self.head.name!r} gives logits for each of {h.shape[1]} positions and the model returns "
            "one row a sample, which is neither one of them nor their mean: give labels for each position, or name "
            "the layer that makes the model's logits"
        )

    def _related(self, seen: _Pass, features: Tensor, own: Tensor, returned: Tensor) -> Tensor | None:
        """The logits for accuracy and loss, after a look at how they come from the head; None for another head."""
        if len(returned) == 0:
            return returned
        picked = torch.linspace(0, len(own) - 1, min(ROWS, len(own)), device=own.device).long()
        z, r = own[picked], returned[picked].to(own.device)
        if self.relation is None:
            rows = {
                name: call_.rows[1]
                for name, call_ in seen.heads.items()
                if name != self.head.name and call_.rows[1].shape == z.shape and call_.times == 1
            }
            self.relation = Relation.found(self.head.name, z, r, rows)
            if self.relation.kind == "heads":
                if not self.chosen and len(self.relation.heads) == 1 and self._switch(seen):
                    return None
                self._fold(seen)
        elif not self.relation.holds(z, r):
            self.relation = Relation.found(self.head.name, z, r, {})
        if self.relation.kind == "other":
            self.least_squares.add(features, returned)
        return own if self.relation.kind == "softmax" else returned

    def _fold(self, seen: _Pass) -> None:
        """Note which of several heads see the same features: a sum of theirs is a head of its own."""
        mine = seen.heads[self.head.name].rows[0]
        assert self.relation is not None
        names = [name for name in self.relation.heads if torch.equal(seen.heads[name].rows[0], mine)]
        if len(names) == len(self.relation.heads):
            self.relation.same_input = True

    def _switch(self, seen: _Pass) -> bool:
        """Take the head that makes the returned logits, where nobody named one."""
        names = list(self.relation.heads) if self.relation is not None else list(seen.heads)
        found = [head for head in self.others if head.name in names and seen.heads[head.name].times == 1]
        if not found:
            return False
        self.others = [head for head in [self.head, *self.others] if head is not found[-1]]
        self.head, self.relation = found[-1], None
        self.map = self._map()
        return True

    def _recomputed(self, features: Tensor) -> Tensor:
        """The head's outputs again, where the model has overwritten them."""
        from neuralcollapse.classifier import head_tensors

        weight, bias = head_tensors(self.head.module)
        return nn.functional.linear(features, weight.to(features.dtype), None if bias is None else bias.to(features))

    def _sequence_first(self, inputs: Any, name: str) -> bool:
        """Whether a layer's outputs have samples on axis 1: with one sample fewer, that axis is shorter."""
        layer = self.layers[name]
        for axis in (0, 1):  # samples may lie along axis 1 of the inputs too
            size = {len(value) for value in _tensors_in(inputs)} if axis == 0 else {2}
            count = max(size, default=0) - 1 if axis == 0 else self._batch - 1
            ...
        return False
