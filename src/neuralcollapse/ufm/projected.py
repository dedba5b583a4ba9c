"""Descent with features >= 0: bounded L-BFGS, over canonical vectors of W, H and b."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from neuralcollapse.ufm.descent import Descent
from neuralcollapse.ufm.model import Model
from neuralcollapse.ufm.units import Units


def lower_limits(model: Model) -> Tensor:
    """(n,) the least value of each entry of a vector: 0 for features >= 0, -inf for all others."""
    limits = torch.full((model.size,), -torch.inf, dtype=torch.float64, device=model.device)
    if model.nonnegative:
        model.point(limits).H.zero_()  # a view
    return limits


def bounded_lbfgs(
    units: Units,
    start: Tensor,
    *,
    tolerance: float,
    iterations: int,
    watch: Callable[[Tensor], None] | None = None,
) -> Descent:
    """Minimise the model of `units` from a canonical (n,) vector by SciPy's L-BFGS-B.

    It stops where no entry of the projected gradient exceeds `tolerance`, or where rounding hides all progress.
    """
    from scipy.optimize import minimize as scipy_minimize

    device = start.device

    def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = units.objective(torch.as_tensor(x, device=device))
        return float(value), gradient.cpu().numpy()

    limits = lower_limits(units.model).cpu().numpy()
    found = scipy_minimize(
        objective,
        start.cpu().numpy(),
        jac=True,
        method="L-BFGS-B",
        bounds=[(None if low == -np.inf else low, None) for low in limits],
        callback=None if watch is None else lambda x: watch(torch.as_tensor(x.copy(), device=device)),
        options={"maxiter": iterations, "maxfun": 4 * iterations, "maxcor": 20, "ftol": 0.0, "gtol": tolerance},
    )
    return Descent(torch.as_tensor(found.x, device=device), int(found.nit))
