"""Heads that see several positions of a sample, as a decoder's tokens: which of them the model's logits are of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from neuralcollapse.capture.hooks import Head
from neuralcollapse.capture.layers import average
from neuralcollapse.capture.returned import Relation
from neuralcollapse.checks import check_features
from neuralcollapse.errors import InputError


def one_position(
    head: Head,
    features: Tensor,
    outputs: Tensor,
    returned: Sequence[Tensor],
    shape: tuple[int, ...],
    masks: Mapping[str, Tensor],
) -> tuple[Tensor, Tensor, Relation | None]:
    """(N, d) features and (N, K) outputs of a head that sees several positions, and how the logits follow from them.

    The model picks a position (the last token of a sentence) or takes a mean: which, the returned logits tell.

    Args:
        head: the layer.
        features: (N, ..., d) that it takes.
        outputs: (N, ..., K) that it gives.
        returned: (N, K) tensors that may be the model's logits.
        shape: of the labels.
        masks: name -> (N, T) bool, positions that are no padding.

    Returns:
        Features, outputs, and the relation of the logits to the mean of the outputs where that is no linear one.

    Raises:
        InputError: the logits are neither of a position nor a mean.
    """
    h, z = features.flatten(1, -2), outputs.flatten(1, -2)
    if h.shape[1] == 1:
        return h[:, 0], z[:, 0], None
    if len(shape) > 1:
        raise InputError(
            f"expected a label for each of the positions {tuple(features.shape[:-1])} that {head.name!r} "
            f"sees, got labels {shape}: resize the labels to them"
        )
    fitting = [mask.to(h.device) for mask in masks.values() if mask.shape == h.shape[:2]]
    for logits in returned:
        place = _position(h, z, logits, fitting)
        if place is not None:
            rows = torch.arange(len(h), device=h.device)
            return h[rows, place], z[rows, place], None
        for mask in (*fitting, None):
            mean = average(z, mask)
            if Relation.of(head.name, mean, logits).kind == "same":
                return average(h, mask), mean, None
    if head.is_convolution:
        pooled = [Relation.of_positions(head.name, z, logits) for logits in returned]
        return average(h, None), average(z, None), next((found for found in pooled if found is not None), None)
    if not returned:
        check_features(features)  # raises: neither a row nor a label for each position
    raise InputError(
        f"the layer {head.name!r} gives logits for each of {h.shape[1]} positions and the model returns one "
        "row a sample, which is neither one of them nor their mean: give labels for each position, or name the "
        "layer that makes the model's logits"
    )


def _position(features: Tensor, outputs: Tensor, logits: Tensor, masks: Sequence[Tensor]) -> Tensor | None:
    """(N,) which of T positions' outputs (N, T, K) are the logits (N, K); None where they are of none, or of several.

    Positions may be alike (an untrained head gives zeros everywhere): then the last real token, the last or the first
    position is taken, if that fits all samples.
    """
    if len(logits) != len(outputs) or len(outputs) == 0:
        return None
    same = (outputs.to(logits.dtype) == logits[:, None]).all(2)
    if not bool(same.any(1).all()):
        return None
    count = same.shape[1]
    last = torch.full_like(same[:, 0], count - 1, dtype=torch.long)
    rules = [
        *((torch.arange(count, device=mask.device) * mask).argmax(1) for mask in masks),
        last,
        torch.zeros_like(last),
    ]
    only = count - 1 - same.flip(1).int().argmax(1)
    if not bool((same.sum(1) > 1).any()):
        return only
    for place in rules:
        if bool(same.gather(1, place[:, None]).all()):
            return place
    alike = (features == features.gather(1, only[:, None, None].expand(-1, 1, features.shape[2]))).all(2)
    return only if bool((alike | ~same).all()) else None
