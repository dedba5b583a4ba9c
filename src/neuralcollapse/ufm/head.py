"""A trained network's last layer as a point of the model: how near is it to the optimum for its own class counts?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from neuralcollapse._checks import check_classifier, check_features, check_finite, check_label_range, check_labels
from neuralcollapse._errors import InputError
from neuralcollapse.ufm.duality import lower_bound
from neuralcollapse.ufm.minimizers import global_minimum
from neuralcollapse.ufm.model import Model, Point


@dataclass(frozen=True)
class HeadCertificate:
    """What the model says of a last layer.

    Attributes:
        objective: f of the features, weight and bias, cross-entropy with decays.
        minimum: the exact global minimum for the same class counts, decays and d.
        ratio: objective / minimum, >= 1; goes to 1 as the head reaches the optimum.
        lower_bound: the pointwise lower bound from the head's own logits, <= minimum.
        gap: objective - lower_bound.
        feature_decay: lH, given or from the balance lW |W|^2 = lH |H|^2.
        weight_decay: lW.
    """

    objective: float
    minimum: float
    ratio: float
    lower_bound: float
    gap: float
    feature_decay: float
    weight_decay: float


@torch.no_grad()
def certify_head(
    features: Tensor,
    labels: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    weight_decay: float,
    feature_decay: float | None = None,
    *,
    bias_decay: float | None = None,
) -> HeadCertificate:
    """Compare a trained last layer with the exact optimum of the unconstrained feature model.

    Args:
        features: (N, d) what the layer saw, d >= K-1.
        labels: (N,) integers; every class of the weight must occur.
        weight: (K, d).
        bias: (K,) or None.
        weight_decay: lW > 0, as trained with.
        feature_decay: lH > 0; when not given, the one at which the head is balanced, lW |W|^2 = lH |H|^2, as it
            would be at any critical point.
        bias_decay: lb; the same as the weight's when not given, as an optimiser with one decay has it.

    Raises:
        InputError: arrays that do not fit, a class without samples, all features zero, d < K-1, decays not positive.
    """
    check_features(features)
    labels = check_labels(labels, features.shape[0])
    check_finite(features)
    if weight.dim() != 2:
        raise InputError(f"expected weight of shape (K, d), got {tuple(weight.shape)}")
    num_classes, dim = weight.shape
    check_classifier(weight, bias, num_classes, features.shape[1])
    if len(labels) == 0:
        raise InputError("got no samples: features and labels are empty")
    check_label_range(int(labels.min()), int(labels.max()), num_classes)
    counts = labels.bincount(minlength=num_classes)
    if not bool(counts.all()):
        empty = (counts == 0).nonzero().flatten().tolist()
        raise InputError(
            f"classes {empty} have no samples: the model needs every class; drop them from weight and bias"
        )
    if dim < num_classes - 1:
        raise InputError(f"expected d >= K-1 = {num_classes - 1}, got d={dim}: below it the exact minimum is not known")

    order = labels.argsort(stable=True)
    W, H = weight.double(), features[order].T.double()
    size = float(H.square().sum())
    if feature_decay is None:
        if size == 0 or float(W.square().sum()) == 0:
            raise InputError("all features or all weights are zero, so no balance gives feature_decay: give it")
        feature_decay = weight_decay * float(W.square().sum()) / size
    decay = weight_decay if bias_decay is None else bias_decay
    model = Model(
        num_classes,
        dim,
        counts.tolist(),
        weight_decay,
        feature_decay,
        decay if bias is not None else 0.0,
        bias is not None,
        device=features.device,
    )
    point = Point(W, H, None if bias is None else bias.double())
    objective = float(model.value(point))
    minimum = global_minimum(model)
    bound = lower_bound(model, point).value
    ratio = objective / minimum if minimum > 0 else math.inf
    return HeadCertificate(objective, minimum, ratio, bound, objective - bound, feature_decay, weight_decay)
