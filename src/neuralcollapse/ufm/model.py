"""Model: the objective of the unconstrained feature model and its derivatives, for class counts and decays.

    f(W, H, b) = (1/N) sum_i l(W h_i + b, y_i) + lW/2 |W|^2 + lH/2 |H|^2 + lb/2 |b|^2

With features="nonnegative" every entry of H is >= 0, as behind a ReLU.

Sources: Zhu, Ding, Zhou, Li, You, Sulam, Qu, NeurIPS 2021 (arXiv 2105.02375), equation 2; with H >= 0: Dang, Tran,
Nguyen, Ho, ICML 2024.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from neuralcollapse.checks import check_count, check_real
from neuralcollapse.errors import InputError, NeuralCollapseWarning, did_you_mean
from neuralcollapse.geometry.measures import measures
from neuralcollapse.geometry.moments import ClassMoments
from neuralcollapse.geometry.packed import state_device
from neuralcollapse.ufm.columns import Columns, class_counts
from neuralcollapse.ufm.losses import Loss, find_loss
from neuralcollapse.ufm.points import Point, check_parts, check_signs

if TYPE_CHECKING:
    from typing_extensions import Self

FEATURES = ("real", "nonnegative")

_T = TypeVar("_T")


def beside(method: Callable[..., _T]) -> Callable[..., _T]:
    """Let a method of a model that takes a point or a vector compute where that is, whatever the model's device."""

    @wraps(method)
    def followed(model: Model, first: Any, *others: Any, **named: Any) -> _T:
        return method(model.near(first), first, *others, **named)

    return followed


class Model:
    """A classifier whose features are free variables: logits W H + b, with decay on W, H and b.

    Args:
        num_classes: K >= 2.
        feature_dim: d >= 1; the landscape is benign for d >= K (d >= K-1 for the minimum).
        samples_per_class: n, or a list of n_k >= 1.
        weight_decay: lW > 0.
        feature_decay: lH > 0.
        bias_decay: lb >= 0.
        bias: False leaves b out.
        loss: "cross_entropy", "label_smoothing", "focal", "mse", or an instance of a loss of `ufm.losses`.
        device: device of new points; given ones may be on any other, and results are where they are. Devices without
            float64 (MPS) give way to the CPU.
        features: "real", or "nonnegative" for H >= 0. That landscape is not benign: a class whose features are all 0
            gets no gradient and stays there, so no saddles are certified.

    Raises:
        InputError: decays that are not positive, K < 2, d < 1, empty classes, an unknown loss or kind of features.
    """

    def __init__(
        self,
        num_classes: int,
        feature_dim: int,
        samples_per_class: int | Sequence[int],
        weight_decay: float,
        feature_decay: float,
        bias_decay: float = 0.0,
        bias: bool = True,
        loss: str | Loss = "cross_entropy",
        *,
        device: torch.device | str | None = None,
        features: str = "real",
    ) -> None:
        self.num_classes = check_count(num_classes, "num_classes", 2)
        self.feature_dim = check_count(feature_dim, "feature_dim", 1)
        self.counts = class_counts(samples_per_class, self.num_classes)
        self.weight_decay = check_real(weight_decay, "weight_decay")
        self.feature_decay = check_real(feature_decay, "feature_decay")
        self.bias_decay = check_real(bias_decay, "bias_decay", zero=True)
        self.bias = bias
        self.loss = find_loss(loss)
        if features not in FEATURES:
            close = did_you_mean(features, FEATURES)
            raise InputError(f"no features {features!r}{close}; there are: real, nonnegative")
        self.features = features
        self.device = state_device(device)
        self._columns: Columns | None = None  # made when they are first used: a closed form needs no entry a sample
        self._targets: Tensor | None = None

    @property
    def columns(self) -> Columns:
        """The columns of the logits: one for each sample, or for each class if the model is collapsed."""
        if self._columns is None:
            self._columns = Columns.of_samples(self.counts, self.device)
        return self._columns

    @property
    def targets(self) -> Tensor:
        """(K, M) the targets of the columns."""
        if self._targets is None:
            self._targets = self.loss.targets(self.columns.labels, self.num_classes)
        return self._targets

    @property
    def num_columns(self) -> int:
        """M, the number of columns."""
        return self.num_samples if self._columns is None else len(self._columns.labels)

    def like(self, **changes: Any) -> Self:
        """A model of the same arguments but for the changes: `model.like(weight_decay=1e-4)`."""
        arguments: dict[str, Any] = {
            "num_classes": self.num_classes,
            "feature_dim": self.feature_dim,
            "samples_per_class": self.counts,
            "weight_decay": self.weight_decay,
            "feature_decay": self.feature_decay,
            "bias_decay": self.bias_decay,
            "bias": self.bias,
            "loss": self.loss,
            "device": self.device,
            "features": self.features,
        }
        return type(self)(**(arguments | changes))

    def on(self, device: torch.device | str) -> Self:
        """The model on another device."""
        device = state_device(device)
        if device == self.device:
            return self
        model = copy.copy(self)
        model.device = device
        model._columns = None if self._columns is None else self._columns.to(device)
        model._targets = None if self._targets is None else self._targets.to(device)
        return model

    def near(self, point: Any) -> Self:
        """The model on the device of a point or a vector."""
        tensor = getattr(point, "W", point)
        return self.on(tensor.device) if isinstance(tensor, Tensor) and tensor.device != self.device else self

    def with_columns(self, columns: Columns, **changes: Any) -> Self:
        """A copy with other columns and, without any check, other values of the attributes in `changes`."""
        model = copy.copy(self)
        same = self._columns is not None and columns.labels is self._columns.labels
        vars(model).update(changes, _columns=columns, _targets=self.targets if same else None)
        return model

    def __repr__(self) -> str:
        counts = self.counts[0] if self.balanced else list(self.counts)
        bias = f"bias_decay={self.bias_decay:g}" if self.bias else "bias=False"
        decays = f"weight_decay={self.weight_decay:g}, feature_decay={self.feature_decay:g}, {bias}"
        return (
            f"{type(self).__name__}({self.num_classes} classes, d={self.feature_dim}, samples_per_class={counts}, "
            f"{decays}, loss={self.loss.name}, features={self.features})"
        )

    @property
    def nonnegative(self) -> bool:
        """Whether the features must be >= 0."""
        return self.features == "nonnegative"

    @property
    def num_samples(self) -> int:
        """N."""
        return sum(self.counts)

    @property
    def balanced(self) -> bool:
        """Whether all classes have the same number of samples."""
        return len(set(self.counts)) == 1

    @property
    def mu(self) -> float:
        """`sqrt(lW lH)`, the weight of the nuclear norm in the convex form of the model."""
        return math.sqrt(self.weight_decay * self.feature_decay)

    @property
    def size(self) -> int:
        """The number of variables."""
        return (self.num_classes + self.num_columns) * self.feature_dim + (self.num_classes if self.bias else 0)

    # -- collapsed points ---------------------------------------------------------------------------------

    @property
    def _sizes(self) -> Tensor:
        return torch.tensor(self.counts, dtype=torch.float64, device=self.device)

    def collapsed(self) -> Self:
        """The same model with one column a class, `g_k = sqrt(n_k) h_k`, for points with equal features in each class.

        There objective, gradient, spectral norm and the negative eigenvalues of the Hessian are those of the full
        model: differences of features within a class only add curvatures of at least lH.
        """
        return self.with_columns(Columns.of_classes(self.counts, self.device))

    @property
    def is_collapsed(self) -> bool:
        """Whether this model has one column a class (`collapsed`, or one sample in each)."""
        return self.num_columns == self.num_classes

    @beside
    def collapse(self, point: Point) -> Point:
        """The class means of a point's features, as a point of `collapsed()`; a collapsed point as it is."""
        if self.is_collapsed:
            return point
        sums = point.H.new_zeros(*point.H.shape[:-1], self.num_classes).index_add_(-1, self.columns.labels, point.H)
        return Point(point.W, sums / self._sizes.sqrt(), point.b)

    @beside
    def expand(self, point: Point) -> Point:
        """A point of `collapsed()` as a point of this model: the inverse of `collapse`."""
        if self.is_collapsed:
            return point
        return Point(point.W, (point.H / self._sizes.sqrt())[..., self.columns.labels], point.b)

    @beside
    def spread(self, point: Point) -> float:
        """The distance of the features from their class means, relative to their norm; 0 at every critical point."""
        return float((point.H - self.expand(self.collapse(point)).H).norm() / point.H.norm().clamp(min=1e-300))

    # -- points -------------------------------------------------------------------------------------------

    def zero_point(self) -> Point:
        """All zeros: a critical point if the model has no bias or is balanced."""
        return self.point(torch.zeros(self.size, dtype=torch.float64, device=self.device))

    def random_point(self, seed: int = 0, scale: float = 1.0) -> Point:
        """Independent standard normal entries times `scale`; the same seed gives the same point.

        Features >= 0 are the absolute values.
        """
        check_real(scale, "scale")
        return self.point(self.random_vectors(1, seed, scale)[0])

    def random_vectors(self, count: int, seed: int, scale: float) -> Tensor:
        """(count, n) vectors of random points."""
        generator = torch.Generator("cpu").manual_seed(seed)
        vectors = scale * torch.randn(count, self.size, generator=generator, dtype=torch.float64, device="cpu").to(
            self.device
        )
        if self.nonnegative:
            self.point(vectors).H.abs_()  # a view
        return vectors

    def project(self, point: Point) -> Point:
        """The nearest point of the model: negative features become 0 where they must not be negative."""
        return Point(point.W, point.H.clamp(min=0), point.b) if self.nonnegative else point

    def projected(self, point: Point, gradient: Point) -> Point:
        """The part of a gradient that descent can follow: without that of features at 0 that would become negative."""
        if not self.nonnegative:
            return gradient
        held = (point.H <= 0) & (gradient.H > 0)
        return Point(gradient.W, torch.where(held, 0.0, gradient.H), gradient.b)

    def point(self, vector: Tensor) -> Point:
        """The point of an (..., n) vector of W, H and b: the inverse of `Point.vector`."""
        K, d, count = self.num_classes, self.feature_dim, self.num_columns
        W, H, b = vector.split([K * d, d * count, K if self.bias else 0], dim=-1)
        return Point(W.unflatten(-1, (K, d)), H.unflatten(-1, (d, count)), b if self.bias else None)

    def check_point(self, point: Point) -> None:
        """Raise unless W, H, b fit this model, are float64 and finite.

        Raises:
            InputError: which part, what was expected and what was given.
        """
        K, d = self.num_classes, self.feature_dim
        check_parts(point, {"W": (K, d), "H": (d, self.num_columns), "b": (K,) if self.bias else None})
        if self.nonnegative:
            check_signs(point)

    # -- the objective and its derivatives, over any leading dimensions -----------------------------------

    @beside
    def scaled(self, matrix: Tensor) -> Tensor:
        """The columns divided by their length scales, which are 1 unless the model is collapsed."""
        return matrix / self.columns.roots if self.is_collapsed else matrix

    @beside
    def logits(self, point: Point) -> Tensor:
        """(..., K, M) `W H + b`."""
        product = self.scaled(point.W @ point.H)
        return product if point.b is None else product + point.b.unsqueeze(-1)

    @beside
    def value(self, point: Point) -> Tensor:
        """(...) the objective f."""
        return self.value_at(point, self.logits(point))

    @beside
    def value_at(self, point: Point, logits: Tensor) -> Tensor:
        """(...) the objective f, given the logits of the point."""
        fit = (self.loss.value(logits, self.targets) * self.columns.weights).sum(-1)
        decay = self.weight_decay * point.W.square().sum((-1, -2)) + self.feature_decay * point.H.square().sum((-1, -2))
        if point.b is not None:
            decay = decay + self.bias_decay * point.b.square().sum(-1)
        return fit + decay / 2

    @beside
    def slopes(self, point: Point) -> Tensor:
        """(..., K, M) the weighted slopes `G = w_i dl/dz_i`, the gradient of g; `(P - Y)/N` for the full model."""
        return self.loss.gradient(self.logits(point), self.targets) * self.columns.weights

    @beside
    def gradient(self, point: Point) -> Point:
        """The gradient of f, as a point."""
        return self.gradient_at(point, self.slopes(point))

    @beside
    def gradient_at(self, point: Point, slopes: Tensor) -> Point:
        """The gradient of f, given the weighted slopes of the point."""
        scaled = self.scaled(slopes)
        W = scaled @ point.H.mT + self.weight_decay * point.W
        H = point.W.mT @ scaled + self.feature_decay * point.H
        return Point(W, H, None if point.b is None else slopes.sum(-1) + self.bias_decay * point.b)

    @beside
    def value_and_gradient(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """`f` (...) and its gradient (..., n) at (..., n) vectors."""
        point = self.point(vector)
        logits = self.logits(point)
        slopes = self.loss.gradient(logits, self.targets) * self.columns.weights
        return self.value_at(point, logits), self.gradient_at(point, slopes).vector()

    @beside
    def hessian_product(self, point: Point, direction: Point) -> Point:
        """The Hessian of f at a point times a direction, as a point."""
        return self.hessian_at(point)(direction)

    @beside
    def hessian_at(self, point: Point) -> Callable[[Point], Point]:
        """`hessian_product` at a point as a function of the direction: what it needs of the point is computed once."""
        logits = self.logits(point)
        slopes = self.scaled(self.loss.gradient(logits, self.targets) * self.columns.weights)
        curvature = self.loss.curvature_at(logits, self.targets)

        def product(direction: Point) -> Point:
            moved = self.scaled(direction.W @ point.H + point.W @ direction.H)
            if direction.b is not None:
                moved = moved + direction.b.unsqueeze(-1)
            bent = curvature(moved) * self.columns.weights
            scaled = self.scaled(bent)
            W = scaled @ point.H.mT + slopes @ direction.H.mT + self.weight_decay * direction.W
            H = point.W.mT @ scaled + direction.W.mT @ slopes + self.feature_decay * direction.H
            return Point(W, H, None if direction.b is None else bent.sum(-1) + self.bias_decay * direction.b)

        return product

    @beside
    def objective(self, point: Point) -> float:
        """`f` at a point, after checking the point."""
        self.check_point(point)
        return float(self.value(point))

    @torch.no_grad()
    @beside
    def measures(self, point: Point) -> dict[str, float]:
        """The collapse measures of a point (`neuralcollapse.measures`); NaN where undefined, without a warning."""
        self.check_point(point)
        if self.is_collapsed:
            moments = ClassMoments.from_means(
                torch.tensor(self.counts, device=self.device), (point.H / self.columns.roots).T
            )
        else:
            moments = ClassMoments.from_batch(point.H.T, self.columns.labels, self.num_classes)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NeuralCollapseWarning)
            return measures(moments, point.W, point.b)


def check_model(model: object) -> None:
    """Raise unless this is a model."""
    if not isinstance(model, Model):
        raise InputError(f"expected an UnconstrainedFeatureModel, got {type(model).__name__}: make one first")
