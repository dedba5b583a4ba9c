"""An independent search for critical points: roots of the gradient by scipy, in the full model's own coordinates."""

import numpy as np
import torch
from scipy.optimize import least_squares


def critical_values(model, count, seed=0, dim=None):
    """Objectives (list) at the roots of the gradient that `count` random points lead to."""
    generator = np.random.default_rng(seed)
    found = []

    def gradient(x):
        return model.value_and_gradient(torch.as_tensor(x))[1].numpy()

    def hessian(x):
        return model.hessian(model.point(torch.as_tensor(x))).dense().numpy()

    for i in range(count):
        start = generator.standard_normal(model.size) * 10 ** (-1 + 1.7 * (i % 20) / 19)
        end = least_squares(gradient, start, jac=hessian, method="lm", xtol=1e-15, ftol=1e-15, gtol=1e-15, max_nfev=200)
        if np.linalg.norm(end.fun) < 1e-8 * model.mu:
            found.append(float(model.value_and_gradient(torch.as_tensor(end.x))[0]))
    return found
