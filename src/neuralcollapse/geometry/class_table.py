"""ClassTable: the numbers of each class as tensors, and as rows, text, HTML or CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuralcollapse.checks import check_count
from neuralcollapse.errors import InputError, did_you_mean
from neuralcollapse.runs.class_rows import COLUMNS, Row, class_html, class_text, deciding, ends, without_undefined
from neuralcollapse.runs.csv_text import csv_text
from neuralcollapse.runs.files import as_path, write_atomically


@dataclass(frozen=True, eq=False, repr=False)
class ClassTable:
    r"""The numbers of each class, one row a class: what `neuralcollapse.per_class` returns.

    All columns are on the CPU and have R rows, R = K unless the table is one of `worst`. They are float64, and NaN
    where a class has no such number, but for the two that hold numbers of classes. `neuralcollapse.per_class` has the
    formulas.

    Attributes:
        number: (R,) int64, the numbers of the classes.
        count: (R,) their samples.
        mean_norm: (R,) :math:`|\mu_k - \mu_G|`.
        variance: (R,) :math:`V_k`, the mean of :math:`|h - \mu_k|^2` in the class.
        nearest: (R,) int64, the number of the class with the nearest mean; -1 where there is none. None if it was not
            asked for, as `distance` and `cdnv`.
        distance: (R,) how far that mean is.
        cdnv: (R,) the class-distance normalised variance of the two.
        weight_norm: (R,) :math:`|w_k|`; None without a classifier, as the other columns about its rows.
        centred_weight_norm: (R,) :math:`|w_k - \bar w|`.
        alignment: (R,) cosine between :math:`w_k - \bar w` and :math:`\mu_k - \mu_G`.
        mean_logit: (R,) :math:`b_k + w_k^\top \mu_G`, less its mean over the classes.
        accuracy: (R,) share of the samples that are predicted right; None if it is not known.
        test_accuracy: (R,) the same of the samples of a test set.
        names: the names of the classes, by their numbers; None if they are not known.
        sorted_by: the column by which the rows are sorted, the worst first; None in the order of the classes.
    """

    number: Tensor
    count: Tensor
    mean_norm: Tensor
    variance: Tensor
    nearest: Tensor | None = None
    distance: Tensor | None = None
    cdnv: Tensor | None = None
    weight_norm: Tensor | None = None
    centred_weight_norm: Tensor | None = None
    alignment: Tensor | None = None
    mean_logit: Tensor | None = None
    accuracy: Tensor | None = None
    test_accuracy: Tensor | None = None
    names: Mapping[int, str] | None = None
    sorted_by: str | None = None

    def __len__(self) -> int:
        """How many classes the table has."""
        return len(self.number)

    @property
    def columns(self) -> dict[str, Tensor]:
        """The columns that are known, by name, in the order of tables; without `number` and `nearest`."""
        return {key: value for key in COLUMNS if (value := getattr(self, key)) is not None}

    def worst(self, count: int | None = None, *, by: str | None = None) -> ClassTable:
        """The table of the `count` worst classes, the worst first; classes without a number come last.

        Args:
            count: how many; by default all.
            by: the column that decides, by default "cdnv" (or the first that is known of "alignment" and "variance").
                Large values are the worse ones for cdnv and variance, small ones for all others.

        Raises:
            InputError: no such column, or a count below 1.
        """
        if count is not None:
            check_count(count, "count", 1)
        known = self.columns
        if by is None:
            by = deciding(known)
        if by not in known:
            why = "was not measured" if by in COLUMNS else "does not exist"
            raise InputError(
                f"expected by= as a column of the table ({', '.join(known)}), got {by!r}, which {why}"
                f"{did_you_mean(str(by), known)}"
            )
        values = known[by]
        values = torch.where(values.isnan(), torch.inf, -values if COLUMNS[by].large_is_worse else values)
        order = values.sort(stable=True).indices[:count]
        parts = {key: value[order] for key, value in self._tensors().items()}
        return replace(self, **parts, sorted_by=by)  # type: ignore[arg-type]

    def rows(self) -> list[dict[str, Any]]:
        """The rows as dicts of plain numbers: "class", "name" (where there are names), the columns, "nearest" and its
        name.

        Undefined numbers are NaN; "nearest" is None where there is none.
        """
        lists = {key: value.tolist() for key, value in self._tensors().items()}
        numbers = lists.pop("number")
        result: list[dict[str, Any]] = []
        for place, number in enumerate(numbers):
            row: dict[str, Any] = {"class": number}
            if self.names is not None:
                row["name"] = self.names[number]
            row |= {key: lists[key][place] for key in COLUMNS if key in lists}
            row["count"] = int(row["count"])
            if "nearest" in lists:
                near = lists["nearest"][place]
                row["nearest"] = None if near < 0 else near
                if self.names is not None:
                    row["nearest_name"] = None if near < 0 else self.names[near]
            result.append(row)
        return result

    def renumbered(self, classes: Tensor) -> ClassTable:
        """The table of a subset of more classes with their own numbers: class k here is `classes[k]` (K,) there."""
        numbers = classes.cpu()
        near = self.nearest
        if near is not None:
            near = torch.where(near < 0, near, numbers[near.clamp(min=0)])
        names = None if self.names is None else {int(numbers[k]): name for k, name in self.names.items()}
        return replace(self, number=numbers[self.number], nearest=near, names=names)

    def to_csv(self, path: str | Path) -> Path:
        """Write all rows to a CSV file, whole or not at all; undefined numbers are empty. Returns its path.

        Raises:
            InputError: the file cannot be written.
        """
        target = as_path(path, "the table's file")
        try:
            return write_atomically(target, csv_text(map(without_undefined, self.rows())).encode(errors="replace"))
        except OSError as error:
            raise InputError(f"cannot write {target}: {error.strerror or error}") from None

    def __repr__(self) -> str:
        """A table of the worst classes and the best ones, at most 100 columns wide."""
        return class_text(*self._ends())

    __str__ = __repr__

    def _repr_html_(self) -> str:
        """The same table for notebooks."""
        return class_html(*self._ends())

    def _ends(self) -> tuple[Sequence[Row], Sequence[Row], int, str]:
        """The first and the last rows, the worst class first, how many are between, and what they are sorted by."""
        ordered = self if self.sorted_by else self.worst()
        first, last = ends(len(ordered))
        chosen = [*range(first), *range(len(ordered) - last, len(ordered))]
        parts = {key: value[chosen] for key, value in ordered._tensors().items()}
        rows = replace(ordered, **parts).rows()  # type: ignore[arg-type]
        return rows[:first], rows[first:], len(ordered) - len(rows), str(ordered.sorted_by)

    def _tensors(self) -> dict[str, Tensor]:
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}
