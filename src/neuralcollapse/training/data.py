"""Data sets as tensors in memory, and batches cut from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from neuralcollapse._errors import InputError, nearest


@dataclass(frozen=True)
class Split:
    """Images (N, ...) float32 and labels (N,) int64."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Data:
    """A data set: its two splits and the names of its classes."""

    train: Split
    test: Split
    class_names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)


class Batches:
    """Batches of a split, in order or newly shuffled at each pass.

    Cut straight from memory: a DataLoader would collate the samples one by one. While shuffling, a last
    batch of one sample joins the batch before it, since batch normalisation cannot train on one.
    """

    def __init__(self, split: Split, batch_size: int, generator: torch.Generator | None = None) -> None:
        self.split = split
        self.batch_size = batch_size
        self.generator = generator

    def _starts(self) -> list[int]:
        count = len(self.split.labels)
        starts = list(range(0, count, self.batch_size))
        if self.generator is not None and count % self.batch_size == 1 and len(starts) > 1:
            starts.pop()
        return starts

    def __len__(self) -> int:
        return len(self._starts())

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        images, labels = self.split.images, self.split.labels
        starts = self._starts()
        if self.generator is not None:
            order = torch.randperm(len(labels), generator=self.generator)
        for start, stop in zip(starts, [*starts[1:], len(labels)], strict=True):
            part = slice(start, stop)
            chosen = part if self.generator is None else order[part]
            yield images[chosen], labels[chosen]


def load_data(name: str) -> Data:
    """A data set by name.

    Raises:
        InputError: no such data set (the nearest name is offered).
    """
    if name not in _DATA_SETS:
        raise InputError(f"no data set {name!r}{nearest(name, _DATA_SETS)}; there are: {', '.join(_DATA_SETS)}")
    return _DATA_SETS[name]()


def _digits() -> Data:
    """scikit-learn's handwritten digits: 1,797 grey images of 8x8 pixels; a fixed stratified fifth is the test set."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    train, test, train_labels, test_labels = train_test_split(
        pixels.astype("float32"), labels.astype("int64"), test_size=360, random_state=0, stratify=labels
    )
    mean, spread = float(train.mean()), float(train.std())
    splits = [
        Split(torch.from_numpy((images - mean) / spread).view(-1, 1, 8, 8), torch.from_numpy(classes))
        for images, classes in ((train, train_labels), (test, test_labels))
    ]
    return Data(splits[0], splits[1], tuple(str(digit) for digit in range(10)))


_DATA_SETS: dict[str, Callable[[], Data]] = {"digits": _digits}
