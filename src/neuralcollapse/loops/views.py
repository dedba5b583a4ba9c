"""What shows a run while it is measured: its page, the figures in its loggers, and a notebook's output."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from neuralcollapse.checks import on_host
from neuralcollapse.errors import NeuralCollapseWarning, one_line
from neuralcollapse.loops.fresh_page import FreshPage
from neuralcollapse.loops.notebook import Cell
from neuralcollapse.loops.pace import Pace
from neuralcollapse.loops.trackers import images_into, numbers_into
from neuralcollapse.loops.undisturbed import random_states
from neuralcollapse.report.glance import Glance, pixels
from neuralcollapse.runs.records import Record

_SHARE = 0.05  # of the time, for the figures that loggers get
_GROWTH = 1.1  # of the records between two sets of figures: 40 sets of 200 records, 100 of 100,000


class Figures:
    """Gives loggers the figures of a run: at first with each record, later as the records grow by a tenth."""

    def __init__(self) -> None:
        self._pace = Pace(_SHARE)
        self._next = 0  # so many records until the next figures
        self._behind: tuple[Glance, Sequence[Any], int] | None = None

    def update(self, glance: Glance, loggers: Sequence[Any], step: int) -> None:
        """Log the figures, if it is time."""
        self._behind = (glance, loggers, step)
        if len(glance.records) >= self._next and self._pace.due:
            with self._pace.timed():
                self.finish()
            self._next = int(len(glance.records) * _GROWTH) + 1

    def finish(self) -> None:
        """Log those of the last record."""
        if self._behind is not None:
            (glance, loggers, step), self._behind = self._behind, None
            takers = [take for logger in loggers if (take := images_into(logger)) is not None]
            if takers:
                images = {f"figures/{figure.name}": pixels(figure) for figure in glance.for_loggers()}
                for take in takers:
                    take(images, step)


class Views:
    """All that shows a run.

    No view is worth a training: one that fails says so in a warning, and is left out from then on. Random states are
    left as they were.

    Args:
        page: keep report.html of the run folder fresh, if there is a folder.
        loggers: get the numbers of each record, and figures.

    Attributes:
        others: loggers that get the numbers elsewhere and here the figures alone, and what they call the present step.
    """

    def __init__(self, *, page: bool = True, loggers: Sequence[Any] = ()) -> None:
        self.page = FreshPage() if page else None
        self.figures: Figures | None = Figures()
        self.cell: Cell | None = None
        self.loggers = loggers
        self.others: Callable[[], tuple[Sequence[Any], int]] | None = None
        self._pid = os.getpid()

    def log(self, record: Record, unit: str) -> None:
        """Give the loggers a record's numbers."""
        numbers = {**record.flat(), f"{unit}s": float(record.epoch), "learning_rate": record.learning_rate}
        for logger in self.loggers:
            into = numbers_into(logger)
            assert into is not None  # as check_loggers saw to
            into(numbers, record.epoch)

    def update(self, glance: Glance) -> None:
        """Show the run as it is now where that is due."""
        if self.page is not None and glance.folder is not None:
            page, folder = self.page, glance.folder
            self._try("page", "the page", lambda: page.update(folder))
        loggers, step = (self.loggers, glance.records[-1].epoch) if self.others is None else self.others()
        if self.figures is not None and loggers:
            figures = self.figures
            self._try("figures", "the figures for the loggers", lambda: figures.update(glance, loggers, step))
        if self.cell is not None:
            cell = self.cell
            self._try("cell", "the figures in the notebook", lambda: cell.update(glance))

    def flush(self) -> None:
        """Show the last record everywhere but on the page."""
        if self.figures is not None:
            self._try("figures", "the figures for the loggers", self.figures.finish)
        if self.cell is not None:
            self._try("cell", "the figures in the notebook", self.cell.finish)

    def finish(self) -> None:
        """Show the end."""
        self.flush()
        if self.page is not None:
            self._try("page", "the page", self.page.finish)

    def settle(self) -> None:
        """Write the page of the end in place of one that says that the run goes on; where there is none, do nothing."""
        if self.page is not None:
            self._try("page", "the page", self.page.settle)

    def abandon(self) -> None:
        """`settle` for a training that forgot it, or died: nothing may be said or raised then."""
        if os.getpid() != self._pid:  # a copy in a worker process
            return
        with suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.settle()

    def show(self, glance: Glance | None) -> None:
        """Show the run in the notebook's present cell from now on."""
        cell = Cell()
        if self.cell is not None:
            self.cell.close()
        self.cell = cell
        if glance is not None:
            cell.update(glance)
            cell.finish()

    def _try(self, name: str, words: str, work: Callable[[], object]) -> None:
        try:
            with on_host(), random_states():
                work()
        except Exception as error:  # whatever drawing runs into
            setattr(self, name, None)
            warnings.warn(
                f"{words} could not be drawn and will be left out ({one_line(error)}): the records are kept",
                NeuralCollapseWarning,
                stacklevel=4,
            )
