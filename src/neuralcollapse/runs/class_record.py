"""ClassRecord: the numbers of each class at one measured epoch, and the pairs hardest to tell apart (no torch).

A run folder keeps that of its last record as a .npz file of float64 arrays.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neuralcollapse.runs.arrays import check_shapes, read_arrays
from neuralcollapse.runs.class_rows import COLUMNS, Row
from neuralcollapse.runs.ownership import epoch_of

_BYTES = 2**26  # the most for the arrays of a file
_LARGEST_NUMBER = 2**53  # of a class or a count: float64 holds every integer up to it
_WHOLE = {"number": 0, "count": 0, "nearest": -1}  # columns of whole numbers, and the least of each


@dataclass(frozen=True, eq=False)
class ClassRecord:
    """The numbers of the K classes that were measured, in their order.

    Attributes:
        epoch: of the record that it belongs to.
        columns: "number", the columns of `class_rows.COLUMNS` that are known and "nearest" (-1 for none), each (K,).
        pairs: (P, 3) the numbers of two classes and their CDNV, the worst pair first.
    """

    epoch: int
    columns: Mapping[str, np.ndarray]
    pairs: np.ndarray

    def __len__(self) -> int:
        """How many classes were measured."""
        return len(self.columns["number"])

    def rows(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """The classes as rows (see `class_rows`); `names` are those of the classes measured."""
        called = self._names(names)
        lists = {key: value.tolist() for key, value in self.columns.items()}
        result: list[dict[str, Any]] = []
        for place, number in enumerate(map(int, lists["number"])):
            row: dict[str, Any] = {"class": number, "name": called.get(number)}
            row |= {key: lists[key][place] for key in COLUMNS if key in lists}
            if "count" in row:
                row["count"] = int(row["count"])
            if "nearest" in lists:
                near = int(lists["nearest"][place])
                row |= {"nearest": near if near >= 0 else None, "nearest_name": called.get(near)}
            result.append(row)
        return result

    def pair_rows(self, names: Sequence[str]) -> list[Row]:
        """The pairs as rows of "class", "name", "nearest" and its name, and "cdnv"."""
        called = self._names(names)
        return [
            {
                "class": int(first),
                "name": called.get(int(first)),
                "nearest": int(second),
                "nearest_name": called.get(int(second)),
                "cdnv": value,
            }
            for first, second, value in self.pairs.tolist()
        ]

    def _names(self, names: Sequence[str]) -> dict[int, str]:
        if len(names) != len(self):
            return {}
        return dict(zip(self.columns["number"].astype(np.int64).tolist(), names, strict=True))

    def to_bytes(self) -> bytes:
        """The content of its file."""
        buffer = io.BytesIO()
        arrays = {name: np.asarray(value, np.float64) for name, value in self.columns.items()}
        np.savez(buffer, **arrays, pairs=np.asarray(self.pairs, np.float64).reshape(-1, 3))  # type: ignore[arg-type]
        return buffer.getvalue()


def read_class_record(file: Path) -> ClassRecord:
    """The inverse of `ClassRecord.to_bytes`.

    Raises:
        ValueError: the file holds something else.
        OSError, EOFError, zipfile.BadZipFile, NotImplementedError, MemoryError: it is damaged.
    """
    arrays, _ = read_arrays(file, [*_WHOLE, *COLUMNS, "pairs"], most=_BYTES)
    pairs = arrays.pop("pairs", np.zeros((0, 3)))
    check_shapes(arrays, {"number": "K", **dict.fromkeys(arrays, "K")})
    if pairs.dtype.kind != "f" or pairs.ndim != 2 or pairs.shape[1] != 3:
        raise ValueError(f"expected pairs as floats of shape (P, 3), got {pairs.dtype} {pairs.shape}")
    whole = {name: (arrays[name], least) for name, least in _WHOLE.items() if name in arrays}
    for name, (values, least) in {**whole, "pairs": (pairs[:, :2], 0)}.items():
        if not ((values == np.floor(values)) & (values >= least) & (values < _LARGEST_NUMBER)).all():
            raise ValueError(f"{name} holds a value that is not a whole number of at least {least}")
    if len(np.unique(arrays["number"])) < len(arrays["number"]):
        raise ValueError("it has a class twice")
    return ClassRecord(epoch_of(file), {name: value.astype(np.float64) for name, value in arrays.items()}, pairs)
