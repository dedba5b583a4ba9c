"""What the script of a page draws, and what its switches, the pointer, the keys and the exports do, in a browser."""
# ruff: noqa: F811 (fixtures are given by name)

import io
import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from neuralcollapse.report.single import single_page
from neuralcollapse.runs.reading import Run
from tests.helpers import made_record
from tests.report.test_browser import files, runs, visit  # noqa: F401

CURVES = ("loss", "accuracy", "variability", "simplex", "nearest")


@pytest.mark.parametrize("name", ["one", "two"])
def test_all_figures_are_drawn_at_once_so_that_nothing_is_blank_in_print(name, visit):
    page = visit(name, viewport={"width": 900, "height": 600})
    counts = page.evaluate("[...document.querySelectorAll('.plot')].map(plot => plot.querySelectorAll('svg *').length)")
    assert len(counts) == page.locator("figure").count() > 5
    assert min(counts) > 10
    page.emulate_media(media="print")
    assert page.evaluate("[...document.querySelectorAll('.plot')].every(plot => plot.clientHeight > 100)")


def test_a_switch_changes_the_scale_and_only_where_the_values_allow(visit):
    page = visit("one")
    for name in CURVES:
        button, plot = page.locator(f"#{name}-log"), page.locator(f"#{name}")
        assert plot.get_attribute("data-scale") == "log"
        before = plot.locator("svg").inner_html()
        button.focus()
        page.keyboard.press("Enter")
        assert (plot.get_attribute("data-scale"), button.get_attribute("aria-pressed")) == ("linear", "false")
        assert plot.locator("svg").inner_html() != before
        button.click()
        assert plot.locator("svg").inner_html() == before
    assert page.locator("#cosines-log, #simplex-motion-log").count() == 0


@pytest.mark.parametrize("values", [[0.0, 0.0, 0.0], [1.0, -1.0, 0.5], [1e-270, 1e300, 1.0], [math.nan, math.nan, 2.0]])
def test_whatever_the_values_are_the_axes_end(values, visit, files):
    records = [made_record(i, train={"loss": x, "accuracy": x}, nc1=x) for i, x in enumerate(values)]
    (files / "odd.html").write_text(single_page(Run("odd", {}, {}, records)).html(), encoding="utf-8")
    page = visit("odd")
    allowed = min(values) >= 0 and max(values) > 0 if not math.isnan(values[0]) else True
    assert page.locator("#loss-log").count() == int(allowed)
    for button in page.locator(".tools button[aria-pressed]").all():
        button.click()
    text = page.evaluate("[...document.querySelectorAll('.plot')].map(plot => plot.innerHTML).join()")
    assert "NaN" not in text
    assert "Infinity" not in text


def test_smoothing_keeps_the_raw_curve_in_sight(runs, visit, files):
    records = [replace(runs[0].last, epoch=i) for i in range(40)]
    (files / "long.html").write_text(single_page(replace(runs[0], records=records)).html(), encoding="utf-8")
    page = visit("long")
    paths = page.locator("#loss path")
    assert paths.count() == 2
    page.locator("#loss-smooth").click()
    assert paths.count() == 4
    page.locator("#loss-smooth").click()
    assert paths.count() == 2


@pytest.mark.parametrize("by", ["pointer", "keys"])
def test_all_curves_are_read_at_one_epoch(by, visit, runs):
    page = visit("one")
    plot = page.locator("#loss")
    plot.scroll_into_view_if_needed()
    if by == "pointer":
        box = plot.bounding_box()
        page.mouse.move(box["x"] + box["width"] * 0.55, box["y"] + 60)
    else:
        plot.focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
    read = {name: page.locator(f"#{name} .tip") for name in CURVES}
    (epoch,) = {tip.locator("b").inner_text() for tip in read.values()}
    record = runs[1].records[int(epoch.removeprefix("epoch "))]
    assert 0 < record.epoch < 4
    assert f"{record.train['loss']:.4g}" in read["loss"].inner_text()
    assert f"NC1 {record.measures['nc1']:.4g}" in read["variability"].inner_text()
    if by == "pointer":
        page.mouse.move(1, 1)
    else:
        page.keyboard.press("Escape")
    assert not any(tip.is_visible() for tip in read.values())


def test_a_tap_reads_the_curves_on_a_phone(visit):
    page = visit("one", viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    page.locator("#simplex").tap(position={"x": 200, "y": 50})
    assert re.match(r"epoch \d", page.locator("#simplex .tip").inner_text())
    assert page.locator("#loss .tip").is_visible()


def test_a_cell_of_the_heat_map_says_what_it_is(visit):
    page = visit("one")
    page.locator("#cosines").scroll_into_view_if_needed()
    page.locator('#cosines [data-cell="1,3"]').hover(force=True)
    assert re.fullmatch(r"a & b and 3: cos -?0\.\d{3}", page.locator("#cosines .tip").inner_text())
    page.mouse.move(1, 1)
    page.locator("#cosines").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.locator("#cosines .tip").is_visible()
    assert page.locator("#said").text_content()


def test_the_view_in_space_keeps_the_way_it_was_turned(visit):
    page = visit("one")
    points = "[...document.querySelectorAll('#simplex-motion [data-point]')].map(point => point.outerHTML).join()"
    camera = "JSON.stringify(views.get('simplex-motion').camera)"
    start, before = page.evaluate(camera), page.evaluate(points)
    plot = page.locator("#simplex-motion")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + 160, box["y"] + 130)
    page.mouse.up()
    dragged, turned = page.evaluate(camera), page.evaluate(points)
    assert dragged != start
    assert turned != before
    plot.focus()
    page.keyboard.press("ArrowLeft")
    assert page.evaluate(camera) != dragged
    page.keyboard.press("ArrowRight")
    page.locator("#simplex-motion-step").focus()
    page.keyboard.press("Home")
    assert page.evaluate(points) != turned
    assert json.loads(page.evaluate(camera)) == pytest.approx(json.loads(dragged))
    assert page.locator("#simplex-motion [data-sphere]").count() == 1
    assert page.locator("#simplex-motion text", has_text="a & b").count() == 1


def test_the_legend_hides_a_curve_and_its_test_set(visit):
    page = visit("one")
    legend = page.locator("figure", has=page.locator("#variability")).locator(".legend button")
    assert legend.all_text_contents() == ["NC1", "NC1, quotient", "NC1, CDNV", "test"]
    lines = page.locator("#variability [data-line]")
    assert lines.count() == 6
    legend.nth(0).click()
    assert lines.count() == 4
    legend.nth(3).click()
    assert lines.count() == 2
    assert legend.nth(0).get_attribute("aria-pressed") == "false"


@pytest.mark.parametrize("figure", ["variability", "cosines", "simplex-motion"])
@pytest.mark.parametrize("kind", ["svg", pytest.param("png", marks=pytest.mark.slow)])
def test_figures_are_saved_with_title_and_legend_in_light_colours(figure, kind, visit):
    page = visit("one", color_scheme="dark")
    with page.expect_download() as waiting:
        page.locator(f"#{figure}-{kind}").click()
    assert waiting.value.suggested_filename == f"{figure}.{kind}"
    content = Path(waiting.value.path()).read_bytes()
    if kind == "png":
        image = Image.open(io.BytesIO(content)).convert("RGB")
        assert image.width > 1000
        assert image.getpixel((0, 0)) == (255, 255, 255)
        assert len(image.getcolors(image.width * image.height)) > 20
        return
    texts = [item.text for item in ElementTree.fromstring(content).iter("{http://www.w3.org/2000/svg}text")]
    assert page.locator("figure", has=page.locator(f"#{figure}")).locator("h2").inner_text() in texts
    assert ("NC1, CDNV" in texts) == (figure == "variability")
    assert b"var(" not in content


def test_many_pages_share_one_script(runs, visit, files):
    for name in ("first", "second"):
        single_page(runs[0]).write(files / f"{name}.html", shared_assets=True)
    (script,) = files.glob("neuralcollapse-*.js")
    assert script.name in (files / "first.html").read_text(encoding="utf-8")
    assert visit("second").locator("#loss [data-line]").count() == 2


def test_a_page_without_its_script_says_so(runs, browser, files, tmp_path):
    single_page(runs[0]).write(files / "shared.html", shared_assets=True)
    shutil.copy(files / "shared.html", tmp_path)
    page = browser.new_page()
    page.goto((tmp_path / "shared.html").as_uri())
    assert "js is missing beside this page" in page.get_by_role("alert").first.inner_text()
    page.close()


def test_without_javascript_the_page_says_so_and_has_its_numbers(visit):
    page = visit("one", java_script_enabled=False)
    assert page.locator("noscript p").is_visible()
    assert "drawn by JavaScript, which is off" in page.locator("noscript p").inner_text()
    assert page.get_by_text("Every measure").is_visible()


def test_on_a_phone_the_page_is_short_and_legends_cover_no_curve(visit):
    page = visit("one", viewport={"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollHeight") < 5000
    for figure in page.locator("figure").all():
        legend, plot = (figure.locator(each).bounding_box() for each in (".legend", ".plot"))
        assert legend is None or legend["y"] + legend["height"] <= plot["y"] + 1
    first, last = (box.bounding_box() for box in (page.locator("#cosines [data-cell]").nth(i) for i in (0, -1)))
    assert last["x"] + last["width"] - first["x"] > 230  # beside names of 24 letters
