"""Linear heads of any kind of layer: the weight as (K, d), the number of outputs, and the axis of the features."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from neuralcollapse.errors import InputError
from neuralcollapse.heads.fixed import FixedClassifier
from neuralcollapse.heads.split import is_split, outline, whole, whole_head, whole_shape

_CONVOLUTIONS: dict[type[nn.Module], int] = {nn.Conv1d: -2, nn.Conv2d: -3, nn.Conv3d: -4}  # type -> axis of channels


def head_tensors(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    """The weight (K, d) and the bias (K,) or None of a linear head, detached.

    Heads are nn.Linear and any other module with a `.weight` of shape (K, d); the fixed layers of this package; 1x1
    convolutions, whose (K, d, 1, ...) is read as (K, d); transformers' Conv1D, whose (d, K) is transposed; torch's
    quantised Linear, whose weight is a method. Weights that are split over processes are gathered, so that all of them
    must call this, unless `whole_heads` keeps a copy.

    Raises:
        InputError: the module has no such weight, or a lazy one that the first batch has yet to create.
    """
    return _tensors(module, whole)


def head_shape(module: nn.Module) -> tuple[int, int]:
    """(K, d) of what `head_tensors` returns; nothing is gathered. Raises as that does."""
    count, dim = _tensors(module, outline)[0].shape
    return count, dim


def _tensors(module: nn.Module, read: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor | None]:
    copy = whole_head(module)
    module = module if copy is None else copy.module
    with eval_mode(module):  # in training mode, reading the weight of a spectral norm changes it
        weight, bias = (_tensor(module, name, read) for name in ("weight", "bias"))
        # An adapter that `eval` merges into the weight is taken out again, in place, by `train`.
        if any(_sets_more(part) for part in module.modules()):
            weight, bias = (None if value is None or is_lazy(value) else value.clone() for value in (weight, bias))
    if weight is not None and is_lazy(weight):
        raise InputError(
            f"expected a classifier with a weight, got a {type(module).__name__} that makes it with the first batch: "
            "run one batch through the model"
        )
    if weight is not None and _is_pointwise(module):
        weight = weight.flatten(1)
    if weight is None or weight.dim() != 2:
        raise InputError(
            f"expected a classifier with a .weight of shape (K, d), such as nn.Linear or ETFClassifier, or a 1x1 "
            f"convolution, got {type(module).__name__}{why_no_head(module)}"
        )
    weight = weight.T if _is_transposed(module) else weight
    return weight.detach(), None if bias is None else bias.detach()


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Inside, eval mode without compilation, which may skip hooks; afterwards every submodule is as before."""
    # `_compiled_call_impl` is private to torch: it holds what `module.compile()` made, and None switches it off.
    modes = [(module, module.training, module._compiled_call_impl) for module in model.modules()]
    model.eval()
    for module, _, compiled in modes:
        if compiled is not None:
            module._compiled_call_impl = None
    try:
        yield
    finally:
        for module, training, _ in modes:
            if _sets_more(module):
                module.train(training)
        for module, training, compiled in modes:
            module.training = training
            if compiled is not None:
                module._compiled_call_impl = compiled


def _sets_more(module: nn.Module) -> bool:
    """Whether a layer's `train` does more than set the mode: it may merge an adapter into a weight."""
    return type(module).train is not nn.Module.train


def head_axis(module: nn.Module) -> int:
    """The axis of the d features in the input of a head, and of the K logits in its output.

    It is -1, except for convolutions and fixed layers in their place: -2 for maps (N, d, L), -3 for (N, d, H, W), -4
    for (N, d, D, H, W).
    """
    if isinstance(module, FixedClassifier):
        return module.axis
    base = tuned_layer(module) or module
    return next((axis for kind, axis in _CONVOLUTIONS.items() if isinstance(base, kind)), -1)


def head_outputs(module: nn.Module) -> int | None:
    """K of a module that may be a linear head; None for any other module."""
    base = tuned_layer(module)
    if base is not None:
        return head_outputs(base)
    if isinstance(module, nn.Linear | FixedClassifier):
        return module.out_features
    if isinstance(module, tuple(_CONVOLUTIONS)):
        return int(module.out_channels) if _is_pointwise(module) else None  # type: ignore[arg-type]
    if _is_transposed(module):
        return int(module.nf)  # type: ignore[arg-type]
    if callable(getattr(module, "weight", None)) and isinstance(getattr(module, "out_features", None), int):
        return int(module.out_features)  # type: ignore[arg-type]
    if "embedding" in type(module).__name__.lower() or any(name != "parametrizations" for name in module._modules):
        return None
    # torch's private dicts, since reading `.weight` of a parametrised or lazy layer may compute it or raise.
    weight = module._parameters.get("weight") if "parametrizations" not in module._modules else module.weight
    if not isinstance(weight, Tensor) or is_lazy(weight) or not weight.is_floating_point():
        return None
    shape = whole_shape(weight)
    return shape[0] if len(shape) == 2 else None


def tuned_layer(module: nn.Module) -> nn.Module | None:
    """The layer inside an adapter of peft, such as LoRA's; recognised by name, so that peft need not be installed."""
    if any(kind.__name__ == "BaseTunerLayer" for kind in type(module).__mro__):
        base = getattr(module, "base_layer", None)
        return base if isinstance(base, nn.Module) else None
    return None


def _is_pointwise(module: nn.Module) -> bool:
    """Whether a module is a convolution that maps each position linearly: kernel 1, stride 1, no padding."""
    layer = tuned_layer(module) or module
    if not isinstance(layer, tuple(_CONVOLUTIONS)):
        return False
    conv: Any = layer
    padded = not isinstance(conv.padding, str) and any(conv.padding)
    return {*conv.kernel_size, *conv.stride, conv.groups} == {1} and not padded


def _is_transposed(module: nn.Module) -> bool:
    """Whether a module is transformers' Conv1D, a linear layer that keeps its weight as (d, K)."""
    layer = tuned_layer(module) or module
    return any(kind.__name__ == "Conv1D" for kind in type(layer).__mro__) and isinstance(
        getattr(layer, "nf", None), int
    )


def _tensor(module: nn.Module, name: str, read: Callable[[Tensor], Tensor]) -> Tensor | None:
    value = getattr(module, name, None)
    if callable(value) and not isinstance(value, nn.Module | Tensor):
        value = value()  # torch's quantised layers
    if not isinstance(value, Tensor):
        return None
    if is_split(value):
        return read(value)
    return value.dequantize() if value.is_quantized else value


def why_no_head(module: nn.Module) -> str:
    """The reason, for error messages, why a convolution is not a linear head."""
    if isinstance(module, tuple(_CONVOLUTIONS)):
        return " that is not a 1x1 convolution (kernel 1, stride 1, no padding, one group)"
    return ""
