"""The classes on the page of a run: the worst first, at most 200 of them, all in the CSV file, names escaped."""

import csv
import io
import math
import re

import numpy as np
import pytest

from neuralcollapse.report.class_tables import class_tables
from neuralcollapse.report.formats import markdown
from neuralcollapse.report.page import Page
from neuralcollapse.report.single import single_page
from neuralcollapse.runs.class_record import ClassRecord
from neuralcollapse.runs.reading import Run
from tests.helpers import made_record

EVIL = "<img src=x onerror=alert(1)>"


def run(count=5, *, names=None, **changed):
    numbers = np.arange(count, dtype=float)
    columns = {
        "number": numbers,
        "count": numbers + 1,
        "nearest": (numbers + 1) % count,
        "cdnv": numbers / 3,
        "accuracy": 1 - numbers / count,
        "variance": numbers + 1 / 3,
        **changed,
    }
    known = {name: value for name, value in columns.items() if value is not None}
    classes = ClassRecord(1, known, np.array([[0, 1, 0.5], [1, 2, math.inf]]))
    return Run("r", {}, {"class_names": names}, [made_record(1)], classes=classes)


def test_the_worst_come_first_and_the_pairs_beside_them():
    (table,) = class_tables(run(names=[EVIL, "b", "c", "d", "e"]))
    assert [row[0].text for row in table.rows] == ["4 e", "3 d", "2 c", "1 b", f"0 {EVIL}"]
    assert list(table.header) == ["class", "samples", "CDNV", "nearest", "accuracy", "variance"]
    assert table.sorted_by == (2, True)
    assert [row[:2] for row in table.beside.rows] == [(f"0 {EVIL}", "1 b"), ("1 b", "2 c")]
    assert class_tables(Run("r", {}, {}, [made_record(1)])) == []


def test_many_classes_are_cut_and_the_csv_has_all():
    (table,) = class_tables(run(1500))
    assert len(table.rows) == 200
    assert table.rows[0][0].text == "1499"
    assert "Drawn are the 200 worst of 1,500 classes; the CSV file has all." in table.note
    lines = list(csv.DictReader(io.StringIO(table.csv[1])))
    assert [int(line["class"]) for line in lines] == list(range(1500))
    assert lines[1]["variance"] == "1.33333"
    assert "Drawn are" not in class_tables(run(200))[0].note


def test_a_page_holds_the_worst_of_very_many_classes_and_says_so():
    (table,) = class_tables(run(10_001))
    assert len(list(csv.DictReader(io.StringIO(table.csv[1])))) == 10_000
    assert table.csv_label == "Download the worst 10,000 classes (CSV)"
    assert "the CSV file has the 10,000 worst; the run folder has all." in table.note
    assert len(Page("t", "", "", [], [], [table]).html()) < 1_000_000


def test_without_pairs_another_column_decides_and_what_is_undefined_is_last():
    alignment = np.array([0.5, math.nan, -1.0])
    (table,) = class_tables(run(3, cdnv=None, nearest=None, alignment=alignment))
    assert [row[0].text for row in table.rows] == ["2", "0", "1"]
    assert table.sorted_by == (3, False)
    assert [row[3].text for row in table.rows] == ["-1.000", "0.500", ""]


def test_the_page_escapes_names_and_says_how_it_is_sorted():
    page = single_page(run(names=[EVIL, "</script>", "c", "d", "e"]))
    text = page.html()
    assert "<img" not in text
    assert text.count("</script>") == text.count("<script>")
    heads = re.findall(r'<th scope="col"[^>]*>', text)
    assert [head for head in heads if "aria-sort" in head] == ['<th scope="col" class="number" aria-sort="descending">']
    assert "Hardest to tell apart" in markdown(page)


@pytest.mark.parametrize("names", [["x" * 300] * 5, None, ["too", "few"], [None, 1, 2, 3, 4]])
def test_names_of_any_kind(names):
    (table,) = class_tables(run(names=names))
    assert max(len(cell.text) for row in table.rows for cell in row) <= 60
    single_page(run(names=names)).html()
