"""The atlas: critical points of a model, by partitions of its classes and by ranks.

Partitions: W and H are tied within the groups of a partition, and the objective is minimised over the tied points. If
the classes of a group have equal numbers of samples, the result is a critical point of the whole model (symmetric
criticality). Each class in a group of its own gives the global minimiser, all classes in one group the origin.

Low rank: each critical point of the model with d' < K-1 dimensions is also one with d dimensions (`families.py`). Those
are found by a search from random points. The list is not known to be complete. For K <= 5 longer searches found no
further value in the models that were tried; for more classes it holds what the search found.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from neuralcollapse.checks import check_count
from neuralcollapse.errors import InputError, NeuralCollapseWarning, listed
from neuralcollapse.ufm.certificate import Certificate, certify
from neuralcollapse.ufm.descent import lbfgs, newton
from neuralcollapse.ufm.families import Known, invariants, padded, pattern, search, tied
from neuralcollapse.ufm.hessian import Hessian
from neuralcollapse.ufm.model import Model
from neuralcollapse.ufm.points import Point
from neuralcollapse.ufm.polish import polish
from neuralcollapse.ufm.units import Units

Partition = tuple[tuple[int, ...], ...]

CRITICAL = 1e-8  # a canonical gradient of at most this times mu makes a point critical
_ROUNDING = 1e-15  # of a canonical gradient, whose parts are of order 1 at a saddle
_SEARCHED_UP_TO = 6  # classes up to which every rank is searched by default
_THOROUGH_UP_TO = 5  # classes up to which that search continues as long as it finds points
_STARTS = 300  # random points for each rank with more classes
_RANK_WORK = 40  # partitions that take about as long as the search of a rank
_LABELLED_UP_TO = 6  # classes up to which unequal counts get every labelled partition (203 of them)
_LARGEST = 20  # classes up to which partitions are listed at all (627 of them)


@dataclass(frozen=True)
class Entry:
    """A critical point.

    Attributes:
        partition: the groups of classes that were tied; for low rank, the groups whose rows coincide.
        point: the critical point.
        objective: f at the point.
        certificate: its verdict, gap and way down.
        index: the number of negative eigenvalues of the Hessian.
        least_eigenvalue: the least eigenvalue of the Hessian.
        rank: the rank of W.
        measures: the collapse measures of the point.
        labelled: whether it matters which classes are in a group (unequal counts).
        family: "partition", or "low rank" for a point that the search of a rank found.
        pattern: for low rank, the configuration of the classifier rows in words.
    """

    partition: Partition
    point: Point
    objective: float
    certificate: Certificate
    index: int
    least_eigenvalue: float
    rank: int
    measures: dict[str, float]
    labelled: bool
    family: str = "partition"
    pattern: str = ""

    @property
    def name(self) -> str:
        """The sizes of the groups, "3+1", or the classes, "0,1,2 | 3", if their counts differ.

        For low rank, the rank and the angles: "rank 2: cosines -1, 0".
        """
        if self.family == "low rank":
            return f"rank {self.rank}: {self.pattern}"
        if self.labelled:
            return " | ".join(",".join(map(str, group)) for group in sorted(map(sorted, self.partition)))
        return "+".join(map(str, self.sizes))

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes of the groups, largest first."""
        return tuple(sorted((len(group) for group in self.partition), reverse=True))

    def record(self) -> dict[str, Any]:
        """The entry for JSON, without the point."""
        return {
            "groups": [list(group) for group in self.partition],
            "name": self.name,
            "family": self.family,
            "objective": self.objective,
            "verdict": self.certificate.verdict,
            "index": self.index,
            "rank": self.rank,
            "least_eigenvalue": self.least_eigenvalue,
            "gap": self.certificate.gap,
            "nc2": self.measures["nc2"],
        }


def atlas(
    model: Model,
    partitions: Sequence[Partition] | None = None,
    *,
    ranks: Sequence[int] | None = None,
    starts: int | None = None,
    on_progress: Callable[[float], None] = lambda share: None,
) -> list[Entry]:
    """Critical points of a model, the highest first: those of partitions, and those of low rank that a search finds.

    The list is not known to be complete: `coverage` says what is searched by default.

    Args:
        model: the model; the global minimiser is among the points if d >= K-1.
        partitions: the partitions to use. By default one for each integer partition of K if the classes have equal
            counts. If they do not, every labelled partition for K <= 6, and for larger K the integer partitions of the
            classes sorted by size, largest first.
        ranks: the ranks to search for points that no partition gives. By default 1 to K-2 for K <= 6, and none for
            larger K or if partitions are given.
        starts: number of random points in the search of a rank, each taken to a critical point of any index by Newton's
            method on the gradient. By default, for K <= 5, twice as many as were needed for the last new point, between
            200 and 1,600; for larger K 300. Points that differ only by a rotation of the features or by swaps of
            classes with equal counts are the same.
        on_progress: called with the share of the work that is done, from 0 to 1, as far as that can be told.

    For partitions of unequal classes, the tied minimum is polished to the nearest critical point; those from which none
    is reached are left out.

    Raises:
        InputError: K > 20 and no partitions given, groups that are not a partition of the classes, or a rank that is
            not between 1 and K-1; features >= 0.
    """
    if model.nonnegative:
        raise InputError("the atlas is of models with features='real': with features >= 0 no saddle can be certified")
    if ranks is None:
        ranks = _default_ranks(model) if partitions is None else ()
    ranks = [check_count(rank, "a rank", 1) for rank in ranks]
    if any(rank > min(model.num_classes - 1, model.feature_dim) for rank in ranks):
        raise InputError(
            f"expected ranks of at most {min(model.num_classes - 1, model.feature_dim)}, the least of K-1 and d, "
            f"got {max(ranks)}"
        )
    if starts is not None:
        check_count(starts, "starts", 1)
    elif model.num_classes > _THOROUGH_UP_TO:
        starts = _STARTS
    if partitions is None:
        partitions = _all_partitions(model)
    # Up to units, critical points depend only on lW lH: find them where W and H have equal decays.
    units = Units(model)
    small = units.small
    entries: list[Entry] = []
    known: list[Tensor] = []
    missed: list[str] = []
    work = len(partitions) + _RANK_WORK * len(ranks)
    for done, partition in enumerate(partitions):
        on_progress(done / work)
        _check_partition(partition, model.num_classes)
        point = _critical_point(units, partition)
        if point is None:
            missed.append(str(partition))
            continue
        logits = small.logits(point)
        if any(torch.allclose(logits, other, atol=1e-6) for other in known):
            continue
        known.append(logits)
        entries.append(_entry(units, point, partition))
    if missed and model.balanced:
        warnings.warn(
            f"no critical point polished to a gradient of {CRITICAL * units.mu:.0e} for the partitions "
            f"{listed(missed)}",
            NeuralCollapseWarning,
            stacklevel=2,
        )
    marks = Known()
    for entry in entries:
        marks.add(invariants(small, units.enter(entry.point)))
    for done, rank in enumerate(ranks):
        on_progress((len(partitions) + _RANK_WORK * done) / work)
        for reduced in search(units, rank, starts):
            point = padded(small, reduced)
            if marks.add(invariants(small, point)):
                entries.append(_entry(units, point, tied(point), "low rank", pattern(point)))
    return sorted(entries, key=lambda entry: -entry.objective)


def _default_ranks(model: Model) -> Sequence[int]:
    K = model.num_classes
    return range(1, min(K - 2, model.feature_dim) + 1) if K <= _SEARCHED_UP_TO else ()


def coverage(model: Model) -> str:
    """What `atlas(model)` searches and what it leaves out, in a sentence or two."""
    ranks = _default_ranks(model)
    labelled = not model.balanced and model.num_classes <= _LABELLED_UP_TO
    groups = "every partition of the classes" if labelled else "one partition of the classes for each list of sizes"
    if model.num_classes == 2:
        return f"Searched: {groups}."
    if not ranks:
        return (
            f"Searched: {groups}. Not searched: points of low rank that no partition gives, whose number "
            f"grows with K (atlas(ranks=...) looks for them)."
        )
    numbers = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
    numbers = "ranks 1 and 2" if list(ranks) == [1, 2] else numbers
    if model.num_classes > _THOROUGH_UP_TO:
        return f"Searched: {groups}, and {numbers} from {_STARTS} random points each: a part of the critical points."
    return (
        f"Searched: {groups}, and {numbers} from random points, as long as they brought new ones. "
        "No proof says that these are all critical points."
    )


def _entry(units: Units, point: Point, partition: Partition, family: str = "partition", words: str = "") -> Entry:
    model, small = units.model, units.small
    full = units.leave(point)
    return Entry(
        partition,
        full,
        float(small.value(point)),
        certify(model, full),
        Hessian(small, point).negative(1e-6 * units.mu),  # inertia does not depend on the units
        Hessian(model, full).least(),
        int((torch.linalg.svdvals(point.W) > 1e-5).sum()),
        model.measures(full),
        not model.balanced,
        family,
        words,
    )


def _critical_point(units: Units, partition: Partition) -> Point | None:
    """The polished tied minimum of the canonical model; None if no critical point is near."""
    small = units.small
    tie = _tying(small, partition)

    def objective(vectors: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = small.value_and_gradient(tie(vectors))
        return value, tie(gradient)

    def product(at: Tensor, direction: Tensor) -> Tensor:
        return tie(small.hessian_product(small.point(tie(at)), small.point(tie(direction))).vector())

    start = tie(small.random_point(seed=1, scale=0.5).vector())
    vector = lbfgs(objective, start[None], tolerance=1e-7 * units.mu, iterations=1500, memory=20).points[0]
    vector = tie(newton(objective, product, vector, tolerance=1e-4 * CRITICAL * units.mu))
    point = small.point(vector)
    if float(small.value_and_gradient(vector)[1].norm()) <= 1e-2 * CRITICAL * units.mu:
        return point
    near = polish(units, point, reach=math.inf)
    return near.point if near.gradient_norm <= CRITICAL * units.mu + _ROUNDING else None


def _tying(small: Model, partition: Partition) -> Callable[[Tensor], Tensor]:
    """The orthogonal projection of vectors onto the points that are equal within groups."""
    K = small.num_classes
    rows = torch.zeros(K, K, dtype=torch.float64, device=small.device)
    columns = torch.zeros_like(rows)
    roots = small.columns.roots
    for group in partition:
        index = torch.tensor(group, device=small.device)
        rows[index[:, None], index] = 1 / len(group)
        part = roots[index]
        columns[index[:, None], index] = torch.outer(part, part) / part.square().sum()

    def tie(vectors: Tensor) -> Tensor:
        point = small.point(vectors)
        bias = None if point.b is None else point.b @ rows
        return Point(rows @ point.W, point.H @ columns, bias).vector()

    return tie


def _all_partitions(model: Model) -> list[Partition]:
    K = model.num_classes
    if not model.balanced and K <= _LABELLED_UP_TO:
        return list(set_partitions(tuple(range(K))))
    if K > _LARGEST:
        raise InputError(
            f"{K} classes have too many partitions: choose some with partitions=, tuples of groups of classes"
        )
    order = sorted(range(K), key=lambda k: -model.counts[k])
    found = []
    for sizes in integer_partitions(K):
        ends = torch.tensor(sizes, device="cpu").cumsum(0).tolist()
        found.append(tuple(tuple(order[end - size : end]) for size, end in zip(sizes, ends, strict=True)))
    return found


def integer_partitions(total: int, largest: int | None = None) -> Iterator[tuple[int, ...]]:
    """The partitions of an integer, the largest parts first: 4, 3+1, 2+2, 2+1+1, 1+1+1+1."""
    if total == 0:
        yield ()
        return
    for part in range(min(total, largest or total), 0, -1):
        for rest in integer_partitions(total - part, part):
            yield (part, *rest)


def set_partitions(items: tuple[int, ...]) -> Iterator[Partition]:
    """The partitions of a set of items into groups."""
    if len(items) <= 1:
        yield (items,) if items else ()
        return
    first, rest = items[0], items[1:]
    for smaller in set_partitions(rest):
        yield ((first,), *smaller)
        for i, group in enumerate(smaller):
            yield (*smaller[:i], (first, *group), *smaller[i + 1 :])


def _check_partition(partition: Partition, num_classes: int) -> None:
    groups = isinstance(partition, Sequence) and all(isinstance(group, Sequence) and len(group) for group in partition)
    if not groups or sorted(k for group in partition for k in group) != list(range(num_classes)):
        raise InputError(
            f"expected a partition of the classes 0 to {num_classes - 1} into groups, got {partition}: each class once"
        )
