"""A figure as data: lines, bands, bars, heat maps and points on two axes, with the words around them.

Nothing here knows how a figure is drawn: the script of a page draws what `figure_data` makes of it, `paper` prints it.
All texts are plain; a line break is a newline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

COLORS = ("#3b82f6", "#f59e0b", "#10b981", "#ec4899", "#8b5cf6", "#06b6d4", "#ef4444", "#84cc16", "#f97316", "#64748b")
GREY = "#64748b"
BLUE_TO_RED = ("#2166ac", "#67a9cf", "#f7f7f7", "#ef8a62", "#b2182b")  # of heat maps, evenly; plot.js has them too


@dataclass(frozen=True)
class Line:
    """A line through points; NaN leaves a gap."""

    name: str  # in the legend
    x: Sequence[float]
    y: Sequence[float]
    color: str  # "#rrggbb"
    dash: str = "solid"  # or "dash" or "dot"
    markers: bool = False  # whether the points are marked; a single point always is
    errors: Sequence[float] = ()  # half the length of each point's error bar
    texts: Sequence[str] = ()  # a name for each point
    hover: str = "{y:.4g}"  # what the pointer shows, with {x}, {y} and {text}, each with a format such as {y:.4g}
    legend: bool = True  # whether the legend names it
    digits: int = 6  # significant digits that a page keeps
    width: float = 2  # in pixels
    part_of: str = ""  # the line that it belongs to, such as "NC1" of "NC1, test": they are shown and hidden together
    selected_by: Sequence[str] = ()  # the runs and groups that a page selects it by; other selections fade it
    only_selected: bool = False  # drawn only while it is selected, and never on paper


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
    labels: Sequence[str] = ()  # written beside the points, where there is room


@dataclass(frozen=True)
class Band:
    """The area between `low` and `high`; it belongs to the line of the same name."""

    name: str
    x: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    color: str
    digits: int = 6
    selected_by: Sequence[str] = ()  # as of a `Line`


@dataclass(frozen=True)
class Bars:
    """A bar for each category; bars of several names go side by side."""

    name: str
    x: Sequence[str]
    y: Sequence[float]
    color: str
    hover: str = "{y:.4g}"
    digits: int = 9


@dataclass(frozen=True, eq=False)
class HeatMap:
    """Coloured cells, from blue at `low` to red at `high` and beyond; NaN is left blank.

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
    numbers: bool = False  # whether each cell shows its value


@dataclass(frozen=True, eq=False)
class Points3D:
    """Named points in three dimensions."""

    name: str  # in the legend
    points: np.ndarray  # (n, 3), or (steps, n, 3) where they move
    colors: Sequence[str] | str  # one for each point, or one for all
    texts: Sequence[str] = ()  # a name for each point
    size: int = 7  # in pixels
    symbol: str = "circle"  # or "diamond" or "ring"
    spokes: bool = False  # whether a line joins each point to the origin
    labelled: bool = False  # whether the names are written beside the points
    hover: str = ""  # what the pointer shows; nothing when empty
    digits: int = 4  # significant digits that a page keeps


Mark = Line | Dots | Band | Bars | HeatMap | Points3D


@dataclass(frozen=True)
class Axis:
    """An axis. It is one of categories where the marks have names there."""

    title: str = ""  # beside it
    log: bool = False
    page_log: bool = False  # a page begins with a logarithm: of the values or, of `percent`, of what is missing to 1
    range: tuple[float, float] | None = None  # from and to
    ticks: Sequence[float] = ()  # where to put ticks, each labelled with its number; chosen to fit where none are given
    percent: bool = False  # ticks are labelled in percent
    whole: bool = False  # ticks only at whole numbers
    from_zero: bool = False  # it begins at zero, unless there are negative values
    zero_line: bool = False  # a line marks zero
    named: bool = True  # categories are named; where not, only under the pointer


@dataclass(frozen=True)
class Figure:
    """A figure with its words."""

    name: str  # its id, and the name of its file
    title: str  # above it
    caption: str  # below the title
    alt: str  # a text for those who cannot see it
    marks: Sequence[Mark]  # what is drawn, the first at the back
    x: Axis = field(default_factory=Axis)  # the horizontal axis
    y: Axis = field(default_factory=Axis)  # the vertical axis
    read_together: bool = False  # the pointer reads all lines at the same x
    events: Sequence[tuple[float, str]] = ()  # where on the horizontal axis something happened, and what: a thin line
    levels: Sequence[tuple[float, str]] = ()  # thresholds on the vertical axis, and what they mean: a thin line
    steps: Sequence[str] = ()  # the names of the steps of marks that move; the last is shown first
    step: str = "epoch"  # what the steps count, such as "epoch"
    size: str = ""  # on a page: a third of its width; "wide": half of it; "large": half of it and tall
    # The same figure for other runs, by the name of the run; a page lets one choose. `own` is the run shown here.
    others: Mapping[str, Figure] = field(default_factory=dict)
    own: str = ""

    @property
    def three_dimensional(self) -> bool:
        """Whether it has depth, which a paper cannot show."""
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
