"""The records of runs as CSV: a line for each measured epoch (or step) of each run, six significant digits.

A page holds the whole text, so that of a long run it has records in equal steps, the first and the last among them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from neuralcollapse.report.thinning import POINTS, evenly
from neuralcollapse.runs.csv_text import csv_text
from neuralcollapse.runs.reading import Run

_GROUPS = ("train", "test", "measures", "head")
_EXPECTED = ("minimizer", "untrained")
_OWN = ("run", "seed", "epoch", "step", "checkpoint", "seconds", "learning_rate", "source")


def records_csv(runs: Sequence[Run]) -> str:
    """At most `POINTS` records of each run; columns that no run has are left out, and missing values are empty."""
    lines: list[dict[str, object]] = []
    for run in runs:
        labels = {f"{axis} (axis)" if axis in _OWN else axis: text for axis, text in run.labels.items()}
        place = {"run": run.name, **labels, "seed": run.config.get("seed", "")}
        for record in (run.records[i] for i in evenly(len(run.records), POINTS)):
            line: dict[str, object] = {
                **place,
                run.unit: record.epoch,
                "seconds": _short(record.seconds),
                "learning_rate": _short(record.learning_rate),
                "source": record.source,
            }
            for group in _GROUPS:
                line |= _named("" if group == "measures" else f"{group}_", getattr(record, group))
            for name, values in record.layers.items():
                line |= _named(f"{name}/", values)
            for name, values in record.test_layers.items():
                line |= _named(f"test_{name}/", values)
            for group in _EXPECTED:
                line |= _named(f"{group}_", getattr(record, group))
            lines.append(line)
    return csv_text(lines)


def csv_label(runs: Sequence[Run]) -> str:
    """The words on the button: where records are left out, how many."""
    there, kept = sum(len(run.records) for run in runs), sum(min(len(run.records), POINTS) for run in runs)
    some = "the records (CSV)" if kept == there else f"{kept:,} of {there:,} records (CSV); records.jsonl has all"
    return f"Download {some}"


def _named(prefix: str, values: Mapping[str, float]) -> dict[str, object]:
    return {f"{prefix}{name}": _short(x) for name, x in values.items()}


def _short(x: float) -> float | str:
    return float(f"{x:.6g}") if math.isfinite(x) else ""
