"""A forward pass with hooks on the heads and inner layers of a model: their inputs and outputs.

Inputs are copied: a model may overwrite the input of a head after the head, a loader may reuse its buffers, and a view
would keep its whole base tensor alive. The outputs of a head may be large and are not copied, except for a few rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from neuralcollapse.capture.batches import call
from neuralcollapse.capture.layers import first_tensor
from neuralcollapse.capture.logits import replaced, tensors_in
from neuralcollapse.checks import in_one_piece, is_dtensor
from neuralcollapse.heads.linear import eval_mode, head_axis, head_shape
from neuralcollapse.heads.split import whole_head

ROWS = 8  # rows of a batch, evenly spread, from which it is checked how the outputs of a head come about


@dataclass(frozen=True)
class Head:
    """A layer that makes logits, and its dotted name."""

    name: str
    module: nn.Module

    @property
    def is_convolution(self) -> bool:
        """Whether features and classes lie on axis 1, with positions behind them."""
        return head_axis(self.module) != -1

    @cached_property
    def _dim(self) -> int:
        """d, read once: a layer may recompute its weight each time that it is read."""
        return head_shape(self.module)[1]

    def taken(self, given: Sequence[Any]) -> Tensor | None:
        """The features (..., d) among the arguments of a call; None if none fits the weight."""
        dim = self._dim
        for value in given:
            if isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 0:
                features = self.last(value.detach())
                if features.shape[-1] == dim:
                    return features
                if value.dim() > 2 and value[:1].numel() == dim:  # a head that flattens its input itself
                    return value.detach().flatten(1)
        return None

    def gathered(self, outputs: Tensor) -> Tensor:
        """Its outputs for all classes, where tensor parallelism gives this process those for some."""
        copy = whole_head(self.module)
        if copy is None:
            return in_one_piece(outputs)
        return copy.gathered(outputs, head_axis(self.module) if outputs.dim() > 2 else -1)

    def last(self, values: Tensor) -> Tensor:
        """Inputs or outputs of the head, with the features or classes moved to the last axis."""
        return values.movedim(head_axis(self.module), -1) if values.dim() > 2 else values


@dataclass
class HeadCall:
    """The inputs and outputs of a head in a pass.

    Attributes:
        inputs: (N, ..., d), a copy; None for heads that are not measured.
        outputs: (N, ..., K), not a copy.
        spot_inputs, spot_outputs: copies of `ROWS` rows of both.
        times: the number of calls with inputs that differ from those before; the other attributes are of the last one.
    """

    inputs: Tensor | None
    outputs: Tensor
    spot_inputs: Tensor
    spot_outputs: Tensor
    times: int
    _version: int | None = None

    @property
    def overwritten(self) -> bool:
        """Whether the model has changed the outputs in place since the call."""
        # `_version` is torch's private counter of changes in place; there is no public one.
        return self._version is not None and self.outputs._version != self._version


@dataclass
class Trace:
    """What the hooks caught in a forward pass.

    Attributes:
        returned: the output of the model.
        heads: name -> call of a head.
        unlike: name -> output shape of a head that did not give one output for each row of its input.
        layers: name -> output of an inner layer.
    """

    returned: Any = None
    heads: dict[str, HeadCall] = field(default_factory=dict)
    unlike: dict[str, tuple[int, ...]] = field(default_factory=dict)
    layers: dict[str, Any] = field(default_factory=dict)


class Hooks:
    """A model in eval mode with hooks on `head`, other heads and inner layers, while this context is open.

    `before` is called with the inputs before each pass that is not idle. What tensor parallelism has split is put
    together in the hooks, by all processes alike, since each of them calls the layer.
    """

    def __init__(
        self,
        model: nn.Module,
        head: Head,
        others: Iterable[Head] = (),
        layers: Mapping[str, nn.Module] | None = None,
        before: Callable[[Any], None] | None = None,
    ) -> None:
        self.head = head
        self.others = tuple(others)
        self._model = model
        self._layers = layers or {}
        self._before = before
        self._part: torch.Size | None = None  # the shape of logits for some classes, as the head gave them
        self._trace: Trace | None = None  # of the pass that runs
        self._plain: list[tuple[Tensor, Tensor, int] | None] | None = None  # calls of the head in `run_plain`
        self._open = ExitStack()

    def __enter__(self) -> Hooks:
        for each in (self.head, *self.others):
            hook = each.module.register_forward_hook(partial(self._on_head, each), with_kwargs=True)
            self._open.callback(hook.remove)
        for name, layer in self._layers.items():
            self._open.callback(layer.register_forward_hook(partial(self._on_layer, name)).remove)
        self._open.enter_context(eval_mode(self._model))
        return self

    def __exit__(self, *exc: object) -> None:
        self._open.close()

    def run(self, inputs: Any, *, idle: bool = False) -> Trace:
        """A pass without gradients; an `idle` one is for the other processes alone, which cannot do without it."""
        trace = self._trace = Trace()
        self._part = None
        try:
            with torch.no_grad():
                trace.returned = self._put_together(self._called(inputs, idle=idle))
        finally:
            self._trace = None
        return trace

    def run_plain(self, inputs: Any) -> tuple[Tensor, Tensor] | None:
        """The (N, d) input of the head, copied, and its output (N, K), if it is called once and returned as it is.

        Like `run`, but with no work beside the pass; None for anything else.
        """
        calls: list[tuple[Tensor, Tensor, int] | None] = []
        self._plain = calls
        try:
            with torch.no_grad():
                returned = self._called(inputs)
        finally:
            self._plain = None
        if len(calls) != 1 or calls[0] is None:
            return None
        features, output, version = calls[0]
        same = getattr(returned, "logits", returned) is output and output._version == version
        return (features, output) if same else None

    def _called(self, inputs: Any, *, idle: bool = False) -> Any:
        if self._before is not None and not idle:
            self._before(inputs)
        if self._model.training:  # a loader that uses the model, too, has changed that since the last batch
            self._model.eval()
        return call(self._model, inputs)

    def _put_together(self, returned: Any) -> Any:
        """What the model returned, with tensors that tensor parallelism has split in one piece."""

        def is_part(value: Tensor) -> bool:
            return is_dtensor(value) or value.shape == self._part

        def together(value: Tensor) -> Tensor:
            return self.head.gathered(value) if value.shape == self._part else in_one_piece(value)

        return replaced(returned, together) if any(map(is_part, tensors_in(returned))) else returned

    def _on_layer(self, name: str, _: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        if self._trace is not None:
            self._trace.layers[name] = _copied(output)

    def _on_head(self, each: Head, _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        if self._plain is not None:
            self._plain.append(None if kwargs else _plain_call(args, output))
            return
        trace = self._trace
        if trace is None:
            return
        made = first_tensor(output, each.name)
        whole = each.gathered(made)
        if each is self.head and whole is not made:
            self._part = made.shape
        given = each.last(whole)
        taken = each.taken([in_one_piece(value) for value in (*args, *kwargs.values())])
        if taken is None or taken.shape[:-1] != given.shape[:-1]:
            trace.unlike[each.name] = tuple(given.shape)
            return
        if (each.is_convolution and given.dim() > 2) or given.is_inference():
            # The outputs of a convolution are small and often overwritten by a ReLU in place; tensors made in
            # inference mode do not count changes in place.
            given = given.clone()
        flat_taken, flat_given = taken.flatten(0, -2), given.flatten(0, -2)
        picked = spot_rows(len(flat_given), given.device)
        earlier = trace.heads.get(each.name)
        some = flat_taken[picked]
        times = 1
        if earlier is not None:  # as in multi-sample dropout, which in eval mode gives the same inputs each time
            same = (
                torch.equal(earlier.spot_inputs, some) if earlier.inputs is None else torch.equal(earlier.inputs, taken)
            )
            times = earlier.times + (not same)
        trace.heads[each.name] = HeadCall(
            taken.clone() if each is self.head else None,
            given,
            some,
            flat_given[picked],
            times,
            None if given.is_inference() else given._version,
        )


def _plain_call(args: tuple[Any, ...], output: Any) -> tuple[Tensor, Tensor, int] | None:
    """A copy of the input of a head (N, d), its output (N, K), and how often that has been changed in place."""
    features = args[0] if len(args) == 1 else None
    if type(features) is not Tensor or type(output) is not Tensor or output.is_inference():
        return None
    if features.dim() != 2 or output.dim() != 2 or len(features) != len(output):
        return None
    return features.detach().clone(), output, output._version


def spot_rows(count: int, device: torch.device, most: int = ROWS) -> Tensor:
    """At most `most` of the indices below `count`, evenly spread."""
    rows = min(most, count)
    return torch.arange(rows, device=device) * (count - 1) // max(1, rows - 1)


def _copied(output: Any) -> Any:
    """The output of a layer with its tensors copied, since a layer that works in place may overwrite them next."""
    if isinstance(output, Tensor):
        return in_one_piece(output.detach()).clone()
    if isinstance(output, Mapping):
        return {name: _copied(value) for name, value in output.items()}
    if isinstance(output, Sequence) and not isinstance(output, str):
        return [_copied(value) for value in output]
    return output
