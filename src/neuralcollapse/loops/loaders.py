"""The loaders that a measurement runs through: again and again, in order, each sample in one process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from types import GeneratorType
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, IterableDataset, default_collate

from neuralcollapse.capture import arguments
from neuralcollapse.capture.batches import unpack
from neuralcollapse.checks import as_tensor
from neuralcollapse.errors import InputError

_BATCH = 64  # samples in a batch, where nothing says how many
_BUILT_IN = ("builtins", "itertools")  # modules whose iterators can be run through only once


def check_loader(loader: Any, name: str = "loader") -> Any:
    """The loader, if it can be run through for every measurement; an `IterableDataset` becomes one.

    Raises:
        InputError: something else, or an iterator, which can be run through only once.
    """
    if isinstance(loader, IterableDataset):
        check_restarts(loader, name)
        return IterableBatches(loader)
    arguments.check_loader(loader, name)
    check_restarts(loader, name)
    check_restarts(getattr(loader, "dataset", None), name)
    return loader


def check_restarts(source: Any, name: str) -> None:
    """Raise if a second run through `source` would go on where the first one ended.

    A user's class may return itself from `__iter__` and still start over. Only Python's own iterators certainly do not,
    whether they are given directly or kept by the source and returned each time. Nothing is drawn from any of them.
    """
    kept = [source, *getattr(source, "__dict__", {}).values()]
    if any(_runs_once(each) for each in kept) and _runs_once(first := iter(source)) and first is iter(source):
        raise InputError(
            f"expected {name} as a loader that can be run through for each measurement, got a "
            f"{type(source).__name__} that is used up by the first: give a DataLoader, a list of batches, or an object "
            "whose __iter__ starts over"
        )


def _runs_once(value: Any) -> bool:
    built_in = isinstance(value, Iterator) and type(value).__module__ in _BUILT_IN
    return built_in or isinstance(value, GeneratorType) or type(value).__name__.endswith("DataLoaderIter")


class IterableBatches:
    """The batches of an `IterableDataset` that gives samples (inputs, label), or batches already."""

    def __init__(self, dataset: IterableDataset[Any]) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[Any]:
        items = iter(self.dataset)
        for first in islice(items, 1):
            items = chain([first], items)
            if as_tensor(unpack(first)[1], "labels").dim():
                yield from items
            while rows := list(islice(items, _BATCH)):
                yield default_collate(rows)


class MappedBatches:
    """The batches of a loader, or the first `most` of them, each changed by a function."""

    def __init__(self, loader: Iterable[Any], function: Callable[[Any], Any], most: int | None = None) -> None:
        self.loader = loader
        self.function = function
        self.most = most
        self.dataset = getattr(loader, "dataset", loader)

    def __iter__(self) -> Iterator[Any]:
        return map(self.function, islice(self.loader, self.most))

    def __len__(self) -> int:
        """The number of batches, where the loader knows it."""
        count = len(self.loader)  # type: ignore[arg-type]
        return count if self.most is None else min(count, self.most)


def sequential(loader: Any, rank: int = 0, world: int = 1, *, batch_size: int | None = None) -> DataLoader[Any]:
    """A loader of the same data without shuffling, which gives each process its own share.

    Args:
        loader: a DataLoader; its data set, batch size, collate_fn and workers are used, its order is not.
        rank: the number of this process.
        world: the number of processes.
        batch_size: replaces the loader's.

    Returns:
        A loader of every `world`-th sample from the `rank`-th on: together the processes see each sample once.

    Raises:
        InputError: it is no DataLoader, or has a data set that can only be iterated and so cannot be shared.
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
    if loader.batch_size is None and loader.batch_sampler is None:  # the sampler gives the numbers of whole batches
        if isinstance(loader.sampler, BatchSampler):
            order = BatchSampler(order, loader.sampler.batch_size, drop_last=False)
    elif options["batch_size"] is None:
        options["batch_size"] = _BATCH
    return DataLoader(data, sampler=order, **options)
