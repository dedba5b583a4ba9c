"""Waiting: the rows of small batches, copied side by side until a block is full."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from neuralcollapse.checks import sent
from neuralcollapse.geometry.rounding import sampled

# On the CPU a block holds so many values at most, and fewer rows: longer products are no faster, and round more.
_HOST_VALUES, _HOST_ROWS = 2**22, 2048
# With so many classes more rows are faster, as the sums of the classes pass through memory once a block. Of still more
# classes most rows of a block are single.
_MANY_CLASSES, _MANY_CLASSES_ROWS = range(500, 5_000), 4096
# On an accelerator the operations of a block cost the same however many rows it has.
_DEVICE_VALUES, _DEVICE_ROWS = 2**23, 16384
_FEWEST_ROWS = 256


def block_rows(num_classes: int, feature_dim: int, *, on_host: bool) -> int:
    """The number of rows of a full block."""
    values, most = _DEVICE_VALUES, _DEVICE_ROWS
    if on_host:
        values, most = _HOST_VALUES, _MANY_CLASSES_ROWS if num_classes in _MANY_CLASSES else _HOST_ROWS
    return min(most, max(_FEWEST_ROWS, values // feature_dim))


class Waiting:
    """A block of rows in the features' own dtype, and their labels.

    `ignored` is the label of rows that are left out, the same for all rows of the block.
    """

    def __init__(self, like: Tensor, rows: int, device: torch.device, ignored: int | None) -> None:
        self.ignored = ignored
        self.filled = self._written = 0
        self.room = rows
        self._marks = np.zeros(rows, dtype=np.int64)
        with torch.inference_mode(False):
            self._features = torch.empty(rows, like.shape[1], dtype=like.dtype, device=device)
            self._labels = torch.empty(rows, dtype=torch.int64, device=device)

    @property
    def dtype(self) -> torch.dtype:
        """That of the features."""
        return self._features.dtype

    def put(self, features: Tensor, labels: Tensor, mark: int | np.ndarray) -> None:
        """Copy rows, which must fit, with the mark of their batch or one for each row.

        On an accelerator this dispatches four operations and waits for nothing.
        """
        start, self.filled = self.filled, self.filled + len(labels)
        self.room -= len(labels)
        self._features[start : self.filled].copy_(features, non_blocking=True)
        self._labels[start : self.filled].copy_(labels, non_blocking=True)
        self._marks[start : self.filled] = mark

    def take(self) -> tuple[Tensor, Tensor]:
        """The features and labels of the rows; the block is empty afterwards, and its memory is used again."""
        taken = self._features, self._labels
        if self.room:
            taken = self._features[: self.filled], self._labels[: self.filled]
        self._written = max(self._written, self.filled)
        self.room += self.filled
        self.filled = 0
        return taken

    def snapshot(self) -> tuple[Tensor, Tensor, Tensor, int | None]:
        """Copies of the rows, their labels and marks, and the label that is left out."""
        marks = torch.from_numpy(self._marks[: self.filled].copy())
        return self._features[: self.filled].clone(), self._labels[: self.filled].clone(), marks, self.ignored

    def marks(self) -> Tensor:
        """(N,) the mark of the batch of each row, on the rows' device."""
        marks = torch.from_numpy(self._marks[: self.filled].copy())
        return sent(marks, self._labels.device)

    def sample(self) -> Tensor:
        """Some of the rows that were taken last."""
        return sampled(self._features[: self._written])
