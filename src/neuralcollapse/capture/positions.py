"""Heads that see several positions of a sample, such as the tokens of a decoder: which position gives the logits."""

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
    """One row a sample, (N, d) features and (N, K) outputs, of a head that sees several positions.

    The model picks a position (the last token of a sentence) or takes a mean; the returned logits show which.

    Args:
        head: the layer.
        features: (N, ..., d) inputs of the layer.
        outputs: (N, ..., K) outputs of the layer.
        returned: (N, K) tensors that may be the logits of the model.
        shape: the shape of the labels.
        masks: name -> (N, T) bool, true for positions that are not padding.

    Returns:
        Features, outputs, and the relation of the logits to the mean of the outputs if that is not linear.

    Raises:
        InputError: the logits are neither those of a position nor a mean.
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
        check_features(features)  # raises: the features have more than two axes
    raise InputError(
        f"the layer {head.name!r} gives logits for each of {h.shape[1]} positions and the model returns one "
        "row a sample, which is neither one of them nor their mean: give labels for each position, or name the "
        "layer that makes the model's logits"
    )


def _position(features: Tensor, outputs: Tensor, logits: Tensor, masks: Sequence[Tensor]) -> Tensor | None:
    """(N,) the positions whose outputs (N, T, K) are the logits (N, K); None if they are of no position, or of several.

    Positions may have equal outputs (an untrained head gives zeros everywhere): then the last token that is not
    padding, the last or the first position is taken, if that fits all samples.
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
