"""The table of the classes that a pass measured, and their worst pairs, under their own numbers and names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from neuralcollapse.checks import check_class_names
from neuralcollapse.errors import InputError
from neuralcollapse.geometry.class_table import ClassTable
from neuralcollapse.geometry.means import CentredMeans
from neuralcollapse.geometry.moments import ClassMoments
from neuralcollapse.geometry.pairs import ClassPair, worst_pairs_of
from neuralcollapse.geometry.per_class import quiet_per_class

Names = Sequence[str] | Mapping[int, str]


def class_table(
    moments: ClassMoments,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    correct: Tensor | None,
    tested: tuple[Tensor, Tensor] | None = None,
    classes: Tensor | None,
    names: Names | None,
    pairwise: bool = True,
    means: CentredMeans | None = None,
) -> tuple[ClassTable, list[str]]:
    """The table, and the reasons for what is undefined in it.

    Args:
        moments: of the K' classes that were measured.
        weight: (K', d) of these classes, or None.
        bias: (K',), or None.
        correct: (K',) right predictions of each class; None if they are not known.
        tested: (K',) right predictions and (K',) samples of each class in the test set, if there is one.
        classes: (K',) the numbers of these classes, if they are not all.
        names: of the K' classes, or of all.
        pairwise: as in `neuralcollapse.per_class`.
        means: the centred means of the moments under these numbers, if they are at hand.
    """
    accuracy = None if correct is None else correct.double().cpu() / moments.counts.cpu().clamp(min=1)
    table, reasons = quiet_per_class(
        moments,
        weight,
        bias,
        names=measured_names(names, classes, moments.num_classes, strict=True),
        accuracy=accuracy,
        pairwise=pairwise,
        numbers=classes,
        means=means,
    )
    if tested is not None:
        right, counts = (each.double().cpu() for each in tested)
        table = replace(table, test_accuracy=right / counts)  # NaN for a class without test samples
    return table, reasons


def confused(means: CentredMeans, *, names: Names | None, pairwise: bool | int, count: int = 10) -> list[ClassPair]:
    """The worst pairs of classes with their own numbers and names; none where there is nothing to compare.

    `names` are as of `class_table`; with a number P as `pairwise`, the pairs are those of a sample of P.
    """
    if pairwise is False:
        return []
    classes = means.numbers
    known = measured_names(names, classes, means.moments.num_classes, strict=True)
    try:
        found = worst_pairs_of(means, count, pairwise, known)
    except InputError:  # fewer than two class means
        return []
    if classes is None:
        return found
    numbers = classes.tolist()
    pairs = [ClassPair(numbers[pair.first], numbers[pair.second], pair.cdnv) for pair in found]
    for pair, named in zip(pairs, found, strict=True):
        pair.names = named.names
    return pairs


def measured_names(
    names: Names | None, classes: Tensor | None, count: int, *, strict: bool = False
) -> tuple[str, ...] | None:
    """The names of the `count` classes that were measured, from theirs or from those of all classes.

    Args:
        names: in the order of the classes, or by number.
        classes: (K',) the numbers of the classes that were measured, if they are not all.
        count: how many they are.
        strict: names of another number of classes raise InputError; else there are none then.
    """
    if names is None or (not len(names) and not strict):
        return None
    if classes is not None and isinstance(names, Mapping):
        names = [names.get(number, str(number)) for number in classes.tolist()]
    elif classes is not None and len(names) > max(count, int(classes.max())):
        names = [names[number] for number in classes.tolist()]
    try:
        return check_class_names(names, count)
    except InputError:
        if strict:
            raise
        return None
