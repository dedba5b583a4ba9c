"""ClassMoments: counts, means and within-class scatter of labelled features, in one exact pass.

How the pass stays exact. For a class with n_a samples seen (mean m_a) and a batch with n_b more
(mean m_b), the joint scatter is

    S_ab = S_a + sum_i (h_i - m_b)(h_i - m_b)' + (n_a n_b / n) (m_b - m_a)(m_b - m_a)',   n = n_a + n_b.

Centre the batch not at its mean but at c = m_b - sqrt(n_a/n) (m_b - m_a): then the one product
sum_i (h_i - c)(h_i - c)' is the second and third term together. It is a sum of squares, so nothing
cancels, wherever the features lie and however far a mean has moved; and after centring the values
are small, so the product itself may run in float32. Joint merging is Chan, Golub, LeVeque (1983).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from neuralcollapse._checks import check_count, check_features, check_finite, check_label_range, check_labels
from neuralcollapse._errors import InputError

# Rows are taken in blocks of at most this many values, so that float64 copies stay in cache (4 MB).
_BLOCK_VALUES = 2**19
# Below this dimension the product is cheap, and its rounding averages over too few entries: float64.
_FLOAT32_FROM_DIM = 256
# A float32 product whose trace leaves this range may have under- or overflowed: it is run again in float64.
_SAFE_TRACE = (1e-24, 1e36)
# A row with this share of the trace would leave the others to float32's rounding: float64 again.
_DOMINANT = 0.25


class ClassMoments:
    """First and second moments of features by class, as float64 tensors, O(K d + d^2) in all.

    Attributes:
        num_classes: K.
        feature_dim: d.
        means: (K, d) mu_k; zero for a class not seen.
        spreads: (K,) sum over the samples of a class of |h - mu_k|^2.
        packed: the whole state as one float64 vector (counts, spreads, means, upper triangle of the
            scatter in a d x d matrix); the others are views of it.

    Make one with `from_batch` or `zeros`, add batches in place with `update`, join two with `merge`.
    Features may be float16, bfloat16, float32 (products in float32 after centring) or float64
    (products in float64); labels any integer type. Works on any device.

    Float32 products leave a relative error of some 1e-9 in NC1; where the scatter is far larger in one direction than
    along the class means, of up to 1e-7 times that ratio. Give `features.double()` to be exact there too.
    """

    def __init__(self, packed: Tensor, num_classes: int, feature_dim: int) -> None:
        size = packed_size(num_classes, feature_dim)
        if packed.dtype != torch.float64 or tuple(packed.shape) != (size,):
            raise InputError(
                f"expected a packed float64 state of shape ({size},), got {packed.dtype} {tuple(packed.shape)}"
            )
        self.packed = packed
        self.num_classes = num_classes
        self.feature_dim = feature_dim
        sizes = (num_classes, num_classes, num_classes * feature_dim, feature_dim * feature_dim)
        counts, spreads, means, scatter = packed.split(sizes)
        self._counts = counts
        self.spreads = spreads
        self.means = means.view(num_classes, feature_dim)
        self._upper = scatter.view(feature_dim, feature_dim)  # only its upper triangle is kept up

    @classmethod
    def zeros(cls, num_classes: int, feature_dim: int, device: torch.device | str | None = None) -> ClassMoments:
        """The moments of no samples."""
        check_count(num_classes, "num_classes", 1)
        check_count(feature_dim, "feature_dim", 1)
        size = packed_size(num_classes, feature_dim)
        with torch.inference_mode(False):  # else updates outside inference mode would be refused
            packed = torch.zeros(size, dtype=torch.float64, device=state_device(device))
        return cls(packed, num_classes, feature_dim)

    @classmethod
    def from_batch(
        cls, features: Tensor, labels: Tensor, num_classes: int, *, ignore_index: int | None = None
    ) -> ClassMoments:
        """The moments of (N, d) features with (N,) integer labels in 0..num_classes-1.

        Raises:
            InputError: see `update`.
        """
        check_features(features)
        return cls.zeros(num_classes, features.shape[1], features.device).update(
            features, labels, ignore_index=ignore_index
        )

    @classmethod
    def from_means(cls, counts: Tensor, means: Tensor) -> ClassMoments:
        """The moments of (K,) samples a class that all lie at its mean, a row of (K, d): no spread."""
        check_features(means)
        moments = cls.zeros(means.shape[0], means.shape[1], means.device)
        moments._counts.copy_(check_labels(counts, means.shape[0], "counts"))
        moments.means.copy_(means)
        return moments

    @property
    def counts(self) -> Tensor:
        """(K,) int64: samples seen of each class."""
        return self._counts.to(torch.int64)

    @property
    def num_samples(self) -> int:
        """N, the samples seen of all classes."""
        return int(self._counts.sum())

    @property
    def global_mean(self) -> Tensor:
        """(d,) the mean over the samples (not over the classes); zero when none was seen."""
        return self._counts @ self.means / self._counts.sum().clamp(min=1)

    @property
    def scatter(self) -> Tensor:
        """(d, d) within-class scatter: the SUM over all samples of (h - mu_y)(h - mu_y)'."""
        return self._upper.triu() + self._upper.triu(1).T

    @property
    def within_covariance(self) -> Tensor:
        """(d, d) S_W = scatter / N, averaged over the samples."""
        return self.scatter / self._counts.sum().clamp(min=1)

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor, *, ignore_index: int | None = None) -> ClassMoments:
        """Add a batch in place and return self; on wrong input nothing has changed.

        Args:
            features: (N, d) float16, bfloat16, float32 or float64; N = 0 is allowed.
            labels: (N,) integers of any width in 0..K-1.
            ignore_index: samples with this label are left out.

        Raises:
            InputError: wrong shapes or types, labels out of range, NaN or infinite features.
        """
        check_features(features)
        if features.shape[1] != self.feature_dim:
            raise InputError(
                f"expected features of dimension {self.feature_dim}, got {features.shape[1]}: use one layer throughout"
            )
        labels = check_labels(labels, features.shape[0]).to(features.device)
        if ignore_index is not None:
            kept = kept_rows(features, labels, ignore_index)
            features, labels = features[kept], labels[kept]
        if labels.numel() == 0:
            return self
        lowest, highest = (int(end) for end in torch.aminmax(labels))
        check_label_range(lowest, highest, self.num_classes)
        rows = max(1, _BLOCK_VALUES // self.feature_dim)
        if len(labels) > rows:  # a single block is checked by its sums, below
            check_finite(features)
        for block, block_labels in zip(features.split(rows), labels.split(rows), strict=True):
            self._add(block.to(self.packed.device), block_labels.to(self.packed.device))
        return self

    def _add(self, features: Tensor, labels: Tensor) -> None:
        classes: Tensor | slice = slice(None)
        index = labels
        if self.num_classes > len(labels):  # work on the classes of this block alone
            classes, index = labels.unique(return_inverse=True)
        exact = _scratch("exact", features, torch.float64).copy_(features)
        sums = exact.new_zeros(self.means[classes].shape).index_add_(0, index, exact)
        if not bool(torch.isfinite(sums.sum())):
            check_finite(features)  # raises, before anything has changed

        batch_counts = torch.bincount(index, minlength=len(sums)).to(torch.float64)
        seen = self._counts[classes]
        total = (seen + batch_counts).clamp(min=1)
        share = batch_counts / total
        moved = sums / batch_counts.clamp(min=1)[:, None] - self.means[classes]
        centres = self.means[classes] + (1 - (seen / total).sqrt())[:, None] * moved

        exact.sub_(torch.index_select(centres, 0, index, out=_scratch("centres", features, torch.float64)))
        self.spreads.index_add_(0, labels, self._add_scatter(exact, features.dtype))
        self.means[classes] += share[:, None] * moved
        self._counts[classes] += batch_counts

    def _add_scatter(self, centred: Tensor, dtype: torch.dtype) -> Tensor:
        """Add X'X to the scatter; returns the squared lengths of the rows of X (N,) as float64."""
        if dtype != torch.float64 and self.feature_dim >= _FLOAT32_FROM_DIM:
            small = _scratch("small", centred, torch.float32).copy_(centred)
            squares = torch.linalg.vector_norm(small, dim=1).to(torch.float64).square_()
            trace, most = float(squares.sum()), float(squares.max())
            if _SAFE_TRACE[0] < trace < _SAFE_TRACE[1] and most < _DOMINANT * trace:
                with _full_precision(centred.device):
                    add_gram(self._upper, small)
                return squares
        add_gram(self._upper, centred)
        return torch.linalg.vector_norm(centred, dim=1).square_()

    def merge(self, other: ClassMoments) -> ClassMoments:
        """The moments of both sets of samples, as a new object; neither side changes.

        Raises:
            InputError: another number of classes or dimension.
        """
        if (self.num_classes, self.feature_dim) != (other.num_classes, other.feature_dim):
            raise InputError(
                f"expected moments of K={self.num_classes}, d={self.feature_dim}, "
                f"got K={other.num_classes}, d={other.feature_dim}: both need the same num_classes and features"
            )
        merged = ClassMoments(self.packed.clone(), self.num_classes, self.feature_dim)
        merged.absorb(ClassMoments(other.packed.to(self.packed.device), self.num_classes, self.feature_dim))
        return merged

    def absorb(self, other: ClassMoments) -> None:
        """Add the samples of `other` (same K, d and device) in place; `other` stays as it was."""
        total = self._counts + other._counts
        share = other._counts / total.clamp(min=1)
        moved = other.means - self.means
        both = self._counts * share  # n_a n_b / n; zero where one side has no samples
        shift = both.sqrt()[:, None] * moved
        self._upper += other._upper
        add_gram(self._upper, shift)
        self.spreads += other.spreads + both * moved.square().sum(1)
        self.means += share[:, None] * moved
        self._counts.copy_(total)

    def __reduce__(self) -> tuple[object, ...]:
        return ClassMoments, (self.packed, self.num_classes, self.feature_dim)  # the views are made anew

    def __repr__(self) -> str:
        shape = f"num_classes={self.num_classes}, feature_dim={self.feature_dim}"
        return f"ClassMoments({shape}, num_samples={self.num_samples})"


def _full_precision(device: torch.device) -> AbstractContextManager[None]:
    """No autocast, and no TF32 or bfloat16 inside float32 products, whatever the user has set."""
    if torch.get_float32_matmul_precision() == "highest" and not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return _forced_precision(device)


@contextmanager
def _forced_precision(device: torch.device) -> Iterator[None]:
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def kept_rows(features: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """(N,) bool, the rows whose label is not `ignore_index`; they must be finite, and an error counts all rows."""
    kept = labels != ignore_index
    if not bool(kept.all()):
        check_finite(torch.where(kept[:, None], features, 0))
    return kept


def state_device(device: torch.device | str | None) -> torch.device:
    """Where float64 state for features on `device` lives: there, or on the CPU for devices without float64 (MPS)."""
    device = torch.device(device or "cpu")
    return torch.device("cpu") if device.type == "mps" else device


def packed_size(num_classes: int, feature_dim: int) -> int:
    """The length of `ClassMoments.packed`: 2K + K d + d^2."""
    return 2 * num_classes + num_classes * feature_dim + feature_dim * feature_dim


def add_gram(upper: Tensor, rows: Tensor) -> None:
    """Add the upper triangle of rows' rows. On a CPU only its blocks are multiplied out: up to 44 % less work."""
    dim = rows.shape[1]
    step = max(256, -(-dim // 8)) if rows.device.type == "cpu" else dim
    for start in range(0, dim, step):
        block, left, right = upper[start : start + step, start:], rows[:, start : start + step].T, rows[:, start:]
        if rows.dtype == upper.dtype:
            block.addmm_(left, right)
        else:
            block += left @ right


_buffers = threading.local()


def _scratch(name: str, like: Tensor, dtype: torch.dtype) -> Tensor:
    """Memory for a block, kept from one batch to the next: asking for fresh pages costs as much as the arithmetic."""
    key = (name, like.device, dtype)
    kept: dict[object, Tensor] = _buffers.__dict__.setdefault("kept", {})
    if key not in kept or kept[key].numel() < like.numel():
        with torch.inference_mode(False):
            kept[key] = torch.empty(like.numel(), dtype=dtype, device=like.device)
    return kept[key][: like.numel()].view(like.shape)
