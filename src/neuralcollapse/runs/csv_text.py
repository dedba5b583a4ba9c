"""Rows by column as the text of a CSV file that a spreadsheet opens without running anything in it (no torch)."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping

_FORMULAS = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet would run a text that begins like this


def csv_text(lines: Iterable[Mapping[str, object]], columns: Iterable[str] | None = None) -> str:
    """The lines under the names of their columns, in the order in which they first come; missing values are empty."""
    lines = list(lines)
    names = list(dict.fromkeys(name for line in lines for name in line) if columns is None else columns)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_safe(name) for name in names)
    writer.writerows([_safe(line.get(name, "")) for name in names] for line in lines)
    return text.getvalue()


def _safe(item: object) -> object:
    return f"'{item}" if isinstance(item, str) and item[:1] in _FORMULAS else item
