"""What has no value, and why: gathered while several measures are taken, then said in one warning for each reason."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

from neuralcollapse.errors import NeuralCollapseWarning, Undefined

T = TypeVar("T")


def whose(held_out: bool, layer: str = "") -> str:
    """What a warning begins with, so that it says whose features it is about; nothing for those of the classifier."""
    return f"{'test set: ' if held_out else ''}{f'layer {layer!r}: ' if layer else ''}"


class Reasons:
    """The reasons why measures are undefined, and the names of these."""

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}

    def attempt(self, names: Sequence[str], job: Callable[[], T], otherwise: T) -> T:
        """What the job returns; `otherwise` if it raises `Undefined`, whose reason is kept for the names."""
        try:
            return job()
        except Undefined as reason:
            self.add(str(reason), names)
            return otherwise

    def add(self, reason: str, names: Sequence[str]) -> None:
        """Keep a reason for the names."""
        self._names.setdefault(reason, []).extend(names)

    def warn(self, stacklevel: int = 4, *, about: str = "undefined (NaN)") -> None:
        """One warning for each reason, as if from the caller of a public function that `torch.no_grad` wraps."""
        for reason, names in self._names.items():
            warnings.warn(f"{about}: {reason}: {', '.join(names)}", NeuralCollapseWarning, stacklevel=stacklevel)
