"""Batches cut from tensors in memory, the same for every number of processes and from every batch on."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from neuralcollapse.data.label_changes import seeded_generator
from neuralcollapse.data.splits import Split
from neuralcollapse.errors import InputError


class Batches:
    """Batches of a split, in order or reshuffled at each epoch; with several processes, the share of this one.

    They are cut straight from memory, where a DataLoader would collate the samples one by one. Process r of w gets
    every w-th sample of each batch, beginning with the r-th.

    In order, every sample comes exactly once over all processes; a process skips a last batch that is too small to hold
    a sample for it. Shuffled, the order depends on (shuffle_seed, epoch) alone, so that a run can continue from any
    batch, and all processes have the same number of batches of at least 2 samples, since batch normalisation cannot
    train on one: a smaller last batch is joined to the one before.

    Args:
        split: images (N, ...) and labels (N,).
        batch_size: samples in a batch, over all processes.
        shuffle_seed: None for batches in order.
        device: that the batches are for. A CUDA device holds the whole split if that takes less than half of its free
            memory; otherwise the batches come from the CPU, pinned.
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
        starts = range(0, count, batch_size) if shuffle_seed is None else training_starts(count, batch_size, world)
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
        # only when the first batch is asked for: Lightning may make iterators that it never uses
        skip, self.skip = self.skip, 0
        order = None
        if self.shuffle_seed is not None:
            source = seeded_generator("order", self.shuffle_seed, self.epoch)
            order = torch.randperm(len(self.split.labels), generator=source).to(self.split.labels.device)
        for start, stop in self._bounds[skip:]:
            part = slice(start + self.rank, stop, self.world)
            if order is None:
                images, labels = self.split.images[part], self.split.labels[part]
            else:
                chosen = order[part]
                images, labels = (tensor.index_select(0, chosen) for tensor in (self.split.images, self.split.labels))
            yield (images.pin_memory(), labels.pin_memory()) if self._pinned else (images, labels)


def training_starts(num_samples: int, batch_size: int, world: int = 1) -> range:
    """The first sample of each batch of an epoch of training, in its order; as many as the epoch has steps.

    Raises:
        InputError: too few samples, or too small a batch, for 2 samples in each process's batch.
    """
    least = 2 * world
    if min(num_samples, batch_size) < least:
        raise InputError(
            f"expected at least {least} samples in a training batch, 2 for each of {world} processes, got a "
            f"batch_size of {batch_size} and {num_samples} samples"
        )
    starts = range(0, num_samples, batch_size)
    return starts[:-1] if 0 < num_samples % batch_size < least else starts


def _fits(split: Split, device: torch.device) -> bool:
    if split.images.device.type == "cuda":  # those of the training, which are measured too
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return split.images.nbytes + split.labels.nbytes < free / 2
