"""Critical points of low rank: those of the model with fewer dimensions, its minima and its saddles.

W and H of a critical point with d' dimensions, padded by zeros, are a critical point with d. So each rank r from 1 to
K-2 has a landscape of its own, and it is not benign: it is searched by descent and by Newton's method on the gradient,
for any index, from many random points. A search, not a proof: what it does not meet, it does not list.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from neuralcollapse.ufm.descent import lbfgs
from neuralcollapse.ufm.model import Model, Point
from neuralcollapse.ufm.polish import polish
from neuralcollapse.ufm.units import Units

ALIKE = 1e-5  # points whose invariants are nearer than this are one
_SCALES = (0.3, 0.7, 1.5, 3.0)  # of random points, in canonical units, in turn
_ROUNDS = 120  # damped Newton steps at most
_REACHED = 1e-7  # gradient, relative to mu, at which a search ends and polishing begins
_ROW_NUMBERS = 2**23  # numbers of the Hessians that are held together


def reduced(small: Model, dim: int) -> Model:
    """The same canonical model with another feature dimension."""
    model = copy.copy(small)
    model.feature_dim = dim
    return model


def search(units: Units, rank: int, starts: int, seed: int = 0) -> list[Point]:
    """Different critical points of at most `rank` dimensions, canonical, highest first.

    Args:
        units: of the model.
        rank: d', the dimensions that the points may use.
        starts: random points, each taken to a minimum and, by Newton's method alone, to a critical point.
        seed: of the random points.
    """
    lower = copy.copy(units)
    lower.small = small = reduced(units.small, rank)
    generator = torch.Generator().manual_seed(seed + 1000 * rank)
    begin = torch.randn(starts, small.size, generator=generator, dtype=torch.float64).to(small.device)
    begin = begin * torch.tensor(_SCALES, dtype=torch.float64).repeat(starts)[:starts, None].to(begin)
    low = lbfgs(small.value_and_gradient, begin, tolerance=1e-4 * units.mu, iterations=600, memory=20).points
    part = max(1, _ROW_NUMBERS // small.size**2)
    ends = torch.cat([newton_on_gradient(small, rows) for rows in torch.cat([low, begin]).split(part)])
    found: list[tuple[Tensor, Point]] = []
    for vector in ends:
        if any(alike(invariants(small, small.point(vector)), other) for other, _ in found):
            continue
        end = polish(lower, small.point(vector))
        if end.gradient_norm <= _REACHED * units.mu and not any(
            alike(invariants(small, end.point), other) for other, _ in found
        ):
            found.append((invariants(small, end.point), end.point))
    return [point for _, point in sorted(found, key=lambda pair: -float(pair[0][0]))]


def padded(small: Model, point: Point) -> Point:
    """A point of fewer dimensions in all those of a model."""
    extra = small.feature_dim - point.W.shape[-1]
    W = torch.nn.functional.pad(point.W, (0, extra))
    return Point(W, torch.nn.functional.pad(point.H, (0, 0, 0, extra)), point.b)


def newton_on_gradient(small: Model, vectors: Tensor) -> Tensor:
    """The rows of (B, n) that reach a critical point, of any index, by damped Newton steps on the gradient.

    Each row's step s solves (A A + t I) s = A g, A the Hessian: Levenberg and Marquardt's method for g = 0; t falls as
    steps succeed.
    """
    identity = torch.eye(small.size, dtype=torch.float64, device=small.device)
    directions = small.point(identity)
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
        matrix = small.hessian_product(small.point(x[:, None]), directions).vector()
        matrix = (matrix + matrix.mT) / 2
        normal = matrix @ matrix + damping[:, None, None] * identity
        step = torch.linalg.solve(normal, (matrix @ gradient[:, :, None]))[:, :, 0]
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
    """Numbers that rotations of the features and swaps of classes with equal counts leave alone, f the first.

    They are those of the logits W G (K, K): singular values, and, for each pair of counts, the sorted entries; the
    diagonal apart. For the squared error, whose critical points come in families that rotate the classes, the singular
    values alone.
    """
    product = point.W @ point.H
    parts = [small.value(point)[None], torch.linalg.svdvals(product)]
    if small.loss.name == "mse":
        return torch.cat(parts)
    blocks = equal_counts(small.counts)
    for rows in blocks:
        parts.append(product[rows, rows].sort().values)
        parts += [product[rows][:, columns].flatten().sort().values for columns in blocks]
    return torch.cat(parts)


def alike(first: Tensor, second: Tensor) -> bool:
    """Whether two invariants are those of the same critical point."""
    return bool(((first - second).abs() <= ALIKE * (1 + first.abs())).all())


def equal_counts(counts: Sequence[int]) -> list[list[int]]:
    """The classes of each count."""
    return [[k for k, count in enumerate(counts) if count == value] for value in sorted(set(counts))]


def pattern(point: Point) -> str:
    """The angles of a point's classifier rows in words: "cosines -1, 0", "cosine -1, a class at 0"."""
    lengths = point.W.norm(dim=1)
    there = lengths > 1e-4 * lengths.max().clamp(min=1e-300)
    rows = point.W[there] / lengths[there, None]
    first, second = torch.triu_indices(len(rows), len(rows), 1)
    cosines = sorted({round(float(c), 2) + 0.0 for c in (rows @ rows.mT)[first, second]})
    shown = [f"{c:.2g}" for c in cosines]
    if len(shown) > 4:
        shown = [shown[0], shown[1], "...", shown[-1]]
    zero = int((~there).sum())
    text = f"cosine{'s' if len(cosines) != 1 else ''} {', '.join(shown)}" if shown else "one class"
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
