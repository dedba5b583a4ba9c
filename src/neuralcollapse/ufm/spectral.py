"""Newton's method for hundreds of groups, in the basis of the singular vectors: few products of the Hessian in a step.

A step of proximal descent on `C - t grad g` gives singular vectors L, R and values s, and with them the rank. In the
factors `W = L diag(s)^(1/2)`, `H = diag(s)^(1/2) R'` the changes `W + L E` and `H + F R'` move C by
`L (E r + r F) R'`, r = diag(s)^(1/2). At the minimum `L' grad g R = -diag(h)` with h = mu where s > 0 and at most mu
elsewhere. Taken so everywhere, the quadratic model is convex:

    f''[(E, F)] = g''[L (E r + r F) R'] + mu (|E|^2 + |F|^2) - 2 sum_ij h_i E_ij F_ji

In this basis g'' is nearly a curvature D_ij of each entry, which couples only the entries (i, j) and (j, i) of E and F.
With the inverse of that as preconditioner, conjugate gradients need some tens of products where plain ones need
hundreds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from neuralcollapse.ufm.grouped import GroupedModel, GroupedPoint
from neuralcollapse.ufm.losses import SquaredError

_STEPS = 30  # Newton steps, at most
_PRODUCTS = 80  # of the Hessian in a step, at most
# The gradient, relative to mu, from which points are worth a bound, as their values are right to some 12 digits, and
# the one at which no digit is left to gain: at 250 classes values were off by 1e-12 at 4e-5, and by 1e-16 at 1e-7.
_GOOD, _END = 3e-5, 1e-7
# By which h is kept below mu for the preconditioner, relatively: rotations of the factors have no curvature.
_SLACK = 1e-4

Parts = tuple[Tensor, Tensor, Tensor, Tensor]  # E, F, and the changes of u and of the scaled bias


def spectral_newton(problem: GroupedModel, point: GroupedPoint) -> Iterator[GroupedPoint]:
    """Points that are better and better, from one near the minimum, as long as rounding lets the gradient shrink."""
    before = math.inf
    for _ in range(_STEPS):
        place = _proximal(problem, point)
        step = _Step(problem, place)
        if step.size <= _GOOD * problem.mu:
            yield place.point
            if step.size <= _END * problem.mu or step.size > before / 2:
                return
        before = step.size
        moved = step.search()
        if moved is None:  # no part of the step lowers the objective: all is rounding
            yield place.point
            return
        point = moved


@dataclass(frozen=True)
class _Place:
    """A point by the singular values and vectors of C: `left diag(sizes) right`; `held` are the h."""

    left: Tensor
    sizes: Tensor
    right: Tensor
    held: Tensor
    point: GroupedPoint


def _proximal(problem: GroupedModel, point: GroupedPoint) -> _Place:
    """A step of proximal descent in C and the a_g, no longer than the curvature of the loss allows."""
    length = 1.0 if isinstance(problem.loss, SquaredError) else 2.0  # the curvature is at most 1, or 1/2
    between, within, _ = problem.pull(problem.weighted_slopes(problem.logits(point)))
    left, sizes, right = torch.linalg.svd(point.between - length * between)
    held = (sizes / length).clamp(max=problem.mu)
    sizes = (sizes - length * problem.mu).clamp(min=0)
    moved = (point.within - length * (within / problem.less + problem.mu)).clamp(min=0)
    moved = torch.where(problem.groups.sizes > 1, moved, 0.0)
    return _Place(left, sizes, right, held, GroupedPoint(moved, (left * sizes) @ right, point.b))


class _Step:
    """The Newton step from a place, and what it needs; `size` is the length of the gradient."""

    def __init__(self, problem: GroupedModel, place: _Place) -> None:
        self.problem, self.place = problem, place
        self.roots, self.u = place.sizes.sqrt(), (place.point.within * problem.less).sqrt()
        self.bias = torch.zeros_like(self.u) if place.point.b is None else place.point.b * problem.groups.sizes.sqrt()
        self.logits = problem.logits(place.point)
        between, within, bias = problem.pull(problem.weighted_slopes(self.logits))
        gradient = place.left.mT @ between @ place.right.mT
        gradient.diagonal().add_(problem.mu)
        self.excess = within / problem.less + problem.mu  # what holds each a_g back
        decayed = bias / problem.groups.sizes.sqrt() + problem.model.bias_decay * self.bias
        self.gradient: Parts = (
            gradient * self.roots,
            self.roots[:, None] * gradient,
            2 * self.u * self.excess,
            decayed if problem.model.bias else torch.zeros_like(decayed),
        )
        self.size = math.hypot(*(float(part.norm()) for part in self.gradient))

    def search(self) -> GroupedPoint | None:
        """The point after the step or a part of it, or None if no part lowers the objective."""
        problem, place = self.problem, self.place
        step = self.solve()
        slope, length = _dot(self.gradient, step), 1.0
        norms = place.sizes.sum() + self.u.square().sum()
        value = float(problem.value(place.point, norms))
        for _ in range(30):
            E, F, u, b = (length * part for part in step)
            E.diagonal().add_(self.roots)
            F.diagonal().add_(self.roots)
            u += self.u
            norms = (E.square().sum() + F.square().sum()) / 2 + u.square().sum()
            bias = None if place.point.b is None else place.point.b + b / problem.groups.sizes.sqrt()
            moved = GroupedPoint(u.square() / problem.less, place.left @ (E @ F) @ place.right, bias)
            if float(problem.value(moved, norms)) <= value + 1e-4 * length * slope + 1e-15 * abs(value):
                return moved
            length /= 2
        return None

    def solve(self) -> Parts:
        """The step, by preconditioned conjugate gradients in single precision, more exact as the gradient falls.

        A step that is right to some digits is all that Newton's method needs: the gradients are of double precision.
        """
        product, precondition = self._product(torch.float32), self._preconditioner(torch.float32)
        residual = [(part * (-1 / self.size)).float() for part in self.gradient]
        found = [torch.zeros_like(part) for part in residual]
        image = precondition(residual)
        direction, square = list(image), _dot(residual, image)
        size = self.size / self.problem.mu
        goal = square * min(1e-2, max(1e-6, 0.1 * size, (1e-6 / size) ** 2))  # beyond 1e-6 it is worth no product
        for _ in range(_PRODUCTS):
            bent = product(direction)
            curvature = _dot(direction, bent)
            if not curvature > 0:
                break
            for part, along, rest, gone in zip(found, direction, residual, bent, strict=True):
                part.add_(along, alpha=square / curvature)
                rest.sub_(gone, alpha=square / curvature)
            image = precondition(residual)
            square, before = _dot(residual, image), square
            if not square > goal:
                break
            direction = [part.add_(along, alpha=square / before) for part, along in zip(image, direction, strict=True)]
        E, F, u, b = (part.double() * self.size for part in found)
        return E, F, u, b

    def _product(self, kind: torch.dtype) -> Callable[[Sequence[Tensor]], Parts]:
        whole, place = self.problem, self.place
        problem, mu, decay = whole.to(kind), whole.mu, whole.model.bias_decay
        left, right, roots, held = (part.to(kind) for part in (place.left, place.right, self.roots, place.held))
        turn, held_back = (2 * self.u / whole.less).to(kind), (2 * self.excess.clamp(min=0)).to(kind)
        curvature = problem.loss.curvature_at((whole.stretch * self.logits + whole.shift).to(kind), problem.targets)
        weights, counts = problem.stretch * problem.weights, problem.groups.sizes.sqrt()

        def product(parts: Sequence[Tensor]) -> Parts:
            E, F, u, b = parts
            moved = left @ (E * roots + roots[:, None] * F) @ right
            logits = problem.logits(GroupedPoint(turn * u, moved, b / counts if whole.model.bias else None))
            between, within, bias = problem.pull(curvature(problem.stretch * logits) * weights)
            inner = left.mT @ between @ right.mT
            return (
                (inner * roots).add_(E, alpha=mu).sub_(held[:, None] * F.mT),
                (roots[:, None] * inner).add_(F, alpha=mu).sub_(E.mT * held),
                held_back * u + turn * within,
                bias / counts + decay * b if whole.model.bias else torch.zeros_like(b),
            )

        return product

    def _preconditioner(self, kind: torch.dtype) -> Callable[[Sequence[Tensor]], list[Tensor]]:
        problem, place = self.problem, self.place
        shares = None
        if not isinstance(problem.loss, SquaredError):
            shares = (problem.stretch * self.logits + problem.shift).softmax(-2)
            shares = shares[1:] + torch.diag(shares[0])  # the probability of each group
        curvature = _curvatures(problem, place, shares, kind)
        roots, lack = self.roots.to(kind), problem.mu - place.held.clamp(max=problem.mu * (1 - _SLACK))
        even = _pairs(curvature, roots, lack.to(kind))
        odd = _pairs(curvature, roots, (2 * problem.mu - lack).to(kind))
        alone = (2 * self.excess.clamp(min=_SLACK * problem.mu) + self._bent_margins()).to(kind)
        factor = _bias_factor(problem, shares).to(kind) if problem.model.bias else None

        def precondition(parts: Sequence[Tensor]) -> list[Tensor]:
            E, F, u, b = parts
            plus, minus = E + F.mT, E - F.mT
            plus = (even[0].mT * plus - even[1] * plus.mT).div_(even[2])
            minus = (odd[0].mT * minus + odd[1] * minus.mT).div_(odd[2])
            solved = b if factor is None else torch.cholesky_solve(b[:, None], factor)[:, 0]
            return [(plus + minus) / 2, ((plus - minus) / 2).mT.contiguous(), u / alone, solved]

        return precondition

    def _bent_margins(self) -> Tensor:
        """(G,) the curvature of the loss in each u alone."""
        problem, m = self.problem, self.problem.groups.sizes
        others = torch.diag(-1 / m)
        moved = torch.cat([(1 - 1 / m)[None], others]) / problem.roots * problem.stretch
        bent = problem.loss.curvature_at(problem.stretch * self.logits + problem.shift, problem.targets)(moved)
        return (2 * self.u / problem.less).square() * (moved * bent).sum(0) * problem.weights


def _curvatures(problem: GroupedModel, place: _Place, shares: Tensor | None, kind: torch.dtype) -> Tensor:
    """(G, G) D: the curvature of the loss along `l_i r_j'`, made symmetric, up to rounding."""
    if shares is None:
        return torch.ones_like(place.left, dtype=kind)
    rows, shares = (place.left / problem.groups.sizes.sqrt()[:, None]).mT, shares.to(kind)
    rows = rows.to(kind).contiguous()
    spread = (rows.square() @ shares).sub_((rows @ shares).square_()).clamp_(min=0)
    curvature = spread @ place.right.mT.to(kind).square()
    return (curvature + curvature.mT) / 2


def _pairs(curvature: Tensor, roots: Tensor, lack: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of `[[D s_j + l_i, D r_i r_j], [D r_i r_j, D s_i + l_j]]`, for each (i, j): first entry, second, determinant."""
    sizes = roots.square()
    weighted = sizes * lack
    determinant = curvature * (weighted + weighted[:, None]) + torch.outer(lack, lack)
    return curvature * sizes + lack[:, None], curvature * torch.outer(roots, roots), determinant


def _bias_factor(problem: GroupedModel, shares: Tensor | None) -> Tensor:
    """The Cholesky factor of the Hessian in the scaled bias; without decay its kernel is given a curvature."""
    m, decay = problem.groups.sizes, problem.model.bias_decay
    if shares is None:
        return torch.eye(len(m), dtype=m.dtype, device=m.device) * math.sqrt(1 + decay)
    weighted = shares * problem.weights
    matrix = (torch.diag(weighted.sum(1)) - weighted @ shares.mT) / problem.outer
    top = float(matrix.diagonal().max())
    matrix.diagonal().add_(decay + 1e-12 * top)
    if decay == 0:
        matrix += torch.outer(m.sqrt(), m.sqrt()) * (top / m.sum())
    return torch.linalg.cholesky(matrix)


def _dot(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    return math.fsum(float((a * b).sum(dtype=torch.float64)) for a, b in zip(one, other, strict=True))
