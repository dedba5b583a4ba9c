import json
import math
from dataclasses import replace

import numpy as np
import pytest

from neuralcollapse.report.figure_data import figure_data
from neuralcollapse.report.formats import markdown
from neuralcollapse.report.landscape import (
    LANDSCAPE_FIGURES,
    energy_figure,
    gap_figure,
    landscape_figures,
    landscape_page,
    summary,
)
from neuralcollapse.report.landscape_tables import model_table
from neuralcollapse.report.paper import save_figures
from neuralcollapse.ufm.model import Model
from neuralcollapse.ufm.survey import minority_phase, survey


@pytest.fixture(scope="module")
def balanced():
    return survey(Model(3, 4, 4, 0.005, 0.005), starts=10)


@pytest.fixture(scope="module")
def unequal():
    return survey(Model(3, 4, [9, 4, 2], 0.01, 0.004, 0.01), starts=10)


def test_a_survey_finds_the_minimum_the_saddles_and_a_way_out(balanced):
    assert [entry.name for entry in balanced.atlas] == ["3", "2+1", "rank 1: line at -1, 0, 1", "1+1+1"]
    assert "rank 1" in balanced.coverage
    assert set(balanced.starts.verdicts) == {"global_minimum"}
    assert balanced.atlas[-1].objective == pytest.approx(balanced.minimum, abs=1e-12)
    saddle, way = balanced.way
    values = [float(balanced.model.value(point)) for point in way]
    assert values[0] == pytest.approx(saddle.objective)
    assert values == sorted(values, reverse=True)
    assert values[-1] == pytest.approx(balanced.minimum, abs=1e-8)
    assert float(balanced.spectra["global minimum"][0]) > -1e-9
    assert float(balanced.spectra["saddle 3"][0]) < -1e-3


def test_every_figure_is_plain_json(unequal):
    figures = landscape_figures(unequal)
    assert tuple(figure.name for figure in figures) == LANDSCAPE_FIGURES
    for figure in figures:
        json.dumps(figure_data(figure), allow_nan=False)
        assert figure.alt


def test_the_energy_figure_holds_the_atlas(balanced):
    figure = landscape_figures(balanced)[0]
    points = {(x, y) for mark in figure.marks for x, y in zip(mark.x, mark.y, strict=True)}
    assert points == {(entry.index, entry.objective) for entry in balanced.atlas}


def test_several_models_have_their_energies_over_the_minimum(balanced, unequal):
    models = [{**found.record(), "labels": {"model": name}} for found, name in ((balanced, "a"), (unequal, "b"))]
    figure = energy_figure(models)
    assert [mark.name for mark in figure.marks] == ["a", "b"]
    for mark, found in zip(figure.marks, (balanced, unequal), strict=True):
        assert min(mark.y) == 1
        assert max(mark.y) == pytest.approx(max(entry.objective for entry in found.atlas) / found.minimum)
        assert mark.x[mark.y.index(1)] == 0
    assert len(energy_figure(models * 6).marks) == len(gap_figure(models * 6).marks) == 12  # though colours repeat


def test_the_gap_of_several_models_is_the_largest_of_their_starts_and_falls(balanced, unequal):
    models = [{**found.record(), "name": name} for found, name in ((balanced, "a"), (unequal, "b"))]
    for mark, found in zip(gap_figure(models).marks, (balanced, unequal), strict=True):
        assert mark.y[-1] == pytest.approx(max(path.history[-1].gap for path in found.trajectories))
        assert mark.y[0] > 1e3 * mark.y[-1]


def test_the_gaps_of_one_model_are_those_of_each_start(balanced):
    figure = gap_figure([balanced.record()])
    assert len(figure.marks) == 2 * len(balanced.trajectories)
    certified, true = figure.marks[:2]
    assert (certified.dash, true.dash) == ("solid", "dot")
    assert certified.y[-1] == balanced.trajectories[0].history[-1].gap
    assert all(above <= gap + 1e-12 for above, gap in zip(true.y, certified.y, strict=True))


def test_without_an_atlas_or_gaps_there_is_no_figure(balanced):
    bare = {**balanced.record(), "atlas": [], "minimum": None, "trajectories": [[[0, 1.0, None], [1, 0.5, None]]]}
    assert energy_figure([bare]) is energy_figure([bare, bare]) is None
    assert gap_figure([bare]) is gap_figure([bare, bare]) is None


def test_the_page_is_also_markdown_and_figures_for_a_paper(unequal, tmp_path):
    page = landscape_page(unequal)
    assert "| 0 \\| 1 \\| 2 |" in markdown(page)
    paths = save_figures(page.figures, tmp_path, "svg")
    assert [path.stem for path in paths] == ["energy", "gaps", "spectrum", "phase"]


def test_families_are_told_apart_in_figure_table_and_summary(balanced):
    marks = {mark.name: mark for mark in landscape_figures(balanced)[0].marks}
    assert list(marks) == ["global minimum", "strict saddle", "strict saddle, low rank"]
    assert marks["strict saddle, low rank"].texts == ["rank 1: line at -1, 0, 1"]
    assert marks["strict saddle"].texts == ["groups 3", "groups 2+1"]
    assert len({(mark.color, mark.hollow) for mark in marks.values()}) == 3
    assert "(3 by partitions, 1 of low rank)" in summary(balanced)
    page = landscape_page(balanced).html()
    assert balanced.coverage in page
    assert "rank 1: line at -1, 0, 1" in page


def test_gaps_fall_below_the_tolerance_and_never_under_the_true_gap(balanced):
    for run in balanced.trajectories:
        assert run.history[-1].gap < 1e-6
        for step in run.history:
            assert step.gap >= step.objective - balanced.minimum - 1e-12


@pytest.mark.slow
def test_minority_rows_coincide_exactly_beyond_the_line():
    phase = minority_phase(Model(4, 4, [9, 9, 2, 2], 0.01, 0.004, 0.01))
    for ratio, row in zip(phase.ratios, phase.cosines, strict=True):
        small = max(1, round(phase.majority / ratio))
        for decay, cosine in zip(phase.decays, row, strict=True):
            if math.isnan(cosine):
                continue
            together = math.sqrt(small) <= decay
            assert (cosine > 1 - 1e-6) == together, (ratio, decay, cosine)


def test_the_page_states_what_the_survey_found(unequal):
    page = landscape_page(unequal).html()
    assert summary(unequal) in page
    assert f"{unequal.minimum:.8g}" in page
    assert "0 | 1 | 2" in page
    assert len(page.encode()) < 2_000_000


@pytest.mark.slow
def test_focal_and_low_dimensions_are_surveyed_without_claims():
    focal = survey(Model(3, 3, 3, 0.01, 0.01, loss="focal"), starts=4)
    assert "no bound exists" in summary(focal)
    assert "global_minimum" not in focal.starts.verdicts
    low = survey(Model(5, 2, 3, 0.004, 0.004, 0.01), starts=4)
    assert low.minimum is None
    assert low.way is None
    landscape_page(focal).html()
    landscape_page(low).html()
    assert np.isfinite(low.starts.gaps.numpy()).all()


def test_the_page_says_what_is_proved_of_its_model_and_what_is_not(balanced, unequal):
    for found in (balanced, unequal):
        page = landscape_page(found)
        model, atlas, terms, certificates = page.tables
        words = {row[0].text: row[1] for row in model.cells()}
        assert page.lead == 1
        assert (
            words["objective"].formula.count("<math") == 4
        )  # the mean loss and three decays, each on a line of its own
        assert "here all three hold" in words["theorem"].text
        assert "No proof says" in words["complete?"].text
        assert {"groups", "low rank", "index", "strict saddle"} <= {row[0].text for row in terms.cells()}
        assert len(atlas.rows) == len(found.atlas)
        (end,) = certificates.cells()
        header = dict(zip(certificates.header, end, strict=True))
        assert header["ratio"].text == "1.0000"
        assert float(header["objective"].text) >= float(header["bound"].text) > 0
        assert "Model assumed: cross-entropy, features of any sign" in certificates.note


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Model(3, 3, 3, 0.01, 0.01, loss="focal"), "not convex"),
        (Model(5, 2, 3, 0.01, 0.01), "d < K-1"),
        (Model(5, 4, 3, 0.01, 0.01), "Here d = K-1"),
        (Model(3, 3, 3, 0.01, 0.01, features="nonnegative"), "features are >= 0"),
    ],
)
def test_the_theorem_is_not_claimed_where_it_says_nothing(model, words, balanced):
    (row,) = [row for row in model_table(replace(balanced, model=model)).cells() if row[0].text == "theorem"]
    assert words in row[1].text
    assert "all three hold" not in row[1].text


def test_points_have_names_and_those_of_low_rank_a_colour_of_their_own(balanced):
    marks = {mark.name: mark for mark in landscape_figures(balanced)[0].marks}
    assert marks["strict saddle"].labels == ["3", "2+1"]
    assert marks["strict saddle, low rank"].labels == ["rank 1"]
    assert len({mark.color for mark in marks.values()}) == 3


def test_each_start_has_a_name_and_its_two_lines_go_together(balanced):
    certified, true = gap_figure([balanced.record()]).marks[:2]
    assert (certified.name, certified.legend, true.part_of, true.legend) == ("start 0", True, "start 0", False)
    bare = {**balanced.record(), "trajectories": [[[0, 1.0, None], [1, 0.5, None]]]}
    (alone,) = gap_figure([bare]).marks
    assert (alone.name, alone.legend, alone.part_of) == ("start 0", True, "")


def test_figures_leave_no_gap_on_the_page(balanced, unequal):
    assert [figure.size for figure in landscape_figures(balanced)] == ["large", "", "wide", "wide"]
    assert [figure.size for figure in landscape_figures(unequal)] == ["large", "", "", "", ""]
