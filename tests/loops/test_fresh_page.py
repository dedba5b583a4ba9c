"""The page of a run that is being measured: how often it is written."""

from pathlib import Path

import pytest

from neuralcollapse.loops import fresh_page
from neuralcollapse.loops.fresh_page import FreshPage
from neuralcollapse.runs.folder import RunFolder


class Clock:
    def __init__(self):
        self.now = 100.0
        self.cost = 0.5
        self.written = []

    def write_page(self, run):
        self.now += self.cost
        self.written.append(run.path)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(fresh_page, "write_page", clock.write_page)
    monkeypatch.setattr(fresh_page.time, "monotonic", lambda: clock.now)
    return clock


def test_the_page_takes_a_small_share_of_the_time(clock):
    page, run = FreshPage(), RunFolder("run")
    page.update(run)
    assert clock.written == [Path("run")]
    for _ in range(1000):
        clock.now += 0.1
        page.update(run)
    spent = clock.cost * len(clock.written)
    assert 0.03 <= spent / (clock.now - 100) <= 0.055


def test_measurements_far_apart_each_have_their_page(clock):
    page, run = FreshPage(), RunFolder("run")
    for count in range(1, 6):
        page.update(run)
        assert len(clock.written) == count
        clock.now += 60


def test_the_end_writes_what_is_missing_and_nothing_else(clock):
    page, run = FreshPage(), RunFolder("run")
    page.finish()
    page.update(run)
    page.finish()
    assert len(clock.written) == 1
    page.update(run)
    assert len(clock.written) == 1
    page.finish()
    page.finish()
    assert len(clock.written) == 2
