"""The reference of a pass: the moments of another one, to whose class means its samples are compared."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping

from torch import Tensor

from neuralcollapse.capture.nearest import HEAD
from neuralcollapse.capture.result import Capture
from neuralcollapse.errors import InputError, NeuralCollapseWarning, listed
from neuralcollapse.geometry.classes import ClassSubset
from neuralcollapse.geometry.moments import ClassMoments

Reference = ClassMoments | Mapping[str, ClassMoments] | Capture


def reference_moments(
    reference: Reference, layers: Iterable[str], num_classes: int, subset: ClassSubset | None
) -> dict[str, ClassMoments]:
    """The moments to compare with, by the name of the layer, numbered like the classes that are measured.

    Args:
        reference: what the user gave.
        layers: the names of the inner layers that are measured.
        num_classes: K of the classifier.
        subset: the classes that are measured, if not all.

    Raises:
        InputError: it is something else, a layer is missing, or the moments hold other classes or no samples.
    """
    given = _by_layer(reference, subset)
    found = {}
    for name in (HEAD, *layers):
        moments = given.get(name)
        what = f"the inner layer {name!r}" if name else "the features"
        if not isinstance(moments, ClassMoments):
            known = listed([repr(each) for each in given]) or "none"
            raise InputError(
                f"expected reference moments of {what}, got those of {known}: give a dict from the names of layers to "
                f"ClassMoments, with {HEAD!r} for the features that the classifier receives"
            )
        if subset is not None and moments.num_classes == num_classes != len(subset):
            chosen = subset.classes.to(moments.device)
            moments = ClassMoments.from_means(moments.counts[chosen], moments.means[chosen])
        count = num_classes if subset is None else len(subset)
        if moments.num_classes != count:
            raise InputError(
                f"expected reference moments of {what} with {count} classes, got {moments.num_classes}: measure the "
                "same classes in both passes"
            )
        if moments.num_samples == 0:
            raise InputError(f"expected reference moments of {what} with samples, got none: update them first")
        found[name] = moments
    return found


def _by_layer(reference: Reference, subset: ClassSubset | None) -> Mapping[str, ClassMoments]:
    """The moments of a reference by the name of the layer.

    Raises:
        InputError: it is something else, or of other classes.
    """
    if isinstance(reference, ClassMoments):
        return {HEAD: reference}
    if isinstance(reference, Capture):
        theirs = None if reference.classes is None else reference.classes.tolist()
        ours = None if subset is None else subset.classes.tolist()
        if theirs is not None and theirs != ours:
            raise InputError(
                f"the reference was measured with classes {listed(theirs)}, got "
                f"{'all classes' if ours is None else f'classes {listed(ours)}'}: measure the same in both passes"
            )
        return reference.all_moments
    if not isinstance(reference, Mapping):
        raise InputError(
            f"expected reference as ClassMoments, or a dict of them by layer, got a {type(reference).__name__}: give "
            "the moments of another pass, as in collect(model, train_loader).moments"
        )
    return reference


def warn_of_unseen(counts: Tensor, known: Tensor, classes: Tensor | None) -> None:
    """Say which samples are of classes that have no mean.

    Args:
        counts: (K,) the samples of each class.
        known: (K,) the samples behind each mean.
        classes: (K,) the numbers of the classes, if not all are measured.
    """
    missing = ((known.to(counts.device) == 0) & (counts > 0)).nonzero().flatten()
    if len(missing) == 0:
        return
    numbers = missing if classes is None else classes.to(missing.device)[missing]
    several = "es" * (len(missing) > 1)
    warnings.warn(
        f"the training set, or reference, has no samples of class{several} {listed(numbers.tolist())}: those samples "
        f"here, {int(counts[missing].sum())}, count as wrong in ncc_accuracy",
        NeuralCollapseWarning,
        stacklevel=4,
    )
