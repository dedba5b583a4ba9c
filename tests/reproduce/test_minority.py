import math
from itertools import combinations

import numpy as np
import pytest
import torch

from neuralcollapse.records import Geometry, Record
from neuralcollapse.reproduce.minority import cosine_at_minimum, minority_cosine, smallest
from neuralcollapse.runs import Run

RECORD = Record(1, 0.0, 0.1, {"accuracy": 1.0})


def run(counts, weight=None, **config) -> Run:
    geometries = []
    if weight is not None:
        first = Geometry(0, weight, weight[0], np.ones_like(weight), weight[:, 0])
        geometries = [first, Geometry(1, weight, weight[0], weight, weight[:, 0])]
    values = {"weight_decay": 0.001, "feature_decay": 0.001, "bias_decay": 0.5, "loss": "cross_entropy"} | config
    return Run("run", values, {"class_counts": counts}, [RECORD], geometries)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [([5, 2, 2], [1, 2]), ([2, 5, 2], [0, 2]), ([5, 4, 1], [2]), ([3, 3, 3], []), ([], [])],
)
def test_the_smallest_classes_are_those_with_the_fewest_samples(counts, expected):
    assert smallest(run(counts)) == expected


def test_the_cosine_is_the_mean_over_pairs_of_the_last_rows():
    weight = np.array([[9.0, 9.0], [2.0, 0.0], [3.0, 3.0], [0.0, 5.0]])  # between the last three: 45, 90, 45 degrees
    assert minority_cosine(run([9, 1, 1, 1], weight)) == pytest.approx(2 * math.sqrt(0.5) / 3)


def test_fewer_than_two_small_classes_or_no_geometry_have_no_cosine():
    assert minority_cosine(run([9, 9, 1], np.eye(3))) is None
    assert minority_cosine(run([9, 9, 9], np.eye(3))) is None
    assert minority_cosine(run([9, 1, 1])) is None


def test_rows_of_zero_point_nowhere():
    assert math.isnan(minority_cosine(run([9, 1, 1], np.diag([1.0, 1.0, 0.0]))))


@pytest.mark.parametrize(("few", "expected"), [(1, 1.0), (100, -0.079)])
def test_the_exact_minimum_has_the_known_cosines(few, expected):
    assert cosine_at_minimum(run([200] * 5 + [few] * 5)) == pytest.approx(expected, abs=5e-4)


def test_the_exact_minimum_is_what_descent_finds():
    counts, lam, bias_decay = [6, 6, 2, 2], 0.01, 0.1
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(4, 4, generator=generator, dtype=torch.float64).requires_grad_()
    H = torch.randn(sum(counts), 4, generator=generator, dtype=torch.float64).requires_grad_()
    b = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    labels = torch.repeat_interleave(torch.arange(4), torch.tensor(counts))
    options = {"max_iter": 5000, "tolerance_grad": 1e-11, "tolerance_change": 0, "line_search_fn": "strong_wolfe"}
    optimizer = torch.optim.LBFGS([W, H, b], **options)

    def closure():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(H @ W.T + b, labels)
        loss = loss + (lam * W.square().sum() + lam * H.square().sum() + bias_decay * b.square().sum()) / 2
        loss.backward()
        return loss

    optimizer.step(closure)
    rows = torch.nn.functional.normalize(W.detach()[2:]).numpy()
    (found,) = [float(rows[i] @ rows[j]) for i, j in combinations(range(2), 2)]
    exact = cosine_at_minimum(run(counts, weight_decay=lam, feature_decay=lam, bias_decay=bias_decay))
    assert abs(exact) < 0.99
    assert exact == pytest.approx(found, abs=1e-4)


@pytest.mark.xfail(raises=ValueError, strict=True, reason="the minimum of an empty array: figure `minority`, ratio 1")
def test_equal_classes_have_no_cosine_at_the_minimum():
    assert math.isnan(cosine_at_minimum(run([5, 5, 5])))
