"""What a page says of a run that goes on, and of one that ended before its time."""

from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest

from neuralcollapse.report.live import Live, ends_early, progress
from neuralcollapse.report.single import single_page
from neuralcollapse.runs.reading import Run
from neuralcollapse.runs.records import Record

RECORDS = [Record(epoch, float(epoch), 0.1, {"loss": 1.0, "accuracy": 0.5}, measures={"nc1": 1.0}) for epoch in (0, 12)]


def run(records=RECORDS, **config):
    return Run("mine", {"epochs": 100, **config}, {}, records)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, "12 of 100 epochs"),
        ({"epochs": 12.5}, "12 of 13 epochs"),
        ({"unit": "step", "steps": 3000}, "12 of 3,000 steps"),
        ({"unit": "step"}, "after 12 steps"),
        *(({"epochs": wrong}, "after 12 epochs") for wrong in (None, "many", True, 0, -3, float("nan"), float("inf"))),
        ({"unit": "checkpoint"}, "at checkpoint 12"),
    ],
)
def test_how_far_a_run_is(config, expected):
    assert progress(run(**config)) == expected


def test_a_run_that_ended_before_its_time_says_so_unless_a_record_does():
    assert ends_early(run()) == "The records end after 12 of 100 epochs."
    assert ends_early(run(epochs=12)) == ""
    assert ends_early(run(epochs=None)) == ""
    last = replace(RECORDS[-1], events={"stopped": "nc1 got no better"})
    assert ends_early(run([RECORDS[0], last])) == ""
    assert "The records end after 12 of 100 epochs." in single_page(run()).verdict
    assert "The records end" not in single_page(run(epochs=12)).verdict


def test_a_page_of_a_run_that_goes_on_says_so_and_the_others_say_nothing():
    when = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=1)))
    page = single_page(run(), Live(progress(run()), when, 20, 600))
    text = page.html()
    assert "This run is going on</b> (12 of 100 epochs)" in text
    assert "The page reloads itself every 20 seconds." in text
    assert 'datetime="2026-01-02T03:04:05+01:00"' in text
    assert "every = 20, patience = 600" in text
    assert "The records end" not in text
    assert "going on" not in single_page(run()).html()


def test_words_from_a_folder_are_escaped():
    when = datetime(2026, 1, 2, tzinfo=timezone.utc)
    assert "<script>alert" not in Live("<script>alert(1)</script>", when, 20, 600).html()
