"""When collapse begins, and when a number gets no better, from records made by hand."""

import math

import pytest

import neuralcollapse as nc
from neuralcollapse.runs.events import Patience, StopRule, Watch, collapse_begun, event_lines, stopped
from tests.helpers import made_record

NAN = math.nan


def at(epoch, accuracy=1.0, nc1=1.0, **more):
    return made_record(epoch, train={"accuracy": accuracy, "loss": 1.0}, nc1=nc1, **more)


def series(values):
    return [at(epoch, nc1=x) for epoch, x in enumerate(values)]


# Collapse begins


def test_a_network_that_rests_does_not_begin_to_collapse():
    assert collapse_begun([at(0, nc1=0.02), at(1, nc1=0.02 * (1 - 1e-6)), at(2, nc1=0.0199)]).epoch == 2


@pytest.mark.parametrize(
    ("accuracies", "values", "expected"),
    [
        ([0.1, 0.9, 1.0, 1.0], [3, 2, 1, 0.5], 2),
        ([0.1, 0.9989, 0.999, 1.0], [3, 2, 1, 0.5], 2),  # from 0.999 on
        ([0.1, 1.0, 1.0, 1.0], [1, 2, 3, 2], 3),  # fitted, but NC1 rises at first
        ([1.0, 1.0], [3, 2], 1),  # fitted before the first record: the next one counts
        ([1.0], [0.001], None),
        ([0.1, 0.5, 0.9], [3, 2, 1], None),
        ([1.0, 1.0, 1.0], [1, 1, 1], None),
        ([0.1, 1.0, 1.0, 1.0], [3, NAN, 1, 0.5], 3),  # nothing is known of the fall to an undefined value, or from it
        ([0.1, NAN, NAN], [3, 2, 1], None),
        ([], [], None),
    ],
)
def test_collapse_begins_where_the_data_are_fitted_and_nc1_falls(accuracies, values, expected):
    records = [at(epoch, *both) for epoch, both in enumerate(zip(accuracies, values, strict=True))]
    found = collapse_begun(records)
    assert (found and found.epoch) == expected
    watch = Watch(None)
    events = {record.epoch: watch.see(record, "epoch") for record in records}
    assert [epoch for epoch, event in events.items() if event] == ([] if expected is None else [expected])


def test_the_event_says_what_happened_and_comes_once():
    watch = Watch(None)
    found = [watch.see(record, "epoch") for record in series([3, 2, 1])]
    assert found == [{}, {"collapse_begun": "train accuracy 1.0000, NC1 fell from 3 to 2"}, {}]
    line = event_lines(at(1, events=found[1]), "epoch")
    assert line == ["epoch 1: collapse has begun: train accuracy 1.0000, NC1 fell from 3 to 2"]


def test_a_watch_goes_on_from_records():
    records = series([3, 2, 1, 0.5])
    assert Watch(None, records[:3]).see(records[3], "epoch") == {}  # it has begun before
    assert set(Watch(None, records[:1]).see(records[1], "epoch")) == {"collapse_begun"}


# Stopping early


@pytest.mark.parametrize(
    ("options", "values", "expected"),
    [
        ({"patience": 2}, [3, 2, 1, 1, 1, 0], 4),
        ({"patience": 2}, [3, 2, 2, 1, 1, 0.5], None),
        ({"patience": 1}, [3, 3], 1),
        ({"patience": 2, "min_delta": 0.5}, [3, 2.8, 2.6, 0], 2),
        ({"patience": 2, "min_delta": 0.5}, [3, 2.8, 2.4, 2.3, 1.8], None),  # it is below the best by more than that
        ({"patience": 2, "mode": "rising"}, [1, 2, 1, 1.5, 9], 3),
        ({"patience": 2}, [3, NAN, NAN, 1], 2),
        ({"patience": 3}, [NAN, NAN, 3, 4, 5, 2], None),
        ({"patience": 2}, [NAN, NAN], 1),
    ],
)
def test_training_stops_after_so_many_measurements_without_a_better_value(options, values, expected):
    rule = StopRule("nc1", **options)
    patience, first = Patience(rule), None
    for record in series(values):
        patience.see(record)
        if patience.reason() and first is None:
            first = record.epoch
    assert first == expected
    assert bool(Patience(rule, series(values)).reason()) == bool(patience.reason())  # a function of the records


@pytest.mark.parametrize(
    ("key", "rising"),
    [
        ("nc1", False),
        ("train.loss", False),
        ("test.accuracy", True),
        ("ncc_accuracy", True),
        ("test.ncc_accuracy", True),
        ("layers.body.0.ncc_accuracy", True),
        ("test_layers.body.0.nc1", False),
        ("head.ratio", False),
        ("head.lower_bound", True),
    ],
)
def test_the_direction_follows_from_the_key(key, rising):
    assert StopRule(key).rising is rising
    assert StopRule(key, mode="rising").rising
    assert not StopRule(key, mode="falling").rising


def test_the_reason_is_a_sentence():
    records = series([3, 0.004, 0.005, 0.01])
    reason = Patience(StopRule("nc1", patience=2), records).reason("step")
    assert reason == "nc1 has not fallen for 2 measurements: the best was 4.00e-03 at step 1"
    assert " by more than 0.5 for " in Patience(StopRule("nc1", 2, min_delta=0.5), series([3, 2.9, 2.8])).reason()
    assert Patience(StopRule("nc1", 2), series([NAN, NAN])).reason() == "nc1 was undefined in 2 measurements"


def test_a_watch_says_once_why_training_stops():
    watch = Watch(StopRule("nc1", patience=1))
    events = [watch.see(record, "epoch") for record in series([3, 3, 3])]
    assert [set(each) for each in events] == [set(), {"stopped"}, set()]
    assert watch.reason("epoch")
    assert stopped([at(0), at(1, events=events[1])]) == events[1]["stopped"]
    assert stopped([at(0, events=events[1]), at(1)]) == stopped([]) == ""  # it went on


def test_a_number_that_the_records_do_not_have_is_refused():
    with pytest.raises(nc.InputError, match=r"got 'test\.nc1', which they do not have: ask for it to be measured"):
        Watch(StopRule("test.nc1")).see(at(0), "epoch")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key": "nc9"}, "stop_on: no number 'nc9': expected a measure"),
        ({"key": "layers.nc1"}, "stop_on: no number"),
        ({"key": "layers.a.nc9"}, "stop_on: no number"),
        ({"key": "nc1", "patience": 0}, "expected patience to be a number of measurements of at least 1, got 0"),
        ({"key": "nc1", "patience": 2.5}, "expected patience"),
        ({"key": "nc1", "mode": "up"}, "expected stop_mode to be auto, falling or rising, got 'up'"),
        ({"key": "nc1", "min_delta": -1}, "expected min_delta to be 0 or positive and finite, got -1"),
        ({"key": "nc1", "min_delta": NAN}, "expected min_delta"),
    ],
)
def test_a_wrong_rule_is_refused(options, message):
    with pytest.raises(nc.InputError, match=message):
        StopRule(**options)


def test_a_fit_that_is_lost_again_is_not_where_the_collapse_that_lasts_began():
    accuracies, values = [0.5, 1.0, 1.0, 0.98, 1.0, 1.0, 1.0], [5.0, 4.0, 3.0, 4.0, 3.5, 3.0, 2.0]
    records = [
        made_record(epoch, train={"loss": 0.0, "accuracy": accuracy}, nc1=nc1)
        for epoch, (accuracy, nc1) in enumerate(zip(accuracies, values, strict=True))
    ]
    assert collapse_begun(records).epoch == 4
    assert collapse_begun(records[:3]).epoch == 1
    assert collapse_begun(records[:4]) is None
    watch = Watch(None)
    assert [record.epoch for record in records if watch.see(record, "epoch")] == [1]
