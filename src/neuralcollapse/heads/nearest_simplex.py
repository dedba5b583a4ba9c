"""NearestSimplex: running class means, and the simplex ETF nearest to them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from neuralcollapse.checks import check_count, check_features, check_finite, check_label_range, check_labels
from neuralcollapse.errors import InputError
from neuralcollapse.geometry.frames import nearest_simplex_etf
from neuralcollapse.geometry.moments import kept_rows


class NearestSimplex(nn.Module):
    """The state behind `ETFClassifier(..., rotation="nearest")`; the rule is that of its `follow`.

    Args:
        rows: (K, d) the frame to begin with.
        momentum: above 0 and up to 1.
        update_every: 1 or more.
    """

    rows: Tensor
    means: Tensor
    seen: Tensor
    calls: Tensor

    def __init__(self, rows: Tensor, momentum: float, update_every: int) -> None:
        super().__init__()
        if not 0 < momentum <= 1:
            raise InputError(f"expected momentum above 0 and up to 1, got {momentum}")
        self.momentum = momentum
        self.update_every = check_count(update_every, "update_every", 1)
        wide = rows.detach().to(torch.promote_types(rows.dtype, torch.float32))  # half precision stands still
        self.register_buffer("rows", wide.clone())
        self.register_buffer("means", torch.zeros_like(wide))
        self.register_buffer("seen", torch.zeros(len(rows), dtype=torch.bool, device=rows.device))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64, device=rows.device))

    @torch.no_grad()
    def follow(self, features: Tensor, labels: Tensor, ignore_index: int | None) -> None:
        """Take in a batch (N, d), (N,), and turn the frame when its time has come."""
        check_features(features)
        labels = check_labels(labels, features.shape[0]).to(features.device)
        if ignore_index is not None:
            kept = kept_rows(features, labels, ignore_index)
            features, labels = features[kept], labels[kept]
        check_finite(features)  # all checks come before any change of the state
        if len(labels):
            check_label_range(int(labels.min()), int(labels.max()), len(self.means))
        self.calls += 1
        if len(labels):
            classes, index = labels.unique(return_inverse=True)
            sums = self.means.new_zeros(len(classes), features.shape[1])
            sums.index_add_(0, index, features.to(self.means.dtype))
            batch = sums / torch.bincount(index)[:, None]
            share = torch.where(self.seen[classes], self.momentum, 1.0).to(batch.dtype)[:, None]
            self.means[classes] = torch.lerp(self.means[classes], batch, share)
            self.seen[classes] = True
        if int(self.calls) % self.update_every == 0 and bool(self.seen.all()):
            with torch.autocast(self.rows.device.type, enabled=False):
                # a new tensor: a backward pass still to come needs the old rows
                self.rows = nearest_simplex_etf(self.means - self.means.mean(0))[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> NearestSimplex:
        """Moves and casts as any module, but never to half precision, in which running means stand still."""

        def wide(value: Tensor) -> Tensor:
            moved = fn(value)
            half = moved.is_floating_point() and moved.dtype.itemsize < 4
            return value.to(moved.device) if half else moved

        return super()._apply(wide, recurse)
