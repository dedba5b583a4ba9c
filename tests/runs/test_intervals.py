"""Intervals of a record's measures."""

import math

import pytest
from scipy import stats

from neuralcollapse.runs.records import Record, interval, student_95


@pytest.mark.parametrize("freedom", [3, 4, 9, 19, 100, 10_000])
def test_the_quantile_is_that_of_student(freedom):
    assert student_95(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=0.01 if freedom < 9 else 2e-4)


def test_there_is_none_without_groups():
    assert math.isnan(student_95(0))
    measures = {"nc1": 1.0, "nc1_corrected": 1.5, "nc1_error": 0.1}
    assert all(map(math.isnan, interval(Record(0, 0.0, 0.1, {}, {}, measures), "nc1")))
    low, high = interval(Record(0, 0.0, 0.1, {}, {}, measures | {"num_groups": 20.0}), "nc1")
    assert (low, high) == (pytest.approx(1.5 - 0.2093, abs=1e-4), pytest.approx(1.5 + 0.2093, abs=1e-4))
