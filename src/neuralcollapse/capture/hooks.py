"""A pass of a model with hooks on its heads and inner layers: what they took and gave.

What is kept is a copy: a model may overwrite the head's input after the head, a loader may reuse its buffers, and a
view would keep the whole tensor alive that it was cut from. The head's outputs, which may be large, are not copied; a
few rows of them are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from neuralcollapse.capture.batches import call
from neuralcollapse.capture.layers import first_tensor
from neuralcollapse.heads.linear import eval_mode, head_axis, head_tensors

ROWS = 8  # of a head's inputs and outputs, spread over a batch, that tell how its outputs come about


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
        """d, read once: a layer may make its weight anew each time that it is read."""
        return head_tensors(self.module)[0].shape[1]

    def taken(self, given: Sequence[Any]) -> Tensor | None:
        """Of the arguments of a call the features (..., d); None where none fits the weight."""
        dim = self._dim
        for value in given:
            if isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 0:
                features = self.last(value.detach())
                if features.shape[-1] == dim:
                    return features
                if value.dim() > 2 and value[:1].numel() == dim:  # a head that flattens its input itself
                    return value.detach().flatten(1)
        return None

    def last(self, values: Tensor) -> Tensor:
        """Its inputs or outputs with the features or classes on the last axis."""
        return values.movedim(head_axis(self.module), -1) if values.dim() > 2 else values


@dataclass
class HeadCall:
    """What a head took and gave in a pass.

    Attributes:
        inputs: (N, ..., d), a copy; None of heads that are not measured.
        outputs: (N, ..., K), not a copy.
        some_inputs, some_outputs: `ROWS` rows of both, copies.
        times: calls with other inputs than the one before; the rest is of the last.
    """

    inputs: Tensor | None
    outputs: Tensor
    some_inputs: Tensor
    some_outputs: Tensor
    times: int
    _version: int | None = None

    @property
    def overwritten(self) -> bool:
        """Whether the model has changed the outputs in place since."""
        return self._version is not None and self.outputs._version != self._version


@dataclass
class Pass:
    """What the hooks saw: the model's output, the heads' calls and the inner layers' outputs by name.

    `unlike` has the output shapes of heads that gave no output for each of their inputs' rows.
    """

    returned: Any = None
    heads: dict[str, HeadCall] = field(default_factory=dict)
    unlike: dict[str, tuple[int, ...]] = field(default_factory=dict)
    layers: dict[str, Any] = field(default_factory=dict)


def run(
    model: nn.Module,
    inputs: Any,
    head: Head,
    others: Iterable[Head] = (),
    layers: Mapping[str, nn.Module] | None = None,
) -> Pass:
    """Run the model in eval mode without gradients, and catch what `head`, other heads and inner layers saw."""
    seen = Pass()

    def on_head(each: Head, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        given = each.last(first_tensor(output, each.name))
        taken = each.taken([*args, *kwargs.values()])
        if taken is None or taken.shape[:-1] != given.shape[:-1]:
            seen.unlike[each.name] = tuple(given.shape)
            return
        if (each.is_convolution and given.dim() > 2) or given.is_inference():
            # Of a convolution they are small, and followed by a ReLU in place as often as not; tensors made in
            # inference mode do not tell when they are overwritten.
            given = given.clone()
        flat_taken, flat_given = taken.flatten(0, -2), given.flatten(0, -2)
        picked = some_rows(len(flat_given), given.device)
        earlier = seen.heads.get(each.name)
        some = flat_taken[picked].clone()
        times = 1
        if earlier is not None:  # dropout that is off in eval mode gives the same inputs each time
            same = (
                torch.equal(earlier.some_inputs, some) if earlier.inputs is None else torch.equal(earlier.inputs, taken)
            )
            times = earlier.times + (not same)
        seen.heads[each.name] = HeadCall(
            taken.clone() if each is head else None,
            given,
            some,
            flat_given[picked].clone(),
            times,
            None if given.is_inference() else given._version,
        )

    hooks = []
    for each in (head, *others):
        hooks.append(
            each.module.register_forward_hook(
                lambda _, args, kwargs, output, each=each: on_head(each, args, kwargs, output), with_kwargs=True
            )
        )
    for name, layer in (layers or {}).items():
        hooks.append(
            layer.register_forward_hook(lambda _, __, out, name=name: seen.layers.__setitem__(name, _copied(out)))
        )
    try:
        with eval_mode(model), torch.no_grad():
            seen.returned = call(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def some_rows(count: int, device: torch.device) -> Tensor:
    """At most `ROWS` of `count` places, spread evenly.

    In float64 whatever the default type is: Lightning makes that bfloat16 in `forward`, which cannot count to 300.
    """
    return torch.linspace(0, count - 1, min(ROWS, count), dtype=torch.float64, device=device).round().long()


def _copied(output: Any) -> Any:
    """A layer's output with copies of its tensors: an in-place layer may overwrite them next."""
    if isinstance(output, Tensor):
        return output.detach().clone()
    if isinstance(output, Mapping):
        return {name: _copied(value) for name, value in output.items()}
    if isinstance(output, Sequence) and not isinstance(output, str):
        return [_copied(value) for value in output]
    return output
