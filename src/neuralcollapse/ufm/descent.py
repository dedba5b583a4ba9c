"""Limited-memory BFGS on many points at once, and Newton's method by conjugate gradients for the last digits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Objective = Callable[[Tensor], tuple[Tensor, Tensor]]

_ARMIJO = 1e-4
_HALVINGS = 30
_ROUNDING = 1e-14  # relative rise of f that rounding alone explains


@dataclass
class Descent:
    """The end of a descent: points (B, n), and the iterations run."""

    points: Tensor
    iterations: int


def lbfgs(
    objective: Objective,
    start: Tensor,
    *,
    tolerance: float = 1e-9,
    iterations: int = 2000,
    memory: int = 10,
    watch: Callable[[Tensor], None] | None = None,
) -> Descent:
    """Minimise from each row of `start` (B, n) independently, by L-BFGS with backtracking.

    Rows that reach a gradient norm of `tolerance`, or that no step improves any more, are finished and cost nothing
    from then on. `watch(points)` is called with all rows after each iteration.
    """
    points = start.clone()
    values, gradients = objective(points)
    norms = gradients.norm(dim=-1)
    active = (norms > tolerance).nonzero().flatten()
    steps: list[tuple[Tensor, Tensor, Tensor]] = []  # (s, y, 1/<s, y>) of the active rows, oldest first
    iteration = 0
    while len(active) and iteration < iterations:
        iteration += 1
        x, f, g = points[active], values[active], gradients[active]
        direction = -_two_loop(g, steps)
        slope = (g * direction).sum(-1)
        uphill = slope >= 0
        if bool(uphill.any()):
            direction[uphill], slope[uphill] = -g[uphill], -(g[uphill].square().sum(-1))
        length = torch.ones_like(f)
        if not steps:
            length = 1 / g.norm(dim=-1).clamp(min=1)
        new_x, new_f, new_g, moved = _search(objective, x, f, direction, slope, length)
        points[active], values[active], gradients[active] = new_x, new_f, new_g
        norms[active] = new_g.norm(dim=-1)
        if watch is not None:
            watch(points)

        s, y = new_x - x, new_g - g
        curvature = (s * y).sum(-1)
        sound = curvature > 1e-14 * s.norm(dim=-1) * y.norm(dim=-1)
        inverse = torch.where(sound, 1 / torch.where(sound, curvature, 1.0), 0.0)
        steps = [*steps[-(memory - 1) :], (s, y, inverse)]
        going = (norms[active] > tolerance) & moved
        if not bool(going.all()):
            active = active[going]
            steps = [(s[going], y[going], inverse[going]) for s, y, inverse in steps]
    return Descent(points, iteration)


def _two_loop(gradient: Tensor, steps: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """The estimated inverse Hessian times the gradient (Nocedal 1980); a pair of inverse 0 does not contribute."""
    q = gradient.clone()
    weights = []
    for s, y, inverse in reversed(steps):
        weight = inverse * (s * q).sum(-1)
        q -= weight.unsqueeze(-1) * y
        weights.append(weight)
    if steps:
        s, y, inverse = steps[-1]
        scale = torch.where(inverse > 0, 1 / (inverse * y.square().sum(-1)).clamp(min=1e-300), 1.0)
        q *= scale.unsqueeze(-1)
    for (s, y, inverse), weight in zip(steps, reversed(weights), strict=True):
        q += (weight - inverse * (y * q).sum(-1)).unsqueeze(-1) * s
    return q


def _search(
    objective: Objective, x: Tensor, f: Tensor, direction: Tensor, slope: Tensor, length: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Halve the step of each row until f decreases enough; rows for which it never does stay where they are."""
    new_x = x + length.unsqueeze(-1) * direction
    new_f, new_g = objective(new_x)
    accepted = new_f <= f + _ARMIJO * length * slope + _ROUNDING * f.abs()
    for _ in range(_HALVINGS):
        open_rows = (~accepted).nonzero().flatten()
        if len(open_rows) == 0:
            break
        length[open_rows] /= 2
        trial = x[open_rows] + length[open_rows].unsqueeze(-1) * direction[open_rows]
        trial_f, trial_g = objective(trial)
        new_x[open_rows], new_f[open_rows], new_g[open_rows] = trial, trial_f, trial_g
        bound = f[open_rows] + _ARMIJO * length[open_rows] * slope[open_rows] + _ROUNDING * f[open_rows].abs()
        accepted[open_rows] = trial_f <= bound
    if not bool(accepted.all()):
        stuck = ~accepted
        new_x[stuck] = x[stuck]
        new_f[stuck], new_g[stuck] = objective(x[stuck])
    return new_x, new_f, new_g, accepted


def newton(
    objective: Objective,
    hessian_product: Callable[[Tensor, Tensor], Tensor],
    start: Tensor,
    *,
    tolerance: float,
    iterations: int = 20,
    inner: int = 500,
) -> Tensor:
    """Polish one point (n,) near a minimum by Newton steps (conjugate gradients), as long as the gradient shrinks."""
    x = start.clone()
    gradient = objective(x)[1]
    for _ in range(iterations):
        size = float(gradient.norm())
        if size <= tolerance:
            break
        step = _conjugate_gradients(lambda v, at=x: hessian_product(at, v), -gradient, inner)  # type: ignore[misc]
        for _ in range(8):
            trial = x + step
            trial_gradient = objective(trial)[1]
            if float(trial_gradient.norm()) < size:
                break
            step = step / 2
        else:
            break
        x, gradient = trial, trial_gradient
    return x


def _conjugate_gradients(product: Callable[[Tensor], Tensor], target: Tensor, iterations: int) -> Tensor:
    """Solve `A x = target` for positive semidefinite A; stops at a direction without curvature."""
    x = torch.zeros_like(target)
    residual, direction = target.clone(), target.clone()
    square = float(residual.dot(residual))
    goal = square * min(1e-4, square**0.5)  # superlinear: |r| <= |g| min(1e-2, |g|^(1/2))
    for _ in range(iterations):
        if square <= goal or square == 0:
            break
        image = product(direction)
        curvature = float(direction.dot(image))
        if curvature <= 1e-15 * float(direction.dot(direction)):
            break
        step = square / curvature
        x += step * direction
        residual -= step * image
        new_square = float(residual.dot(residual))
        direction = residual + (new_square / square) * direction
        square = new_square
    return x
