"""What tells the curves of a paper's figure apart in print without colour: a shade and a shape for each colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

from neuralcollapse.report.figure import COLORS, Bars, Dots, Line, Mark

# The page's colours are about equally bright, so that in grey they would be one. Here neighbours among the first eight
# differ by 20 or more in CIE lightness: 27, 72, 44, 65, 31, 78, 40, 75, 64, 48.
_SHADES = (
    "#1e3a8a",
    "#f59e0b",
    "#047857",
    "#f472b6",
    "#5b21b6",
    "#22d3ee",
    "#b91c1c",
    "#84cc16",
    "#f97316",
    "#64748b",
)
_SHAPES = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
_GAP, _SHIFT = 0.16, 0.045  # between the shapes along a curve, and from one curve to the next, of the diagonal


def is_curve(mark: Mark) -> TypeGuard[Line]:
    """Whether it is a line that a paper shows as one of its curves; thin ones are references."""
    return isinstance(mark, Line) and mark.width >= 2


@dataclass(frozen=True)
class Series:
    """The colours of a figure in their order; those of the page that are not among its own stay as they are."""

    colors: Sequence[str]

    @classmethod
    def of(cls, marks: Sequence[Mark]) -> Series:
        """The series of a figure."""
        drawn = (mark for mark in marks if isinstance(mark, Dots | Bars) or is_curve(mark))
        return cls(list(dict.fromkeys(mark.color for mark in drawn)))

    @property
    def several(self) -> bool:
        """Whether there is anything to tell apart."""
        return len(self.colors) > 1

    def shade(self, color: str) -> str:
        """The colour in print."""
        return _SHADES[COLORS.index(color)] if color in COLORS else color

    def shape(self, color: str) -> str:
        """The shape of the points of a colour: the first's is a circle."""
        return _SHAPES[self.colors.index(color) % len(_SHAPES)] if color in self.colors else "o"

    def places(self, color: str) -> tuple[float, float]:
        """Where along its curve the shapes of a colour are, as matplotlib's `markevery` takes it."""
        return (_SHIFT * (self.colors.index(color) % 4), _GAP) if color in self.colors else (0.0, _GAP)
