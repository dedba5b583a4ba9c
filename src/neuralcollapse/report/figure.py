"""A figure as data: lines, bands, bars, heat maps and points on two axes, with the words around them.

Nothing here knows how a figure is drawn: `plotly_spec` makes it interactive on a page, `paper` draws it for print.
All texts are plain; a line break is a newline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

COLORS = ("#3b82f6", "#f59e0b", "#10b981", "#ec4899", "#8b5cf6", "#06b6d4", "#ef4444", "#84cc16", "#f97316", "#64748b")
GREY = "#64748b"


@dataclass(frozen=True)
class Line:
    """A line through points; NaN leaves a gap.

    Attributes:
        name: in the legend.
        x: of the points.
        y: of the points.
        color: "#rrggbb".
        dash: "solid", "dash" or "dot".
        markers: whether the points are marked; a single point always is.
        errors: half the length of each point's error bar.
        texts: a name for each point.
        hover: what the pointer shows, with {x}, {y} and {text}, each with a format such as {y:.4g}.
        legend: whether the legend names it.
        digits: significant digits that a page keeps.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    color: str
    dash: str = "solid"
    markers: bool = False
    errors: Sequence[float] = ()
    texts: Sequence[str] = ()
    hover: str = "{y:.4g}"
    legend: bool = True
    digits: int = 6


@dataclass(frozen=True)
class Dots:
    """Points without a line, such as those of a scatter plot: filled circles, or hollow diamonds."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    color: str
    hollow: bool = False
    texts: Sequence[str] = ()
    hover: str = "{text}"
    digits: int = 9


@dataclass(frozen=True)
class Band:
    """The area between `low` and `high`; it belongs to the line of the same name."""

    name: str
    x: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    color: str
    digits: int = 6


@dataclass(frozen=True)
class Bars:
    """A bar for each category; bars of several names stand side by side."""

    name: str
    x: Sequence[str]
    y: Sequence[float]
    color: str
    hover: str = "{y:.4g}"
    digits: int = 9


@dataclass(frozen=True, eq=False)
class HeatMap:
    """Coloured cells, from blue at `low` to red at `high`; NaN is left blank.

    `z` is (rows, columns), or (steps, rows, columns) where it moves. With names on both axes it is a square matrix.
    """

    x: Sequence[float] | Sequence[str]
    y: Sequence[float] | Sequence[str]
    z: np.ndarray
    low: float
    high: float
    title: str
    hover: str = "{z:.3f}"
    digits: int = 3


@dataclass(frozen=True, eq=False)
class Points3D:
    """Named points in three dimensions.

    Attributes:
        name: in the legend.
        points: (n, 3), or (steps, n, 3) where they move.
        colors: one for each point, or one for all.
        texts: a name for each point.
        size: in pixels.
        symbol: "circle", "diamond" or "ring".
        spokes: whether a line joins each point to the origin.
        labelled: whether the names stand beside the points.
        hover: what the pointer shows; nothing when empty.
        digits: significant digits that a page keeps.
    """

    name: str
    points: np.ndarray
    colors: Sequence[str] | str
    texts: Sequence[str] = ()
    size: int = 7
    symbol: str = "circle"
    spokes: bool = False
    labelled: bool = False
    hover: str = ""
    digits: int = 4


Mark = Line | Dots | Band | Bars | HeatMap | Points3D


@dataclass(frozen=True)
class Axis:
    """An axis. It is one of categories where the marks have names there.

    Attributes:
        title: beside it.
        log: logarithmic.
        range: from and to.
        ticks: where to put ticks, each labelled with its number; chosen to fit where none are given.
        percent: ticks are labelled in percent.
        whole: ticks only at whole numbers.
        from_zero: it begins at zero, unless there are negative values.
        zero_line: a line marks zero.
        named: categories are named; where not, only under the pointer.
    """

    title: str = ""
    log: bool = False
    range: tuple[float, float] | None = None
    ticks: Sequence[float] = ()
    percent: bool = False
    whole: bool = False
    from_zero: bool = False
    zero_line: bool = False
    named: bool = True


@dataclass(frozen=True)
class Figure:
    """A figure with its words.

    Attributes:
        name: its id, and the name of its file.
        title: above it.
        caption: below the title.
        alt: a text for those who cannot see it.
        marks: what is drawn, the first at the back.
        x: the horizontal axis.
        y: the vertical axis.
        read_together: the pointer reads all lines at the same x.
        steps: the names of the steps of marks that move; the last is shown first.
        step: what the steps count, such as "epoch".
        others: the same figure for other runs, by the name of the run; a page lets one choose.
        own: the name of the run that it shows itself, where there are others.
    """

    name: str
    title: str
    caption: str
    alt: str
    marks: Sequence[Mark]
    x: Axis = field(default_factory=Axis)
    y: Axis = field(default_factory=Axis)
    read_together: bool = False
    steps: Sequence[str] = ()
    step: str = "epoch"
    others: Mapping[str, Figure] = field(default_factory=dict)
    own: str = ""

    @property
    def three_dimensional(self) -> bool:
        """Whether it has depth, which paper has not."""
        return any(isinstance(mark, Points3D) for mark in self.marks)

    @property
    def matrix(self) -> bool:
        """Whether it is a heat map of names by names: square, the first row at the top."""
        return any(isinstance(mark, HeatMap) for mark in self.marks) and bool(self.categories("x"))

    def categories(self, axis: str) -> list[str]:
        """The categories of the axis "x" or "y" in order; none on an axis of numbers."""
        flat = [mark for mark in self.marks if not isinstance(mark, Points3D)]
        values = [value for mark in flat for value in getattr(mark, axis, ())]
        return list(dict.fromkeys(value for value in values if isinstance(value, str)))
