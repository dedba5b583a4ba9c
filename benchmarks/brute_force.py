"""The measures of `architectures.py` by plain formulas in float64; nothing here imports the package."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def moments(features: Array, labels: NDArray[Any]) -> tuple[Array, Array, Array]:
    """Class means (K, d), within-class scatter (d, d) / N, global mean."""
    means = np.stack([features[labels == k].mean(0) for k in np.unique(labels)])
    centred = np.concatenate([features[labels == k] - features[labels == k].mean(0) for k in np.unique(labels)])
    return means, centred.T @ centred / len(features), features.mean(0)


def geometry(features: Array, labels: NDArray[Any], eps: float) -> dict[str, float]:
    """Measures of the features alone; `eps` is that of the type that they came in."""
    means, within, center = moments(features, labels)
    deviations = means - center
    count = len(means)
    _, values, right = np.linalg.svd(deviations, full_matrices=False)
    nc1 = 0.0
    for value, direction in list(zip(values, right, strict=True))[: count - 1]:
        between, inside = value**2 / count, direction @ within @ direction
        if between + inside > eps**2 * (features**2).sum(1).mean():
            nc1 += inside / between / count
    return {
        "nc1": nc1,
        "nc1_quotient": np.trace(within) / ((deviations**2).sum() / count),
        "nc2_means": to_etf(deviations @ deviations.T),
        "equinorm_means": spread(deviations),
    }


def with_head(features: Array, labels: NDArray[Any], weight: Array, bias: Array | None) -> dict[str, float]:
    means, _, center = moments(features, labels)
    deviations = means - center
    rows = weight[np.unique(labels)]
    shift = np.zeros(len(rows)) if bias is None else bias[np.unique(labels)]
    middle = rows @ center + shift
    return {
        "nc2": to_etf(rows @ rows.T),
        "nc3": to_etf(rows @ deviations.T),
        "nc3_distance": float(np.linalg.norm(rows / np.linalg.norm(rows) - deviations / np.linalg.norm(deviations))),
        "nc0": float((rows.sum(0) ** 2).sum() / (len(rows) * (rows**2).sum())),
        "nc_bias": float(np.linalg.norm(middle)),
        "nc_bias_centered": float(np.linalg.norm(middle - middle.mean())),
        "equinorm_weights": spread(rows),
    }


def predictions(features: Array, labels: NDArray[Any], logits: Array) -> dict[str, float]:
    """NC4, accuracy and loss of the logits that the model returned."""
    means, _, _ = moments(features, labels)
    predicted = logits.argmax(1)
    near = ((features[:, None] - means[None]) ** 2).sum(2).argmin(1)
    top = logits.max(1)
    losses = np.log(np.exp(logits - top[:, None]).sum(1)) + top - logits[np.arange(len(labels)), labels]
    return {
        "nc4": float((np.unique(labels)[near] != predicted).mean()),
        "accuracy": float((predicted == labels).mean()),
        "loss": float(losses.mean()),
    }


def to_etf(product: Array) -> float:
    count = len(product)
    etf = (np.eye(count) - 1 / count) / np.sqrt(count - 1)
    return float(np.linalg.norm(product / np.linalg.norm(product) - etf))


def spread(vectors: Array) -> float:
    lengths = np.linalg.norm(vectors, axis=1)
    return float(lengths.std() / lengths.mean())
