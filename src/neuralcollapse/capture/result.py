"""Capture: what one pass over a loader gives."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from neuralcollapse.capture.class_by_class import class_table
from neuralcollapse.capture.nearest import HEAD
from neuralcollapse.errors import NeuralCollapseWarning
from neuralcollapse.geometry.class_table import ClassTable
from neuralcollapse.geometry.means import CentredMeans
from neuralcollapse.geometry.measures import measures_of
from neuralcollapse.geometry.moments import ClassMoments
from neuralcollapse.geometry.more import more_measures_of
from neuralcollapse.geometry.standard_errors import errors_of


@dataclass
class Capture:
    """The result of one pass over a loader.

    Attributes:
        moments: moments of the features that the classifier receives.
        weight: (K, d) weight of the classifier, one row for each class that was measured.
        bias: (K,), or None.
        accuracy: share of the samples whose class has the largest logit.
        loss: mean loss.
        nc4: NC4, if it was asked for.
        layers: name -> moments of the outputs of an inner layer.
        classes: the numbers of the classes that were measured, if not all.
        layer: the dotted name of the classifier.
        nonnegative: whether every feature was >= 0, as after a ReLU; False if that is not known.
        ncc_accuracy: the share of samples whose nearest class mean is that of their label, if NC4 was asked for.
        layers_nearest: name -> "nc4" and "ncc_accuracy" of an inner layer, for its own class means.
        correct: (K,) int64, the number of samples of each class whose class has the largest logit; over
            `moments.counts` this is the accuracy by class. None if that is not known.
        groups: the moments of groups of the samples, for standard errors, if these were asked for.
        layers_groups: name -> the same of an inner layer.
        class_names: the names of all K classes, where the model's configuration or the data set has them.
        test: what the pass over the test set gave, if there was one.
    """

    moments: ClassMoments
    weight: Tensor
    bias: Tensor | None
    accuracy: float
    loss: float
    nc4: float | None = None
    layers: dict[str, ClassMoments] = field(default_factory=dict)
    classes: Tensor | None = None
    layer: str = ""
    nonnegative: bool = False
    ncc_accuracy: float | None = None
    layers_nearest: dict[str, dict[str, float]] = field(default_factory=dict)
    correct: Tensor | None = None
    groups: Sequence[ClassMoments] = ()
    layers_groups: dict[str, Sequence[ClassMoments]] = field(default_factory=dict)
    class_names: tuple[str, ...] | None = None
    test: Capture | None = None
    _means: CentredMeans | None = field(default=None, init=False, repr=False, compare=False)

    def per_class(self, names: Sequence[str] | Mapping[int, str] | None = None, *, pairwise: bool = True) -> ClassTable:
        """The measures of each class and its accuracy, as `neuralcollapse.per_class` gives them.

        Args:
            names: of the classes that were measured, or of all, in their order or by number; `class_names` if not
                given.
            pairwise: False leaves out what needs all pairs of classes.

        Raises:
            InputError: names of another number of classes.
        """
        table, reasons = self.quiet_per_class(names, pairwise=pairwise)
        for reason in reasons:
            warnings.warn(f"undefined (NaN): {reason}", NeuralCollapseWarning, stacklevel=2)
        return table

    def quiet_per_class(
        self, names: Sequence[str] | Mapping[int, str] | None = None, *, pairwise: bool = True
    ) -> tuple[ClassTable, list[str]]:
        """`per_class` without its warnings, and their reasons."""
        tested = None
        if self.test is not None and self.test.correct is not None:
            tested = self.test.correct, self.test.moments.counts
        return class_table(
            self.moments,
            self.weight,
            self.bias,
            correct=self.correct,
            tested=tested,
            classes=self.classes,
            names=self.class_names if names is None else names,
            pairwise=pairwise,
            means=self.means,
        )

    def measures(self, *, pairwise: bool | int = True, held_out: bool = False) -> dict[str, Any]:
        """The dict that `measure` returns; of a test set (`held_out`) without the measures of the weight alone."""
        how: dict[str, Any] = {"pairwise": pairwise, "held_out": held_out, "numbers": self.classes}
        result: dict[str, Any] = dict(measures_of(self.moments, self.weight, self.bias, **how, means=self.means))
        if self.groups:
            result |= errors_of(self.moments, self.groups, **how, means=self.means)
        if self.nc4 is not None:
            result["nc4"] = self.nc4
        if self.ncc_accuracy is not None:
            result["ncc_accuracy"] = self.ncc_accuracy
        result |= {"accuracy": self.accuracy, "loss": self.loss, "num_samples": self.moments.num_samples}
        if self.layers:
            result["layers"] = {}
            for name, moments in self.layers.items():
                found = measures_of(moments, **how, layer=name)
                if name in self.layers_groups:
                    found |= errors_of(moments, self.layers_groups[name], **how, layer=name)
                result["layers"][name] = found | self.layers_nearest.get(name, {})
        return result

    def more_measures(self, *, pairwise: bool | int = True, labels_said: bool = False) -> dict[str, float]:
        """`neuralcollapse.more_measures` of the features, without what takes features of length one.

        With `labels_said`, as after `measures`, nothing is said of classes without samples.
        """
        how: dict[str, Any] = {"pairwise": pairwise, "numbers": self.classes, "labels_said": labels_said}
        return more_measures_of(self.moments, self.weight, **how, means=self.means)

    def more_of_layers(self, *, pairwise: bool | int = True) -> dict[str, dict[str, float]]:
        """Name -> `neuralcollapse.more_measures` of the outputs of an inner layer."""
        how: dict[str, Any] = {"pairwise": pairwise, "numbers": self.classes}
        return {name: more_measures_of(moments, None, **how, layer=name) for name, moments in self.layers.items()}

    @property
    def means(self) -> CentredMeans:
        """The centred class means of `moments`: one, with all that was derived of it, for whatever asks for them."""
        held = self._means
        if held is None or held.moments is not self.moments or held.num_samples != self.moments.num_samples:
            held = self._means = CentredMeans(self.moments, self.classes)
        return held

    @property
    def all_moments(self) -> dict[str, ClassMoments]:
        """Those of the features and of the inner layers, by name."""
        return {HEAD: self.moments, **self.layers}
