"""Data sets as tensors in memory, and batches cut from them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from neuralcollapse.data import label_changes
from neuralcollapse.data.catalog import check_classes, read
from neuralcollapse.data.splits import Split
from neuralcollapse.errors import InputError, one_line

__all__ = ["Batches", "Data", "Split", "load_data"]

_CHUNK = 4096  # images counted at a time


@dataclass(frozen=True)
class Data:
    """A data set in memory.

    Args:
        train: the training images (N, C, H, W) uint8 and labels (N,) int64.
        test: the same of the test set; it may have no samples.
        class_names: of the K classes.
        mean: of each of the C channels over the training images, in units of the uint8 values.
        std: likewise; 1 for a channel that is constant.
        channels: what the network sees: 3 where grey images are repeated, else C.
    """

    train: Split
    test: Split
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels: int

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, H, W) of what the network sees."""
        _, _, height, width = self.train.images.shape
        return self.channels, height, width


def load_data(
    name: str,
    *,
    image_size: int | None = None,
    channels: int | None = None,
    samples_per_class: int | None = None,
    imbalance: str | None = None,
    random_labels: bool = False,
    label_noise: float = 0.0,
    seed: int = 0,
) -> Data:
    """A data set by name: read, resized, and with its training labels changed where that is asked for.

    The training set is changed in the order samples_per_class, imbalance, random_labels, label_noise; the test set
    never is.

    Args:
        name: "digits", "mnist", "fashion-mnist", "cifar10", "cifar100", one of these with its folder as in
            "mnist:FOLDER", "idx:FOLDER", "imagefolder:FOLDER", or the id of a data set of the Hugging Face hub.
        image_size: resize images to this height and width.
        channels: 3 repeats grey images to three channels.
        samples_per_class: keep so many training samples of each class.
        imbalance: "exponential:R" or "step:R": the first class keeps R times the samples of the last.
        random_labels: give the training samples random labels, each class as often as any other.
        label_noise: share of training samples of which the label is replaced by another class.
        seed: of the samples that are kept and of the labels that are drawn.

    Raises:
        InputError: no such data set, files that are missing or damaged, a hub that cannot be reached, too few samples
            of a class, or options that do not go with the images.
    """
    try:
        source = read(name, image_size)
    except (MemoryError, OverflowError, RuntimeError) as error:
        why = one_line(error, 120)
        if isinstance(error, RuntimeError) and not any(
            word in why for word in ("alloc", "memory", "verflow", "too large")
        ):
            raise
        what = f"the images of {name} at image_size={image_size}"
        raise InputError(f"{what} are too large for this machine ({why})") from None
    stored = source.train.images.shape[1]
    if channels not in (None, stored) and stored != 1:
        raise InputError(
            f"channels={channels} is for grey images, and those of {name} have {stored} channels: leave it out"
        )
    (images, labels), names = (source.train.images, source.train.labels), source.class_names
    if samples_per_class is not None:
        chosen = label_changes.samples_per_class(labels, samples_per_class, names, seed)
        images, labels = images[chosen], labels[chosen]
    if imbalance is not None:
        chosen = label_changes.imbalance(labels, imbalance, len(names), seed)
        images, labels = images[chosen], labels[chosen]
    if random_labels:
        labels = label_changes.random_labels(len(labels), len(names), seed)
    if label_noise:
        labels = label_changes.label_noise(labels, label_noise, len(names), seed)
    check_classes(labels, names, name)
    mean, std = _statistics(images)
    return Data(Split(images, labels), source.test, names, mean, std, channels or stored)


class Batches:
    """Batches of a split: in order, or shuffled anew at each epoch; with several processes, this one's share of each.

    Cut straight from memory: a DataLoader would collate the samples one by one. Process r of w gets every w-th sample
    of each batch, from the r-th on.

    In order, every sample comes once over all processes, and a process passes over a last batch too small to hold a
    sample for it. Shuffled, the order is a function of (shuffle_seed, epoch) alone, so that a run can go on from any
    batch, and all processes have the same number of batches with at least 2 samples in each, since batch
    normalisation cannot train on one: a last batch with fewer joins the batch before.

    Args:
        split: images (N, ...) and labels (N,).
        batch_size: samples in a batch, over all processes.
        shuffle_seed: None for batches in order.
        device: where the batches are going. A CUDA device holds the split where it takes less than half of its free
            memory; else the batches come from the CPU, pinned.
        rank: this process, from 0.
        world: number of processes.

    Raises:
        InputError: too few samples, or too small a batch, for 2 samples in each process's batch while shuffling.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        *,
        shuffle_seed: int | None = None,
        device: torch.device | str | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.batch_size = batch_size
        self.shuffle_seed = shuffle_seed
        self.rank = rank
        self.world = world
        self.epoch = 0
        self.skip = 0
        count = len(split.labels)
        least = 2 * world
        if shuffle_seed is not None and min(count, batch_size) < least:
            raise InputError(
                f"expected at least {least} samples in a training batch, 2 for each of {world} processes, got a "
                f"batch_size of {batch_size} and {count} samples"
            )
        starts = range(0, count, batch_size)
        if shuffle_seed is not None and 0 < count % batch_size < least:
            starts = starts[:-1]
        bounds = zip(starts, [*starts[1:], count], strict=True) if starts else ()
        self._bounds = [(start, stop) for start, stop in bounds if start + rank < stop]
        goes_to = torch.device("cpu" if device is None else device)
        self._pinned = goes_to.type == "cuda" and not _fits(split, goes_to)
        if goes_to.type == "cuda" and not self._pinned:
            split = Split(split.images.to(goes_to), split.labels.to(goes_to))
        self.split = split

    @property
    def sizes(self) -> list[int]:
        """Samples in each batch, over all processes."""
        return [stop - start for start, stop in self._bounds]

    def set_epoch(self, epoch: int) -> None:
        """Shuffle the next pass as that of `epoch`."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self._bounds)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # done when the first batch is asked for, not before: a loop may make iterators in vain
        skip, self.skip = self.skip, 0
        yield from self._pass(self._bounds[skip:], self._order())

    def _order(self) -> Tensor | None:
        if self.shuffle_seed is None:
            return None
        source = label_changes.generator("order", self.shuffle_seed, self.epoch)
        return torch.randperm(len(self.split.labels), generator=source).to(self.split.labels.device)

    def _pass(self, bounds: list[tuple[int, int]], order: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
        for start, stop in bounds:
            part = slice(start + self.rank, stop, self.world)
            if order is None:
                images, labels = self.split.images[part], self.split.labels[part]
            else:
                chosen = order[part]
                images, labels = (tensor.index_select(0, chosen) for tensor in (self.split.images, self.split.labels))
            yield (images.pin_memory(), labels.pin_memory()) if self._pinned else (images, labels)


def _statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, exactly, from counts of the 256 values."""
    counts = torch.zeros(images.shape[1], 256, dtype=torch.int64)
    for part in images.split(_CHUNK):
        for channel, row in enumerate(counts):
            row += part[:, channel].flatten().bincount(minlength=256)
    values = torch.arange(256, dtype=torch.float64)
    shares = counts / counts.sum(1, keepdim=True).double()
    means = shares @ values
    variances = (shares * (values - means[:, None]).square()).sum(1)
    return tuple(means.tolist()), tuple(math.sqrt(variance) or 1.0 for variance in variances.tolist())


def _fits(split: Split, device: torch.device) -> bool:
    free, _ = torch.cuda.mem_get_info(device)
    return split.images.nbytes + split.labels.nbytes < free / 2
