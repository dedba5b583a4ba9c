"""NC4 from batches of features and predicted classes: how often the prediction is not the class of the nearest mean."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable

from torch import Tensor

from neuralcollapse.errors import NeuralCollapseWarning
from neuralcollapse.geometry.measures import nc4_disagreements
from neuralcollapse.geometry.moments import ClassMoments


def disagreements(batches: Iterable[tuple[Tensor, Tensor]], moments: ClassMoments) -> tuple[int, int]:
    """The number of predicted classes that are not the class of the nearest mean, and the number of samples."""
    wrong, count = 0, 0
    for features, predicted in batches:
        wrong += nc4_disagreements(features, predicted, moments)
        count += len(predicted)
    return wrong, count


def disagreement_share(wrong: float, seen: float, count: int) -> float:
    """NC4, the share of `count` samples that disagree; NaN with a warning unless all were seen a second time."""
    if seen == count:
        return wrong / count
    warnings.warn(
        f"undefined (NaN): nc4 needs a second pass over the loader, which gave {seen:.0f} samples instead of "
        f"{count}: give a DataLoader that can be run again, or nc4=False",
        NeuralCollapseWarning,
        stacklevel=4,
    )
    return math.nan
