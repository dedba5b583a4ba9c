"""A place in a notebook that shows a run's figures, and is updated while the run goes on."""

from __future__ import annotations

import sys
from base64 import b64encode
from html import escape
from typing import Any

from neuralcollapse.errors import InputError
from neuralcollapse.loops.pace import Pace
from neuralcollapse.report.glance import Glance, png
from neuralcollapse.report.single import verdict

_SHARE = 0.1  # of the time: whoever asks for figures waits for them
_GRID = "display:grid;gap:12px;grid-template-columns:repeat(auto-fill,minmax(320px,1fr));max-width:1060px"
_IMAGE = "width:100%;height:240px;object-fit:contain;background:#fff;border-radius:6px"


class Cell:
    """A notebook's output of its own, from the cell in which this is made on.

    What the pace leaves out while a cell runs is shown when the cell ends.

    Raises:
        InputError: there is no notebook.
    """

    def __init__(self) -> None:
        ipython = sys.modules.get("IPython")  # a notebook has imported it
        shell = ipython.get_ipython() if ipython else None
        if shell is None or not hasattr(shell, "kernel"):
            raise InputError("expected a notebook to show figures in, got none: open report.html in the run folder")
        self._pace = Pace(_SHARE)
        self._behind: Glance | None = None
        self._handle: Any = None
        self._events = shell.events
        self._events.register("post_run_cell", self.finish)
        self._show("No records yet.", "<p>No records yet.</p>")

    def update(self, glance: Glance) -> None:
        """Show the run as it is now, unless that was done only just now."""
        self._behind = glance
        if self._pace.due:
            with self._pace.timed():
                self.finish()

    def finish(self, *_: object) -> None:
        """Show what is not shown yet."""
        glance, self._behind = self._behind, None
        if glance is not None:
            self._show(verdict(glance.records, glance.unit), as_html(glance))

    def close(self) -> None:
        """Leave the output as it is from now on."""
        self.finish()
        self._events.unregister("post_run_cell", self.finish)

    def _show(self, text: str, html: str) -> None:
        from IPython.display import display

        data = {"text/plain": text, "text/html": html}
        if self._handle is None:
            self._handle = display(data, raw=True, display_id=True)
        else:
            self._handle.update(data, raw=True)


def as_html(glance: Glance) -> str:
    """The verdict and the figures, whole: pictures within the text."""
    pictures = [
        f'<figure style="margin:0"><figcaption><b>{escape(figure.title)}</b></figcaption>'
        f'<img style="{_IMAGE}" alt="{escape(figure.alt)}" '
        f'src="data:image/png;base64,{b64encode(png(figure)).decode()}"></figure>'
        for figure in glance.for_notebook()
    ]
    return f'<p>{escape(verdict(glance.records, glance.unit))}</p><div style="{_GRID}">{"".join(pictures)}</div>'
