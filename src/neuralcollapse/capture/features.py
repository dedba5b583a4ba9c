"""The measures of features that are already in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from neuralcollapse.capture.class_by_class import Names, class_table, confused
from neuralcollapse.capture.reference import warn_of_unseen
from neuralcollapse.checks import as_tensor, check_classifier, check_features, check_labels
from neuralcollapse.errors import InputError
from neuralcollapse.geometry.class_table import ClassTable
from neuralcollapse.geometry.classes import LEFT_OUT, ClassSubset, chosen_classes, label_counts
from neuralcollapse.geometry.groups import GroupedMoments, number_of_groups
from neuralcollapse.geometry.intake import kept_rows
from neuralcollapse.geometry.means import CentredMeans
from neuralcollapse.geometry.measures import measures_of
from neuralcollapse.geometry.moments import ClassMoments
from neuralcollapse.geometry.more import more_measures_of
from neuralcollapse.geometry.nearest import NearestMeans
from neuralcollapse.geometry.packed import state_device
from neuralcollapse.geometry.pairs import ClassPair
from neuralcollapse.geometry.standard_errors import errors_of

_BLOCK_ROWS = 4_096  # features that are brought to length one at a time


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
    test_features: Tensor | None = None,
    test_labels: Tensor | None = None,
    more: bool = False,
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
        test_features: (M, d) of a test set, measured beside the others and not counted among them.
        test_labels: (M,) integers.
        more: add what `neuralcollapse.more_measures` gives of the same samples and classes.

    Returns:
        The keys of `neuralcollapse.measures`, "num_samples" and "ncc_accuracy" (the share of samples whose nearest
        class mean is that of their label); with a weight also "nc4" and "accuracy"; with `more` also "more", a dict of
        further numbers. With a test set also "test", as in `measure`: about its own class means, with "nc4" and
        "ncc_accuracy" to those of `features`.

    Raises:
        InputError: arrays that do not fit together, no samples, or values that are not finite.
    """
    values, *_ = _measured(
        features,
        labels,
        weight,
        bias,
        num_classes,
        ignore_index=ignore_index,
        classes=classes,
        min_count=min_count,
        means_dtype=means_dtype,
        pairwise=pairwise,
        test_features=test_features,
        test_labels=test_labels,
        more=more,
        errors=errors,
    )
    return values


def measure_features_by_class(
    features: Tensor,
    labels: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    num_classes: int | None = None,
    *,
    names: Names | None = None,
    pairwise: bool | int = True,
    **options: Any,
) -> tuple[dict[str, Any], ClassTable, list[ClassPair]]:
    """What `measure_features` returns, the table of the classes, and the pairs that are hardest to tell apart.

    `names` are those of all classes, or of those that are measured; `options` as there. Unless `pairwise` is True, the
    table has nothing that needs all pairs of classes.
    """
    values, head, seen, test = _measured(features, labels, weight, bias, num_classes, pairwise=pairwise, **options)
    classes = None if head.subset is None else head.subset.classes
    means = CentredMeans(seen.moments, classes)
    table, _ = class_table(
        seen.moments,
        *head.rows(),
        correct=None if weight is None else seen.correct,
        tested=None if weight is None or test is None else (test.correct, test.moments.counts),
        classes=classes,
        names=names,
        pairwise=pairwise is True,
        means=means,
    )
    return values, table, confused(means, names=names, pairwise=pairwise)


def _measured(
    features: Tensor,
    labels: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    num_classes: int | None,
    *,
    test_features: Tensor | None = None,
    test_labels: Tensor | None = None,
    more: bool = False,
    errors: bool | int = False,
    ignore_index: int | None = None,
    classes: Tensor | Sequence[int] | None = None,
    min_count: int | None = None,
    means_dtype: torch.dtype = torch.float64,
    pairwise: bool | int = True,
) -> tuple[dict[str, Any], _Head, _Seen, _Seen | None]:
    """What `measure_features` returns, and what was seen on the way, of the samples and of the test set."""
    features, labels = _samples(features, labels, ignore_index)
    weight = None if weight is None else as_tensor(weight, "weight").detach()
    bias = None if bias is None else as_tensor(bias, "bias").detach()
    if (test_features is None) != (test_labels is None):
        raise InputError("expected test_features and test_labels together, got one of them: give both, or neither")
    test = None
    if test_features is not None and test_labels is not None:
        with _of_test_set():
            test = _samples(test_features, test_labels, ignore_index)
    if num_classes is None:
        every = labels if test is None else torch.cat([labels, test[1].to(labels.device)])
        num_classes = _count_classes(every) if weight is None else _rows(weight, features.shape[1])
    check_classifier(weight, bias, num_classes, features.shape[1])
    total = num_classes
    subset = chosen_classes(classes, min_count, num_classes, lambda: label_counts(labels, total))
    head = _Head(weight, bias, num_classes, subset, means_dtype, pairwise, more, errors)
    seen = head.measured(features, labels)
    tested = None
    if test is not None:
        with _of_test_set():
            tested = head.measured(*test, seen.moments)
        seen.values["test"] = tested.values
    return seen.values, head, seen, tested


class _Seen(NamedTuple):
    """Of samples: their measures, their moments and (K',) the right predictions of each class."""

    values: dict[str, Any]
    moments: ClassMoments
    correct: Tensor


@dataclass
class _Head:
    """What the features are measured with: the classifier of all classes, the classes that are measured, options."""

    weight: Tensor | None
    bias: Tensor | None
    num_classes: int
    subset: ClassSubset | None
    means_dtype: torch.dtype
    pairwise: bool | int
    more: bool
    errors: bool | int

    def rows(self) -> tuple[Tensor | None, Tensor | None]:
        """Weight and bias of the classes that are measured."""
        if self.subset is None:
            return self.weight, self.bias
        weight, bias = (None if values is None else self.subset.rows(values) for values in (self.weight, self.bias))
        return weight, bias

    def measured(self, features: Tensor, labels: Tensor, train: ClassMoments | None = None) -> _Seen:
        """What is seen of samples; of a test set, if there are moments of the training set."""
        subset, targets, num_classes = self.subset, labels, self.num_classes
        weight, bias = self.rows()
        if subset is not None:
            labels = subset.relabel(labels)
            kept = kept_rows(features, labels, LEFT_OUT)
            features, labels, targets = features[kept], labels[kept], targets[kept]
            num_classes = len(subset)
        if len(labels) == 0:
            raise InputError("none of the samples is of one of the classes: give classes that come in the labels")
        groups = number_of_groups(self.errors, num_classes, features.shape[1], self.means_dtype)
        if groups:
            device = state_device(features.device)
            grouped = GroupedMoments(num_classes, features.shape[1], groups, device, means_dtype=self.means_dtype)
            grouped.update(features, labels)
            moments = grouped.whole()
        else:
            moments = ClassMoments.from_batch(features, labels, num_classes, means_dtype=self.means_dtype)
        if train is not None and train.feature_dim != moments.feature_dim:
            raise InputError(f"expected features of dimension {train.feature_dim}, got {moments.feature_dim}")
        classes = None if subset is None else subset.classes
        how: dict[str, Any] = {"pairwise": self.pairwise, "held_out": train is not None, "numbers": classes}
        result: dict[str, Any] = dict(measures_of(moments, weight, bias, **how))
        if groups:
            result |= errors_of(moments, grouped.parts(), **how)
        if train is not None:
            warn_of_unseen(moments.counts, train.counts, classes)
        result["num_samples"] = count = moments.num_samples
        if self.more and train is None:
            result["more"] = _more(moments, features, labels, weight, self.pairwise, classes)
        nearest = NearestMeans(moments if train is None else train)
        correct = torch.zeros(num_classes, dtype=torch.int64, device="cpu")
        wrong = torch.zeros(2, dtype=torch.float64, device="cpu")
        parts = (each.split(max(1, 2**22 // self.num_classes)) for each in (features, labels, targets))
        for block, numbers, wanted in zip(*parts, strict=True):
            predicted = wanted if self.weight is None else _predicted(block, self.weight, self.bias)
            hit = predicted == wanted.to(predicted.device)
            correct += label_counts(numbers[hit.to(numbers.device)], num_classes).cpu()
            predicted = predicted if subset is None else subset.relabel(predicted)
            wrong += nearest.mismatches(block, [numbers, predicted]).cpu()
        result["ncc_accuracy"] = (count - float(wrong[0])) / count
        if weight is not None:
            result |= {"nc4": float(wrong[1]) / count, "accuracy": int(correct.sum()) / count}
        return _Seen(result, moments, correct)


def _samples(features: Any, labels: Any, ignore_index: int | None) -> tuple[Tensor, Tensor]:
    """Features and labels as tensors that fit together, without the ignored samples."""
    features, labels = as_tensor(features, "features").detach(), as_tensor(labels, "labels")
    check_features(features)
    labels = check_labels(labels, features.shape[0])
    if ignore_index is not None:
        kept = kept_rows(features, labels, ignore_index)
        features, labels = features[kept], labels[kept]
    if len(labels) == 0:
        raise InputError("got no samples: features and labels are empty")
    return features, labels


@contextmanager
def _of_test_set() -> Iterator[None]:
    """Inside, errors say that they are about the test set."""
    try:
        yield
    except InputError as error:
        raise InputError(f"test set: {error}") from None


def _more(
    moments: ClassMoments,
    features: Tensor,
    labels: Tensor,
    weight: Tensor | None,
    pairwise: bool | int,
    classes: Tensor | None,
) -> dict[str, float]:
    """`more_measures`, with GNC1 of the features at length one where none is zero."""
    unit = ClassMoments.zeros(moments.num_classes, moments.feature_dim, features.device)
    for block, block_labels in zip(features.split(_BLOCK_ROWS), labels.split(_BLOCK_ROWS), strict=True):
        unit.update(torch.nn.functional.normalize(block.double(), dim=1), block_labels)
    unit.round_at_least(moments.rounding)
    return more_measures_of(moments, weight, unit=unit, pairwise=pairwise, numbers=classes, labels_said=True)


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
