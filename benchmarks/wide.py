"""The measures of fewer classes than dimensions, beside their two bare products."""

from __future__ import annotations

import torch

import neuralcollapse as nc
from harness import Row, Table


def wide(quick: bool) -> Table:
    """All measures of classes whose products make K x K matrices, without those of pairs."""
    num_classes, dim = (60, 128) if quick else (1_000, 2_048)
    torch.manual_seed(0)
    found = nc.ClassMoments.zeros(num_classes, dim)
    for _ in range(4):
        labels = torch.randint(num_classes, (4 * num_classes,))
        found.update(torch.randn(num_classes, dim)[labels] + torch.randn(len(labels), dim), labels)
    means, weight, bias = found.means, torch.randn(num_classes, dim), torch.zeros(num_classes)
    exact = weight.double()
    return Table(
        f"Measures: K={num_classes:,}, d={dim:,}",
        [
            Row("bare float64 products M'M and W'W", lambda: (means.T @ means, exact.T @ exact)),
            Row(
                "`measures(..., pairwise=False)`",
                lambda: nc.measures(found, weight, bias, pairwise=False),
                "at most 2",
                peak=True,
            ),
            Row("`measures(...)`", lambda: nc.measures(found, weight, bias), rounds=5),
        ],
        rounds=2 if quick else 9,
    )
