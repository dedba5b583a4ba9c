import itertools
import json
import math
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from importlib import resources
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib import rc_context, rcParams
from matplotlib.colors import to_hex
from PIL import Image

from neuralcollapse import InputError
from neuralcollapse.report import paper
from neuralcollapse.report.class_means import cosine_map, simplex_motion
from neuralcollapse.report.figure import BLUE_TO_RED, COLORS, Axis, Band, Bars, Dots, Figure, HeatMap, Line
from neuralcollapse.report.landscape import energy_figure, gap_figure, phase_figure, spectrum_figure
from neuralcollapse.report.page import Panels
from neuralcollapse.report.paper import draw, draw_panels, save_figures
from neuralcollapse.report.paper_series import Series
from neuralcollapse.report.single import run_figures
from neuralcollapse.runs.reading import read_run
from neuralcollapse.runs.records import Geometry
from neuralcollapse.ufm.survey import Phase

NAMES = [str(i) for i in range(10)]
ODD = "a<b>&$x_1$ 漢字"
BLUE, AMBER = "#3b82f6", "#f59e0b"
NAN = math.nan
PLAIN = Axis()


def figure(marks, x=PLAIN, y=PLAIN, name="some", title="Some title") -> Figure:
    return Figure(name, title, "", "What it shows", marks, x, y)


def line(y, x=None, name="curve", **rest) -> Line:
    return Line(name, list(range(len(y))) if x is None else x, y, rest.pop("color", BLUE), **rest)


BOTH = [line([1, NAN, 3]), Dots("other", [0, 1], [2, 2], AMBER)]
LOG = Axis(log=True)


def heat(z, x=None, y=None) -> HeatMap:
    return HeatMap(x or list(range(len(z[0]))), y or list(range(len(z))), np.array(z), -1, 1, "cos")


def labels(axis) -> list[str]:
    return [text.get_text() for text in axis.get_ticklabels()]


def texts(svg: bytes) -> list[str]:
    return [
        "".join(element.itertext()) for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("text")
    ]


def legend(drawing) -> list[str]:
    return [text.get_text() for text in drawing.legends[0].get_texts()] if drawing.legends else []


@pytest.fixture(scope="module")
def figures(short_run):
    return run_figures(read_run(short_run.path))


def test_a_runs_flat_figures_are_written_and_the_one_in_three_dimensions_is_left_out(figures, tmp_path):
    paths = save_figures(figures, tmp_path / "new" / "folder", "svg")
    assert [path.name for path in paths] == [
        "loss.svg",
        "accuracy.svg",
        "variability.svg",
        "simplex.svg",
        "nearest.svg",
        "cosines.svg",
        "scree.svg",
    ]
    assert sorted(paths) == sorted((tmp_path / "new" / "folder").iterdir())
    found = texts(paths[2].read_bytes())
    assert {"NC1", "NC1, quotient", "NC1, CDNV", "epoch"} <= set(found)
    assert "NC1: variability within classes" not in found


def test_curves_hold_the_pages_numbers_colours_and_axes(figures):
    page = next(figure for figure in figures if figure.name == "variability")
    drawing = draw(page)
    (ax,) = drawing.axes
    assert (ax.get_xscale(), ax.get_yscale()) == ("linear", "log")
    assert len(ax.lines) == len(page.marks) == 6
    for drawn, mark in zip(ax.lines, page.marks, strict=True):
        np.testing.assert_array_equal(drawn.get_xdata(), mark.x)
        np.testing.assert_array_equal(drawn.get_ydata(), mark.y)
        assert to_hex(drawn.get_color()) == Series([]).shade(mark.color)
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == ("epoch", "NC1", "")


@pytest.mark.parametrize("percent", [False, True])
def test_an_event_is_an_upright_line_with_its_words_where_there_is_room(percent):
    page = replace(figure([line([1, 2, 3, 4, 5])], y=Axis(percent=percent)), events=[(1, "early"), (4, "late")])
    (ax,) = draw(page).axes
    assert [each.get_xdata() for each in ax.lines[1:]] == [[1, 1], [4, 4]]
    assert [text.get_text() for text in ax.texts] == ["early", "late"]
    assert [text.get_horizontalalignment() for text in ax.texts] == ["left", "right"]
    assert {text.get_verticalalignment() for text in ax.texts} == {"bottom" if percent else "top"}


def test_a_heat_map_of_a_run_is_square_and_shows_its_last_epoch(figures):
    page = next(figure for figure in figures if figure.name == "cosines")
    ax, bar_ax = draw(page).axes
    (mesh,) = ax.collections
    np.testing.assert_array_equal(mesh.get_array().filled(np.nan), page.marks[0].z[-1])
    assert ax.get_aspect() == 1
    assert bar_ax.get_title() == "cos"
    assert labels(ax.xaxis) == labels(ax.yaxis) == NAMES
    assert ax.get_ylim() == (9.5, -0.5)


def test_every_kind_is_what_it_says_one_column_wide(tmp_path):
    page = figure([line([1, 2])])
    png, svg, pdf = (save_figures([page], tmp_path, kind)[0] for kind in ("png", "svg", "pdf"))
    with Image.open(png) as image:
        width, height = (pixels / dpi for pixels, dpi in zip(image.size, image.info["dpi"], strict=True))
        assert image.info["dpi"][0] == pytest.approx(300, abs=0.1)
        assert image.info["Description"] == "What it shows"
    assert 3.1 < width < 3.3
    assert 1.9 < height < 2.2
    assert ElementTree.fromstring(svg.read_bytes()).tag.endswith("svg")
    content = pdf.read_bytes()
    assert content.startswith(b"%PDF")
    assert b"/Type3" not in content
    assert b"CreationDate" not in content


@pytest.mark.slow
def test_another_process_writes_the_same_bytes_and_loads_no_pyplot(tmp_path):
    code = f"""
import sys
from pathlib import Path
from math import nan
from neuralcollapse.report.figure import Axis, Dots, Figure, Line
from neuralcollapse.report.paper import save_figures
assert "matplotlib" not in sys.modules
for kind in ("png", "svg", "pdf"):
    save_figures([eval({repr(figure(BOTH))!r})], Path({str(tmp_path / "there")!r}), kind)
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    for kind in paper.KINDS:
        (here,) = save_figures([figure(BOTH)], tmp_path / "here", kind)
        assert here.read_bytes() == (tmp_path / "there" / here.name).read_bytes()


def test_names_are_shown_as_they_are_and_never_as_markup_or_mathematics(tmp_path):
    lines = [line([1, 2], name=ODD), line([2, 1], name="$\\frac$ \ud800\x00")]
    page = figure(lines, Axis(f"{ODD}\nbelow"), Axis("$$$"), title="\ud800")
    map_page = figure([heat([[0.5]], [ODD], [ODD])], name="map")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_figures([page, map_page], tmp_path, "pdf")
        curve, cells = (path.read_bytes() for path in save_figures([page, map_page], tmp_path, "svg"))
    assert {ODD, "below", "$\\frac$", "$$$"} <= set(texts(curve))
    assert texts(cells).count(ODD) == 2


def test_undefined_leaves_a_gap_in_a_line_and_no_logarithm_does_too():
    (ax,) = draw(figure([line([1, NAN, 3, 4])])).axes
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [1, NAN, 3, 4])
    (ax,) = draw(figure([line([1, 0, 3, -4])], y=LOG)).axes
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [1, NAN, 3, NAN])
    draw(figure([line([NAN, NAN])], y=LOG))
    draw(figure([]))


def test_dashes_and_markers():
    marks = [line([1, 2], dash="dot", width=1), Dots("a", [1], [2], AMBER), line([1, 2], markers=True), line([3])]
    (ax,) = draw(figure([*marks, Dots("b", [1], [2], AMBER, hollow=True)])).axes
    dotted, dots, both, single, hollow = ax.lines
    assert dotted.get_linestyle() == "--"  # matplotlib's word for any pattern
    assert dotted.get_marker() == "none"
    assert (dots.get_linestyle(), dots.get_marker()) == ("None", "o")  # the first colour of those to be told apart
    assert to_hex(dots.get_markerfacecolor()) == AMBER
    assert (both.get_linestyle(), both.get_marker()) == ("-", "s")
    assert single.get_marker() == "s"
    assert (hollow.get_marker(), hollow.get_markerfacecolor()) == ("D", "none")


def test_a_band_is_one_area_of_its_own_colour_without_an_edge():
    x, low, high = [1, 2, 3], [1, 2, 1], [3, 5, 4]
    drawing = draw(figure([Band("a", x, low, high, "#ff0033"), line([2, 3, 2], x)], y=LOG))
    (ax,) = drawing.axes
    assert len(ax.lines) == 1
    (area,) = ax.collections
    np.testing.assert_allclose(area.get_facecolor()[0], [1, 0, 0.2, 0.18])
    assert area.get_linewidth() == [0]
    corners = np.concatenate([path.vertices for path in area.get_paths()])
    assert set(zip(x * 2, low + high, strict=True)) <= set(map(tuple, corners))
    assert legend(drawing) == []


def test_error_bars_end_where_they_should():
    (ax,) = draw(figure([line([1, NAN, 3], errors=[0.5, 0.1, 1])])).axes
    (stems,) = ax.collections
    ends = [segment[:, 1].tolist() for segment in stems.get_segments() if len(segment)]
    assert [0.5, 1.5] in ends
    assert [2.0, 4.0] in ends


def test_bars_of_a_group_stand_side_by_side():
    names = ["one", "two"]
    marks = [Bars("train", names, [0.2, 0.4], BLUE), Bars("test", names, [0.5, 0.1], AMBER)]
    drawing = draw(figure(marks, y=Axis(percent=True), title="Accuracy: of two"))
    (ax,) = drawing.axes
    first, second = ax.containers
    assert [patch.get_height() for patch in first] == [0.2, 0.4]
    assert [patch.get_height() for patch in second] == [0.5, 0.1]
    for place, (left, right) in enumerate(zip(first, second, strict=True)):
        assert left.get_x() + left.get_width() <= right.get_x()
        assert left.get_x() + right.get_x() + right.get_width() == pytest.approx(2 * place)
    assert to_hex(second[0].get_facecolor()) == AMBER
    assert labels(ax.xaxis) == ["one", "two"]
    assert "20%" in labels(ax.yaxis)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("", "Accuracy")
    assert legend(drawing) == ["train", "test"]


def test_low_and_high_have_the_pages_colours():
    """Those in plot.js, which draws the page: blue is low, and red high."""
    script = resources.files("neuralcollapse.report").joinpath("plot.js").read_text(encoding="utf-8")
    stops = json.loads(re.search(r"BLUE_TO_RED = (\[.*\]);", script).group(1))
    assert tuple("#{:02x}{:02x}{:02x}".format(*stop) for stop in stops) == BLUE_TO_RED
    ax = draw(figure([heat([[-1, 0, NAN, 1]])])).axes[0]
    (mesh,) = ax.collections
    mesh.update_scalarmappable()
    drawn = [tuple(round(255 * part) for part in color) for color in mesh.get_facecolor()]
    assert [list(drawn[i][:3]) for i in (0, 3)] == [stops[0], stops[-1]]
    assert drawn[1][:3] == pytest.approx((247, 247, 247), abs=2)
    assert drawn[2][3] == 0


def test_cells_of_a_heat_map_on_log_axes_part_at_geometric_means():
    marks = [heat([[0, 1, 0]], [1, 10, 100], [4]), line([1, 9], [2, 3])]
    ax = draw(figure(marks, Axis(log=True, range=(1, 100)), LOG)).axes[0]
    corners = ax.collections[0].get_coordinates()
    np.testing.assert_allclose(corners[0, :, 0], np.power(10.0, [-0.5, 0.5, 1.5, 2.5]))
    assert ax.get_xlim() == pytest.approx((1, 100))


def test_axes_are_as_they_are_asked_for():
    (ax,) = draw(figure([line([1, 2, 3])], Axis("epoch", whole=True), Axis("gap", log=True, range=(1e-3, 10)))).axes
    assert ax.get_ylim() == pytest.approx((1e-3, 10))
    assert {"10⁻³", "10⁰"} <= set(labels(ax.yaxis))
    assert {"0", "1", "2"} <= set(labels(ax.xaxis))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "gap")
    (ax,) = draw(figure([line([1, 2, 3], [64, 128, 256])], Axis(log=True, ticks=[64, 256]))).axes
    assert labels(ax.xaxis) == ["64", "256"]
    assert len(ax.xaxis.get_minorticklocs()) == 0
    (ax,) = draw(figure([line([0, 2e7])])).axes
    assert {"0", "5M", "20M"} <= set(labels(ax.yaxis))
    (ax,) = draw(figure([line([5, 6])], y=Axis(from_zero=True))).axes
    assert ax.get_ylim()[0] == 0
    (ax,) = draw(figure([line([-5, 6])], y=Axis(zero_line=True))).axes
    assert [drawn.get_ydata() for drawn in ax.lines][1:] == [[0, 0]]


def test_an_unknown_kind_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"^expected png, svg or pdf as the kind of figures, got 'jpeg'$"):
        save_figures([figure([line([1, 2])])], tmp_path, "jpeg")


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"^cannot write .*file"):
        save_figures([figure([line([1, 2])])], tmp_path / "file", "svg")
    with pytest.raises(InputError, match=r"^cannot write .*missing"):
        save_figures([figure([line([1, 2])], name="missing/folder")], tmp_path, "svg")


def test_the_users_own_settings_count_for_nothing_and_stay(tmp_path):
    page = figure([line([1, 2])])
    (path,) = save_figures([page], tmp_path, "svg")
    before = path.read_bytes()
    with rc_context({"font.size": 30, "axes.grid": False}):
        settings = dict(rcParams)
        (path,) = save_figures([page], tmp_path, "svg")
        assert dict(rcParams) == settings
    assert path.read_bytes() == before


def test_without_matplotlib_the_error_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"matplotlib.*neuralcollapse\[train\]"):
        save_figures([figure([line([1, 2])])], tmp_path / "out", "png")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [
        (0.2, 0.5, {"0.2", "0.3", "0.4", "0.5"}),
        (1, 20, {"1", "2", "5", "10", "20"}),
        (1, 200, {"1", "3", "10", "30", "100"}),
        (2e-5, 8e-5, {"2·10⁻⁵", "4·10⁻⁵"}),
    ],
)
def test_log_axes_have_some_ticks_however_long_they_are(low, high, shown):
    (ax,) = draw(figure([line([low, high])], y=LOG)).axes
    bottom, top = ax.get_ylim()
    inside = [text.get_text() for text in ax.yaxis.get_ticklabels() if bottom <= text.get_position()[1] <= top]
    assert shown <= set(inside)
    assert len(inside) <= 8


def test_ticks_of_many_decades_are_evenly_apart():
    (ax,) = draw(figure([line([1e-16, 1])], y=LOG)).axes
    bottom, top = ax.get_ylim()
    inside = [text.get_text() for text in ax.yaxis.get_ticklabels() if bottom <= text.get_position()[1] <= top]
    plain = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
    exponents = [0 if text == "1" else int(text.removeprefix("10").translate(plain)) for text in inside]
    assert 4 <= len(exponents) <= 8
    assert {after - before for before, after in itertools.pairwise(exponents)} == {exponents[1] - exponents[0]}
    assert exponents[0] <= -13


@pytest.mark.parametrize(("count", "above"), [(2, True), (12, False)])
def test_a_legend_stands_outside_of_the_axes_which_keep_their_height(count, above):
    drawing = draw(figure([line([1, 2], name=f"a run with the name {i}") for i in range(count)]))
    drawing.draw_without_rendering()
    (ax,), (box,) = drawing.axes, drawing.legends
    assert legend(drawing) == [f"a run with the name {i}" for i in range(count)]
    seen, axes = box.get_window_extent(), ax.get_tightbbox()
    assert seen.y0 >= axes.y1 - 1 if above else seen.y1 <= axes.y0 + 1
    assert -1 <= seen.x0 < seen.x1 <= drawing.bbox.width + 1
    assert ax.bbox.height / drawing.dpi > 1.4


def test_a_legend_is_there_when_it_has_something_to_tell_apart():
    one, two = line([1, 2], name="a"), line([1, 2], name="b")
    assert legend(draw(figure([one]))) == []
    assert legend(draw(figure([one, two]))) == ["a", "b"]
    assert legend(draw(figure([one, two, line([1, 2], name="c", legend=False)]))) == ["a", "b"]


def test_long_class_names_do_not_push_a_heat_map_away():
    names = [f"a class with a rather long name, number {i}" for i in range(40)]
    geometry = Geometry(1, np.eye(40), np.zeros(40), np.eye(40), np.zeros(40))
    drawing = draw(cosine_map([geometry], names))
    ax = drawing.axes[0]
    assert len(labels(ax.yaxis)) == 14
    assert labels(ax.yaxis)[1] == "a class with a\n…number 3"
    assert ax.bbox.width / drawing.dpi > 1


def test_what_has_depth_is_refused():
    geometry = Geometry(1, np.eye(3), np.zeros(3), np.eye(3), np.zeros(3))
    with pytest.raises(ValueError, match="three dimensions"):
        draw(simplex_motion([geometry], list("abc")))


def test_every_kind_of_figure_of_a_landscape_can_be_drawn():
    energy = {"name": "1+1", "verdict": "global_minimum", "objective": 0.5, "index": 0}
    path = [[0, 1.0, 0.5], [1, 0.6, 1e-3], [9, 0.5, 1e-17]]
    survey = {"name": "some", "labels": {}, "minimum": 0.5, "atlas": [energy], "trajectories": [path]}
    phase = Phase([1, 10, 100], [0.1, 1, 10], [[-1, 0, 1], [0, 0, math.nan], [1, 1, 1]], 4, 100, 0.0)
    found = SimpleNamespace(phase=phase, spectra={"saddle": np.array([-1.0, 0, 2])})
    pages = [energy_figure([survey]), gap_figure([survey]), spectrum_figure(found), phase_figure(found)]
    for page, lines, maps in zip(pages, (1, 2, 2, 1), (0, 0, 0, 1), strict=True):  # a line at zero in the spectrum
        ax = draw(page).axes[0]
        assert (len(ax.lines), len(ax.collections)) == (lines, maps)


def lightness(color: str) -> float:
    """CIE lightness, from 0 to 100."""
    shares = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in shares]
    return 116 * sum(a * b for a, b in zip((0.2126, 0.7152, 0.0722), linear, strict=True)) ** (1 / 3) - 16


def test_curves_differ_in_lightness_and_shape_so_that_grey_is_enough():
    marks = [line([1, 2, 3], color=color, name=color) for color in COLORS]
    drawn = draw(figure(marks)).axes[0].lines
    shades = [lightness(to_hex(each.get_color())) for each in drawn]
    assert all(abs(one - other) > 20 for one, other in itertools.pairwise(shades[:8]))
    assert len({each.get_marker() for each in drawn}) == len(COLORS)
    (alone,) = draw(figure(marks[:1])).axes[0].lines
    assert alone.get_marker() == "none"  # nothing to tell it from


def test_curves_that_are_seen_only_when_selected_are_not_on_paper():
    (ax,) = draw(figure([line([1, 2]), line([3, 4], only_selected=True)])).axes
    assert len(ax.lines) == 1


def test_panels_share_their_horizontal_axis_and_one_legend_with_the_same_shapes():
    both = [line([1, 2, 3], name="a"), line([3, 2, 1], name="b", color=AMBER)]
    first, second = figure(both, Axis("epoch"), LOG, "one"), figure(both[1:], Axis("epoch"), Axis("NC2"), "two")
    drawing = draw_panels([first, second])
    upper, lower = drawing.axes
    assert (upper.get_xlabel(), lower.get_xlabel(), lower.get_ylabel()) == ("", "epoch", "NC2")
    assert upper.get_xlim() == lower.get_xlim()
    assert legend(drawing) == ["a", "b"]
    assert upper.lines[1].get_marker() == lower.lines[0].get_marker() == "s"
    assert drawing.get_size_inches()[0] == pytest.approx(3.25)
    assert all(ax.get_position().height * drawing.get_size_inches()[1] > 1 for ax in drawing.axes)


def test_panels_are_a_file_beside_those_of_their_figures(tmp_path):
    pages = [figure([line([1, 2])], name=name) for name in ("one", "two", "three")]
    paths = save_figures(pages, tmp_path, "svg", [Panels("both", "Both", ["one", "three"])])
    assert [path.name for path in paths] == ["one.svg", "two.svg", "three.svg", "both.svg"]


def test_names_beside_points_do_not_overlap_and_stay_on_the_axes():
    dots = Dots("some", [0, 1, 1, 2], [0, 1, 1.01, 2], BLUE, labels=["one", "two", "three", "four"])
    drawing = draw(figure([dots]))
    (ax,) = drawing.axes
    drawing.draw_without_rendering()
    boxes = [text.get_window_extent() for text in ax.texts]
    assert {text.get_text() for text in ax.texts} >= {"one", "two", "four"}
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
