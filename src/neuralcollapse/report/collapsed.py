"""What pages call collapsed: the limits, and the words for how far a record has come."""

from __future__ import annotations

import math

from neuralcollapse.runs.records import Record

FITS, WITHIN, SIMPLEX = 0.99, 0.1, 0.2  # limits of the train accuracy, of NC1, and of NC2 of the means and NC3


def state(record: Record) -> str:
    """In words how far collapse has come, by the limits FITS, WITHIN and SIMPLEX."""
    nc2, nc3 = (record.measures.get(name, math.nan) for name in ("nc2_means", "nc3"))
    if not within(record):
        return "Not collapsed"
    if nc2 <= SIMPLEX and nc3 <= SIMPLEX:
        return "Collapsed to a simplex"
    if max(record.value("minimizer.nc2_means"), record.value("minimizer.nc3")) > SIMPLEX:  # of unequal classes
        return "Collapsed to the class means, which are no simplex (nor are they at the exact minimum),"
    return "Collapsed to the class means, which are no simplex yet,"


def within(record: Record) -> bool:
    """Whether the features have collapsed to their class means: the data are fitted, and NC1 is small."""
    return record.measures.get("nc1", math.nan) <= WITHIN and record.value("train.accuracy") >= FITS


def limits() -> str:
    """The limits behind the words of `state`."""
    return (
        f"Called collapsed to the class means: train accuracy of at least {FITS:g} and NC1 of at most {WITHIN:g}; to a "
        f"simplex: NC2 of the means and NC3 of at most {SIMPLEX:g} too."
    )
