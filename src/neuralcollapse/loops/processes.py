"""Measuring while one process trains, or many: every sample once, and the same network in all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from neuralcollapse.errors import InputError

_BATCH = 64  # samples, where the loader does not say


def in_order(loader: Any, rank: int = 0, world: int = 1, *, batch_size: int | None = None) -> DataLoader[Any]:
    """A loader of the same data, un-shuffled, of which each process gets its own share.

    Args:
        loader: a DataLoader; its data set, batch size, collate_fn and workers are taken, its order is not.
        rank: of this process.
        world: how many there are.
        batch_size: instead of the loader's.

    Returns:
        A loader that gives every `world`-th sample from the `rank`-th on: together the processes see each once.

    Raises:
        InputError: no DataLoader, or one that cannot be split: its data set can only be iterated.
    """
    if not isinstance(loader, DataLoader):
        raise InputError(
            f"expected the data to measure as a DataLoader, got {type(loader).__name__}: give the callback a loader of "
            "the un-augmented training set"
        )
    data = loader.dataset
    options: dict[str, Any] = {
        "batch_size": batch_size or loader.batch_size or getattr(loader.batch_sampler, "batch_size", None),
        "collate_fn": loader.collate_fn,
        "num_workers": loader.num_workers,
        "worker_init_fn": loader.worker_init_fn,
        "multiprocessing_context": loader.multiprocessing_context,
    }
    if isinstance(data, IterableDataset):
        if world > 1:
            raise InputError(
                f"expected a data set with a length to measure in {world} processes, got the iterable "
                f"{type(data).__name__}: give one with __getitem__ and __len__"
            )
        return DataLoader(data, **options)
    order: Any = range(rank, len(data), world)  # type: ignore[arg-type]
    if loader.batch_size is None and loader.batch_sampler is None:  # the data set makes the batches
        if isinstance(loader.sampler, BatchSampler):
            order = BatchSampler(order, loader.sampler.batch_size, drop_last=False)
    elif options["batch_size"] is None:
        options["batch_size"] = _BATCH
    return DataLoader(data, sampler=order, **options)


class Prepared:
    """The batches of a loader as training would hand them to the model.

    Args:
        loader: gives the batches.
        prepare: makes of each what the model gets.
        most: batches; all of them when not given.
    """

    def __init__(self, loader: Iterable[Any], prepare: Callable[[Any], Any], most: int | None = None) -> None:
        self.loader = loader
        self.prepare = prepare
        self.most = most
        self.dataset = getattr(loader, "dataset", loader)

    def __iter__(self) -> Iterator[Any]:
        return map(self.prepare, islice(self.loader, self.most))

    def __len__(self) -> int:
        """The number of batches, where the loader knows it."""
        count = len(self.loader)  # type: ignore[arg-type]
        return count if self.most is None else min(count, self.most)


@contextmanager
def same_buffers(model: nn.Module, world: int) -> Iterator[None]:
    """The first process's buffers in all: those of batch normalisation differ. Afterwards each has its own again."""
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()] if world > 1 else []
    own = [buffer.clone() for buffer in buffers]
    for buffer in buffers:
        torch.distributed.broadcast(buffer, 0)
    try:
        yield
    finally:
        for buffer, kept in zip(buffers, own, strict=True):
            buffer.copy_(kept)
