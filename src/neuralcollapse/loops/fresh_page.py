"""The page of a run that is still being measured: written again and again, for a small share of the time."""

from __future__ import annotations

import math
import time
from pathlib import Path

from neuralcollapse.loops.pace import Pace
from neuralcollapse.report.live import Live
from neuralcollapse.report.page import save_text
from neuralcollapse.report.single import single_page
from neuralcollapse.runs.folder import RunFolder
from neuralcollapse.runs.reading import read_run

_SHARE = 0.05  # of the time: a page takes longer to write the more records there are
_SECONDS = (5, 300)  # between two reloads: no page is read in less, and nobody waits for longer
_FIRST_SECONDS = 10  # while nobody knows how far measurements lie apart
_MISSED = 10  # so many pages that did not come mean that no more will
_PATIENCE = (300, 3600)  # seconds, at least; and where nobody knows when the next one is due


class FreshPage:
    """Keeps the page of a run fresh.

    A page that took 0.1 s to write is at most 2 s behind the records. While the run goes on the page says so, and
    reloads itself. `finish` writes the page of the end, `settle` does so where the last one says that the run goes on.
    """

    def __init__(self) -> None:
        self._pace = Pace(_SHARE)
        self._behind: RunFolder | None = None
        self._live: RunFolder | None = None
        self._last = math.nan  # when a record came
        self._gap = math.nan  # seconds between two records

    def update(self, run: RunFolder) -> None:
        """Write the page, now that there is another record, unless it was written only just now."""
        now = time.monotonic()
        self._gap, self._last = now - self._last, now
        self._behind = run
        if self._pace.due:
            with self._pace.timed():
                _write(run, live=True, gap=self._gap, wait=self._pace.cost / self._pace.share)
            self._behind, self._live = None, run

    def finish(self) -> None:
        """Write the page of the end if there are records that it does not show, or it says that the run goes on."""
        run = self._behind or self._live
        if run is not None:
            _write(run)
        self._behind = self._live = None

    def settle(self) -> None:
        """Write the page of the end in place of one that says that the run goes on; where there is none, do nothing."""
        if self._live is not None:
            self.finish()


def _write(run: RunFolder, *, live: bool = False, gap: float = math.nan, wait: float = 0.0) -> Path:
    """Write the page, of a run that goes on with the time until the next one."""
    found = read_run(run.path)
    notice = None
    if live:
        known = not math.isnan(gap)
        expected = max(gap, wait) if known else 0.0
        every = min(max(math.ceil(expected), _SECONDS[0]), _SECONDS[1]) if known else _FIRST_SECONDS
        patience = max(math.ceil(_MISSED * expected), _PATIENCE[0]) if known else _PATIENCE[1]
        notice = Live.of(found, every, patience)
    return save_text(single_page(found, notice).html(), run.path / "report.html")
