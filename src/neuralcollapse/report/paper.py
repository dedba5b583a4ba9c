"""Figures drawn for a paper with matplotlib, where it is installed: those in two dimensions, one column wide.

They can be read without colour (`paper_series`).
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neuralcollapse.errors import InputError
from neuralcollapse.extras import needed_by
from neuralcollapse.report.figure import BLUE_TO_RED, GREY, Band, Bars, Dots, Figure, HeatMap, Line, Points3D
from neuralcollapse.report.page import Panels
from neuralcollapse.report.paper_axes import PaperAxis, plain, wrapped
from neuralcollapse.report.paper_labels import write_labels
from neuralcollapse.report.paper_series import Series, is_curve
from neuralcollapse.runs.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

KINDS = ("png", "svg", "pdf")

_WIDTH, _HEIGHT = 3.25, 2.1  # inches; a column of a paper in two
_AXES_HEIGHT = 1.45  # at least, when legends and long labels take their part
_PANEL_HEIGHT = 1.05  # of one of several
_MAP_HEIGHT = 2.0  # of a heat map that need not be square
_ABOVE = 10  # entries; longer legends go below
_NAME = 46  # characters a line of a legend's entry
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
_ERRORS = {"elinewidth": 0.8, "capsize": 1.8, "capthick": 0.8}
_DASHES: dict[str, Any] = {"solid": "-", "dot": (0, (0.1, 2)), "dash": (0, (3.5, 2.2))}
_LINE, _MARKER, _DOT = 1.1, 3.3, 5.0  # points
_BAND_OPACITY = 0.18
_MANY_CELLS = 2500  # of a heat map; more are kept as a picture within SVG and PDF
_UNDATED = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}


def save_figures(figures: Sequence[Figure], folder: Path, kind: str, panels: Sequence[Panels] = ()) -> list[Path]:
    """Write each two-dimensional figure as `folder`/NAME.KIND (png, svg or pdf), one column wide; returns the paths.

    So is each of `panels`, with several of the figures one above the other. All are drawn before the first is written,
    and the same figures give the same bytes. Three-dimensional ones are left out; one that moves is drawn as the page
    first shows it, at its last step.
    """
    if kind not in KINDS:
        raise InputError(f"expected png, svg or pdf as the kind of figures, got {kind!r}")
    flat = [figure for figure in figures if not figure.three_dimensional]
    with needed_by("a figure"):
        contents = {figure.name: _encode(draw(figure), kind, figure.title, figure.alt) for figure in flat}
        for name, title, wanted in panels:
            shown = [figure for each in wanted for figure in flat if figure.name == each]
            alt = " ".join(figure.alt for figure in shown)
            contents[name] = _encode(draw_panels(shown), kind, title, alt)
    target, paths = folder, []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            target = folder / f"{name}.{kind}"
            paths.append(write_atomically(target, content))
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror or error}") from None
    return paths


def save_figure(figure: Figure, path: Path) -> Path:
    """Write one figure as a file whose ending is its kind."""
    kind = path.suffix.removeprefix(".").lower()
    if kind not in KINDS:
        raise InputError(f"expected a file that ends in .png, .svg or .pdf, got {path.name!r}: name it so")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with needed_by("a figure"):
            return write_atomically(path, _encode(draw(figure), kind, figure.title, figure.alt))
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None


def draw(figure: Figure) -> Drawing:
    """A two-dimensional figure as one of matplotlib's."""
    return draw_panels([figure])


def draw_panels(figures: Sequence[Figure]) -> Drawing:
    """Two-dimensional figures as one of matplotlib's, one above the other, with one legend of all that they show.

    Several share their horizontal axis, which the lowest names.
    """
    with _style():
        from matplotlib.figure import Figure as Drawing

        matrix, several = any(figure.matrix for figure in figures), len(figures) > 1
        drawing = Drawing((_WIDTH, _HEIGHT), layout="compressed" if matrix else "constrained")
        axes = list(drawing.subplots(len(figures), 1, sharex=several, squeeze=False)[:, 0])
        series = Series.of([mark for figure in figures for mark in figure.marks])
        entries: dict[str, Any] = {}
        for figure, ax in zip(figures, axes, strict=True):
            for name, handle in _draw_figure(figure, ax, series, bare=ax is not axes[-1]):
                entries.setdefault(name, handle)
        if len(entries) > 1:
            _legend(drawing, list(entries.items()))
        if several:
            drawing.align_ylabels(axes)
        heat = any(isinstance(mark, HeatMap) for figure in figures for mark in figure.marks)
        _make_room(drawing, axes, _MAP_HEIGHT if heat else _PANEL_HEIGHT if several else _AXES_HEIGHT, exact=heat)
        return drawing


def _draw_figure(figure: Figure, ax: Any, series: Series, *, bare: bool) -> list[tuple[str, Any]]:
    """Draw a figure on axes, without the horizontal title where they are `bare`; returns its legend."""
    x, y = PaperAxis.of(figure, "x"), PaperAxis.of(figure, "y")
    x.scale(ax)
    y.scale(ax)
    entries = _draw_marks(figure, ax, x, y, series)
    if all(isinstance(mark, Line | Dots | Band) for mark in figure.marks):
        ax.margins(x=0.04 if any(_marked(mark) for mark in figure.marks) else 0.02)
    for place, text in figure.events:
        _event(ax, place, text, low=figure.y.percent)
    for axis in (x, y):
        axis.finish(ax, 72 * _WIDTH)
    if bare:
        ax.set_xlabel("")
    dots = [mark for mark in figure.marks if isinstance(mark, Dots) and mark.labels]
    write_labels(ax, [(x.places(mark.x), y.places(mark.y), mark.labels) for mark in dots])
    return entries


def _draw_marks(figure: Figure, ax: Any, x: PaperAxis, y: PaperAxis, series: Series) -> list[tuple[str, Any]]:
    """Draw the marks; returns the names and artists of those that a legend shows."""
    entries = []
    bars = sum(isinstance(mark, Bars) for mark in figure.marks)
    width = 0.8 / max(bars, 1)
    shift = -(bars - 1) / 2 * width
    for mark in figure.marks:
        match mark:
            case Line(only_selected=True):
                pass
            case Line():
                handle = _line(ax, x, y, mark, series)
                entries += [(mark.name, handle)] if mark.legend else []
            case Dots():
                entries.append((mark.name, _dots(ax, x, y, mark, series)))
            case Band():
                low, high, places = y.places(mark.low), y.places(mark.high), x.places(mark.x)
                style = {"edgecolor": "none", "linewidth": 0, "zorder": 1.5}
                ax.fill_between(places, low, high, facecolor=series.shade(mark.color), alpha=_BAND_OPACITY, **style)
            case Bars():
                places, heights = x.places(mark.x) + shift, y.places(mark.y)
                shift += width
                narrow = width * (0.94 if bars > 1 else 1)
                style = {"color": series.shade(mark.color), "linewidth": 0, "zorder": 2}
                entries.append((mark.name, ax.bar(places, heights, narrow, **style)))
            case HeatMap():
                _heat_map(ax, x, y, mark)
            case Points3D():
                raise ValueError(f"figure {figure.name!r} has three dimensions: paper has two")
    return entries


def _marked(mark: Any) -> bool:
    return isinstance(mark, Dots) or (isinstance(mark, Line) and (mark.markers or len(mark.x) < 2))


def _line(ax: Any, x: PaperAxis, y: PaperAxis, mark: Line, series: Series) -> Any:
    places, values, color = x.places(mark.x), y.places(mark.y), series.shade(mark.color)
    if len(mark.errors):
        ax.errorbar(places, values, mark.errors, ecolor=color, **_ERRORS, fmt="none", zorder=2.4)
    style = {"color": color, "linewidth": _LINE * mark.width / 2, "linestyle": _DASHES[mark.dash], "zorder": 2.5}
    style |= {"marker": "none", "markersize": _MARKER, "markeredgewidth": 0}
    if _marked(mark):
        style["marker"] = series.shape(mark.color)
    elif series.several and is_curve(mark):
        style |= {"marker": series.shape(mark.color), "markevery": series.places(mark.color)}
        style |= {"markeredgewidth": 0.4, "markeredgecolor": "white", "markersize": _MARKER + 1}
    return ax.plot(places, values, **style)[0]


def _event(ax: Any, place: float, text: str, *, low: bool) -> None:
    """A thin upright line with words along it, at its lower or upper end."""
    ax.axvline(place, color=GREY, linewidth=0.6, linestyle=_DASHES["dot"], zorder=1.2)
    side, shift = ("left", 2) if place <= sum(ax.get_xlim()) / 2 else ("right", -2)
    height, end = (0.02, "bottom") if low else (0.98, "top")
    style = {"fontsize": 6, "color": GREY, "rotation": 90, "ha": side, "va": end, "zorder": 1.2}
    ax.annotate(plain(text), (place, height), (shift, 0), ("data", "axes fraction"), "offset points", **style)


def _dots(ax: Any, x: PaperAxis, y: PaperAxis, mark: Dots, series: Series) -> Any:
    style = {"color": series.shade(mark.color), "linestyle": "none", "markersize": _DOT, "zorder": 2.5}
    style |= (
        {"marker": "D", "markerfacecolor": "none", "markersize": _DOT - 1}
        if mark.hollow
        else {"marker": series.shape(mark.color), "markeredgewidth": 0}
    )
    return ax.plot(x.places(mark.x), y.places(mark.y), **style)[0]


def _heat_map(ax: Any, x: PaperAxis, y: PaperAxis, mark: HeatMap) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    z = mark.z[-1] if mark.z.ndim == 3 else mark.z
    many = z.size > _MANY_CELLS
    mesh = ax.pcolormesh(
        x.edges(mark.x),
        y.edges(mark.y),
        np.ma.masked_invalid(z),
        cmap=LinearSegmentedColormap.from_list("blue to red", list(BLUE_TO_RED), N=256),
        vmin=mark.low,
        vmax=mark.high,
        rasterized=many,
        edgecolors="none" if many else "face",  # no seams between cells
        linewidth=0 if many else 0.2,
        zorder=1,
    )
    bar = ax.figure.colorbar(mesh, ax=ax, fraction=0.06, pad=0.03, aspect=22)
    bar.outline.set_visible(False)
    bar.ax.set_title(wrapped(mark.title, 20), fontsize=7, pad=4)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    if x.matrix:
        ax.set_aspect("equal", adjustable="box")


def _encode(drawing: Drawing, kind: str, title: str, alt: str) -> bytes:
    words = {"Title": plain(title), "Subject" if kind == "pdf" else "Description": plain(alt)}
    buffer = io.BytesIO()
    with _style():
        drawing.savefig(buffer, format=kind, metadata=words | _UNDATED[kind])
    return buffer.getvalue()


@contextmanager
def _style() -> Iterator[None]:
    """Our look whatever the user's own settings, without warnings about glyphs that are missing from the font."""
    from matplotlib import style

    with warnings.catch_warnings(), style.context(["default", _STYLE]):
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def _legend(drawing: Drawing, entries: Sequence[tuple[str, Any]]) -> None:
    """A legend outside of the axes, in as many columns (up to three) as there is room for."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    names, handles = [wrapped(name, _NAME) for name, _ in entries], [handle for _, handle in entries]
    renderer = FigureCanvasAgg(drawing).get_renderer()
    place: Any = f"outside {'upper' if len(entries) <= _ABOVE else 'lower'} center"
    for columns in (3, 2, 1):
        legend = drawing.legend(handles, names, ncols=columns, loc=place)
        if columns == 1 or legend.get_window_extent(renderer).width < drawing.bbox.width:
            return
        legend.remove()


def _make_room(drawing: Drawing, axes: Sequence[Any], height: float, *, exact: bool) -> None:
    """Give the drawing the height with which its axes have theirs, or at least that."""
    engine: Any = drawing.get_layout_engine()
    for _ in range(3):
        engine.execute(drawing)
        width, total = drawing.get_size_inches()
        boxes = [ax.get_position(original=True) for ax in axes]
        wanted = boxes[0].width * width if axes[0].get_aspect() == 1 else height
        missing = wanted * len(boxes) - sum(box.height for box in boxes) * total
        if abs(missing) < 0.02 or (missing < 0 and not exact):
            return
        drawing.set_figheight(total + missing)
