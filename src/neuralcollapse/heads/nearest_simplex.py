"""NearestSimplex: the running class means, and the simplex nearest to them, of rotation="nearest"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from neuralcollapse.checks import (
    check_count,
    check_features,
    check_finite,
    check_ignored,
    check_label_range,
    check_labels,
)
from neuralcollapse.errors import InputError
from neuralcollapse.geometry.frames import nearest_simplex_etf
from neuralcollapse.geometry.intake import kept_rows
from neuralcollapse.geometry.precision import without_autocast


class NearestSimplex(nn.Module):
    """The running class means and the frame of rotation="nearest"; the update rule is that of `ETFClassifier.follow`.

    At first the frame is `rows`, (K, d).
    """

    rows: Tensor
    means: Tensor
    seen: Tensor
    calls: Tensor
    _known: tuple[int, int] | None

    def __init__(self, rows: Tensor, momentum: float, update_every: int) -> None:
        super().__init__()
        if not 0 < momentum <= 1:
            raise InputError(f"expected momentum above 0 and up to 1, got {momentum}")
        self.momentum = momentum
        self.update_every = check_count(update_every, "update_every", 1)
        # In half precision a running mean stops moving: the steps round to nothing.
        wide = rows.detach().to(torch.promote_types(rows.dtype, torch.float32))
        self.register_buffer("rows", wide.clone())
        self.register_buffer("means", torch.zeros_like(wide))
        self.register_buffer("seen", torch.zeros(len(rows), dtype=torch.bool, device=rows.device))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64, device=rows.device))
        self._remember(0)
        self._refused: Tensor | None = None

    @torch.no_grad()
    def follow(self, features: Tensor, labels: Tensor, ignore_index: int | None) -> None:
        """Update the means from a batch (N, d), (N,), and the frame on every `update_every`-th call."""
        check_features(features)
        labels = check_labels(labels, features.shape[0]).to(features.device)
        check_ignored(ignore_index)
        if features.device.type == "cpu":
            self._follow_at_once(features, labels, ignore_index)
        else:
            self._follow_without_waiting(features, labels, ignore_index)
        count = self._count()
        if count % self.update_every == 0:
            self._raise_if_refused()
            if bool(self.seen.all()):
                with without_autocast(self.rows.device):
                    # A new tensor, not in place: a backward pass still to come needs the old rows.
                    self.rows = nearest_simplex_etf(self.means - self.means.mean(0))[0]

    def _follow_at_once(self, features: Tensor, labels: Tensor, ignore_index: int | None) -> None:
        """Check a batch, then count it; the work is that of the classes in it."""
        if ignore_index is not None:
            kept = kept_rows(features, labels, ignore_index)
            features, labels = features[kept], labels[kept]
        check_finite(features)  # all checks come before the state changes
        check_label_range(labels, len(self.means))
        if len(labels):
            classes, index = labels.unique(return_inverse=True)
            sums = self.means.new_zeros(len(classes), features.shape[1])
            sums.index_add_(0, index, features.to(self.means.dtype))
            batch = sums / torch.bincount(index)[:, None]
            share = torch.where(self.seen[classes], self.momentum, 1.0).to(batch.dtype)[:, None]
            self.means[classes] = torch.lerp(self.means[classes], batch, share)
            self.seen[classes] = True

    def _follow_without_waiting(self, features: Tensor, labels: Tensor, ignore_index: int | None) -> None:
        """The same with sums of all K classes; a batch that should be refused changes nothing and leaves a flag."""
        count = len(self.means)
        wide = features.to(self.means.dtype)
        wrong = (labels < 0) | (labels >= count)
        index = torch.where(wrong, count, labels)
        if ignore_index is not None:
            ignored = labels == ignore_index
            wrong, index = wrong & ~ignored, torch.where(ignored, count, index)
            wide = torch.where(ignored[:, None], 0, wide)
        refused = wrong.any() | ~wide.isfinite().all()
        sums = wide.new_zeros(count + 1, wide.shape[1]).index_add_(0, index, wide)[:count]
        numbers = wide.new_zeros(count + 1).index_add_(0, index, torch.ones_like(wide[:, 0]))[:count]
        present = (numbers > 0) & ~refused
        share = torch.where(self.seen, self.momentum, 1.0).to(sums.dtype)[:, None]
        means = torch.lerp(self.means, sums / numbers.clamp(min=1)[:, None], share)
        self.means.copy_(torch.where(present[:, None], means, self.means))
        self.seen.logical_or_(present)
        self._refused = refused if self._refused is None else self._refused | refused

    def _raise_if_refused(self) -> None:
        flag, self._refused = self._refused, None
        if flag is not None and bool(flag):
            raise InputError(
                f"expected finite features and labels from 0 to {len(self.means) - 1}, got others since the last "
                "update of the frame: their batches were left out, correct or drop them"
            )

    def _count(self) -> int:
        """Count a call. The number is read from the device only when something else has changed it."""
        number = self._remembered()
        number = 1 + (int(self.calls) if number is None else number)
        self.calls += 1
        self._remember(number)
        return number

    def _remember(self, number: int) -> None:
        """Keep the number of calls with the version of the tensor that holds it, if that counts versions."""
        self._known = None if self.calls.is_inference() else (number, self.calls._version)

    def _remembered(self) -> int | None:
        """The number of calls, if it is known that nothing else has changed it."""
        known = None if self.calls.is_inference() else self._known
        return known[0] if known is not None and known[1] == self.calls._version else None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_known": None, "_refused": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_known", None)
        self.__dict__.setdefault("_refused", None)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> NearestSimplex:
        """Move and cast like any module, but never to half precision, in which running means stop moving."""

        def wide(value: Tensor) -> Tensor:
            moved = fn(value)
            half = moved.is_floating_point() and moved.dtype.itemsize < 4
            return value.to(moved.device) if half else moved

        number = self._remembered()
        super()._apply(wide, recurse)
        self._refused = None if self._refused is None else self._refused.to(self.calls.device)
        self._known = None  # the version is that of another tensor
        if number is not None:
            self._remember(number)
        return self
