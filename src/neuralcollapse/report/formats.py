"""A page in the format that is asked for: HTML, Markdown with its images, or figures as PNG, SVG or PDF."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from neuralcollapse.report.page import Cell, Page, save_text
from neuralcollapse.report.paper import KINDS, save_figures

FORMATS = ("html", *KINDS, "markdown")
_IMAGES = "figures"  # the folder of a Markdown file's images, beside it
_VERDICTS = {True: "holds", False: "**does not hold**", None: "not tested"}


def files(format: str, out: Path, figures: Iterable[str]) -> list[Path]:
    """The files that `save_page` may write of a page with the figures of these names."""
    if format in KINDS:
        return [out / f"{name}.{format}" for name in figures]
    return [out, *(out.parent / _IMAGES / f"{name}.png" for name in figures if format == "markdown")]


def save_page(page: Page, format: str, out: Path, *, shared_assets: bool = False) -> list[Path]:
    """Write a page; returns the files, the page first. `out` is the file, or for png, svg and pdf the folder."""
    if format == "html":
        return [page.write(out, shared_assets=shared_assets)]
    if format in KINDS:
        return save_figures(page.figures, out, format, page.panels)
    images = save_figures(page.figures, out.parent / _IMAGES, "png")
    names = {image.stem: f"{_IMAGES}/{image.name}" for image in images}
    return [save_text(markdown(page, names), out), *images]


def markdown(page: Page, images: Mapping[str, str] | None = None) -> str:
    """The page as Markdown text; `images` says by the names of figures where their images are, seen from the text."""
    parts = [f"# {escaped(page.title)}", escaped(page.subtitle)]
    if page.claim:
        parts += [f"> {escaped(page.claim.text)}", f"Source: {escaped(page.claim.source)}."]
    parts.append(f"**{escaped(page.verdict)}**")
    if page.claim:
        found = [
            [Cell(what), Cell(_VERDICTS[holds]), Cell(numbers), Cell(why)]
            for holds, what, numbers, why in page.claim.findings
        ]
        parts.append(_table(("check", "", "numbers", "why this check"), found, marked=1))
    for table in (each for one in page.tables for each in (one, one.beside) if each is not None):
        rows = table.cells()
        if rows and table.narrow:  # names and values: a line
            pairs = (" ".join(cell.text for cell in row if cell.text) for row in rows)
            parts.append(f"{escaped(table.heading)}: {escaped('; '.join(pairs))}.")
        elif rows:
            header = table.header or [""] * max(map(len, rows))
            parts += [f"## {escaped(table.heading)}", *([escaped(table.note)] if table.note else [])]
            parts.append(_table(header, rows))
    there = images or {}
    parts += [f"![{escaped(figure.alt)}]({there[figure.name]})" for figure in page.figures if figure.name in there]
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """Text in which nothing is Markdown or HTML."""
    line = " ".join(text.split())
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", html.escape(line, quote=False))


def _table(header: Sequence[str], rows: Sequence[Sequence[Cell]], marked: int | None = None) -> str:
    def cell(column: int, item: Cell) -> str:
        if column == marked:
            return item.text
        aside = item.note if item.note.startswith("±") else f"({item.note})"
        return escaped(item.text) + (f" {escaped(aside)}" if item.note else "")

    lines = [
        "| " + " | ".join(map(escaped, header)) + " |",
        "|" + " --- |" * len(header),
        *("| " + " | ".join(cell(i, item) for i, item in enumerate(row)) + " |" for row in rows),
    ]
    return "\n".join(lines)
