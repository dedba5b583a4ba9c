"""A batch as the head that is measured met it: features, labels and logits, one row a sample."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neuralcollapse.capture.batches import (
    class_numbers,
    first_samples,
    real_tokens,
    to_device,
    tokens_are_labels,
    unpack,
)
from neuralcollapse.capture.hooks import Head, HeadCall, Pass, run, some_rows
from neuralcollapse.capture.layers import InnerLayer, first_tensor
from neuralcollapse.capture.linear_map import HeadMap
from neuralcollapse.capture.positions import one_position
from neuralcollapse.capture.returned import Comparison, LeastSquares, Relation, candidates, num_outputs
from neuralcollapse.checks import check_features, check_labels
from neuralcollapse.errors import InputError, NeuralCollapseWarning
from neuralcollapse.geometry.classes import LEFT_OUT, ClassSubset
from neuralcollapse.geometry.moments import kept_rows
from neuralcollapse.heads.linear import head_tensors
from neuralcollapse.heads.search import head_names

_NO_TOKEN = -100  # what libraries of language models, and torch's cross-entropy, take for "no label"
_LOGITS = 2**24  # logits that a loss takes at a time


@dataclass
class Seen:
    """One batch as the head met it, without the samples that are left out.

    Attributes:
        features: (N, d).
        labels: (N,) among the classes that are measured.
        targets: (N,) among all classes.
        layers: name -> (N, C) outputs of inner layers.
        logits: (M, K) that the model returned of all samples, those left out too.
        own: (M, K) of the head that is measured; `logits` where the model returns a linear map of the features.
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


class OtherHead(InputError):
    """The layer that was taken for the head, as nobody named one, does not make the logits: `name` does."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the model's logits are made by {name!r}: name it")
        self.name = name


class Forward:
    """Runs batches through a model and hands back what its head saw.

    Args:
        model: the network.
        head: the layer that is measured.
        others: other layers with as many outputs, which may make the logits in its place or together with it.
        layers: inner layers, by name.
        ignore_index: samples with this label are left out.
        device: where to run.
        next_token: see `neuralcollapse.measure`.
        chosen: the user named the head; otherwise another takes its place if the model returns that one's outputs.
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
        self._map = HeadMap(head.module, head.name)
        self._comparison = Comparison(head.name)
        self._pooled: Relation | None = None
        self._least_squares = LeastSquares()
        self._no_logits = ""
        self._tokens_are_labels: bool | None = None
        self.by_model = True  # whether the returned logits are those of what is measured, for NC4
        half = (each.dtype for each in model.parameters() if each.dtype in (torch.float16, torch.bfloat16))
        self.spacing = max((torch.finfo(dtype).eps for dtype in half), default=0.0)  # of what the model computes in
        first = next(model.parameters(), None)
        self.device = device or (torch.device("cpu") if first is None else first.device)

    def __call__(self, batch: Any) -> Seen:
        """Run a batch.

        Raises:
            InputError: a batch, a head or an inner layer that cannot be measured.
        """
        inputs, labels = unpack(batch)
        inputs = to_device(inputs, self.device)
        labels = class_numbers(labels).to(self.device)
        if not self.next_token and self._tokens_are_labels is not False and labels.dim() == 2:
            self._tokens_are_labels = tokens_are_labels(inputs, labels)
        labels = self._shifted(labels)
        while True:
            seen = self._run(inputs)
            if not self._switched(seen, tuple(labels.shape)):
                self._check_found(seen, inputs, labels)
                return self._samples(seen, inputs, labels)

    def labels(self, batch: Any) -> Tensor:
        """The labels of a batch, flat and without the ignored ones, with no pass through the network."""
        labels = self._shifted(class_numbers(unpack(batch)[1])).flatten()
        return labels if self.ignore_index is None else labels[labels != self.ignore_index]

    def tensors(self) -> tuple[Tensor, Tensor | None]:
        """The weight (K, d) and the bias (K,) or None that made the logits; warns where they are not the head's own.

        Raises:
            InputError: the logits are no linear function of the features.
        """
        weight, bias = self._map.tensors()
        notes = [] if self._map.is_plain else [f"the layer {self.head.name!r}: {self._map.form}"]
        relation = self._relation or Relation(self.head.name)
        if relation.kind == "scaled":
            scale = torch.as_tensor(relation.scale).to(weight)
            weight = weight * (scale[:, None] if scale.dim() else scale)
            shift = None if relation.shift is None else relation.shift.to(weight)
            bias = shift if bias is None else bias * scale if shift is None else bias * scale + shift
        elif relation.kind == "shared":
            parts = [(share, head_tensors(self.model.get_submodule(name))) for name, share in relation.heads.items()]
            weight = sum((share * rows for share, (rows, _) in parts), torch.zeros_like(weight))
            shifts = [share * shift for share, (_, shift) in parts if shift is not None]
            bias = sum(shifts, torch.zeros_like(shifts[0])) if shifts else None
        elif relation.kind == "other":
            solved = self._least_squares.solve()
            if solved is not None:
                (weight, bias), self.by_model = solved, True
                relation = Relation(self.head.name, "linear")
            elif not relation.others:
                raise InputError(
                    f"expected the model to return the outputs of {self.head.name!r}, or a linear map of its input, "
                    f"got logits that are {100 * relation.off:.3g} % off: measure a model whose logits are a linear "
                    "map of the last features"
                )
        if self._no_logits:
            notes.append(self._no_logits)
        if self._tokens_are_labels:
            notes.append(
                "the labels are the input's own tokens: for a causal language model, whose positions predict the next "
                "token, give next_token=True"
            )
        for note in (*notes, relation.words()):
            if note:
                warnings.warn(note, NeuralCollapseWarning, stacklevel=4)
        return weight, bias

    @property
    def _relation(self) -> Relation | None:
        """How what the model returns comes from the head, as far as it has been seen."""
        return self._pooled or self._comparison.relation

    def _run(self, inputs: Any) -> Pass:
        layers = {name: layer.module for name, layer in self.layers.items()}
        return run(self.model, inputs, self.head, self.others if self._comparison.needs_others else (), layers)

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

    def _switched(self, seen: Pass, shape: tuple[int, ...]) -> bool:
        """Whether another head was taken, where nobody named one and the model returns that one's outputs."""
        if self.chosen or self._relation is not None:
            return False
        called = seen.heads.get(self.head.name)
        if called is not None and _returned_at(called, seen.returned, shape) == 0:
            return False
        for other in self.others:
            theirs = seen.heads.get(other.name)
            if theirs is None or theirs.times != 1:
                continue
            if called is None or _returned_at(theirs, seen.returned, shape) == 0:
                self.others = [head for head in (self.head, *self.others) if head is not other]
                self.head, self._map = other, HeadMap(other.module, other.name)
                self._comparison = Comparison(other.name)
                return True
        return False

    def _check_found(self, seen: Pass, inputs: Any, labels: Tensor) -> None:
        """Raise OtherHead where a layer with another number of outputs makes the logits, and nobody named one."""
        if self.chosen or self._relation is not None:
            return
        shape, caught = tuple(labels.shape), seen.heads.get(self.head.name)
        most = int(labels.max()) if labels.numel() else 0
        outputs = 0 if caught is None else caught.outputs.shape[-1]
        if most < outputs and candidates(seen.returned, shape, outputs):
            return
        everything = head_names(self.model)
        heads = [Head(name, self.model.get_submodule(name)) for name in everything if name != self.head.name]
        again = run(self.model, inputs, self.head, heads)
        for name in reversed(everything):
            called = again.heads.get(name)
            if called is None or called.outputs.shape[-1] <= most or name == self.head.name:
                continue
            if _returned_at(called, again.returned, shape) is not None:
                raise OtherHead(name)

    def _samples(self, seen: Pass, inputs: Any, labels: Tensor) -> Seen:
        caught = seen.heads.get(self.head.name)
        if caught is None or caught.inputs is None or caught.times != 1:
            if self.head.name in seen.unlike:
                raise InputError(
                    f"expected the layer {self.head.name!r} to give an output for each row of (N, d) features, got "
                    f"outputs {seen.unlike[self.head.name]} of other inputs: take what it does to them out of it"
                )
            raise InputError(
                f"expected the model to call its classifier {self.head.name!r} once a batch, got "
                f"{0 if caught is None else caught.times} calls: name the layer that makes the logits"
            )
        features, own = caught.inputs, caught.outputs
        labels = labels.to(features.device)
        masks = real_tokens(inputs)
        shape = tuple(labels.shape)
        if features.dim() > 2 and shape == features.shape[:-1]:  # a label for each token
            features, own, labels = features.flatten(0, -2), own.flatten(0, -2), labels.flatten()
        elif features.dim() > 2:
            returned = candidates(seen.returned, shape, own.shape[-1])
            features, own, pooled = one_position(self.head, features, own, returned, shape, masks)
            self._pooled = self._pooled or pooled
        check_features(features)
        labels = check_labels(labels, features.shape[0])
        self._map.check(caught.some_inputs, caught.some_outputs)
        features = self._map.features(features)
        if caught.overwritten:
            weight, bias = self._map.tensors()
            own = F.linear(features, weight.to(features), None if bias is None else bias.to(features))
        logits = self._logits(seen, features, own, shape)
        layers = {
            name: layer.rows(
                seen.layers.get(name), shape, masks, partial(self._sequence_first, inputs, len(labels), name)
            )
            for name, layer in self.layers.items()
        }
        own = logits if self.by_model else own
        targets, kept = labels, None
        if self.subset is not None:
            labels = self.subset.relabel(labels, self.ignore_index)
        left_out = self.ignore_index if self.subset is None else LEFT_OUT
        if left_out is not None:
            kept = kept_rows(features, labels, left_out).nonzero().flatten()
            features, labels, targets = features[kept], labels[kept], targets[kept]
            layers = {name: values[kept] for name, values in layers.items()}
        return Seen(features, labels, targets, layers, logits, own, kept)

    def _logits(self, seen: Pass, features: Tensor, own: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The logits for accuracy and loss: the model's, after a look at how they come from the head's outputs."""
        returned = [each.to(own.device) for each in candidates(seen.returned, shape, own.shape[1])]
        if not returned:
            found = num_outputs(seen.returned)
            what = type(seen.returned).__name__ if found is None else str(found)
            self._no_logits = (
                f"the layer measured as the classifier, {self.head.name!r}, gives {own.shape[1]} outputs and the model "
                f"{what}: accuracy and loss are of that layer; name the one that makes the model's logits"
            )
            return own
        if len(own) == 0:
            return returned[0]
        picked = some_rows(len(own), own.device)
        beside = self._beside(seen, own[picked])
        logits = returned[0]
        if len(returned) > 1:
            ranks = [Relation.of(self.head.name, own[picked], each[picked], beside).rank for each in returned]
            logits = returned[ranks.index(min(ranks))]
        if self._pooled is None:
            self._comparison.add(own[picked], logits[picked], beside)
        relation = self._relation
        assert relation is not None
        self.by_model = relation.kind in ("same", "scaled", "shared")
        if relation.kind == "other":
            self._least_squares.add(features, logits)
        return logits.clamp(min=torch.finfo(logits.dtype).tiny).log() if relation.after == "softmax" else logits

    def _beside(self, seen: Pass, rows: Tensor) -> dict[str, tuple[Tensor, bool]]:
        """Name -> some outputs of the other heads, and whether they see the same features."""
        mine = seen.heads[self.head.name].some_inputs
        return {
            name: (each.some_outputs, torch.equal(each.some_inputs, mine))
            for name, each in seen.heads.items()
            if name != self.head.name and each.times == 1 and each.some_outputs.shape == rows.shape
        }

    def _sequence_first(self, inputs: Any, count: int, name: str, output: Tensor) -> bool:
        """Whether samples lie on axis 1 of a layer's output, where its sizes do not tell: from one sample fewer."""
        for axis in (0, 1):  # of the inputs, which may be sequences first too
            try:
                seen = self._run(first_samples(inputs, count - 1, axis))
            except Exception:  # the network's own, on inputs cut along the wrong axis
                continue
            head = seen.heads.get(self.head.name)
            if head is not None and len(head.outputs) == count - 1:
                fewer = tuple(first_tensor(seen.layers[name], name).shape[:2])
                first, second = output.shape[:2]
                if fewer in ((first - 1, second), (first, second - 1)):
                    return fewer[0] == first
        raise InputError(
            f"cannot tell which axis of {tuple(output.shape)} holds the {count} samples in layer {name!r}: say so, as "
            f"in layers={{{name!r}: 'NTC'}} or 'TNC' (N samples, C channels)"
        )


def _returned_at(head: HeadCall, returned: Any, shape: tuple[int, ...]) -> int | None:
    """At which place, among what may be logits, a model returned the outputs of a head as they are."""
    if head.outputs.dim() != 2 and head.outputs.shape[:-1] != shape:
        return None
    rows = head.outputs.flatten(0, -2)
    found = candidates(returned, shape, rows.shape[1])
    same = (place for place, each in enumerate(found) if each.shape == rows.shape and torch.equal(each, rows.to(each)))
    return next(same, None)
