"""What the records of a run say: collapse has begun, or a number gets no better and training may stop (no torch)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from neuralcollapse.errors import InputError
from neuralcollapse.runs.records import Record, check_key, number

COLLAPSE_BEGUN, STOPPED = "collapse_begun", "stopped"  # names of events in a record
_FALLS = 1e-3  # a smaller share of NC1 is no fall: a network that rests is measured a little differently each time
FITTED = 0.999  # from this train accuracy on, the data are fitted: what [Papyan 2020] calls the terminal phase

StopMode = Literal["auto", "falling", "rising"]


def begins(before: Record, record: Record) -> bool:
    """Whether collapse begins with a record: the data are fitted, and NC1 falls.

    That is: the train accuracy is at least 0.999, and NC1 is below that of the record before by a thousandth at least.
    Undefined numbers say no.
    """
    return record.value("train.accuracy") >= FITTED and record.value("nc1") < before.value("nc1") * (1 - _FALLS)


def collapse_begun(records: Sequence[Record]) -> Record | None:
    """The record with which the collapse that lasts to the end began, or None.

    That is the first with which collapse begins (see `begins`) after the last one whose train accuracy is below 0.999:
    at a high learning rate a network may fit its data for an epoch or two, and lose them again. The event in a record,
    which knows nothing of what follows, is that of the first time. The first record has none before it, and is never
    the one.
    """
    lost = [place for place, record in enumerate(records) if record.value("train.accuracy") < FITTED]
    return _first_begun(records[lost[-1] if lost else 0 :])


def _first_begun(records: Sequence[Record]) -> Record | None:
    return next((record for before, record in pairwise(records) if begins(before, record)), None)


def event_lines(record: Record, unit: str) -> list[str]:
    """What happened with a record, a sentence for each event."""
    words = {COLLAPSE_BEGUN: "collapse has begun", STOPPED: "training stops"}
    return [f"{unit} {record.epoch}: {words[name]}: {text}" for name, text in record.events.items() if name in words]


def stopped(records: Sequence[Record]) -> str:
    """Why the training was stopped early, as its last record says; empty if it was not."""
    return records[-1].events.get(STOPPED, "") if records else ""


@dataclass(frozen=True)
class StopRule:
    """Stop when a number of the records gets no better.

    Args:
        key: the number, as `Record.value` names it, such as "nc1", "test.accuracy" or "layers.body.0.nc1".
        patience: stop after so many measurements in a row without a better value.
        mode: which values are better: "falling", "rising", or "auto": accuracies and the lower bound of the head's
            objective rise, everything else falls.
        min_delta: a value is better than the best one so far if it is by more than this.

    Raises:
        InputError: no such number, or a value out of range.
    """

    key: str
    patience: int = 5
    mode: StopMode = "auto"
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        check_key(self.key, "stop_on")
        check_patience(self.patience, self.mode, self.min_delta)

    @property
    def rising(self) -> bool:
        """Whether larger values are better."""
        if self.mode != "auto":
            return self.mode == "rising"
        return self.key.endswith("accuracy") or self.key == "head.lower_bound"


def check_patience(patience: object = 1, mode: object = "auto", min_delta: object = 0) -> None:
    """Raise unless these are values for a `StopRule`."""
    if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
        raise InputError(f"expected patience to be a number of measurements of at least 1, got {patience!r}")
    if mode not in ("auto", "falling", "rising"):
        raise InputError(f"expected stop_mode to be auto, falling or rising, got {mode!r}")
    if isinstance(min_delta, bool) or not isinstance(min_delta, int | float) or not 0 <= min_delta < math.inf:
        raise InputError(f"expected min_delta to be 0 or positive and finite, got {min_delta!r}")


class Patience:
    """How long a `StopRule` has waited, as records come in, in the order of training.

    What it says depends on the records alone, so that a run that goes on later stops where it would have.
    """

    def __init__(self, rule: StopRule, records: Iterable[Record] = ()) -> None:
        self.rule = rule
        self._best = math.nan
        self._epoch = 0
        self._waited = 0
        for record in records:
            self.see(record)

    def see(self, record: Record) -> None:
        """Take in the next record. An undefined number is no better than any other."""
        value = record.value(self.rule.key)
        gain = value - self._best if self.rule.rising else self._best - value
        if gain > self.rule.min_delta or (math.isnan(self._best) and not math.isnan(value)):
            self._best, self._epoch, self._waited = value, record.epoch, 0
        else:
            self._waited += 1

    def reason(self, unit: str = "epoch") -> str:
        """Why to stop now, in a sentence; empty to go on. `unit` is what the records count."""
        if self._waited < self.rule.patience:
            return ""
        verb = "risen" if self.rule.rising else "fallen"
        by = f" by more than {number(self.rule.min_delta)}" if self.rule.min_delta else ""
        times = f"{self._waited} measurement{'s' * (self._waited > 1)}"
        if math.isnan(self._best):
            return f"{self.rule.key} was undefined in {times}"
        return (
            f"{self.rule.key} has not {verb}{by} for {times}: the best was {number(self._best)} at {unit} {self._epoch}"
        )


class Watch:
    """The events of a run as its records come in.

    Args:
        rule: when training may stop, if it may.
        records: of the run so far, in the order of training.
    """

    def __init__(self, rule: StopRule | None, records: Sequence[Record] = ()) -> None:
        self.rule = rule
        self.restart(records)

    def restart(self, records: Sequence[Record]) -> None:
        """Go on from these records, in the order of training."""
        self._before = records[-1] if records else None
        self._begun = _first_begun(records) is not None
        self._patience = None if self.rule is None else Patience(self.rule, records)

    def reason(self, unit: str) -> str:
        """Why to stop now, in a sentence; empty to go on. `unit` is what the records count."""
        return self._patience.reason(unit) if self._patience else ""

    def see(self, record: Record, unit: str) -> dict[str, str]:
        """Take in the next record; what happens with it, as `Record.events` holds it.

        Raises:
            InputError: it has no such number as the rule is for.
        """
        events = {}
        before, self._before = self._before, record
        if before is not None and not self._begun and begins(before, record):
            self._begun = True
            fell = " to ".join(number(each.value("nc1")) for each in (before, record))
            events[COLLAPSE_BEGUN] = f"train accuracy {record.value('train.accuracy'):.4f}, NC1 fell from {fell}"
        if self._patience is not None:
            if before is None and not record.has(self._patience.rule.key):
                raise InputError(
                    f"expected stop_on as a number of the records, got {self._patience.rule.key!r}, which they do not "
                    "have: ask for it to be measured (a test set, layers, head_decay, nc4), or stop on another"
                )
            stopped = self.reason(unit)
            self._patience.see(record)
            if self.reason(unit) and not stopped:
                events[STOPPED] = self.reason(unit)
        return events
