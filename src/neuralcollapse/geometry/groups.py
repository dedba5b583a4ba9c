"""GroupedMoments: the samples of a pass dealt to groups with moments of their own, each a fair sample of every class.

The r-th sample of a class goes to group `r + offset mod G`, with another offset for each class, so that the groups are
alike whatever the order of the samples, and of a class with fewer samples than groups no two are in one group. Rows
wait until there are some thousand, as a group of a small batch would be a few rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from neuralcollapse.checks import check_count, check_features, check_finite, check_label_range, check_labels
from neuralcollapse.errors import InputError
from neuralcollapse.geometry.moments import ClassMoments, packed_size

GROUPS, _FEWEST = 20, 10
_BYTES, _MOST_BYTES = 2**30, 2**32  # of the groups: fewer are made beyond the first, and none beyond the second
_ROWS, _VALUES = 8192, 2**23  # that wait, at most
_GOLDEN = 0.6180339887498949


def number_of_groups(
    errors: bool | int, num_classes: int, feature_dim: int, means_dtype: torch.dtype = torch.float64
) -> int:
    """How many groups `errors` asks for: 0 for False, the number given, or for True as many as fit, 10 to 20.

    Raises:
        InputError: a number below 2, or ten groups would take more than 4 GiB.
    """
    if not isinstance(errors, bool):
        if isinstance(errors, float):
            raise InputError(f"expected errors True, False or a number of groups, got {errors!r}: give an integer")
        return check_count(errors, "errors (groups of samples)", 2)
    if not errors:
        return 0
    size = 8 * packed_size(num_classes, feature_dim, means_dtype)
    if _FEWEST * size > _MOST_BYTES:
        raise InputError(
            f"expected standard errors to take up to 4 GiB, got {_FEWEST * size / 2**30:.0f} GiB for {_FEWEST} groups "
            f"of K={num_classes}, d={feature_dim}: measure fewer classes (classes, min_count), or give errors=5 for "
            "five groups"
        )
    return max(_FEWEST, min(GROUPS, _BYTES // size))


class GroupedMoments:
    """Moments of features by group, added to like `ClassMoments`.

    Args:
        num_classes: K.
        feature_dim: d.
        groups: G.
        device: where they live.
        means_dtype: as of `ClassMoments`.
    """

    def __init__(
        self,
        num_classes: int,
        feature_dim: int,
        groups: int,
        device: torch.device | str | None = None,
        *,
        means_dtype: torch.dtype = torch.float64,
    ) -> None:
        self._parts = [
            ClassMoments.zeros(num_classes, feature_dim, device, means_dtype=means_dtype) for _ in range(groups)
        ]
        self._num_classes, self._feature_dim = num_classes, feature_dim
        self._rows = min(_ROWS, max(256, _VALUES // feature_dim))
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._filled = 0
        offsets = (torch.arange(num_classes, dtype=torch.float64) * _GOLDEN % 1 * groups).long()
        self._next = offsets.to(self._parts[0].device)  # the group of the next sample of each class

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Add a batch; nothing of a wrong one is added.

        Raises:
            InputError: as `ClassMoments.update`, at once on any device.
        """
        check_features(features)
        if features.shape[1] != self._feature_dim:
            raise InputError(
                f"expected features of dimension {self._feature_dim}, got {features.shape[1]}: use one layer throughout"
            )
        labels = check_labels(labels, len(features))
        check_label_range(labels, self._num_classes)
        check_finite(features)
        self._waiting.append((features.detach().clone(), labels.clone()))
        self._filled += len(labels)
        if self._filled >= self._rows:
            self._deal()

    def groups(self) -> Sequence[ClassMoments]:
        """The moments of each group."""
        self._deal()
        return self._parts

    def whole(self) -> ClassMoments:
        """The moments of all samples."""
        self._deal()
        whole = self._parts[0].merge(self._parts[1])
        for part in self._parts[2:]:
            whole.absorb(part)
        return whole

    @torch.no_grad()
    def _deal(self) -> None:
        if not self._waiting:
            return
        features, labels = (torch.cat(rows) for rows in zip(*self._waiting, strict=True))
        self._waiting, self._filled = [], 0
        places = labels.to(self._next.device)
        order = places.argsort(stable=True)
        counts = torch.bincount(places, minlength=self._num_classes)
        ranks = torch.empty_like(places)
        ranks[order] = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[places[order]]
        dealt = (self._next[places] + ranks) % len(self._parts)
        self._next = (self._next + counts) % len(self._parts)
        order = dealt.argsort(stable=True).to(features.device)
        sizes = torch.bincount(dealt, minlength=len(self._parts)).tolist()
        rows, row_labels = features[order].split(sizes), labels[order].split(sizes)
        for part, mine, their_labels in zip(self._parts, rows, row_labels, strict=True):
            part.update(mine, their_labels)
