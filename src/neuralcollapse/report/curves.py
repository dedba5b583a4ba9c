"""Numbers of one run by epoch (or step), and what people call a number on a page."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace

from neuralcollapse.report.collapsed import FITS, SIMPLEX, WITHIN
from neuralcollapse.report.expected import of_records, reference_lines
from neuralcollapse.report.figure import COLORS, Axis, Band, Figure, Line
from neuralcollapse.report.thinning import kept_points
from neuralcollapse.runs.events import collapse_begun, stopped
from neuralcollapse.runs.head_lines import features_words
from neuralcollapse.runs.records import MEASURES, Record, interval, label, number

_KeyLine = tuple[str, str, str, str]  # the key of a number, the name of its line, its colour and dash

_PERCENT = Axis(percent=True, page_log=True)


def run_curves(records: Sequence[Record], unit: str = "epoch") -> list[Figure]:
    """The curves of one run, in reading order; `unit` is what its records count."""
    collapsed = f"collapsed: at most {WITHIN:g}"
    figures = [
        split_curve(records, unit, "loss", "Cross-entropy in eval mode.", Axis(log=True)),
        replace(
            split_curve(records, unit, "accuracy", "Share of samples classified correctly.", _PERCENT),
            levels=[(FITS, f"fitted: at least {FITS:g}")],
        ),
        replace(
            measure_curve(
                records,
                unit,
                "variability",
                ("nc1", "nc1_quotient", "nc1_cdnv"),
                "NC1: within-class spread",
                "Spread of the features within classes against that between them. Falls to 0.",
                Axis(log=True),
            ),
            levels=[(WITHIN, collapsed)],
        ),
        replace(
            measure_curve(
                records,
                unit,
                "simplex",
                ("nc2", "nc2_means", "nc3"),
                "NC2, NC3: off the simplex",
                "Distance of the classifier's rows (NC2), the class means, and both together (NC3) from a simplex ETF. "
                "Falls to 0 where classes are equal.",
                Axis(from_zero=True, page_log=True),
            ),
            levels=[(SIMPLEX, f"a simplex: at most {SIMPLEX:g}")],
        ),
    ]
    figures += [head_curve(records, unit)] if any(record.head for record in records) else []
    return _with_events(figures, records, unit)


def happened(records: Sequence[Record], unit: str) -> list[str]:
    """Sentences that say with which record collapse began, if it did, and why training was stopped early, if it was."""
    begun, reason = collapse_begun(records), stopped(records)
    found = [] if begun is None else [f"Collapse began at {unit} {begun.epoch:,} (fitted, and NC1 falls)."]
    return [*found, f"Stopped early: {reason}."] if reason else found


def _with_events(figures: Sequence[Figure], records: Sequence[Record], unit: str) -> list[Figure]:
    """The figures of a run, marked where something happened."""
    begun = collapse_begun(records)
    found = [] if begun is None else [(float(begun.epoch), "collapse begins")]
    found += [(float(records[-1].epoch), "stopped early")] if stopped(records) else []
    words = happened(records, unit)
    return [replace(figure, events=found, alt=" ".join([figure.alt, *words])) for figure in figures]


def nearest_curves(records: Sequence[Record], unit: str = "epoch") -> list[Figure]:
    """The accuracy of the nearest class mean, in inner layers too; nothing where it was not measured."""
    if not any(record.has("ncc_accuracy") for record in records):
        return []
    places = {f"layers.{name}.": name for name in records[-1].layers} | {"": "features"}
    keys = {f"{place}ncc_accuracy": name for place, name in places.items()}
    lines = _with_test(records, keys)
    caption = "Share of samples that are nearest to the class mean (of the training set) of their label. Goes to 1."
    title = "NCC accuracy: nearest mean"
    figure = _figure(_thinned(records, [key for key, *_ in lines]), unit, lines, "nearest", title, caption, _PERCENT)
    return _with_events([figure], records, unit)


def split_curve(records: Sequence[Record], unit: str, key: str, caption: str, axis: Axis) -> Figure:
    """A number on the training set and, where there is one, on the test set."""
    splits = ("train", "test") if any(record.test for record in records) else ("train",)
    dashes = {"train": "solid", "test": "dash"}
    lines = [(f"{split}.{key}", split, COLORS[0], dashes[split]) for split in splits]
    records = _thinned(records, [key for key, *_ in lines])
    return _figure(records, unit, lines, key, key.capitalize(), caption, axis)


def measure_curve(
    records: Sequence[Record], unit: str, name: str, keys: Sequence[str], title: str, caption: str, axis: Axis
) -> Figure:
    """Some of the measures, and the same on the test set where it was measured, in the same colours and dashed."""
    lines = _with_test(records, {key: label(key) for key in keys})
    records = _thinned(records, [key for key, *_ in lines])
    figure = _figure(records, unit, lines, name, title, caption, axis)
    bands = _bands(records, keys, log=axis.log)
    if bands:
        words = f"{caption} Bands: 95 % intervals of the values without the bias of few samples."
        figure = replace(figure, marks=[*bands, *figure.marks], caption=words)
    curves = {key: [of_records(records, label(key), color)] for key, color in zip(keys, COLORS, strict=False)}
    beside = reference_lines(curves, log=axis.log)
    ends = [f"{label(key)} {number(x)}" for key in keys if not math.isnan(x := records[-1].value(f"minimizer.{key}"))]
    alt = f"{figure.alt} At the exact minimum: {', '.join(ends)}." if beside and ends else figure.alt
    return replace(figure, marks=[*figure.marks, *beside], alt=alt)


def _bands(records: Sequence[Record], keys: Sequence[str], *, log: bool) -> list[Band]:
    """A band for each measure that has standard errors."""
    bands = []
    for key, color in zip(keys, COLORS, strict=False):
        found = [(record.epoch, record.value(f"{key}_corrected"), *interval(record, key)) for record in records]
        found = [each for each in found if not math.isnan(each[2])]
        if found:
            epochs, values, low, high = (list(column) for column in zip(*found, strict=True))
            if log:  # an interval may reach below 0, where the axis has nothing: it ends at a tenth of the value
                low = [max(x, value / 10) for x, value in zip(low, values, strict=True)]
            bands.append(Band(label(key), epochs, low, high, color))
    return bands


def head_curve(records: Sequence[Record], unit: str) -> Figure:
    """The last layer's objective, the exact minimum for its class counts, and the lower bound from its class means."""
    known = next(record for record in reversed(records) if record.head)
    last, when = known.head, "the end" if known is records[-1] else f"{unit} {known.epoch:,}"  # it may die later
    kind = features_words(last)
    exact = "exact minimum" if last.get("exact", 1) else "upper bound of the minimum"
    names = {"objective": "the head", "minimum": f"{exact}, {kind}", "lower_bound": "bound from the head"}
    records = _thinned(records, [f"head.{key}" for key in names])
    lines = [(f"head.{key}", text, color, "solid") for (key, text), color in zip(names.items(), COLORS, strict=False)]
    caption = (
        f"The last layer in the unconstrained feature model with {kind}: its objective, the {exact}, and the lower "
        f"bound that it certifies. At {when}, {number(last['ratio'])} times "
        f"{'the minimum' if last.get('exact', 1) else 'that bound'}."
    )
    return _figure(records, unit, lines, "head", "The head against its optimum", caption, Axis(log=True))


def key_axis(key: str, log: bool) -> Axis:
    """The axis of the number `key`; a page begins with a logarithm where numbers fall to 0 or rise to 1."""
    if key.endswith("accuracy"):
        return Axis(label(key), percent=True, page_log=key == "train.accuracy")
    return Axis(label(key), log=log, from_zero=not log, page_log=key in MEASURES)


def key_title(key: str) -> str:
    """What people call the number `key`, with a capital."""
    text = label(key)
    return text[:1].upper() + text[1:]


def key_meaning(key: str) -> str:
    """What the number `key` is, in a sentence."""
    if key in MEASURES:
        text = MEASURES[key][1]
        text = text if text.startswith("tr") else text[:1].upper() + text[1:]
        return f"{text}."
    return {
        "train.loss": "Mean over the training set.",
        "train.accuracy": "Share of training samples classified correctly.",
        "test.accuracy": "Share of test samples classified correctly.",
        "head.ratio": "The last layer's objective over the minimum for its class counts and decays, or over an upper "
        "bound of it where the exact minimum is not known.",
    }.get(key, f"{key_title(key)}.")


def figure_name(*parts: str) -> str:
    """The parts as a name that is fit for a file."""
    return re.sub(r"[^\w-]+", "-", "-".join(parts))


def mean(row: Sequence[float]) -> float:
    """The mean; NaN of nothing."""
    return sum(row) / len(row) if row else math.nan


def _figure(
    records: Sequence[Record],
    unit: str,
    lines: Sequence[_KeyLine],
    name: str,
    title: str,
    caption: str,
    axis: Axis,
) -> Figure:
    epochs = [record.epoch for record in records]
    names = {text for _, text, *_ in lines}
    marks = [
        Line(text, epochs, [each.value(key) for each in records], color, dash, part_of=_main(text, names))
        for key, text, color, dash in lines
    ]
    ends = ", ".join(f"{mark.name} from {number(mark.y[0])} to {number(mark.y[-1])}" for mark in marks)
    alt = f"{title} from {unit} {epochs[0]} to {epochs[-1]}: {ends}."
    return Figure(name, title, caption, alt, marks, Axis(unit, whole=True), axis, read_together=True)


def _main(name: str, names: Container[str]) -> str:
    """The name of the line that this one is the test set's part of; empty for one of its own."""
    main = name.removesuffix(", test")
    return main if main != name and main in names else ""


def _with_test(records: Sequence[Record], keys: Mapping[str, str]) -> list[_KeyLine]:
    """A line for each key, with its name; then dashed ones in the same colours for what the test set has of them."""
    colors = dict(zip(keys, itertools.cycle(COLORS), strict=False))
    tested = {key: f"test_{key}" if key.startswith("layers.") else f"test.{key}" for key in keys}
    there = [key for key in keys if any(record.has(tested[key]) for record in records)]
    return [
        *((key, text, colors[key], "solid") for key, text in keys.items()),
        *((tested[key], f"{keys[key]}, test", colors[key], "dash") for key in there),
    ]


def _thinned(records: Sequence[Record], keys: Sequence[str]) -> Sequence[Record]:
    """The records that the curves of these numbers are drawn from."""
    kept = kept_points([[record.value(key) for record in records] for key in keys])
    return [records[i] for i in kept]
