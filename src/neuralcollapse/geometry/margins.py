r"""The one-vs-rest margin of unit rows: how far each lies from the convex hull of the others.

`rho_k = dist(w_k, conv{w_j, j != k}) = max over unit h of min_{j != k} <h, w_k - w_j>`: the largest margin that any
feature h of length one can have for class k. The two sides certify each other: the nearest point p of a hull bounds
rho from above by |w_k - p|, and the direction h = (w_k - p)/|w_k - p| from below.

For K <= d+1 rows in general position one inverse gives the distances to the flats through the others, which are the
distances to the hulls where the foot of the perpendicular lies inside. Everywhere else the nearest point is found by
active sets on a shortlist of rows, to which rows that lie beyond it are added until none does.

Source: [Jiang 2024] Jiang et al., Generalized Neural Collapse for a Large Number of Classes, ICML 2024.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neuralcollapse.checks import as_tensor
from neuralcollapse.geometry.classes import ClassSubset
from neuralcollapse.geometry.matrix import BlockedMatrix, as_matrix, at_least_two

Array: TypeAlias = NDArray[np.float64]
Mask: TypeAlias = NDArray[np.bool_]
# Rows up to which all are on the shortlist (their products are 32 MB), and the same as a multiple of d+1:
# the nearest point is made of that many at most.
_WHOLE, _FEW = 2_048, 4
_BATCH = 64  # classes looked at together
_NEAREST, _BEYOND = 512, 128  # rows of a first shortlist, and rows that a round adds to it at most
_ROUNDS = 100
_CLOSED = 1e-12  # rows may lie beyond the nearest point by this
_TOLERANCE = 1e-14  # the same, as a share of the squared distance to the farthest row
_SAME = 1e-14  # a distance that is rounding alone
_EQUAL = 1e-12  # bounds that differ by this are equal
_FLAT = 1e-10  # least over largest eigenvalue of rows in general position
_EXCHANGES = 40  # of all wrong points at a time
_STEPS = 10_000
_GROWTH = 0.25  # by which share of its size an active set may grow at once


class Margins(NamedTuple):
    """One-vs-rest margins of unit rows (`one_vs_rest_margins`).

    Attributes:
        classes: (n,) their numbers.
        rho: (n,) float64 the distances to the hulls, each the length of an actual connection: never too small.
        lower: (n,) float64 what a unit vector attains as its least margin: never too large.
    """

    classes: Tensor
    rho: Tensor
    lower: Tensor


@torch.no_grad()
def one_vs_rest_margins(rows: Tensor, classes: Tensor | Sequence[int] | None = None) -> Margins:
    r"""The distance of each row, at length one, from the convex hull of the other rows.

    :math:`\rho_k = \mathrm{dist}(w_k, \mathrm{conv}\{w_j, j \ne k\})` is `K/(K-1)` for a simplex ETF, 1 for an
    orthoplex, `1 - cos(2 pi/K)` for K points on a circle, and 0 where two rows coincide. A softmax code maximises the
    least of them. It runs on the CPU in float64, with all K rows against those asked for.

    Args:
        rows: (K, d) of any length but zero.
        classes: numbers of the rows to look at; all by default. For tens of thousands of rows give some of them: each
            may take a second.

    Returns:
        The margins, and the lower bounds that certify them: the two agree to about 1e-12.

    Raises:
        InputError: not such a matrix, one row, a row of zeros, or wrong class numbers.

    Source: [Jiang 2024].

    >>> one_vs_rest_margins(torch.eye(3)).rho.square()  # heights of a triangle whose sides are sqrt(2)
    tensor([1.5000, 1.5000, 1.5000], dtype=torch.float64)
    """
    matrix = at_least_two(as_matrix(rows)).with_directions()
    chosen = None if classes is None else ClassSubset(as_tensor(classes, "classes"), matrix.count).classes
    return margins_of(matrix, chosen)


def margins_of(matrix: BlockedMatrix, chosen: Tensor | None = None) -> Margins:
    """`one_vs_rest_margins` of a matrix whose rows all have directions."""
    numbers = torch.arange(matrix.count, device="cpu") if chosen is None else chosen.cpu()
    found = []
    if matrix.count <= min(_WHOLE, _FEW * (matrix.dim + 1)):
        rows = matrix.unit(slice(None)).cpu().numpy()
        rows = rows - rows.mean(0)  # no distance changes, and products of rows close to each other keep their digits
        products = rows @ rows.T
        starts = _feet(products) if matrix.small else None
        for number in numbers.tolist():
            start = None if starts is None else np.delete(starts[number], number)
            found.append(_among_all(rows, products, number, start))
    else:
        for part in numbers.split(_BATCH):
            found += _by_shortlists(matrix, part)
    rho, lower = (torch.tensor(each, dtype=torch.float64, device="cpu") for each in zip(*found, strict=True))
    return Margins(numbers, rho, lower)


def _feet(products: Array) -> Array | None:
    """(K, K) row k: the foot of the perpendicular from w_k to the flat of the others, as shares of these.

    Shares below zero, where the foot lies outside of the hull, are cut off. None unless the rows are in general
    position. With Q the pseudo-inverse of the products of the centred rows the shares are -Q_kj/Q_kk.
    """
    values, vectors = np.linalg.eigh(products)
    if values[1] <= _FLAT * values[-1]:
        return None
    inverse = (vectors[:, 1:] / values[1:]) @ vectors[:, 1:].T
    shares = -inverse / np.diag(inverse)[:, None]
    np.fill_diagonal(shares, 0)
    shares = np.clip(shares, 0, None)
    return np.asarray(shares / shares.sum(1, keepdims=True))


def _among_all(rows: Array, products: Array, number: int, start: Array | None) -> tuple[float, float]:
    """The margin of one of the rows and its lower bound, with all of them at hand."""
    others = np.delete(np.arange(len(rows)), number)
    beside = products[number, others]
    of_differences = products[np.ix_(others, others)] - beside - beside[:, None] + products[number, number]
    differences = rows[others] - rows[number]
    shares = _nearest(of_differences, rows.shape[1], start)
    rho, lower = _bounds(differences, shares)
    if rho - lower > _EQUAL:  # rows far closer to each other than to the rest
        shares = _nearest(differences @ differences.T, rows.shape[1], shares)
        rho, lower = _bounds(differences, shares)
    return rho, lower


def _bounds(differences: Array, shares: Array) -> tuple[float, float]:
    """The length of the connection that the shares make, and the least margin of its direction."""
    apart = -(shares @ differences)
    rho = float(np.linalg.norm(apart))
    return rho, 0.0 if rho <= _SAME else max(0.0, float((differences @ -apart).min()) / rho)


def _by_shortlists(matrix: BlockedMatrix, numbers: Tensor) -> list[tuple[float, float]]:
    """The margins of some of many rows, by shortlists to which the rows beyond the nearest point are added."""
    targets = matrix.unit(numbers.to(matrix.norms.device)).cpu().numpy()
    _, nearest = _farthest(matrix, targets, numbers, min(_NEAREST, 2 * (matrix.dim + 1)))
    lists: list[Array] = list(nearest)
    shares: list[Array | None] = [None] * len(numbers)
    found = [(math.inf, 0.0)] * len(numbers)
    waiting = list(range(len(numbers)))
    for _ in range(_ROUNDS):
        directions = np.zeros((len(waiting), matrix.dim))
        for place, i in enumerate(waiting):
            rows = matrix.unit(torch.from_numpy(lists[i]).to(matrix.norms.device)).cpu().numpy()
            differences = rows - targets[i]
            part = _nearest(differences @ differences.T, matrix.dim, shares[i])
            apart = -part @ differences
            found[i] = (float(np.linalg.norm(apart)), 0.0)
            directions[place] = apart / max(found[i][0], _SAME)
            lists[i], shares[i] = lists[i][part > 0], part[part > 0]
        ahead, beyond = _farthest(matrix, directions, numbers[waiting], _BEYOND)
        still = []
        for place, i in enumerate(waiting):
            rho, own = found[i][0], float(directions[place] @ targets[i])
            if rho <= _SAME:
                continue
            found[i] = (rho, max(0.0, own - float(ahead[place][0])))
            new = beyond[place][ahead[place] > own - rho + _CLOSED]
            new = new[~np.isin(new, lists[i])]
            if len(new):
                kept = shares[i]
                assert kept is not None
                lists[i], shares[i] = np.concatenate([lists[i], new]), np.concatenate([kept, np.zeros(len(new))])
                still.append(i)
        waiting = still
        if not waiting:
            break
    return found


def _farthest(matrix: BlockedMatrix, directions: Array, numbers: Tensor, most: int) -> tuple[Array, Array]:
    """(b, most) the largest products of each direction (b, d) with rows other than its own, and their numbers."""
    device, most = matrix.norms.device, min(most, matrix.count - 1)
    steep, own = torch.from_numpy(directions).to(device), numbers.to(device)
    values = torch.full((len(steep), 0), -math.inf, dtype=torch.float64, device=device)
    places = torch.zeros((len(steep), 0), dtype=torch.int64, device=device)
    for part in matrix.parts():
        products = steep @ matrix.unit(part).T
        inside = ((own >= part.start) & (own < part.stop)).nonzero().flatten()
        products[inside, own[inside] - part.start] = -math.inf
        values = torch.cat([values, products], 1)
        places = torch.cat([places, torch.arange(part.start, part.stop, device=device).expand(len(steep), -1)], 1)
        values, order = values.topk(min(most, values.shape[1]), dim=1)
        places = places.gather(1, order)
    return values.cpu().numpy(), places.cpu().numpy()


def _nearest(products: Array, dim: int, start: Array | None) -> Array:
    """(m,) shares c >= 0 that sum to 1 and minimise `c'Hc`: the point of a hull nearest to the origin.

    Args:
        products: (m, m) H, products of the points.
        dim: of the points.
        start: shares to begin with.
    """
    tolerance = _TOLERANCE * products.diagonal().max()
    if start is None:
        start = np.zeros(len(products))
        start[products.diagonal().argmin()] = 1.0
    if len(products) <= dim:
        found = _exchanged(products, start > 0, tolerance)
        if found is not None:
            return found
    return _grown(products, dim, start, tolerance)


def _exchanged(products: Array, free: Mask, tolerance: float) -> Array | None:
    """The shares by exchanging all wrong points of the active set at once; None if that does not end.

    Source: Portugal, Judice, Vicente, Math. Comp. 1994, for points in general position.
    """
    fewest, patience = len(products) + 1, 3
    for _ in range(_EXCHANGES):
        shares = _flat(products, free)
        if shares is None:
            return None
        slopes = products @ shares
        wrong = np.where(free, shares < 0, slopes < shares @ slopes - tolerance)
        count = int(wrong.sum())
        if count == 0:
            return shares
        if count < fewest:
            fewest, patience = count, 3
        elif patience == 0:
            return None
        else:
            patience -= 1
        free = free ^ wrong
    return None


def _grown(products: Array, dim: int, shares: Array, tolerance: float) -> Array:
    """The shares from feasible ones: points that lie ahead join the active set, those with nothing left leave it.

    Source: Wolfe, Finding the nearest point in a polytope, Math. Programming 1976; here several points join at a time.
    """
    settled = _settled(products, shares, shares > 0)
    shares = shares if settled is None else settled
    room = 1
    for _ in range(_STEPS):
        slopes = products @ shares
        value = shares @ slopes
        slack = np.where(shares > 0, 0.0, value - slopes)
        ahead = np.argsort(-slack)[:room]
        ahead = ahead[slack[ahead] > tolerance]
        if len(ahead) == 0:
            break
        free = shares > 0
        free[ahead] = True
        moved = _settled(products, shares, free)
        if moved is not None and moved @ products @ moved < value:
            shares = moved
            count = int((shares > 0).sum())
            room = max(1, min(int(_GROWTH * count), dim + 1 - count))
        elif room > 1:
            room = 1
        else:
            break  # what is left to gain is rounding
    return shares


def _settled(products: Array, shares: Array, free: Mask) -> Array | None:
    """The best shares on the free points, or on those of them that are left when none may be negative."""
    while True:
        goal = _flat(products, free)
        if goal is None:
            return None
        falling = free & (goal < 0)
        if not falling.any():
            return goal
        places = np.flatnonzero(falling)
        steps = shares[places] / (shares[places] - goal[places])
        step = steps.min()
        shares = shares + step * (goal - shares)
        gone = places[steps <= step]
        shares[gone] = 0
        free = free.copy()
        free[gone] = False


def _flat(products: Array, free: Mask) -> Array | None:
    """The shares of the point nearest to the origin in the flat of the free points; None if they are dependent."""
    from scipy.linalg import cho_factor, cho_solve

    index = np.flatnonzero(free)
    part = products[np.ix_(index, index)]
    try:
        factor = cho_factor(part + (part.diagonal().mean() or 1.0), check_finite=False)
    except np.linalg.LinAlgError:
        return None
    found = cho_solve(factor, np.ones(len(index)), check_finite=False)
    total = found.sum()
    if not (math.isfinite(total) and total > 0):
        return None
    shares = np.zeros(len(free))
    shares[index] = found / total
    return shares
