"""What a page says while its run is going on, and the script that reloads it: no server is needed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from importlib import resources

from neuralcollapse.runs.events import stopped
from neuralcollapse.runs.reading import Run
from neuralcollapse.runs.records import describe_epoch

_TOTALS = {"epoch": "epochs", "step": "steps"}  # what a configuration calls the number of units that were planned


@dataclass(frozen=True)
class Live:
    """A page of a run that is going on.

    Attributes:
        progress: how far the run is, such as "12 of 100 epochs".
        written: when the page was written, with its time zone.
        every: seconds between two reloads.
        patience: seconds without a newer page after which the run has probably ended, so that the page reloads no more.
    """

    progress: str
    written: datetime
    every: int
    patience: int

    @classmethod
    def of(cls, run: Run, every: int, patience: int) -> Live:
        """The notice for a page that is written now."""
        return cls(progress(run), datetime.now().astimezone(), every, patience)

    def html(self) -> str:
        """The notice, with its style and script."""
        import jinja2

        text = resources.files("neuralcollapse.report").joinpath("live.html.jinja").read_text(encoding="utf-8")
        environment = jinja2.Environment(
            autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        return environment.from_string(text).render(live=self)


def planned(run: Run) -> int | None:
    """How many epochs or steps the run is to have, where its configuration says that."""
    total: object = run.config.get(_TOTALS.get(run.unit, ""))
    if isinstance(total, bool) or not isinstance(total, int | float) or not 0 < total < math.inf:
        return None
    return math.ceil(total)  # a part of an epoch counts as one


def progress(run: Run) -> str:
    """How far a run is: "12 of 100 epochs", or "after 12 epochs" where nobody knows how many there will be."""
    total = planned(run)
    if total is None:
        return describe_epoch(run.last, run.unit)
    return f"{run.last.epoch:,} of {total:,} {run.unit}{'' if total == 1 else 's'}"


def ends_early(run: Run) -> str:
    """A sentence where the records end before what was planned and none of them says why; else nothing."""
    total = planned(run)
    if total is None or run.last.epoch >= total or stopped(run.records):
        return ""
    return f"The records end after {progress(run)}."
