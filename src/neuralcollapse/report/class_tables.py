"""The tables of a run's classes: the numbers of each, the worst first, and the pairs that are hardest to tell apart."""

from __future__ import annotations

from collections.abc import Sequence

from neuralcollapse.report.page import Cell, Table
from neuralcollapse.runs.class_record import ClassRecord
from neuralcollapse.runs.class_rows import (
    COLUMNS,
    SHOWN,
    Row,
    cut,
    deciding,
    name_of,
    short,
    without_undefined,
    worst_first,
)
from neuralcollapse.runs.csv_text import csv_text
from neuralcollapse.runs.reading import Run

_ROWS = 200  # that a page draws
_KEPT = 10_000  # that a page holds as a file: compressed, less than a megabyte
_LETTERS = 60  # of a class's name


def class_tables(run: Run) -> list[Table]:
    """The table of the classes with that of the pairs beside it; nothing where a run kept neither."""
    classes = run.classes
    if classes is None:
        return []
    names = run.class_names
    by = deciding(classes.columns)
    rows = classes.rows(names)
    worst = worst_first(rows, by)
    drawn, kept = worst[:_ROWS], rows if len(rows) <= _KEPT else worst[:_KEPT]
    keys = [key for key in SHOWN if key in rows[0]]
    note = f"The worst by {COLUMNS[by].label} first. {_meanings(keys)}"
    if len(rows) > len(drawn):
        has = "all" if kept is rows else f"the {len(kept):,} worst; the run folder has all"
        note += f" Drawn are the {len(drawn):,} worst of {len(rows):,} classes; the CSV file has {has}."
    return [
        Table(
            f"Class by class at {run.unit} {classes.epoch:,}",
            [[Cell(_name(row), sort=float(row["class"])), *(_cell(row, key) for key in keys)] for row in drawn],
            ["class", *(COLUMNS[key].label if key in COLUMNS else key for key in keys)],
            note,
            sortable=True,
            names=[keys.index("nearest") + 1] if "nearest" in keys else [],
            sorted_by=(keys.index(by) + 1, COLUMNS[by].large_is_worse),
            csv=("classes.csv", csv_text(map(_shortened, kept))),
            csv_label=f"Download {'all' if kept is rows else 'the worst'} {len(kept):,} classes (CSV)",
            tall=True,
            fold_note=True,
            foldable=True,
            beside=_pairs(classes, names),
        )
    ]


def _pairs(classes: ClassRecord, names: Sequence[str]) -> Table | None:
    rows = [(_name(row), _name(row, "nearest"), short("cdnv", row["cdnv"])) for row in classes.pair_rows(names)]
    note = "The pairs of classes with the largest CDNV of all."
    header = ("class", "and", "CDNV")
    return Table("Hardest to tell apart", rows, header, note, names=[1], tall=True, foldable=True) if rows else None


def _meanings(keys: Sequence[str]) -> str:
    """What the columns are, in a sentence."""
    known = [f"{COLUMNS[key].label}: {COLUMNS[key].meaning}" for key in keys if key in COLUMNS and key != "count"]
    return "; ".join(known) + "."


def _shortened(row: Row) -> dict[str, object]:
    """The row with six digits of each number, since the page holds the file."""
    numbers = without_undefined(row).items()
    return {key: float(f"{value:.6g}") if isinstance(value, float) else value for key, value in numbers}


def _name(row: Row, key: str = "class") -> str:
    return cut(name_of(row, key), _LETTERS)


def _cell(row: Row, key: str) -> Cell:
    if key == "nearest":
        return Cell(_name(row, key), sort=None if row[key] is None else float(row[key]))
    return Cell(short(key, row[key]), sort=float(row[key]))
