"""CapturedBatch: one batch as the head saw it, with the class predictions and the loss of its logits."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

_LOGITS = 2**24  # logits given to the loss at a time


@dataclass
class CapturedBatch:
    """One batch as the head saw it: one row a sample, without the samples that are left out.

    Attributes:
        features: (N, d) the inputs of the head.
        labels: (N,) labels, numbered among the classes that are measured.
        targets: (N,) labels, numbered among all classes.
        layers: name -> (N, C) outputs of inner layers.
        logits: (M, K) that the model returned for all samples, including those left out.
        head_logits: (M, K) outputs of the head; the same as `logits` if the model returns a linear map of the features.
        kept: (N,) the rows of the logits that belong to the samples here; None for all.
    """

    features: Tensor
    labels: Tensor
    targets: Tensor
    layers: dict[str, Tensor]
    logits: Tensor
    head_logits: Tensor
    kept: Tensor | None

    @cached_property
    def predicted(self) -> Tensor:
        """(N,) the class of the largest returned logit, among all classes."""
        return self._largest(self.logits)

    @cached_property
    def head_predicted(self) -> Tensor:
        """(N,) the class of the largest output of the head, among all classes."""
        return self.predicted if self.head_logits is self.logits else self._largest(self.head_logits)

    def loss(self, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """The sum over the samples of a mean loss of logits and labels; in parts, since the logits may be large.

        An accelerator finds labels that are out of range only later, and a loss would bring it down: those are moved
        into the range here.
        """
        size = max(1, _LOGITS // self.logits.shape[1])
        dtype = torch.promote_types(self.logits.dtype, torch.float32)
        total, start = self.logits.new_zeros((), dtype=dtype), 0
        parts: Iterable[slice | Tensor] = [slice(first, first + size) for first in range(0, len(self.targets), size)]
        if self.kept is not None:
            parts = self.kept.split(size) if len(self.kept) else ()
        for rows in parts:
            logits = self.logits[rows].to(dtype)
            targets = self.targets[start : start + len(logits)]
            total = total + loss(logits, targets.clamp(0, logits.shape[1] - 1)) * len(targets)
            start += len(targets)
        return total

    def _largest(self, logits: Tensor) -> Tensor:
        classes = logits.argmax(1)
        return classes if self.kept is None else classes[self.kept]
