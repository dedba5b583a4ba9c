"""Newton's method on the gradient: from near a critical point, of any index, to its last digits.

Rotations of the features do not change the objective, so the Hessian is singular along them. The step is taken in the
directions with curvature, and its length estimates the distance to the critical point. Where the matrix is large it
comes from products of the Hessian, as many as an `effort` allows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from neuralcollapse.ufm.descent import lbfgs, newton
from neuralcollapse.ufm.effort import Effort
from neuralcollapse.ufm.hessian import Hessian
from neuralcollapse.ufm.points import Point
from neuralcollapse.ufm.units import Units

SOLVED = 1e-9  # a canonical gradient below this times mu (1 + |point|) counts as zero
NEAR = 1e-2  # a critical point further away than this, relative to 1 + |point|, is not the one near the point
_ENDED = 1e-3  # below this times mu (1 + |point|) the canonical gradient at the end of a descent is worth polishing
_FLAT = 1e-6  # no step is taken along eigenvectors of eigenvalues below this times mu
_DENSE_UP_TO = 800  # variables up to which the step is computed from the spectrum
_STEPS = 40  # Newton steps, at most
_PRODUCTS = 400  # of the Hessian in a step, at most
_DESCENT = 150  # the same of a descent


class Problem(Protocol):
    """What `descend` minimises: a function of vectors (n,), in canonical units, with the decay mu."""

    size: int
    mu: float

    def value_and_gradient(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """The objective (...) of (..., n) vectors, and its gradient."""

    def product(self, vector: Tensor, direction: Tensor) -> Tensor:
        """The Hessian at a vector times a direction."""

    def dense(self, vector: Tensor) -> Tensor:
        """The whole Hessian (n, n)."""


@dataclass(frozen=True)
class Polished:
    """A canonical point, the norm of its gradient, and its error: the length of the Newton step that remains."""

    point: Point
    gradient_norm: float
    error: float


def polish(units: Units, point: Point, reach: float = NEAR, effort: Effort | None = None) -> Polished:
    """The critical point near a point of `units.small`, or the point itself if Newton's method finds none near.

    The point has a small gradient; `reach` says how far to go, relative to 1 + |point|, and `effort` how much it may
    cost: without one, what `Effort` allows. Where too little is left for a step, the point is where it was.
    """
    small = units.small
    effort = Effort(small) if effort is None else effort
    vector = start = point.vector()
    furthest = reach * (1 + float(start.norm()))
    gradient = small.value_and_gradient(vector)[1]
    size = float(gradient.norm())
    goal = 1e-3 * SOLVED * units.mu
    if size == 0:
        return Polished(point, 0.0, 0.0)
    step, error = newton_step(units, vector, gradient, effort)
    for _ in range(_STEPS):
        if size <= goal or effort.ended:
            break
        for _ in range(6):
            trial = vector - step
            gradient = small.value_and_gradient(trial)[1]
            trial_size = float(gradient.norm())
            if trial_size < 0.9 * size:
                break
            step = step / 2
        else:
            break
        if float((trial - start).norm()) > furthest:
            break
        vector, size = trial, trial_size
        step, error = newton_step(units, vector, gradient, effort)
    return Polished(point if vector is start else small.point(vector), size, error)


def newton_step(units: Units, vector: Tensor, gradient: Tensor, effort: Effort) -> tuple[Tensor, float]:
    """The Newton step (n,), and a bound, to first order, of the distance to the critical point.

    Where `effort` has too little left, the step is 0 and the bound comes from the gradient alone.
    """
    from scipy.sparse.linalg import minres

    hessian, floor = Hessian(units.small, units.small.point(vector), effort), _FLAT * units.mu
    if hessian.size > _DENSE_UP_TO:
        products = effort.products(_PRODUCTS + 2)  # two more, before the first step and for the rest
        if not products:
            return torch.zeros_like(gradient), float(gradient.norm()) / floor
        found, _ = minres(hessian.operator(), gradient.cpu().numpy(), rtol=1e-10, maxiter=products - 2)
        step = torch.from_numpy(np.asarray(found)).to(gradient)
        rest = float((gradient - hessian @ step).norm())
        return step, float(step.norm()) + rest / floor
    values, vectors = torch.linalg.eigh(hessian.dense())
    seen = values.abs() > max(floor, 1e-15 * float(values.abs().max()))
    parts = vectors.mT @ gradient
    step = vectors @ torch.where(seen, parts / torch.where(seen, values, 1.0), 0.0)
    return step, float(step.norm()) + float(parts[~seen].norm()) / floor


def finish(units: Units, point: Point) -> Point:
    """The end of a descent, polished if its gradient is small; unchanged if polishing makes it no better."""
    model = units.model
    slope, size = units.gradient_norm(model.gradient(point)), 1 + units.norm(point)
    if slope > _ENDED * units.mu * size or slope <= SOLVED * units.mu:
        return point
    better = units.leave(polish(units, units.enter(point)).point)
    before, after = float(model.value(point)), float(model.value(better))
    smaller = units.gradient_norm(model.gradient(better)) < slope
    return better if smaller and after <= before * (1 + 1e-9) else point


def descend(problem: Problem, vector: Tensor, tolerance: float) -> Tensor:
    """Minimise from a vector (n,), down to a gradient of `tolerance`: L-BFGS, then Newton's method.

    Newton's steps divide by the absolute values of the eigenvalues of the Hessian, so that saddles repel. If the matrix
    is too large for that, L-BFGS goes on to the tolerance, and Newton's steps come from conjugate gradients.
    """
    objective = problem.value_and_gradient
    if problem.size > _DENSE_UP_TO:
        vector = lbfgs(objective, vector[None], tolerance=tolerance, iterations=3000, memory=20).points[0]
        return newton(objective, problem.product, vector, tolerance=1e-3 * tolerance)
    vector = lbfgs(objective, vector[None], tolerance=1e3 * tolerance, iterations=200, memory=20).points[0]
    value, gradient = objective(vector)
    for _ in range(_DESCENT):
        size = float(gradient.norm())
        if size <= 1e-3 * tolerance:
            break
        values, vectors = torch.linalg.eigh(problem.dense(vector))
        floor = max(_FLAT * problem.mu, 1e-14 * float(values.abs().max()))
        step = vectors @ ((vectors.mT @ gradient) / values.abs().clamp(min=floor))
        slope = float(gradient @ step)
        for _ in range(25):
            trial_value, trial_gradient = objective(vector - step)
            falls = float(trial_value) <= float(value) - 1e-4 * slope
            # In the last digits rounding hides the decrease of the value, but not that of the gradient.
            level = float(trial_value) <= float(value) * (1 + 1e-13) and float(trial_gradient.norm()) < 0.5 * size
            if falls or level:
                break
            step, slope = step / 2, slope / 2
        else:
            break
        vector, value, gradient = vector - step, trial_value, trial_gradient
    return vector
