"""Forward: run batches through a model, and return the features, labels and logits of its head, one row a sample."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neuralcollapse.capture.batches import (
    class_numbers,
    to_device,
    token_masks,
    tokens_are_labels,
    truncated,
    unpack,
)
from neuralcollapse.capture.captured import CapturedBatch
from neuralcollapse.capture.hooks import Head, HeadCall, Hooks, Trace, spot_rows
from neuralcollapse.capture.layers import InnerLayer, first_tensor
from neuralcollapse.capture.linear_map import HeadMap
from neuralcollapse.capture.logits import candidates, num_outputs
from neuralcollapse.capture.positions import one_position
from neuralcollapse.capture.returned import Comparison, LeastSquares, Relation
from neuralcollapse.checks import check_features, check_labels
from neuralcollapse.errors import InputError, NeuralCollapseWarning, NumberedError
from neuralcollapse.geometry.classes import LEFT_OUT, ClassSubset
from neuralcollapse.geometry.moments import kept_rows
from neuralcollapse.heads.linear import head_tensors
from neuralcollapse.heads.search import head_names

# Rows of so many batches, or so many values, are kept before they are compared.
_UNSEEN_BATCHES, _UNSEEN_VALUES = 64, 2**22
_BY_MODEL = ("same", "scaled", "shared")
_NO_TOKEN = -100  # what libraries of language models, and torch's cross-entropy, take for "no label"


class HeadMismatch(InputError):
    """No head was named, and the logits are not made by the layer that was found but by the layer `name`."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the model's logits are made by {name!r}: name it")
        self.name = name


class Forward:
    """Runs batches through a model and returns what its head saw.

    Args (others as for `neuralcollapse.measure`):
        others: other layers with the same number of outputs, which may make the logits in its place or with it.
        chosen: whether the user named the head; if not, another one takes its place if the model returns its outputs.

    Attributes:
        by_model: whether the logits that the model returned are those of what is measured.
        spacing: the coarsest spacing (eps) of the dtypes in which the model computes; 0 for float32 and float64.
    """

    def __init__(
        self,
        model: nn.Module,
        head: Head,
        others: Iterable[Head],
        layers: Mapping[str, InnerLayer],
        ignore_index: int | None,
        device: torch.device | None,
        *,
        next_token: bool,
        chosen: bool,
    ) -> None:
        self.model = model
        self.head = head
        self.others = list(others)
        self.layers = dict(layers)
        self.ignore_index = ignore_index if ignore_index is not None or not next_token else _NO_TOKEN
        self.next_token = next_token
        self.chosen = chosen
        self.subset: ClassSubset | None = None
        self._map = HeadMap(head.module, head.name)
        self._comparison = Comparison(head.name)
        self._pooled: Relation | None = None
        self._least_squares = LeastSquares()
        self._no_logits = ""
        self._hooks: Hooks | None = None
        self._unseen: list[tuple[Sequence[int], Tensor, Tensor, Tensor, Tensor]] = []  # rows to be compared, by batch
        self._unseen_values = 0
        self._batches = 0
        self._is_plain = self._was_in_vain = False
        self._tokens_are_labels: bool | None = None
        self.by_model = True
        half = (each.dtype for each in model.parameters() if each.dtype in (torch.float16, torch.bfloat16))
        self.spacing = max((torch.finfo(dtype).eps for dtype in half), default=0.0)
        first = next(model.parameters(), None)
        self.device = device or (torch.device("cpu") if first is None else first.device)

    def __call__(self, batch: Any) -> CapturedBatch:
        """Run a batch.

        Raises:
            InputError: a batch, a head or an inner layer that cannot be measured.
        """
        self._batches += 1
        inputs, labels = unpack(batch)
        inputs = to_device(inputs, self.device)
        labels = to_device(class_numbers(labels), self.device)
        if not self.next_token and self._tokens_are_labels is not False and labels.dim() == 2:
            self._tokens_are_labels = tokens_are_labels(inputs, labels)
        labels = self._shifted(labels)
        while True:
            trace = self._traced(inputs)
            if not self._switched(trace, tuple(labels.shape)):
                self._check_found(trace, inputs, labels)
                return self._samples(trace, inputs, labels)

    def plain(self, batch: Any) -> tuple[Tensor, Tensor, Tensor] | None:
        """The (N, d) features, (N,) labels and (N, K) logits of a batch if the ones before it, and it, were all plain.

        That is: an input and a label for each of N samples, a head that is called once on a row for each of them, and
        whose output the model returns. The rows are to be given to `see`. None for other batches: call this object.
        """
        if (
            not self._is_plain
            or self._was_in_vain
            or self._hooks is None
            or self._hooks.head != self.head
            or self._hooks.others
        ):
            return None
        if type(batch) not in (tuple, list) or len(batch) < 2:
            return None
        inputs, labels = batch[0], batch[1]
        if type(inputs) is not Tensor or type(labels) is not Tensor or labels.dim() != 1 or labels.dtype != torch.int64:
            return None
        caught = self._hooks.run_plain(inputs.to(self.device, non_blocking=True))
        if caught is None or len(caught[0]) != len(labels) or len(labels) == 0:
            self._was_in_vain = True  # the network runs a second time over this batch: that must not go on
            return None
        self._batches += 1
        features, logits = caught
        return features, labels.to(features.device, non_blocking=True), logits

    def see(self, numbers: Sequence[int], features: Tensor, logits: Tensor) -> None:
        """Compare rows of plain batches with the head's map, now or later; `numbers` (n,) are of their batches."""
        self._keep((numbers, features, logits, logits, logits))

    def labels(self, batch: Any) -> Tensor:
        """The labels of a batch, flat and without the ignored ones; the network does not run."""
        labels = self._shifted(class_numbers(unpack(batch)[1])).flatten()
        return labels if self.ignore_index is None else labels[labels != self.ignore_index]

    def tensors(self) -> tuple[Tensor, Tensor | None]:
        """The weight (K, d) and the bias (K,) or None that made the logits, with a warning if the head has others.

        Raises:
            InputError: the logits are not a linear function of the features.
        """
        self.check()
        weight, bias = self._map.tensors()
        notes = [] if self._map.is_plain else [f"the layer {self.head.name!r}: {self._map.form}"]
        relation = self._relation or Relation(self.head.name)
        if relation.kind == "scaled":
            scale = torch.as_tensor(relation.scale, dtype=weight.dtype, device=weight.device)
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
        """How the returned logits follow from the outputs of the head, according to the batches so far."""
        return self._pooled or self._comparison.relation

    @property
    def batches(self) -> int:
        """The number of batches so far."""
        return self._batches

    def __enter__(self) -> Forward:
        """Inside, the model is in eval mode with hooks on it; afterwards it is as before."""
        return self

    def __exit__(self, *exc: object) -> None:
        hooks, self._hooks = self._hooks, None
        if hooks is not None:
            hooks.__exit__(*exc)

    def _traced(self, inputs: Any) -> Trace:
        others = tuple(self.others) if self._comparison.needs_others else ()
        if self._hooks is None or (self._hooks.head, self._hooks.others) != (self.head, others):
            self.__exit__()
            layers = {name: layer.module for name, layer in self.layers.items()}
            self._hooks = Hooks(self.model, self.head, others, layers).__enter__()
        return self._hooks.run(inputs)

    def _shifted(self, labels: Tensor) -> Tensor:
        """With `next_token`, the labels shifted by one position, so that the last position has none."""
        if not self.next_token or self.ignore_index is None:
            return labels
        if labels.dim() != 2:
            raise InputError(
                f"expected labels (N, T) of T tokens with next_token, got {tuple(labels.shape)}: leave next_token out "
                "where each sample has one label"
            )
        return torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], self.ignore_index)], 1)

    def _switched(self, trace: Trace, shape: tuple[int, ...]) -> bool:
        """Switch to the head whose outputs the model returns, if no head was named; whether that was done."""
        if self.chosen or self._relation is not None:
            return False
        called = trace.heads.get(self.head.name)
        if called is not None and _returned_at(called, trace.returned, shape) == 0:
            return False
        for other in self.others:
            theirs = trace.heads.get(other.name)
            if theirs is None or theirs.times != 1:
                continue
            if called is None or _returned_at(theirs, trace.returned, shape) == 0:
                self.others = [head for head in (self.head, *self.others) if head is not other]
                self.head, self._map = other, HeadMap(other.module, other.name)
                self._comparison = Comparison(other.name)
                return True
        return False

    def _check_found(self, trace: Trace, inputs: Any, labels: Tensor) -> None:
        """Raise `HeadMismatch` if no head was named and a layer with another number of outputs makes the logits."""
        if self.chosen or self._relation is not None:
            return
        shape, caught = tuple(labels.shape), trace.heads.get(self.head.name)
        most = int(labels.max()) if labels.numel() else 0
        outputs = 0 if caught is None else caught.outputs.shape[-1]
        if most < outputs and candidates(trace.returned, shape, outputs):
            return
        everything = head_names(self.model)
        heads = [Head(name, self.model.get_submodule(name)) for name in everything if name != self.head.name]
        with Hooks(self.model, self.head, heads) as hooks:
            again = hooks.run(inputs)
        for name in reversed(everything):
            called = again.heads.get(name)
            if called is None or called.outputs.shape[-1] <= most or name == self.head.name:
                continue
            if _returned_at(called, again.returned, shape) is not None:
                raise HeadMismatch(name)

    def _samples(self, trace: Trace, inputs: Any, labels: Tensor) -> CapturedBatch:
        """The batch, one row for each label: features, logits and the outputs of inner layers."""
        call, shape, masks = self._head_call(trace), tuple(labels.shape), token_masks(inputs)
        assert call.inputs is not None
        features, outputs, labels = call.inputs, call.outputs, labels.to(call.inputs.device)
        if features.dim() > 2 and shape == features.shape[:-1]:  # a label for each token
            features, outputs, labels = features.flatten(0, -2), outputs.flatten(0, -2), labels.flatten()
        elif features.dim() > 2:
            returned = candidates(trace.returned, shape, outputs.shape[-1])
            features, outputs, pooled = one_position(self.head, features, outputs, returned, shape, masks)
            self._pooled = self._pooled or pooled
        check_features(features)
        labels = check_labels(labels, features.shape[0])
        later = self._settled(trace, shape, outputs)
        if not later:
            self.check()
            self._map.check(call.spot_inputs, call.spot_outputs)
        features = self._map.features(features)
        if call.overwritten:
            weight, bias = self._map.tensors()
            outputs = F.linear(features, weight.to(features), None if bias is None else bias.to(features))
        logits = self._logits(trace, features, outputs, shape, call if later else None)
        layers = {
            name: layer.rows(
                trace.layers.get(name), shape, masks, partial(self._sequence_first, inputs, len(labels), name)
            )
            for name, layer in self.layers.items()
        }
        restricted = self.layers or self.subset is not None or self.ignore_index is not None or self.next_token
        returned = getattr(trace.returned, "logits", trace.returned)
        same = isinstance(returned, Tensor) and returned.is_set_to(call.outputs) and not call.overwritten
        self._is_plain = later and self._map.is_plain and not restricted and call.outputs.dim() == 2 and same
        return self._kept(features, labels, layers, logits, logits if self.by_model else outputs)

    def _head_call(self, trace: Trace) -> HeadCall:
        """The single call of the head.

        Raises:
            InputError: no call, several, or one that is no map of rows of features.
        """
        call = trace.heads.get(self.head.name)
        if call is not None and call.inputs is not None and call.times == 1:
            return call
        if self.head.name in trace.unlike:
            raise InputError(
                f"expected the layer {self.head.name!r} to give an output for each row of (N, d) features, got "
                f"outputs {trace.unlike[self.head.name]} of other inputs: take what it does to them out of it"
            )
        raise InputError(
            f"expected the model to call its classifier {self.head.name!r} once a batch, got "
            f"{0 if call is None else call.times} calls: name the layer that makes the logits"
        )

    def _kept(
        self, features: Tensor, labels: Tensor, layers: dict[str, Tensor], logits: Tensor, head_logits: Tensor
    ) -> CapturedBatch:
        """The batch without the samples that are left out."""
        targets, kept = labels, None
        if self.subset is not None:
            labels = self.subset.relabel(labels, self.ignore_index)
        left_out = self.ignore_index if self.subset is None else LEFT_OUT
        if left_out is not None:
            kept = kept_rows(features, labels, left_out).nonzero().flatten()
            features, labels, targets = features[kept], labels[kept], targets[kept]
            layers = {name: values[kept] for name, values in layers.items()}
        return CapturedBatch(features, labels, targets, layers, logits, head_logits, kept)

    def _logits(
        self, trace: Trace, features: Tensor, outputs: Tensor, shape: tuple[int, ...], later: HeadCall | None
    ) -> Tensor:
        """The logits for accuracy and loss: those of the model, compared with the outputs of the head, now or later."""
        returned = [each.to(outputs.device) for each in candidates(trace.returned, shape, outputs.shape[1])]
        if not returned:
            found = num_outputs(trace.returned)
            what = type(trace.returned).__name__ if found is None else str(found)
            self._no_logits = (
                f"the layer measured as the classifier, {self.head.name!r}, gives {outputs.shape[1]} outputs and the "
                f"model {what}: accuracy and loss are of that layer; name the one that makes the model's logits"
            )
            return outputs
        if len(outputs) == 0:
            return returned[0]
        picked = spot_rows(len(outputs), outputs.device)
        if later is not None:
            self._see_later(later, outputs[picked], returned[0][picked])
            return returned[0]
        beside = self._beside(trace, outputs[picked])
        logits = returned[0]
        if len(returned) > 1:
            ranks = [Relation.of(self.head.name, outputs[picked], each[picked], beside).rank for each in returned]
            logits = returned[ranks.index(min(ranks))]
        if self._pooled is None:
            self._comparison.add(outputs[picked], logits[picked], beside)
        relation = self._relation
        assert relation is not None
        self.by_model = relation.kind in _BY_MODEL
        if relation.kind == "other":
            self._least_squares.add(features, logits)
        return logits.clamp(min=torch.finfo(logits.dtype).tiny).log() if relation.after == "softmax" else logits

    def _settled(self, trace: Trace, shape: tuple[int, ...], outputs: Tensor) -> bool:
        """Whether the head and the logits were found to be plain, so that rows of a batch may be compared later."""
        relation = self._comparison.relation
        plain = relation is not None and (relation.kind, relation.after, relation.masked) == ("same", "", 0)
        settled = plain and self._pooled is None and self._map.is_found and not self._comparison.needs_others
        return settled and len(candidates(trace.returned, shape, outputs.shape[-1])) == 1

    def _see_later(self, call: HeadCall, outputs: Tensor, logits: Tensor) -> None:
        """Keep rows of a batch: comparing them waits for the device, so many batches are compared at once."""
        numbers = [self._batches] * max(len(call.spot_inputs), len(logits))
        self._keep((numbers, call.spot_inputs, call.spot_outputs.detach(), outputs.detach(), logits))

    def _keep(self, rows: tuple[Sequence[int], Tensor, Tensor, Tensor, Tensor]) -> None:
        self._unseen.append(rows)
        self._unseen_values += sum(each.numel() for each in rows[1:])
        if len(self._unseen) >= _UNSEEN_BATCHES or self._unseen_values >= _UNSEEN_VALUES:
            self.check()

    def check(self) -> None:
        """Compare the rows that were kept with the map of the head and with the returned logits.

        Raises:
            InputError: as for a batch that is compared at once, with its number.
        """
        unseen, self._unseen, self._unseen_values = self._unseen, [], 0
        if not unseen:
            return
        inputs, made, outputs, logits = (torch.cat(rows) for rows in list(zip(*unseen, strict=True))[1:])
        if self._map.fits(inputs, made) and Relation.of(self.head.name, outputs, logits).kind == "same":
            return
        for numbers, *rows in unseen:  # as they would have been compared one by one
            for number in dict.fromkeys(numbers):
                picked = [place for place, each in enumerate(numbers) if each == number]
                self._check_one(number, *(each[[place for place in picked if place < len(each)]] for each in rows))

    def _check_one(self, number: int, taken: Tensor, made: Tensor, outputs: Tensor, returned: Tensor) -> None:
        """Compare the rows of one batch, inputs and outputs of the head, and its outputs and the logits of samples."""
        try:
            self._map.check(taken, made)
        except InputError as error:
            raise NumberedError(f"batch {number}: {error}") from None
        self._comparison.add(outputs, returned, {})
        kind = self._comparison.relation.kind if self._comparison.relation else ""
        self.by_model = kind in _BY_MODEL
        if kind == "other" and len(taken) == len(returned):
            self._least_squares.add(self._map.features(taken), returned)

    def _beside(self, trace: Trace, rows: Tensor) -> dict[str, tuple[Tensor, bool]]:
        """Name -> some outputs of another head, and whether it receives the same features."""
        mine = trace.heads[self.head.name].spot_inputs
        return {
            name: (each.spot_outputs, torch.equal(each.spot_inputs, mine))
            for name, each in trace.heads.items()
            if name != self.head.name and each.times == 1 and each.spot_outputs.shape == rows.shape
        }

    def _sequence_first(self, inputs: Any, count: int, name: str, output: Tensor) -> bool:
        """Whether samples are on axis 1 of a layer's output, if its shape does not say: by a run on fewer samples."""
        for axis in (0, 1):  # of the inputs, which may be sequences first too
            try:
                trace = self._traced(truncated(inputs, count - 1, axis))
            except Exception:  # any error of the network, on inputs cut along the wrong axis
                continue
            head = trace.heads.get(self.head.name)
            if head is not None and len(head.outputs) == count - 1:
                fewer = tuple(first_tensor(trace.layers[name], name).shape[:2])
                first, second = output.shape[:2]
                if fewer in ((first - 1, second), (first, second - 1)):
                    return fewer[0] == first
        raise InputError(
            f"cannot tell which axis of {tuple(output.shape)} holds the {count} samples in layer {name!r}: say so, as "
            f"in layers={{{name!r}: 'NTC'}} or 'TNC' (N samples, C channels)"
        )


def _returned_at(head: HeadCall, returned: Any, shape: tuple[int, ...]) -> int | None:
    """The index, among the tensors that may be logits, of the one that equals the outputs of a head."""
    if head.outputs.dim() != 2 and head.outputs.shape[:-1] != shape:
        return None
    rows = head.outputs.flatten(0, -2)
    found = candidates(returned, shape, rows.shape[1])
    same = (place for place, each in enumerate(found) if each.shape == rows.shape and torch.equal(each, rows.to(each)))
    return next(same, None)
