"""GroupedMoments: the samples of a pass dealt to groups with moments of their own, each a fair sample of every class.

The r-th sample of a class goes to group `r + offset mod G`, with another offset for each class, so that the groups are
alike whatever the order of the samples, and have its share of each class, as nearly as whole samples can. Rows
wait until there are some thousand, as a group of a small batch would be a few rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Integral

import numpy as np
import torch
from torch import Tensor

from neuralcollapse.checks import check_count, check_features, check_finite, check_label_range, check_labels, moved
from neuralcollapse.errors import InputError, NumberedError
from neuralcollapse.geometry.intake import waits_for_nothing, wrong_batch
from neuralcollapse.geometry.moments import ClassMoments
from neuralcollapse.geometry.packed import packed_size, state_device
from neuralcollapse.geometry.products import add_gram

GROUPS, _FEWEST = 20, 10
_FEWER = (20, 10, 5, 4)  # which divide 20, so that the samples of a class stay spread evenly
_BYTES, _MOST_BYTES = 2**30, 2**32  # of the groups: fewer are made beyond the first, and none beyond the second
_ROWS, _VALUES, _FEWEST_ROWS = 8192, 2**23, 1024  # that wait, at most
_BLOCK = 4096  # classes at a time
_GOLDEN = 0.6180339887498949


def check_errors(errors: object) -> bool | int:
    """`errors`, if it is a bool or a number of groups, at least 2."""
    if isinstance(errors, bool):
        return errors
    if isinstance(errors, Integral):
        return check_count(errors, "errors (groups of samples)", 2)
    raise InputError(f"expected errors True, False or a number of groups, got {errors!r}: give an integer")


def number_of_groups(
    errors: bool | int, num_classes: int, feature_dim: int, means_dtype: torch.dtype = torch.float64, layers: int = 1
) -> int:
    """How many groups `errors` asks for: 0 for False, the number given, or for True as many as fit, 10 to 20.

    `layers` is how many layers of about this size share the memory.

    Raises:
        InputError: a number below 2, or ten groups would take more than 4 GiB.
    """
    errors = check_errors(errors)
    if not isinstance(errors, bool):
        return errors
    if not errors:
        return 0
    size = 8 * packed_size(num_classes, feature_dim, means_dtype) * layers
    if _FEWEST * size > _MOST_BYTES:
        raise InputError(
            f"expected standard errors to take up to 4 GiB, got {_FEWEST * size / 2**30:.0f} GiB for {_FEWEST} groups "
            f"of K={num_classes}, d={feature_dim}{f' in {layers} layers' if layers > 1 else ''}: measure fewer classes "
            "(classes, min_count) or layers, or give errors=5 for five groups"
        )
    return max(_FEWEST, min(GROUPS, _BYTES // size))


class GroupedMoments:
    """Moments of features by group, added to like `ClassMoments`.

    On the CPU a batch is checked at once. An accelerator is waited for only where some thousand rows are dealt: what
    was wrong with a batch comes to light then, and nothing of it is counted.

    Args:
        num_classes: K.
        feature_dim: d.
        groups: G.
        device: where they live.
        means_dtype: as of `ClassMoments`.
        share: how many parts of the samples came before this one, of all parts: each process begins with other groups,
            so that those of a class with few samples do not meet in the same.
    """

    def __init__(
        self,
        num_classes: int,
        feature_dim: int,
        groups: int,
        device: torch.device | str | None = None,
        *,
        means_dtype: torch.dtype = torch.float64,
        share: float = 0.0,
    ) -> None:
        self._on_host = waits_for_nothing(state_device(device))
        self._parts = [
            ClassMoments.zeros(num_classes, feature_dim, device, means_dtype=means_dtype) for _ in range(groups)
        ]
        self._num_classes, self._feature_dim = num_classes, feature_dim
        self._size = min(_ROWS, max(_FEWEST_ROWS, _VALUES // feature_dim))
        self._rows: Tensor | None = None  # those that wait
        self._labels = torch.empty(self._size, dtype=torch.int64, device=self._parts[0].device)
        self._marks = np.zeros(self._size, dtype=np.int64)  # the number of each waiting row's batch
        self._filled = self._updates = 0
        self._wrong: dict[int, bool] = {}  # the number of each wrong batch that nobody was told of: are its labels?
        classes = torch.arange(num_classes, dtype=torch.float64, device=self._parts[0].device)
        self._next = ((classes * _GOLDEN + share) % 1 * groups).long()  # the group of the next sample of each class

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Add a batch; nothing of a wrong one is added.

        Raises:
            InputError: as `ClassMoments.update`; on an accelerator of wrong labels or values of this batch or of
                earlier ones, some time later.
        """
        self._put(features, self._checked(features, labels), [len(features)])

    def update_batches(self, features: Tensor, labels: Tensor, sizes: Sequence[int]) -> None:
        """Add several batches, one after the other in `features` and `labels`; a wrong one is named by its number."""
        try:
            wanted = self._checked(features, labels)
        except InputError:
            for number, (part, part_labels) in enumerate(
                zip(features.split(list(sizes)), labels.split(list(sizes)), strict=True), self._updates + 1
            ):
                try:
                    self._checked(part, part_labels)
                except InputError as error:
                    raise NumberedError(f"batch {number}: {error}") from None
            raise
        self._put(features, wanted, sizes)

    def round_at_least(self, spacing: float) -> None:
        """As of `ClassMoments`."""
        for part in self._parts:
            part.round_at_least(spacing)

    def parts(self) -> list[ClassMoments]:
        """The moments of each group; of 10, 5 or 4 where there are 20 and most classes have fewer samples than that.

        So each group has a sample of each class: without one group the classes keep their shares of the samples.
        """
        self._all_dealt()
        counts = torch.stack([part.counts for part in self._parts]).sum(0)
        if len(self._parts) != GROUPS or not bool(counts.any()):
            return list(self._parts)
        median = int(counts[counts > 0].median())
        wanted = next((number for number in _FEWER if median >= number), _FEWER[-1])
        return [joined(self._parts[first::wanted]) for first in range(wanted)]

    def whole(self) -> ClassMoments:
        """The moments of all samples."""
        self._all_dealt()
        return joined(self._parts)

    def mapped(self, change: Callable[[ClassMoments], ClassMoments]) -> None:
        """Put other moments in the place of each group's, such as those of the same group over all processes."""
        self._all_dealt()
        self._parts = [change(part) for part in self._parts]

    def _checked(self, features: Tensor, labels: Tensor) -> Tensor:
        check_features(features)
        if features.shape[1] != self._feature_dim:
            raise InputError(
                f"expected features of dimension {self._feature_dim}, got {features.shape[1]}: use one layer throughout"
            )
        labels = check_labels(labels, len(features))
        if self._on_host:
            check_label_range(labels, self._num_classes)
            check_finite(features)
        return labels

    @torch.no_grad()
    def _put(self, features: Tensor, labels: Tensor, sizes: Sequence[int]) -> None:
        """Let batches of these sizes wait, or deal them if they are many rows."""
        marks = np.repeat(np.arange(self._updates + 1, self._updates + 1 + len(sizes)), sizes)
        self._updates += len(sizes)
        labels = moved(labels, self._next.device)
        if self._rows is not None and self._rows.dtype != features.dtype:
            self._deal()
            self._rows = None
        if len(labels) > self._size - self._filled:
            self._deal()
        if len(labels) >= self._size // 4 and not self._filled:  # many enough as they are
            self._add(features, labels, marks)
        else:
            if self._rows is None:
                with torch.inference_mode(False):
                    self._rows = torch.empty(
                        self._size, features.shape[1], dtype=features.dtype, device=self._next.device
                    )
            start, self._filled = self._filled, self._filled + len(labels)
            self._rows[start : self._filled].copy_(features, non_blocking=not self._on_host)
            self._labels[start : self._filled].copy_(labels)
            self._marks[start : self._filled] = marks
        self._tell()

    @torch.no_grad()
    def _deal(self) -> None:
        filled, self._filled = self._filled, 0
        if filled and self._rows is not None:
            self._add(self._rows[:filled], self._labels[:filled], self._marks[:filled])

    def _all_dealt(self) -> None:
        """Deal what waits, and raise for a batch that was wrong."""
        self._deal()
        self._tell()

    def _tell(self) -> None:
        wrong, self._wrong = self._wrong, {}
        if wrong:
            first = min(wrong)
            raise wrong_batch(first, len(wrong), self._num_classes if wrong[first] else None)

    def _right(self, features: Tensor, labels: Tensor, marks: np.ndarray) -> tuple[Tensor, Tensor]:
        """Rows and labels without those of wrong batches, which are remembered."""
        outside = (labels < 0) | (labels >= self._num_classes)
        wrong = (outside | ~features.isfinite().all(1).to(labels.device)).cpu()
        if not bool(wrong.any()):
            return features, labels
        outside = outside.cpu()
        for number in np.unique(marks[wrong.numpy()]).tolist():
            self._wrong[number] = bool(outside[torch.from_numpy(marks == number)].any())
        kept = torch.from_numpy(~np.isin(marks, list(self._wrong))).nonzero().flatten()
        return features[kept.to(features.device)], labels[kept.to(labels.device)]

    def _add(self, features: Tensor, labels: Tensor, marks: np.ndarray) -> None:
        """Deal rows to the groups."""
        if not self._on_host:
            features, labels = self._right(features, labels, marks)
        order = labels.argsort(stable=True)
        counts = torch.bincount(labels, minlength=self._num_classes)
        ranks = torch.empty_like(labels)
        ranks[order] = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[labels[order]]
        dealt = (self._next[labels] + ranks) % len(self._parts)
        self._next = (self._next + counts) % len(self._parts)
        order = dealt.argsort(stable=True)
        sizes = torch.bincount(dealt, minlength=len(self._parts)).tolist()
        rows, numbers = features[order.to(features.device)].split(sizes), labels[order].split(sizes)
        for part, mine, their_labels in zip(self._parts, rows, numbers, strict=True):
            part.update(mine, their_labels)


def joined(parts: Sequence[ClassMoments]) -> ClassMoments:
    """The moments of all samples of the parts, by fewer products than one merge after the other.

    Raises:
        InputError: parts of different K, d or dtype of the means.
    """
    first = parts[0]
    for part in parts[1:]:
        if part.shape != first.shape:
            first.merge(part)  # which says how they differ
    num_classes, dim, means_dtype = first.shape
    packed = torch.zeros_like(first.packed)
    whole = ClassMoments(packed, num_classes, dim, means_dtype)
    spreads, means, upper = whole.spreads, whole.means, whole.upper
    taken = torch.stack([part.counts for part in parts]).to(packed)
    packed[:num_classes] = counts = taken.sum(0)
    shares = taken / counts.clamp(min=1)
    for part in parts:
        upper += part.upper.to(upper)
        spreads += part.spreads.to(spreads)
    packed[-1] = max(part.rounding for part in parts)
    for start in range(0, num_classes, _BLOCK):
        rows = slice(start, start + _BLOCK)
        origin = torch.zeros_like(means[rows], dtype=torch.float64)  # of each class, its mean in some part
        for part, count in zip(parts, taken, strict=True):
            origin = torch.where(count[rows, None] > 0, part.means[rows].to(packed), origin)
        centre = origin.clone()  # sums of differences, so that equal means stay as they are
        for part, share in zip(parts, shares, strict=True):
            centre += share[rows, None] * (part.means[rows].to(packed) - origin)
        means[rows] = centre
        waiting: list[Tensor] = []
        for part, count in zip(parts, taken, strict=True):
            moved = (part.means[rows].to(packed) - centre) * count[rows, None].sqrt()
            spreads[rows] += moved.square().sum(1)
            waiting.append(moved)
            if part is parts[-1] or len(waiting) * len(moved) > _BLOCK:
                add_gram(upper, torch.cat(waiting))
                waiting = []
    return whole


def without(whole: ClassMoments, part: ClassMoments) -> ClassMoments:
    """The moments of the samples of `whole` that are not in `part`, which must not be most of them: undoes `merge`.

    A class that is whole in `part` has no samples then, and no sense.
    """
    num_classes, dim, means_dtype = whole.shape
    packed = whole.packed.clone()
    rest = ClassMoments(packed, num_classes, dim, means_dtype)
    counts, spreads, means, upper = packed[:num_classes], rest.spreads, rest.means, rest.upper
    taken = part.counts.double().to(counts)
    counts -= taken
    share = taken / counts.clamp(min=1)
    weights = taken + taken * share  # n_g n / (n - n_g)
    upper -= part.upper.to(upper)
    for start in range(0, num_classes, _BLOCK):
        rows = slice(start, start + _BLOCK)
        moved = part.means[rows].to(counts) - means[rows]
        moved[taken[rows] == 0] = 0
        means[rows] -= (share[rows, None] * moved).to(means.dtype)
        spreads[rows] -= part.spreads[rows].to(counts) + weights[rows] * moved.square().sum(1)
        add_gram(upper, moved.mul_(weights[rows].sqrt()[:, None]), -1)
    spreads.clamp_(min=0)
    return rest
