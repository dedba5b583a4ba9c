"""`neuralcollapse report`: one page of a run, of several side by side, or of an experiment; or figures for a paper."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from neuralcollapse.cli.printing import print_json, train_packages
from neuralcollapse.errors import InputError


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
        "  neuralcollapse report runs/optimizers-laptop --format markdown\n"
        "  neuralcollapse report runs/digits-mlp-learned --out pages/learned.html --shared-assets\n",
    )
    parser.add_argument(
        "paths", type=Path, nargs="+", metavar="RUN", help="run folders, or the folder of an experiment"
    )
    add_output(
        parser,
        "html: RUN/report.html, or report.html for several; png, svg, pdf: a folder, RUN/figures, or figures for "
        "several; markdown: on the terminal, or into this file with its images beside it",
    )
    parser.add_argument(
        "--shared-assets",
        action="store_true",
        help="keep the script of an HTML page in one file beside it, for many pages, instead of in every page",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """The command."""
    from neuralcollapse.report.formats import markdown, save_page
    from neuralcollapse.report.paper import KINDS

    kind: str = options.format
    check_format(kind)
    if options.shared_assets and kind != "html":
        raise InputError(f"--shared-assets is for pages (--format html), not for {kind}: leave it out")
    page = _page(options.paths)
    out: Path | None = options.out
    if out is None and kind == "markdown":
        print(markdown(page), end="")
        return 0
    single, images = len(options.paths) == 1, kind in KINDS
    place = out or (options.paths[0] if single else Path()) / ("figures" if images else "report.html")
    if not images:
        _keep_runs(place, options.paths)
    own = out is None and (single or images)  # files of these names in these places are of an earlier report
    check_free(kind, place, page.names(kind), options.force or own)
    written = save_page(page, kind, place, shared_assets=options.shared_assets)
    if options.json:
        print_json(written_json(kind, written))
        return 0
    print_written(kind, written)
    print(f"next  {next_step(kind)}")
    return 0


def add_output(parser: argparse.ArgumentParser, places: str) -> None:
    """Add the options that say how and where a page is written; `places` is the help of --out."""
    formats = "html (a page), png, svg or pdf (a folder of figures), markdown (tables)"
    parser.add_argument("--format", default="html", metavar="FORMAT", help=formats)
    parser.add_argument("--out", type=Path, metavar="PLACE", help=f"where to write it: {places}")
    parser.add_argument("--force", action="store_true", help="overwrite what is there")
    parser.add_argument("--json", action="store_true", help="print JSON")


def check_format(kind: str) -> None:
    """Raise unless a page can be written in this format."""
    from neuralcollapse.report.formats import FORMATS

    if kind not in FORMATS:
        raise InputError(f"expected a --format of {', '.join(FORMATS)}, got {kind!r}")


def check_free(kind: str, out: Path, figures: Iterable[str], force: bool) -> None:
    """Raise where a file would be overwritten unasked, or `out` is no folder and figures go into it."""
    from neuralcollapse.report.formats import files
    from neuralcollapse.report.paper import KINDS

    if kind in KINDS and out.is_file():
        raise InputError(f"expected --out as a folder for {kind} figures, got the file {out}")
    if kind not in KINDS and out.is_dir():
        raise InputError(f"expected --out as a file, got the folder {out}: name a file in it")
    check_writable(out)
    for path in files(kind, out, figures):
        if path.exists() and not force:
            raise InputError(f"{path} exists: choose another with --out, or overwrite with --force")


def check_writable(path: Path) -> None:
    """Raise where a file could not be written into its folder, before any work is done; figures may make theirs."""
    there = next(folder for folder in (path, *path.parents, Path()) if folder.exists())
    if there.is_file() and there != path:
        raise InputError(f"cannot write {path}: {there} is a file, no folder")
    if not os.access(there, os.W_OK):
        raise InputError(f"cannot write {path}: no permission to write in {there}")


def written_json(kind: str, written: Sequence[Path]) -> dict[str, Any]:
    """What --json says of the files that were written."""
    return {"page": str(written[0])} if kind == "html" else {"files": [str(path) for path in written]}


def print_written(kind: str, written: Sequence[Path]) -> None:
    """The files that were written."""
    for path in written:
        print(f"{'page' if kind == 'html' else 'file'}  {path}")


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

    with train_packages():
        from neuralcollapse.reproduce.page import experiment_page
        from neuralcollapse.reproduce.runner import ExperimentFolder

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
