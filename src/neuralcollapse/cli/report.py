"""`neuralcollapse report`: one page of a run, of several side by side, or of an experiment; or figures for a paper."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from neuralcollapse.cli.printing import needs_train, print_json
from neuralcollapse.errors import InputError

FORMAT_HELP = "html (a page), png, svg or pdf (a folder of figures), markdown (tables)"


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
    parser.add_argument("--format", default="html", metavar="FORMAT", help=FORMAT_HELP)
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
    from neuralcollapse.report.formats import files, save_page
    from neuralcollapse.report.markdown import markdown

    kind: str = options.format
    check_format(kind)
    page = _page(options.paths)
    out: Path | None = options.out
    if out is None and kind == "markdown":
        print(markdown(page), end="")
        return 0
    single, images = len(options.paths) == 1, kind not in ("html", "markdown")
    place = out or (options.paths[0] if single else Path()) / ("figures" if images else "report.html")
    if images:
        check_folder(place, kind)
    else:
        _keep_runs(place, options.paths)
    own = out is None and (single or images)  # files of these names in these places are of an earlier report
    check_free(files(kind, place, (figure.name for figure in page.figures)), options.force or own)
    written = save_page(page, kind, place)
    if options.json:
        print_json({"page": str(written[0])} if kind == "html" else {"files": [str(path) for path in written]})
        return 0
    for path in written:
        print(f"{'page' if kind == 'html' else 'file'}  {path}")
    print(f"next  {next_step(kind)}")
    return 0


def check_format(kind: str) -> None:
    """Raise unless a page can be written in this format."""
    from neuralcollapse.report.formats import FORMATS

    if kind not in FORMATS:
        raise InputError(f"expected a --format of {', '.join(FORMATS)}, got {kind!r}")


def check_folder(out: Path, kind: str) -> None:
    """Raise where figures cannot go into `out`."""
    if out.is_file():
        raise InputError(f"expected --out as a folder for {kind} figures, got the file {out}")


def check_free(paths: Iterable[Path], force: bool) -> None:
    """Raise where a file would be overwritten unasked."""
    for path in paths:
        if path.exists() and not force:
            raise InputError(f"{path} exists: choose another with --out, or overwrite with --force")


def next_step(kind: str) -> str:
    """What to do with the files of a format."""
    if kind in ("html", "markdown"):
        return "open it in a browser" if kind == "html" else "open it in any reader of Markdown"
    return "for a column of a paper, 3.25 inches wide; another --format: png, svg, pdf"


def _page(paths: Sequence[Path]) -> Any:
    """The page of what is there: an experiment, a run, or several runs."""
    from neuralcollapse.report.comparison import comparison_page
    from neuralcollapse.report.single import single_page
    from neuralcollapse.runs.reading import read_run, read_runs

    try:
        from neuralcollapse.reproduce.page import experiment_page
        from neuralcollapse.reproduce.runner import ExperimentFolder
    except ImportError as error:
        raise needs_train(error) from None

    experiments = [path for path in paths if ExperimentFolder.is_one(path)]
    if experiments and len(paths) > 1:
        raise InputError(f"{experiments[0]} is an experiment, which has a page of its own: give it alone, or its runs")
    if experiments:
        return experiment_page(ExperimentFolder.open(experiments[0]))
    return single_page(read_run(paths[0])) if len(paths) == 1 else comparison_page(read_runs(paths))


def _keep_runs(path: Path, runs: Sequence[Path]) -> None:
    """Raise where a page would take the place of what it is made from."""
    if path.is_dir():
        raise InputError(f"expected --out as a file, got the folder {path}")
    place = path.resolve()
    if path.name != "report.html" and path.exists() and any(place.is_relative_to(run.resolve()) for run in runs):
        raise InputError(f"{path} is a file of the run: choose another with --out")
