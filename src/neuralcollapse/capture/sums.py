"""Sums: what one pass over the data adds up, in one process or joined over several."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from neuralcollapse.capture.captured import CapturedBatch
from neuralcollapse.capture.forward import Forward
from neuralcollapse.capture.hooks import ROWS, spot_rows
from neuralcollapse.capture.nearest import NearestCounts, Rows
from neuralcollapse.capture.team import Team
from neuralcollapse.errors import InputError
from neuralcollapse.geometry.groups import GroupedMoments, number_of_groups
from neuralcollapse.geometry.moments import ClassMoments
from neuralcollapse.geometry.packed import state_device

# Features, with those of inner layers, are kept for NC4 up to this size; beyond it the network runs a second time over
# the loader.
_KEEP_BYTES = 512 * 2**20
# Plain batches wait until there are so many rows, or so many logits.
_PLAIN_ROWS, _PLAIN_LOGITS = 2048, 2**20


class _Shapes(NamedTuple):
    """What one process has measured."""

    samples: int
    head: str
    dim: int
    layers: dict[str, int]


class Sums:
    """The sums of a pass over the data.

    Attributes:
        kept: of each batch what is compared with the class means afterwards; None once too large, or if not asked for.
        nearest: counts samples by their nearest mean of another pass, if there was one.
        grouped: the moments by group of samples, which `moments` joins then; None without standard errors.
    """

    def __init__(
        self,
        num_classes: int,
        means_dtype: torch.dtype,
        loss: Callable[[Tensor, Tensor], Tensor],
        *,
        keep: bool,
        exact: bool = False,
        nearest: NearestCounts | None = None,
        errors: bool | int = False,
        share: float = 0.0,
    ) -> None:
        self.grouped: GroupedMoments | None = None
        self._ungrouped: ClassMoments | None = None
        self._layers: dict[str, ClassMoments | GroupedMoments] = {}
        self.kept: list[Rows] | None = [] if keep else None
        self.nearest = nearest
        # as tensors, so that no batch waits
        self._correct: Tensor | None = None
        self._loss_sum: Tensor | None = None
        self._num_classes = num_classes
        self._means_dtype = means_dtype
        self._loss = loss
        self._exact = exact  # products in float64, whatever the features' dtype
        self._errors, self._share = errors, share  # as of GroupedMoments
        self._kept_bytes = 0
        self._least: Tensor | None = None
        self._elsewhere = True
        self._plain: list[tuple[Tensor, Tensor, Tensor]] = []  # features, labels and logits of batches that wait
        self._plain_rows = 0

    @property
    def moments(self) -> ClassMoments | None:
        """Those of the features; None before the first batch. Where they are grouped, each call joins the groups."""
        return self._ungrouped if self.grouped is None else self.grouped.whole()

    @property
    def layers(self) -> dict[str, ClassMoments]:
        """Name -> moments of the outputs of an inner layer."""
        return {name: part.whole() if isinstance(part, GroupedMoments) else part for name, part in self._layers.items()}

    @property
    def grouped_layers(self) -> dict[str, GroupedMoments]:
        """The same by group of samples, where there are groups."""
        return {name: part for name, part in self._layers.items() if isinstance(part, GroupedMoments)}

    @property
    def _features(self) -> ClassMoments | GroupedMoments | None:
        """What the features are added to."""
        return self._ungrouped if self.grouped is None else self.grouped

    @property
    def nonnegative(self) -> bool:
        """Whether no feature so far, in any process that was joined, was below 0."""
        return self._elsewhere and (self._least is None or bool(self._least >= 0))

    @property
    def correct(self) -> Tensor:
        """(K,) int64: the number of samples of each class that have its logit as their largest."""
        return (
            torch.zeros(self._num_classes, dtype=torch.int64, device="cpu") if self._correct is None else self._correct
        )

    @property
    def total_loss(self) -> float:
        """The sum of the losses."""
        return 0.0 if self._loss_sum is None else float(self._loss_sum)

    def add(self, forward: Forward, batch: Any) -> None:
        """Run a batch through the network and add it to the sums."""
        rows = None if self._features is None else forward.plain(batch)
        if rows is not None:
            self._plain.append(rows)
            self._plain_rows += len(rows[1])
            logits = rows[2]
            if self._plain_rows >= _PLAIN_ROWS or self._plain_rows * logits.shape[1] >= _PLAIN_LOGITS:
                self.flush(forward)
            else:  # a model may write the next batch's logits, and a loader its labels, to the same place
                self._plain[-1] = (rows[0], rows[1].clone(), logits.clone())
            return
        self.flush(forward)
        captured = forward(batch)
        if self._features is None:
            self._begin(captured.features.shape[1], captured.features.device, 1 + len(captured.layers))
            assert self._features is not None
            self._features.round_at_least(forward.spacing)
        self._features.update(self._summed(captured.features), captured.labels)
        self._count(captured, forward)

    def flush(self, forward: Forward) -> None:
        """Add the plain batches that wait: some thousand rows cost little more than a few."""
        waiting, self._plain, self._plain_rows = self._plain, [], 0
        if not waiting:
            return
        assert self._features is not None
        sizes = [len(labels) for _, labels, _ in waiting]
        first = forward.batches - len(sizes) + 1
        features, labels, logits = (
            torch.cat(parts) if len(waiting) > 1 else parts[0] for parts in zip(*waiting, strict=True)
        )
        self._features.update_batches(self._summed(features), labels, sizes)
        picked = spot_rows(len(labels), labels.device, ROWS * len(sizes))
        places = spot_rows(len(labels), torch.device("cpu"), ROWS * len(sizes)).numpy()
        numbers = np.repeat(np.arange(first, first + len(sizes)), sizes)[places].tolist()
        forward.see(numbers, features[picked], logits[picked])
        self._count(CapturedBatch(features, labels, labels, {}, logits, logits, None), forward)

    def _count(self, captured: CapturedBatch, forward: Forward) -> None:
        """Add everything but the moments of the features."""
        self._least = least_feature(captured.features, self._least)
        for name, outputs in captured.layers.items():
            if name not in self._layers:
                self._layers[name] = self._made(outputs.shape[1], outputs.device, 1 + len(captured.layers))
                self._layers[name].round_at_least(forward.spacing)
            self._layers[name].update(outputs, captured.labels)
        loss = exact(captured.loss(self._loss))
        self._loss_sum = loss if self._loss_sum is None else self._loss_sum.to(loss.device) + loss
        self._correct = add_correct(self._correct, captured, self._num_classes)
        if self.kept is None and self.nearest is None:
            return
        rows = Rows.of(captured, forward.subset)
        if self.nearest is not None:
            self.nearest.add(rows)
        if self.kept is not None:
            self.kept.append(rows)
            self._kept_bytes += rows.num_bytes
            self.kept = self.kept if self._kept_bytes <= _KEEP_BYTES else None

    def join(self, forward: Forward, team: Team) -> None:
        """Join the sums of all processes; all of them must call this.

        Raises:
            InputError: the processes do not measure the same layers, or do not get the same batches where they must.
        """
        if not team.joins:
            return
        told = team.exchanged(partial(self._shapes, forward))
        first = next((each for each in told if each.samples), None)
        if first is None:
            return  # an error that all processes find
        for rank, each in enumerate(told):
            if each.samples and (each.head, each.dim, each.layers) != (first.head, first.dim, first.layers):
                raise InputError(
                    f"expected the same layers in all processes, got {each.head!r} (d = {each.dim}) in process {rank} "
                    f"and {first.head!r} (d = {first.dim}) in process {told.index(first)}: name the classifier"
                )
        if self._features is None:
            self._begin(first.dim, forward.device, 1 + len(first.layers))
        for name, dim in first.layers.items():
            if name not in self._layers:
                self._layers[name] = self._made(dim, forward.device, 1 + len(first.layers))
        kept, signed, loss, *correct = team.summed(
            self.kept is None, not self.nonnegative, self.total_loss, *self.correct.tolist()
        )
        self._loss_sum = torch.tensor(loss, dtype=torch.float64, device="cpu")
        self._correct = torch.tensor(correct, dtype=torch.float64, device="cpu").to(torch.int64)
        self.kept = self.kept if kept == 0 else None
        self._elsewhere = signed == 0
        if self.grouped is not None:
            self.grouped.mapped(team.merged)
        elif self._ungrouped is not None:
            self._ungrouped = team.merged(self._ungrouped)
        for name in first.layers:
            part = self._layers[name]
            if isinstance(part, GroupedMoments):
                part.mapped(team.merged)
            else:
                self._layers[name] = team.merged(part)

    def _shapes(self, forward: Forward) -> _Shapes:
        """What the processes must have in common, if they have samples."""
        moments = self.moments
        if moments is None or moments.num_samples == 0:
            return _Shapes(0, "", 0, {})
        layers = {name: part.feature_dim for name, part in self.layers.items()}
        return _Shapes(moments.num_samples, forward.head.name, moments.feature_dim, layers)

    def _summed(self, features: Tensor) -> Tensor:
        """The features in the dtype whose products are summed."""
        return exact(features) if self._exact else features

    def _begin(self, dim: int, device: torch.device, layers: int) -> None:
        made = self._made(dim, device, layers)
        if isinstance(made, GroupedMoments):
            self.grouped = made
        else:
            self._ungrouped = made

    def _made(self, dim: int, device: torch.device, layers: int) -> ClassMoments | GroupedMoments:
        """Moments of no samples, in groups where there are to be standard errors; `layers` share the memory."""
        groups = number_of_groups(self._errors, self._num_classes, dim, self._means_dtype, layers)
        if groups:
            options: dict[str, Any] = {"means_dtype": self._means_dtype, "share": self._share}
            return GroupedMoments(self._num_classes, dim, groups, device, **options)
        return ClassMoments.zeros(self._num_classes, dim, device, means_dtype=self._means_dtype)


def exact(value: Tensor) -> Tensor:
    """Numbers in float64, on their own device if that has float64."""
    return value.detach().to(device=state_device(value.device), dtype=torch.float64)


def add_correct(before: Tensor | None, captured: CapturedBatch, num_classes: int) -> Tensor:
    """(K,) `before`, with the samples of each class that are predicted right; nothing waits for the device.

    A label that is out of range, which an accelerator finds only later, counts for nothing.
    """
    right, labels = (captured.predicted == captured.targets).long(), captured.labels
    device = state_device(labels.device)
    counts = torch.zeros(num_classes, dtype=torch.int64, device=device) if before is None else before.to(device)
    # `bincount` would wait for the device. The classes of wrong labels are not predicted, so that they add nothing.
    return counts.index_add_(0, labels.clamp(0, num_classes - 1).to(device), right.to(device))


def least_feature(features: Tensor, least: Tensor | None = None) -> Tensor | None:
    """The smallest entry of the features and of those before them, as a tensor on their device; None without any."""
    if not features.numel():
        return least
    smallest = features.detach().amin()
    return smallest if least is None else torch.minimum(smallest, least.to(smallest))
