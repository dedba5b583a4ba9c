"""One set of units for models that are the same: verdicts and tolerances are taken there.

    W -> a W, H -> H/a, lW -> lW/a^2, lH -> a^2 lH        the balance of the factors
    n_k -> s n_k, each feature repeated, lH -> lH/s       the number of samples

leave the objective as it is, so that a model is told by K, d, the shares p_k = n_k/N, lW lH N, lb and its loss. In
canonical units W and H weigh the same: both decays are mu sqrt(N), and a collapsed point has columns sqrt(p_k) times
the class's feature. There the gradient, distances and |grad g|_2 are the same for all such models.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from neuralcollapse.ufm.model import Model, Point, _Columns


class Units:
    """The canonical units of a model (full, collapsed or canonical already).

    Attributes:
        model: the model.
        small: the canonical model: one column a class, both decays equal.
        weight: W = weight times the canonical W.
        feature: H = feature times the canonical H.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        columns = model.columns
        samples = float(columns.roots[0] ** 2 / columns.weights[0])  # N; 1 where units are canonical already
        self.weight = (model.feature_decay * samples / model.weight_decay) ** 0.25
        self.feature = math.sqrt(samples) / self.weight
        self.small = copy.copy(model)
        self.small.weight_decay = self.small.feature_decay = model.mu * math.sqrt(samples)
        counts = torch.tensor(model.counts, dtype=torch.float64, device=model.device)
        shares = counts / counts.sum()
        labels = torch.arange(model.num_classes, device=model.device)
        self.small._set_columns(_Columns(labels, shares, shares.sqrt()))

    @property
    def mu(self) -> float:
        """Sqrt(lW lH N), the decay of canonical W and H."""
        return self.small.weight_decay

    def scales(self) -> Tensor:
        """(n,) what each number of a canonical vector is multiplied by to give one of the model's."""
        K, d, count = self.model.num_classes, self.model.feature_dim, len(self.model.columns.labels)
        sizes = torch.tensor([K * d, d * count, K if self.model.bias else 0])
        return (
            torch.tensor([self.weight, self.feature, 1.0], dtype=torch.float64)
            .repeat_interleave(sizes)
            .to(self.model.device)
        )

    def objective(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """The model's objective and gradient as functions of (..., n) canonical vectors, with all its columns."""
        scales = self.scales()
        values, gradients = self.model.value_and_gradient(vectors * scales)
        return values, gradients * scales

    def norm(self, point: Point) -> float:
        """The length of a point of the model in canonical units."""
        return Point(point.W * (1 / self.weight), point.H * (1 / self.feature), point.b).norm()

    def gradient_norm(self, gradient: Point) -> float:
        """The length, in canonical units, of a gradient of the model."""
        return Point(gradient.W * self.weight, gradient.H * self.feature, gradient.b).norm()

    def enter(self, point: Point) -> Point:
        """The class means of a point of the model as a point of `small`."""
        H = point.H if self.model.is_collapsed else self.model.collapse(point).H
        return Point(point.W / self.weight, H / self.feature, point.b)

    def leave(self, point: Point) -> Point:
        """A point (or a direction) of `small` as one of the model."""
        own = Point(point.W * self.weight, point.H * self.feature, point.b)
        return own if self.model.is_collapsed else self.model.expand(own)
