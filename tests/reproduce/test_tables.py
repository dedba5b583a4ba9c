import pytest

from neuralcollapse.reproduce import surveys
from neuralcollapse.reproduce.experiment import SurveyConfig
from neuralcollapse.reproduce.tables import THEORY, group_table, survey_csv, survey_tables, theory_table
from neuralcollapse.runs.reading import Run, group_runs
from tests.helpers import made_record


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A surveyed model, written and read again."""
    place = tmp_path_factory.mktemp("survey")
    config = SurveyConfig(3, 4, 2, 0.01, 0.01, starts=5)
    surveys.write(place, config, surveys.facts(config))
    again, facts = surveys.read(place)
    assert again == config
    return {"name": "m", "labels": {"model": "<i>K = 3</i>"}, **facts}


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


def test_grids_with_axes_of_their_own_share_a_table():
    record = made_record(measures={"nc2": 0.5}, minimizer={"nc2": 0.1})
    groups = group_runs(Run(text, {}, {}, [record], labels={axis: text}) for axis, text in (("a", "x"), ("b", "y")))
    (theory,) = theory_table(groups)
    assert theory.heading == THEORY
    for table in (group_table(groups), theory):
        assert tuple(table.header[:2]) == ("a", "b")
        assert [[cell.text for cell in row[:2]] for row in table.cells()] == [["x", ""], ["", "y"]]


def test_what_theory_knows_breaks_between_its_numbers_alone():
    record = made_record(measures={"nc2": 0.5}, minimizer={"nc2": 0.1}, untrained={"nc2": 0.4})
    (theory,) = theory_table(group_runs([Run("x", {}, {}, [record], labels={"a": "x"})]))
    notes = [cell.note for row in theory.cells() for cell in row if cell.note]
    assert [note.split(" ") for note in notes] == [["untrained\u00a00.4,", "minimum\u00a00.1"]]
