"""The atlas: critical points of a model, one for each partition of its classes.

Tie W and H within the groups of a partition and minimise over the tied points: when the classes of a group have as
many samples, the result is a critical point of the whole model (symmetric criticality). All classes apart is the
global minimiser, all together the origin.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from neuralcollapse._errors import InputError, NeuralCollapseWarning, listed
from neuralcollapse.ufm.certificate import Certificate, certify
from neuralcollapse.ufm.descent import lbfgs, newton
from neuralcollapse.ufm.hessian import Hessian
from neuralcollapse.ufm.model import Model, Point

Partition = tuple[tuple[int, ...], ...]

CRITICAL = 1e-10  # the gradient norm to which points are polished
_LABELLED_UP_TO = 6  # classes up to which unequal counts get every labelled partition (203 of them)
_LARGEST = 20  # classes up to which partitions are listed at all (627 of them)


@dataclass(frozen=True)
class Entry:
    """A critical point.

    Attributes:
        partition: the groups of classes that it was tied by.
        point: the critical point.
        objective: f there.
        certificate: its verdict, gap and way down.
        index: the number of negative eigenvalues of the Hessian.
        least_eigenvalue: the least of them all.
        rank: of W.
        measures: its collapse measures.
        labelled: whether it matters which classes are in a group (unequal counts).
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

    @property
    def name(self) -> str:
        """The groups as text: their sizes, "3+1", or, where classes differ, the classes, "0,1,2 | 3"."""
        if self.labelled:
            return " | ".join(",".join(map(str, group)) for group in sorted(map(sorted, self.partition)))
        return "+".join(map(str, self.sizes))

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes of the groups, largest first."""
        return tuple(sorted((len(group) for group in self.partition), reverse=True))

    def record(self) -> dict[str, Any]:
        """Its numbers, for JSON; the point is left out."""
        return {
            "groups": [list(group) for group in self.partition],
            "name": self.name,
            "objective": self.objective,
            "verdict": self.certificate.verdict,
            "index": self.index,
            "rank": self.rank,
            "least_eigenvalue": self.least_eigenvalue,
            "gap": self.certificate.gap,
            "nc2": self.measures["nc2"],
        }


def atlas(model: Model, partitions: Sequence[Partition] | None = None) -> list[Entry]:
    """The critical points of a model, highest first.

    Args:
        model: with d >= K-1.
        partitions: the partitions to use. When not given: one for each integer partition of K when the classes
            have equal counts; when they do not, every labelled partition for K <= 6, and beyond that the integer
            partitions of the classes sorted by size, largest first.

    Points with the same logits count once. Points of unequal classes are polished from the tied minimum to the
    nearest critical point; those that reach none are left out.

    Raises:
        InputError: K > 20 and no partitions given, or groups that are no partition of the classes.
    """
    if partitions is None:
        partitions = _all_partitions(model)
    # Critical points depend on lW lH alone, up to the balance of W and H: find them where both decays are mu.
    even = Model(
        model.num_classes,
        model.feature_dim,
        model.counts,
        model.mu,
        model.mu,
        model.bias_decay,
        model.bias,
        model.loss,
        device=model.device,
    ).collapsed()
    entries: list[Entry] = []
    known: list[Tensor] = []
    missed: list[str] = []
    for partition in partitions:
        _check_partition(partition, model.num_classes)
        vector = _critical_point(even, partition)
        if vector is None:
            missed.append(str(partition))
            continue
        point = even.point(vector)
        logits = even.logits(point)
        if any(torch.allclose(logits, other, atol=1e-6) for other in known):
            continue
        known.append(logits)
        entries.append(_entry(model, even, point, partition))
    if missed and model.balanced:
        warnings.warn(
            f"no critical point polished to a gradient of {_critical(even):.0e} for the partitions {listed(missed)}",
            NeuralCollapseWarning,
            stacklevel=2,
        )
    return sorted(entries, key=lambda entry: -entry.objective)


def _entry(model: Model, even: Model, point: Point, partition: Partition) -> Entry:
    ratio = (model.feature_decay / model.weight_decay) ** 0.25
    full = model.expand(Point(ratio * point.W, point.H / ratio, point.b))
    return Entry(
        partition,
        full,
        float(even.value(point)),
        certify(model, full),
        Hessian(even, point).negative(1e-6 * even.mu),  # inertia does not depend on the balance
        Hessian(model, full).least(),
        int((torch.linalg.svdvals(point.W) > 1e-5).sum()),
        model.measures(full),
        not model.balanced,
    )


def _critical(even: Model) -> float:
    """The gradient norm to polish to: `CRITICAL`, or less where the decays are tiny."""
    return min(CRITICAL, max(1e-6 * even.mu, 1e-15))


def _critical_point(small: Model, partition: Partition) -> Tensor | None:
    """The tied minimum of a collapsed model, polished; None when no critical point is near."""
    tie = _tying(small, partition)

    def objective(vectors: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = small.value_and_gradient(tie(vectors))
        return value, tie(gradient)

    def product(at: Tensor, direction: Tensor) -> Tensor:
        return tie(small.hessian_product(small.point(tie(at)), small.point(tie(direction))).vector())

    start = tie(small.random_point(seed=1, scale=0.5).vector())
    vector = lbfgs(objective, start[None], tolerance=1e-7 * small.mu, iterations=4000, memory=20).points[0]
    vector = tie(newton(objective, product, vector, tolerance=0.01 * _critical(small)))
    if float(small.value_and_gradient(vector)[1].norm()) > _critical(small):
        vector = _polish(small, vector)
    return vector if float(small.value_and_gradient(vector)[1].norm()) <= _critical(small) else None


def _tying(small: Model, partition: Partition) -> Callable[[Tensor], Tensor]:
    """The orthogonal projection of vectors onto points that are equal within groups."""
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


def _polish(small: Model, vector: Tensor) -> Tensor:
    """Newton's method on the gradient, for critical points of any index: dense, with a pseudo-inverse."""
    size = float(small.value_and_gradient(vector)[1].norm())
    for _ in range(60):
        gradient = small.value_and_gradient(vector)[1]
        matrix = Hessian(small, small.point(vector)).dense()
        step = torch.linalg.pinv(matrix, rtol=1e-9, hermitian=True) @ gradient
        for _ in range(12):
            trial = vector - step
            trial_size = float(small.value_and_gradient(trial)[1].norm())
            if trial_size < size:
                break
            step = step / 2
        else:
            return vector
        vector, size = trial, trial_size
        if size <= 0.01 * _critical(small):
            break
    return vector


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
        ends = torch.tensor(sizes).cumsum(0).tolist()
        found.append(tuple(tuple(order[end - size : end]) for size, end in zip(sizes, ends, strict=True)))
    return found


def integer_partitions(total: int, largest: int | None = None) -> Iterator[tuple[int, ...]]:
    """The ways to write a number as a sum, largest parts first: 4, 3+1, 2+2, 2+1+1, 1+1+1+1."""
    if total == 0:
        yield ()
        return
    for part in range(min(total, largest or total), 0, -1):
        for rest in integer_partitions(total - part, part):
            yield (part, *rest)


def set_partitions(items: tuple[int, ...]) -> Iterator[Partition]:
    """The ways to put items into groups."""
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
