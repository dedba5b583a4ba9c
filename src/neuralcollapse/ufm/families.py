"""Critical points of low rank: the minima and saddles of the model with fewer dimensions.

W and H of a critical point with d' dimensions, padded with zeros, are a critical point with d dimensions. So each rank
from 1 to K-2 has a landscape of its own, which is not benign. It is searched from many random points by descent, and by
Newton's method on the gradient for critical points of any index. This is a search, not a proof: points that it does not
find are not listed.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from neuralcollapse.ufm.descent import lbfgs
from neuralcollapse.ufm.hessian import dense_hessian
from neuralcollapse.ufm.model import Model
from neuralcollapse.ufm.points import Point
from neuralcollapse.ufm.polish import polish
from neuralcollapse.ufm.units import Units

ALIKE = 1e-5  # points whose invariants agree to this, relatively, are the same
_SCALES = (0.1, 0.3, 0.7, 1.5, 3.0, 5.0)  # of the random points, in canonical units, cyclically
_LEAST, _MOST, _ROUND = 200, 1600, 200  # number of starts: at least, at most, and at a time
_LOWERED = 16  # one in so many starts is first taken to a minimum
_ROUNDS = 120  # damped Newton steps at most
_REACHED = 1e-7  # gradient, relative to mu, at which a search ends and polishing begins
_TOGETHER = 2**20  # entries of the Hessians that are computed together: more would not stay in the cache


def search(units: Units, rank: int, starts: int | None = None) -> list[Point]:
    """Distinct canonical critical points of at most `rank` dimensions, the highest first.

    `starts` random points are each taken to a critical point by Newton's method, some after a descent. By default they
    are twice as many as were needed for the last new point, between 200 and 1,600.

    Half of the starts have a symmetry, which Newton's steps preserve: a saddle that is rarely reached is often one of
    few with its symmetry.
    """
    lower = copy.copy(units)
    lower.small = small = units.small.with_columns(units.small.columns, feature_dim=rank)
    generator = torch.Generator("cpu").manual_seed(1000 * rank)
    found: list[Point] = []
    known = Known()
    tried = last = 0
    least, most = (_LEAST, _MOST) if starts is None else (starts, starts)
    while tried < min(most, max(least, 2 * last)):
        count = min(_ROUND, most - tried)
        tried += count
        for end in _ends(small, count, generator):
            near = polish(lower, small.point(end))
            if near.gradient_norm <= _REACHED * units.mu and known.add(invariants(small, near.point)):
                found.append(near.point)
                last = tried
    return sorted(found, key=lambda point: -float(small.value(point)))


def _ends(small: Model, count: int, generator: torch.Generator) -> Tensor:
    """The distinct critical points (B, n) reached from `count` random points."""
    begin = torch.randn(count, small.size, generator=generator, dtype=torch.float64, device="cpu").to(small.device)
    begin = begin * torch.tensor(_SCALES, dtype=torch.float64, device="cpu").repeat(count)[:count, None].to(begin)
    begin[::2] = torch.stack([_symmetric(small, vector, generator) for vector in begin[::2]])
    few = begin[1::_LOWERED]
    if len(few):
        lowered = lbfgs(small.value_and_gradient, few, tolerance=1e-4 * small.mu, iterations=300).points
        begin = torch.cat([begin, lowered])
    part = max(1, _TOGETHER // small.size**2)
    ends = torch.cat([newton_on_gradient(small, rows) for rows in begin.split(part)])
    return ends[different(invariants(small, small.point(ends)))]


def _symmetric(small: Model, vector: Tensor, generator: torch.Generator) -> Tensor:
    """The point made invariant under a random symmetry: swaps of classes of equal counts, with some axes reflected."""
    point = small.point(vector)
    order = torch.arange(small.num_classes, device="cpu")
    for block in equal_counts(small.counts):
        mixed = [block[i] for i in torch.randperm(len(block), generator=generator, device="cpu")]
        for i in range(int(torch.randint(len(block) // 2 + 1, (1,), generator=generator, device="cpu"))):
            order[mixed[2 * i]], order[mixed[2 * i + 1]] = mixed[2 * i + 1], mixed[2 * i]
    signs = (2.0 * torch.randint(2, (small.feature_dim,), generator=generator, device="cpu") - 1).to(vector)
    order = order.to(small.device)
    bias = None if point.b is None else (point.b + point.b[order]) / 2
    W, H = point.W + point.W[order] * signs, point.H + signs[:, None] * point.H[:, order]
    return Point(W / 2, H / 2, bias).vector()


def padded(small: Model, point: Point) -> Point:
    """A point of fewer dimensions, padded with zeros to the dimensions of the model."""
    extra = small.feature_dim - point.W.shape[-1]
    W = torch.nn.functional.pad(point.W, (0, extra))
    return Point(W, torch.nn.functional.pad(point.H, (0, 0, 0, extra)), point.b)


def newton_on_gradient(small: Model, vectors: Tensor) -> Tensor:
    """The critical points, of any index, that the rows of (B, n) reach by damped Newton steps on the gradient.

    The step s solves `(A A + t I) s = A g`, A the Hessian: the Levenberg-Marquardt method for `g = 0`, in which t
    decreases as steps succeed.
    """
    identity = torch.eye(small.size, dtype=torch.float64, device=small.device)
    goal = _REACHED * small.mu
    x, gradient = vectors.clone(), small.value_and_gradient(vectors)[1]
    size = gradient.norm(dim=-1)
    damping = size.square().clamp(max=1.0)
    done: list[Tensor] = []
    for _ in range(_ROUNDS):
        ended = size <= goal
        done.append(x[ended])
        going = ~ended & (damping < 1e6)
        x, gradient, size, damping = x[going], gradient[going], size[going], damping[going]
        if not len(x):
            break
        matrix = dense_hessian(small, small.point(x))
        normal = matrix @ matrix + damping[:, None, None] * identity
        step = torch.linalg.solve_ex(normal, matrix @ gradient[:, :, None])[0][:, :, 0]  # singular: NaN, so no step
        trial = x - step
        trial_gradient = small.value_and_gradient(trial)[1]
        trial_size = trial_gradient.norm(dim=-1)
        better = trial_size < size
        x = torch.where(better[:, None], trial, x)
        gradient = torch.where(better[:, None], trial_gradient, gradient)
        falls = trial_size < 0.5 * size
        size = torch.where(better, trial_size, size)
        damping = torch.where(better, damping * torch.where(falls, 0.1, 0.5), damping * 8)
        damping = torch.maximum(damping, 1e-3 * goal * goal + 1e-20 * size)
    return torch.cat(done)


def invariants(small: Model, point: Point) -> Tensor:
    """(..., m) numbers that do not change under rotations of the features and swaps of classes with equal counts.

    The objective, the singular values of the logits W G (K, K), and their sorted entries, for each pair of counts, the
    diagonal separately. For the squared error, whose critical points come in families that rotate the classes, no
    entries.
    """
    product = point.W @ point.H
    parts = [small.value(point).unsqueeze(-1), torch.linalg.svdvals(product)]
    if small.loss.name != "mse":
        blocks = equal_counts(small.counts)
        for rows in blocks:
            parts.append(product[..., rows, rows].sort().values)
            parts += [product[..., rows, :][..., columns].flatten(-2).sort().values for columns in blocks]
    return torch.cat(parts, dim=-1)


class Known:
    """The invariants of the critical points found so far."""

    def __init__(self) -> None:
        self.marks: Tensor | None = None

    def add(self, mark: Tensor) -> bool:
        """Remember the invariants of a point; returns whether they are new."""
        if self.marks is None:
            self.marks = mark[None]
            return True
        if bool(((self.marks - mark).abs() <= ALIKE * (1 + mark.abs())).all(-1).any()):
            return False
        self.marks = torch.cat([self.marks, mark[None]])
        return True


def different(marks: Tensor) -> list[int]:
    """The indices of the distinct rows of (B, m) invariants."""
    known = Known()
    return [i for i, mark in enumerate(marks) if known.add(mark)]


def equal_counts(counts: Sequence[int]) -> list[list[int]]:
    """The classes grouped by their number of samples."""
    return [[k for k, count in enumerate(counts) if count == value] for value in sorted(set(counts))]


def pattern(point: Point) -> str:
    """The configuration of the classifier rows: "line at -1, 0 (2), 1", or "cosines -1, 0, 1 class at 0"."""
    lengths = point.W.norm(dim=1)
    there = lengths > 1e-4 * lengths.max().clamp(min=1e-300)
    zero = int((~there).sum())
    if not bool(there.any()):
        return "zero"
    _, sizes, axes = torch.linalg.svd(point.W, full_matrices=False)
    if int((sizes > 1e-5 * sizes[0]).sum()) == 1:
        places = point.W @ axes[0]
        places = places / places[places.abs().argmax()]  # the farthest class at 1
        counts = Counter(round(float(place), 2) + 0.0 for place in places)
        return "line at " + ", ".join(f"{x:.2g}" + (f" ({n})" if n > 1 else "") for x, n in sorted(counts.items()))
    rows = point.W[there] / lengths[there, None]
    first, second = torch.triu_indices(len(rows), len(rows), 1, device=rows.device)
    cosines = sorted({round(float(c), 2) + 0.0 for c in (rows @ rows.mT)[first, second]})
    shown = [f"{c:.2g}" for c in cosines]
    if len(shown) > 5:
        shown = [*shown[:2], "...", *shown[-2:]]
    text = f"cosine{'s' if len(cosines) > 1 else ''} {', '.join(shown)}"
    return text + (f", {zero} class{'es' if zero > 1 else ''} at 0" if zero else "")


def tied(point: Point) -> tuple[tuple[int, ...], ...]:
    """The groups of classes whose classifier rows coincide."""
    rows, size = point.W, float(point.W.abs().max()) + 1e-300
    groups: list[list[int]] = []
    for k in range(len(rows)):
        for group in groups:
            if float((rows[k] - rows[group[0]]).abs().max()) <= 1e-5 * size:
                group.append(k)
                break
        else:
            groups.append([k])
    return tuple(tuple(group) for group in groups)
