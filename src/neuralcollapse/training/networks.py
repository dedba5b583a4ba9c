"""Networks whose last layer is `.fc`, learned or fixed to a simplex ETF."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from neuralcollapse._errors import InputError, nearest
from neuralcollapse.classifier import ETFClassifier


class MLP(nn.Module):
    """Fully connected layers, each with batch normalisation and ReLU, and a classifier `fc`.

    Args:
        num_classes: K.
        feature_dim: d, the units of the last layer before `fc`.
        in_features: inputs a sample, once flattened.
        width: units of the other layers.
        depth: layers before `fc`.
    """

    def __init__(
        self, num_classes: int, feature_dim: int = 256, *, in_features: int = 64, width: int = 512, depth: int = 3
    ) -> None:
        super().__init__()
        sizes = [in_features, *[width] * (depth - 1), feature_dim]
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.fc: nn.Module = nn.Linear(feature_dim, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """(N, ...) images to (N, K) logits."""
        return self.fc(self.features(images))


_NETWORKS: dict[str, Callable[..., nn.Module]] = {"mlp": MLP}


def build_network(
    name: str, num_classes: int, feature_dim: int | None = None, classifier: str = "learned", **options: Any
) -> nn.Module:
    """A network by name, with its classifier at `.fc`.

    Args:
        name: "mlp".
        num_classes: K.
        feature_dim: d of the features that `.fc` sees; the network's own when not given.
        classifier: "learned" (nn.Linear) or "etf" (ETFClassifier with a bias, d >= K-1).
        options: of the network; for the MLP in_features, width and depth.

    Raises:
        InputError: an unknown network (the nearest name is offered) or classifier, or d < K-1 for "etf".
    """
    if name not in _NETWORKS:
        raise InputError(f"no network {name!r}{nearest(name, _NETWORKS)}; there are: {', '.join(_NETWORKS)}")
    if classifier not in ("learned", "etf"):
        raise InputError(f"expected classifier 'learned' or 'etf', got {classifier!r}")
    if feature_dim is not None:
        options["feature_dim"] = feature_dim
    network = _NETWORKS[name](num_classes, **options)
    if classifier == "etf":
        learned = network.fc
        assert isinstance(learned, nn.Linear)
        network.fc = ETFClassifier(learned.in_features, num_classes)
    return network
