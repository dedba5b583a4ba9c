"""ClassMoments: counts, means and within-class scatter of labelled features, in one exact pass.

Batches go through `intake.py` into the sums of `shifted.py`, which are turned into means and scatter when somebody
looks at the moments. Merging follows Chan, Golub, LeVeque (1983).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from neuralcollapse.checks import check_count, check_features, check_labels
from neuralcollapse.errors import InputError, NumberedError
from neuralcollapse.geometry.intake import Intake
from neuralcollapse.geometry.matrix import mirror
from neuralcollapse.geometry.packed import State, packed_size, state_device, state_of
from neuralcollapse.geometry.products import add_gram
from neuralcollapse.geometry.rounding import rounding
from neuralcollapse.geometry.shifted import MEANS_ROWS, ShiftedSums


class ClassMoments(Intake):
    """First and second moments of features by class, as float64 tensors, O(K d + d^2) in all.

    Attributes:
        num_classes: K.
        feature_dim: d.
        device: where the state lives.
        packed: the whole state as one float64 vector: counts, spreads, means, upper triangle of the scatter in a d x d
            matrix, and `rounding`. Float32 means lie two to an entry. A vector without the last entry, as in version
            0.1.0, is taken for the state of float32 features.

    Create one with `from_batch` or `zeros`, add batches in place with `update`, combine two with `merge`. Features may
    be float16, bfloat16, float32 (products in float32 after centring) or float64 (products in float64), labels of any
    integer dtype, on any device.

    Float32 products leave a relative error of about 1e-8 in NC1, and none in its quotient and CDNV, which are of their
    diagonal, taken in float64. If the scatter is far larger in one direction than along the class means, the error is
    up to 1e-7 times that ratio; give `features.double()` to be exact there too.

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
        super().__init__(num_classes, feature_dim, packed.device)
        self._means_dtype = means_dtype
        self._hold(packed)
        self._fresh = False  # whether the state is known to be of no samples
        self._shared = True  # whether others may hold the state, or views of it

    def _hold(self, packed: Tensor) -> None:
        self._packed = packed
        self._state = state_of(packed, self.num_classes, self.feature_dim, self._means_dtype)

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

    def _begun(self, features: Tensor) -> ShiftedSums:
        self._own()
        fresh, self._fresh = self._fresh, False
        return ShiftedSums(self._state, features, fresh=fresh)

    def _own(self) -> None:
        """Before the state changes: leave it to those who may hold views of it, and go on with a copy."""
        if self._shared:
            with torch.inference_mode(False):
                self._hold(self._packed.clone())
            self._shared = False

    @torch.no_grad()
    def _look(self) -> State:
        """The state as means, spreads and scatter of everything added."""
        self._flush(looked_at=True)
        self._fold()
        self._shared = True
        return self._state

    def merge(self, other: ClassMoments) -> ClassMoments:
        """The moments of both sets of samples, as a new object; neither operand changes.

        Raises:
            InputError: the two differ in K, d or the dtype of the means.
        """
        check_moments(other, "the other moments")
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
        return kept | {"float32_means": self._means_dtype == torch.float32} | self._taken_in()

    @classmethod
    def restored(cls, kept: dict[str, Any], device: torch.device | str | None = None) -> ClassMoments:
        """The moments of a `snapshot`, on a device; by default that of the snapshot."""
        means_dtype = torch.float32 if kept["float32_means"] else torch.float64
        num_classes, feature_dim = kept["shape"]
        with torch.inference_mode(False):  # else updates outside inference mode would be refused
            packed = kept["packed"].to(device=device, copy=True)
        moments = cls(packed, num_classes, feature_dim, means_dtype)
        if "references" in kept:
            moments._shared, moments._fresh = False, True
        moments._take_in(kept)
        return moments

    def __repr__(self) -> str:
        shape = f"num_classes={self.num_classes}, feature_dim={self.feature_dim}"
        return f"ClassMoments({shape}, num_samples={self.num_samples})"


def check_moments(moments: object, name: str = "moments") -> None:
    """Raise unless these are `ClassMoments`; what holds some is answered by how to get at them."""
    if isinstance(moments, ClassMoments):
        return
    way = "make them with ClassMoments.from_batch(features, labels, num_classes)"
    if isinstance(getattr(moments, "moments", None), ClassMoments):  # a Capture, or a ClassShard, which has a part
        way = "call its gather() on all ranks" if hasattr(moments, "gather") else "give its attribute moments"
    raise InputError(f"expected {name} as ClassMoments, got {type(moments).__name__}: {way}")
