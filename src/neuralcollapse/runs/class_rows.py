"""The numbers of each class as rows: what the columns mean, in which order they stand, as text and as CSV (no torch).

A row is a dict: "class" (its number), "name", the columns of `COLUMNS` that are known, "nearest" (a number or None)
and "nearest_name". Terminal tables, CSV files and pages are made from such rows. Names may come from anywhere: in a
table on the terminal nothing of them but printable characters is left.
"""

from __future__ import annotations

import html
import math
import unicodedata
from collections.abc import Container, Mapping, Sequence
from typing import Any, NamedTuple

Row = Mapping[str, Any]

_WIDTH = 100
_GAP = 2
_LEAST, _MOST = 8, 32  # display columns for a class with its name
_FIRST, _LAST = 12, 3  # rows of a longer table that are shown
_WHOLE = 20  # a table of so many rows is shown whole


class Column(NamedTuple):
    """A number of each class: its heading, its meaning, and whether large values are the worse ones."""

    label: str
    meaning: str
    large_is_worse: bool


COLUMNS: dict[str, Column] = {
    "count": Column("samples", "samples of the class", False),
    "cdnv": Column("CDNV", "(V_k + V_j) / (2 |mu_k - mu_j|^2) for the nearest class j; goes to 0", True),
    "accuracy": Column("accuracy", "share of the samples of the class that are predicted right", False),
    "test_accuracy": Column("test acc.", "share of the test samples of the class that are predicted right", False),
    "alignment": Column("cos", "cosine of the centred row and the centred mean of the class; goes to 1", False),
    "variance": Column("variance", "V_k: mean of |h - mu_k|^2 within the class; goes to 0", True),
    "mean_norm": Column("|mu|", "length of mu_k - mu_G", False),
    "weight_norm": Column("|w|", "length of the classifier's row w_k", False),
    "distance": Column("distance", "|mu_k - mu_j| for the nearest class j", False),
    "centred_weight_norm": Column("|w - mean|", "length of w_k less the mean row", False),
    "mean_logit": Column("bias", "logit b_k + w_k.mu_G of the mean of all samples, less the mean over classes", False),
}
"""Heading, meaning and worse end of each number of a class, in the order of tables."""

SHOWN = ("count", "cdnv", "nearest", "accuracy", "test_accuracy", "alignment", "variance", "mean_norm", "weight_norm")
"""The columns of a table on the terminal or a page; "nearest" is a class. CSV and JSON have all."""


def name_of(row: Row, key: str = "class") -> str:
    """How a table calls the class of a row, or its "nearest": by number and name, as far as they are known."""
    number, name = row[key], row.get("name" if key == "class" else f"{key}_name")
    return "" if number is None else str(number) if name in (None, str(number)) else f"{number} {name}"


def short(key: str, value: Any) -> str:
    """A number of a table: nothing where it is undefined."""
    if isinstance(value, int):
        return f"{value:,}"
    if value is None or math.isnan(value):
        return ""
    if key == "alignment":
        return f"{round(value, 3) + 0.0:.3f}"  # no -0.000
    return f"{value:.4f}" if key.endswith("accuracy") else f"{value:.3g}"


def without_undefined(row: Row) -> dict[str, Any]:
    """The row with nothing in place of what is undefined, for CSV."""
    return {key: "" if value is None or value != value else value for key, value in row.items()}


def deciding(known: Container[str]) -> str:
    """The column that says which class is the worst, where nobody chose one."""
    return next(key for key in ("cdnv", "alignment", "variance") if key in known)


def worst_first(rows: Sequence[Row], by: str) -> list[Row]:
    """The rows by a column, the worst first, those without a number last; in their order where numbers are equal."""
    sign = -1 if COLUMNS[by].large_is_worse else 1

    def key(row: Row) -> tuple[bool, float]:
        value = float(row[by])
        return math.isnan(value), 0.0 if math.isnan(value) else sign * value

    return sorted(rows, key=key)


def table_text(rows: Sequence[Row]) -> str:
    """The rows as a table, the worst first."""
    by = deciding(rows[0])
    ordered = worst_first(rows, by)
    first, last = ends(len(rows))
    return class_text(ordered[:first], ordered[len(rows) - last :], len(rows) - first - last, by)


def ends(count: int) -> tuple[int, int]:
    """How many rows a table of `count` rows shows of its beginning and its end."""
    return (count, 0) if count <= _WHOLE else (_FIRST, _LAST)


def class_text(first: Sequence[Row], last: Sequence[Row], left_out: int, by: str) -> str:
    """A table of at most 100 columns, from the rows of its beginning and its end with `left_out` between them."""
    rows = [*first, *last]
    keys = [key for key in SHOWN if rows and key in rows[0]]
    headings = ["class", *(COLUMNS[key].label if key in COLUMNS else key for key in keys)]
    cells = [[plain(name_of(row)), *(_cell(row, key) for key in keys)] for row in rows]
    named = [0, *(i for i, key in enumerate(keys, start=1) if key == "nearest")]
    widths = [max(_width(line[i]) for line in [headings, *cells]) for i in range(len(headings))]
    room = _WIDTH - _GAP * (len(widths) - 1) - sum(width for i, width in enumerate(widths) if i not in named)
    most = max(_LEAST, min(_MOST, room // len(named)))
    for i in named:
        widths[i] = min(widths[i], most)
    lines = [[cut(cell, width) for cell, width in zip(line, widths, strict=True)] for line in [headings, *cells]]
    drawn = [_line(line, widths, named) for line in lines]
    if left_out:
        drawn.insert(1 + len(first), f"... {left_out:,} more")
    drawn.append(_summary(len(rows) + left_out, by))
    return "\n".join(drawn)


def class_html(first: Sequence[Row], last: Sequence[Row], left_out: int, by: str) -> str:
    """The same table as HTML; nothing in a name is markup."""
    rows = [*first, *last]
    keys = [key for key in SHOWN if rows and key in rows[0]]
    headings = ["class", *(COLUMNS[key].label if key in COLUMNS else key for key in keys)]
    lines = [_html_line([name_of(row), *(_cell(row, key) for key in keys)], "td") for row in rows]
    if left_out:
        lines.insert(len(first), f'<tr><td colspan="{len(headings)}">... {left_out:,} more</td></tr>')
    caption = html.escape(_summary(len(rows) + left_out, by))
    head = _html_line(headings, "th")
    return f"<table><caption>{caption}</caption><thead>{head}</thead><tbody>{''.join(lines)}</tbody></table>"


def _html_line(cells: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _summary(total: int, by: str) -> str:
    return f"{total:,} class{'' if total == 1 else 'es'}, the worst by {COLUMNS[by].label} first"


def _cell(row: Row, key: str) -> str:
    return plain(name_of(row, key)) if key == "nearest" else short(key, row[key])


def _line(cells: Sequence[str], widths: Sequence[int], named: Sequence[int]) -> str:
    """Cells side by side: names begin at the left of their column, numbers end at its right."""
    padded = (
        cell + " " * (width - _width(cell)) if i in named else " " * (width - _width(cell)) + cell
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return (" " * _GAP).join(padded).rstrip()


def plain(text: str) -> str:
    """Text without line breaks and control characters, which could move a terminal's cursor."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in " ".join(text.split()))


def _width(text: str) -> int:
    """How many columns a terminal takes for a text."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return len(text) + wide - sum(bool(unicodedata.combining(letter)) for letter in text)


def cut(text: str, width: int) -> str:
    """The text in at most `width` columns, with an ellipsis where it is longer."""
    if _width(text) <= width:
        return text
    kept = ""
    for letter in text:
        if _width(kept + letter) > width - 1:
            break
        kept += letter
    return f"{kept}…"
