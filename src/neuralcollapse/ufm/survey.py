"""A survey of a landscape: minimum, atlas, random starts, spectra, a way out of a saddle, minority collapse."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from neuralcollapse.errors import InputError
from neuralcollapse.ufm.atlas import Entry, atlas, coverage
from neuralcollapse.ufm.descent import lbfgs
from neuralcollapse.ufm.hessian import Hessian
from neuralcollapse.ufm.minimizers import collapsed_minimizer, global_minimum
from neuralcollapse.ufm.model import Model
from neuralcollapse.ufm.points import Point
from neuralcollapse.ufm.solvers import Solution, Starts, leave, many_starts, minimize, within

TRAJECTORIES = 8  # starts whose trajectories are kept
_FRAMES = 40  # points kept of a way out of a saddle
LARGEST_SPECTRUM = 4500  # variables up to which the whole Hessian is taken apart: half a minute on a core
_EIGENVALUES = 400  # of a spectrum that are kept
_PHASE = 11  # grid points on each side of the phase diagram
_PHASE_CLASSES = 10  # the phase diagram has K classes, but at most this many


@dataclass(frozen=True)
class Phase:
    """The exact cosine between the classifier rows of minority classes: rows are ratios, columns are decays N mu."""

    ratios: list[float]
    decays: list[float]
    cosines: list[list[float]]
    num_classes: int
    majority: int
    smoothing: float


@dataclass(frozen=True)
class Survey:
    """The result of `survey`; parts that do not apply are None or empty.

    Attributes:
        model: the model.
        minimum: the exact global minimum; None if it is not known (d < K-1, or focal loss with unequal counts; with
            features >= 0 also where its bounds do not agree).
        atlas: critical points.
        coverage: what was searched for them and what was not, in words.
        starts: the ends of the random starts.
        trajectories: some of the starts, step by step.
        spectra: name of a point -> eigenvalues of the collapsed model's Hessian there, ascending.
        way: a saddle of the atlas, and the points from it to the end of its way down.
        phase: minority collapse, for models with unequal classes.
    """

    model: Model
    minimum: float | None
    atlas: list[Entry]
    coverage: str
    starts: Starts
    trajectories: list[Solution]
    spectra: dict[str, Tensor]
    way: tuple[Entry, list[Point]] | None
    phase: Phase | None

    def record(self) -> dict[str, Any]:
        """Its numbers, for JSON; of each trajectory the iteration, objective and gap of its steps."""
        return {
            "minimum": self.minimum,
            "atlas": [entry.record() for entry in self.atlas],
            "coverage": self.coverage,
            "starts": {
                "objectives": self.starts.objectives.tolist(),
                "gaps": self.starts.gaps.tolist(),
                "verdicts": list(self.starts.verdicts),
            },
            "trajectories": [
                [[step.iteration, step.objective, step.gap] for step in solution.history]
                for solution in self.trajectories
            ],
        }


def survey(
    model: Model,
    *,
    starts: int = 100,
    method: str = "lbfgs",
    seed: int = 0,
    on_message: Callable[[str], None] = lambda text: None,
    on_progress: Callable[[float], None] = lambda share: None,
) -> Survey:
    """Survey the landscape of a model: `starts` random starts, some of them recorded step by step by `method`.

    With features >= 0 there is no atlas, and so no way out of a saddle; spectra and phase diagram are left out too.
    Spectra are left out as well where the collapsed model has more than 4,500 variables (K > 45 at d = K + 2).

    Args:
        model: the model.
        starts: random starts.
        method: of the trajectories that are recorded, as for `minimize`.
        seed: of the starts.
        on_message: called with the name of each stage as it begins, and with what is left out and why.
        on_progress: called with the share of the stage that is done, from 0 to 1, as far as that can be told.
    """
    minimum, lowest = None, None
    on_message("the global minimum")
    try:
        lowest = collapsed_minimizer(model, on_progress)
        minimum = global_minimum(model)
    except InputError as error:
        on_message(f"no exact minimum: {error}")
    entries: list[Entry] = []
    on_message("the atlas of critical points")
    try:
        entries = atlas(model, on_progress=on_progress)
    except InputError as error:
        on_message(f"no atlas: {error}")
    on_message(f"{starts} random starts")
    ends = many_starts(model, starts, seed=seed, on_progress=on_progress)
    on_message(f"trajectories by {method}")
    trajectories = _trajectories(model, min(starts, TRAJECTORIES), method, seed, on_progress)

    tied = [entry for entry in entries if entry.family == "partition"]
    saddles = [entry for entry in tied if entry.certificate.verdict == "strict_saddle"]
    chosen = {f"saddle {entry.name}": entry.point for entry in (saddles[:1] + saddles[-1:])}
    chosen = {name: model.collapse(point) for name, point in chosen.items()}
    if lowest is not None and not model.nonnegative:
        chosen["global minimum"] = lowest
    spectra: dict[str, Tensor] = {}
    small = model.collapsed()
    if chosen and small.size > LARGEST_SPECTRUM:
        on_message(f"no spectra: {small.size:,} variables are too many")
    elif chosen:
        on_message("the spectra of the Hessian")
        for name, point in chosen.items():
            spectra[name] = torch.linalg.eigvalsh(Hessian(small, point).dense())[:_EIGENVALUES]
            on_progress(len(spectra) / len(chosen))
    way = None
    if saddles and model.feature_dim >= model.num_classes - 1:
        on_message("the way out of a saddle")
        saddle = max(saddles, key=lambda entry: len(entry.partition))
        way = (saddle, way_out(model, saddle))
    phase = None
    if not model.balanced and model.loss.convex and not model.nonnegative:
        on_message("the phase diagram of minority collapse")
        phase = minority_phase(model, on_progress=on_progress)
    return Survey(model, minimum, entries, coverage(model) if entries else "", ends, trajectories, spectra, way, phase)


def _trajectories(
    model: Model, count: int, method: str, seed: int, on_progress: Callable[[float], None]
) -> list[Solution]:
    """The first random starts again, step by step."""
    found: list[Solution] = []

    def show(iteration: int) -> None:
        on_progress((len(found) + within(iteration, method)) / count)

    for i in range(count):
        found.append(minimize(model, model.random_point(seed + i), method, seed=seed, on_iteration=show))
    return found


def way_out(model: Model, saddle: Entry) -> list[Point]:
    """Points from a saddle down to where L-BFGS leads from its escape direction, beginning with the saddle."""
    small = model.collapsed()
    start = model.collapse(leave(model, saddle.point, saddle.certificate))
    path = [model.collapse(saddle.point), start]
    lbfgs(
        small.value_and_gradient,
        start.vector()[None],
        tolerance=1e-8,
        watch=lambda points: path.append(small.point(points[0].clone())),
    )
    picks = sorted({round((len(path) - 1) * (i / _FRAMES) ** 1.5) for i in range(_FRAMES + 1)})
    return [model.expand(path[i]) for i in picks]


def minority_phase(model: Model, *, on_progress: Callable[[float], None] = lambda share: None) -> Phase:
    """Minority collapse over imbalance ratio R and decay, from exact minimisers.

    Half of the classes (of at most 10) are large, with n samples each, and half are small, with n/R. The rows of the
    small classes coincide (cosine 1) iff `(1-a) sqrt(n/R) <= N mu`, a the label smoothing.
    """
    K = min(model.num_classes, _PHASE_CLASSES)
    large = max(1, K // 2)
    small = max(2, K - large)
    top = 1000
    ratios = [float(10 ** (3 * i / (_PHASE - 1))) for i in range(_PHASE)]
    decays = [float(10 ** (-1.5 + 2.5 * i / (_PHASE - 1))) for i in range(_PHASE)]
    cosines: list[list[float]] = []
    for ratio in ratios:
        counts = [top] * large + [max(1, round(top / ratio))] * small
        row = []
        for decay in decays:
            decay_each = decay / sum(counts)
            candidate = model.like(
                num_classes=large + small,
                feature_dim=large + small,
                samples_per_class=counts,
                weight_decay=decay_each,
                feature_decay=decay_each,
            )
            try:
                W = collapsed_minimizer(candidate).W[large:]
                row.append(_cosine(W[0], W[1]))
            except InputError:  # the decay of this cell is too small for the solver
                row.append(math.nan)
        cosines.append(row)
        on_progress(len(cosines) / len(ratios))
    return Phase(ratios, decays, cosines, large + small, top, getattr(model.loss, "smoothing", 0.0))


def _cosine(a: Tensor, b: Tensor) -> float:
    size = float(a.norm() * b.norm())
    return float(a @ b) / size if size > 1e-12 else math.nan
