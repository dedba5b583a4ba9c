"""The page of a run that is being measured: how often it is written, and what it says."""

import math
from pathlib import Path

import pytest

from neuralcollapse.loops import fresh_page, pace
from neuralcollapse.loops.fresh_page import FreshPage
from neuralcollapse.runs.folder import RunFolder


class Clock:
    def __init__(self):
        self.now = 100.0
        self.cost = 0.5
        self.written = []

    def write(self, run, *, live=False, gap=math.nan, wait=0.0):
        self.now += self.cost
        self.written.append((run.path, live))


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(fresh_page, "_write", clock.write)
    monkeypatch.setattr(pace.time, "monotonic", lambda: clock.now)
    return clock


def test_the_page_takes_a_small_share_of_the_time(clock):
    page, run = FreshPage(), RunFolder("run")
    for _ in range(1000):
        clock.now += 0.1
        page.update(run)
    assert set(clock.written) == {(Path("run"), True)}
    spent = clock.cost * len(clock.written)
    assert 0.03 <= spent / (clock.now - 100) <= 0.055


def test_a_short_training_is_not_held_up(clock):
    page, run = FreshPage(), RunFolder("run")
    for _ in range(50):
        clock.now += 0.1
        page.update(run)
    assert clock.written == []
    page.settle()
    assert clock.written == []
    page.finish()
    assert clock.written == [(Path("run"), False)]


def test_measurements_far_apart_each_have_their_page(clock):
    page, run = FreshPage(), RunFolder("run")
    for count in range(1, 6):
        clock.now += 60
        page.update(run)
        assert len(clock.written) == count


def test_the_end_is_written_once_and_says_that_it_is_the_end(clock):
    page, run = FreshPage(), RunFolder("run")
    page.finish()
    clock.now += 60
    page.update(run)  # a page that says that the run goes on
    page.finish()
    page.finish()
    page.settle()
    assert [live for _, live in clock.written] == [True, False]
    page.update(run)  # too early for another
    page.settle()
    assert len(clock.written) == 2
    page.finish()
    assert len(clock.written) == 3


def test_a_page_of_a_run_that_goes_on_does_not_stay_behind(clock):
    page, run = FreshPage(), RunFolder("run")
    clock.now += 60
    page.update(run)
    page.settle()
    assert [live for _, live in clock.written] == [True, False]


@pytest.mark.parametrize(
    ("gap", "wait", "every", "patience"),
    [
        (math.nan, 6.0, 10, 3600),  # the first record
        (0.01, 2.0, 5, 300),
        (20.0, 2.0, 20, 300),
        (61.5, 2.0, 62, 615),
        (7200.0, 2.0, 300, 72000),
        (0.1, 30.0, 30, 300),  # a page that is expensive comes more rarely than the records
    ],
)
def test_the_time_between_two_pages_says_how_often_it_reloads_and_when_the_run_is_given_up(
    monkeypatch, gap, wait, every, patience
):
    monkeypatch.setattr(fresh_page, "read_run", lambda path: path)
    monkeypatch.setattr(fresh_page.Live, "of", lambda *given: given)
    said = []
    monkeypatch.setattr(fresh_page, "single_page", lambda run, live: said.append(live) or _Text())
    monkeypatch.setattr(fresh_page, "save_text", lambda text, path: path)
    fresh_page._write(RunFolder("run"), live=True, gap=gap, wait=wait)
    fresh_page._write(RunFolder("run"))
    assert said == [(Path("run"), every, patience), None]


class _Text:
    def html(self):
        return ""
