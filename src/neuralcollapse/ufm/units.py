"""Canonical units, in which equivalent models coincide: verdicts and tolerances are taken there.

    W -> a W, H -> H/a, lW -> lW/a^2, lH -> a^2 lH        the balance of the factors
    n_k -> s n_k, each feature repeated, lH -> lH/s       the number of samples

do not change the objective, so a model is determined by K, d, the shares `p_k = n_k/N`, `lW lH N`, lb and its loss. In
canonical units W and H have the same decay `mu sqrt(N)`, and the columns of a collapsed point are sqrt(p_k) times the
feature of the class. There gradients, distances and |grad g|_2 are the same for all equivalent models.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from neuralcollapse.ufm.model import Model
from neuralcollapse.ufm.points import Point


class Units:
    """The canonical units of a model (full, collapsed or canonical already).

    Attributes:
        model: the model.
        small: the canonical model: one column a class, equal decays.
        weight: the factor from the canonical W to the model's W.
        feature: the factor from the canonical H to the model's H.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        columns = (model if model.is_collapsed else model.collapsed()).columns
        samples = float(columns.roots[0] ** 2 / columns.weights[0])  # N; 1 if the units are canonical already
        self.weight = (model.feature_decay * samples / model.weight_decay) ** 0.25
        self.feature = math.sqrt(samples) / self.weight
        decay = model.mu * math.sqrt(samples)
        each_class = model.collapsed().columns
        canonical = replace(each_class, roots=each_class.weights.sqrt())
        self.small = model.with_columns(canonical, weight_decay=decay, feature_decay=decay)

    @property
    def mu(self) -> float:
        """`sqrt(lW lH N)`, the decay of the canonical W and H."""
        return self.small.weight_decay

    def scales(self) -> Tensor:
        """(n,) the factors from the entries of a canonical vector, with all columns, to those of the model's vector."""
        K, d, count = self.model.num_classes, self.model.feature_dim, self.model.num_columns
        sizes = torch.tensor([K * d, d * count, K if self.model.bias else 0], device="cpu")
        factors = torch.tensor([self.weight, self.feature, 1.0], dtype=torch.float64, device="cpu")
        return factors.repeat_interleave(sizes).to(self.model.device)

    def objective(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """The model's objective and gradient as functions of (..., n) canonical vectors with all columns."""
        scales = self.scales()
        values, gradients = self.model.value_and_gradient(vectors * scales)
        return values, gradients * scales

    def norm(self, point: Point) -> float:
        """The norm, in canonical units, of a point of the model."""
        return Point(point.W * (1 / self.weight), point.H * (1 / self.feature), point.b).norm()

    def gradient_norm(self, gradient: Point) -> float:
        """The norm, in canonical units, of a gradient of the model."""
        return Point(gradient.W * self.weight, gradient.H * self.feature, gradient.b).norm()

    def enter(self, point: Point) -> Point:
        """The class means of a point of the model as a point of `small`."""
        H = point.H if self.model.is_collapsed else self.model.collapse(point).H
        return Point(point.W / self.weight, H / self.feature, point.b)

    def leave(self, point: Point) -> Point:
        """A point (or a direction) of `small` as one of the model."""
        own = Point(point.W * self.weight, point.H * self.feature, point.b)
        return own if self.model.is_collapsed else self.model.expand(own)
