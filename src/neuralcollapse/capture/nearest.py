"""NearestCounts: for how many samples the nearest class mean is that of their label, or of the class predicted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from neuralcollapse.capture.captured import CapturedBatch
from neuralcollapse.errors import InputError
from neuralcollapse.geometry.classes import ClassSubset
from neuralcollapse.geometry.moments import ClassMoments
from neuralcollapse.geometry.nearest import NearestMeans
from neuralcollapse.geometry.packed import state_device

HEAD = ""  # the name of the features that the classifier receives, among those of inner layers
# So many samples are compared at once.
_BLOCK_ROWS = 512


class Rows(NamedTuple):
    """The samples of a batch, as far as they are compared with class means.

    Attributes:
        features: name -> (N, d) features of a layer; `HEAD` for those that the classifier receives.
        labels: (N,) labels, numbered like the predictions among the classes that are measured.
        by_head: (N,) the classes predicted by the head, `LEFT_OUT` for classes that are not measured.
        by_model: (N,) the classes predicted by the model.
    """

    features: dict[str, Tensor]
    labels: Tensor
    by_head: Tensor
    by_model: Tensor

    @classmethod
    def of(cls, captured: CapturedBatch, subset: ClassSubset | None) -> Rows:
        """Those of a batch. The labels are copied: a loader may write the next batch's to the same place."""
        by_head, by_model = captured.head_predicted, captured.predicted
        if subset is not None:
            by_head, by_model = subset.relabel(by_head), subset.relabel(by_model)
        return cls({HEAD: captured.features, **captured.layers}, captured.labels.clone(), by_head, by_model)

    @property
    def num_bytes(self) -> int:
        """The size of the features."""
        return sum(each.numel() * each.element_size() for each in self.features.values())


class NearestCounts:
    """Counts over batches, without waiting for the device.

    `means` are the moments whose class means are compared with the features, by the name of the layer. They must hold
    samples, and be those of the classes that are measured.
    """

    def __init__(self, means: Mapping[str, ClassMoments]) -> None:
        self._moments = dict(means)
        self.counts = self._moments[HEAD].counts  # (K,) the samples behind the means
        self._nearest: dict[str, NearestMeans] = {}
        self._counts: dict[str, Tensor] = {}  # name -> (3,) mismatches with label, head and model
        self._waiting: list[Rows] = []
        self._rows = 0
        self.seen = 0

    def add(self, rows: Rows) -> NearestCounts:
        """Count a batch, now or when there are enough samples for one fast product; returns self.

        Raises:
            InputError: features of another dimension than the class means.
        """
        if not self._nearest:
            self._nearest = {name: self._ready(name, part) for name, part in rows.features.items()}
        self._waiting.append(rows)
        self._rows += len(rows.labels)
        if self._rows >= _BLOCK_ROWS:
            self._flush()
        return self

    def add_all(self, batches: Iterable[Rows]) -> NearestCounts:
        """Count several batches; returns self."""
        for rows in batches:
            self.add(rows)
        return self

    def shares(
        self, *, by_model: bool, summed: Callable[..., list[float]] | None = None
    ) -> dict[str, dict[str, float]]:
        """Name -> "nc4" and "ncc_accuracy" of all samples so far, NaN without any.

        Args:
            by_model: whether "nc4" is of the classes that the model predicted, and not of those that the head did.
            summed: adds up each of some numbers over the processes that measure together.

        Raises:
            InputError: features that are not finite.
        """
        self._flush()
        names = list(self._moments)
        none = torch.zeros(3, dtype=torch.float64, device="cpu")
        counts = torch.stack([self._counts.get(name, none).cpu() for name in names]).flatten().tolist()
        if summed is not None:
            *counts, seen = summed(*counts, self.seen)
            self.seen = int(seen)
        if any(map(math.isnan, counts)):  # after the sum, which is NaN in all processes if it is in one
            raise InputError(
                "expected finite features in the second pass, got NaN or infinity: check the data and the model"
            )
        total = self.seen or math.nan
        found = {}
        for place, name in enumerate(names):
            labels, head, model = counts[3 * place : 3 * place + 3]
            found[name] = {"nc4": (model if by_model else head) / total, "ncc_accuracy": (total - labels) / total}
        return found

    def _ready(self, name: str, features: Tensor) -> NearestMeans:
        """The means of a layer on the device of its features."""
        moments = self._moments[name]
        if moments.feature_dim != features.shape[1]:
            of = f"layer {name!r}" if name else "features"
            raise InputError(
                f"expected reference moments of the {of} of dimension {features.shape[1]}, got {moments.feature_dim}: "
                "give those of the same network"
            )
        device = state_device(features.device)
        if moments.device != device:
            moments = ClassMoments.from_means(moments.counts.to(device), moments.means.to(device))
        return NearestMeans(moments)

    def _flush(self) -> None:
        waiting, self._waiting, self._rows = self._waiting, [], 0
        if not waiting:
            return
        classes = [torch.cat(parts) for parts in list(zip(*waiting, strict=True))[1:]]
        for name, nearest in self._nearest.items():
            counts = nearest.mismatches(torch.cat([rows.features[name] for rows in waiting]), classes)
            self._counts[name] = self._counts[name] + counts if name in self._counts else counts
        self.seen += len(classes[0])
