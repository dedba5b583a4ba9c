"""`--per-class` and `--class-names` of `neuralcollapse measure`: the classes on the terminal, as JSON and as CSV."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from neuralcollapse.errors import InputError
from neuralcollapse.runs.class_rows import Row, cut, name_of, plain, short, table_text, without_undefined
from neuralcollapse.runs.csv_text import csv_text
from neuralcollapse.runs.files import parse_json, read_text, write_atomically

if TYPE_CHECKING:
    from neuralcollapse.capture.collect import Capture
    from neuralcollapse.geometry.class_table import ClassTable
    from neuralcollapse.geometry.pairs import ClassPair
    from neuralcollapse.runs.folder import RunFolder

_PAIRS = 5  # that the terminal shows
_NAME = 40  # columns of the terminal for a class


class Classes(NamedTuple):
    """The classes as rows (see `runs.class_rows`), and the pairs that are hardest to tell apart, as such rows too."""

    rows: Sequence[Row]
    pairs: Sequence[Row]

    @classmethod
    def of(cls, table: ClassTable, pairs: Sequence[ClassPair]) -> Classes:
        """Those of a table and of pairs."""
        found = []
        for pair in pairs:
            first, second = pair.names or (None, None)
            near = {"nearest": pair.second, "nearest_name": second}
            found.append({"class": pair.first, "name": first, **near, "cdnv": pair.cdnv})
        return cls(table.rows(), found)


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "--per-class",
        nargs="?",
        const="",
        metavar="FILE.csv",
        help="show the numbers of each class, the worst first, and write all of them to a CSV file if one is named",
    )
    parser.add_argument(
        "--class-names",
        type=Path,
        metavar="FILE",
        help="names of the classes: a line for each, or .json with a list or a dict by number, or with id2label",
    )


def check(options: argparse.Namespace) -> None:
    """Raise for values that cannot be meant.

    Raises:
        InputError: a file to write that is no .csv, such as the file of features after the option.
    """
    if options.per_class and not options.per_class.lower().endswith(".csv"):
        raise InputError(
            f"expected --per-class alone or with a .csv file to write, got {options.per_class!r}: name other files "
            "before the options"
        )


def names(options: argparse.Namespace) -> list[str] | Mapping[int, str] | None:
    """The names in the file of --class-names; None where it was not given.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    path: Path | None = options.class_names
    if path is None:
        return None
    text = read_text(path)
    if path.suffix != ".json":
        return text.splitlines()
    try:
        found = parse_json(text)
    except ValueError as error:
        raise InputError(f"cannot read {path}: {error}") from None
    if isinstance(found, dict):
        found = found.get("id2label", found)
    if isinstance(found, dict) and all(key.isdecimal() for key in found):
        return {int(key): str(name) for key, name in found.items()}
    if isinstance(found, list):
        return [str(name) for name in found]
    raise InputError(f"expected {path} to hold a list of names or a dict from number to name (id2label): write one")


def of_capture(capture: Capture, given: Sequence[str] | Mapping[int, str] | None) -> Classes:
    """The classes of a capture; `given` names go before those that it knows."""
    from neuralcollapse.capture.class_by_class import confused

    known = given or capture.class_names
    table, _ = capture.quiet_per_class(known)
    return Classes.of(table, confused(capture.means, names=known, pairwise=True))


def of_run(folder: RunFolder, given: Sequence[str] | Mapping[int, str] | None) -> Classes:
    """The classes that a run folder keeps; `given` names go before those that it keeps.

    Raises:
        InputError: it keeps none, since there are too many, or names of another number of classes.
    """
    from neuralcollapse.capture.class_by_class import measured_names
    from neuralcollapse.runs.reading import read_run

    run = read_run(folder.path)
    if run.classes is None:
        raise InputError(f"{folder.path} keeps no table of its classes: there are too many of them")
    if given is None:
        return Classes(run.classes.rows(run.class_names), run.classes.pair_rows(run.class_names))
    import torch

    numbers = torch.as_tensor(run.classes.columns["number"]).long()
    known = measured_names(given, numbers, len(numbers), strict=True)
    assert known is not None
    return Classes(run.classes.rows(known), run.classes.pair_rows(known))


def as_json(classes: Classes | None) -> dict[str, Any]:
    """What --json adds."""
    if classes is None:
        return {}
    pairs = [
        {
            "first": row["class"],
            "first_name": row["name"],
            "second": row["nearest"],
            "second_name": row["nearest_name"],
            "cdnv": row["cdnv"],
        }
        for row in classes.pairs
    ]
    return {"per_class": list(classes.rows), "worst_pairs": pairs}


def show(classes: Classes) -> None:
    """Print the table and the worst pairs."""
    print(f"\n{table_text(classes.rows)}")
    if classes.pairs:
        print("hardest to tell apart:")
    for row in classes.pairs[:_PAIRS]:
        first, second = (cut(plain(name_of(row, key)), _NAME) for key in ("class", "nearest"))
        print(f"  {short('cdnv', row['cdnv']):>9}  {first}, {second}")


def write(options: argparse.Namespace, classes: Classes) -> str:
    """Write the CSV file, if one was named; returns a line that says so, or an empty text."""
    if not options.per_class:
        return ""
    path = Path(options.per_class)
    try:
        write_atomically(path, csv_text(map(without_undefined, classes.rows)).encode(errors="replace"))
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None
    return f"classes  {path}\n"
