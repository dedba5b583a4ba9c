"""The page of a run that is still being measured: written again and again, for a small share of the time."""

from __future__ import annotations

import time

from neuralcollapse.report.single import write_page
from neuralcollapse.runs.folder import RunFolder

_SHARE = 0.05  # of the time: a page takes longer to write the more records there are


class FreshPage:
    """Keeps the page of a run fresh.

    A page that took 0.1 s to write is at most 2 s behind the records. `finish` writes what is missing at the end.
    """

    def __init__(self) -> None:
        self._next = -float("inf")
        self._behind: RunFolder | None = None

    def update(self, run: RunFolder) -> None:
        """Write the page, now that there is another record, unless it was written only just now."""
        self._behind = run
        start = time.monotonic()
        if start >= self._next:
            self.finish()
            end = time.monotonic()
            self._next = end + (end - start) * (1 / _SHARE - 1)

    def finish(self) -> None:
        """Write the page if there are records that it does not show."""
        if self._behind is not None:
            write_page(self._behind)
            self._behind = None
