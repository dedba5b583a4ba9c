import math
from dataclasses import replace

import pytest

from neuralcollapse.report.comparison import (
    collapse_panels,
    comparison_page,
    comparison_verdict,
    differences,
    run_table,
)
from neuralcollapse.report.seeds import seed_groups
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


def test_what_runs_differ_in_comes_first_and_what_they_share_last():
    runs = [run("a", record(), lr=1, net="m"), run("b", record(), lr=2, net="m")]
    page = comparison_page(runs)
    assert [table.heading for table in page.tables] == [
        "What differs",
        "Every run at its end",
        "What they share",
        "Where they ran",
    ]
    differ, _, share, where = page.tables
    assert page.lead == 2
    assert differ.header == ("run", "lr")
    assert [[cell.text for cell in row] for row in differ.cells()] == [["a", "1"], ["b", "2"]]
    assert list(share.rows) == [("net", "m")]
    assert where.rows == [("torch", "2")]


def seeds(*values, lr=1):
    return [run(f"lr{lr}-seed{i}", record(nc1=x), lr=lr, seed=i) for i, x in enumerate(values)]


def test_seeds_of_one_configuration_are_a_row_with_mean_and_spread_and_a_row_each():
    page = comparison_page([*seeds(1.0, 2.0), *seeds(3.0, 3.0, lr=2)])
    differ, every = page.tables[:2]
    assert differ.header == ("runs", "lr", "seeds", "train accuracy", "NC1")
    assert [[cell.text for cell in row[:3]] for row in differ.cells()] == [["lr1", "1", "0, 1"], ["lr2", "2", "0, 1"]]
    assert differ.cells()[0][4][:3] == ("1.5", "±\N{NO-BREAK SPACE}0.71", 1.5)
    assert page.subtitle.endswith("; 2 configurations with 2 seeds each")
    names = [cell.select for table in (differ, every) for cell, *_ in table.cells()]
    assert names == ["lr1", "lr2", "lr1-seed0", "lr1-seed1", "lr2-seed0", "lr2-seed1"]
    colors = [cell.color for table in (differ, every) for cell, *_ in table.cells()]
    assert colors[2:] == [colors[0]] * 2 + [colors[1]] * 2
    chosen = {name for figure in page.figures for mark in figure.marks for name in getattr(mark, "selected_by", ())}
    assert chosen == set(names)


def test_seeds_alone_differ_in_nothing_else():
    (table,) = differences(seed_groups(seeds(1.0, 2.0)))
    assert table.note.startswith("Nothing but the seed.")
    assert comparison_page(seeds(1.0, 2.0)).subtitle.endswith("; 2 seeds of one configuration")
    assert differences(seed_groups([run("a", record()), run("b", record())])) == []
    assert differences(seed_groups(seeds(1.0, 2.0)), numbers=False) == []


def test_the_options_alone_differ_where_the_numbers_stand_elsewhere():
    (table,) = differences(seed_groups([*seeds(1.0, 2.0), *seeds(3.0, 3.0, lr=2)]), numbers=False)
    assert table.header == ("runs", "lr", "seeds")
    assert [[cell.text for cell in row] for row in table.cells()] == [["lr1", "1", "0, 1"], ["lr2", "2", "0, 1"]]
    assert "standard deviation" not in table.note


def test_a_paper_has_nc1_to_nc3_in_one_figure():
    (panels,) = collapse_panels(["curve-nc1", "curve-nc2", "curve-nc2_means", "curve-nc3"])
    assert panels.figures == ["curve-nc1", "curve-nc2", "curve-nc3"]
    assert collapse_panels(["curve-nc2_means", "curve-nc3_distance"])[0].figures == [
        "curve-nc2_means",
        "curve-nc3_distance",
    ]
    assert collapse_panels(["curve-nc1"]) == collapse_panels([]) == []


def test_a_page_of_two_runs_holds_their_figures(short_run):
    first = read_run(short_run.path)
    page = comparison_page([first, replace(first, name="other")])
    names = [figure.name for figure in page.figures]
    assert names[:3] == ["curve-train-loss", "curve-nc1", "curve-nc2"]
    assert names[-3:] == ["scree", "cosines", "simplex-motion"]
    assert len(names) == len(set(names))
    assert page.csv[1].count("\n") == 1 + 2 * len(first.records)
