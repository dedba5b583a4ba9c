import numpy as np
import pytest

from neuralcollapse.report.comparison import run_table, where
from neuralcollapse.report.expected import budget_table, expected_note, row_sum_left
from neuralcollapse.report.records_csv import records_csv
from neuralcollapse.report.single import single_page, state
from neuralcollapse.runs.reading import Run
from neuralcollapse.runs.records import Geometry, goal
from tests.helpers import made_record

MINIMUM = {"nc2": 0.25, "nonnegative": 1.0, "weight_decay": 0.01, "feature_decay": 2e-5, "bias_decay": 0.01}


def run(config=None, environment=None, geometries=(), **groups) -> Run:
    return Run("a", config or {}, environment or {}, [made_record(measures={"nc2": 0.5}, **groups)], geometries)


def kept(epoch: int, weight: float) -> Geometry:
    return Geometry(epoch, np.eye(2), np.zeros(2), np.full((2, 2), weight), np.zeros(2))


def test_the_measures_have_columns_of_what_theory_expects():
    table = single_page(run(minimizer=MINIMUM, untrained={"nc2": 0.4, "nc0": 0.1})).tables[0]
    assert table.header[3:] == ("at the exact minimum", "untrained head")
    assert table.cells()[0][3].text == "0.25"
    assert table.cells()[0][4].text == "0.4"
    assert len(single_page(run()).tables[0].header) == 3


def test_the_note_names_the_model():
    note = expected_note(run({"decay_on": "all"}, minimizer=MINIMUM, untrained={"nc0": 0.1}))
    assert "features >= 0, weight decay 0.01, feature decay 2.00e-05 (from the balance" in note
    assert "as nn.Linear draws them" in note
    assert "balance" not in expected_note(run({"decay_on": "classifier"}, minimizer=MINIMUM))
    assert "real features and equal classes" in expected_note(run(minimizer={"nc2": 0.0, "nonnegative": 0.0}))
    assert expected_note(run()) == ""


def test_the_budget_is_shown_with_what_it_left():
    small = run(environment={"decay_budget": 0.5, "row_sum_left": 0.61}, geometries=[kept(0, 2.0), kept(9, 1.0)])
    (table,) = budget_table(small)
    assert [row[1] for row in table.rows] == ["0.5", "0.61", "0.5"]
    assert "had no time" in table.note
    (table,) = budget_table(run(environment={"decay_budget": 4.0}))
    assert "had no time" not in table.note
    assert not budget_table(run(environment={"decay_budget": None}))
    assert run_table([small]).header[-1] == "decay budget"
    assert run_table([run()]).header[-1] != "decay budget"


@pytest.mark.parametrize("damaged", ["much", True, float("nan"), [1]])
def test_a_budget_that_is_no_number_is_left_out(damaged):
    assert not budget_table(run(environment={"decay_budget": damaged}))


def test_what_is_left_of_the_row_sum_needs_the_untrained_classifier():
    assert row_sum_left(run(geometries=[kept(0, 2.0), kept(9, 1.0)])) == 0.5
    assert row_sum_left(run(geometries=[kept(1, 2.0), kept(9, 1.0)])) is None
    assert row_sum_left(run(geometries=[kept(0, 0.0), kept(9, 1.0)])) is None


def test_the_csv_has_it_in_its_last_columns():
    header, line = records_csv([run(minimizer=MINIMUM, untrained={"nc2": 0.4})]).splitlines()
    assert header.endswith("minimizer_bias_decay,untrained_nc2")
    assert line.endswith(",0.01,0.4")


def test_unequal_classes_are_not_said_to_go_to_zero():
    assert "Under collapse all but NC bias go to 0" in single_page(run(minimizer={"nc2": 0.0})).tables[0].note
    unequal = run(minimizer=MINIMUM)
    assert "Under collapse the measures go to their values at the minimum" in single_page(unequal).tables[0].note
    assert goal(unequal.last) != goal(run(minimizer={"nc2": 0.0, "nc_bias": 1.0, "weight_decay": 0.1}).last)


def test_unequal_classes_are_no_simplex_yet_only_where_the_minimum_is_one():
    measures = {"nc1": 0.01, "nc2_means": 0.4, "nc3": 0.1}
    for level, words in ((0.0, "which are no simplex yet"), (0.3, "no simplex (nor are they at the exact minimum)")):
        record = made_record(measures=measures, minimizer={"nc2_means": level, "nc3": 0.0}, train={"accuracy": 1.0})
        assert words in state(record)


def test_the_bias_of_the_classifiers_own_decay_is_not_said_to_be_late():
    environment = {"decay_budget": 0.5}
    assert "NC2, duality and the bias had" in budget_table(run({"decay_on": "all"}, environment))[0].note
    assert "NC2 and duality had" in budget_table(run({"decay_on": "classifier"}, environment))[0].note


def test_the_budget_has_a_table_of_its_own_and_is_not_where_it_ran():
    one = run(environment={"decay_budget": None, "row_sum_left": None, "python": "3"})
    assert single_page(one).tables[-1].rows == where([one]) == [("python", "3")]


def test_the_sentences_on_a_head_are_set_as_words_that_wrap():
    head = {"objective": 1.2, "minimum": 1.0, "ratio": 1.2, "lower_bound": 0.9}
    page = single_page(run(head=head))
    assert [table.heading for table in page.tables if table.words] == ["The head against its optimum at epoch 1"]
    assert page.html().count(' class="words">') == 1
    assert ".words td.number { white-space: normal;" in page.html()
