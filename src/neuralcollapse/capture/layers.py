"""Inner layers: which axis of an output holds the samples and which the channels, and one row for each sample.

A layout is a string with a letter for each axis: N samples, C channels, anything else a position, as in "NCHW" or
"NTC". Positions are averaged. If no layout is given, it is inferred from the layers: a convolution or batch
normalisation has its channels on axis 1, a linear layer, embedding or layer normalisation on the last axis, and the
size of the channel axis is the number of outputs of one of them. If two axes are possible, an error asks the user,
since a guess would give numbers that depend on the size of the images or of the batch.
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
        model: the network, whose other layers are asked for channels if this one has no kind of its own.
        layout: a string, a function of the output that gives (N, C), or None to infer it from the layers.
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
        """One row of an output for each label: (N, C) averaged over positions, or (N T, C) if each token has a label.

        Args:
            output: the output of the layer.
            labels: the shape of the labels, (N,) or (N, T).
            masks: name -> (N, T) bool, true for tokens that are not padding.
            sequence_first: finds out by another pass whether samples are on axis 1; called if the shape does not say.

        Raises:
            InputError: an output that does not fit the labels, or whose axes are ambiguous.
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
        """(N, T, C) averaged over the tokens that are not padding."""
        fitting = [mask for mask in masks.values() if mask.shape == values.shape[:2]]
        if not fitting:
            padded = [name for name, mask in masks.items() if not bool(mask.all())]
            if padded:
                raise InputError(
                    f"the {padded[0]} of shape {tuple(masks[padded[0]].shape)} does not say which of the "
                    f"{values.shape[1]} positions of layer {self.name!r} are padding: give a function of its output, "
                    f"layers={{{self.name!r}: function}}"
                )
        return average(values, fitting[0] if fitting else None)

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
                # As many samples as positions, or windows that are not samples: a run on one sample fewer shows it.
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
        # With two axes of one size, only the kind of the layer itself can say which holds the channels.
        alike = shape[1] == shape[-1] and next(self.module.children(), None) is None
        for modules in ([self.module], self.module.modules(), self.model.modules()):
            last = _inferred(list(_channels(modules, dims)), shape)
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
        """Whether other layers contradict: a linear layer may work along positions, as in an MLP-Mixer.

        The outputs of convolutions, normalisations and embeddings are channels for sure.
        """
        if next(self.module.children(), None) is None and _out_features(self.module) is None:
            return False  # the layer is one of these itself
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
        InputError: no such layer, or an invalid layout.
    """
    given = layers if isinstance(layers, Mapping) else dict.fromkeys(layer_names(layers))
    for name, layout in given.items():
        text = isinstance(layout, str) and layout.isalpha()
        if layout is not None and not callable(layout) and not (text and layout.count("N") == layout.count("C") == 1):
            raise InputError(
                f"expected the layout of layer {name!r} with one N (samples) and one C (channels), as in 'NCHW', "
                f"'NHWC' or 'NTC', or a function, got {layout!r}"
            )
    return {name: InnerLayer(name, find_module(model, name), model, layout) for name, layout in given.items()}


def layer_names(layers: Layers) -> list[str]:
    """The dotted names of the inner layers asked for.

    Raises:
        InputError: no names.
    """
    names = [layers] if isinstance(layers, str) else list(layers) if isinstance(layers, Iterable) else [layers]
    if not all(isinstance(name, str) for name in names):
        raise InputError(
            f"expected layers as dotted names of inner layers, got {layers!r:.80}: give such as ['layer3']"
        )
    return names


def average(values: Tensor, mask: Tensor | None) -> Tensor:
    """(N, T, C) averaged over the positions where the mask (N, T) is true, or over all without a mask."""
    if mask is None:
        return values.mean(1)
    mask = mask.to(values.device)
    # A product with the mask would spread padding that is not finite. Half precision cannot sum many positions.
    total = values.masked_fill(~mask[..., None], 0).sum(1, dtype=torch.promote_types(values.dtype, torch.float32))
    return (total / mask.sum(1, keepdim=True).clamp(min=1)).to(values.dtype)


def first_tensor(output: Any, name: str) -> Tensor:
    """The first tensor of a layer's output, which may be a tuple or a mapping."""
    if isinstance(output, Mapping) and output:
        output = next(iter(output.values()))
    while isinstance(output, Sequence) and len(output):
        output = output[0]
    if not isinstance(output, Tensor):
        raise InputError(
            f"expected a tensor from layer {name!r}, got {type(output).__name__}: is it called in forward?"
        )
    return output.detach()


def _inferred(channels: Sequence[tuple[int, bool]], shape: Sequence[int]) -> bool | None:
    """Whether channels are last, according to (channels, whether last) of some layers; None if they do not say."""
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
    """(channels, whether on the last axis) of the outputs, of `dims` axes, of layers whose kind determines both."""
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
            # A layer normalisation of any library; those for maps have 2d in their names.
            yield len(weight), "2d" not in kind
        elif isinstance(getattr(module, "nf", None), int):  # the transposed linear layer of GPT-2
            yield module.nf, True  # type: ignore[misc]
