"""The page in a real browser: what it draws, what can be done with it, and that nothing leaves it."""

import csv
import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest

from neuralcollapse.report.comparison import comparison_page
from neuralcollapse.report.figure import Axis, Figure, Line
from neuralcollapse.report.page import Cell, Page, Table
from neuralcollapse.report.single import single_page
from neuralcollapse.runs.reading import read_runs
from tests.look import watched

EVIL = "<img src=x onerror=alert(1)> & <b>bold</b>"
MAP = "[...document.querySelectorAll('#cosines [data-cell]')].map(cell => cell.getAttribute('fill')).join()"
NAMES = "[...document.querySelectorAll('#cosines text')].map(text => text.textContent)"
CUT = "[...document.querySelectorAll('.scroll')].filter(box => box.scrollWidth > box.clientWidth + 1).length"
STEPS = "figures.find(figure => figure.name === 'cosines').steps"


@pytest.fixture(scope="module")
def runs(short_run, tmp_path_factory):
    """The short run, and a copy of another name with a larger NC1, another seed and evil names."""
    folder = tmp_path_factory.mktemp("two")
    one, other = folder / "plain", folder / "other"
    for place in (one, other):
        shutil.copytree(short_run.path, place, ignore=shutil.ignore_patterns("checkpoints", "logs"))
    config = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(config.replace("seed: 0", "seed: 1").replace("frame: learned", "frame: simplex"))
    lines = [json.loads(line) for line in (other / "records.jsonl").read_text().splitlines()]
    for line in lines:
        line["measures"]["nc1"] *= 100
    (other / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    first, second = read_runs([one, other])
    names = [EVIL, "a & b", *second.class_names[2:]]
    stretch = np.linspace(0.5, 2, second.geometries[-1].means.shape[1], dtype=np.float32)
    moved = [replace(geometry, means=geometry.means[::-1] * stretch) for geometry in second.geometries]
    return first, replace(second, name=EVIL, environment={**second.environment, "class_names": names}, geometries=moved)


@pytest.fixture(scope="module")
def files(runs, tmp_path_factory):
    """Pages on disk: of one run, of two, and of two tables to sort."""
    folder = tmp_path_factory.mktemp("pages")
    numbers = [("b", 9.5), ("a", 10), ("c", math.nan), ("d", -2), ("e", 1e-3), ("f", 2e3)]
    rows = [[name, Cell("" if math.isnan(x) else f"{x:.1e}", sort=x)] for name, x in numbers]
    table = Table("Numbers", rows, ("name", "number"), sortable=True)
    pages = {"one": single_page(runs[1]), "two": comparison_page(runs), "table": Page("t", "", "", [], [], [table])}
    for name, page in pages.items():
        (folder / f"{name}.html").write_text(page.html(), encoding="utf-8")
    return folder


@pytest.fixture
def visit(browser, files):
    """Open a page; at the end nothing may have gone wrong in it, been asked of the network, or popped up."""
    contexts, wrong = [], []

    def opened(name: str, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = watched(context, wrong)
        page.goto((files / f"{name}.html").as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


def test_the_slider_moves_the_heat_map_by_mouse_and_keys_and_says_the_epoch(visit):
    page = visit("one")
    last, epochs = page.evaluate(MAP), page.evaluate(STEPS)
    slider, said = page.locator("#cosines-step"), page.locator("#cosines-at")
    assert said.inner_text() == f"epoch {epochs[-1]}" == "epoch 4"
    slider.focus()
    page.keyboard.press("ArrowLeft")
    before = page.evaluate(MAP)
    assert before != last
    assert said.inner_text() == f"epoch {epochs[-2]}"
    page.keyboard.press("Home")
    assert said.inner_text() == "epoch 0"
    first = page.evaluate(MAP)
    assert first not in (before, last)
    page.keyboard.press("End")
    assert page.evaluate(MAP) == last
    box = slider.bounding_box()
    page.mouse.click(box["x"] + 3, box["y"] + box["height"] / 2)
    assert page.evaluate(MAP) == first
    assert page.locator("#cosines [data-cell]").count() == 100


def test_play_starts_over_advances_and_stops_at_the_end(visit):
    page = visit("one", reduced_motion="no-preference")
    play, said = page.locator("#cosines-play"), page.locator("#cosines-at")
    assert play.inner_text() == "play"
    steps = page.evaluate("document.getElementById('cosines-step').max")
    page.evaluate(
        "seen = []; new MutationObserver(() => seen.push(document.getElementById('cosines-at').textContent))"
        ".observe(document.getElementById('cosines-at'), {childList: true})"
    )
    play.click()
    page.wait_for_function(
        "steps => document.getElementById('cosines-play').textContent === 'play' && seen.length > steps", arg=int(steps)
    )
    seen = page.evaluate("seen")
    assert seen == [f"epoch {step}" for step in page.evaluate(STEPS)]
    assert said.inner_text() == seen[-1]


@pytest.mark.slow
def test_play_can_be_paused_by_its_button_and_by_the_slider(visit):
    page = visit("one", reduced_motion="reduce")  # a second a step: time to press pause
    play, value = page.locator("#cosines-play"), "document.getElementById('cosines-step').value"
    for pause in (play.click, lambda: page.locator("#cosines-step").press("ArrowRight")):
        page.locator("#cosines-step").fill("0")
        play.click()
        assert play.inner_text() == "pause"
        page.wait_for_function(f"{value} > 0")
        pause()
        assert play.inner_text() == "play"
        stopped = page.evaluate(value)
        page.wait_for_timeout(1300)
        assert page.evaluate(value) == stopped


def test_the_list_of_runs_changes_figure_caption_and_words(visit):
    page = visit("two")
    plot, caption = page.locator("#cosines"), page.locator("#cosines-caption")
    names = page.locator("#cosines-run option").all_inner_texts()
    assert names == ["plain", EVIL]
    before = page.evaluate(MAP), page.evaluate(NAMES)
    words = plot.get_attribute("aria-label")
    page.locator("#cosines-run").select_option(index=1)
    after = page.evaluate(MAP), page.evaluate(NAMES)
    assert after[0] != before[0]
    assert after[1] != before[1]
    other = page.evaluate("figures.find(f => f.name === 'cosines').others[0][1]")
    assert plot.get_attribute("aria-label") == other["alt"] != words
    assert caption.inner_text() == other["caption"]
    page.locator("#cosines-run").select_option(index=0)
    assert page.evaluate(MAP) == before[0]
    assert plot.get_attribute("aria-label") == words


def test_runs_named_by_numbers_are_the_ones_that_are_chosen(runs, visit, files):
    one, two = runs
    named = [replace(one, name="start"), replace(two, name="10"), replace(one, name="2")]
    (files / "numbers.html").write_text(comparison_page(named).html(), encoding="utf-8")
    page = visit("numbers")
    page.locator("#cosines-run").select_option(label="10")
    assert "a & b" in page.evaluate(NAMES)


def column(page, number: int) -> list[str]:
    """Of the last table that sorts: before that of the runs one says what differs."""
    return page.locator("table.sortable").last.locator(f"tbody td:nth-child({number})").all_inner_texts()


@pytest.mark.parametrize("press", ["click", "Enter"])
def test_a_column_sorts_by_number_both_ways_with_what_is_missing_last(press, visit):
    page = visit("table")
    head, button = page.locator("th").nth(1), page.get_by_role("button", name="number")

    def sort() -> None:
        if press == "click":
            return button.click()
        button.focus()
        page.keyboard.press(press)

    assert "".join(column(page, 1)) == "bacdef"
    assert head.get_attribute("aria-sort") is None
    sort()
    assert "".join(column(page, 1)) == "debafc"
    assert head.get_attribute("aria-sort") == "ascending"
    sort()
    assert "".join(column(page, 1)) == "fabedc"
    assert head.get_attribute("aria-sort") == "descending"
    page.get_by_role("button", name="name").click()
    assert "".join(column(page, 1)) == "abcdef"
    assert head.get_attribute("aria-sort") is None
    assert page.locator("th").nth(0).get_attribute("aria-sort") == "ascending"


def test_the_runs_sort_by_their_numbers(visit, runs):
    page = visit("two")
    assert column(page, 1) == ["plain", EVIL]
    button = page.locator("table.sortable").last.locator("th button", has_text="NC1").first
    button.click()
    assert column(page, 1) == ["plain", EVIL]
    button.click()
    assert column(page, 1) == [EVIL, "plain"]


def test_a_run_without_a_count_of_parameters_comes_last(runs, visit, files):
    bare = replace(runs[0], name="bare", environment={})
    (files / "bare.html").write_text(comparison_page([runs[0], bare]).html(), encoding="utf-8")
    page = visit("bare")
    page.get_by_role("button", name="parameters").click()
    assert column(page, 1) == ["plain", "bare"]


def test_infinity_sorts_above_all_numbers(visit, files):
    rows = [[str(x), Cell(str(x), sort=x)] for x in (math.inf, 1.0, math.nan, -math.inf)]
    table = Table("t", rows, ("name", "number"), sortable=True)
    (files / "infinite.html").write_text(Page("t", "", "", [], [], [table]).html(), encoding="utf-8")
    page = visit("infinite")
    page.get_by_role("button", name="number").click()
    assert column(page, 1) == ["-inf", "1.0", "inf", "nan"]


@pytest.mark.parametrize("press", ["click", "Enter"])
def test_the_classes_sort_from_the_worst_and_download_with_their_names(press, visit, runs):
    page = visit("one")
    order = [f"{k} {EVIL}" if k == 0 else "1 a & b" if k == 1 else str(k) for k in range(10)]
    shown = column(page, 1)
    assert sorted(shown) == sorted(order)
    cdnv = [float(text) for text in column(page, 3)]
    assert cdnv == sorted(cdnv, reverse=True)
    head = page.locator("table.sortable th").nth(0)
    assert page.locator("table.sortable th").nth(2).get_attribute("aria-sort") == "descending"
    button = head.get_by_role("button")
    if press == "click":
        button.click()
    else:
        button.focus()
        page.keyboard.press(press)
    assert column(page, 1) == order
    assert page.locator("table.sortable th").nth(2).get_attribute("aria-sort") is None
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Download all 10 classes").click()
    with open(waiting.value.path(), encoding="utf-8", newline="") as file:
        assert [line["name"] for line in csv.DictReader(file)][:2] == [EVIL, "a & b"]


@pytest.mark.parametrize(("name", "count"), [("one", 5), ("two", 10)])
def test_the_records_download_as_csv(name, count, visit, runs):
    page = visit(name)
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Download the records").click()
    assert waiting.value.suggested_filename == "records.csv"
    with open(waiting.value.path(), encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == count
    assert lines[-1]["run"] == EVIL
    assert float(lines[-1]["nc1"]) == pytest.approx(runs[1].last.measures["nc1"], rel=1e-5)


@pytest.mark.parametrize("name", ["one", "two"])
def test_a_phone_does_not_scroll_sideways(name, visit):
    page = visit(name, viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    wide, room = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert room <= 390
    assert wide <= room
    for plot in page.locator(".plot > svg").all():
        assert plot.bounding_box()["width"] <= room


COLOURS = (
    "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.querySelector('#loss text')).fill]"
)


def test_dark_mode_changes_the_page_and_its_figures_also_while_it_is_open(visit):
    page, dark = visit("one", color_scheme="light"), visit("one", color_scheme="dark")
    light = ["rgb(248, 250, 252)", "rgb(71, 85, 105)"]
    assert page.evaluate(COLOURS) == light
    assert dark.evaluate(COLOURS) == ["rgb(11, 17, 32)", "rgb(163, 177, 198)"]
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(COLOURS) == dark.evaluate(COLOURS)
    dark.emulate_media(media="print")
    assert dark.evaluate(COLOURS)[1] == light[1]  # paper is white


def test_a_change_of_mode_keeps_the_step_and_the_run_that_are_shown(visit):
    page = visit("two", color_scheme="light")
    page.locator("#cosines-run").select_option(index=1)
    page.locator("#cosines-step").fill("0")
    before = page.evaluate(MAP)
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(MAP) == before
    assert page.locator("#cosines-at").inner_text() == "epoch 0"


def test_all_that_can_be_used_is_reached_by_tab(visit):
    page = visit("two")
    page.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true; })")
    page.evaluate(
        "document.querySelectorAll('button, select, input, [tabindex]').forEach((item, i) => item.dataset.n = i)"
    )
    count = page.locator("[data-n]").count()
    kinds = page.evaluate("[...new Set([...document.querySelectorAll('[data-n]')].map(x => x.localName))]")
    assert {"button", "select", "input"} <= set(kinds)
    reached = set()
    for _ in range(count + 20):
        if len(reached) > count:
            break
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.dataset.n"))
    assert {str(i) for i in range(count)} <= reached


def test_every_control_has_a_name(visit):
    page = visit("two")
    for role in ("button", "combobox", "slider", "region"):
        for control in page.get_by_role(role).all():
            assert control.evaluate("x => x.ariaLabel || x.textContent.trim() || x.labels[0].textContent.trim()")


@pytest.mark.parametrize("name", ["one", "two"])
def test_names_are_shown_as_text_and_execute_nothing(name, visit):
    page = visit(name)
    if name == "two":
        page.locator("#cosines-run").select_option(index=1)
        page.locator("#simplex-motion-run").select_option(index=1)
        assert EVIL in column(page, 1)
    page.wait_for_timeout(200)
    assert page.locator("main img").count() == 0
    assert page.locator("main b", has_text="bold").count() == 0
    ticks = page.locator("#cosines text").all_text_contents()
    assert any(tick.startswith(EVIL[:8]) for tick in ticks)
    assert "a & b" in ticks


def test_names_of_runs_are_text_in_the_legends_of_figures(visit):
    page = visit("two")
    legend = page.locator("figure", has=page.locator("#curve-nc1")).locator(".legend button")
    assert legend.all_text_contents() == ["plain", EVIL]


def test_a_name_that_is_too_long_keeps_what_tells_it_from_others(visit):
    page = visit("table")
    names = page.evaluate("[1, 2].map(i => cut(`a long name that begins as others do, number ${i}`, 90))")
    assert names[0] != names[1]
    assert all(name.startswith("a long") and "…" in name for name in names)


def test_long_curves_are_read_together_though_they_are_drawn_of_other_points(visit, runs, files):
    random = np.random.default_rng(0).random((5000, 2))
    records = [
        replace(runs[0].last, epoch=i, train={"loss": 1 + x, "accuracy": y}, test={}) for i, (x, y) in enumerate(random)
    ]
    (files / "long.html").write_text(single_page(replace(runs[0], records=records)).html(), encoding="utf-8")
    page = visit("long")
    box = page.locator("#loss").bounding_box()
    for share in (0.37, 0.53, 0.71):
        page.mouse.move(box["x"] + share * box["width"], box["y"] + box["height"] / 2)
        said = page.locator("#loss .tip b, #accuracy .tip b, #variability .tip b").all_inner_texts()
        epochs = [int(text.removeprefix("epoch ").replace(",", "")) for text in said]
        assert len(epochs) == 3
        assert max(epochs) - min(epochs) < 2 * 5000 / box["width"]


def test_shares_of_a_histogram_have_ticks_by_decade_and_accuracies_by_nines(visit, files):
    y = [0.5, 0.05, 0.005, 0.0005, 0.0]
    line = Line("inside", [1, 2, 3, 4, 5], y, "#2563eb")
    of = {"histogram": Axis(percent=True, from_zero=True), "rate": Axis(percent=True, page_log=True)}
    figures = [Figure(name, name, "", "", [line], Axis(), axis) for name, axis in of.items()]
    (files / "shares.html").write_text(Page("t", "", "", [], figures, []).html(), encoding="utf-8")
    page = visit("shares")
    page.locator("#histogram-log").click()
    ticks = "name => [...document.querySelectorAll(`#${name} text[text-anchor=end]`)].map(text => text.textContent)"
    assert {"0.1 %", "1 %", "10 %"} <= set(page.evaluate(ticks, "histogram"))
    assert "90 %" not in page.evaluate(ticks, "histogram")
    assert {"10 %", "50 %"} <= set(page.evaluate(ticks, "rate"))  # all far from 100 %


def test_headings_wrap_on_a_laptop_and_notes_take_no_line_of_their_own_on_a_phone(visit, files):
    wide = Table("Wide", [["a", *["0.1234"] * 10]], ("run", *["head / exact minimum"] * 10), sortable=True, tall=True)
    row = ["a", *[Cell("0.1234 ± 0.0012", "untrained\u00a01.414, minimum\u00a00.1234", 0.1234)] * 5]
    noted = Table("Noted", [row], ("run", *["NC1"] * 5), sortable=True)
    (files / "wide.html").write_text(Page("t", "", "", [], [], [wide, noted]).html(), encoding="utf-8")
    page = visit("wide", viewport={"width": 1280, "height": 800})
    assert page.evaluate(CUT) == 0
    page = visit("wide", viewport={"width": 390, "height": 844})
    first, second = page.evaluate("[...document.querySelectorAll('tbody tr')].map(row => row.offsetHeight)")
    assert second == pytest.approx(first, abs=1)


def test_paper_has_every_column_of_a_table(visit):
    page = visit("two", viewport={"width": 718, "height": 1000})
    page.emulate_media(media="print")
    assert page.evaluate(CUT) == 0


def test_the_secondary_is_folded_on_a_phone_and_no_page_is_longer_than_asked(visit):
    for name in ("one", "two"):
        page = visit(name, viewport={"width": 390, "height": 844})
        assert page.locator("details[data-foldable]").count() > 0
        assert page.locator("details[data-foldable][open]").count() == 0
        assert page.evaluate("document.documentElement.scrollHeight") < 5000
