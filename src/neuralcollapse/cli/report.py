"""`neuralcollapse report`: one page of a run, of several side by side, or of an experiment; or figures for a paper."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neuralcollapse.cli.printing import needs_train, print_json
from neuralcollapse.errors import InputError

_IMAGES = ("png", "svg", "pdf")
_FORMATS = ("html", *_IMAGES, "markdown")


def add(commands: Any) -> None:
    """Add the command and its options."""
    parser = commands.add_parser(
        "report",
        help="one page from one or many runs, side by side; or figures for a paper",
        description="Write one self-contained HTML page with the figures of a run, of several runs side by side, or of "
        "an experiment that 'reproduce' ran; it works offline. Or its figures as files, each fit for a column of a "
        "paper; or its tables as Markdown.",
        epilog="examples:\n  neuralcollapse report runs/digits-mlp-learned --out collapse.html\n"
        "  neuralcollapse report runs/digits-mlp-learned runs/digits-mlp-simplex --out both.html\n"
        "  neuralcollapse report runs/optimizers-laptop --format pdf --out figures\n"
        "  neuralcollapse report runs/optimizers-laptop --format markdown\n",
    )
    parser.add_argument(
        "paths", type=Path, nargs="+", metavar="RUN", help="run folders, or the folder of an experiment"
    )
    parser.add_argument(
        "--format",
        default="html",
        metavar="FORMAT",
        help="html (a page), png, svg or pdf (a folder of figures), markdown (tables)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="PLACE",
        help="where to write it: html: RUN/report.html, or report.html for several; png, svg, pdf: a folder, "
        "RUN/figures, or figures for several; markdown: on the terminal, or into this file with its images beside it",
    )
    parser.add_argument("--force", action="store_true", help="overwrite what is there")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """The command."""
    kind = options.format
    if kind not in _FORMATS:
        raise InputError(f"expected a --format of {', '.join(_FORMATS)}, got {kind!r}")
    try:
        from neuralcollapse.report.markdown import markdown
        from neuralcollapse.report.paper import save_figures
    except ImportError as error:
        raise needs_train(error) from None
    page = _page(options.paths)
    single = len(options.paths) == 1
    out: Path | None = options.out
    try:
        if kind == "html":
            out = out or (options.paths[0] / "report.html" if single else Path("report.html"))
            _keep_runs(out, options.paths)
            _refuse(out, options.force or (single and options.out is None))
            written = [_save(page.html(), out)]
            hint = "open it in a browser"
        elif kind in _IMAGES:
            out = out or (options.paths[0] / "figures" if single else Path("figures"))
            if out.is_file():
                raise InputError(f"expected --out as a folder for {kind} figures, got the file {out}")
            _refuse_any(
                (out / f"{figure.name}.{kind}" for figure in page.figures), options.force or options.out is None
            )
            written = save_figures(page.figures, out, kind)
            hint = "for a column of a paper, 3.25 inches wide; another --format: png, svg, pdf"
        elif out is None:
            print(markdown(page), end="")
            return 0
        else:
            _keep_runs(out, options.paths)
            _refuse(out, options.force)
            figures = out.parent / "figures"
            _refuse_any((figures / f"{figure.name}.png" for figure in page.figures), options.force)
            images = save_figures(page.figures, figures, "png")
            names = {image.stem: f"{figures.name}/{image.name}" for image in images}
            written = [_save(markdown(page, names), out), *images]
            hint = "open it in any reader of Markdown"
    except ImportError as error:
        raise needs_train(error) from None
    if options.json:
        print_json({"page": str(written[0])} if kind == "html" else {"files": [str(path) for path in written]})
        return 0
    for path in written:
        print(f"{'page' if kind == 'html' else 'file'}  {path}")
    print(f"next  {hint}")
    return 0


def _page(paths: Sequence[Path]) -> Any:
    """The page of what is there: an experiment, a run, or several runs."""
    from neuralcollapse.report.comparison import several_page
    from neuralcollapse.report.single import single_page
    from neuralcollapse.reproduce.page import experiment_page
    from neuralcollapse.reproduce.runner import ExperimentFolder
    from neuralcollapse.runs.reading import read_run, read_runs

    experiments = [path for path in paths if ExperimentFolder.is_one(path)]
    if experiments and len(paths) > 1:
        raise InputError(f"{experiments[0]} is an experiment, which has a page of its own: give it alone, or its runs")
    if experiments:
        return experiment_page(ExperimentFolder.open(experiments[0]))
    return single_page(read_run(paths[0])) if len(paths) == 1 else several_page(read_runs(paths))


def _save(text: str, target: Path) -> Path:
    from neuralcollapse.report.page import save_page

    return save_page(text, target)


def _keep_runs(path: Path, runs: Sequence[Path]) -> None:
    """Raise where a page would take the place of what it is made from.

    Raises:
        InputError: it would.
    """
    if path.is_dir():
        raise InputError(f"expected --out as a file, got the folder {path}")
    place = path.resolve()
    if path.name != "report.html" and path.exists() and any(place.is_relative_to(run.resolve()) for run in runs):
        raise InputError(f"{path} is a file of the run: choose another with --out")


def _refuse(path: Path, force: bool) -> None:
    if path.exists() and not force:
        raise InputError(f"{path} exists: choose another with --out, or overwrite with --force")


def _refuse_any(paths: Any, force: bool) -> None:
    for path in paths:
        _refuse(path, force)
