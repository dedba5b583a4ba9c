"""The page of one run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from neuralcollapse.errors import listed
from neuralcollapse.report.class_means import geometry_figures
from neuralcollapse.report.class_tables import class_tables
from neuralcollapse.report.collapsed import FITS, SIMPLEX, WITHIN, limits, state, within
from neuralcollapse.report.curves import happened, nearest_curves, run_curves
from neuralcollapse.report.expected import BUDGET, budget_table, expected_columns, expected_note
from neuralcollapse.report.figure import Figure
from neuralcollapse.report.formulas import formula
from neuralcollapse.report.live import Live, ends_early
from neuralcollapse.report.page import Card, Cell, Page, Table
from neuralcollapse.report.records_csv import csv_label, records_csv
from neuralcollapse.report.scree import geometry_scree
from neuralcollapse.runs.files import as_path
from neuralcollapse.runs.folder import RunFolder
from neuralcollapse.runs.head_lines import head_lines, model_words
from neuralcollapse.runs.reading import Run, read_run
from neuralcollapse.runs.records import MEASURES, Record, describe_epoch, format_value, goal, number

_SOURCES = {
    "eval": "On the training set, in eval mode.",
    "online": "From the features of the epoch's training steps, while the weights moved (measured online).",
}
# Names of data sets that do not say what is in them.
_NAMELESS = ("Dataset", "TensorDataset", "IterableDataset", "ConcatDataset", "DataLoader", "list", "tuple", "")
_SHOWN = 20  # values of a list
_CARDS = ("nc1", "nc2", "nc2_means", "nc3", "nc4")


def write_page(run: str | Path | RunFolder, out: str | Path | None = None, *, shared_assets: bool = False) -> Path:
    """Write the page of a run, as `neuralcollapse report` does.

    Args:
        run: the run folder.
        out: the file; report.html in the run folder when not given.
        shared_assets: keep the script that draws the figures in one file beside the page, neuralcollapse-HASH.js, for
            all pages of that folder. Pages without it are whole in themselves.

    Returns:
        The file.

    Raises:
        InputError: no run or no records there, damaged files, a file that cannot be written, or packages missing.
    """
    path = run.path if isinstance(run, RunFolder) else as_path(run, "a run folder")
    page = single_page(read_run(path))
    return page.write(Path(out or path / "report.html"), shared_assets=shared_assets)


def single_page(run: Run, live: Live | None = None) -> Page:
    """The page of a run, with `live` of one that is going on."""
    options = [(name, shown(item)) for name, item in run.config.items() if given(item)]
    places = [(name, shown(item)) for name, item in run.environment.items() if name not in BUDGET]
    said = [verdict(run.records, run.unit), *happened(run.records, run.unit), "" if live else ends_early(run)]
    return Page(
        title=f"Neural collapse: {_title(run)}",
        subtitle=_subtitle(run),
        verdict=" ".join(sentence for sentence in said if sentence),
        cards=_cards(run.last),
        figures=run_figures(run),
        tables=[
            _measures(run),
            *_head(run),
            *_layers(run),
            *class_tables(run),
            *budget_table(run),
            Table(
                "Configuration", options, note="Options that were left out are not listed.", narrow=True, folded=True
            ),
            Table("Where it ran", places, narrow=True, folded=True),
        ],
        mood="good" if state(run.last) == "Collapsed to a simplex" else "open" if within(run.last) else "bad",
        csv=("records.csv", records_csv([run])),
        csv_label=csv_label([run]),
        live=live,
    )


def run_figures(run: Run) -> list[Figure]:
    """The figures of a run, in reading order."""
    return [
        *run_curves(run.records, run.unit),
        *nearest_curves(run.records, run.unit),
        *geometry_figures([run]),
        *geometry_scree(run.geometries, run.unit),
    ]


def verdict(records: Sequence[Record], unit: str = "epoch") -> str:
    """What happened, in plain words: collapsed or not, by stated limits, and the numbers."""
    first, last = records[0], records[-1]
    accuracy = f"train accuracy {_accuracy(last, 'train')}"
    if last.test:
        accuracy += f", test accuracy {_accuracy(last, 'test')}"
    now, start = last.measures.get("nc1", math.nan), first.measures.get("nc1", math.nan)
    change = f"NC1 {number(now)}"
    if len(records) > 1 and now > 0 and start > 0:
        change = f"NC1 went from {number(start)} to {number(now)} ({_ratio(start, now)})"
    return f"{state(last)} {describe_epoch(last, unit)}: {accuracy}; {change}."


def data_name(data: object) -> str:
    """A data set's name without its folder, or the folder's name where the data have none of their own."""
    kind, _, folder = str(data).partition(":")
    return Path(folder).name if kind in ("idx", "imagefolder") and folder else kind


def given(item: object) -> bool:
    """Whether an option has a value, rather than being left out."""
    return item is not None and item != [] and item != {}


def shown(item: object) -> str:
    """A value of a configuration or environment, for reading."""
    return listed(item, _SHOWN) if isinstance(item, list) else str(item)


def _title(run: Run) -> str:
    data, network = data_name(run.config.get("data", "")), str(run.config.get("network", ""))
    return ", ".join(part for part in ("" if data in _NAMELESS else data, network) if part) or run.name


def _subtitle(run: Run) -> str:
    config, environment = run.config, run.environment
    dim = run.geometries[-1].means.shape[1] if run.geometries else environment.get("feature_dim")
    parts = (
        (config.get("frame"), "{} classifier"),
        (environment.get("num_classes"), "K = {}"),
        (dim or config.get("feature_dim"), "d = {}"),
        (environment.get("train_samples"), "{} training samples"),
        (config.get("seed"), "seed {}"),
    )
    read = ((f"{item:,}" if isinstance(item, int) else item, text) for item, text in parts if item is not None)
    return ", ".join(text.format(item) for item, text in read)


def _measures(run: Run) -> Table:
    first, last = run.first, run.last
    tested = any(name in MEASURES for name in last.test)
    beside = [("test set", last.test)] * tested + expected_columns(last)
    rows: list[tuple[Cell | str, ...]] = [
        (
            Cell(label, f"{name}: {meaning}", formula=formula(name)),
            _estimate(first, name),
            _estimate(last, name),
            *(number(values[name]) if name in values else "" for _, values in beside),
        )
        for name, (label, meaning) in MEASURES.items()
        if name in last.measures
    ]
    held_out = " Test set: about its own class means; NC4 and NCC accuracy to those of the training set." * tested
    pairs = last.measures.get("num_pairs", math.nan)
    sampled = "" if math.isnan(pairs) else f" Numbers with ± are means over {pairs:,.0f} sampled pairs of classes."
    if any(f"{name}_corrected" in last.measures for name in MEASURES):
        sampled += (
            " After a semicolon: without the bias of few samples, with the standard error, from "
            f"{last.measures.get('num_groups', math.nan):.0f} groups of the samples."
        )
    return Table(
        "Every measure",
        rows,
        ("measure", f"{run.unit} {first.epoch:,}", f"{run.unit} {last.epoch:,}", *(heading for heading, _ in beside)),
        f"{_SOURCES[last.source]} Under collapse {goal(last)}. W: the classifier's rows w, with "
        f"biases b; M: the rows m, class means about the mean μ_G of all samples; S_W, S_B: covariance within and "
        f"between K classes; σ²: variance within a class. {limits()}{sampled}{held_out}"
        f"{expected_note(run)}",
        tall=True,
        fold_note=True,
    )


def _estimate(record: Record, name: str) -> str:
    """A measure for reading, with its value without bias and its standard error where it has them."""
    error, value = (record.measures.get(f"{name}_{kind}", math.nan) for kind in ("error", "corrected"))
    beside = "" if math.isnan(value) else f"; {number(value)}"
    return number(record.measures.get(name)) + beside + ("" if math.isnan(error) else f" ± {error:.1g}")


def _head(run: Run) -> list[Table]:
    """The certificate of the head: its model, its ratio, its bound."""
    last = run.last
    rows = [tuple(line.split("  ", 1)) for line in head_lines(last.head)] if last.head else []
    heading = f"The head against its optimum at {run.unit} {last.epoch:,}"
    note = "The last layer as a point of the unconstrained feature model. Its ratio goes to 1 under collapse."
    return [Table(heading, rows, note=note, words=True, foldable=True)] if rows else []


def _layers(run: Run) -> list[Table]:
    last = run.last
    groups = [("", last.layers), (", test", last.test_layers)]
    columns = [
        (f"{MEASURES[key][0]}{words}", part, key)
        for key in ("nc1", "nc1_cdnv", "ncc_accuracy")
        for words, part in groups
        if any(key in values for values in part.values())
    ]
    rows = [
        (name, *(format_value(key, part.get(name, {}).get(key, math.nan)) or "undefined" for _, part, key in columns))
        for name in last.layers
    ]
    note = "On the same samples; outputs averaged over positions."
    heading = f"Inner layers at {run.unit} {last.epoch:,}"
    header = ("layer", *(title for title, _, _ in columns))
    return [Table(heading, rows, header, note, tall=True, foldable=True)] if rows else []


def _accuracy(record: Record, split: str) -> str:
    return format_value("accuracy", record.value(f"{split}.accuracy")) or "undefined"


def _ratio(start: float, now: float) -> str:
    factor = max(start / now, now / start)
    return f"{factor:,.3g} times {'less' if now < start else 'more'}"


def _cards(last: Record) -> list[Card]:
    """The numbers that decide, each with its limit."""
    fitted = last.value("train.accuracy")
    cards = [Card("train accuracy", _accuracy(last, "train"), "", f"at least {FITS:g}", fitted >= FITS)]
    if last.test:
        cards.append(Card("test accuracy", _accuracy(last, "test")))
    bounds = {"nc1": WITHIN, "nc2_means": SIMPLEX, "nc3": SIMPLEX}
    for name in _CARDS:
        if name in last.measures:
            (label, meaning), value = MEASURES[name], last.measures[name]
            bound = bounds.get(name)
            limit, holds = ("", None) if bound is None else (f"at most {bound:g}", value <= bound)
            cards.append(Card(label, number(value), meaning, limit, holds))
    if last.head:
        cards.append(Card("head ratio", number(last.head.get("ratio")), model_words(last.head), "goes to 1"))
    return cards
