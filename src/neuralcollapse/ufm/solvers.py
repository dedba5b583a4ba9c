"""From a starting point to a certified end: descent methods, their trajectories, and many starts at once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from neuralcollapse.checks import check_count, check_real
from neuralcollapse.errors import InputError, did_you_mean
from neuralcollapse.ufm.certificate import Certificate, certify
from neuralcollapse.ufm.descent import lbfgs
from neuralcollapse.ufm.duality import lower_bound
from neuralcollapse.ufm.model import Model
from neuralcollapse.ufm.points import Point
from neuralcollapse.ufm.polish import SOLVED, finish
from neuralcollapse.ufm.projected import bounded_lbfgs
from neuralcollapse.ufm.units import Units

METHODS = ("lbfgs", "newton", "gd", "sgd", "adam")
_BATCH_VALUES = 2**22  # entries of all points that descend together
_BOUNDED = 1e-7  # the same as SOLVED with features >= 0, where no Newton step gives the last digits
_DESCENT = 0.7  # share of the time of many starts that their descent takes; certificates take the rest
_HALFWAY = {"lbfgs": 40, "newton": 20}  # iterations after which a descent counts as half done; 2500 for the others
_RECORDS = 60  # about as many steps of a trajectory are recorded


@dataclass(frozen=True)
class Step:
    """A step of a trajectory; `lower_bound` is the best so far, so that `gap` bounds the distance to the minimum."""

    iteration: int
    objective: float
    lower_bound: float
    gap: float
    gradient_norm: float
    measures: dict[str, float]


@dataclass(frozen=True)
class Solution:
    """The end of a descent.

    Attributes:
        point: the last point.
        objective: f at the last point.
        certificate: certificate of the last point, with the best bound of the whole trajectory.
        history: the trajectory at about 60 iterations, denser at the beginning.
        converged: whether the gradient reached the tolerance. If not, `message` says what was reached, and the point is
            a minimum only if `certificate.verdict` says so.
        iterations: iterations run.
        message: how the descent ended, in one sentence.
    """

    point: Point
    objective: float
    certificate: Certificate
    history: tuple[Step, ...]
    converged: bool
    iterations: int
    message: str

    def __repr__(self) -> str:
        facts = repr(self.certificate).splitlines()
        verdict = facts[0].removeprefix("Certificate(").removesuffix(")")
        return f"Solution({self.message})\n  {verdict}\n{facts[1]}"


def minimize(
    model: Model,
    start: Point,
    method: str = "lbfgs",
    *,
    iterations: int | None = None,
    tolerance: float | None = None,
    learning_rate: float | None = None,
    batch_size: int = 32,
    seed: int = 0,
    escapes: int = 10,
    on_iteration: Callable[[int], None] = lambda iteration: None,
) -> Solution:
    """Descend from a point, and from strict saddles on along their way down.

    lbfgs and newton run in canonical units (`units.py`), so that they take the same path in equivalent models. An end
    with a small gradient is polished by Newton's method before it is certified.

    With features >= 0, lbfgs is SciPy's L-BFGS-B, gd, sgd and adam set negative features to 0 after each step, newton
    is refused, and nothing is polished; gradients are projected ones.

    Args:
        model: the model.
        start: the starting point.
        method: "lbfgs", "newton" (trust region with Hessian products), "gd" (momentum 0.9), "sgd" (the same over
            batches of samples), or "adam".
        iterations: maximum number of iterations; by default 5,000, or 300 for newton.
        tolerance: the gradient norm at which to stop. The default scales with the model: 1e-9 of
            `mu sqrt(N) (1 + |point|)`, in canonical units (1e-7 with features >= 0).
        learning_rate: of gd, sgd and adam, by default 1, 0.2 and 0.02. For sgd and adam it decays to 0 by a cosine.
        batch_size: samples in a step of sgd.
        seed: seed of the batches of sgd.
        escapes: maximum number of saddles to leave; 0 stops at the first.
        on_iteration: called with the number of each iteration.

    Raises:
        InputError: an unknown method, newton with features >= 0, or a start that does not fit the model.
    """
    model.check_point(start)
    model = model.near(start)
    start = model.point(start.vector().detach())
    if tolerance is not None:
        check_real(tolerance, "tolerance")
    check_count(batch_size, "batch_size", 1)
    check_count(escapes, "escapes", 0)
    check_method(method, model)
    limit = (300 if method == "newton" else 5000) if iterations is None else check_count(iterations, "iterations", 1)
    if learning_rate is not None:
        check_real(learning_rate, "learning_rate")
    record = _Recorder(model, limit, on_iteration)
    units = Units(model)
    scales = units.scales()
    # |g| <= |scales g| / min(scales)
    goal = SOLVED * units.mu if tolerance is None else tolerance * float(scales.min())

    def watch(canonical: Tensor) -> None:
        record(scales * canonical)

    def descend(begin: Tensor) -> Tensor:
        if method == "newton":
            return scales * _newton(model, begin / scales, scales, limit, goal, record)
        if method != "lbfgs":
            return _first_order(units, begin, method, limit, tolerance, learning_rate, batch_size, seed, record)
        if model.nonnegative:
            return scales * bounded_lbfgs(units, begin / scales, tolerance=goal, iterations=limit, watch=watch).points
        end = lbfgs(
            units.objective,
            (begin / scales)[None],
            tolerance=goal,
            iterations=limit,
            watch=lambda points: watch(points[0]),
        )
        return scales * end.points[0]

    point, left = start, 0
    record(point.vector())
    while True:
        point = _finished(units, model.point(descend(point.vector())))
        record(point.vector(), last=True)
        certificate = certify(model, point, known_bound=record.bound)
        if certificate.verdict != "strict_saddle" or left == escapes:
            break
        left += 1
        point = leave(model, point, certificate)
    if tolerance is None:
        slope = units.gradient_norm(model.projected(point, model.gradient(point)))
        reached = slope / (units.mu * (1 + units.norm(point)))
        converged = reached <= (
            _BOUNDED if model.nonnegative else 10 * SOLVED
        )  # a factor of ten, as polishing may have made the point's norm smaller
    else:
        converged = certificate.gradient_norm <= tolerance
    gap = f"certified gap {certificate.gap:.1e}" if math.isfinite(certificate.gap) else "no certified gap"
    how = "converged" if converged else f"stopped at a gradient of {certificate.gradient_norm:.1e}"
    over = f" by way of {left} saddle{'s' if left > 1 else ''}" if left else ""
    message = f"{how} after {record.iteration} iterations{over}, {gap}"
    return Solution(
        point, certificate.objective, certificate, tuple(record.steps), converged, record.iteration, message
    )


def _finished(units: Units, point: Point) -> Point:
    """The end of a descent: polished, or with features >= 0 as it is, without rounding below 0."""
    return units.model.project(point) if units.model.nonnegative else finish(units, point)


def check_method(method: str, model: Model) -> None:
    """Raise unless `method` is one of `METHODS`, and not newton with features >= 0."""
    if method not in METHODS:
        raise InputError(f"no method {method!r}{did_you_mean(method, METHODS)}; there are: {', '.join(METHODS)}")
    if method == "newton" and model.nonnegative:
        raise InputError("expected a method that keeps features >= 0, got newton: use lbfgs, gd, sgd or adam")


def leave(model: Model, saddle: Point, certificate: Certificate) -> Point:
    """The lowest of some points along the way down of a strict saddle, in both directions.

    Raises:
        InputError: the certificate has no direction, as always with features >= 0.
    """
    model = model.near(saddle)
    if certificate.direction is None:
        raise InputError(f"no way down is known: the verdict is {certificate.verdict!r}")
    direction = certificate.direction * (1 / certificate.direction.norm())
    lengths = [sign * 2.0**-i * (1 + saddle.norm()) for i in range(1, 20) for sign in (1, -1)]
    return min((saddle + direction * length for length in lengths), key=lambda point: float(model.value(point)))


class _Recorder:
    """Records about `_RECORDS` steps of a trajectory, and the best lower bound."""

    def __init__(self, model: Model, limit: int, on_iteration: Callable[[int], None]) -> None:
        self.model = model
        self.on_iteration = on_iteration
        self.bound = -math.inf
        self.iteration = -1  # the start is number 0
        self.steps: list[Step] = []
        self.due = {round(limit ** (i / _RECORDS)) for i in range(_RECORDS + 1)} | {0}

    def __call__(self, vector: Tensor, last: bool = False) -> None:
        self.iteration += not last
        iteration = self.iteration
        self.on_iteration(iteration)
        if not (last or iteration in self.due):
            return
        if last and self.steps and self.steps[-1].iteration == iteration:
            self.steps.pop()  # the polished end takes the place of the same iteration
        point = self.model.point(vector)
        objective = float(self.model.value(point))
        self.bound = max(self.bound, lower_bound(self.model, point))
        self.steps.append(
            Step(
                iteration,
                objective,
                self.bound,
                objective - self.bound,
                self.model.projected(point, self.model.gradient(point)).norm(),
                self.model.measures(point),
            )
        )


def _newton(model: Model, start: Tensor, scales: Tensor, limit: int, goal: float, record: _Recorder) -> Tensor:
    """SciPy's trust-region method, with conjugate gradients on Hessian products, over canonical vectors."""
    from scipy.optimize import minimize as scipy_minimize

    def tensor(x: np.ndarray) -> Tensor:
        return torch.as_tensor(x, dtype=torch.float64, device=model.device) * scales

    def value(x: np.ndarray) -> tuple[float, np.ndarray]:
        f, g = model.value_and_gradient(tensor(x))
        return float(f), (scales * g).cpu().numpy()

    def product(x: np.ndarray, direction: np.ndarray) -> np.ndarray:
        at, along = model.point(tensor(x)), model.point(tensor(direction))
        return (scales * model.hessian_product(at, along).vector()).cpu().numpy()

    result = scipy_minimize(
        value,
        start.cpu().numpy(),
        jac=True,
        hessp=product,
        method="trust-ncg",
        callback=lambda x: record(tensor(x)),
        options={"gtol": goal, "maxiter": limit},
    )
    return torch.as_tensor(result.x, dtype=torch.float64, device=model.device)


def _first_order(
    units: Units,
    begin: Tensor,
    method: str,
    limit: int,
    tolerance: float | None,
    learning_rate: float | None,
    batch_size: int,
    seed: int,
    record: _Recorder,
) -> Tensor:
    """A torch.optim optimiser on one vector, with the gradient of the model or of a batch of its samples."""
    model = units.model
    x = begin.clone()
    x.grad = torch.zeros_like(x)
    if method == "adam":
        optimizer: torch.optim.Optimizer = torch.optim.Adam([x], lr=learning_rate or 0.02)
    else:
        optimizer = torch.optim.SGD([x], lr=learning_rate or (1.0 if method == "gd" else 0.2), momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, limit, eta_min=0.0) if method != "gd" else None
    batches = _batches(model, batch_size, seed) if method == "sgd" else None
    goal = SOLVED * units.mu if tolerance is None else tolerance
    for iteration in range(1, limit + 1):
        part = model if batches is None else next(batches)
        x.grad.copy_(part.value_and_gradient(x)[1])
        free = model.projected(model.point(x), model.point(x.grad)).vector() if model.nonnegative else x.grad
        gradient = units.scales() * free if tolerance is None else free
        if batches is None and float(gradient.norm()) <= goal:
            break
        optimizer.step()
        if model.nonnegative:
            model.point(x).H.clamp_(min=0)  # a view
        if schedule is not None:
            schedule.step()
        if not bool(torch.isfinite(x).all()):
            raise InputError(f"{method} diverged at iteration {iteration}: lower learning_rate")
        record(x)
    return x


def _batches(model: Model, batch_size: int, seed: int) -> Iterator[Model]:
    """The model on random batches: all other samples have weight zero, so that the gradient is unbiased."""
    generator = torch.Generator("cpu").manual_seed(seed)
    count = model.num_columns
    while True:
        for chosen in torch.randperm(count, generator=generator, device="cpu").split(min(batch_size, count)):
            weights = torch.zeros_like(model.columns.weights)
            weights[chosen.to(model.device)] = 1 / len(chosen)
            yield model.with_columns(replace(model.columns, weights=weights))


def within(iteration: int, method: str = "lbfgs") -> float:
    """The share of a descent that is done: a guess, as nobody knows where it ends."""
    return iteration / (iteration + _HALFWAY.get(method, 2500))


@dataclass(frozen=True)
class Starts:
    """The ends of many descents: objectives and certified gaps (B,), verdicts, and the points as (B, n) vectors."""

    objectives: Tensor
    gaps: Tensor
    verdicts: tuple[str, ...]
    vectors: Tensor
    iterations: int


def many_starts(
    model: Model,
    count: int,
    *,
    seed: int = 0,
    scale: float = 1.0,
    tolerance: float | None = None,
    iterations: int = 5000,
    device: torch.device | str | None = None,
    on_progress: Callable[[float], None] = lambda share: None,
) -> Starts:
    """L-BFGS from `count` random points at once; each end is polished and certified.

    All points descend together as one batch (in parts if large), which costs a fraction of so many separate runs; with
    features >= 0 one after another, by L-BFGS-B. On a `device` other than the CPU, by default the model's, the batch
    descends there; the ends, few numbers each, are polished and certified on the CPU, and come back to the device.

    `on_progress` is called with the share of the work that is done, from 0 to 1, as far as that can be told.
    """
    model = model if device is None else model.on(device)
    check_count(count, "count", 1)
    check_real(scale, "scale")
    if tolerance is not None:
        check_real(tolerance, "tolerance")
    units = Units(model)
    scales, objective = units.scales(), units.objective
    goal = SOLVED * units.mu if tolerance is None else tolerance * float(scales.min())
    vectors = model.random_vectors(count, seed, scale)
    ends: list[Tensor] = []
    most = done = 0

    def descended(rows: int) -> Callable[[Tensor], None]:
        iterations = itertools.count(1)
        return lambda points: on_progress(_DESCENT * (done + rows * within(next(iterations))) / count)

    batches = vectors.split(1 if model.nonnegative else max(1, _BATCH_VALUES // model.size))
    for part in batches:
        watch = descended(len(part))
        if model.nonnegative:
            ended = bounded_lbfgs(units, part[0] / scales, tolerance=goal, iterations=iterations, watch=watch)
        else:
            ended = lbfgs(objective, part / scales, tolerance=goal, iterations=iterations, watch=watch)
        ends.append((ended.points * scales).reshape(len(part), -1))
        most, done = max(most, ended.iterations), done + len(part)
    found, certificates = torch.cat(ends).cpu(), []
    units = Units(model.on("cpu"))
    for i, vector in enumerate(found):
        point = _finished(units, units.model.point(vector))
        found[i] = point.vector()
        certificates.append(certify(units.model, point))
        on_progress(_DESCENT + (1 - _DESCENT) * (i + 1) / count)
    numbers = [
        [certificate.objective for certificate in certificates],
        [certificate.gap for certificate in certificates],
    ]
    objectives, gaps = torch.tensor(numbers, dtype=torch.float64, device=model.device)
    verdicts = tuple(certificate.verdict for certificate in certificates)
    return Starts(objectives, gaps, verdicts, found.to(model.device), most)
