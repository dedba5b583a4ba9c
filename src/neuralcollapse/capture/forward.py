"""Forward: run batches through a model, and return the features, labels and logits of its head, one row a sample."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neuralcollapse.capture.agreement import Agreement
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
from neuralcollapse.capture.logits import candidates, num_outputs
from neuralcollapse.capture.positions import one_position
from neuralcollapse.capture.returned import Relation
from neuralcollapse.capture.team import HeadMismatch, Team
from neuralcollapse.checks import check_features, check_labels, moved
from neuralcollapse.errors import InputError
from neuralcollapse.geometry.classes import LEFT_OUT, ClassSubset
from neuralcollapse.geometry.intake import kept_rows
from neuralcollapse.heads.search import head_names

_NO_TOKEN = -100  # what libraries of language models, and torch's cross-entropy, take for "no label"


class Forward:
    """Runs batches through a model and returns what its head saw.

    Args (others as for `neuralcollapse.measure`):
        others: other layers with the same number of outputs, which may make the logits in its place or with it.
        chosen: whether the user named the head; if not, another one takes its place if the model returns its outputs.

    Attributes:
        spacing: the coarsest spacing (eps) of the dtypes in which the model computes; 0 for float32 and float64.
        rows: how many rows the head has seen.
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
        team: Team | None = None,
    ) -> None:
        self.model = model
        self.head = head
        self.others = list(others)
        self.layers = dict(layers)
        self.ignore_index = ignore_index if ignore_index is not None or not next_token else _NO_TOKEN
        self.next_token = next_token
        self.chosen = chosen
        self.subset: ClassSubset | None = None
        self._team = team or Team(joins=False, in_step=False)
        self._agreement = Agreement(head)
        self._hooks: Hooks | None = None
        self._batches = self.rows = 0
        self._is_plain = self._was_in_vain = False
        self._tokens_are_labels: bool | None = None
        half = (each.dtype for each in model.parameters() if each.dtype in (torch.float16, torch.bfloat16))
        self.spacing = max((torch.finfo(dtype).eps for dtype in half), default=0.0)
        first = next(model.parameters(), None)
        self.device = device or (torch.device("cpu") if first is None else first.device)
        mesh = getattr(first, "device_mesh", None)
        if device is None and mesh is not None and mesh.device_type != self.device.type:  # weights that wait on the CPU
            self.device = torch.empty(0, device=mesh.device_type).device
        self._team.inputs_on = self.device

    def __call__(self, batch: Any) -> CapturedBatch:
        """Run a batch.

        Raises:
            InputError: a batch, a head or an inner layer that cannot be measured.
        """
        self._batches += 1
        inputs, labels = unpack(batch)
        labels = class_numbers(labels)  # where they are: looking at those on the CPU waits for nothing
        if not self.next_token and self._tokens_are_labels is not False and labels.dim() == 2:
            self._tokens_are_labels = tokens_are_labels(inputs, labels)
        inputs, labels = to_device(inputs, self.device), self._shifted(labels)
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
        caught = self._hooks.run_plain(moved(inputs, self.device))
        if caught is None or len(caught[0]) != len(labels) or len(labels) == 0:
            self._was_in_vain = True  # the network runs a second time over this batch: that must not go on
            return None
        self._batches += 1
        self.rows += len(labels)
        features, logits = caught
        return features, moved(labels, features.device), logits

    def see(self, numbers: Sequence[int], features: Tensor, logits: Tensor) -> None:
        """Compare rows of plain batches with the head's map, now or later; `numbers` (n,) are of their batches."""
        self._agreement.keep((numbers, features, logits, logits, logits))

    def labels(self, batch: Any) -> Tensor:
        """The labels of a batch on the CPU, flat and without the ignored ones; the network does not run."""
        labels = self._shifted(class_numbers(unpack(batch)[1]).cpu()).flatten()
        return labels if self.ignore_index is None else labels[labels != self.ignore_index]

    def tensors(self) -> tuple[Tensor, Tensor | None]:
        """The weight (K, d) and the bias (K,) or None that made the logits, with a warning if the head has others.

        Raises:
            InputError: the logits are not a linear function of the features.
        """
        notes = []
        if self._tokens_are_labels:
            notes.append(
                "the labels are the input's own tokens: for a causal language model, whose positions predict the next "
                "token, give next_token=True"
            )
        return self._agreement.tensors(self.model, notes)

    def tell(self, head: str, *, by_model: bool) -> None:
        """What another process found, which counts in this one too."""
        if self.rows == 0:  # otherwise the heads are the same
            self.head = Head(head, self.model.get_submodule(head))
            self._agreement = Agreement(self.head)
        self._agreement.by_model = by_model

    @property
    def is_plain(self) -> bool:
        """Whether the head's own weight and bias made the logits that the model returned, in all rows so far."""
        return self._agreement.is_plain

    @property
    def by_model(self) -> bool:
        """Whether the logits that the model returned are those of what is measured."""
        return self._agreement.by_model

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

    def idle(self, inputs: Any) -> None:
        """Run the model on inputs that this process has no use for, because others cannot run it alone."""
        self._hooked().run(inputs, idle=True)

    def _traced(self, inputs: Any) -> Trace:
        return self._hooked().run(inputs)

    def _hooked(self) -> Hooks:
        others = tuple(self.others) if self._agreement.comparison.needs_others else ()
        if self._hooks is None or (self._hooks.head, self._hooks.others) != (self.head, others):
            self.__exit__()
            layers = {name: layer.module for name, layer in self.layers.items()}
            self._hooks = Hooks(self.model, self.head, others, layers, self._team.before_pass).__enter__()
        return self._hooks

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
        if self.chosen or self._agreement.relation is not None:
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
                self.head, self._agreement = other, Agreement(other)
                return True
        return False

    def _check_found(self, trace: Trace, inputs: Any, labels: Tensor) -> None:
        """Raise `HeadMismatch` if no head was named and a layer with another number of outputs makes the logits."""
        if self.chosen or self._agreement.relation is not None:
            return
        shape, caught = tuple(labels.shape), trace.heads.get(self.head.name)
        most = int(labels.max()) if labels.numel() else 0
        outputs = 0 if caught is None else caught.outputs.shape[-1]
        if most < outputs and candidates(trace.returned, shape, outputs):
            return
        everything = head_names(self.model)
        heads = [Head(name, self.model.get_submodule(name)) for name in everything if name != self.head.name]
        with Hooks(self.model, self.head, heads, before=self._team.before_pass) as hooks:
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
        features, outputs = call.inputs, call.outputs
        if features.dim() > 2 and shape == features.shape[:-1]:  # a label for each token
            features, outputs, labels = features.flatten(0, -2), outputs.flatten(0, -2), labels.flatten()
        elif features.dim() > 2:
            returned = candidates(trace.returned, shape, outputs.shape[-1])
            features, outputs, pooled = one_position(self.head, features, outputs, returned, shape, masks)
            self._agreement.pooled = self._agreement.pooled or pooled
        check_features(features)
        labels = check_labels(labels, features.shape[0])
        self.rows += len(labels)
        later = self._agreement.settled(trace, shape, outputs)
        if not later:
            self._agreement.check()
            self._agreement.map.check(call.spot_inputs, call.spot_outputs)
        features = self._agreement.map.features(features)
        if call.overwritten:
            weight, bias = self._agreement.map.tensors()
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
        self._is_plain = later and self._agreement.map.is_plain and not restricted and call.outputs.dim() == 2 and same
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
        targets, subset, kept = labels, self.subset, None
        left_out = self.ignore_index if subset is None else LEFT_OUT
        if left_out is not None:
            targets = labels = targets.cpu()  # so that an accelerator is waited for once, if they were there
            if subset is not None:
                labels = subset.relabel(targets, self.ignore_index)
            rows = kept_rows(features, labels, left_out).nonzero().flatten()
            labels, targets = labels[rows], targets[rows]
            kept = moved(rows, features.device)
            features, layers = features[kept], {name: values[kept] for name, values in layers.items()}
        targets = moved(targets, features.device)
        labels = targets if subset is None else moved(labels, features.device)
        return CapturedBatch(features, labels, targets, layers, logits, head_logits, kept)

    def _logits(
        self, trace: Trace, features: Tensor, outputs: Tensor, shape: tuple[int, ...], later: HeadCall | None
    ) -> Tensor:
        """The logits for accuracy and loss: those of the model, compared with the outputs of the head, now or later."""
        returned = [each.to(outputs.device) for each in candidates(trace.returned, shape, outputs.shape[1])]
        if not returned:
            found = num_outputs(trace.returned)
            what = type(trace.returned).__name__ if found is None else str(found)
            self._agreement.no_logits = (
                f"the layer measured as the classifier, {self.head.name!r}, gives {outputs.shape[1]} outputs and the "
                f"model {what}: accuracy and loss are of that layer; name the one that makes the model's logits"
            )
            return outputs
        if len(outputs) == 0:
            return returned[0]
        picked = spot_rows(len(outputs), outputs.device)
        if later is not None:
            numbers = [self._batches] * max(len(later.spot_inputs), len(picked))
            rows = (later.spot_inputs, later.spot_outputs.detach(), outputs[picked].detach(), returned[0][picked])
            self._agreement.keep((numbers, *rows))
            return returned[0]
        beside = self._beside(trace, outputs[picked])
        logits = returned[0]
        if len(returned) > 1:
            ranks = [Relation.of(self.head.name, outputs[picked], each[picked], beside).rank for each in returned]
            logits = returned[ranks.index(min(ranks))]
        after = self._agreement.add(features, outputs, logits, beside, picked)
        return logits.clamp(min=torch.finfo(logits.dtype).tiny).log() if after == "softmax" else logits

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
        # A run that ends in an error would leave the other processes waiting in the middle of theirs.
        for axis in () if self._team.in_step else (0, 1):  # of the inputs, which may be sequences first too
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
