"""One self-contained HTML page of figures, tables and findings; nothing of it is loaded from elsewhere.

The figures are drawn by scripts of our own (plot.js, labels.js, space.js, selection.js, page.js), which are in every
page, or once beside many.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from neuralcollapse.errors import InputError
from neuralcollapse.extras import needed_by
from neuralcollapse.report.figure import Figure
from neuralcollapse.report.figure_data import figure_data
from neuralcollapse.report.live import Live
from neuralcollapse.runs.files import write_atomically

_SCRIPTS = ("plot.js", "labels.js", "space.js", "selection.js", "page.js")
_LONG = 50_000  # characters of a file, from which on a page holds it compressed


class Cell(NamedTuple):
    """A cell of a table: its text, a smaller note below it, the number by which its column sorts, and a formula.

    The formula is MathML of our own, which is put into the page as it is. With `select` the cell is a button that
    selects a run or a group, whose curves then stand out in all figures (`Line.selected_by`); a `color` is a spot
    before its text.
    """

    text: str
    note: str = ""
    sort: float | None = None
    formula: str = ""
    select: str = ""
    color: str = ""


class Card(NamedTuple):
    """A number at the top of a page: what it is, its value, what it means, and a limit with whether it keeps to it."""

    label: str
    value: str
    meaning: str = ""
    limit: str = ""
    holds: bool | None = None


@dataclass(frozen=True)
class Table:
    """A table of a page. A cell is a text, a number or a `Cell`.

    Attributes:
        heading: above it.
        rows: of the table.
        header: names of the columns.
        note: below the heading.
        narrow: two such tables fit side by side.
        sortable: a click on a column's name sorts the rows by it.
        words: the cells are sentences, which wrap.
        sorted_by: the column (from 0) by which the rows are sorted already, and whether its largest number is first.
        names: the columns, beside the first, that hold names: they stand at the left and wrap.
        tall: the table scrolls in a box of its own, under its header, where it has many rows.
        csv: (file name, content) of all of its rows, to download.
        csv_label: the words on that button.
        beside: a table at its right, where there is room.
        folded: only the heading is seen until it is opened.
        foldable: it is open, and can be folded; on a phone it is folded at first.
        fold_note: the note is folded.
    """

    heading: str
    rows: Sequence[Sequence[Cell | str | int | float]]
    header: Sequence[str] = ()
    note: str = ""
    narrow: bool = False
    sortable: bool = False
    words: bool = False
    sorted_by: tuple[int, bool] | None = None
    names: Sequence[int] = ()
    tall: bool = False
    csv: tuple[str, str] | None = None
    csv_label: str = "Download the table (CSV)"
    beside: Table | None = None
    folded: bool = False
    foldable: bool = False
    fold_note: bool = False

    def cells(self) -> list[list[Cell]]:
        """The rows, every cell a `Cell`."""
        return [[cell if isinstance(cell, Cell) else Cell(str(cell)) for cell in row] for row in self.rows]


@dataclass(frozen=True)
class Claim:
    """What an experiment tests: the claim, its source, a word of verdict, and (holds, what, numbers, why) checks."""

    text: str
    source: str
    word: str
    findings: Sequence[tuple[bool | None, str, str, str]]


class Panels(NamedTuple):
    """Figures of a page that a paper shows as the panels of one: its name, its title, the names of the figures."""

    name: str
    title: str
    figures: Sequence[str]


@dataclass(frozen=True)
class Page:
    """What a page shows, in the order in which it shows it.

    Attributes:
        title: its heading.
        subtitle: below it.
        verdict: what happened, in a plain sentence.
        cards: a few numbers, each a `Card` or its first entries (label, value, meaning).
        figures: below the cards.
        tables: the first ones above the figures where `lead` says how many.
        claim: of an experiment.
        lead: tables that come before the figures.
        csv: (file name, content) of the records to download.
        csv_label: the words on the button that downloads them.
        panels: figures that a paper shows as one, beside each alone.
        mood: of the verdict: "good", "bad" or "open" gives it that colour.
        live: what it says while its run is going on.
    """

    title: str
    subtitle: str
    verdict: str
    cards: Sequence[Card | tuple[str, str, str]]
    figures: Sequence[Figure]
    tables: Sequence[Table]
    claim: Claim | None = None
    lead: int = 0
    csv: tuple[str, str] | None = None
    csv_label: str = "Download the records (CSV)"
    mood: str = ""
    panels: Sequence[Panels] = ()
    live: Live | None = None

    def names(self, kind: str) -> list[str]:
        """The names of the figures that a format writes, without their endings."""
        names = [figure.name for figure in self.figures]
        return names if kind in ("html", "markdown") else names + [each.name for each in self.panels]

    def html(self, *, shared: str = "") -> str:
        """The page as one HTML text; `shared` names the script beside it, where the page is not to hold it."""
        with needed_by("the page"):
            import jinja2
        environment = jinja2.Environment(
            autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        figures = [figure_data(figure) for figure in self.figures]
        tables = [each for table in self.tables for each in (table, table.beside) if each is not None]
        files = [file for file in (self.csv, *(table.csv for table in tables)) if file is not None]
        css = _source("page.css")
        return environment.from_string(_source("page.html.jinja")).render(
            page=self,
            cards=[Card(*card) for card in self.cards],
            figures=figures,
            widths=_widths(self.figures),
            figures_json=_script_json(figures),
            live="" if self.live is None else self.live.html(),
            files_json=_script_json({name: _packed(text) for name, text in files}),
            css=css,
            light=json.dumps(dict(re.findall(r"--(\w+): (#\w+);", css[: css.index("@media")]))),
            script=page_script(),
            shared=shared,
        )

    def write(self, target: Path, *, shared_assets: bool = False) -> Path:
        """Write the page, whole or not at all; with `shared_assets` its script is one file beside it, for many pages.

        Raises:
            InputError: a file that cannot be written, or packages missing.
        """
        if not shared_assets:
            return save_text(self.html(), target)
        script = target.parent / shared_script()
        text = self.html(shared=script.name)
        if not script.exists() or script.read_bytes() != page_script().encode():
            save_text(page_script(), script)
        return save_text(text, target)


@cache
def page_script() -> str:
    """What draws the figures of a page and makes it work."""
    return "\n".join(_source(name) for name in _SCRIPTS)


@cache
def shared_script() -> str:
    """The name of the script beside many pages: that of its content, so that older pages keep theirs."""
    return f"neuralcollapse-{hashlib.sha256(page_script().encode()).hexdigest()[:10]}.js"


def save_text(text: str, target: Path) -> Path:
    """Write a page, whole or not at all."""
    try:
        return write_atomically(target, text.encode(errors="replace"))
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror or error}") from None


def _widths(figures: Sequence[Figure]) -> list[str]:
    """How wide each figure is: a third of the page (""), half of it ("large") or all of it ("whole").

    Maps, views in space and figures with a size take half. Where all small figures are not threes, the last ones of a
    stretch take half too, or all, so that no row has a gap.
    """
    halves = [bool(figure.size) or figure.matrix or figure.three_dimensional for figure in figures]
    if len(figures) % 3 == 0 and not any(figure.size for figure in figures):
        return [""] * len(figures)
    widths = ["large" if half else "" for half in halves]
    start = 0
    for half, stretch in itertools.groupby(halves):
        end = start + len(list(stretch))
        if not half and end - start == 1:
            widths[start] = "whole"
        elif not half:
            few = {0: 0, 1: 4, 2: 2}[(end - start) % 3]
            widths[end - few : end] = ["large"] * few
        start = end
    return widths


def _source(name: str) -> str:
    return resources.files("neuralcollapse.report").joinpath(name).read_text(encoding="utf-8")


def _packed(text: str) -> str | dict[str, str]:
    """A file as the page holds it: long ones compressed, always to the same bytes."""
    if len(text) < _LONG:
        return text
    return {"gzip": base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()}


def _script_json(value: Any) -> str:
    """JSON that is safe inside a script element."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c").replace("&", "\\u0026")
