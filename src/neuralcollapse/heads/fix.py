"""fix_classifier: swap the last linear layers of a model for layers whose rows are fixed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from neuralcollapse.errors import InputError
from neuralcollapse.geometry.frames import frame_name
from neuralcollapse.heads.beyond_simplex import OrthoplexClassifier, SoftmaxCodeClassifier
from neuralcollapse.heads.etf import ETFClassifier
from neuralcollapse.heads.fixed import FixedClassifier
from neuralcollapse.heads.linear import head_axis, head_outputs, head_tensors, tuned_layer
from neuralcollapse.heads.search import find_heads, named_head

_FRAMES: dict[str, type[FixedClassifier]] = {
    "simplex": ETFClassifier,
    "orthoplex": OrthoplexClassifier,
    "softmax_code": SoftmaxCodeClassifier,
}


def fix_classifier(
    model: nn.Module,
    name: str | nn.Module | Sequence[str | nn.Module] | None = None,
    *,
    frame: str = "auto",
    **options: Any,
) -> nn.Module:
    """Replace the last linear layer of a model, in place, by one of the same shape whose rows are fixed.

    For K <= d+1 that is an `ETFClassifier`. For more classes no simplex exists: up to K = 2d they get the orthoplex
    (`OrthoplexClassifier`, with the fast rotation unless `rotation="none"` is given), beyond that an optimised softmax
    code (`SoftmaxCodeClassifier`).

    The new layer keeps the device and dtype of the old one, has a bias if the old one had (zero at first, since the old
    bias belonged to the old rows), and has no trainable weight. Create the optimiser afterwards. A layer that shares
    the old weight, such as a language model's embedding, stays as it is. Parametrisations of the old layer
    (weight_norm, spectral_norm, pruning) are gone with it.

    Args:
        model: a model with a linear head: an `nn.Linear`, a 1x1 convolution (the new layer takes the same maps), or
            transformers' Conv1D.
        name: dotted name of the head, such as "fc" or "classifier.6", or of an `nn.Sequential` that ends in it; a list
            for several. By default the heads of the model are found (`neuralcollapse.heads.search.find_heads`) and all
            of them are fixed: both heads of a distilled DeiT, auxiliary heads too.
        frame: "auto", or one of "simplex", "orthoplex", "softmax_code".
        options: passed to the layer (bias, scale, learn_scale, rotation, seed, ...).

    Returns:
        The same model, or the new layer if `model` is itself a linear head.

    Raises:
        InputError: no layer of that name (those that exist are listed), no linear head, a head with a single output or
            an adapter (LoRA), or a frame that cannot hold so many classes. The model is then unchanged.
    """
    if not isinstance(model, nn.Module):
        got = type(model).__name__
        raise InputError(f"expected the network as a torch.nn.Module, got {got}: give the network itself")
    if not (name is None or isinstance(name, str | nn.Module | Sequence)):
        raise InputError(f"expected the name of a head or several, got {name!r:.80}: leave it out to have them found")
    if head_outputs(model) is not None:
        return _like(model, "the layer", frame, options)
    names = find_heads(model) if name is None else [name] if isinstance(name, str | nn.Module) else list(name)
    if not names:
        raise InputError("expected the name of a head or several, got none: leave it out to have the heads found")
    fixed = {}  # all are made before any is swapped, so that an error leaves the model unchanged
    for head in names:
        layer = named_head(model, head)
        fixed[id(layer)] = _like(layer, repr(head) if isinstance(head, str) else "the layer", frame, options)
    for path, module in list(model.named_modules(remove_duplicate=False)):  # the model may hold a layer under two names
        if id(module) in fixed:
            parent, _, leaf = path.rpartition(".")
            setattr(model.get_submodule(parent), leaf, fixed[id(module)])
    return model


def _like(layer: nn.Module, where: str, frame: str, options: dict[str, Any]) -> FixedClassifier:
    """A fixed layer of the same shape, device, dtype and mode; `where` names the layer in errors."""
    if frame != "auto" and frame not in _FRAMES:
        raise InputError(f"expected frame 'auto', {', '.join(map(repr, _FRAMES))}, got {frame!r}")
    if tuned_layer(layer) is not None:
        raise InputError(
            f"expected {where} to be a plain linear layer, got {type(layer).__name__} with an adapter: fix the head "
            "first, then add adapters to other layers, with modules_to_save for the head's bias"
        )
    if isinstance(layer, FixedClassifier):
        raise InputError(f"expected {where} to be a learned layer, got {type(layer).__name__}, which is fixed already")
    weight, bias = head_tensors(layer)
    num_classes, dim = weight.shape
    if num_classes == 1:
        raise InputError(
            f"expected at least 2 classes, got {where} with one logit: for two classes use nn.Linear({dim}, 2) with "
            "cross_entropy on labels 0 and 1"
        )
    best = frame_name(num_classes, dim)
    if frame == "simplex" != best:
        raise InputError(
            f"expected d >= K-1 = {num_classes - 1} for a simplex ETF of K={num_classes} classes, got "
            f"d={dim}: widen the features, or take frame={best!r}"
        )
    chosen = best if frame == "auto" else frame
    like: dict[str, Any] = {"bias": bias is not None, "device": weight.device, "axis": head_axis(layer)}
    like["dtype"] = next((x.dtype for x in (weight, bias) if x is not None and x.is_floating_point()), None)
    if chosen == "orthoplex":
        like["rotation"] = "fast"
    try:
        fixed = _FRAMES[chosen](dim, num_classes, **(like | options))
    except TypeError as error:
        raise InputError(f"the layer of the frame {chosen!r} takes no such option: {error}") from None
    return fixed.train(layer.training)
