"""`neuralcollapse report`: the page of a run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from neuralcollapse._errors import InputError
from neuralcollapse.cli.printing import needs_train, print_json
from neuralcollapse.records import RunFolder


def add(commands: Any) -> None:
    """Its options."""
    parser = commands.add_parser(
        "report",
        help="write the page of a run",
        description="Write one self-contained HTML page with the figures of a run; it works offline.",
        epilog="example:\n  neuralcollapse report runs/digits-mlp-learned --out collapse.html\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", type=Path, metavar="RUN", help="a run folder")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to write it (RUN/report.html)")
    parser.add_argument("--force", action="store_true", help="overwrite that file")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """The command."""
    folder = RunFolder.open(options.path)
    if options.out is not None and options.out.exists() and not options.force:
        raise InputError(f"{options.out} exists: choose another with --out, or overwrite with --force")
    try:
        from neuralcollapse.report.page import write_page
    except ImportError as error:
        raise needs_train(error) from None
    page = write_page(folder, options.out)
    if options.json:
        print_json({"page": str(page)})
    else:
        print(f"page  {page}\nnext  open it in a browser")
    return 0
