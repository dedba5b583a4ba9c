import json

import pytest

from neuralcollapse.report.paper import draw
from neuralcollapse.reproduce import surveys
from neuralcollapse.reproduce.experiment import SurveyConfig
from neuralcollapse.reproduce.figures import energy_figure, gap_figure, survey_csv, survey_tables


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A surveyed model, written and read again."""
    place = tmp_path_factory.mktemp("survey")
    config = SurveyConfig(3, 4, 2, 0.01, 0.01, starts=5)
    surveys.write(place, config, surveys.facts(config))
    again, facts = surveys.read(place)
    assert again == config
    return {"name": "m", "labels": {"model": "<i>K = 3</i>"}, **facts}


def test_the_energies_are_over_the_minimum(found):
    figure = energy_figure([found])
    (trace,) = figure.data
    assert min(trace["y"]) == 1
    assert max(trace["y"]) == pytest.approx(max(e["objective"] for e in found["atlas"]) / found["minimum"])
    assert trace["x"][trace["y"].index(1)] == 0
    assert trace["name"] == "&lt;i&gt;K = 3&lt;/i&gt;"
    draw(figure)


def test_the_gap_is_the_largest_and_falls(found):
    figure = gap_figure([found])
    (trace,) = figure.data
    assert trace["y"][-1] == pytest.approx(max(path[-1][2] for path in found["trajectories"]), rel=1e-3)
    assert trace["y"][0] > 1e3 * trace["y"][-1]
    json.dumps(figure.data, allow_nan=False)
    draw(figure)


def test_every_model_is_drawn_though_colours_repeat(found):
    assert len(energy_figure([found] * 12).data) == len(gap_figure([found] * 12).data) == 12


def test_without_an_atlas_or_gaps_there_is_no_figure(found):
    bare = {**found, "atlas": [], "trajectories": [[[0, 1.0, None], [1, 0.5, None]]]}
    assert energy_figure([bare]) is None
    assert gap_figure([bare]) is None


def test_the_tables_count_starts_and_saddles(found):
    models, points = survey_tables([found])
    assert [cell.text for cell in models.cells()[0]][2:4] == ["5", "5"]
    assert models.cells()[0][6].sort == len(found["atlas"]) - 1
    assert len(points.rows) == len(found["atlas"])


def test_a_line_for_each_start(found):
    lines = survey_csv([found]).splitlines()
    assert lines[0] == "model,start,objective,gap,verdict"
    assert len(lines) == 6
    assert lines[1].endswith("global_minimum")


def test_a_survey_is_there_only_when_whole(tmp_path):
    assert surveys.read(tmp_path) is None
