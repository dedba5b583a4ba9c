"""Figures for a glance at a run while it trains: those that loggers get and those that a notebook shows."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from neuralcollapse.errors import InputError
from neuralcollapse.report.class_means import cosine_map
from neuralcollapse.report.cosine_histogram import cosine_histogram
from neuralcollapse.report.curves import measure_curve, run_curves
from neuralcollapse.report.figure import Axis, Figure
from neuralcollapse.report.paper import draw
from neuralcollapse.runs.folder import RunFolder
from neuralcollapse.runs.records import Geometry, Record

_DPI = 200  # 650 pixels wide: sharp in the cards of TensorBoard and W&B, and 20 to 40 kB
_NOTEBOOK = ("accuracy", "variability", "simplex")


@dataclass(frozen=True)
class Glance:
    """A run as it is now.

    Attributes:
        records: so far, in order; at least one.
        geometry: class means and classifier at the last record; None where they are too large to be drawn.
        class_names: of the K classes; their numbers when empty.
        unit: what the records count.
        folder: where the run is kept, if it is.
    """

    records: Sequence[Record]
    geometry: Geometry | None = None
    class_names: Sequence[str] = ()
    unit: str = "epoch"
    folder: RunFolder | None = None

    def for_loggers(self) -> list[Figure]:
        """NC1 with its band, and the cosines between class means as a map and as a histogram."""
        caption = "Spread of the features within classes against spread between them. Falls to 0."
        nc1 = measure_curve(
            self.records, self.unit, "nc1", ("nc1",), "NC1: variability within classes", caption, Axis("NC1", log=True)
        )
        return [nc1, *self._cosines()]

    def for_notebook(self) -> list[Figure]:
        """Accuracy, the measures, and the cosines."""
        curves = [figure for figure in run_curves(self.records, self.unit) if figure.name in _NOTEBOOK]
        return [*curves, *self._cosines()[:1]]

    def _cosines(self) -> list[Figure]:
        if self.geometry is None:
            return []
        count = len(self.geometry.means)
        names = list(self.class_names) if len(self.class_names) == count else list(map(str, range(count)))
        histogram = cosine_histogram(self.geometry, self.unit)
        # no pair, no cosine
        return [] if histogram is None else [cosine_map([self.geometry], names, self.unit), histogram]


def pixels(figure: Figure, dpi: int = _DPI) -> np.ndarray:
    """A figure as (height, width, 3) uint8, on white."""
    try:
        drawing = draw(figure)
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ImportError as error:
        raise InputError(f"figures need more packages ({error}): pip install 'neuralcollapse[train]'") from None
    drawing.set_dpi(dpi)
    canvas = FigureCanvasAgg(drawing)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def png(figure: Figure, dpi: int = _DPI) -> bytes:
    """A figure as a PNG file."""
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    imsave(buffer, pixels(figure, dpi), format="png")
    return buffer.getvalue()
