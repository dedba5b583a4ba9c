"""Brute-force float64 twins of the moments and the measures, one formula each, and data to test them on.

Nothing here imports the package: samples are looped over one by one, K x K matrices are written out.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def moments(features: Array, labels: Array, num_classes: int) -> SimpleNamespace:
    features = np.asarray(features, dtype=np.float64)
    dim = features.shape[1]
    counts = np.array([sum(int(label) == k for label in labels) for k in range(num_classes)])
    means = np.zeros((num_classes, dim))
    for k in np.flatnonzero(counts):
        means[k] = features[labels == k].mean(0)
    spreads = np.zeros(num_classes)
    scatter = np.zeros((dim, dim))
    for sample, label in zip(features, labels, strict=True):
        centred = sample - means[label]
        spreads[label] += centred @ centred
        scatter += np.outer(centred, centred)
    global_mean = features.mean(0) if len(features) else np.zeros(dim)
    return SimpleNamespace(counts=counts, means=means, spreads=spreads, scatter=scatter, global_mean=global_mean)


def measures(
    features: Array, labels: Array, num_classes: int, weight: Array | None = None, bias: Array | None = None
) -> dict[str, float]:
    """Every measure, over the classes seen."""
    labels = np.asarray(labels)
    seen = [k for k in range(num_classes) if k in labels]
    given = moments(features, np.array([seen.index(label) for label in labels]), len(seen))
    centred = given.means - given.global_mean
    within = given.scatter / len(labels)
    values = {
        "nc1": np.trace(within @ _between_pseudo_inverse(centred)) / len(seen),
        "nc1_quotient": np.trace(within) / sum(row @ row / len(seen) for row in centred),
        "nc1_cdnv": _cdnv(given),
        "nc2_means": _distance_to_etf(centred @ centred.T),
        "equinorm_means": _equinorm(centred),
        "equiangularity_means": np.std(_cosines(centred)),
        "max_equiangularity_means": _max_equiangularity(centred),
    }
    if weight is not None:
        rows = np.asarray(weight, dtype=np.float64)[seen]
        shift = np.zeros(len(seen)) if bias is None else np.asarray(bias, dtype=np.float64)[seen]
        logits = np.array([row @ given.global_mean + b for row, b in zip(rows, shift, strict=True)])
        values |= {
            "nc2": _distance_to_etf(rows @ rows.T),
            "nc3": _distance_to_etf(rows @ centred.T),
            "nc3_distance": np.linalg.norm(rows / np.linalg.norm(rows) - centred / np.linalg.norm(centred)),
            "nc0": np.trace(np.ones((len(seen), len(seen))) @ rows @ rows.T) / (len(seen) * np.trace(rows @ rows.T)),
            "nc_bias": np.linalg.norm(logits),
            "nc_bias_centered": np.linalg.norm((np.eye(len(seen)) - 1 / len(seen)) @ logits),
            "equinorm_weights": _equinorm(rows),
            "equiangularity_weights": np.std(_cosines(rows)),
            "max_equiangularity_weights": _max_equiangularity(rows),
        }
    return {name: float(value) for name, value in values.items()}


def nc1(features: Array, labels: Array, num_classes: int) -> float:
    """Of data in which every class is seen."""
    given = moments(features, labels, num_classes)
    between = _between_pseudo_inverse(given.means - given.global_mean)
    return float(np.trace(given.scatter / len(labels) @ between) / num_classes)


def nc4_disagreements(features: Array, predicted: Array, means: Array, counts: Array) -> int:
    count = 0
    for sample, label in zip(np.asarray(features, dtype=np.float64), predicted, strict=True):
        distances = [np.linalg.norm(sample - mean) if n else np.inf for mean, n in zip(means, counts, strict=True)]
        count += int(np.argmin(distances) != label)
    return count


def predictions(features: Array, weight: Array, bias: Array) -> Array:
    return np.array([np.argmax(weight.astype(np.float64) @ sample + bias) for sample in features.astype(np.float64)])


def _between_pseudo_inverse(centred: Array) -> Array:
    """S_B^+ for S_B = centred' centred / K, which has rank K-1 at most and less when means depend on each other."""
    num_classes, dim = centred.shape
    _, singular, directions = np.linalg.svd(centred)
    inverse = np.zeros((dim, dim))
    for value, direction in zip(singular[: num_classes - 1], directions, strict=False):
        if value > 1e-9 * singular[0]:
            inverse += np.outer(direction, direction) / (value**2 / num_classes)
    return inverse


def _cdnv(given: SimpleNamespace) -> float:
    variances = given.spreads / given.counts
    ratios = [
        (variances[i] + variances[j]) / (2 * np.sum((given.means[i] - given.means[j]) ** 2))
        for i, j in itertools.permutations(range(len(given.counts)), 2)
    ]
    return float(np.mean(ratios))


def _distance_to_etf(product: Array) -> float:
    count = len(product)
    etf = (np.eye(count) - np.ones((count, count)) / count) / np.sqrt(count - 1)
    return float(np.linalg.norm(product / np.linalg.norm(product) - etf))


def _equinorm(vectors: Array) -> float:
    lengths = [np.linalg.norm(vector) for vector in vectors]
    return float(np.std(lengths) / np.mean(lengths))


def _cosines(vectors: Array) -> list[float]:
    return [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in itertools.permutations(vectors, 2)]


def _max_equiangularity(vectors: Array) -> float:
    return float(np.mean([abs(cosine + 1 / (len(vectors) - 1)) for cosine in _cosines(vectors)]))


def split_and_merge(
    make: Callable[[Array, Array], Any], features: Array, labels: Array, cuts: Sequence[float], seed: int
) -> Any:
    """Shuffle the samples, cut them at `cuts` (shares of N), `make` each part, and merge the parts in any order."""
    order = random.Random(seed)
    count = len(labels)
    rows = np.array(order.sample(range(count), count), dtype=np.int64)
    edges = [0, *sorted(int(cut * count) for cut in cuts), count]
    parts = [make(features[rows[a:b]], labels[rows[a:b]]) for a, b in itertools.pairwise(edges)]
    while len(parts) > 1:
        left = parts.pop(order.randrange(len(parts)))
        right = parts.pop(order.randrange(len(parts)))
        parts.append(left.merge(right))
    return parts[0]


@dataclass(frozen=True)
class VectorCase:
    """Data by recipe, and the measures that were computed for it elsewhere."""

    num_classes: int
    dim: int
    counts: tuple[int, ...]
    noise: float
    offset: float
    seed: int
    expected: dict[str, float]  # "nc4" is a share of the samples

    def data(self) -> tuple[Array, Array, Array, Array]:
        """features (N, d), labels (N,), weight (K, d), bias (K,); float32 but for the labels."""
        rng = np.random.default_rng(self.seed)
        means = 10 * rng.standard_normal((self.num_classes, self.dim)) / np.sqrt(self.dim)
        labels = np.repeat(np.arange(self.num_classes), self.counts)
        features = means[labels] + self.noise * rng.standard_normal((len(labels), self.dim)) + self.offset
        weight = means + 0.1 * rng.standard_normal((self.num_classes, self.dim))
        bias = 0.1 * rng.standard_normal(self.num_classes)
        return features.astype(np.float32), labels, weight.astype(np.float32), bias.astype(np.float32)


def vector_cases() -> list[VectorCase]:
    return [
        VectorCase(
            num_classes=10,
            dim=64,
            counts=(50,) * 10,
            noise=1.0,
            offset=0.0,
            seed=0,
            expected={
                "nc1": 0.09905725908180432,
                "nc1_quotient": 0.6893399636507623,
                "nc1_cdnv": 0.31540268089968065,
                "nc2": 0.47230462011347457,
                "nc2_means": 0.3157234862229513,
                "nc3": 0.3467454397444053,
                "nc3_distance": 0.34910474771507005,
                "nc_bias": 35.9528676227409,
                "nc_bias_centered": 15.485432227729008,
                "equinorm_means": 0.053136757576039244,
                "equinorm_weights": 0.067306388018722,
                "equiangularity_means": 0.1098158277081023,
                "max_equiangularity_means": 0.08913857644161917,
                "nc4": 0.0,
            },
        ),
        VectorCase(
            num_classes=10,
            dim=64,
            counts=(50,) * 10,
            noise=0.001,
            offset=100.0,
            seed=1,
            expected={
                "nc1": 1.0869485400685584e-07,
                "nc1_quotient": 7.509036971020102e-07,
                "nc1_cdnv": 3.4624990254512815e-07,
                "nc2": 0.5081687157381101,
                "nc2_means": 0.3685361992328106,
                "nc3": 0.3850397842469988,
                "nc3_distance": 0.34621126543976594,
                "nc_bias": 2859.083773627965,
                "nc_bias_centered": 2791.916390433195,
                "equinorm_means": 0.06933086735831018,
                "equinorm_weights": 0.08550788189257887,
                "equiangularity_means": 0.12548472391541776,
                "max_equiangularity_means": 0.10358339092011867,
                "nc4": 0.8,
            },
        ),
        VectorCase(
            num_classes=3,
            dim=5,
            counts=(7, 40, 90),
            noise=0.5,
            offset=1.0,
            seed=2,
            expected={
                "nc1": 0.037313298740934815,
                "nc1_quotient": 0.020222591264360282,
                "nc1_cdnv": 0.010499791541853412,
                "nc2": 1.0060160843066615,
                "nc2_means": 0.8297348929594148,
                "nc3": 0.8846820476612953,
                "nc3_distance": 0.5669652587240296,
                "nc_bias": 55.398309508141885,
                "nc_bias_centered": 9.315285678566259,
                "equinorm_means": 0.5877328500884245,
                "equinorm_weights": 0.38833285910980286,
                "equiangularity_means": 0.8124157062342823,
                "max_equiangularity_means": 0.7193844851651039,
                "nc4": 0.656934306569343,
            },
        ),
        VectorCase(
            num_classes=2,
            dim=8,
            counts=(20, 20),
            noise=0.1,
            offset=0.0,
            seed=3,
            expected={
                "nc1": 3.770568803793852e-05,
                "nc1_quotient": 0.0005406679703598525,
                "nc1_cdnv": 0.00013516699258996317,
                "nc2": 0.3094887044447441,
                "nc2_means": 1.5700924586837752e-16,
                "nc3": 0.047541311937226445,
                "nc3_distance": 0.5052343508375488,
                "nc_bias": 63.943061647258936,
                "nc_bias_centered": 8.61078792808326,
                "equinorm_means": 1.0666867181327856e-16,
                "equinorm_weights": 0.03743022308717088,
                "equiangularity_means": 0.0,
                "max_equiangularity_means": 1.1102230246251565e-16,
                "nc4": 0.0,
            },
        ),
        VectorCase(
            num_classes=12,
            dim=6,
            counts=(15,) * 12,
            noise=0.3,
            offset=0.0,
            seed=4,
            expected={
                "nc1": 0.012148763330176851,
                "nc1_quotient": 0.005987867152263924,
                "nc1_cdnv": 0.004971419184650572,
                "nc2": 0.9705348464313767,
                "nc2_means": 0.9342600424578603,
                "nc3": 0.9512053768811798,
                "nc3_distance": 0.2711966619891782,
                "nc_bias": 46.95754549859017,
                "nc_bias_centered": 40.30148599226385,
                "equinorm_means": 0.3268770667424847,
                "equinorm_weights": 0.29808229733291985,
                "equiangularity_means": 0.4290860697189899,
                "max_equiangularity_means": 0.36008470414081395,
                "nc4": 0.24444444444444444,
            },
        ),
    ]
