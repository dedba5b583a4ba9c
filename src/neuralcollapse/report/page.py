"""One self-contained HTML page of figures, tables and findings; nothing of it is loaded from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from neuralcollapse.errors import InputError
from neuralcollapse.extras import needed_by
from neuralcollapse.report.figure import Figure
from neuralcollapse.report.plotly_spec import plotly_spec
from neuralcollapse.runs.files import write_atomically


class Cell(NamedTuple):
    """A cell of a table: its text, a smaller note below it, and the number by which its column sorts."""

    text: str
    note: str = ""
    sort: float | None = None


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


@dataclass(frozen=True)
class Page:
    """What a page shows, in the order in which it shows it.

    Attributes:
        title: its heading.
        subtitle: below it.
        verdict: what happened, in a plain sentence.
        cards: (label, value, meaning) of a few numbers.
        figures: below the cards.
        tables: the first ones above the figures where `lead` says how many.
        claim: of an experiment.
        lead: tables that come before the figures.
        csv: (file name, content) of the records to download.
        csv_label: the words on the button that downloads them.
    """

    title: str
    subtitle: str
    verdict: str
    cards: Sequence[tuple[str, str, str]]
    figures: Sequence[Figure]
    tables: Sequence[Table]
    claim: Claim | None = None
    lead: int = 0
    csv: tuple[str, str] | None = None
    csv_label: str = "Download the records (CSV)"

    def html(self) -> str:
        """The page as one HTML text."""
        with needed_by("the page"):
            import jinja2
            from plotly.offline import get_plotlyjs
        template = resources.files("neuralcollapse.report").joinpath("page.html.jinja").read_text(encoding="utf-8")
        environment = jinja2.Environment(
            autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        figures = [plotly_spec(figure) for figure in self.figures]
        files = [file for file in (self.csv, *(table.csv for table in self.tables)) if file is not None]
        return environment.from_string(template).render(
            page=self,
            figures=figures,
            figures_json=_script_json(figures),
            files_json=_script_json(dict(files)),
            plotly=get_plotlyjs(),
        )


def save_text(text: str, target: Path) -> Path:
    """Write a page, whole or not at all."""
    try:
        return write_atomically(target, text.encode(errors="replace"))
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror or error}") from None


def _script_json(value: Any) -> str:
    """JSON that is safe inside a script element."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c").replace("&", "\\u0026")
