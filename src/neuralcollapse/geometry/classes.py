"""Which classes are measured, when not all are: a list of them, or those with enough samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from neuralcollapse.checks import as_tensor, check_count, check_label_range
from neuralcollapse.errors import InputError, listed

LEFT_OUT = -1  # the label that `ClassSubset.relabel` gives to samples of other classes


def frequent_classes(counts: Tensor, at_least: int) -> Tensor:
    """The classes with at least `at_least` samples, in order.

    Many tokens of a language model's vocabulary occur once or never in a data set: their means say nothing.

    Args:
        counts: (K,) the number of samples of each class.
        at_least: 1 or more.

    Raises:
        InputError: no class has that many.
    """
    check_count(at_least, "at_least", 1)
    counts = as_tensor(counts, "counts")
    if counts.dim() != 1 or not len(counts):
        raise InputError(f"expected counts of shape (K,), got {tuple(counts.shape)}: a number for each class")
    kept = (counts.to(torch.int64) >= at_least).nonzero().flatten()
    if len(kept) == 0:
        raise InputError(
            f"expected classes with at least {at_least} samples, got at most {int(counts.max())}: ask for fewer"
        )
    return kept


def label_counts(labels: Tensor, num_classes: int) -> Tensor:
    """(K,) the number of labels of each class, for labels (N,).

    Raises:
        InputError: labels outside 0..K-1.
    """
    check_label_range(labels, num_classes)
    return labels.bincount(minlength=num_classes)


def chosen_classes(
    classes: Tensor | Sequence[int] | None,
    min_count: int | None,
    num_classes: int,
    counts: Callable[[], Tensor],
) -> ClassSubset | None:
    """The classes given, or those with at least `min_count` samples; None for all classes.

    `counts` returns the (K,) number of samples of each class, and is called only if `min_count` is given.

    Raises:
        InputError: both are given, or for the reasons of `ClassSubset` and `frequent_classes`.
    """
    if min_count is None:
        return None if classes is None else ClassSubset(classes, num_classes)
    if classes is not None:
        raise InputError("expected classes or min_count, got both: give one")
    check_count(min_count, "min_count", 1)  # before the samples are counted
    return ClassSubset(frequent_classes(counts(), min_count), num_classes)


class ClassSubset:
    """Some of K classes, renumbered from 0 in their order; `classes` are their numbers (n,), sorted.

    Raises:
        InputError: numbers outside 0..K-1, repeated numbers, or an empty list.
    """

    def __init__(self, classes: Tensor | Sequence[int], num_classes: int) -> None:
        if isinstance(classes, set | frozenset):
            raise InputError("expected classes as a list of class numbers, got a set: give sorted(classes)")
        given = as_tensor(classes, "classes")
        if given.dim() != 1 or given.is_floating_point() or given.dtype == torch.bool or len(given) == 0:
            raise InputError(
                f"expected classes as a list of class numbers, got {tuple(given.shape)} {given.dtype}: a mask becomes "
                "one by mask.nonzero().flatten()"
            )
        self.classes = given.to(torch.int64).unique()
        wrong = self.classes[(self.classes < 0) | (self.classes >= num_classes)].tolist()
        if wrong:
            raise InputError(f"expected classes from 0 to {num_classes - 1}, got {listed(wrong)}: leave them out")
        if len(self.classes) < len(given):
            raise InputError(f"expected each class once, got {len(given) - len(self.classes)} twice: leave them out")
        places = self.classes.new_full((num_classes,), LEFT_OUT)
        places[self.classes] = torch.arange(len(self.classes), device=self.classes.device)
        self._places = {places.device: places}  # by the device of the labels

    def __len__(self) -> int:
        return len(self.classes)

    def relabel(self, labels: Tensor, ignore_index: int | None = None) -> Tensor:
        """(N,) labels in 0..K-1 as numbers of this subset; LEFT_OUT for other classes and for `ignore_index`.

        On an accelerator, where a look would wait, a label outside 0..K-1 becomes one outside the subset: moments
        report it when somebody looks at them.

        Raises:
            InputError: labels outside 0..K-1, on the CPU.
        """
        if labels.device not in self._places:
            self._places[labels.device] = next(iter(self._places.values())).to(labels.device)
        places = self._places[labels.device]
        ignored = torch.zeros_like(labels, dtype=torch.bool) if ignore_index is None else labels == ignore_index
        if labels.device.type == "cpu":
            check_label_range(labels[~ignored], len(places))
        inside = labels.clamp(0, len(places) - 1)
        return places[inside].masked_fill(inside != labels, len(self)).masked_fill(ignored, LEFT_OUT)

    def rows(self, values: Tensor) -> Tensor:
        """The rows of these classes in a (K, ...) tensor, such as a classifier's weight or bias."""
        return values[self.classes.to(values.device)]
