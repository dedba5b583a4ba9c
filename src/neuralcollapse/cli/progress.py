"""How far a command is: a line for each stage on stderr, with the share that is done and the time that is left."""

from __future__ import annotations

import sys
import time
from typing import TextIO

_LINE_EVERY = 5.0  # seconds between two lines in a file or a pipe
_DRAW_EVERY = 0.2  # on a terminal, where a line is drawn over


class Progress:
    """Shows stages as they begin, and inside each how far it is, once it has taken a few seconds."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty()
        self._drawn = ""
        self._began = self._shown = time.monotonic()

    def stage(self, text: str) -> None:
        """A stage begins."""
        self.clear()
        print(f"... {text}", file=self._stream, flush=True)
        self._began = self._shown = time.monotonic()

    def share(self, done: float) -> None:
        """So much of the stage is done, from 0 to 1."""
        now = time.monotonic()
        if not 0 < done < 1 or now - self._shown < (_DRAW_EVERY if self._terminal else _LINE_EVERY):
            return
        self._shown = now
        text = f"    {100 * done:.0f} %, about {duration((now - self._began) * (1 - done) / done)} left"
        if self._terminal:
            self._stream.write(f"\r{text:<{len(self._drawn)}}")
            self._stream.flush()
            self._drawn = text
        else:
            print(text, file=self._stream, flush=True)

    def clear(self) -> None:
        """Take the drawn line away."""
        if self._drawn:
            self._stream.write("\r" + " " * len(self._drawn) + "\r")
            self._stream.flush()
            self._drawn = ""


def duration(seconds: float) -> str:
    """Seconds in words: "8 s", "3 min", "5 hours"."""
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.0f} hours"
