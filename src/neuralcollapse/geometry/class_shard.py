"""ClassShard: the moments of the classes of one rank, where the rows of a head are split over ranks.

A vocabulary-parallel head keeps some rows of its weight on each rank. Class means are split the same way: a rank adds
up the samples of its own classes in `ClassMoments`, so that K d values take K d / ranks on each. The d x d scatter is a
sum over samples, and so over ranks.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from neuralcollapse.checks import (
    check_classifier,
    check_count,
    check_features,
    check_labels,
)
from neuralcollapse.errors import InputError, one_line
from neuralcollapse.geometry.intake import checked_rows
from neuralcollapse.geometry.moments import ClassMoments
from neuralcollapse.geometry.nearest import NearestMeans
from neuralcollapse.geometry.packed import packed_size, state_of
from neuralcollapse.geometry.ranks import Ranks

if TYPE_CHECKING:
    from typing_extensions import Self

# Two ranks with the same samples may have features that differ by rounding, by far less than this share of their norm
# in their sum; the sums of different samples differ by about 1.4 times their norm.
_ALIKE = 0.05


class JoinedMoments(NamedTuple):
    """What the centred means ask of moments. All of it is of all ranks, but for the means, which are this rank's."""

    num_classes: int
    feature_dim: int
    counts: Tensor  # (K,)
    spreads: Tensor  # (K,)
    means: Tensor  # (K_r, d)
    upper: Tensor  # (d, d)
    rounding: float
    global_mean: Tensor  # (d,)


class ClassShard:
    """The moments of a rank's own classes, beside those of the other ranks: O(K d / ranks + d^2) memory on each.

    It is made, updated and measured by all ranks of the group alike; `neuralcollapse.measures` takes it in place of
    `ClassMoments`. A wrong argument on one rank raises the same `InputError` on all of them.

    Attributes:
        num_classes: K, of all ranks together.
        feature_dim: d.
        classes: the numbers of this rank's classes, a `range`; empty on a rank without any.
        moments: the `ClassMoments` of these classes, numbered from 0. A rank without classes has those of one class
            that no sample belongs to.

    Create one with `zeros` and add batches in place with `update`.
    """

    def __init__(self, moments: ClassMoments, classes: range, num_classes: int, ranks: Ranks, *, split: bool) -> None:
        self.moments = moments
        self.classes = classes
        self.num_classes = num_classes
        self.feature_dim = moments.feature_dim
        self.ranks = ranks
        self._split = split
        self.sizes: list[int] = []  # the number of classes of each rank

    @classmethod
    def zeros(
        cls,
        num_classes: int,
        feature_dim: int,
        device: torch.device | str | None = None,
        *,
        group: Any = None,
        classes: range | None = None,
        split_samples: bool = False,
        means_dtype: torch.dtype = torch.float64,
    ) -> ClassShard:
        """The moments of no samples, of this rank's part of K classes.

        Args:
            num_classes: K, of all ranks together.
            feature_dim: d.
            device: where the state lives.
            group: the process group (or a `DeviceMesh` of one dimension) over which the classes are split; by default
                all processes.
            classes: the numbers of this rank's classes, `range(first, last + 1)`. Those of the ranks follow one another
                from 0 to K. By default each rank has ceil(K / ranks) of them and the last ones fewer, as in
                `torch.chunk` and a DTensor's `Shard(0)`.
            split_samples: False if every rank is given the same samples, as the ranks of a vocabulary-parallel head
                are: each keeps those of its classes, and no features are sent. True if each rank has samples of its
                own: every batch is sent to all ranks, one rank's part at a time.
            means_dtype: as for `ClassMoments`.

        Raises:
            InputError: on every rank, if one has a wrong argument or the ranks have different ones.
        """
        ranks, problem, own = Ranks(group), "", range(0)
        try:
            check_count(num_classes, "num_classes", 1)
            check_count(feature_dim, "feature_dim", 1)
            packed_size(1, 1, means_dtype)
            own = _own_classes(classes, num_classes, ranks)
            _check_device(device)
        except InputError as error:
            problem = str(error)
        options = {
            "num_classes": str(num_classes),
            "feature_dim": str(feature_dim),
            "means_dtype": str(means_dtype),
            "split_samples": bool(split_samples),
            "type of device": "" if problem else torch.device(device or "cpu").type,
        }
        shares = ranks.exchange("ClassShard.zeros", problem, options, (own.start, own.stop))
        _check_cover(shares, num_classes)
        moments = ClassMoments.zeros(max(len(own), 1), feature_dim, device, means_dtype=means_dtype)
        shard = cls(moments, own, num_classes, ranks, split=bool(split_samples))
        shard.sizes = [stop - start for start, stop in shares]
        return shard

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor, *, ignore_index: int | None = None) -> Self:
        """Add a batch and return self; all ranks must call this equally often, if need be with no rows.

        Args:
            features: (N, d) float16, bfloat16, float32 or float64: the same on every rank, or with `split_samples` the
                rank's own.
            labels: (N,) integers of any width in 0..K-1, the numbers of all classes.
            ignore_index: samples with this label are left out.

        Raises:
            InputError: on every rank, if one has a wrong batch (see `ClassMoments.update`), or if the ranks have
                different samples without `split_samples`. Nothing is added then.
        """
        problem, dtype = "", torch.float32
        try:
            features, labels = self._checked(features, labels, ignore_index)
            dtype = features.dtype
        except InputError as error:
            problem, features = str(error), self.moments.means.new_zeros(0, self.feature_dim)
            labels = torch.zeros(0, dtype=torch.int64, device=features.device)
        own = [len(labels), str(dtype).removeprefix("torch.")]
        if not self._split:
            size = torch.linalg.vector_norm(features, dtype=torch.float64)
            own += [int((labels + 1).sum()), float(features.sum(dtype=torch.float64)), float(size)]
        batches = self.ranks.exchange("ClassShard.update", problem, {"ignore_index": ignore_index}, own)
        if not self._split:
            _check_same(batches)
            return self._add(features, labels)
        for source, (count, name) in enumerate(batches):
            if count == 0:
                continue
            if source != self.ranks.rank:
                rows = torch.empty(count, self.feature_dim, dtype=getattr(torch, name), device=self.moments.device)
                numbers = torch.empty(count, dtype=torch.int64, device=self.moments.device)
            else:
                rows, numbers = (each.to(self.moments.device) for each in (features, labels))
            self._add(self.ranks.sent(rows, source), self.ranks.sent(numbers, source))
        return self

    def _checked(self, features: Tensor, labels: Tensor, ignore_index: int | None) -> tuple[Tensor, Tensor]:
        """The rows that count and their labels, after all checks."""
        check_features(features)
        if features.shape[1] != self.feature_dim:
            raise InputError(
                f"expected features of dimension {self.feature_dim}, got {features.shape[1]}: use one layer throughout"
            )
        labels = check_labels(labels, features.shape[0]).to(features.device)
        return checked_rows(features.detach(), labels, self.num_classes, ignore_index)

    def _add(self, features: Tensor, labels: Tensor) -> Self:
        """Add those rows of a batch that are of this rank's classes."""
        mine = (labels >= self.classes.start) & (labels < self.classes.stop)
        self.moments.update(features[mine], labels[mine] - self.classes.start)
        return self

    @torch.no_grad()
    def joined(self) -> JoinedMoments:
        """The moments of all ranks, which all of them must ask for, but for the means, which stay where they are."""
        own, count = self.moments, len(self.classes)
        counts = self.ranks.gathered(own.counts[:count], self.sizes)
        spreads = self.ranks.gathered(own.spreads[:count], self.sizes)
        weight, total = own.num_samples, self.ranks.total(own.global_mean * own.num_samples)
        return JoinedMoments(
            self.num_classes,
            self.feature_dim,
            counts,
            spreads,
            own.means[:count],
            self.ranks.total(own.upper.clone()),
            self.ranks.most(own.rounding if weight else 0.0),
            total / counts.sum().clamp(min=1),
        )

    @torch.no_grad()
    def nearest_means(self, features: Tensor) -> Tensor:
        """(N,) the class of any rank whose mean lies nearest to each of the (N, d) features, the same on every rank.

        The share of samples for which it is not the class in `predictions` is NC4, and goes to 0 under collapse. All
        ranks must call this, with the same features.

        Raises:
            InputError: on every rank, if one has wrong features, or no rank has seen samples.
        """
        problem = ""
        try:
            check_features(features)
            features, _ = self._checked(
                features, torch.zeros(len(features), dtype=torch.int64, device=features.device), None
            )
        except InputError as error:
            problem, features = str(error), self.moments.means.new_zeros(0, self.feature_dim)
        own = self.moments
        counts = self.ranks.exchange("ClassShard.nearest_means", problem, {"rows": len(features)}, own.num_samples)
        if sum(counts) == 0:
            raise InputError("the moments hold no samples, so there is no nearest class mean: update them first")
        centre = self.ranks.total(own.global_mean * own.num_samples) / sum(counts)
        best = centre.new_full((len(features),), -math.inf)
        classes = torch.zeros_like(best, dtype=torch.int64)
        if own.num_samples:
            classes, best = NearestMeans(own, centre).nearest(features)
        return self._best(best, classes)

    @torch.no_grad()
    def predictions(self, logits: Tensor) -> Tensor:
        """(N,) the class of any rank with the largest logit, from the (N, K_r) logits of this rank's classes.

        All ranks must call this, with the logits of the same samples.

        Raises:
            InputError: on every rank, if one has logits of another shape, or of another number of samples.
        """
        shape, problem = tuple(getattr(logits, "shape", ())), ""
        if len(shape) != 2 or shape[1] != len(self.classes):
            wanted = f"(N, {len(self.classes)})"
            problem = f"expected logits of shape {wanted}, got {shape}: give the columns of this rank's classes"
        self.ranks.agree("ClassShard.predictions", problem, rows=shape[:1])
        if shape[1] == 0:
            best = torch.full(shape[:1], -math.inf, dtype=torch.float64, device=self.moments.device)
            return self._best(best, torch.zeros_like(best, dtype=torch.int64))
        best, classes = logits.detach().max(1)
        return self._best(best.to(self.moments.device, torch.float64), classes.to(self.moments.device))

    def _best(self, scores: Tensor, classes: Tensor) -> Tensor:
        """(N,) the class with the largest score, the first of equals, of each rank's best, numbered from its first."""
        every = [len(scores)] * self.ranks.size
        scores, classes = (
            self.ranks.gathered(each, every).view(self.ranks.size, -1)
            for each in (scores, classes + self.classes.start)
        )
        return classes.gather(0, scores.max(0, keepdim=True).indices)[0]

    @torch.no_grad()
    def gather(self) -> ClassMoments:
        """The moments of all K classes, on every rank: O(K d) memory. All ranks must call this.

        For K that fits, and whatever takes `ClassMoments` alone.
        """
        self.ranks.agree("ClassShard.gather")
        joined = self.joined()
        shape = self.num_classes, self.feature_dim, joined.means.dtype
        packed = torch.zeros(packed_size(*shape), dtype=torch.float64, device=self.moments.device)
        state = state_of(packed, *shape)
        state.counts.copy_(joined.counts)
        state.spreads.copy_(joined.spreads)
        state.means.copy_(self.ranks.gathered(joined.means, self.sizes))
        state.upper.copy_(joined.upper)
        state.coarsest.fill_(joined.rounding)
        return ClassMoments(packed, *shape)

    def check_classifier(self, weight: Tensor | None, bias: Tensor | None) -> None:
        """Raise unless they are this rank's rows of a classifier (see `checks.check_classifier`)."""
        count, own = len(self.classes), self.classes
        if isinstance(weight, Tensor) and len(weight) == self.num_classes != count:
            raise InputError(
                f"expected the {count} rows of the weight for this rank's classes, got those of all {len(weight)}: "
                f"give weight[{own.start}:{own.stop}], and the bias likewise"
            )
        check_classifier(weight, bias, count, self.feature_dim)

    def __repr__(self) -> str:
        return (
            f"ClassShard(num_classes={self.num_classes}, feature_dim={self.feature_dim}, classes={self.classes}, "
            f"rank {self.ranks.rank} of {self.ranks.size})"
        )


def local_rows(values: Tensor | None) -> Tensor | None:
    """The rank's own rows of a DTensor; another tensor as it is."""
    to_local = getattr(values, "to_local", None)
    return values if to_local is None else to_local()


def _check_device(device: torch.device | str | None) -> None:
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError, TypeError) as error:  # of a backend that is not built in, or unknown
        raise InputError(f"expected the name of a device that is there, got {device!r}: {one_line(error)}") from None


def _own_classes(classes: range | None, num_classes: int, ranks: Ranks) -> range:
    """The classes of this rank, as given or by default."""
    if classes is None:
        size = -(-num_classes // ranks.size)
        return range(min(ranks.rank * size, num_classes), min((ranks.rank + 1) * size, num_classes))
    if not isinstance(classes, range) or classes.step != 1 or not 0 <= classes.start <= classes.stop <= num_classes:
        raise InputError(
            f"expected classes as range(first, last + 1) within 0 to {num_classes}, got {classes!r:.80}: give the "
            "numbers of the rows of the weight that this rank holds"
        )
    return classes


def _check_cover(shares: list[list[int]], num_classes: int) -> None:
    """Raise unless the classes of the ranks follow one another from 0 to K."""
    stops = [0, *(stop for _, stop in shares)]
    if [start for start, _ in shares] != stops[:-1] or stops[-1] != num_classes:
        got = ", ".join(f"range({start}, {stop})" for start, stop in shares)
        raise InputError(
            f"expected the classes of the ranks to follow one another from 0 to {num_classes}, got {got}: give each "
            "class to one rank, in the order of the ranks"
        )


def _check_same(batches: list[list[Any]]) -> None:
    """Raise unless all ranks have the same batch: as many rows, and sums of the labels and features that agree."""
    first = batches[0]
    for rank, each in enumerate(batches):
        alike = each[:3] == first[:3] and not abs(each[3] - first[3]) > _ALIKE * first[4]
        if not alike:
            raise InputError(
                f"expected the same samples on every rank, got others on rank {rank} ({each[0]} rows) than on rank 0 "
                f"({first[0]} rows): make the ClassShard with split_samples=True if each rank has samples of its own"
            )
