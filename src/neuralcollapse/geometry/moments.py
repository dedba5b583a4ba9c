"""ClassMoments: counts, means and within-class scatter of labelled features, in one exact pass.

How the pass stays exact. For a class with n_a samples so far (mean m_a) and a batch with n_b more (mean m_b), the joint
scatter is

    S_ab = S_a + sum_i (h_i - m_b)(h_i - m_b)' + (n_a n_b / n) (m_b - m_a)(m_b - m_a)',   n = n_a + n_b.

The batch is centred not at its mean but at `c = m_b - sqrt(n_a/n) (m_b - m_a)`: the single product
`sum_i (h_i - c)(h_i - c)'` is then the second and third term together. It is a sum of squares, so nothing cancels,
wherever the features lie and however far a mean has moved. After centring the values are small, so the product itself
may run in float32. Merging follows Chan, Golub, LeVeque (1983).
"""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor

from neuralcollapse.checks import check_count, check_features, check_finite, check_label_range, check_labels
from neuralcollapse.errors import InputError
from neuralcollapse.geometry.precision import full_precision
from neuralcollapse.geometry.rounding import rounding

# Rows are centred in blocks of at most this many values, so that float64 copies stay in cache (4 MB).
_BLOCK_VALUES = 2**19
# A float32 product takes the centred rows of several blocks, up to this many: with few rows it is half as fast.
_PRODUCT_ROWS = 2048
# Class means are processed in blocks of this many, since a copy of all of them would double the memory.
_MEANS_ROWS = 4096
# Below this dimension products run in float64: they are cheap, and rounding averages over too few entries.
_FLOAT32_FROM_DIM = 256
# A block whose trace leaves this range might under- or overflow in float32: its product runs in float64.
_SAFE_TRACE = (1e-24, 1e36)
# A block in which one row has this share of the trace would lose the other rows to float32's rounding: float64 too.
_DOMINANT = 0.25


class ClassMoments:
    """First and second moments of features by class, as float64 tensors, O(K d + d^2) in all.

    Attributes:
        num_classes: K.
        feature_dim: d.
        means: (K, d) mu_k; zero for a class without samples.
        spreads: (K,) sum over the samples of a class of `|h - mu_k|^2`.
        packed: the whole state as one float64 vector (counts, spreads, means, upper triangle of the scatter in a
            d x d matrix, and `rounding`); the other attributes are views of it. Float32 means lie two to an entry. A
            vector without the last entry, as in version 0.1.0, is taken for the state of float32 features.

    Create one with `from_batch` or `zeros`, add batches in place with `update`, combine two with `merge`. Features may
    be float16, bfloat16, float32 (products in float32 after centring) or float64 (products in float64), labels of any
    integer dtype, on any device.

    Float32 products leave a relative error of about 1e-10 in NC1 (their diagonal is taken in float64). If the scatter
    is far larger in one direction than along the class means, the error is up to 1e-7 times that ratio; give
    `features.double()` to be exact there too.

    With `means_dtype=torch.float32` the class means, most of the state when K is large, take half the memory. They then
    have a relative error of about 1e-7 of their size, offset included: good for features whose spread is like their
    size (language models), not for collapsed features far from the origin.
    """

    def __init__(
        self, packed: Tensor, num_classes: int, feature_dim: int, means_dtype: torch.dtype = torch.float64
    ) -> None:
        size = packed_size(num_classes, feature_dim, means_dtype)
        if packed.dtype == torch.float64 and tuple(packed.shape) == (size - 1,):
            unknown = torch.finfo(torch.float32).eps * packed[:num_classes].any()
            packed = torch.cat([packed, unknown.to(packed)[None]])
        if packed.dtype != torch.float64 or tuple(packed.shape) != (size,):
            raise InputError(
                f"expected a packed float64 state of shape ({size},), got {packed.dtype} {tuple(packed.shape)}"
            )
        self.packed = packed
        self.num_classes = num_classes
        self.feature_dim = feature_dim
        square = feature_dim * feature_dim
        places = size - 2 * num_classes - square - 1
        counts, spreads, means, scatter, coarsest = packed.split((num_classes, num_classes, places, square, 1))
        self._counts = counts
        self._coarsest = coarsest
        self.spreads = spreads
        with torch.inference_mode(False):  # a view as another type, made inside, could not be updated outside
            means = means if means_dtype == torch.float64 else means.view(means_dtype)
        self.means = means[: num_classes * feature_dim].view(num_classes, feature_dim)
        self._upper = scatter.view(feature_dim, feature_dim)  # only its upper triangle is used

    @classmethod
    def zeros(
        cls,
        num_classes: int,
        feature_dim: int,
        device: torch.device | str | None = None,
        *,
        means_dtype: torch.dtype = torch.float64,
    ) -> ClassMoments:
        """The moments of no samples."""
        check_count(num_classes, "num_classes", 1)
        check_count(feature_dim, "feature_dim", 1)
        size = packed_size(num_classes, feature_dim, means_dtype)
        with torch.inference_mode(False):  # else updates outside inference mode would be refused
            packed = torch.zeros(size, dtype=torch.float64, device=state_device(device))
        return cls(packed, num_classes, feature_dim, means_dtype)

    @classmethod
    def from_batch(
        cls,
        features: Tensor,
        labels: Tensor,
        num_classes: int,
        *,
        ignore_index: int | None = None,
        means_dtype: torch.dtype = torch.float64,
    ) -> ClassMoments:
        """The moments of (N, d) features with (N,) integer labels in 0..num_classes-1.

        Raises:
            InputError: see `update`.
        """
        check_features(features)
        empty = cls.zeros(num_classes, features.shape[1], features.device, means_dtype=means_dtype)
        return empty.update(features, labels, ignore_index=ignore_index)

    @classmethod
    def from_means(cls, counts: Tensor, means: Tensor) -> ClassMoments:
        """The moments of counts (K,) samples that all lie at their class means (K, d), so without spread."""
        check_features(means)
        moments = cls.zeros(means.shape[0], means.shape[1], means.device)
        moments._counts.copy_(check_labels(counts, means.shape[0], "counts"))
        moments.means.copy_(means)
        moments._coarsest.fill_(rounding(means))
        return moments

    @property
    def counts(self) -> Tensor:
        """(K,) int64: the number of samples of each class."""
        return self._counts.to(torch.int64)

    @property
    def num_samples(self) -> int:
        """N, the number of samples of all classes."""
        return int(self._counts.sum())

    @property
    def rounding(self) -> float:
        """Spacing (eps) of the coarsest dtype the features were rounded to, judged by their values; 0 if exact."""
        return float(self._coarsest)

    def round_at_least(self, spacing: float) -> None:
        """Record that the features were once rounded to a dtype with this spacing (eps).

        Their values no longer show it if they were averaged in a finer dtype afterwards.
        """
        self._coarsest.clamp_(min=spacing)

    @property
    def global_mean(self) -> Tensor:
        """(d,) float64, the mean over the samples (not over the classes); zero without samples."""
        total = self.means.new_zeros(self.feature_dim, dtype=torch.float64)
        for counts, means in zip(self._counts.split(_MEANS_ROWS), self.means.split(_MEANS_ROWS), strict=True):
            total += counts @ means.double()
        return total / self._counts.sum().clamp(min=1)

    @property
    def scatter(self) -> Tensor:
        """(d, d) within-class scatter: the sum (not the mean) over all samples of `(h - mu_y)(h - mu_y)'`."""
        return self._upper.triu() + self._upper.triu(1).T

    @property
    def within_covariance(self) -> Tensor:
        """(d, d) `S_W = scatter / N`, averaged over the samples."""
        return self.scatter / self._counts.sum().clamp(min=1)

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor, *, ignore_index: int | None = None) -> ClassMoments:
        """Add a batch in place and return self; on wrong input nothing changes.

        Args:
            features: (N, d) float16, bfloat16, float32 or float64; N = 0 is allowed.
            labels: (N,) integers of any width in 0..K-1.
            ignore_index: samples with this label are left out.

        Raises:
            InputError: wrong shapes or dtypes, labels out of range, NaN or infinite features.
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
        check_label_range(labels, self.num_classes)
        rows = max(1, _BLOCK_VALUES // self.feature_dim)
        if len(labels) > rows:  # a single block is checked by its sums, below
            check_finite(features)
        device = self.packed.device
        for part, part_labels in zip(features.split(_PRODUCT_ROWS), labels.split(_PRODUCT_ROWS), strict=True):
            self._add(part.to(device), part_labels.to(device), rows)
        self._coarsest.clamp_(min=rounding(features))
        return self

    def _add(self, features: Tensor, labels: Tensor, rows: int) -> None:
        """Add up to _PRODUCT_ROWS samples in blocks of `rows`; the float32 blocks in one product at the end."""
        dim = self.feature_dim
        single = in_float32(torch.finfo(features.dtype).eps, dim)
        waiting, diagonal = 0, 0.0 * self._upper[0]
        small = _scratch("small", features.shape, torch.float32, features.device) if single else features
        for block, block_labels in zip(features.split(rows), labels.split(rows), strict=True):
            exact = self._centred(block, block_labels)
            squares = torch.linalg.vector_norm(exact, dim=1).square_()
            self.spreads.index_add_(0, block_labels, squares)
            trace, most = float(squares.sum()), float(squares.max())
            if single and _SAFE_TRACE[0] < trace < _SAFE_TRACE[1] and most < _DOMINANT * trace:
                small[waiting : waiting + len(block)].copy_(exact)
                waiting += len(block)
                diagonal += exact.square_().sum(0)
            else:
                add_gram(self._upper, exact)
        if waiting:
            diagonal += self._upper.diagonal()
            with full_precision(features.device):
                add_gram(self._upper, small[:waiting])
            self._upper.diagonal().copy_(diagonal)  # in float32 its sums would grow, and round, the most

    def _centred(self, features: Tensor, labels: Tensor) -> Tensor:
        """The rows of a block minus their centres c, in float64. Updates counts and means."""
        exact = _scratch("exact", features.shape, torch.float64, features.device).copy_(features)
        classes, index = labels.unique(return_inverse=True)  # work on the classes of this block alone
        shape = (len(classes), self.feature_dim)
        sums = _scratch("sums", shape, torch.float64, features.device).zero_().index_add_(0, index, exact)
        if not bool(torch.isfinite(sums.sum())):
            check_finite(features)  # raises, before anything has changed

        batch_counts = torch.bincount(index).to(torch.float64)
        seen = self._counts[classes]
        total = seen + batch_counts
        means = _scratch("means", shape, torch.float64, features.device)
        if self.means.dtype == torch.float64:
            torch.index_select(self.means, 0, classes, out=means)
        else:
            means.copy_(self.means[classes])
        moved = sums.div_(batch_counts[:, None]).sub_(means)
        centres = means.addcmul_(moved, (1 - (seen / total).sqrt())[:, None])
        spare = _scratch("centres", features.shape, torch.float64, features.device)
        exact.sub_(torch.index_select(centres, 0, index, out=spare))
        self.means.index_add_(0, classes, moved.mul_((batch_counts / total)[:, None]).to(self.means.dtype))
        self._counts[classes] = total
        return exact

    def merge(self, other: ClassMoments) -> ClassMoments:
        """The moments of both sets of samples, as a new object; neither operand changes.

        Raises:
            InputError: the two differ in K, d or the dtype of the means.
        """
        if self.shape != other.shape:
            mine, theirs = (f"K={k}, d={d}" for k, d, _ in (self.shape, other.shape))
            if mine == theirs:
                mine, theirs = (f"means in {dtype}" for _, _, dtype in (self.shape, other.shape))
            raise InputError(
                f"expected moments of {mine}, got {theirs}: both need the same num_classes, features and means_dtype"
            )
        merged = ClassMoments(self.packed.clone(), *self.shape)
        merged.absorb(ClassMoments(other.packed.to(self.packed.device), *self.shape))
        return merged

    def absorb(self, other: ClassMoments) -> None:
        """Add the samples of `other` (of the same K, d and device) in place; `other` does not change."""
        total = self._counts + other._counts
        share = other._counts / total.clamp(min=1)
        both = self._counts * share  # n_a n_b / n; zero where one side has no samples
        self._upper += other._upper
        for start in range(0, self.num_classes, _MEANS_ROWS):
            part = slice(start, start + _MEANS_ROWS)
            moved = other.means[part].double() - self.means[part]
            self.spreads[part] += other.spreads[part] + both[part] * moved.square().sum(1)
            self.means[part] += (share[part, None] * moved).to(self.means.dtype)
            add_gram(self._upper, moved.mul_(both[part].sqrt()[:, None]))
        self._counts.copy_(total)
        torch.maximum(self._coarsest, other._coarsest, out=self._coarsest)

    @property
    def shape(self) -> tuple[int, int, torch.dtype]:
        """(K, d, dtype of the means): together with `packed`, the arguments of the constructor."""
        return self.num_classes, self.feature_dim, self.means.dtype

    def __reduce__(self) -> tuple[object, ...]:
        return ClassMoments, (self.packed, *self.shape)  # pickled views would no longer share memory

    def __repr__(self) -> str:
        shape = f"num_classes={self.num_classes}, feature_dim={self.feature_dim}"
        return f"ClassMoments({shape}, num_samples={self.num_samples})"


def in_float32(eps: float, feature_dim: int) -> bool:
    """Whether products of features of a dtype with this spacing run in float32."""
    return feature_dim >= _FLOAT32_FROM_DIM and eps > torch.finfo(torch.float64).eps


def kept_rows(features: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """(N,) bool, the rows whose label is not `ignore_index`; they must be finite (errors number the rows as given)."""
    kept = labels.to(torch.int64) != ignore_index  # in uint8, -100 would be 156
    if not bool(kept.all()):
        check_finite(torch.where(kept[:, None], features, 0))
    return kept


def state_device(device: torch.device | str | None) -> torch.device:
    """Where float64 state for features on `device` lives: there, or on the CPU for devices without float64 (MPS)."""
    device = torch.device(device or "cpu")
    return torch.device("cpu") if device.type == "mps" else device


def packed_size(num_classes: int, feature_dim: int, means_dtype: torch.dtype = torch.float64) -> int:
    """The length of `ClassMoments.packed`: 2K + K d + d^2 + 1, with K d / 2 (rounded up) for float32 means.

    Raises:
        InputError: means of another dtype.
    """
    if means_dtype not in (torch.float64, torch.float32):
        raise InputError(f"expected means_dtype torch.float64 or torch.float32, got {means_dtype}")
    values = num_classes * feature_dim
    places = values if means_dtype == torch.float64 else -(-values // 2)
    return 2 * num_classes + places + feature_dim * feature_dim + 1


def add_gram(upper: Tensor, rows: Tensor) -> None:
    """Add the upper triangle of `R'R` for R = rows. On a CPU only blocks of it are computed: up to 44 % less work."""
    dim = rows.shape[1]
    step = max(256, -(-dim // 8)) if rows.device.type == "cpu" else dim
    for start in range(0, dim, step):
        block, left, right = upper[start : start + step, start:], rows[:, start : start + step].T, rows[:, start:]
        if rows.dtype == upper.dtype:
            block.addmm_(left, right)
        else:
            block += left @ right


_buffers = threading.local()


def _scratch(name: str, shape: tuple[int, ...] | torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory for a block, reused from batch to batch: allocating fresh pages costs as much as the arithmetic."""
    size = math.prod(shape)
    key = (name, device, dtype)
    kept: dict[object, Tensor] = _buffers.__dict__.setdefault("kept", {})
    if key not in kept or kept[key].numel() < size:
        with torch.inference_mode(False):
            kept[key] = torch.empty(size, dtype=dtype, device=device)
    return kept[key][:size].view(shape)
