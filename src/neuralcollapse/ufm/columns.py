"""Columns: the columns of the logits, one for each sample or one for each class, from the numbers of samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from neuralcollapse.checks import check_count
from neuralcollapse.errors import InputError


@dataclass(frozen=True)
class Columns:
    """The columns of the logits: class, weight in the mean loss, and length scale (see `Model.collapsed`) of each."""

    labels: Tensor
    weights: Tensor
    roots: Tensor

    @classmethod
    def of_samples(cls, counts: Sequence[int], device: torch.device) -> Columns:
        """One column for each sample, ordered by class."""
        sizes = torch.tensor(counts, device=device)
        labels = torch.arange(len(counts), device=device).repeat_interleave(sizes)
        weights = torch.full((len(labels),), 1 / len(labels), dtype=torch.float64, device=device)
        return cls(labels, weights, torch.ones_like(weights))

    @classmethod
    def of_classes(cls, counts: Sequence[int], device: torch.device) -> Columns:
        """One column for each class, scaled by `sqrt(n_k)`."""
        sizes = torch.tensor(counts, dtype=torch.float64, device=device)
        return cls(torch.arange(len(counts), device=device), sizes / sizes.sum(), sizes.sqrt())

    def to(self, device: torch.device) -> Columns:
        """The same on another device."""
        return Columns(self.labels.to(device), self.weights.to(device), self.roots.to(device))


def class_counts(samples_per_class: Any, num_classes: int) -> tuple[int, ...]:
    """The samples of each class, from one number for all classes or from one for each.

    Raises:
        InputError: something else, or a class without samples.
    """
    if isinstance(samples_per_class, Integral):
        samples_per_class = [int(samples_per_class)] * num_classes
    if not isinstance(samples_per_class, Sequence) or isinstance(samples_per_class, str):
        raise InputError(f"expected samples_per_class as an integer or a list of them, got {samples_per_class!r}")
    if (found := len(samples_per_class)) != num_classes:
        raise InputError(f"expected samples_per_class for {num_classes} classes, got {found} counts")
    if all(type(n) is int and n > 0 for n in samples_per_class):  # one call for each class would take .2 s for 100,000
        return tuple(samples_per_class)
    return tuple(
        check_count(int(n) if isinstance(n, Integral) else n, f"samples of class {k}", 1)
        for k, n in enumerate(samples_per_class)
    )
