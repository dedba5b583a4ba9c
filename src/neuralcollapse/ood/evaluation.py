"""How well scores tell inputs from outliers: AUROC, AUPR and FPR95, exact with ties."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, overload

import numpy as np
import torch

from neuralcollapse.errors import InputError, listed

MEASURES: dict[str, str] = {
    "auroc": "chance that an inside input scores higher than an outside one, ties counted half",
    "auroc_error": "its standard error over draws of the inputs",
    "aupr_in": "average precision of finding the inside inputs by high scores",
    "aupr_out": "average precision of finding the outside inputs by low scores",
    "fpr95": "least share of outside inputs accepted where at least 95 % of the inside ones are",
}
"""Name -> meaning. Higher is better, but for `fpr95` and the error."""
_ACCEPTED = 0.95


@overload
def evaluate(inside: Mapping[str, Any], outside: Mapping[str, Any]) -> dict[str, dict[str, float]]: ...
@overload
def evaluate(inside: Any, outside: Any) -> dict[str, float]: ...
def evaluate(inside: Any, outside: Any) -> Any:
    r"""How well scores tell inside inputs from outside ones; scores are higher for inside inputs.

    - "auroc": :math:`P(s_\mathrm{in} > s_\mathrm{out}) + \frac{1}{2} P(s_\mathrm{in} = s_\mathrm{out})`. 1 is perfect,
      0.5 is guessing, below that the score is upside down.
    - "auroc_error": its standard error over draws of both samples [DeLong et al. 1988].
    - "aupr_in", "aupr_out": average precision, the step-wise area of scikit-learn's `average_precision_score`, with the
      inside inputs as what is looked for, or the outside ones (by the scores' negatives). Guessing gives their share.
    - "fpr95": the least share of outside inputs that pass a threshold which at least 95 % of the inside ones pass.

    They agree with scikit-learn's to 1e-12, with and without ties, and need no scikit-learn.

    Args:
        inside: (N,) scores of inputs like the training set, held out of it; or name -> scores, as `OODScorer.score`
            gives them.
        outside: (M,) scores of others, or name -> scores.

    Returns:
        name -> number; or for named scores, score -> name -> number.

    Raises:
        InputError: other names inside than outside, scores that are not (N,) numbers, none, or not finite.

    >>> evaluate([3.0, 2.0, 2.0], [2.0, 0.0])["auroc"]
    0.8333333333333334
    """
    if isinstance(inside, Mapping) != isinstance(outside, Mapping):
        raise InputError(
            "expected both as arrays of scores, or both as dicts of them, got one of each: give the same kind"
        )
    if not isinstance(inside, Mapping):
        return _evaluated(_checked(inside, "inside scores"), _checked(outside, "outside scores"))
    if set(inside) != set(outside):
        only = sorted(set(inside) ^ set(outside))
        raise InputError(f"expected the same scores inside and outside, got {listed(only)} in one of them only")
    return {
        name: _evaluated(
            _checked(inside[name], f"inside scores {name!r}"), _checked(outside[name], f"outside {name!r}")
        )
        for name in inside
    }


def _checked(values: Any, name: str) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = values.double() if values.is_floating_point() else values
    try:
        found = np.asarray(values)
    except (TypeError, ValueError):
        found = np.asarray(None)
    if found.ndim != 1 or found.dtype.kind not in "fiu":
        raise InputError(
            f"expected {name} as (N,) numbers, got {found.dtype} of shape {found.shape}: one for each input"
        )
    if len(found) == 0:
        raise InputError(f"expected {name} of at least one input, got none")
    bad = int((~np.isfinite(found)).sum())
    if bad:
        raise InputError(
            f"expected finite {name}, got {bad} NaN or infinite of {len(found)}: they have no place in an order, so "
            "leave this score out, or those inputs"
        )
    return found.astype(np.float64)


def _evaluated(inside: np.ndarray, outside: np.ndarray) -> dict[str, float]:
    values = np.unique(np.concatenate([inside, outside]))
    at_in = np.bincount(np.searchsorted(values, inside), minlength=len(values))
    at_out = np.bincount(np.searchsorted(values, outside), minlength=len(values))
    # Shares of the other sample below each value, ties counted half: their means over a sample are the AUROC.
    below_out = (np.cumsum(at_out) - at_out / 2) / len(outside)
    above_in = (np.cumsum(at_in[::-1])[::-1] - at_in / 2) / len(inside)
    auroc = float(below_out @ at_in / len(inside))
    variance = _variance(below_out, at_in, auroc) + _variance(above_in, at_out, auroc)
    return {
        "auroc": auroc,
        "auroc_error": float(np.sqrt(variance)),
        "aupr_in": _average_precision(at_in[::-1], at_out[::-1]),
        "aupr_out": _average_precision(at_out, at_in),
        "fpr95": _fpr(at_in[::-1], at_out[::-1]),
    }


def _variance(shares: np.ndarray, counts: np.ndarray, mean: float) -> float:
    """That of the mean of shares which occur so many times."""
    total = int(counts.sum())
    return float((shares - mean) ** 2 @ counts) / (max(total - 1, 1) * total)


def _average_precision(wanted: np.ndarray, others: np.ndarray) -> float:
    """The precision at each threshold, weighted by the recall that it adds; the first threshold is the strictest."""
    found = np.cumsum(wanted)
    precision = found / (found + np.cumsum(others))
    return float(precision @ wanted / found[-1])


def _fpr(inside: np.ndarray, outside: np.ndarray) -> float:
    """The share of outside inputs at the strictest threshold that 95 % of the inside ones pass."""
    passed = np.cumsum(inside)
    at = int(np.argmax(passed / passed[-1] >= _ACCEPTED))
    return float(np.cumsum(outside)[at] / outside.sum())
