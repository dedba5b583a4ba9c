import math
from dataclasses import replace

import pytest

from neuralcollapse.report.comparison import comparison_page, comparison_verdict, run_table, setting_tables
from neuralcollapse.report.single import state
from neuralcollapse.runs.reading import Run, read_run
from neuralcollapse.runs.records import Record


def record(accuracy=1.0, **measures):
    return Record(9, 1.0, 0.1, {"accuracy": accuracy}, {}, measures)


def run(name, last, **config):
    return Run(name, config, {"torch": "2"}, [last])


@pytest.mark.parametrize(
    ("last", "word"),
    [
        (record(nc1=0.09, nc2_means=0.1, nc3=0.1), "Collapsed to a simplex"),
        (record(nc1=0.09, nc2_means=0.3, nc3=0.1), "Collapsed to the class means, which are no simplex yet,"),
        (record(nc1=0.09, nc3=0.1), "Collapsed to the class means, which are no simplex yet,"),
        (record(nc1=0.11, nc2_means=0.1, nc3=0.1), "Not collapsed"),
        (record(0.98, nc1=0.01, nc2_means=0.1, nc3=0.1), "Not collapsed"),
        (record(nc1=math.nan), "Not collapsed"),
    ],
)
def test_the_word_goes_by_the_stated_limits(last, word):
    assert state(last) == word


def test_the_verdict_counts_the_runs():
    runs = [run("a", record(nc1=0.01, nc2_means=0.1, nc3=0.1)), run("b", record(nc1=2.0)), run("c", record(nc1=3.0))]
    assert comparison_verdict(runs) == (
        "Of 3 runs: 1 collapsed to a simplex, 2 not collapsed; NC1 at the end from 0.01 to 3."
    )


def test_a_row_for_each_run_sorts_by_its_numbers():
    table = run_table([run("a", record(nc1=0.5), seed=10), run("b", record(nc1=math.nan), seed=2)])
    column = table.header.index("NC1")
    assert [row[column].text for row in table.cells()] == ["0.5", ""]
    assert [row[table.header.index("seed")].sort for row in table.cells()] == [10, 2]
    assert table.sortable
    assert "NC2" not in table.header


def test_what_runs_differ_in_and_what_they_share():
    differ, share, where = setting_tables([run("a", record(), lr=1, net="m"), run("b", record(), lr=2, net="m")])
    assert list(differ.rows) == [("a", "1"), ("b", "2")]
    assert list(share.rows) == [("net", "m")]
    assert where.rows == [("torch", "2")]


def test_a_page_of_two_runs_holds_their_figures(short_run):
    first = read_run(short_run.path)
    page = comparison_page([first, replace(first, name="other")])
    names = [figure.name for figure in page.figures]
    assert names[:2] == ["curve-nc1", "curve-nc2"]
    assert names[-2:] == ["cosines", "simplex-motion"]
    assert len(names) == len(set(names))
    assert page.csv[1].count("\n") == 1 + 2 * len(first.records)
