import math

import numpy as np
import pytest

from neuralcollapse.reproduce.minority import cosine_at_minimum, minority_cosine, smallest
from neuralcollapse.runs.reading import Run
from neuralcollapse.runs.records import Geometry, Record


def run(counts, weight=None, head=None, **config):
    config = {"weight_decay": 0.001, "feature_decay": 0.001, "bias_decay": 0.5, "loss": "cross_entropy", **config}
    geometries = []
    if weight is not None:
        weight = np.asarray(weight, np.float32)
        geometries = [Geometry(1, weight, weight.mean(0), weight, np.zeros(len(weight)))]
    record = Record(1, 0.0, 0.1, {"accuracy": 1.0}, head=head or {})
    return Run("r", config, {"class_counts": counts}, [record], geometries)


def test_the_cosine_is_that_of_the_smallest_classes():
    rows = [[9, 9], [1, 0], [1, 1], [0, 1]]
    found = minority_cosine(run([50, 5, 5, 5], rows))
    assert found == pytest.approx((math.sqrt(0.5) + 0 + math.sqrt(0.5)) / 3)


def test_equal_classes_and_a_single_small_one_have_none():
    assert smallest(run([5, 5, 5])) == []
    assert minority_cosine(run([5, 5, 5], np.eye(3))) is None
    assert minority_cosine(run([5, 5, 2], np.eye(3))) is None
    assert minority_cosine(run([5, 2, 2])) is None
    assert math.isnan(cosine_at_minimum(run([5, 5, 5])))


def test_rows_of_zero_point_nowhere():
    assert math.isnan(minority_cosine(run([5, 2, 2], [[1, 0], [0, 0], [0, 1]])))


@pytest.mark.parametrize(("small", "cosine"), [(100, -0.079), (10, 0.112), (1, 1.0)])
def test_the_exact_minimiser_collapses_beyond_its_line(small, cosine):
    assert cosine_at_minimum(run([200] * 5 + [small] * 5)) == pytest.approx(cosine, abs=2e-3)


@pytest.mark.parametrize(("ratio", "cosine"), [(4, -0.025), (10, 0.083), (20, 0.213), (40, 0.422), (100, 1.0)])
def test_features_of_a_relu_have_a_minimiser_of_their_own(ratio, cosine):
    one = run(
        [200] * 5 + [200 // ratio] * 5,
        head={"nonnegative": 1.0},
        weight_decay=0.05,
        feature_decay=4.5e-5,
        bias_decay=1e4,  # as good as no bias
    )
    assert cosine_at_minimum(one) == pytest.approx(cosine, abs=1e-3)


def test_the_minimum_of_a_decay_on_all_parameters_is_that_of_the_decays_that_the_records_note():
    noted = {"weight_decay": 0.05, "feature_decay": 4.5e-5, "bias_decay": 0.5, "nonnegative": 1.0}
    own = {"weight_decay": 0.05, "feature_decay": 4.5e-5, "bias_decay": 0.5}
    counts = [200] * 5 + [20] * 5
    expected = cosine_at_minimum(run(counts, head=noted, decay_on="classifier", **own))
    assert cosine_at_minimum(run(counts, head=noted, decay_on="all", feature_decay=0.0)) == expected
    assert math.isnan(cosine_at_minimum(run(counts, decay_on="all", feature_decay=0.0)))


def test_a_head_without_a_bias_has_a_minimum_of_its_own():
    counts = [200] * 5 + [10] * 5
    with_bias = cosine_at_minimum(run(counts, bias_decay=0.001))
    without = cosine_at_minimum(run(counts, bias_decay=0.001, network_options={"bias": False}))
    assert without == pytest.approx(cosine_at_minimum(run(counts, bias_decay=1e6)), abs=1e-3)
    assert abs(without - with_bias) > 0.01
