"""Pace: how often work beside the training is done, so that it takes a small share of the time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

FIRST_COST = 0.3  # seconds on a laptop's core, of a page, of the figures for the loggers and of those in a notebook


class Pace:
    """Says when the work is due by what it cost the last time: 0.1 s at a share of 5 % are done every 2 s at most.

    Before the first time the cost is not known, and `FIRST_COST` is taken for it: a short training is not held up.

    Attributes:
        share: of the time, the most that the work takes.
        cost: seconds that it took the last time.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self.cost = FIRST_COST
        self._next = time.monotonic() + self.cost / share

    @property
    def due(self) -> bool:
        """Whether the work may be done now."""
        return time.monotonic() >= self._next

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Around the work."""
        start = time.monotonic()
        try:
            yield
        finally:
            end = time.monotonic()
            self.cost = end - start
            self._next = end + self.cost * (1 / self.share - 1)
