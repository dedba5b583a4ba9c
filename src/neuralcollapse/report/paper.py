"""The page's two-dimensional figures for a paper: the same specifications, drawn with matplotlib (if installed)."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuralcollapse.errors import InputError
from neuralcollapse.report.figures import Figure
from neuralcollapse.report.paper_axes import Axis, plain, wrapped
from neuralcollapse.report.paper_marks import check, draw_marks
from neuralcollapse.runs.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

KINDS = ("png", "svg", "pdf")

_WIDTH, _HEIGHT = 3.25, 2.1  # inches; a column of a paper in two
_AXES_HEIGHT = 1.45  # at least, when legends and long labels take their part
_MAP_HEIGHT = 2.0  # of a heat map that need not be square
_ABOVE = 10  # entries; longer legends stand below
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
_UNDATED = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}


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
    flat = [figure for figure in figures if not any(trace["type"].endswith("3d") for trace in figure.data)]
    contents = {figure.name: _encode(figure, kind) for figure in flat}
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

        check(figure)
        x, y = Axis.of(figure, "x"), Axis.of(figure, "y")
        drawing = Drawing((_WIDTH, _HEIGHT), layout="compressed" if "scaleanchor" in y.spec else "constrained")
        ax = drawing.add_subplot()
        x.scale(ax)
        y.scale(ax)
        entries = draw_marks(figure, ax, x, y)
        kinds = {trace["type"] for trace in figure.data}
        if kinds == {"scatter"}:
            ax.margins(x=0.04 if any("markers" in trace["mode"] for trace in figure.data) else 0.02)
        for axis in (x, y):
            axis.finish(ax, 72 * _WIDTH)
        if figure.layout.get("showlegend", len(entries) > 1):
            _legend(drawing, entries)
        _make_room(drawing, "heatmap" in kinds)
        return drawing


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


def _make_room(drawing: Drawing, heat: bool) -> None:
    """Give the drawing the height with which its axes have theirs."""
    engine: Any = drawing.get_layout_engine()
    ax = drawing.axes[0]
    for _ in range(3):
        engine.execute(drawing)
        width, height = drawing.get_size_inches()
        box = ax.get_position(original=True)
        wanted = box.width * width if ax.get_aspect() == 1 else _MAP_HEIGHT if heat else _AXES_HEIGHT
        missing = wanted - box.height * height
        if abs(missing) < 0.02 or (missing < 0 and not heat):
            return
        drawing.set_figheight(height + missing)
