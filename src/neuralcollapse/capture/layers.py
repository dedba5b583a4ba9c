"""Inner layers: which axis of an output holds the samples and which the channels, and one row a sample from it.

A layout is a string with a letter for each axis: N samples, C channels, anything else a position, as in "NCHW" or
"NTC". Positions are averaged. Where nobody gives the layout, it is read off the layers: a convolution or batch
normalisation has its channels on axis 1, a linear layer, embedding or layer normalisation on the last, and an axis of
channels has a size that one of them gives. Where two axes could be meant, the user is asked: a guess would give a
number that depends on the size of the images or of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from neuralcollapse.errors import InputError
from neuralcollapse.heads.search import find_module

Layout = str | Callable[[Any], Tensor]
Layers = str | Sequence[str] | Mapping[str, Layout | None]

_POSITIONS = {3: "T", 4: "HW", 5: "DHW"}
_NAME = "layers={{{name!r}: {example!r}}} (N samples, C channels) or a function of the output that gives (N, C)"


@dataclass
class InnerLayer:
    """An inner layer to measure.

    Attributes:
        name: its dotted name.
        module: the layer.
        model: the network, whose other layers tell of channels where this one has none of its own.
        layout: a string, a function of the output that gives (N, C), or None: read off the layers.
    """

    name: str
    module: nn.Module
    model: nn.Module
    layout: Layout | None = None
    _sequence_first: bool | None = field(default=None, init=False)

    def rows(
        self,
        output: Any,
        labels: tuple[int, ...],
        masks: Mapping[str, Tensor],
        sequence_first: Callable[[Tensor], bool],
    ) -> Tensor:
        """One row a label of an output: (N, C) averaged over positions, or (N T, C) where each token has a label.

        Args:
            output: what the layer gave.
            labels: the shape of the labels, (N,) or (N, T).
            masks: name -> (N, T) bool, tokens that are no padding.
            sequence_first: tells of the output (by another pass) whether samples are on axis 1, where the sizes do not.

        Raises:
            InputError: an output that does not fit the labels, or whose axes cannot be told apart.
        """
        if callable(self.layout) and output is not None:
            return self._custom(self.layout(output), labels)
        values = first_tensor(output, self.name)
        if values.dim() < 2:
            raise self._unfit(values, labels)
        given = self.layout if isinstance(self.layout, str) else None
        letters = given or self._letters(values, labels, sequence_first)
        if len(letters) != values.dim():
            raise InputError(
                f"expected the layout of layer {self.name!r} to have a letter for each of {values.dim()} axes of "
                f"{tuple(values.shape)}, got {letters!r}"
            )
        values = values.movedim((letters.index("N"), letters.index("C")), (0, -1))
        if values.shape[:-1] == labels:
            return values.flatten(0, -2)
        if len(labels) != 1 or values.shape[0] != labels[0]:
            raise self._unfit(values, labels)
        return self._averaged(values.flatten(1, -2), masks) if values.dim() > 2 else values

    def _custom(self, values: Any, labels: tuple[int, ...]) -> Tensor:
        count = torch.Size(labels).numel()
        if not isinstance(values, Tensor) or values.dim() != 2 or values.shape[0] != count:
            shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise InputError(f"expected the function of layer {self.name!r} to give ({count}, C) values, got {shape}")
        return values.detach()

    def _averaged(self, values: Tensor, masks: Mapping[str, Tensor]) -> Tensor:
        """(N, T, C) averaged over the tokens that are no padding."""
        fitting = [mask for mask in masks.values() if mask.shape == values.shape[:2]]
        if not fitting:
            padded = [name for name, mask in masks.items() if not bool(mask.all())]
            if padded:
                raise InputError(
                    f"the {padded[0]} of shape {tuple(masks[padded[0]].shape)} does not tell which of the "
                    f"{values.shape[1]} positions of layer {self.name!r} are padding: give a function of its output, "
                    f"layers={{{self.name!r}: function}}"
                )
            return values.mean(1)
        return average(values, fitting[0])

    def _letters(self, values: Tensor, labels: tuple[int, ...], sequence_first: Callable[[Tensor], bool]) -> str:
        if values.dim() == 2:
            return "NC"
        if values.dim() not in _POSITIONS:
            raise self._unfit(values, labels)
        positions = _POSITIONS[values.dim()]
        if values.dim() > 3 and values.shape[0] != labels[0]:
            raise self._unfit(values, labels)
        if values.dim() == 3:
            first, second = values.shape[0] == labels[0], values.shape[1] == labels[0]
            if not first and not second:
                raise self._unfit(values, labels)
            if first and not second:
                self._decide(False)
            elif self._sequence_first is None and (values.shape[0] > 1 or not first):
                # Of as many samples as positions, or of windows that are no samples: one sample fewer tells.
                self._decide(sequence_first(values))
            elif second and not first:
                self._decide(True)
            if self._sequence_first:
                return "TNC"
        return f"N{positions}C" if self._channels_last(values) else f"NC{positions}"

    def _decide(self, sequence_first: bool) -> None:
        if self._sequence_first not in (None, sequence_first):
            example = "TNC" if sequence_first else "NTC"
            raise InputError(
                f"layer {self.name!r} gives samples on another axis than in earlier batches: say which, as in "
                + _NAME.format(name=self.name, example=example)
            )
        self._sequence_first = sequence_first

    def _channels_last(self, values: Tensor) -> bool:
        """Whether channels are on the last axis, not on axis 1."""
        large = [axis for axis in range(1, values.dim()) if values.shape[axis] > 1]
        if len(large) == 1 and large[0] in (1, values.dim() - 1):
            return large[0] != 1
        shape, dims = values.shape, values.dim()
        alike = shape[1] == shape[-1] and next(self.module.children(), None) is None  # and only its own kind tells
        for modules in ([self.module], self.module.modules(), self.model.modules()):
            last = _told(list(_channels(modules, dims)), shape)
            if last is not None and not self._mixes(shape[-1 if last else 1], shape[1 if last else -1]):
                return last
            if last is not None or alike:
                break
        if values.dim() == 4 and len(set(values.shape[1:])) == 2:  # maps are mostly square
            if values.shape[2] == values.shape[3]:
                return False
            if values.shape[1] == values.shape[2]:
                return True
        example = {3: "NTC", 4: "NCHW", 5: "NCDHW"}[values.dim()]
        raise InputError(
            f"cannot tell which axis of {tuple(values.shape)} holds the channels of layer {self.name!r}: say so, as in "
            + _NAME.format(name=self.name, example=example)
        )

    def _mixes(self, channels: int, positions: int) -> bool:
        """Whether other layers say that the axes are the other way round: a linear one may work along positions.

        So it does in an MLP-Mixer. What convolutions, normalisations and embeddings give are channels for sure.
        """
        if next(self.module.children(), None) is None and _out_features(self.module) is None:
            return False  # one of these itself
        others = (module for module in self.model.modules() if _out_features(module) is None)
        sure = {size for size, _ in _channels(others)}
        return positions in sure and channels not in sure

    def _unfit(self, values: Tensor, labels: tuple[int, ...]) -> InputError:
        count = torch.Size(labels).numel()
        return InputError(
            f"expected layer {self.name!r} to give one output for each of {count} samples, got {tuple(values.shape)}: "
            "say how its axes go, as in " + _NAME.format(name=self.name, example="NHWC")
        )


def inner_layers(model: nn.Module, layers: Layers) -> dict[str, InnerLayer]:
    """The layers that a user asks for, by name.

    Raises:
        InputError: no such layer, or a layout that is none.
    """
    if isinstance(layers, str):
        layers = (layers,)
    given = layers if isinstance(layers, Mapping) else dict.fromkeys(layers)
    for name, layout in given.items():
        text = isinstance(layout, str) and layout.isalpha()
        if layout is not None and not callable(layout) and not (text and layout.count("N") == layout.count("C") == 1):
            raise InputError(
                f"expected the layout of layer {name!r} with one N (samples) and one C (channels), as in 'NCHW', "
                f"'NHWC' or 'NTC', or a function, got {layout!r}"
            )
    return {name: InnerLayer(name, find_module(model, name), model, layout) for name, layout in given.items()}


def average(values: Tensor, mask: Tensor | None) -> Tensor:
    """(N, T, C) averaged over the positions where mask (N, T) is true, or over all."""
    if mask is None:
        return values.mean(1)
    mask = mask.to(values.device)
    # A product with the mask would spread what padding holds where that is not finite; half precision cannot count.
    total = values.masked_fill(~mask[..., None], 0).sum(1, dtype=torch.promote_types(values.dtype, torch.float32))
    return (total / mask.sum(1, keepdim=True).clamp(min=1)).to(values.dtype)


def first_tensor(output: Any, name: str) -> Tensor:
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


def _told(channels: Sequence[tuple[int, bool]], shape: Sequence[int]) -> bool | None:
    """Whether channels are last, as (channels, whether last) of some layers tell; None where they do not."""
    first = [last for size, last in channels if size == shape[1]]
    final = [last for size, last in channels if size == shape[-1]]
    if first and final:
        kinds = set(first + final)
        return kinds.pop() if len(kinds) == 1 else None
    return bool(final) if first or final else None


def _out_features(module: nn.Module) -> int | None:
    found = getattr(module, "out_features", None)
    return found if isinstance(found, int) else None


def _channels(modules: Iterable[nn.Module], dims: int | None = None) -> Iterator[tuple[int, bool]]:
    """(channels, whether on the last axis) of the outputs of layers whose kind tells; only of those of `dims` axes."""
    for module in modules:
        kind = type(module).__name__
        if isinstance(module, nn.modules.conv._ConvNd):
            if dims in (None, module.weight.dim()):
                yield module.out_channels, False
        elif isinstance(module, nn.modules.batchnorm._NormBase):
            if dims is None or any(text in kind for text in (f"{dims - 2}d", "Sync", "Lazy")):
                yield module.num_features, False
        elif isinstance(module, nn.GroupNorm):
            yield module.num_channels, False
        elif (outputs := _out_features(module)) is not None:
            yield outputs, True
        elif isinstance(getattr(module, "embedding_dim", None), int):
            yield module.embedding_dim, True  # type: ignore[misc]
        elif isinstance(module, nn.MultiheadAttention):
            yield module.embed_dim, True
        elif isinstance(module, nn.RNNBase):
            yield (module.proj_size or module.hidden_size) * (1 + module.bidirectional), True
        elif "Norm" in kind and isinstance(weight := getattr(module, "weight", None), Tensor) and weight.dim() == 1:
            # A layer normalisation, of one library or another; those for maps say so in their names.
            yield len(weight), "2d" not in kind
        elif isinstance(getattr(module, "nf", None), int):  # the transposed linear layer of GPT-2
            yield module.nf, True  # type: ignore[misc]
