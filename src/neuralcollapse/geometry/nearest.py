"""NearestMeans: which class mean lies nearest to each sample, for NC4 and the accuracy of the nearest mean."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from neuralcollapse.geometry.matrix import BlockedMatrix
from neuralcollapse.geometry.moments import ClassMoments


class NearestMeans:
    """The means of the classes that have samples, about the mean of all samples, ready to be compared with features.

    The moments must hold samples. Scores are taken about `centre` (d,), by default the mean of these samples.
    """

    def __init__(self, moments: ClassMoments, centre: Tensor | None = None) -> None:
        self._centre = moments.global_mean if centre is None else centre
        self._seen = moments.counts.nonzero().flatten()
        all_seen = len(self._seen) == moments.num_classes
        self._means = BlockedMatrix(moments.means, None if all_seen else self._seen, self._centre)
        self._halves = [self._means.block(part).square().sum(1) / 2 for part in self._means.parts()]

    def disagreements(self, features: Tensor, predicted: Tensor) -> Tensor:
        """The number of the (N, d) features whose nearest mean is not that of the class predicted for them, (N,).

        A float64 scalar on the moments' device, which nothing has waited for; NaN if a feature is not finite.
        """
        return self.mismatches(features, [predicted])[0]

    def mismatches(self, features: Tensor, classes: Sequence[Tensor]) -> Tensor:
        """For each (N,) of `classes`, the number of the (N, d) features whose nearest mean is not that of their class.

        A float64 vector on the moments' device, which nothing has waited for; NaN if a feature is not finite. Of means
        at the same distance the first counts.
        """
        centred = features.to(device=self._centre.device, dtype=torch.float64) - self._centre
        nearest, _ = self._nearest(centred)
        total = centred.sum()
        found = [(nearest != numbers.to(nearest.device)).sum() for numbers in classes]
        return torch.stack(found) + (total - total)

    def nearest(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(N,) the class of the mean nearest to each of the (N, d) features, and a score, larger the nearer it is."""
        return self._nearest(features.to(device=self._centre.device, dtype=torch.float64) - self._centre)

    def _nearest(self, centred: Tensor) -> tuple[Tensor, Tensor]:
        """As `nearest`, of centred rows; not all scores of many classes at once."""
        best = centred.new_full((len(centred),), -math.inf)
        nearest = torch.zeros(len(centred), dtype=torch.int64, device=centred.device)
        for part, halves in zip(self._means.parts(), self._halves, strict=True):
            score, place = (centred @ self._means.block(part).T).sub_(halves).max(1)
            nearest = torch.where(score > best, self._seen[part][place], nearest)
            best = torch.maximum(best, score)
        return nearest, best
