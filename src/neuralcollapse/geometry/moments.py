"""ClassMoments: counts, means and within-class scatter of labelled features, in one exact pass.

Rows wait in a block of some thousand, so that a small batch costs little more than a copy. A full block, or any look at
the moments, adds them to the sums of `shifted.py`, which are turned into means and scatter at that look. On the CPU
every batch is checked at once; on an accelerator `update` returns without waiting for the device, and a batch that is
wrong is reported at the next look. Merging follows Chan, Golub, LeVeque (1983).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neuralcollapse.checks import check_count, check_features, check_finite, check_label_range, check_labels
from neuralcollapse.errors import InputError, NumberedError
from neuralcollapse.geometry.matrix import mirror
from neuralcollapse.geometry.products import add_gram
from neuralcollapse.geometry.rounding import rounding, sampled
from neuralcollapse.geometry.shifted import MARKS, MEANS_ROWS, ShiftedSums, State, row_marks
from neuralcollapse.geometry.waiting import Waiting, block_rows


class ClassMoments:
    """First and second moments of features by class, as float64 tensors, O(K d + d^2) in all.

    Attributes:
        num_classes: K.
        feature_dim: d.
        packed: the whole state as one float64 vector: counts, spreads, means, upper triangle of the scatter in a d x d
            matrix, and `rounding`. Float32 means lie two to an entry. A vector without the last entry, as in version
            0.1.0, is taken for the state of float32 features.

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
        self.num_classes = num_classes
        self.feature_dim = feature_dim
        self._means_dtype = means_dtype
        self._on_host = waits_for_nothing(packed.device)
        self._hold(packed)
        self._fresh = False  # whether the state is known to be of no samples
        self._shared = True  # whether others may hold the state, or views of it
        self._sums: ShiftedSums | None = None  # while samples are added, the state holds these sums
        self._waiting: Waiting | None = None
        self._updates = self._unmarked = 0  # batches, and those before the first one with a mark
        self._samples: dict[torch.dtype, Tensor] = {}  # rows whose rounding has not been judged

    def _hold(self, packed: Tensor) -> None:
        num_classes, dim = self.num_classes, self.feature_dim
        square = dim * dim
        places = len(packed) - 2 * num_classes - square - 1
        counts, spreads, means, scatter, coarsest = packed.split((num_classes, num_classes, places, square, 1))
        with torch.inference_mode(False):  # a view as another type, made inside, could not be updated outside
            means = means if self._means_dtype == torch.float64 else means.view(self._means_dtype)
        means = means[: num_classes * dim].view(num_classes, dim)
        self._packed = packed
        self._state = State(counts, spreads, means, scatter.view(dim, dim), coarsest)

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
        moments = cls(packed, num_classes, feature_dim, means_dtype)
        moments._fresh, moments._shared = True, False
        return moments

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
        moments._state.counts.copy_(check_labels(counts, means.shape[0], "counts"))
        moments._state.means.copy_(means)
        moments._state.coarsest.fill_(rounding(means))
        moments._fresh = False
        return moments

    @property
    def packed(self) -> Tensor:
        """The whole state as one float64 vector; the tensors of the other properties are views or sums of it."""
        self._look()
        return self._packed

    @property
    def device(self) -> torch.device:
        """Where the state lives."""
        return self._packed.device

    @property
    def counts(self) -> Tensor:
        """(K,) int64: the number of samples of each class."""
        self._flush(looked_at=True)
        return self._state.counts.to(torch.int64)

    @property
    def num_samples(self) -> int:
        """N, the number of samples of all classes."""
        self._flush(looked_at=True)
        return int(self._state.counts.sum())

    @property
    def means(self) -> Tensor:
        """(K, d) mu_k; zero for a class without samples."""
        return self._look().means

    @property
    def spreads(self) -> Tensor:
        """(K,) sum over the samples of a class of `|h - mu_k|^2`."""
        return self._look().spreads

    @property
    def rounding(self) -> float:
        """Spacing (eps) of the coarsest dtype the features were rounded to, judged by their values; 0 if exact."""
        return float(self._look().coarsest)

    def round_at_least(self, spacing: float) -> None:
        """Record that the features were once rounded to a dtype with this spacing (eps).

        Their values no longer show it if they were averaged in a finer dtype afterwards.
        """
        self._own()
        self._state.coarsest.clamp_(min=spacing)

    @property
    def global_mean(self) -> Tensor:
        """(d,) float64, the mean over the samples (not over the classes); zero without samples."""
        state = self._look()
        total = state.means.new_zeros(self.feature_dim, dtype=torch.float64)
        for counts, means in zip(state.counts.split(MEANS_ROWS), state.means.split(MEANS_ROWS), strict=True):
            total += counts @ means.double()
        return total / state.counts.sum().clamp(min=1)

    @property
    def scatter(self) -> Tensor:
        """(d, d) within-class scatter: the sum (not the mean) over all samples of `(h - mu_y)(h - mu_y)'`."""
        return mirror(self.upper.clone())

    @property
    def upper(self) -> Tensor:
        """(d, d) a matrix whose upper triangle is that of the scatter; below the diagonal it means nothing."""
        return self._look().upper

    @property
    def within_covariance(self) -> Tensor:
        """(d, d) `S_W = scatter / N`, averaged over the samples."""
        return self.scatter / self._state.counts.sum().clamp(min=1)

    def update(self, features: Tensor, labels: Tensor, *, ignore_index: int | None = None) -> ClassMoments:
        """Add a batch and return self; nothing of a wrong batch is added.

        With the moments on an accelerator, this waits for nothing. A batch whose labels or values are wrong is then
        left out, and the next look at the moments raises an error with its number (from 1, since they were made).

        Args:
            features: (N, d) float16, bfloat16, float32 or float64; N = 0 is allowed.
            labels: (N,) integers of any width in 0..K-1.
            ignore_index: samples with this label are left out.

        Raises:
            InputError: wrong shapes or dtypes, labels out of range, NaN or infinite features.
        """
        return self._update(features, labels, ignore_index, 1)

    def update_batches(self, features: Tensor, labels: Tensor, sizes: Sequence[int]) -> ClassMoments:
        """Add several batches at once, one after the other in `features` and `labels`; `sizes` are theirs.

        The same as an `update` for each, but faster. A batch that is wrong is named by its number.

        Raises:
            InputError: as `update`; on the CPU, the batches before the wrong one have been added.
        """
        try:
            fit = len(labels) <= block_rows(self.feature_dim, on_host=False) and len(sizes) <= MARKS
            if self._on_host or fit:
                return self._update(features, labels, None, np.asarray(sizes))
        except NumberedError:
            raise
        except InputError:
            pass  # of which batch, the next lines find out
        for part, part_labels in zip(features.split(list(sizes)), labels.split(list(sizes)), strict=True):
            try:
                self._update(part, part_labels, None, 1)
            except NumberedError:
                raise
            except InputError as error:
                raise NumberedError(f"batch {self._updates + 1}: {error}") from None
        return self

    @torch.no_grad()
    def _update(
        self, features: Tensor, labels: Tensor, ignore_index: int | None, sizes: int | np.ndarray
    ) -> ClassMoments:
        """Add one batch, or the batches of these sizes."""
        check_features(features)
        if features.shape[1] != self.feature_dim:
            raise InputError(
                f"expected features of dimension {self.feature_dim}, got {features.shape[1]}: use one layer throughout"
            )
        labels = check_labels(labels, features.shape[0])
        if self._on_host or (waits_for_nothing(features.device) and waits_for_nothing(labels.device)):
            features, labels = self._checked(features, labels, ignore_index)
            ignore_index = None
        count, earlier = 1 if isinstance(sizes, int) else len(sizes), None
        if not self._on_host and self._updates + count - self._unmarked > MARKS:
            try:
                self._flush(looked_at=True)
            except NumberedError as error:
                earlier = error  # no reason to leave this batch out
            self._unmarked = self._updates
        mark = self._updates - self._unmarked
        self._updates += count
        if len(labels) > 0:
            plain = self._on_host or isinstance(sizes, int)  # on the CPU nobody looks at marks
            marks = mark if plain else np.repeat(np.arange(mark, mark + count), sizes)
            self._put(features, labels, ignore_index, marks)
        if earlier is not None:
            raise earlier
        return self

    def number_from(self, batch: int) -> None:
        """Let errors call the next batch by this number, unless batches before it have yet to be looked at."""
        if self._sums is None and self._waiting is None:
            self._updates = self._unmarked = batch - 1

    def _checked(self, features: Tensor, labels: Tensor, ignore_index: int | None) -> tuple[Tensor, Tensor]:
        """The batch without ignored rows, after all checks, on the CPU."""
        features, labels = features.cpu(), labels.cpu()
        if ignore_index is not None:
            kept = kept_rows(features, labels, ignore_index)
            features, labels = features[kept], labels[kept]
        check_label_range(labels, self.num_classes)
        check_finite(features)
        return features, labels

    def _put(self, features: Tensor, labels: Tensor, ignored: int | None, mark: int | np.ndarray) -> None:
        """Let a batch wait for its block; one that is larger than a block is added in parts."""
        size = block_rows(self.feature_dim, on_host=self._on_host)
        if self._on_host:
            whole = len(labels) // size * size
            for start in range(0, whole, size):
                self._add(features[start : start + size], labels[start : start + size])
            features, labels = features[whole:], labels[whole:]
            if len(labels) == 0:
                return
        elif len(labels) > size:
            features, labels = (each.to(self.device) for each in (features, labels))
            sound = _sound(features, labels, self.num_classes, ignored)
            marks = torch.full_like(labels, int(mark))
            for start in range(0, len(labels), size):
                part = slice(start, start + size)
                self._add(features[part], labels[part], marks[part], ignored, sound)
            self._samples[features.dtype] = sampled(features).clone()
            return
        waiting = self._waiting
        if waiting is not None and (waiting.dtype, waiting.ignored) != (features.dtype, ignored):
            self._flush()
            self._keep_sample()
            waiting = None
        if waiting is None:
            waiting = self._waiting = Waiting(features, size, self.device, ignored)
        if len(labels) > waiting.room:
            self._flush()
        waiting.put(features, labels, mark)
        if waiting.room == 0:
            self._flush()

    def _add(
        self,
        features: Tensor,
        labels: Tensor,
        marks: Tensor | None = None,
        ignored: int | None = None,
        sound: Tensor | None = None,
    ) -> None:
        """Add a block to the sums; `marks` and what follows are for an accelerator."""
        if self._sums is None:
            self._own()
            self._sums = ShiftedSums(self._state, features, fresh=self._fresh)
            self._fresh = False
        if marks is None:
            self._sums.add(features, labels)
            self._state.coarsest.clamp_(min=rounding(features))
        else:
            self._sums.add_unchecked(features, labels, marks, ignored, sound)

    def _own(self) -> None:
        """Before the state changes: leave it to those who may hold views of it, and go on with a copy."""
        if self._shared:
            with torch.inference_mode(False):
                self._hold(self._packed.clone())
            self._shared = False

    @torch.no_grad()
    def _flush(self, *, looked_at: bool = False) -> None:
        """Add the rows that wait; if someone looks at the sums, raise for a batch that was wrong."""
        waiting = self._waiting
        if waiting is not None and waiting.filled:
            marks = None if self._on_host else waiting.marks()
            self._add(*waiting.take(), marks, waiting.ignored)
        if looked_at and self._sums is not None and not self._on_host:
            self._check_marks(self._sums.batch_marks)

    def _check_marks(self, marks: Tensor) -> None:
        """Raise for the first batch that was wrong since the last look, which is forgotten."""
        found = marks.to("cpu", copy=True)
        bad = (~(found < torch.inf)).nonzero().flatten()
        marks.zero_()
        if len(bad) == 0:
            return
        first = self._unmarked + int(bad[0]) + 1
        wanted, got = "finite features", "NaN or infinity"
        if bool(found[bad[0]] == torch.inf):
            wanted, got = f"labels from 0 to {self.num_classes - 1}", "others"
        more = "" if len(bad) == 1 else f" and of {len(bad) - 1} later ones"
        raise NumberedError(
            f"batch {first}: expected {wanted}, got {got}; nothing of that batch{more} was counted: correct or drop "
            "them"
        )

    def _keep_sample(self) -> None:
        """On an accelerator, keep rows whose rounding the next look judges."""
        if self._waiting is not None and not self._on_host:
            self._samples[self._waiting.dtype] = self._waiting.sample()

    @torch.no_grad()
    def _look(self) -> State:
        """The state as means, spreads and scatter of everything added."""
        self._flush(looked_at=True)
        if self._sums is not None:
            self._sums.fold()
            self._sums = None
            self._keep_sample()
            for rows in self._samples.values():
                self._state.coarsest.clamp_(min=rounding(rows))
            self._samples = {}
        self._waiting = None
        self._shared = True
        return self._state

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

    @torch.no_grad()
    def absorb(self, other: ClassMoments) -> None:
        """Add the samples of `other` (of the same K, d and device) in place; `other` does not change.

        An error about an earlier batch of this object is raised when that is done.
        """
        theirs, earlier = other._look(), None
        try:
            self._look()
        except NumberedError as error:
            earlier = error
            self._look()
        self._own()
        self._fresh, mine = False, self._state
        total = mine.counts + theirs.counts
        share = theirs.counts / total.clamp(min=1)
        both = mine.counts * share  # n_a n_b / n; zero where one side has no samples
        mine.upper.add_(theirs.upper)
        for start in range(0, self.num_classes, MEANS_ROWS):
            part = slice(start, start + MEANS_ROWS)
            moved = theirs.means[part].double() - mine.means[part]
            mine.spreads[part] += theirs.spreads[part] + both[part] * moved.square().sum(1)
            mine.means[part] += (share[part, None] * moved).to(mine.means.dtype)
            add_gram(mine.upper, moved.mul_(both[part].sqrt()[:, None]))
        mine.counts.copy_(total)
        torch.maximum(mine.coarsest, theirs.coarsest, out=mine.coarsest)
        if earlier is not None:
            raise earlier

    @property
    def shape(self) -> tuple[int, int, torch.dtype]:
        """(K, d, dtype of the means): together with `packed`, the arguments of the constructor."""
        return self.num_classes, self.feature_dim, self._means_dtype

    def __reduce__(self) -> tuple[object, ...]:
        return ClassMoments, (self.packed, *self.shape)  # pickled views would no longer share memory

    @torch.no_grad()
    def snapshot(self) -> dict[str, Any]:
        """Everything, without a look: the moments that `restored` makes of it go on bit for bit as these do."""
        kept: dict[str, Any] = {"packed": self._packed.clone(), "shape": (self.num_classes, self.feature_dim)}
        kept |= {"float32_means": self._means_dtype == torch.float32, "batches": (self._updates, self._unmarked)}
        if self._sums is not None:
            sums = self._sums
            kept |= {"references": sums.references.clone(), "single": sums.single, "marks": sums.batch_marks.clone()}
        if self._waiting is not None and self._waiting.filled:
            kept["waiting"] = self._waiting.snapshot()
        return kept

    @classmethod
    def restored(cls, kept: dict[str, Any], device: torch.device | str | None = None) -> ClassMoments:
        """The moments of a `snapshot`, on a device; by default that of the snapshot."""

        def placed(value: Tensor) -> Tensor:
            return value.to(device=device, copy=True)

        means_dtype = torch.float32 if kept["float32_means"] else torch.float64
        num_classes, feature_dim = kept["shape"]
        moments = cls(placed(kept["packed"]), num_classes, feature_dim, means_dtype)
        moments._updates, moments._unmarked = kept["batches"]
        if "references" in kept:
            moments._sums = ShiftedSums(moments._state, kept["references"], fresh=True)
            moments._sums.references.copy_(kept["references"])
            moments._sums.batch_marks.copy_(kept["marks"])
            moments._sums.single = kept["single"]
        if "waiting" in kept:
            features, labels, marks, ignored = kept["waiting"]
            rows = block_rows(feature_dim, on_host=moments._on_host)
            moments._waiting = Waiting(features, max(rows, len(labels)), moments.device, ignored)
            moments._waiting.put(features, labels, marks.numpy())
        return moments

    def __repr__(self) -> str:
        shape = f"num_classes={self.num_classes}, feature_dim={self.feature_dim}"
        return f"ClassMoments({shape}, num_samples={self.num_samples})"


def waits_for_nothing(device: torch.device) -> bool:
    """Whether looking at a number on the device costs nothing, as on the CPU."""
    return device.type == "cpu"


def _sound(features: Tensor, labels: Tensor, num_classes: int, ignored: int | None) -> Tensor:
    """1 on the device if all rows are right, else infinite or NaN."""
    marks = row_marks(features.double(), (labels >= 0) & (labels < num_classes))
    if ignored is not None:
        marks.masked_fill_(labels == ignored, 1)
    return marks.amax()


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
