"""The measures of features that are already in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from neuralcollapse.checks import as_tensor, check_classifier, check_features, check_labels
from neuralcollapse.errors import InputError
from neuralcollapse.geometry.classes import LEFT_OUT, chosen_classes, label_counts
from neuralcollapse.geometry.groups import GroupedMoments, number_of_groups
from neuralcollapse.geometry.measures import measures
from neuralcollapse.geometry.moments import ClassMoments, kept_rows, state_device
from neuralcollapse.geometry.nearest import NearestMeans
from neuralcollapse.geometry.standard_errors import errors_of


def measure_features(
    features: Tensor,
    labels: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    num_classes: int | None = None,
    *,
    ignore_index: int | None = None,
    classes: Tensor | Sequence[int] | None = None,
    min_count: int | None = None,
    means_dtype: torch.dtype = torch.float64,
    pairwise: bool | int = True,
    errors: bool | int = False,
) -> dict[str, Any]:
    """Measure the collapse of features that are already in memory.

    Args:
        features: (N, d), tensor or array.
        labels: (N,) integers.
        weight: (K, d) weight of the classifier; without it only the features are measured.
        bias: (K,).
        num_classes: K; by default that of the weight, or the largest label plus one.
        ignore_index: samples with this label are left out.
        classes: measure these classes alone, as in `measure`.
        min_count: measure the classes with at least this many samples.
        means_dtype: torch.float32 halves the memory for K class means.
        pairwise: as in `measure`.
        errors: add values without bias and standard errors, as in `measure`.

    Returns:
        The keys of `neuralcollapse.measures`, "num_samples" and "ncc_accuracy" (the share of samples whose nearest
        class mean is that of their label); with a weight also "nc4" and "accuracy".

    Raises:
        InputError: arrays that do not fit together, no samples, or values that are not finite.
    """
    features, labels = as_tensor(features, "features"), as_tensor(labels, "labels")
    weight = None if weight is None else as_tensor(weight, "weight")
    bias = None if bias is None else as_tensor(bias, "bias")
    check_features(features)
    labels = check_labels(labels, features.shape[0])
    if ignore_index is not None:
        kept = kept_rows(features, labels, ignore_index)
        features, labels = features[kept], labels[kept]
    if len(labels) == 0:
        raise InputError("got no samples: features and labels are empty")
    if num_classes is None:
        num_classes = _count_classes(labels) if weight is None else _rows(weight, features.shape[1])
    check_classifier(weight, bias, num_classes, features.shape[1])
    counted, total = labels, num_classes
    subset = chosen_classes(classes, min_count, num_classes, lambda: label_counts(counted, total))
    targets, shown_weight, shown_bias = labels, weight, bias
    if subset is not None:
        labels = subset.relabel(labels)
        kept = labels != LEFT_OUT
        features, labels, targets = features[kept], labels[kept], targets[kept]
        if len(labels) == 0:
            raise InputError("none of the samples is of one of the classes: give classes that come in the labels")
        num_classes = len(subset)
        shown_weight = None if weight is None else subset.rows(weight)
        shown_bias = None if bias is None else subset.rows(bias)
    grouped = None
    if groups := number_of_groups(errors, num_classes, features.shape[1], means_dtype):
        device = state_device(features.device)
        grouped = GroupedMoments(num_classes, features.shape[1], groups, device, means_dtype=means_dtype)
        grouped.update(features, labels)
        moments = grouped.whole()
    else:
        moments = ClassMoments.from_batch(features, labels, num_classes, means_dtype=means_dtype)
    result: dict[str, Any] = dict(measures(moments, shown_weight, shown_bias, pairwise=pairwise))
    if grouped is not None:
        result |= errors_of(moments, grouped.parts(), pairwise=pairwise)
    result["num_samples"] = count = moments.num_samples
    nearest, right = NearestMeans(moments), 0
    wrong = torch.zeros(2, dtype=torch.float64)
    parts = (each.split(max(1, 2**22 // num_classes)) for each in (features, labels, targets))
    for block, numbers, wanted in zip(*parts, strict=True):
        predicted = wanted if weight is None else _predicted(block, weight, bias)
        right += int((predicted == wanted.to(predicted.device)).sum())
        predicted = predicted if subset is None else subset.relabel(predicted)
        wrong += nearest.mismatches(block, [numbers, predicted]).cpu()
    result["ncc_accuracy"] = (count - float(wrong[0])) / count
    if weight is not None:
        result |= {"nc4": float(wrong[1]) / count, "accuracy": right / count}
    return result


def _rows(weight: Tensor, dim: int) -> int:
    """K of a weight (K, d), or of one given as (d, K), so that the error about it states the right shape."""
    if weight.dim() == 2 and weight.shape[0] == dim != weight.shape[1]:
        return weight.shape[1]
    return weight.shape[0] if weight.dim() else 1


def _count_classes(labels: Tensor) -> int:
    """The largest label plus one, unless that is far beyond the number of different labels."""
    largest, different = int(labels.max()), len(labels.unique())
    if largest >= 10 * different + 1000:
        raise InputError(
            f"expected labels from 0 to K-1, got {different} different ones up to {largest}: "
            "remap them, or pass num_classes"
        )
    return max(1, largest + 1)


def _predicted(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(N,) the class of the largest logit of each of the features, in float64."""
    logits = features.double() @ weight.double().to(features.device).T
    return (logits if bias is None else logits + bias.double().to(features.device)).argmax(1)
