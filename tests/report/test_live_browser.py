"""The page of a run that goes on, in a real browser: it reloads itself, and leaves the reader's settings alone."""

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from neuralcollapse.report.live import Live, progress
from neuralcollapse.report.page import save_text
from neuralcollapse.report.single import single_page
from neuralcollapse.runs.reading import read_run
from tests.look import opened, scroll_through, too_wide, unreached, violations

LOOKS = [(1280, "light"), (390, "dark")]
FOLDED = "[...document.querySelectorAll('details')].find(part => part.textContent.includes('optimizer'))"
LEGEND = "document.querySelector('#variability').closest('figure').querySelectorAll('.legend button')"
SEEN = f"""() => ({{
    scale: document.getElementById('loss').dataset.scale,
    log: document.getElementById('loss-log').ariaPressed,
    folded: {FOLDED}.open,
    legend: [...{LEGEND}].map(button => button.ariaPressed).join(),
    cosines: document.getElementById('cosines-at').textContent,
    motion: document.getElementById('simplex-motion-at').textContent,
    top: scrollY,
}})"""


@pytest.fixture
def write(short_run, tmp_path):
    """Write the page after so many of the run's records, as one of a run that goes on unless it is the last."""
    run, file = read_run(short_run.path), tmp_path / "report.html"

    def written(count: int, *, every: int = 1, age: float = 0, live: bool = True):
        geometries = [each for each in run.geometries if each.epoch <= run.records[count - 1].epoch]
        part = replace(run, records=run.records[:count], geometries=geometries)
        when = datetime.now().astimezone() - timedelta(seconds=age)
        notice = Live(progress(part), when, every, 60) if live else None
        return save_text(single_page(part, notice).html(), file)

    return written


def reloaded(page, text: str) -> None:
    page.locator(".live", has_text=text).wait_for()


@pytest.mark.parametrize(("width", "scheme"), LOOKS)
def test_a_reload_shows_the_new_records_and_keeps_what_the_reader_has_set(write, width, scheme, browser):
    with opened(browser, write(3), width, scheme) as (page, wrong):
        reloaded(page, "2 of 4 epochs")
        page.locator("#loss-log").click()
        page.evaluate(f"{FOLDED}.open = true; {LEGEND}[1].click()")
        page.locator("#cosines-step").fill("1")
        page.evaluate("scrollTo(0, 777)")
        before = page.evaluate(SEEN)
        assert before == {
            "scale": "linear",
            "log": "false",
            "folded": True,
            "legend": before["legend"],
            "cosines": "epoch 1",
            "motion": "epoch 2",
            "top": 777,
        }
        assert before["legend"].startswith("true,false")
        write(4)
        reloaded(page, "3 of 4 epochs")
        page.wait_for_function("scrollY === 777")
        # a slider at its end stays at the end, which moves on
        assert page.evaluate(SEEN) == before | {"motion": "epoch 3"}
        write(5, live=False)
        page.wait_for_function("!document.querySelector('.live')")
        assert "after 4 epochs" in page.locator(".verdict").inner_text()
        assert wrong == []


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), LOOKS)
def test_a_page_that_is_live_holds(write, width, scheme, browser):
    with opened(browser, write(3, every=300), width, scheme) as (page, wrong):
        scroll_through(page)
        assert too_wide(page) == []
        assert violations(page) == []
        assert unreached(page) == []
        assert wrong == []


def loads(page) -> list[str]:
    """A list that grows with each load of the page."""
    found = []
    page.on("load", lambda: found.append("load"))
    return found


@pytest.mark.slow
def test_it_does_not_reload_while_a_figure_plays_while_text_is_marked_or_while_it_is_paused(write, browser):
    with opened(browser, write(3), 1280, "light") as (page, wrong):
        page.evaluate("getSelection().selectAllChildren(document.querySelector('.verdict'))")
        found = loads(page)
        page.wait_for_timeout(2200)
        assert found == []
        page.locator("#live-pause").press("Enter")
        page.evaluate("getSelection().empty()")
        page.wait_for_timeout(2200)
        assert found == []
        assert "The page is paused." in page.locator(".live").inner_text()
        page.evaluate("document.getElementById('cosines-play').textContent = 'pause'")
        page.locator("#live-pause").press("Enter")
        page.wait_for_timeout(2200)
        assert found == []
        page.evaluate("document.getElementById('cosines-play').textContent = 'play'")
        page.wait_for_event("load")
        assert wrong == []


@pytest.mark.slow
def test_a_run_that_was_killed_is_given_up_and_can_be_reloaded_by_hand(write, browser):
    with opened(browser, write(3, age=61), 1280, "light") as (page, wrong):
        found = loads(page)
        reloaded(page, "This run was going on")
        page.wait_for_timeout(2200)
        assert found == []
        write(4, every=300)
        page.get_by_role("button", name="Reload").click()
        reloaded(page, "This run is going on (3 of 4 epochs)")
        assert wrong == []
