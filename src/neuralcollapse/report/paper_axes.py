"""The two axes of a figure drawn for a paper: scales, ranges, ticks and titles."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from neuralcollapse.report.figure import Axis, Figure

_TITLES = {"x": 48, "y": 24}  # characters a line
_LABEL = 20  # characters a line of a category's name
_MOST_LABELS = 16  # of more categories every second or third is named
_LETTER = 4.2  # points, the width of one
_INK = "#475569"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class PaperAxis:
    """One axis of a drawing.

    Attributes:
        which: "x" or "y".
        axis: as the figure asks for it.
        categories: their names in order; none on an axis of numbers.
        title: beside it.
        matrix: whether it belongs to a matrix, which has its names on top and its first row highest.
    """

    which: str
    axis: Axis
    categories: list[str]
    title: str
    matrix: bool

    @classmethod
    def of(cls, figure: Figure, which: str) -> PaperAxis:
        """The axis "x" or "y" of a figure; a vertical one of numbers without a title takes the figure's, up to a colon.

        (A page has the figure's title above it, a paper does not.)
        """
        axis: Axis = getattr(figure, which)
        categories = figure.categories(which)
        title = axis.title
        if which == "y" and not categories:
            title = title or figure.title.partition(":")[0]
        return cls(which, axis, categories, title, figure.matrix)

    def places(self, values: Sequence[Any]) -> np.ndarray:
        """Where values are drawn: NaN for those that the axis cannot show."""
        if self.categories:
            return np.array([self.categories.index(name) for name in values], dtype=float)
        places = np.array(values, dtype=float)
        return np.where(places > 0, places, math.nan) if self.axis.log else places

    def edges(self, values: Sequence[Any]) -> np.ndarray:
        """The edges of cells about values, halfway between neighbours (of their logarithms on a log axis)."""
        centres = np.log10(self.places(values)) if self.axis.log else self.places(values)
        inner = (centres[1:] + centres[:-1]) / 2
        first, last = (inner[0], inner[-1]) if len(inner) else (centres[0] - 0.5, centres[0] + 0.5)
        edges = np.array([2 * centres[0] - first, *inner, 2 * centres[-1] - last])
        return 10**edges if self.axis.log else edges

    def scale(self, ax: Any) -> None:
        """Set the scale, before anything is drawn."""
        if self.axis.log:
            ax.set(**{f"{self.which}scale": "log"})

    def finish(self, ax: Any, width: float) -> None:
        """Set range, ticks and title about what is drawn, on axes about as wide as so many points."""
        if self.matrix and self.which == "x":
            ax.xaxis.tick_top()
        self._limit(ax)
        if self.categories:
            self._name(ax, self.categories, width)
        else:
            self._tick(ax)
        ax.set(**{f"{self.which}label": wrapped(self.title, _TITLES[self.which])})

    def _limit(self, ax: Any) -> None:
        low, high = getattr(ax, f"get_{self.which}lim")()
        if self.categories:
            low, high = -0.5, len(self.categories) - 0.5
        elif self.axis.range:
            low, high = self.axis.range
        elif self.axis.from_zero:
            low, high = min(low, 0), max(high, 0)
        upside_down = self.matrix and self.which == "y"
        ax.set(**{f"{self.which}lim": (high, low) if upside_down else (low, high)})
        if self.axis.zero_line and low < 0 < high:
            ax.axhline(0, color=_INK, linewidth=0.5, zorder=1.2)

    def _tick(self, ax: Any) -> None:
        from matplotlib import ticker

        ticks, axis = getattr(ax, f"{self.which}axis"), self.axis
        low, high = getattr(ax, f"get_{self.which}lim")()
        if axis.ticks:
            ticks.set(
                major_locator=ticker.FixedLocator(axis.ticks),
                major_formatter=ticker.FixedFormatter([f"{x:g}" for x in axis.ticks]),
                minor_locator=ticker.NullLocator(),
            )
            return
        if axis.log:
            major, minor, label = _log_ticks(low, high)
            ticks.set(major_locator=major, minor_locator=minor)
            ticks.set(major_formatter=label, minor_formatter=ticker.NullFormatter())
            return
        if axis.whole and high - low <= 10:
            ticks.set_major_locator(ticker.MultipleLocator(1))
        else:
            ticks.set_major_locator(ticker.MaxNLocator("auto", steps=[1, 2, 5, 10], integer=axis.whole))
        if axis.percent:
            ticks.set_major_formatter(ticker.PercentFormatter(1, decimals=None))  # with decimals where they are needed
        elif high >= 1e5:
            ticks.set_major_formatter(ticker.EngFormatter(sep=""))  # 20M, as on the page

    def _name(self, ax: Any, names: Sequence[str], width: float) -> None:
        """Write the names of categories: level if the words have room, else aslant or upright."""
        ax.tick_params(axis=self.which, length=0)
        ax.grid(False, axis=self.which)
        step = math.ceil(len(names) / _MOST_LABELS)
        places, names = range(0, len(names), step), names[::step]
        labels = [wrapped(name, _LABEL, 2) for name in names]
        if self.which == "y":
            ax.set_yticks(places, labels)
            return
        room = 0.78 * width / len(names)
        letters = int((room - 3) / _LETTER)
        if all(len(word) <= letters for name in names for word in plain(name).split()):
            ax.set_xticks(places, [wrapped(name, letters) for name in names])
            return
        ax.set_xticks(places, labels)
        upright, top = room < 11, self.matrix
        for label in ax.get_xticklabels():
            label.set(rotation=90 if upright else 45, rotation_mode="anchor", ha="left" if top else "right")
            label.set(va="center" if upright else "bottom" if top else "top")


def plain(text: str) -> str:
    """The text without the characters that cannot be drawn."""
    return "".join(c if c.isprintable() or c == "\n" else " " if c.isspace() else "" for c in text)


def wrapped(text: str, width: int, lines: int = 3) -> str:
    """The plain text in lines of a width; an ellipsis for what goes beyond so many of them."""
    parts = (textwrap.wrap(part, width, max_lines=lines, placeholder="…") for part in plain(text).split("\n"))
    return "\n".join(line for part in parts for line in part)


def _log_ticks(low: float, high: float) -> tuple[Any, Any, Any]:
    """Major and minor ticks and their labels: powers over many decades, 1, 2, 5 over few, even steps within one."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    decades = math.log10(high / low)
    plainly = low > 0.005 and high < 5e4

    def label(value: float, _: int) -> str:
        if value <= 0:  # an even step beyond the axis
            return ""
        power = math.floor(math.log10(value) + 1e-9)
        digits = f"{value / 10.0**power:.3g}"
        ten = f"10{str(power).translate(_SUPERSCRIPTS)}"
        return f"{value:.4g}" if plainly else ten if digits == "1" else f"{digits}·{ten}"

    if decades < 0.8:
        return MaxNLocator(5, steps=[1, 2, 5, 10]), NullLocator(), FuncFormatter(label)
    subs = (1, 2, 5) if decades < 1.7 else (1, 3) if decades < 2.6 else (1,)
    minor = LogLocator(subs=(1,) if decades > 7 else range(2, 10), numticks=99)
    return LogLocator(subs=subs, numticks=7 if len(subs) == 1 else 9), minor, FuncFormatter(label)
