"""The last layer of a trained network as a point of the model: how close is it to the optimum for its class counts?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from neuralcollapse.checks import (
    check_classifier,
    check_features,
    check_finite,
    check_label_range,
    check_labels,
    check_real,
)
from neuralcollapse.errors import InputError
from neuralcollapse.geometry.moments import ClassMoments
from neuralcollapse.ufm.duality import lower_bound
from neuralcollapse.ufm.minimizers import global_minimum
from neuralcollapse.ufm.model import Model, Point


@dataclass(frozen=True)
class HeadCertificate:
    """A last layer compared with the optimum of the model.

    Attributes:
        objective: f of the features, weight and bias: cross-entropy plus decays.
        minimum: the exact global minimum for the same class counts, decays and d.
        ratio: `objective / minimum`, >= 1; goes to 1 as the head reaches the optimum.
        lower_bound: the lower bound from the head's own logits, <= minimum.
        gap: `objective - lower_bound`.
        feature_decay: lH, given or from the balance `lW |W|^2 = lH |H|^2`.
        weight_decay: lW.
    """

    objective: float
    minimum: float
    ratio: float
    lower_bound: float
    gap: float
    feature_decay: float
    weight_decay: float

    def __repr__(self) -> str:
        return (
            f"HeadCertificate({self.ratio:.6g} times the minimum)\n"
            f"  objective {self.objective:.10g}, minimum {self.minimum:.10g}, lower bound {self.lower_bound:.10g}\n"
            f"  decay of weights {self.weight_decay:.4g}, of features {self.feature_decay:.4g}"
        )

    def record(self) -> dict[str, float]:
        """The values that the records of a run keep."""
        return {name: getattr(self, name) for name in ("objective", "minimum", "ratio", "lower_bound")}


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
        features: (N, d) the inputs of the layer, d >= K-1.
        labels: (N,) integers; every class of the weight must occur.
        weight: (K, d).
        bias: (K,) or None.
        weight_decay: lW > 0, as in training.
        feature_decay: lH > 0. By default the one for which the head is balanced, `lW |W|^2 = lH |H|^2`, as at every
            critical point; far from a critical point (features of an arbitrary scale) the ratio means little.
        bias_decay: lb; by default lW, as for an optimiser with a single decay.

    Raises:
        InputError: arrays that do not fit, a class without samples, all features zero, d < K-1, decays not positive.
    """
    check_features(features)
    labels = check_labels(labels, features.shape[0])
    check_finite(features)
    if weight.dim() != 2:
        raise InputError(f"expected weight of shape (K, d), got {tuple(weight.shape)}")
    num_classes = weight.shape[0]
    check_classifier(weight, bias, num_classes, features.shape[1])
    if len(labels) == 0:
        raise InputError("got no samples: features and labels are empty")
    check_label_range(labels, num_classes)
    order = labels.argsort(stable=True)
    H = features[order].T.double()
    counts, decays = labels.bincount(minlength=num_classes), (weight_decay, feature_decay, bias_decay)
    model = _model(counts, weight, bias, float(H.square().sum()), decays)
    point = Point(weight.double(), H, None if bias is None else bias.double())
    return _compare(model, float(model.value(point)), lower_bound(model, point))


@torch.no_grad()
def certify_head_moments(
    moments: ClassMoments,
    loss: float,
    weight: Tensor,
    bias: Tensor | None,
    weight_decay: float,
    feature_decay: float | None = None,
    *,
    bias_decay: float | None = None,
) -> HeadCertificate:
    """`certify_head` without the features, from their moments and the mean cross-entropy `loss` of the head.

    The objective is the same; the lower bound is taken at the class means. Other arguments and errors as there.
    """
    check_classifier(weight, bias, moments.num_classes, moments.feature_dim)
    counts = moments.counts
    size = float(moments.spreads.sum() + counts.double() @ moments.means.square().sum(1))
    device = moments.means.device
    weight, bias = weight.to(device), None if bias is None else bias.to(device)
    model = _model(counts, weight, bias, size, (weight_decay, feature_decay, bias_decay))
    small = model.collapsed()
    means = moments.means.T * small.columns.roots
    point = Point(weight.double(), means, None if bias is None else bias.double())
    decay = model.weight_decay * float(point.W.square().sum()) + model.feature_decay * size
    if point.b is not None:
        decay += model.bias_decay * float(point.b.square().sum())
    return _compare(model, loss + decay / 2, lower_bound(small, point))


def _model(
    counts: Tensor, weight: Tensor, bias: Tensor | None, size: float, decays: tuple[float, float | None, float | None]
) -> Model:
    """The model that has the head as one of its points; `size` is the sum of the squared lengths of the features."""
    weight_decay, feature_decay, bias_decay = decays
    check_real(weight_decay, "weight_decay")
    num_classes, dim = weight.shape
    if not bool(counts.all()):
        empty = (counts == 0).nonzero().flatten().tolist()
        raise InputError(f"classes {empty} have no samples, and the model needs every class: drop them from the head")
    if dim < num_classes - 1:
        raise InputError(f"expected d >= K-1 = {num_classes - 1}, got d={dim}: below it the exact minimum is not known")
    if feature_decay is None:
        rows = float(weight.double().square().sum())
        if size == 0 or rows == 0:
            raise InputError("all features or all weights are zero, so no balance gives feature_decay: give it")
        feature_decay = weight_decay * rows / size
    bias_decay = weight_decay if bias_decay is None else bias_decay
    return Model(
        num_classes,
        dim,
        counts.tolist(),
        weight_decay,
        feature_decay,
        bias_decay if bias is not None else 0.0,
        bias is not None,
        device=weight.device,
    )


def _compare(model: Model, objective: float, bound: float) -> HeadCertificate:
    minimum = global_minimum(model)
    ratio = objective / minimum if minimum > 0 else math.inf
    return HeadCertificate(objective, minimum, ratio, bound, objective - bound, model.feature_decay, model.weight_decay)
