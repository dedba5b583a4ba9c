"""Changes of the training set: subsets, imbalance, random labels, label noise; pure functions of labels and seed.

Each change has a random generator of its own, so switching one on leaves the others as they were. Each draws the same
numbers whatever its strength: a smaller subset is part of a larger one, and less noise part of more.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from neuralcollapse.errors import InputError


def seeded_generator(purpose: str, *seeds: int) -> torch.Generator:
    """A generator on the CPU, seeded with a hash of the purpose and the seeds."""
    digest = hashlib.sha256(repr((purpose, seeds)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))


def choose_per_class(labels: Tensor, counts: Sequence[int], seed: int, purpose: str = "samples_per_class") -> Tensor:
    """Indices, in increasing order, of counts[k] samples of each class k, chosen at random.

    Args:
        labels: (N,) int64, from 0 to K-1.
        counts: K numbers; where a class has fewer samples, all of them are kept.
        seed: of the choice.
        purpose: choices for different purposes are independent.
    """
    shuffled = torch.randperm(len(labels), generator=seeded_generator(purpose, seed))
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    sizes = labels.bincount(minlength=len(counts))
    rank = torch.arange(len(labels)) - (sizes.cumsum(0) - sizes)[labels[by_class]]
    return by_class[rank < torch.tensor(counts)[labels[by_class]]].sort().values


def samples_per_class(labels: Tensor, count: int, class_names: Sequence[str], seed: int) -> Tensor:
    """Indices, in increasing order, of `count` samples of each class, chosen at random."""
    sizes = labels.bincount(minlength=len(class_names))
    fewest = int(sizes.argmin())
    if sizes[fewest] < count:
        raise InputError(
            f"expected samples_per_class of at most {int(sizes[fewest])}, the training samples of class "
            f"{class_names[fewest]!r}, got {count}"
        )
    return choose_per_class(labels, [count] * len(class_names), seed)


def imbalance(labels: Tensor, kind_and_ratio: str, num_classes: int, seed: int) -> Tensor:
    """Indices, in increasing order, of an imbalanced subset as large as the smallest class allows."""
    kind, _, text = kind_and_ratio.partition(":")
    try:
        ratio = float(text)
    except ValueError:
        raise _wrong_imbalance(kind_and_ratio) from None
    largest = int(labels.bincount(minlength=num_classes).min())
    return choose_per_class(labels, imbalanced_counts(kind, ratio, largest, num_classes), seed, "imbalance")


def imbalanced_counts(kind: str, ratio: float, largest: int, num_classes: int) -> list[int]:
    """Samples of each class, at least 1; the first class has R = `ratio` times as many as the last.

    "exponential": n_k = round(n_0 R^(-k/(K-1))). "step": n_0 for the first ceil(K/2) classes, round(n_0 / R) for the
    others.

    Raises:
        InputError: another kind, or a ratio below 1.

    >>> imbalanced_counts("exponential", 100, 500, 5)
    [500, 158, 50, 16, 5]
    >>> imbalanced_counts("step", 10, 500, 5)
    [500, 500, 500, 50, 50]
    """
    if kind not in ("exponential", "step") or not 1 <= ratio < math.inf:
        raise _wrong_imbalance(f"{kind}:{ratio}")
    if kind == "step":
        sizes = [largest if 2 * label < num_classes else largest / ratio for label in range(num_classes)]
    else:
        sizes = [largest * ratio ** (-label / max(num_classes - 1, 1)) for label in range(num_classes)]
    return [max(round(size), 1) for size in sizes]


def random_labels(count: int, num_classes: int, seed: int) -> Tensor:
    """Labels (count,) int64 in random order, each class floor(count/K) or ceil(count/K) times."""
    return (torch.arange(count) % num_classes)[torch.randperm(count, generator=seeded_generator("random_labels", seed))]


def label_noise(labels: Tensor, share: float, num_classes: int, seed: int) -> Tensor:
    """The labels (N,) int64 with round(share N) of them, chosen at random, changed to another class at random."""
    if num_classes < 2:
        raise InputError("label_noise needs at least two classes, got one")
    source = seeded_generator("label_noise", seed)
    chosen = torch.randperm(len(labels), generator=source)[: round(share * len(labels))]
    shifts = torch.randint(1, num_classes, labels.shape, generator=source)
    noisy = labels.clone()
    noisy[chosen] = (labels[chosen] + shifts[chosen]) % num_classes
    return noisy


def _wrong_imbalance(got: str) -> InputError:
    return InputError(f"expected imbalance as 'exponential:R' or 'step:R' with a number R of at least 1, got {got!r}")
