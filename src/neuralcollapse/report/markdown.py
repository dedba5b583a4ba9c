"""A page as Markdown: the claim, the verdict, the wide tables, and images where there are any."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence

from neuralcollapse.report.figure import Figure
from neuralcollapse.report.page import Cell, Page, Table

_VERDICTS = {True: "holds", False: "**does not hold**", None: "not tested"}


def markdown(page: Page, images: Mapping[str, str] | None = None) -> str:
    """The page as Markdown text.

    Args:
        page: the page.
        images: figure name -> where its image is, from where the text will be.
    """
    parts = [f"# {escaped(page.title)}", escaped(page.subtitle)]
    if page.claim:
        parts += [f"> {escaped(page.claim.text)}", f"Source: {escaped(page.claim.source)}."]
    parts.append(f"**{escaped(page.verdict)}**")
    if page.claim:
        rows = [(Cell(what), Cell(_VERDICTS[holds]), Cell(numbers)) for holds, what, numbers in page.claim.findings]
        parts.append(_table(("check", "", "numbers"), [list(row) for row in rows], marked=1))
    for table in page.tables:
        if not table.narrow and table.rows:
            parts += [f"## {escaped(table.heading)}", *([escaped(table.note)] if table.note else []), _whole(table)]
    parts += _images(page.figures, images or {})
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """Text in which nothing is Markdown or HTML."""
    line = " ".join(text.split())
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", html.escape(line, quote=False))


def _whole(table: Table) -> str:
    rows = table.cells()
    header = table.header or [""] * max(map(len, rows))
    return _table(header, rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[Cell]], marked: int | None = None) -> str:
    def cell(column: int, item: Cell) -> str:
        if column == marked:
            return item.text
        return escaped(item.text) + (f" ({escaped(item.note)})" if item.note else "")

    lines = [
        "| " + " | ".join(map(escaped, header)) + " |",
        "|" + " --- |" * len(header),
        *("| " + " | ".join(cell(i, item) for i, item in enumerate(row)) + " |" for row in rows),
    ]
    return "\n".join(lines)


def _images(figures: Sequence[Figure], images: Mapping[str, str]) -> list[str]:
    return [f"![{escaped(figure.alt)}]({images[figure.name]})" for figure in figures if figure.name in images]
