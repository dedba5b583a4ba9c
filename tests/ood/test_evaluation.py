"""AUROC, AUPR and FPR95 against scikit-learn and all pairs; what is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

import neuralcollapse as nc
from neuralcollapse.ood.evaluation import MEASURES
from tests.ood import oracle

tied = st.lists(st.integers(-3, 3), min_size=1, max_size=30)


@given(tied, tied)
def test_all_agree_with_scikit_learn_with_ties(inside, outside):
    found = nc.ood.evaluate(inside, outside)
    labels, values = np.r_[np.ones(len(inside)), np.zeros(len(outside))], np.r_[inside, outside].astype(float)
    fpr, tpr, _ = roc_curve(labels, values, drop_intermediate=False)
    assert found["auroc"] == pytest.approx(roc_auc_score(labels, values), abs=1e-12)
    assert found["auroc"] == pytest.approx(oracle.auroc(inside, outside), abs=1e-12)
    assert found["aupr_in"] == pytest.approx(average_precision_score(labels, values), abs=1e-12)
    assert found["aupr_out"] == pytest.approx(average_precision_score(1 - labels, -values), abs=1e-12)
    assert found["fpr95"] == pytest.approx(fpr[np.argmax(tpr >= 0.95)], abs=1e-12)


def test_many_scores_without_ties_agree_too():
    generator = np.random.default_rng(0)
    inside, outside = generator.normal(1, 1, 3000), generator.normal(0, 2, 2000)
    found = nc.ood.evaluate(torch.tensor(inside), torch.tensor(outside))
    labels, values = np.r_[np.ones(3000), np.zeros(2000)], np.r_[inside, outside]
    assert found["auroc"] == pytest.approx(roc_auc_score(labels, values), abs=1e-12)
    assert found["aupr_out"] == pytest.approx(average_precision_score(1 - labels, -values), abs=1e-12)


def test_the_standard_error_is_that_of_the_auroc_over_draws():
    generator = np.random.default_rng(0)
    draws = [nc.ood.evaluate(generator.normal(1, 1, 80), generator.normal(0, 1, 50)) for _ in range(400)]
    spread = np.std([draw["auroc"] for draw in draws])
    assert np.mean([draw["auroc_error"] for draw in draws]) == pytest.approx(spread, rel=0.1)


@pytest.mark.parametrize("move", [lambda s: 3 * s - 7, np.exp], ids=["line", "exponential"])
def test_what_keeps_the_order_changes_nothing(move):
    generator = np.random.default_rng(0)
    inside, outside = generator.normal(1, 1, 40), generator.normal(0, 1, 30)
    assert nc.ood.evaluate(move(inside), move(outside)) == nc.ood.evaluate(inside, outside)


def test_named_scores_are_evaluated_each():
    found = nc.ood.evaluate({"a": [1.0, 2.0], "b": [0.0, 1.0]}, {"a": [0.0], "b": [2.0]})
    assert found["a"]["auroc"] == 1.0
    assert found["b"]["auroc"] == 0.0
    assert set(found["a"]) == set(MEASURES)


@pytest.mark.parametrize(
    ("inside", "outside", "match"),
    [
        ([1.0, float("nan")], [1.0], "finite inside scores, got 1 NaN"),
        ([1.0], [float("inf")], "finite outside scores"),
        ({"vim": [1.0]}, {"vim": [float("nan")]}, "'vim'"),
        ({"vim": [1.0]}, {"msp": [1.0]}, "same scores inside and outside, got msp, vim"),
        ({"vim": [1.0]}, [1.0], "one of each"),
        ([], [1.0], "at least one input"),
        ([[1.0]], [1.0], "as \\(N,\\) numbers"),
        (["a"], [1.0], "as \\(N,\\) numbers"),
        ([None], [1.0], "as \\(N,\\) numbers"),
        ([True], [1.0], "as \\(N,\\) numbers"),
        (3.0, [1.0], "as \\(N,\\) numbers"),
    ],
)
def test_what_has_no_order_is_refused_by_name(inside, outside, match):
    with pytest.raises(nc.InputError, match=match):
        nc.ood.evaluate(inside, outside)


def test_bfloat16_scores_are_taken():
    assert nc.ood.evaluate(torch.tensor([2.0]).bfloat16(), torch.tensor([1.0]).bfloat16())["auroc"] == 1.0
