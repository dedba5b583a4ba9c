"""Times rows of a table in alternation, tells when the machine was too noisy, and takes peak memory in fresh processes.

A table's first row is its baseline. In a round every row runs once, one after the other, so that a row's ratio to the
baseline is taken within one round: what changes the machine's pace for longer than a round changes both alike.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# A table is noisy when the middle half of a row's ratios is wider than this share of their median. The tightest ratio
# asked is "at most 1.1": with quartiles 7 % to each side, the median of five rounds or more is still good to some 5 %.
RATIO_SPREAD = 0.15
# Or when the middle half of the baseline's own times is wider than this: then other work was running, and it need not
# slow a row that waits for memory and one that multiplies by as much.
BASELINE_SPREAD = 0.25
# A noisy table takes as many rounds again, up to so many times in all.
MOST_TIMES = 3
# A call shorter than this (seconds) is repeated within a round, as the clock and the caches cost it too much.
SHORTEST = 0.005

Round = dict[str, float]  # seconds of each row that took part, by label


@dataclass
class Row:
    """One thing that is timed.

    Attributes:
        label: Markdown, unique in its table.
        run: what is timed.
        asked: what is asked of it, in words.
        note: words about what the last run returned; raises when that is wrong.
        beside: the label of another row whose time is compared too.
        rounds: a slow row takes part in only so many rounds, and is not run once beforehand; 0 for all.
        peak: take the peak memory of a fresh process that runs the table's preparation and this row alone.
    """

    label: str
    run: Callable[[], Any]
    asked: str = ""
    note: Callable[[Any], str] | None = None
    beside: str = ""
    rounds: int = 0
    peak: bool = False


@dataclass
class Table:
    """Rows that share a preparation, made by the function that returns the table.

    Attributes:
        heading: what is measured, on what.
        rows: the baseline first.
        rounds: how many are taken at first.
        take: for a table that alternates in its own way: takes so many wholes, returns their rounds.
        parts: the rounds that make a whole, whose times are added up; 1 for all but those with a `take`.
        compared: False for rows that have nothing in common, of which no more than times are asked, many times those
            that they take: no ratios are shown, quartiles are of the times over their median, and nothing is noisy.
        remarks: sentences below the table, found after the rounds.
    """

    heading: str
    rows: Sequence[Row]
    rounds: int = 9
    take: Callable[[int], list[Round]] | None = None
    parts: int = 1
    compared: bool = True
    remarks: Callable[[], list[str]] = field(default=list)


@dataclass
class Result:
    """What came out for a row. Times in seconds, ratios to the baseline (its own are its times over their median).

    The ratio is None in a table that does not compare.
    """

    label: str
    asked: str
    seconds: float
    ratio: float | None
    quartiles: tuple[float, float]
    rounds: int
    noisy: bool
    peak_bytes: int | None = None
    note: str = ""


def measured(table: Table, *, judge: bool = True, peak: Callable[[int], int] | None = None) -> list[Result]:
    """Take rounds until the table is quiet, at most MOST_TIMES the usual; then notes and peaks.

    Args:
        table: what to run.
        judge: False takes the usual rounds, and calls nothing noisy.
        peak: the peak memory, in bytes, of a fresh process for the row of a number; none is taken without.
    """
    last: dict[str, Any] = {}
    take = table.take or _alternating(table, last)
    rounds: list[Round] = []
    for _ in range(MOST_TIMES if judge else 1):
        rounds += take(table.rounds)
        results = summary(table, rounds)
        if not any(result.noisy for result in results):
            break
    for number, (row, result) in enumerate(zip(table.rows, results, strict=True)):
        words = []
        if row.beside:
            other = statistics.median(both[row.label] / both[row.beside] for both in rounds if row.label in both)
            words.append(f"{other:.3g}x {row.beside}")
        if row.note is not None:
            words.append(row.note(last.get(row.label)))
        result.note = "; ".join(words)
        result.noisy &= judge
        if row.peak and peak is not None:
            result.peak_bytes = peak(number)
    return results


def summary(table: Table, rounds: list[Round]) -> list[Result]:
    """Median times, medians and quartiles of the ratios, and which rows are noisy."""
    base = table.rows[0].label
    middle = statistics.median(each[base] for each in rounds)
    results = []
    for row in table.rows:
        own = [each for each in rounds if row.label in each]
        wholes = [sum(each[row.label] for each in own[i : i + table.parts]) for i in range(0, len(own), table.parts)]
        typical = statistics.median(wholes)
        if not table.compared:
            low, _, high = quartiles([each / typical for each in wholes])
            results.append(Result(row.label, row.asked, typical, None, (low, high), len(own), False))
            continue
        ratios = [each[row.label] / (middle if row.label == base else each[base]) for each in own]
        low, median, high = quartiles(ratios)
        allowed = BASELINE_SPREAD if row.label == base else RATIO_SPREAD
        noisy = high - low > allowed * median
        results.append(Result(row.label, row.asked, typical, median, (low, high), len(own), noisy))
    return results


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """The lower quartile, the median and the upper quartile; of one value, that value."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high


def seconds_of(run: Callable[[], Any]) -> tuple[float, Any]:
    """The time that one call takes, and what it returns."""
    started = time.perf_counter()
    value = run()
    return time.perf_counter() - started, value


def _alternating(table: Table, last: dict[str, Any]) -> Callable[[int], list[Round]]:
    """Rounds of all rows in turn; `last` gets what each returned last."""
    repeats: dict[str, int] = {}

    def take(count: int) -> list[Round]:
        for row in table.rows:
            if row.label not in repeats and not row.rounds:
                row.run()  # warm
                repeats[row.label] = max(1, round(SHORTEST / seconds_of(row.run)[0]))
        rounds = []
        for number in range(count):
            rounds.append({})
            for row in table.rows:
                if row.rounds and number >= row.rounds:
                    continue
                times = repeats.get(row.label, 1)
                started = time.perf_counter()
                for _ in range(times):
                    last[row.label] = row.run()
                rounds[-1][row.label] = (time.perf_counter() - started) / times
        return rounds

    return take


def peak_bytes() -> int:
    """The most memory that this process has held.

    On Linux not by ru_maxrss, which a new process takes over from the one that started it.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def fresh_peak(*arguments: str) -> int:
    """What a fresh process of the command `python ARGUMENTS` prints last: its peak, in bytes."""
    done = subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    return int(done.stdout.split()[-1])
