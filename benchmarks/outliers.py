"""Outlier scores beside the bare products of the same features: those of a d x d matrix, and the logits."""

from __future__ import annotations

import torch

import neuralcollapse as nc
from harness import Row, Table

EXACT = 1e-4  # the most that float32 scores may differ from those in float64, of their largest


def outliers(quick: bool) -> Table:
    """All scores of features in memory."""
    count, dim, num_classes = (2_000, 64, 10) if quick else (100_000, 512, 100)
    torch.manual_seed(0)
    labels = torch.arange(20 * dim) % num_classes
    means = torch.randn(num_classes, dim)
    training = (means[labels] + torch.randn(len(labels), dim)).relu()
    weight, bias, square = torch.randn(num_classes, dim) / dim**0.5, torch.randn(num_classes), torch.randn(dim, dim)
    moments = nc.ClassMoments.from_batch(training, labels, num_classes)
    scorer = nc.OODScorer.from_moments(moments, weight, bias, features=training)
    by_head = nc.OODScorer.from_moments(moments, weight, bias, scores=["nci", "fdbd", "energy", "max_logit", "msp"])
    features = torch.randn(count, dim).relu()

    def check(found: dict[str, torch.Tensor]) -> str:
        exact = scorer.score(features[:500].double())
        worst = max(
            float((found[name][:500].double() - exact[name]).abs().max() / exact[name].abs().max()) for name in exact
        )
        if not worst < EXACT:
            raise ValueError(f"the scores are {worst:.1e} off those in float64")
        return f"{len(exact)} scores, within {worst:.0e} of float64"

    return Table(
        f"Outlier scores: {count:,} features, d={dim}, K={num_classes}, float32",
        [
            Row(f"bare float32 product ({count:,} x {dim}) ({dim} x {dim})", lambda: features @ square),
            Row(
                f"bare float32 product ({count:,} x {dim}) ({dim} x {num_classes}): the logits",
                lambda: features @ weight.T,
            ),
            Row("`OODScorer.score`, all scores", lambda: scorer.score(features), "at most 3", check),
            Row("the same, the scores without a covariance", lambda: by_head.score(features)),
        ],
    )
