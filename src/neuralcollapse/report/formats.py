"""A page in the format that is asked for: HTML, Markdown with its images, or figures as PNG, SVG or PDF."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from neuralcollapse.report.markdown import markdown
from neuralcollapse.report.page import Page, save_text
from neuralcollapse.report.paper import KINDS, save_figures

FORMATS = ("html", *KINDS, "markdown")
_IMAGES = "figures"  # the folder of a Markdown file's images, beside it


def files(format: str, out: Path, figures: Iterable[str]) -> list[Path]:
    """The files that `save_page` may write of a page with the figures of these names."""
    if format in KINDS:
        return [out / f"{name}.{format}" for name in figures]
    return [out, *(out.parent / _IMAGES / f"{name}.png" for name in figures if format == "markdown")]


def save_page(page: Page, format: str, out: Path) -> list[Path]:
    """Write a page; returns the files, the page first.

    Args:
        page: the page.
        format: one of FORMATS.
        out: the file; for png, svg and pdf the folder.

    Raises:
        InputError: a file cannot be written, or packages are missing.
    """
    if format == "html":
        return [save_text(page.html(), out)]
    if format in KINDS:
        return save_figures(page.figures, out, format)
    images = save_figures(page.figures, out.parent / _IMAGES, "png")
    names = {image.stem: f"{_IMAGES}/{image.name}" for image in images}
    return [save_text(markdown(page, names), out), *images]
