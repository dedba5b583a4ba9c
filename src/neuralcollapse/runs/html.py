"""How runs and records show themselves in a notebook: small tables of HTML, every value escaped (no torch)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

_CELL = "text-align:left;padding:.2em 1em .2em 0;vertical-align:top"


def as_table(title: str, rows: Sequence[Sequence[object]], header: Sequence[str] = (), note: str = "") -> str:
    """A table with its title above it."""
    head = f"<thead><tr>{_cells('th', header)}</tr></thead>" if header else ""
    body = "".join(f"<tr>{_cells('td', row)}</tr>" for row in rows)
    below = f"<p>{escape(note)}</p>" if note else ""
    return f"<div><p><b>{escape(title)}</b></p><table>{head}<tbody>{body}</tbody></table>{below}</div>"


def named_values(values: Mapping[str, object]) -> list[tuple[str, object]]:
    """The rows of a table of names and values, without those that are not known."""
    return [(name, value) for name, value in values.items() if value is not None and value != ""]


def _cells(tag: str, row: Sequence[object]) -> str:
    return "".join(f'<{tag} style="{_CELL}">{escape(str(cell))}</{tag}>' for cell in row)
