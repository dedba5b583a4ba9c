"""A run or a group that is selected in a table, in a real browser: its curves stand out, by mouse and by keys."""

import shutil

import pytest

from neuralcollapse.report.comparison import comparison_page
from neuralcollapse.report.figure import Axis, Dots, Figure
from neuralcollapse.report.page import Page
from neuralcollapse.runs.reading import Run
from neuralcollapse.runs.records import Record

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome is installed")

EVIL = "<b>\"evil\"</b> & 'run'"
LINES = "[...document.querySelectorAll('#curve-nc1 [data-line]')].map(line => line.dataset.line)"
FADED = "[...document.querySelectorAll('#curve-nc1 .faded [data-line]')].map(line => line.dataset.line)"
PRESSED = "[...document.querySelectorAll('.pick[aria-pressed=true]')].map(pick => pick.dataset.select)"


def run(name: str, seed: int, lr: float) -> Run:
    records = [
        Record(i, 0.0, lr, {"loss": 1 / (i + lr), "accuracy": 0.5}, {}, {"nc1": lr / (i + 1)}) for i in (0, 1, 2)
    ]
    return Run(name, {"seed": seed, "lr": lr}, {}, records)


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@pytest.fixture
def visit(browser, tmp_path):
    """Open a page; at the end nothing may have gone wrong in it."""
    wrong, contexts = [], []

    def opened(page: Page):
        (tmp_path / "page.html").write_text(page.html(), encoding="utf-8")
        contexts.append(browser.new_context())
        tab = contexts[-1].new_page()
        tab.set_default_timeout(60_000)
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        tab.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        tab.goto((tmp_path / "page.html").as_uri())
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.fixture
def compared(visit):
    """The page of two seeds of one configuration and of one run with an evil name."""
    return visit(comparison_page([run("a-seed0", 0, 0.1), run("a-seed1", 1, 0.1), run(EVIL, 0, 0.5)]))


def test_a_run_is_selected_by_enter_and_alike_again_by_escape(compared):
    assert set(compared.evaluate(LINES)) == {"a", EVIL}  # no curve of a single seed
    compared.locator("button.pick", has_text="a-seed1").focus()
    compared.keyboard.press("Enter")
    assert compared.evaluate(PRESSED) == ["a-seed1"]
    assert "a-seed1" in compared.evaluate(LINES)
    assert "a-seed0" not in compared.evaluate(LINES)
    assert set(compared.evaluate(FADED)) == {EVIL}
    assert compared.locator("#said").inner_text() == "a-seed1 is selected: its curves stand out."
    compared.keyboard.press("Escape")
    assert compared.evaluate(PRESSED) == compared.evaluate(FADED) == []
    assert set(compared.evaluate(LINES)) == {"a", EVIL}


def test_a_row_is_selected_by_a_click_anywhere_in_it_and_once_more_no_longer(compared):
    row = compared.locator("tr", has=compared.locator("button.pick", has_text="a-seed0")).locator("td").nth(1)
    row.click()
    assert compared.evaluate(PRESSED) == ["a-seed0"]
    row.click()
    assert compared.evaluate(PRESSED) == []


def test_a_group_shows_its_seeds_and_a_name_is_only_text(compared):
    compared.locator("button.pick", has_text="a").first.click()
    assert compared.evaluate(PRESSED) == ["a"]
    assert {"a-seed0", "a-seed1"} <= set(compared.evaluate(LINES))
    compared.locator("button.pick", has_text="evil").first.click()
    assert compared.evaluate(PRESSED) == [EVIL, EVIL]  # a row for the group of one, and one for its run
    assert set(compared.evaluate(FADED)) == {"a"}


def test_a_selection_stays_when_a_table_is_sorted_and_when_an_axis_changes(compared):
    compared.locator("button.pick", has_text="a-seed1").click()
    compared.locator("th button", has_text="NC1").last.click()
    compared.locator("#curve-nc1-log").click()
    assert compared.evaluate(PRESSED) == ["a-seed1"]
    assert set(compared.evaluate(FADED)) == {EVIL}


def test_points_are_named_where_there_is_room(visit):
    dots = Dots("some", [0, 1, 1], [0, 1, 1], "#3b82f6", labels=["one", "two", "two again"])
    far = Dots("other", [2], [3], "#f59e0b", labels=["far"])
    figure = Figure("dots", "Dots", "", "Dots", [dots, far], Axis("x"), Axis("y"))
    page = visit(Page("t", "", "", [], [figure], []))
    boxes = page.evaluate(
        "[...document.querySelectorAll('[data-label]')].map(text => { const {x, y, right, bottom} = "
        "text.getBoundingClientRect(); return [x, y, right, bottom]; })"
    )
    assert len(boxes) >= 3
    for i, one in enumerate(boxes):
        for other in boxes[:i]:
            apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] + 3 or other[3] <= one[1] + 3
            assert apart, (one, other)
