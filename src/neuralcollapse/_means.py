"""The class means about the mean of the samples, over the classes seen: what the measures start from."""

from __future__ import annotations

import math
from functools import cached_property

import torch

from neuralcollapse._rows import Rows
from neuralcollapse._undefined import Undefined
from neuralcollapse.moments import ClassMoments

OVERFLOW = "squares of the values overflow float64: scale the features and weights down"
# Of the largest entry of the class means: entries of mu_k - mu_G below it are rounding alone.
_ROUNDING = {torch.float64: 1e-13, torch.float32: 1e-6}


class Means:
    """The class means about the mean of the samples, over the classes seen."""

    def __init__(self, moments: ClassMoments) -> None:
        self.moments = moments
        self.seen = moments.counts.nonzero().flatten()
        self.complete = len(self.seen) == moments.num_classes
        self.unseen = (moments.counts == 0).nonzero().flatten().tolist()

    @cached_property
    def centred(self) -> Rows:
        """M, the rows mu_k - mu_G; undefined below two classes or when all means coincide."""
        moments = self.moments
        if len(self.seen) == 0:
            raise Undefined("no samples were seen")
        if len(self.seen) == 1:
            raise Undefined(f"only class {int(self.seen[0])} has samples, and a spread between classes needs two")
        index = None if self.complete else self.seen
        rounding = _ROUNDING[moments.means.dtype] * Rows(moments.means, index).largest
        rows = Rows(moments.means, index, moments.global_mean, math.sqrt(moments.feature_dim) * rounding)
        size = rows.largest
        if not math.isfinite(size * size * rows.count * rows.dim):
            raise Undefined(OVERFLOW)
        if size <= rounding:
            raise Undefined("all class means coincide, so there is no spread between classes")
        return rows


def as_means(moments: ClassMoments, means: Means | None) -> Rows:
    """M of the moments, or of what has been made of them already."""
    return (means or Means(moments)).centred
