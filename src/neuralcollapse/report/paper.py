"""The page's two-dimensional figures for a paper: the same specifications, drawn with matplotlib (if installed)."""

from __future__ import annotations

import html
import io
import math
import re
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neuralcollapse._errors import InputError
from neuralcollapse.records import write_atomically
from neuralcollapse.report.figures import Figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

KINDS = ("png", "svg", "pdf")

_COLUMN, _BOTH_COLUMNS = 3.25, 6.75  # inches, of a paper in two columns
_HEIGHT = 2.1  # inches
_AXES_HEIGHT = 1.45  # at least, when legends and long labels take their part
_MAP_HEIGHT = 2.0  # at most, of the axes of a heat map that need not be square
_ROW_HEIGHT = 0.25  # of a category, at least
_ABOVE = 10  # entries; longer legends stand below
_NAME, _TITLE, _LABEL = 46, 24, 20  # characters a line: of a legend's entry, an axis title, a category
_MOST_LABELS = 16  # beside a heat map; of more classes every second or third is named
_LETTER = 4.2  # points, the width of one
_POINTS = 0.55  # for each pixel of the page
_STYLE: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#64748b",
    "axes.formatter.limits": (-3, 5),
    "axes.formatter.useoffset": False,
    "axes.grid": True,
    "axes.labelpad": 3,
    "axes.linewidth": 0.5,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.h_pad": 0.02,
    "figure.constrained_layout.w_pad": 0.02,
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same everywhere
    "font.size": 8,
    "axes.labelsize": 8,
    "grid.color": "#e2e8f0",
    "grid.linewidth": 0.4,
    "legend.borderaxespad": 0.2,
    "legend.borderpad": 0.1,
    "legend.columnspacing": 1.2,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "legend.handletextpad": 0.5,
    "legend.labelspacing": 0.25,
    "lines.dash_capstyle": "round",
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
    "pdf.fonttype": 42,
    "savefig.bbox": "tight",
    "savefig.dpi": 300,
    "savefig.pad_inches": 0.02,
    "svg.fonttype": "none",
    "svg.hashsalt": "neuralcollapse",
    "text.parse_math": False,  # a name with dollar signs is a name
}
for _tick in ("xtick", "ytick"):
    _STYLE |= {f"{_tick}.labelsize": 7, f"{_tick}.major.pad": 2}
    _STYLE |= {f"{_tick}.major.size": 2.5, f"{_tick}.major.width": 0.5}
    _STYLE |= {f"{_tick}.minor.size": 1.5, f"{_tick}.minor.width": 0.4}
_UNDATED = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
_INK = "#475569"
_SCALES: dict[str, list[tuple[float, str]]] = {
    # as in plotly.js, from blue to red (Python's plotly has another of this name, from red to blue)
    "RdBu": [
        (0, "rgb(5,10,172)"),
        (0.35, "rgb(106,137,247)"),
        (0.5, "rgb(190,190,190)"),
        (0.6, "rgb(220,170,132)"),
        (0.7, "rgb(230,145,90)"),
        (1, "rgb(178,10,28)"),
    ]
}
_COLORS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f")  # plotly.js's own
_DASHES: dict[str, Any] = {
    "solid": "-",
    "dot": (0, (0.1, 2)),
    "dash": (0, (3.5, 2.2)),
    "dashdot": (0, (3.5, 2, 0.1, 2)),
    "longdash": (0, (7, 2.5)),
}
_SYMBOLS = {
    "circle": "o",
    "square": "s",
    "diamond": "D",
    "cross": "P",
    "x": "X",
    "star": "*",
    "triangle-up": "^",
    "triangle-down": "v",
    "triangle-left": "<",
    "triangle-right": ">",
}
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_MINUS = "\N{MINUS SIGN}"

_Color = tuple[float, float, float, float]
_Trace = dict[str, Any]


def save_figures(figures: Sequence[Figure], folder: Path, kind: str) -> list[Path]:
    """Write each two-dimensional figure as `folder`/NAME.KIND, one column wide; returns the paths.

    All are drawn before the first is written, and the same figures give the same bytes. Three-dimensional ones are
    left out; one with frames is drawn as the page first shows it, at the last epoch.

    Args:
        figures: the page's.
        folder: made if it is not there.
        kind: "png", "svg" or "pdf".

    Raises:
        InputError: the kind is unknown, or a file cannot be written.
        ImportError: matplotlib is not installed.
        ValueError: a figure holds something of Plotly that is not drawn here.
    """
    if kind not in KINDS:
        raise InputError(f"expected png, svg or pdf as the kind of figures, got {kind!r}")
    contents = {figure.name: _encode(figure, kind) for figure in figures if not _is_solid(figure)}
    target, paths = folder, []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            target = folder / f"{name}.{kind}"
            paths.append(write_atomically(target, content))
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror or error}") from None
    return paths


def draw(figure: Figure) -> Drawing:
    """A two-dimensional figure as one of matplotlib's.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: the figure holds something of Plotly that is not drawn here.
    """
    with _style():
        from matplotlib.figure import Figure as Drawing

        traces = [trace for trace in figure.data if trace.get("visible", True) is True]
        pairs = list(dict.fromkeys(map(_axes, traces)))
        refs = dict.fromkeys(ref for pair in pairs for ref in pair)
        axes = {ref: _Axis.of(figure.layout, ref, [trace for trace in traces if ref in _axes(trace)]) for ref in refs}
        places, rows, columns = _grid([(axes[x].spec, axes[y].spec) for x, y in pairs], figure.name)
        square = any("scaleanchor" in axis.spec for axis in axes.values())
        drawing = Drawing(
            figsize=(_COLUMN if columns == 1 else _BOTH_COLUMNS, rows * _HEIGHT),
            layout="compressed" if square else "constrained",
        )
        grid = drawing.add_gridspec(rows, columns)
        panels: list[_Panel] = []
        for (x, y), place in zip(pairs, places, strict=True):
            sharex = next((panel.ax for panel in panels if panel.x is axes[x]), None)
            sharey = next((panel.ax for panel in panels if panel.y is axes[y]), None)
            ax = drawing.add_subplot(grid[place], sharex=sharex, sharey=sharey)
            own = {number: trace for number, trace in enumerate(traces) if _axes(trace) == (x, y)}
            panels.append(_Panel(figure, ax, axes[x], axes[y], own))
            panels[-1].draw(72 * drawing.get_figwidth() / columns)
            if sharex or sharey:
                ax.label_outer()
        if len(panels) == 1:
            panels[0].name_values()
        _legend(drawing, panels, figure.layout)
        _make_room(drawing, panels, rows)
        return drawing


def plain(text: object) -> str:
    """A text of the page as plain text: line breaks and entities are read, what cannot be drawn is left out."""
    read = html.unescape(re.sub(r"<br ?/?>", "\n", str(text)))
    return "".join(c if c.isprintable() or c == "\n" else " " if c.isspace() else "" for c in read)


def _encode(figure: Figure, kind: str) -> bytes:
    drawing = draw(figure)
    words = {"Title": plain(figure.title), "Subject" if kind == "pdf" else "Description": plain(figure.alt)}
    buffer = io.BytesIO()
    with _style():
        drawing.savefig(buffer, format=kind, metadata=words | _UNDATED[kind])
    return buffer.getvalue()


@contextmanager
def _style() -> Iterator[None]:
    """Our look whatever the user's own settings, and no warnings about glyphs that the font lacks."""
    from matplotlib import style

    with warnings.catch_warnings(), style.context(["default", _STYLE]):
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


@dataclass(frozen=True)
class _Axis:
    """An axis of the page: its specification, and its categories if it has such."""

    spec: dict[str, Any]
    categories: list[str] | None

    @classmethod
    def of(cls, layout: dict[str, Any], ref: str, traces: Sequence[_Trace]) -> _Axis:
        """The axis that traces name "x", "y2" and so on."""
        spec = layout.get(f"{ref[0]}axis{ref[1:]}", {})
        values = [value for trace in traces for value in trace.get(ref[0], ()) if value is not None]
        named = spec["type"] == "category" if "type" in spec else not all(map(_is_number, values))
        return cls(spec, list(dict.fromkeys(map(str, values))) if named else None)

    @property
    def log(self) -> bool:
        return self.spec.get("type") == "log"

    @property
    def title(self) -> str:
        title = self.spec.get("title", "")
        return title.get("text", "") if isinstance(title, dict) else title

    def places(self, values: Sequence[Any]) -> np.ndarray:
        """Where values stand, NaN for None."""
        if self.categories is None:
            return _floats(values)
        where = {name: place for place, name in enumerate(self.categories)}
        return _floats([None if value is None else where[str(value)] for value in values])

    def shown(self, places: np.ndarray) -> np.ndarray:
        """The places that the axis can show: NaN for those that have no logarithm."""
        return np.where(places > 0, places, math.nan) if self.log else places

    def edges(self, values: Sequence[Any]) -> np.ndarray:
        """The edges of cells about values, halfway between neighbours (of their logarithms on a log axis)."""
        centres = np.log10(self.places(values)) if self.log else self.places(values)
        inner = (centres[1:] + centres[:-1]) / 2
        first, last = (inner[0], inner[-1]) if len(inner) else (centres[0] - 0.5, centres[0] + 0.5)
        edges = np.array([2 * centres[0] - first, *inner, 2 * centres[-1] - last])
        return 10**edges if self.log else edges


class _Panel:
    """One pair of axes, and the traces on it by their number in the figure."""

    def __init__(self, figure: Figure, ax: Any, x: _Axis, y: _Axis, traces: dict[int, _Trace]) -> None:
        self.figure = figure
        self.ax = ax
        self.x = x
        self.y = y
        self.traces = traces
        self.bars = [number for number, trace in traces.items() if _kind(trace) == "bar"]
        self.lying = any(traces[number].get("orientation") == "h" for number in self.bars)
        self.heat = any(_kind(trace) == "heatmap" for trace in traces.values())
        self.entries: list[tuple[str, Any]] = []
        self._before: tuple[np.ndarray, np.ndarray] | None = None

    def draw(self, width: float) -> None:
        """Draw the traces, then the axes about them; `width` in points."""
        for axis, set_scale in ((self.x, self.ax.set_xscale), (self.y, self.ax.set_yscale)):
            if axis.log:
                set_scale("log", nonpositive="clip")
        if len(self.bars) > 1 and (mode := self.figure.layout.get("barmode", "group")) != "group":
            raise self._unknown("bar mode", mode)
        for number, trace in self.traces.items():
            color = _COLORS[number % len(_COLORS)]
            match _kind(trace):
                case "scatter":
                    handle = self._scatter(trace, color)
                case "bar":
                    handle = self._bar(trace, color, self.bars.index(number))
                case "heatmap":
                    handle = self._heat_map(trace)
                case kind:
                    raise self._unknown("trace", kind)
            if handle is not None and trace.get("showlegend", True):
                self.entries.append((_wrapped(trace.get("name", f"trace {number}"), _NAME), handle))
        self._finish(width)

    def name_values(self) -> None:
        """Where no axis says what the values are, say it in the words of the figure's title (up to a colon)."""
        axis, set_label = (self.x, self.ax.set_xlabel) if self.lying else (self.y, self.ax.set_ylabel)
        if not self.heat and not axis.title and axis.categories is None:
            set_label(_wrapped(self.figure.title.partition(":")[0], _TITLE))

    def needs(self, width: float) -> float:
        """The height of the axes in inches, when they are this wide."""
        if self.ax.get_aspect() == 1:
            return width
        if (self.heat or self.lying) and self.y.categories is not None:
            names = len(self.y.categories)
            return max(0.6, min(_ROW_HEIGHT * names, _MAP_HEIGHT) if self.heat else self._row_height() * names)
        return _MAP_HEIGHT if self.heat else _AXES_HEIGHT

    def _row_height(self) -> float:
        return max(_ROW_HEIGHT, 0.05 + 0.1 * len(self.bars))

    def _unknown(self, what: str, value: object) -> ValueError:
        return ValueError(f"figure {self.figure.name!r}: no way to draw the {what} {value!r} for a paper")

    def _scatter(self, trace: _Trace, default: str) -> Any:
        y = self.y.places(trace["y"])
        x = self.x.places(trace["x"]) if "x" in trace else np.arange(len(y), dtype=float)
        line, marker = trace.get("line", {}), trace.get("marker", {})
        fills = marker.get("color")
        color = _color(line.get("color") or (fills if isinstance(fills, str) else default))
        mode = trace.get("mode", "lines+markers" if len(y) < 20 else "lines").split("+")
        if line.get("dash", "solid") not in _DASHES:
            raise self._unknown("dash", line["dash"])

        handle: Any = None
        fill = trace.get("fill", "none")
        if fill != "none":
            faint = (*color[:3], color[3] / 2)
            handle = self._filled(fill, x, y, _color(trace["fillcolor"]) if "fillcolor" in trace else faint)
        self._before = x, y
        x, y = self.x.shown(x), self.y.shown(y)
        drawn = "lines" in mode and line.get("width", 2) > 0
        if drawn or "markers" in mode:
            (handle,) = self.ax.plot(
                x,
                y,
                color=color,
                alpha=trace.get("opacity"),
                linewidth=line.get("width", 2) * _POINTS,
                linestyle=_DASHES[line.get("dash", "solid")] if drawn else "none",
                zorder=2.5,
            )
        if "markers" in mode:
            handle.set(**self._marker(marker, color))
            if isinstance(fills, list):  # a colour for each point, over the line's own
                handle.set_markerfacecolor("none")
                colors = [_color(part) for part in fills]
                size, symbol = handle.get_markersize() ** 2, handle.get_marker()
                self.ax.scatter(x, y, size, colors, marker=symbol, linewidths=0, zorder=2.6)
        self._error_bars(trace, x, y, color)
        return handle

    def _marker(self, marker: dict[str, Any], color: _Color) -> dict[str, Any]:
        name, _, rest = marker.get("symbol", "circle").partition("-open")
        if name not in _SYMBOLS or rest:
            raise self._unknown("symbol", marker["symbol"])
        hollow = marker.get("symbol", "").endswith("-open")
        color = _color(marker["color"]) if isinstance(marker.get("color"), str) else color
        return {
            "marker": _SYMBOLS[name],
            "markersize": marker.get("size", 6) * _POINTS * (0.85 if name in ("square", "diamond") else 1),
            "markerfacecolor": "none" if hollow else color,
            "markeredgecolor": color,
            "markeredgewidth": 0.8 if hollow else 0,
        }

    def _filled(self, fill: str, x: np.ndarray, y: np.ndarray, color: _Color) -> Any:
        look: dict[str, Any] = {"facecolor": color, "edgecolor": "none", "linewidth": 0, "zorder": 1.5}
        if fill == "toself":
            gaps = np.flatnonzero(np.isnan(x) | np.isnan(y))
            parts = zip([-1, *gaps], [*gaps, len(x)], strict=True)
            polygons = [self.ax.fill(x[a + 1 : b], y[a + 1 : b], **look)[0] for a, b in parts if b - a > 3]
            return polygons[0] if polygons else None
        if fill != "tonexty" or self._before is None:
            raise self._unknown("fill", fill)
        before_x, before_y = self._before
        if np.array_equal(x, before_x, equal_nan=True):
            return self.ax.fill_between(x, before_y, y, **look)
        corners = np.array([[*before_x, *x[::-1]], [*before_y, *y[::-1]]])
        return self.ax.fill(*corners[:, ~np.isnan(corners).any(0)], **look)[0]

    def _error_bars(self, trace: _Trace, x: np.ndarray, y: np.ndarray, color: _Color) -> None:
        sizes: dict[str, Any] = {}
        for name in ("x", "y"):
            spec = trace.get(f"error_{name}", {})
            if spec.get("type", "data") != "data":
                raise self._unknown("error bar", spec["type"])
            if "array" in spec and spec.get("visible", True):
                above = _floats(spec["array"])
                sizes[f"{name}err"] = [_floats(spec["arrayminus"]) if "arrayminus" in spec else above, above]
        if sizes:
            look: dict[str, Any] = {"ecolor": color, "elinewidth": 0.8, "capsize": 1.8, "capthick": 0.8}
            self.ax.errorbar(x, y, **sizes, **look, fmt="none", zorder=2.4)

    def _bar(self, trace: _Trace, default: str, place: int) -> Any:
        x, y = self.x.places(trace["x"]), self.y.places(trace["y"])
        at, sizes = (y, x) if self.lying else (x, y)
        named = (self.y if self.lying else self.x).categories is not None
        steps = np.diff(np.unique(at))
        width = 0.8 * (float(steps.min()) if len(steps) and not named else 1.0) / len(self.bars)
        at = at + (place - (len(self.bars) - 1) / 2) * width
        color = trace.get("marker", {}).get("color", default)
        handle = (self.ax.barh if self.lying else self.ax.bar)(
            at,
            np.nan_to_num(sizes),
            width * (0.94 if len(self.bars) > 1 else 1),
            color=[_color(part) for part in color] if isinstance(color, list) else _color(color),
            alpha=trace.get("opacity"),
            linewidth=0,
            zorder=2,
        )
        x, y = (sizes, at) if self.lying else (at, sizes)
        self._error_bars(trace, x, y, _color(_INK))
        return handle

    def _heat_map(self, trace: _Trace) -> Any:
        from matplotlib.colors import LinearSegmentedColormap

        scale = trace.get("colorscale", "RdBu")
        stops: Any = _SCALES.get(scale) if isinstance(scale, str) else scale
        if stops is None:
            raise self._unknown("colour scale", scale)
        z = np.array([_floats(row) for row in trace["z"]])
        many = z.size > 2500
        mesh = self.ax.pcolormesh(
            self.x.edges(trace.get("x", range(z.shape[1]))),
            self.y.edges(trace.get("y", range(z.shape[0]))),
            np.ma.masked_invalid(z),
            cmap=LinearSegmentedColormap.from_list("scale", [(stop, _color(color)) for stop, color in stops], N=256),
            vmin=trace.get("zmin"),
            vmax=trace.get("zmax"),
            rasterized=many,  # a picture within SVG and PDF: small
            edgecolors="none" if many else "face",  # no seams between cells
            linewidth=0 if many else 0.2,
            zorder=1,
        )
        if trace.get("showscale", True):
            spec = _Axis(trace.get("colorbar", {}), None)
            bar = self.ax.figure.colorbar(mesh, ax=self.ax, fraction=0.06, pad=0.03, aspect=22)
            bar.outline.set_visible(False)
            bar.ax.set_title(_wrapped(spec.title, _LABEL), fontsize=7, pad=4)
            if form := _number_format(spec.spec.get("tickformat")):
                bar.ax.yaxis.set_major_formatter(form)
        return None

    def _finish(self, width: float) -> None:
        ax = self.ax
        if self.heat:
            ax.grid(False)
            ax.spines[:].set_visible(False)
            if "scaleanchor" in self.x.spec or "scaleanchor" in self.y.spec:
                ax.set_aspect("equal", adjustable="box")
        elif not self.bars:
            ax.margins(x=0.04 if any("markers" in trace.get("mode", "") for trace in self.traces.values()) else 0.02)
        if self.x.spec.get("side") == "top":
            ax.xaxis.tick_top()
            ax.xaxis.set_label_position("top")
        for axis, which in ((self.x, "x"), (self.y, "y")):
            self._limit(axis, which)
            if axis.categories is not None:
                self._label_categories(axis.categories, which, width)
            else:
                self._tick(axis, which)
        ax.set_xlabel(_wrapped(self.x.title, 2 * _TITLE))
        ax.set_ylabel(_wrapped(self.y.title, _TITLE))

    def _limit(self, axis: _Axis, which: str) -> None:
        spec = axis.spec
        get, put = getattr(self.ax, f"get_{which}lim"), getattr(self.ax, f"set_{which}lim")
        low, high = get()
        if axis.categories is not None:
            low, high = -0.5, len(axis.categories) - 0.5
        elif spec.get("rangemode") == "tozero" and not axis.log:
            low, high = min(low, 0), max(high, 0)
        given = [
            bound if asked is None else 10.0**asked if axis.log else asked
            for asked, bound in zip(spec.get("range") or (None, None), (low, high), strict=True)
        ]
        put(*(reversed(given) if spec.get("autorange") == "reversed" else given))
        if spec.get("zeroline") and min(given) < 0 < max(given):
            (self.ax.axvline if which == "x" else self.ax.axhline)(0, color=_INK, linewidth=0.5, zorder=1.2)

    def _tick(self, axis: _Axis, which: str) -> None:
        from matplotlib import ticker
        from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, MaxNLocator, MultipleLocator

        ticks, spec = getattr(self.ax, f"{which}axis"), axis.spec
        low, high = sorted(getattr(self.ax, f"get_{which}lim")())
        form, step = _number_format(spec.get("tickformat")), spec.get("dtick")
        if "tickvals" in spec:
            ticks.set(major_locator=FixedLocator(spec["tickvals"]), minor_locator=ticker.NullLocator())
            if "ticktext" in spec:
                form = FixedFormatter([plain(text) for text in spec["ticktext"]])
            ticks.set_major_formatter(form or FuncFormatter(lambda value, _: f"{value:g}".replace("-", _MINUS)))
        elif axis.log:
            major, minor, power = _log_ticks(low, high)
            ticks.set(major_locator=major, minor_locator=minor, major_formatter=form or power)
            ticks.set_minor_formatter(ticker.NullFormatter())
        else:
            whole = spec.get("tickformat") == "d"
            if isinstance(step, int | float) and step > 0 and (high - low) / step <= 10:
                ticks.set_major_locator(MultipleLocator(step))
            else:
                ticks.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=whole))
            if form or high >= 1e5:
                ticks.set_major_formatter(form or ticker.EngFormatter(sep=""))  # 20M, as on the page

    def _label_categories(self, names: Sequence[str], which: str, width: float) -> None:
        ax = self.ax
        if self.heat or self.bars:
            ax.tick_params(axis=which, length=0)
            ax.grid(False, axis=which)
        step = math.ceil(len(names) / _MOST_LABELS) if self.heat else 1
        labels = [_wrapped(name, _LABEL, 2) for name in names[::step]]
        if which == "y":
            ax.set_yticks(range(0, len(names), step), labels)
            return
        room = 0.78 * width / len(labels)
        letters = int((room - 3) / _LETTER)
        level = all(len(word) <= letters for name in names[::step] for word in plain(name).split())
        if level:
            labels = [_wrapped(name, letters) for name in names[::step]]
        ax.set_xticks(range(0, len(names), step), labels)
        if not level:
            steep, top = room < 11, self.x.spec.get("side") == "top"
            for label in ax.get_xticklabels():
                label.set(rotation=90 if steep else 45, rotation_mode="anchor", ha="left" if top else "right")
                label.set(va="center" if steep else "bottom" if top else "top")


def _kind(trace: _Trace) -> str:
    return trace.get("type", "scatter")


def _is_solid(figure: Figure) -> bool:
    return any(_kind(trace).endswith("3d") for trace in figure.data)


def _axes(trace: _Trace) -> tuple[str, str]:
    return trace.get("xaxis", "x"), trace.get("yaxis", "y")


def _wrapped(text: object, width: int, lines: int = 3) -> str:
    """The text in lines of a width; an ellipsis for what goes beyond so many of them."""
    parts = (textwrap.wrap(part, width, max_lines=lines, placeholder="…") for part in plain(text).split("\n"))
    return "\n".join(line for part in parts for line in part)


def _floats(values: Sequence[Any]) -> np.ndarray:
    return np.array([math.nan if value is None else float(value) for value in values])


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def _color(text: str) -> _Color:
    from matplotlib.colors import to_rgba

    found = re.fullmatch(r"rgba?\((.*)\)", text.strip())
    if not found:
        return to_rgba(text)
    red, green, blue, *alpha = (float(part) for part in found[1].split(","))
    return red / 255, green / 255, blue / 255, alpha[0] if alpha else 1.0


def _number_format(spec: str | None) -> Any:
    """A formatter for d3's format, if Python has it too; None for others."""
    from matplotlib.ticker import FuncFormatter, PercentFormatter

    if spec == ".0%":
        return PercentFormatter(1, decimals=None)  # with decimals where the ticks need them
    spec = ".0f" if spec == "d" else spec
    try:
        format(0.5, spec or "no format")
    except ValueError:
        return None
    return FuncFormatter(lambda value, _: format(value, spec or "").replace("-", _MINUS))


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


def _grid(specs: Sequence[tuple[dict[str, Any], dict[str, Any]]], name: str) -> tuple[list[tuple[int, int]], int, int]:
    """(row, column) of each panel from its domains, and how many rows and columns there are."""
    starts = [(x.get("domain", [0, 1])[0], y.get("domain", [0, 1])[0]) for x, y in specs]
    if len(set(starts)) < len(starts):
        raise ValueError(f"figure {name!r}: no way to draw two panels in one place for a paper")
    columns, rows = sorted({x for x, _ in starts}), sorted({y for _, y in starts}, reverse=True)
    return [(rows.index(y), columns.index(x)) for x, y in starts], max(1, len(rows)), max(1, len(columns))


def _legend(drawing: Drawing, panels: Sequence[_Panel], layout: dict[str, Any]) -> None:
    """One legend of all panels, outside of them, in as many columns (up to three) as there is room for."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    entries: dict[str, Any] = {}
    for name, handle in (entry for panel in panels for entry in panel.entries):
        entries.setdefault(name, handle)
    asked = any(trace.get("showlegend") for panel in panels for trace in panel.traces.values())
    if not entries or not layout.get("showlegend", asked or len(entries) > 1):
        return
    renderer = FigureCanvasAgg(drawing).get_renderer()
    place: Any = "outside upper center" if len(entries) <= _ABOVE else "outside lower center"
    for columns in (min(3, len(entries)), 2, 1):
        legend = drawing.legend(list(entries.values()), list(entries), ncols=columns, loc=place)
        if columns == 1 or legend.get_window_extent(renderer).width < drawing.bbox.width:
            return
        legend.remove()


def _make_room(drawing: Drawing, panels: Sequence[_Panel], rows: int) -> None:
    """Give the drawing the height with which the axes have theirs."""
    engine: Any = drawing.get_layout_engine()
    for _ in range(3 if panels else 0):
        engine.execute(drawing)
        width, height = drawing.get_size_inches()
        boxes = [panel.ax.get_position(original=True) for panel in panels]
        missing = max(
            panel.needs(box.width * width) - box.height * height for panel, box in zip(panels, boxes, strict=True)
        )
        flexible = all(panel.heat or panel.lying for panel in panels)
        if abs(missing) < 0.02 or (missing < 0 and not flexible):
            return
        drawing.set_figheight(height + rows * missing)
