"""The table of classes: the worst first, as rows, text, HTML and CSV, with names that may hold anything."""

import csv
import math

import pytest
import torch

import neuralcollapse as nc
from neuralcollapse.geometry.class_table import ClassTable

NASTY = ["cat", "<script>alert(1)</script>", "=1+1", "a\x1b[31m\nred\u202e", "漢字" * 20, "x" * 300]


def made(count=6, *, names=NASTY):
    numbers = torch.arange(count)
    values = torch.linspace(0.1, 1, count, dtype=torch.float64)
    return ClassTable(
        numbers,
        numbers + 10.0,
        mean_norm=1 + values,
        variance=values,
        nearest=(numbers + 1) % count,
        distance=2 * values,
        cdnv=values.roll(2),
        accuracy=1 - values,
        names=None if names is None else dict(enumerate(names)),
    )


def test_the_worst_come_first_by_the_worse_end_of_each_column():
    table = made()
    assert table.worst().number.tolist() == [1, 0, 5, 4, 3, 2]
    assert table.worst(2, by="accuracy").number.tolist() == [5, 4]
    assert table.worst(1, by="distance").number.tolist() == [0]
    assert table.worst(1, by="count").number.tolist() == [0]
    assert table.worst(3).rows() == [table.rows()[k] for k in (1, 0, 5)]
    assert len(table.worst(99)) == 6


def test_classes_without_a_number_come_last_and_infinite_ones_first():
    table = made(4, names=None)
    table.cdnv[:] = torch.tensor([math.nan, 1, math.inf, 2])
    assert table.worst().number.tolist() == [2, 3, 1, 0]


@pytest.mark.parametrize(("by", "why"), [("cdnvv", "did you mean 'cdnv'"), ("alignment", "not measured"), ("x", "")])
def test_a_column_that_is_not_there_is_refused(by, why):
    with pytest.raises(nc.InputError, match=f"expected by= as a column.*{why}"):
        made().worst(by=by)
    with pytest.raises(nc.InputError, match="count"):
        made().worst(0)


def test_rows_have_names_and_none_without_a_nearest_class():
    table = made()
    table.nearest[0] = -1
    first, second = table.rows()[:2]
    assert (first["class"], first["name"], first["nearest"], first["nearest_name"]) == (0, "cat", None, None)
    assert (second["nearest"], second["nearest_name"], second["count"]) == (2, "=1+1", 11)
    assert type(second["cdnv"]) is float


@pytest.mark.parametrize("count", [1, 6, 20, 21, 500])
@pytest.mark.parametrize("named", [True, False])
def test_the_text_fits_and_says_what_it_leaves_out(count, named):
    names = [NASTY[k % 6] for k in range(count)] if named else None
    text = str(made(count, names=names))
    lines = text.splitlines()
    assert all(letter.isprintable() for line in lines for letter in line)
    assert max(len(line) for line in lines) <= 100
    assert lines[-1] == f"{count:,} class{'' if count == 1 else 'es'}, the worst by CDNV first"
    left_out = count - (len(lines) - 3) if count > 20 else 0
    assert (f"... {left_out:,} more" in lines) == (count > 20)
    assert len(lines) == (18 if count > 20 else count + 2)


def test_wide_letters_are_counted_as_two_columns():
    lines = str(made(2, names=["漢字", "ab"])).splitlines()
    assert lines[2].index("10") + 2 == lines[1].index("11")  # two wide letters before it
    assert repr(made()) == str(made())


def test_html_has_no_markup_of_names():
    page = made()._repr_html_()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert page.count("<tr>") == 7


def test_csv_has_every_row_and_no_formula(tmp_path):
    table = made()
    table.cdnv[0] = math.nan
    path = table.to_csv(tmp_path / "classes.csv")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["class"]) for row in rows] == list(range(6))
    assert rows[2]["name"] == "'=1+1"
    assert rows[0]["cdnv"] == ""
    assert float(rows[3]["variance"]) == float(table.variance[3])
    assert [each.name for each in tmp_path.iterdir()] == ["classes.csv"]
    with pytest.raises(nc.InputError, match="cannot write"):
        table.to_csv(tmp_path / "no" / "classes.csv")


def test_names_by_number():
    moments = nc.ClassMoments.from_batch(torch.rand(12, 4), torch.arange(12) % 3, 3)
    assert nc.per_class(moments, names={0: "a", "2": "c\n d"}).names == {0: "a", 1: "1", 2: "c d"}
