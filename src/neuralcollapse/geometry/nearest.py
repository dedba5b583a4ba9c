"""NearestMeans: which class mean lies nearest to each sample, for NC4 and the accuracy of the nearest mean."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from neuralcollapse.geometry import intake
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
        total = features.sum(dtype=torch.float64).to(self._centre.device)
        nearest = self._by_single(features) if self._single(features) else self._nearest(features)
        found = [(nearest != numbers.to(nearest.device)).sum() for numbers in classes]
        return torch.stack(found) + (total - total)

    def _single(self, features: Tensor) -> bool:
        """Whether a product in float32 can come first: on a CPU, where it takes half the time and nothing waits."""
        at_once = all(intake.waits_for_nothing(each.device) for each in (self._centre, features))
        return at_once and features.dtype != torch.float64 and len(self._halves) == 1

    def _by_single(self, features: Tensor) -> Tensor:
        """`_nearest` in float32, and in float64 for the rows whose two best classes its rounding may have swapped."""
        means, single = self._means, torch.finfo(torch.float32)
        rows = features.float() - self._centre.float()
        scores = (rows @ means.block(means.parts()[0]).float().T).sub_(self._halves[0].float())
        best, place = scores.max(1)
        longest, away = (float(each) for each in (means.norms.max(), torch.linalg.vector_norm(self._centre)))
        lengths = torch.linalg.vector_norm(rows, dim=1)
        # Each of the two scores may be off by (d + 2) eps |x| |m| in the product, by eps |mu_G| |m| through the centre
        # and by eps |m|^2 in the halves.
        off = 2 * single.eps * longest * ((means.dim + 2) * lengths + away + longest) + 2 * means.dim * single.tiny
        least = best - off
        unsure = ((scores >= least[:, None]).sum(1) != 1) | ~least.isfinite()
        nearest = self._seen[place]
        chosen = unsure.nonzero().flatten()
        if len(chosen):
            nearest[chosen] = self._nearest(features[chosen])
        return nearest

    def _nearest(self, features: Tensor) -> Tensor:
        """(N,) the class of the mean that lies nearest to each row."""
        return self.nearest(features)[0]

    def nearest(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(N,) the class of the mean nearest to each of the (N, d) features, and a score, larger the nearer it is.

        Not all scores of many classes are held at once.
        """
        centred = features.to(device=self._centre.device, dtype=torch.float64) - self._centre
        best = centred.new_full((len(centred),), -math.inf)
        nearest = torch.zeros(len(centred), dtype=torch.int64, device=centred.device)
        for part, halves in zip(self._means.parts(), self._halves, strict=True):
            score, place = (centred @ self._means.block(part).T).sub_(halves).max(1)
            nearest = torch.where(score > best, self._seen[part][place], nearest)
            best = torch.maximum(best, score)
        return nearest, best
