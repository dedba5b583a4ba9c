"""The last layer of a trained network as a point of the model: how close is it to the optimum for its class counts?

Behind a ReLU the features are >= 0, and the model with real features has a minimum that no such network can reach, by
4 to 16 % in examples. So the model with features >= 0 (`nonnegative.py`) is used where the measured ones are.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field, replace
from numbers import Real

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
from neuralcollapse.errors import InputError, NeuralCollapseWarning, did_you_mean
from neuralcollapse.geometry.moments import ClassMoments, check_moments
from neuralcollapse.geometry.packed import state_device
from neuralcollapse.runs.head_lines import head_lines
from neuralcollapse.ufm.duality import lower_bound
from neuralcollapse.ufm.losses import CrossEntropy
from neuralcollapse.ufm.minimizers import global_minimum
from neuralcollapse.ufm.model import Model
from neuralcollapse.ufm.nonnegative import minimum_bounds
from neuralcollapse.ufm.points import Point

FEATURE_SIGNS = ("auto", "real", "nonnegative")
# Distinct counts beyond which the solvers are slow: 26 s for 1,000. With features >= 0 and a bias, some numbers of
# classes: up to 9 s for 100 and 70 s for 200, beyond which there is no descent.
_SLOW, _SLOW_DESCENTS = 500, range(101, 201)
_PART = 2**22  # numbers of the features and logits that are taken together

Decays = tuple[float, float | None, float | None]


@dataclass(frozen=True)
class HeadCertificate:
    """A last layer compared with the optimum of the model.

    Attributes:
        objective: f of the features, weight and bias: cross-entropy plus decays.
        minimum: the exact global minimum for the same class counts, decays, d and sign of the features; an upper bound
            of it if `exact` is False.
        ratio: `objective / minimum`; goes to 1 as the head reaches the optimum. At least 1 if `exact`.
        lower_bound: the lower bound from the head's logits at the class means, <= minimum.
        gap: `objective - lower_bound`.
        feature_decay: lH, given or from the balance `lW |W|^2 = lH |H|^2`.
        weight_decay: lW.
        bias_decay: lb; 0 without a bias.
        nonnegative: whether the model has features >= 0.
        exact: whether `minimum` is the exact minimum.
        floor: whether the features are >= 0 but the model's are real, since d < K: they may not reach the minimum.
        num_classes: K.
        feature_dim: d.
        least_count: samples of the smallest class.
        largest_count: samples of the largest class.
        bias: whether the head has a bias.
        feature_decay_given: whether the feature decay was given.
        bias_decay_given: whether the bias decay was given.
    """

    objective: float
    minimum: float
    ratio: float
    lower_bound: float
    gap: float
    feature_decay: float
    weight_decay: float
    bias_decay: float = 0.0
    nonnegative: bool = False
    exact: bool = True
    floor: bool = False
    num_classes: int = 0
    feature_dim: int = 0
    least_count: int = 0
    largest_count: int = 0
    bias: bool = False
    feature_decay_given: bool = field(default=False, compare=False)
    bias_decay_given: bool = field(default=False, compare=False)

    def __repr__(self) -> str:
        model, ratio, bound = head_lines(self.record())
        return f"HeadCertificate({model}\n  {ratio}\n  {bound})"

    def record(self) -> dict[str, float]:
        """The values that the records of a run keep, all as numbers; `gap` is left out."""
        values = {name: getattr(self, name) for name in _RECORDED}
        return {name: float(value) if isinstance(value, float) else int(value) for name, value in values.items()}


_RECORDED = tuple(name for name in HeadCertificate.__dataclass_fields__ if name != "gap")


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
    features_sign: str = "auto",
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
        features_sign: "nonnegative": compare with the model whose features are >= 0; "real": with the one whose
            features have any sign; "auto": by whether all the given features are >= 0. With d = K-1 the model always
            has real features, and its minimum is a floor for features >= 0.

    Raises:
        InputError: arrays that do not fit, a class without samples, all features zero, d < K-1, decays not positive,
            or features below 0 with features_sign="nonnegative".
    """
    check_sign(features_sign)
    check_features(features)
    labels = check_labels(labels, features.shape[0])
    check_finite(features)
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        got = tuple(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
        raise InputError(f"expected weight as a torch.Tensor of shape (K, d), got {got}")
    num_classes = weight.shape[0]
    check_classifier(weight, bias, num_classes, features.shape[1])
    if len(labels) == 0:
        raise InputError("got no samples: features and labels are empty")
    check_label_range(labels, num_classes)
    positive = bool(features.amin() >= 0)
    if not positive and features_sign == "nonnegative":
        raise InputError(
            f"expected features >= 0, got {int((features < 0).sum())} negative entries: use features_sign='real'"
        )
    device, decays = state_device(features.device), (weight_decay, feature_decay, bias_decay)
    labels, weight = labels.to(device), _in_float64(weight, device)
    bias = None if bias is None else _in_float64(bias, device)
    counts = labels.bincount(minlength=num_classes)
    loss, size, means = _passed(features, labels, weight, bias, counts)
    found = _certified(counts, means, loss, size, weight, bias, decays, features_sign != "real" and positive)
    return replace(found, floor=positive and features.shape[1] < num_classes)


def _passed(
    features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor | None, counts: Tensor
) -> tuple[float, float, Tensor]:
    """The mean cross-entropy of the head, the sum of the squared features, and the class means, part by part."""
    (num_classes, dim), loss = weight.shape, CrossEntropy()
    total, size, sums = (weight.new_zeros(shape) for shape in ((), (), (num_classes, dim)))
    rows = max(1, _PART // (num_classes + dim))
    for part, own in zip(features.split(rows), labels.split(rows), strict=True):
        part = _in_float64(part, weight.device)
        logits = weight @ part.mT
        logits = logits if bias is None else logits.add_(bias[:, None])
        total += loss.value(logits, loss.targets(own, num_classes)).sum()
        size += part.square().sum()
        sums.index_add_(0, own, part)
    return float(total) / len(labels), float(size), sums / counts[:, None]


def _certified(
    counts: Tensor,
    means: Tensor,
    loss: float,
    size: float,
    weight: Tensor,
    bias: Tensor | None,
    decays: Decays,
    nonnegative: bool,
) -> HeadCertificate:
    """The certificate of a head with a mean loss, from the class means (K, d) and the sum of the squared features."""
    model = _model(counts, weight, bias, size, decays, nonnegative)
    small = model.collapsed()
    point = Point(weight, means.T * small.columns.roots, bias)
    decay = model.weight_decay * float(weight.square().sum()) + model.feature_decay * size
    if bias is not None:
        decay += model.bias_decay * float(bias.square().sum())
    return _compare(model, loss + decay / 2, lower_bound(small, point), decays)


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
    features_sign: str = "real",
) -> HeadCertificate:
    """`certify_head` without the features, from their moments and the mean cross-entropy `loss` of the head.

    Both values are the same. Moments do not show the sign of the features: `features_sign` is "nonnegative" or "real".
    Other arguments and errors as there.
    """
    check_sign(features_sign)
    if features_sign == "auto":
        raise InputError("expected features_sign='real' or 'nonnegative', got 'auto': moments do not show the sign")
    check_moments(moments)
    if isinstance(loss, Tensor) and loss.numel() == 1:
        loss = float(loss)
    if isinstance(loss, bool) or not isinstance(loss, Real):
        raise InputError(f"expected loss as a number, the mean cross-entropy of the head, got {type(loss).__name__}")
    if weight is None:
        raise InputError("expected weight (K, d), got None: a certificate is of a head")
    check_classifier(weight, bias, moments.num_classes, moments.feature_dim)
    counts = moments.counts
    size = float(moments.spreads.sum() + counts.double() @ moments.means.square().sum(1))
    means = moments.means
    weight, bias = _in_float64(weight, means.device), None if bias is None else _in_float64(bias, means.device)
    decays, nonnegative = (weight_decay, feature_decay, bias_decay), features_sign == "nonnegative"
    found = _certified(counts, means, loss, size, weight, bias, decays, nonnegative)
    return replace(found, floor=nonnegative and not found.nonnegative)


def _in_float64(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor in float64 on a device that has it: moved first, since its own may not."""
    return tensor.to(device).double()


def check_sign(features_sign: str) -> None:
    """Raise unless `features_sign` is one of `FEATURE_SIGNS`."""
    if features_sign not in FEATURE_SIGNS:
        close = did_you_mean(features_sign, FEATURE_SIGNS)
        raise InputError(f"no features_sign {features_sign!r}{close}; there are: {', '.join(FEATURE_SIGNS)}")


def balanced_decay(weight_decay: float, weight: Tensor, size: float) -> float | None:
    """The feature decay lH from the balance `lW |W|^2 = lH |H|^2`, `size` being |H|^2; None where W or H is zero."""
    rows = float(_in_float64(weight, state_device(weight.device)).square().sum())
    return weight_decay * rows / size if size > 0 and rows > 0 else None


def _model(
    counts: Tensor, weight: Tensor, bias: Tensor | None, size: float, decays: Decays, nonnegative: bool
) -> Model:
    """The model that has the head as one of its points; `size` is the sum of the squared lengths of the features.

    With d = K-1 its features are real even if the head's are >= 0: the other minimum is not known.
    """
    weight_decay, feature_decay, bias_decay = decays
    check_real(weight_decay, "weight_decay")
    num_classes, dim = weight.shape
    if not bool(counts.all()):
        empty = (counts == 0).nonzero().flatten().tolist()
        raise InputError(f"classes {empty} have no samples, and the model needs every class: drop them from the head")
    if dim < num_classes - 1:
        raise InputError(f"expected d >= K-1 = {num_classes - 1}, got d={dim}: below it the exact minimum is not known")
    if feature_decay is None:
        feature_decay = balanced_decay(weight_decay, weight, size)
        if feature_decay is None:
            raise InputError("all features or all weights are zero, so no balance gives feature_decay: give it")
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
        features="nonnegative" if nonnegative and dim >= num_classes else "real",
    )


def _compare(model: Model, objective: float, bound: float, decays: Decays) -> HeadCertificate:
    exact, K, distinct = True, model.num_classes, len(set(model.counts))
    descends = model.nonnegative and model.bias and distinct > 1 and K in _SLOW_DESCENTS
    if distinct > _SLOW or descends:
        warnings.warn(
            f"the minimum for {K:,} classes with {distinct:,} different counts may take the solver minutes, at each "
            "certificate of the head: "
            "measure less often",
            NeuralCollapseWarning,
            stacklevel=4,
        )
    if model.nonnegative:
        bounds = minimum_bounds(model)
        minimum, exact = bounds.upper, bounds.exact
    else:
        minimum = global_minimum(model)
    return HeadCertificate(
        objective,
        minimum,
        objective / minimum if minimum > 0 else math.inf,
        bound,
        objective - bound,
        model.feature_decay,
        model.weight_decay,
        model.bias_decay,
        model.nonnegative,
        exact,
        False,
        K,
        model.feature_dim,
        min(model.counts),
        max(model.counts),
        model.bias,
        decays[1] is not None,
        decays[2] is not None,
    )
