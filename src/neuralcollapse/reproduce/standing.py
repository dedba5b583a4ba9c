"""How far each run of an experiment is: a table for the terminal, read from the files of the runs (no torch)."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from neuralcollapse.errors import InputError
from neuralcollapse.runs.locks import NAME as LOCK
from neuralcollapse.runs.record_lines import last_record
from neuralcollapse.runs.records import format_value

if TYPE_CHECKING:
    from neuralcollapse.reproduce.experiment import Planned
    from neuralcollapse.reproduce.runner import ExperimentFolder

WHOLE, RUNS, WAITS, FAILED = "whole", "runs", "waits", "failed"


@dataclass(frozen=True)
class Standing:
    """One run: its state, and what its last record says.

    Attributes:
        name: of the run.
        state: "whole", "runs" (some process writes there), "waits" or "failed".
        epoch: of the last record; None before the first.
        epochs: that it will have; None for a survey.
        accuracy: on the training set.
        nc1: within-class over between-class variability; 0 under collapse.
    """

    name: str
    state: str
    epoch: float | None = None
    epochs: int | None = None
    accuracy: float | None = None
    nc1: float | None = None


def standings(
    path: Path, runs: Sequence[Planned], missing: Collection[str], failed: Collection[str] = ()
) -> list[Standing]:
    """The runs in their order; `missing` are the names of those that are not whole, `failed` of those that died."""
    found = []
    for run in runs:
        place = path / run.name
        # the lock of a killed process stays until another looks at it: such a run is shown as one that runs
        state = RUNS if (place / LOCK).is_file() else WAITS
        state = WHOLE if run.name not in missing else FAILED if run.name in failed else state
        last = None
        with suppress(InputError):  # what is damaged is named by whoever takes up the run
            last = last_record(place / "records.jsonl")
        found.append(
            Standing(
                name=run.name,
                state=state,
                epoch=last.epoch if last else None,
                epochs=getattr(run.config, "epochs", None),
                accuracy=last.train.get("accuracy") if last else None,
                nc1=last.measures.get("nc1") if last else None,
            )
        )
    return found


def table(found: Sequence[Standing]) -> list[str]:
    """The lines of the table, and one that counts the states."""
    rows = [("run", "state", "epoch", "train acc.", "NC1")]
    for each in found:
        epoch = "" if each.epoch is None else f"{each.epoch:g}" + (f" of {each.epochs}" if each.epochs else "")
        accuracy = "" if each.accuracy is None else format_value("accuracy", each.accuracy)
        rows.append((each.name, each.state, epoch, accuracy, "" if each.nc1 is None else format_value("nc1", each.nc1)))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    aligned = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    count = Counter(each.state for each in found)
    return [*aligned, ", ".join(f"{count[state]} {state}" for state in (WHOLE, RUNS, WAITS, FAILED) if count[state])]


class Board:
    """The table on a terminal, drawn again in its place; elsewhere a line for each run whose state has changed."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.redraws = self.stream.isatty()
        self._shown: list[str] = []
        self._states: dict[str, str] = {}

    def show(self, found: Sequence[Standing]) -> None:
        """Draw what has changed."""
        if self.redraws:
            lines = table(found)
            if lines != self._shown:
                up = f"\x1b[{len(self._shown)}F\x1b[J" if self._shown else ""
                self.stream.write(up + "".join(f"{line}\n" for line in lines))
                self._shown = lines
        else:
            for each in found:
                if self._states.get(each.name, WAITS) != each.state:
                    self.stream.write(f"... {each.name}: {each.state}\n")
            self._states = {each.name: each.state for each in found}
        self.stream.flush()


class Looks:
    """Shows the standings on a board when called, at most every second and a twentieth of the time."""

    def __init__(self, folder: ExperimentFolder, board: Board) -> None:
        self.folder, self.board = folder, board
        self._next = 0.0

    def __call__(self, failed: Collection[str] = (), now: bool = False) -> None:
        """Look, unless it is too soon; `failed` are the names of runs that died."""
        began = time.monotonic()
        if began < self._next and not now:
            return
        missing = [run.name for run in self.folder.missing()]
        self.board.show(standings(self.folder.path, self.folder.experiment.runs, missing, failed))
        ended = time.monotonic()
        self._next = ended + max(1.0, 20 * (ended - began))
