"""Outlier scores from the moments of a network's features and its head, and how well they tell outliers."""

from neuralcollapse.ood.evaluation import evaluate
from neuralcollapse.ood.options import SCORES
from neuralcollapse.ood.scorer import OODScorer

__all__ = ["SCORES", "OODScorer", "evaluate"]
