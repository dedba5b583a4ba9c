"""The moments and the measures, beside the bare matrix products and the loops of reference.py."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

import neuralcollapse as nc
import reference
from harness import Row, Table
from neuralcollapse.geometry.pairs import nc1_cdnv
from reference import agreement

# Means that are float32 sums of 5,000 numbers near 100 are off by more than the noise of 1e-3, so that NC1 of the loops
# in float32 may be ten times too large: their notes say how far off. The library's is asked to be exact.
OURS_WITHIN = 1e-7


def moments(quick: bool) -> Table:
    """One pass over features in memory."""
    count, dim, num_classes, batch = (1_000, 256, 10, 256) if quick else (50_000, 512, 10, 256)
    torch.manual_seed(0)
    labels = torch.randint(0, num_classes, (count,))
    features = (10 * torch.randn(num_classes, dim) / dim**0.5)[labels] + 1e-3 * torch.randn(count, dim) + 100
    batches = list(zip(features.split(batch), labels.split(batch), strict=True))
    means, counts = reference.class_means(batches, num_classes)

    def bare() -> None:
        for part, _ in batches:
            part.T @ part

    def update(dtype: torch.dtype | None = None) -> nc.ClassMoments:
        found = nc.ClassMoments.zeros(num_classes, dim)
        for part, part_labels in batches:
            found.update(part if dtype is None else part.to(dtype), part_labels)
        return found

    exact = nc.measures(update(torch.float64), pairwise=False)["nc1"]

    def check_loop(scatter: Tensor) -> str:
        return "NC1: " + agreement(reference.nc1_of(scatter, means, counts), exact)

    ours = "`ClassMoments.update`"
    at_least = f"at least 8x {ours}"
    return Table(
        f"Moments: N={count:,}, d={dim}, K={num_classes}, batches of {batch}, float32 features at offset 100, noise "
        "1e-3",
        [
            Row("bare float32 products H'H", bare, peak=True),
            Row(
                ours,
                update,
                "at most 1.25",
                lambda found: "NC1: " + agreement(nc.measures(found, pairwise=False)["nc1"], exact, OURS_WITHIN),
                peak=True,
            ),
            Row(
                "two passes: class means, then centred products; NC1 by `pinv`",
                partial(reference.nc1_in_two_passes, batches, num_classes),
                note=lambda value: "NC1: " + agreement(value, exact),
                beside=ours,
                peak=True,
            ),
            Row(
                "loop over samples, `torch.outer`",
                partial(reference.scatter_by_outer, batches, means),
                at_least,
                check_loop,
                beside=ours,
                rounds=5,
            ),
            Row(
                "the same, column times row",
                partial(reference.scatter_by_column_times_row, batches, means),
                at_least,
                check_loop,
                beside=ours,
                rounds=5,
            ),
        ],
        rounds=2 if quick else 9,
    )


# Number of classes, dimension, batch, samples; the share of the bare products that an update may take.
SIZES = [
    (10, 512, 256, 50_000, 1.25),
    (100, 512, 32, 20_000, 1.6),
    (1_000, 512, 256, 20_000, 1.6),
    (10, 1_024, 256, 8_192, 1.0),
    (10, 2_048, 256, 4_096, 1.0),
]


def updates(quick: bool) -> Table:
    """One pass at other sizes, each beside the bare products of its own batches."""
    rows = []
    for num_classes, dim, batch, count, most in SIZES:
        torch.manual_seed(0)
        labels = torch.randint(0, num_classes, (1_000 if quick else count,))
        features = torch.randn(num_classes, dim)[labels] + 1e-3 * torch.randn(len(labels), dim) + 100
        batches = list(zip(features.split(batch), labels.split(batch), strict=True))
        size = f"K={num_classes:,}, d={dim:,}, batch {batch}"
        bare = f"{size}: bare float32 products"
        rows += [
            Row(bare, partial(_products, batches)),
            Row(
                f"{size}: `update`, and a look at the means",
                partial(_looked_at, batches, num_classes, dim),
                f"{'below' if most == 1 else 'at most'} {most:g} of its products",
                beside=bare,
            ),
        ]
    return Table("Updates: float32 features at offset 100, noise 1e-3", rows, rounds=2 if quick else 9)


def _products(batches: list[tuple[Tensor, Tensor]]) -> None:
    for part, _ in batches:
        part.T @ part


def _looked_at(batches: list[tuple[Tensor, Tensor]], num_classes: int, dim: int) -> Tensor:
    found = nc.ClassMoments.zeros(num_classes, dim)
    for part, labels in batches:
        found.update(part, labels)
    return found.means


def measures(quick: bool) -> Table:
    """All measures of many classes."""
    num_classes, dim = (600, 64) if quick else (20_000, 1_024)
    found, weight = _many(num_classes, dim), torch.randn(num_classes, dim, dtype=torch.float64)
    bias = torch.zeros(num_classes, dtype=torch.float64)
    without = "`measures(..., pairwise=False)`"
    return Table(
        f"Measures: K={num_classes:,}, d={dim:,}",
        [
            Row("bare float64 products M'M and W'W", lambda: (found.means.T @ found.means, weight.T @ weight)),
            Row(
                without,
                lambda: nc.measures(found, weight, bias, pairwise=False),
                "at most 3, under 1.5 GB",
                peak=True,
            ),
            Row(
                "`measures(..., pairwise=10_000)`, a sample of pairs",
                lambda: nc.measures(found, weight, bias, pairwise=10_000),
                peak=True,
            ),
            Row(
                "`measures(...)`, every pair of classes three times",
                lambda: nc.measures(found, weight, bias),
                rounds=3,
            ),
        ],
        rounds=2 if quick else 7,
        remarks=lambda: [
            "The measures that look at every pair of classes (CDNV and the two `max_equiangularity`) cost K^2 d "
            "multiplications each, 20 times those of one product M'M here, and a mean of absolute values has no "
            "shortcut: they are the last row."
        ],
    )


def pairs(quick: bool) -> Table:
    """CDNV by tiles and by a loop."""
    num_classes, dim = (20, 64) if quick else (200, 1_024)
    found = _many(num_classes, dim)
    variances = found.spreads / found.counts
    exact = nc1_cdnv(found)
    tiles = "`nc1_cdnv`, by tiles"
    return Table(
        f"Pairs: CDNV over every pair of K={num_classes} classes, d={dim:,}",
        [
            Row("bare float64 product MM'", lambda: found.means @ found.means.T),
            Row(tiles, lambda: nc1_cdnv(found)),
            Row(
                "loop over pairs",
                lambda: reference.cdnv_by_pairs(found.means, variances),
                note=lambda value: agreement(value, exact, 1e-12),
                beside=tiles,
            ),
        ],
        rounds=2 if quick else 11,
    )


def _many(num_classes: int, dim: int) -> nc.ClassMoments:
    """Two samples of each class."""
    torch.manual_seed(0)
    found = nc.ClassMoments.zeros(num_classes, dim)
    for _ in range(2):
        for labels in torch.arange(num_classes).split(1_000):
            found.update(torch.randn(len(labels), dim), labels)
    return found
