"""Numbers and epochs of records as people read them, the same in tables, pages and on the terminal (no torch)."""

from __future__ import annotations

import math

from neuralcollapse.runs.records import Record


def number(x: float | None) -> str:
    """A number with four significant digits, or as a power of ten."""
    if x is None or math.isnan(x):
        return "undefined"
    return f"{x:.4g}" if x == 0 or 1e-2 <= abs(x) < 1e4 else f"{x:.2e}"


def format_value(key: str, x: float) -> str:
    """The number `key` of a record: accuracies with four places, nothing where it is undefined."""
    return "" if math.isnan(x) else f"{x:.4f}" if key.endswith("accuracy") else number(x)


def describe_epoch(record: Record, unit: str) -> str:
    """When a record was made: "after 1 epoch", "after 500 steps", "at checkpoint 3"."""
    if unit == "checkpoint":
        return f"at checkpoint {record.epoch:,}"
    return f"after {record.epoch:,} {unit}{'' if record.epoch == 1 else 's'}"
