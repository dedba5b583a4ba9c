"""All measures of collapse by name, NC0 to NC3 and their relatives, of class moments and a classifier (W, b).

Each is a function of formulas.py or pairs.py. One that raises `neuralcollapse.errors.Undefined` is NaN here, with one
warning for each reason. Classes without samples are left out, and `measures` names them in a warning.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from neuralcollapse.checks import check_classifier, in_one_piece
from neuralcollapse.errors import NeuralCollapseWarning, listed
from neuralcollapse.geometry.class_shard import ClassShard, local_rows
from neuralcollapse.geometry.formulas import (
    centred_means,
    equiangularity,
    equiangularity_of,
    equinorm,
    equinorm_of,
    mean_logits,
    nc0,
    nc0_of,
    nc1,
    nc1_of,
    nc1_quotient,
    nc1_quotient_of,
    nc2,
    nc3,
    nc3_distance,
    nc3_distance_of,
    nc4_disagreements,
    nc_bias,
    nc_bias_centered,
)
from neuralcollapse.geometry.matrix import at_least_two, distance_to_etf
from neuralcollapse.geometry.means import OVERFLOW, CentredMeans
from neuralcollapse.geometry.moments import ClassMoments, check_moments
from neuralcollapse.geometry.pairs import Estimate, cdnv, draw, excess_cosine
from neuralcollapse.geometry.sharded import ShardedMeans
from neuralcollapse.geometry.undefined import Reasons, whose

__all__ = [  # with the formulas, which version 0.1.0 had in this file
    "CLASSIFIER_MEASURES",
    "FEATURE_MEASURES",
    "PAIRWISE_MEASURES",
    "WEIGHT_MEASURES",
    "centred_means",
    "equiangularity",
    "equinorm",
    "measures",
    "measures_of",
    "nc0",
    "nc1",
    "nc1_quotient",
    "nc2",
    "nc3",
    "nc3_distance",
    "nc4_disagreements",
    "nc_bias",
    "nc_bias_centered",
]

FEATURE_MEASURES = (
    "nc1",
    "nc1_quotient",
    "nc1_cdnv",
    "nc2_means",
    "equinorm_means",
    "equiangularity_means",
    "max_equiangularity_means",
)
CLASSIFIER_MEASURES = (
    "nc2",
    "nc3",
    "nc3_distance",
    "nc0",
    "nc_bias",
    "nc_bias_centered",
    "equinorm_weights",
    "equiangularity_weights",
    "max_equiangularity_weights",
)
WEIGHT_MEASURES = ("nc2", "nc0", "equinorm_weights", "equiangularity_weights", "max_equiangularity_weights")
"""Those of the weight alone, which are the same whatever the features are."""
PAIRWISE_MEASURES = ("nc1_cdnv", "max_equiangularity_means", "max_equiangularity_weights")


def measures(
    moments: ClassMoments | ClassShard,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    pairwise: bool | int = True,
) -> dict[str, float]:
    """All measures of the class moments and of the classifier, by name.

    Args:
        moments: moments of the features that the classifier receives. With a `ClassShard` all its ranks call this
            together and get the same result; weight and bias are then the rows of the rank's own classes, or DTensors
            that are split by rows.
        weight: (K, d) rows w_k of the classifier. Without it, the measures of the classifier are left out.
        bias: (K,); zero by default.
        pairwise: False leaves out the three measures over pairs of classes (`PAIRWISE_MEASURES`), whose cost grows
            with K^2. A number P takes them over a sample of P pairs, always the same; the result then has their
            standard errors ("nc1_cdnv_error" and so on) and "num_pairs". If there are at most P pairs, all are used.

    Returns:
        name -> float. A measure without a value is NaN, with one warning for each reason.

    Raises:
        InputError: weight or bias of the wrong shape or dtype, or not finite.
    """
    return _measures(moments, weight, bias, pairwise)


def measures_of(
    moments: ClassMoments,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    pairwise: bool | int = True,
    held_out: bool = False,
    layer: str = "",
    numbers: Tensor | None = None,
    means: CentredMeans | None = None,
) -> dict[str, float]:
    """`measures` of what a pass has seen.

    Args:
        moments: of the K classes that were measured.
        weight: (K, d) of these classes, or None.
        bias: (K,), or None.
        pairwise: as there.
        held_out: the features are those of a test set, and the classifier that of the training set: the measures of the
            weight alone are left out, and warnings say whose they are.
        layer: the name of an inner layer, with which warnings begin then. What they would say of the labels alone is
            left out, as it was said of the features that the classifier receives.
        numbers: (K,) by which warnings name the classes, where they are some of more.
        means: the centred means of the moments under these numbers, if they are at hand.
    """
    return _measures(moments, weight, bias, pairwise, held_out, layer, numbers, means)


def _measures(
    moments: ClassMoments | ClassShard,
    weight: Tensor | None,
    bias: Tensor | None,
    pairwise: bool | int,
    held_out: bool = False,
    layer: str = "",
    numbers: Tensor | None = None,
    means: CentredMeans | None = None,
) -> dict[str, float]:
    """`measures_of`, also of a `ClassShard`."""
    if isinstance(moments, ClassShard):
        weight, bias = local_rows(weight), local_rows(bias)
        means = ShardedMeans.agreed("measures", moments, weight, bias, pairwise=repr(pairwise))
    else:
        check_moments(moments)
        weight, bias = in_one_piece(weight), in_one_piece(bias)
        check_classifier(weight, bias, moments.num_classes, moments.feature_dim)
        means = means or CentredMeans(moments, numbers)
    sample = draw(len(means.seen), pairwise, means.seen.device)
    jobs: dict[str, Callable[[], Tensor | Estimate]] = {
        "nc1": lambda: nc1_of(means),
        "nc1_quotient": lambda: nc1_quotient_of(means),
        "nc1_cdnv": lambda: cdnv(means, sample),
        "nc2_means": lambda: distance_to_etf(means.matrix),
        "equinorm_means": lambda: equinorm_of(means.matrix),
        "equiangularity_means": lambda: equiangularity_of(means.matrix),
        "max_equiangularity_means": lambda: excess_cosine(means.matrix, sample),
    }
    if weight is not None:
        weights = means.rows(weight.detach().to(means.seen.device))
        logits = cache(lambda: mean_logits(weights, means, bias))
        jobs |= {
            "nc2": lambda: distance_to_etf(weights),
            "nc3": lambda: distance_to_etf(weights, means.matrix),
            "nc3_distance": lambda: nc3_distance_of(weights, means.matrix),
            "nc0": lambda: nc0_of(weights),
            "nc_bias": lambda: torch.linalg.vector_norm(logits()),
            "nc_bias_centered": lambda: torch.linalg.vector_norm(logits() - logits().mean()),
            "equinorm_weights": lambda: equinorm_of(weights),
            "equiangularity_weights": lambda: equiangularity_of(weights),
            "max_equiangularity_weights": lambda: excess_cosine(at_least_two(weights), sample),
        }
    left_out = (*(PAIRWISE_MEASURES if pairwise is False else ()), *(WEIGHT_MEASURES if held_out else ()))
    jobs = {name: job for name, job in jobs.items() if name not in left_out}

    if len(means.seen) == 0:
        if not layer:
            text = f"{whose(held_out)}undefined (NaN): no samples were seen: {', '.join(jobs)}"
            warnings.warn(text, NeuralCollapseWarning, stacklevel=3)
        return dict.fromkeys(jobs, math.nan)
    found: dict[str, Tensor] = {}
    undefined = Reasons()
    for name, job in jobs.items():
        value = undefined.attempt([name], job, None)
        if isinstance(value, Estimate):
            value, error = value
            if error is not None:
                found[f"{name}_error"] = error
        if value is not None:
            found[name] = value
    read = torch.stack(list(found.values())).tolist() if found else []  # the device is waited for once
    values = dict.fromkeys(jobs, math.nan) | dict(zip(found, read, strict=True))
    for name in jobs:
        if name in found and not math.isfinite(values[name]):
            values[name] = math.nan
            undefined.add(OVERFLOW, [name])
    if sample is not None:
        values["num_pairs"] = float(len(sample.first))
    _warn(means, undefined, held_out, layer)
    return values


def _warn(means: CentredMeans, undefined: Reasons, held_out: bool, layer: str) -> None:
    features = whose(held_out, layer)
    if means.unseen and not layer:
        warnings.warn(
            f"{features}no samples of class{'es' * (len(means.unseen) > 1)} {listed(means.unseen)}: measured over the "
            f"{len(means.seen)} class{'es' * (len(means.seen) > 1)} seen (W cut to their rows, a simplex of as many)",
            NeuralCollapseWarning,
            stacklevel=4,
        )
    if means.single and not layer:
        warnings.warn(
            f"{features}every class has one sample: NC1 is 0 whatever the features, since nothing varies within a "
            "class",
            NeuralCollapseWarning,
            stacklevel=4,
        )
    undefined.warn(5, about=f"{features}undefined (NaN)")
    if means.left_out:
        warnings.warn(features + means.left_out, NeuralCollapseWarning, stacklevel=4)
    count, dim = len(means.seen), means.moments.feature_dim
    if count > dim + 1 and not held_out:  # of the training set that is said already
        floor = math.sqrt(2 - 2 * math.sqrt(dim / (count - 1)))
        warnings.warn(
            f"{features}K={count} classes in d={dim} dimensions hold no simplex ETF (needs d >= K-1): "
            f"nc2, nc2_means and nc3 cannot go below {floor:.4f}",
            NeuralCollapseWarning,
            stacklevel=4,
        )
