"""`neuralcollapse landscape`: solve, certify and draw an unconstrained feature model."""

from __future__ import annotations

import argparse
import itertools
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuralcollapse.cli.printing import print_json, train_packages
from neuralcollapse.cli.progress import Progress, duration
from neuralcollapse.cli.report import add_output, check_format, check_free, next_step, print_written, written_json
from neuralcollapse.errors import InputError

if TYPE_CHECKING:
    from neuralcollapse.ufm.model import Model

_DEFAULTS = {"html": "landscape.html", "markdown": "landscape.md"} | dict.fromkeys(
    ("png", "svg", "pdf"), "landscape-figures"
)
_WORDS = {"num_classes": "classes", "feature_dim": "dim", "samples_per_class": "samples"}
"""Arguments of the model -> options."""


def add(commands: Any) -> None:
    """Add the command and its options."""
    parser = commands.add_parser(
        "landscape",
        help="solve, certify and draw an unconstrained feature model",
        description="Solve an unconstrained feature model exactly, list critical points (by partitions of the classes "
        "and, up to 6 classes, by a search of every rank), certify where random starts end, and draw it on a page.",
        epilog="examples:\n  neuralcollapse landscape\n"
        "  neuralcollapse landscape --samples 30,10,5,2 --dim 5 --bias-decay 0.01\n"
        "  neuralcollapse landscape --classes 10 --dim 12 --loss mse --no-bias --starts 1000\n",
    )
    parser.add_argument("--classes", type=int, metavar="K", help="classes (4, or as many as --samples lists)")
    parser.add_argument("--dim", type=int, metavar="d", help="feature dimension (K + 2)")
    parser.add_argument("--samples", default="5", metavar="N", help="samples a class: one number, or a list n1,n2,...")
    parser.add_argument("--weight-decay", type=float, default=0.005, metavar="L", help="of W (0.005)")
    parser.add_argument("--feature-decay", type=float, default=0.005, metavar="L", help="of H (0.005)")
    parser.add_argument("--bias-decay", type=float, default=0.0, metavar="L", help="of b (0)")
    parser.add_argument("--no-bias", action="store_true", help="leave the bias out")
    parser.add_argument(
        "--loss", default="cross_entropy", help="cross_entropy, label_smoothing[:A], focal[:GAMMA] or mse"
    )
    parser.add_argument(
        "--features",
        choices=("real", "nonnegative"),
        default="real",
        help="nonnegative: features >= 0, as behind a ReLU; no atlas then (real)",
    )
    parser.add_argument("--starts", type=int, default=100, metavar="N", help="random starts (100)")
    parser.add_argument("--method", default="lbfgs", help="of the recorded trajectories: lbfgs, newton, gd, sgd, adam")
    parser.add_argument("--seed", type=int, default=0, help="of the starts (0)")
    parser.add_argument(
        "--minutes", type=float, default=10.0, metavar="M", help="refuse what would take longer on this machine (10)"
    )
    add_output(
        parser,
        "html: landscape.html; png, svg, pdf: a folder, landscape-figures; markdown: landscape.md, with its images "
        "beside it; numbered if there is one already",
    )
    parser.set_defaults(run=run, words=_WORDS)


def run(options: argparse.Namespace) -> int:
    """The command: all options are checked before anything is computed, and the files come at the very end."""
    check_format(options.format)
    with train_packages(format=options.format):
        from neuralcollapse.report.formats import save_page
        from neuralcollapse.report.landscape import LANDSCAPE_FIGURES, ends, landscape_page, summary
    from neuralcollapse.ufm.survey import survey

    model = _model(options)

    def place() -> Path:
        if options.out is None and not options.force:
            return _unused(options.format, LANDSCAPE_FIGURES)
        return options.out or Path(_DEFAULTS[options.format])

    if options.out is not None and not options.out.parent.is_dir():
        folder = options.out.parent
        raise InputError(f"no folder {folder} to write {options.out.name} into: make it, or choose another --out")
    check_free(options.format, place(), LANDSCAPE_FIGURES, options.force)
    _check_cost(model, options)
    progress = Progress()
    found = survey(
        model,
        starts=options.starts,
        method=options.method,
        seed=options.seed,
        on_message=progress.stage,
        on_progress=progress.share,
    )
    progress.clear()
    out = place()  # again: another survey may have ended meanwhile
    if options.out is None:
        out.parent.mkdir(exist_ok=True)  # of a numbered Markdown file
    written = save_page(landscape_page(found), options.format, out)
    if options.json:
        print_json(
            {
                "minimum": found.minimum,
                "atlas": [entry.record() for entry in found.atlas],
                "coverage": found.coverage,
                "ends": [
                    {"objective": float(value), "verdict": verdict, "starts": len(gaps), "largest_gap": max(gaps)}
                    for value, verdict, gaps in ends(found)
                ],
                **written_json(options.format, written),
            }
        )
        return 0
    print(summary(found))
    if found.minimum is not None:
        print(f"\nglobal minimum  {found.minimum:.10f}")
    if found.atlas:
        wide = max(22, *(len(entry.name) for entry in found.atlas))
        head = f"{'objective':>12} {'index':>6} {'rank':>5} {'least eigenvalue':>17}"
        print(f"\n  {'groups or shape':<{wide}} {head}  verdict")
        for entry in found.atlas:
            facts = f"{entry.objective:>12.8f} {entry.index:>6} {entry.rank:>5} {entry.least_eigenvalue:>17.3g}"
            print(f"  {entry.name:<{wide}} {facts}  {entry.certificate.verdict}")
        print(f"\n  {found.coverage}")
    print(f"\n  {'end of starts':>13} {'starts':>7} {'largest certified gap':>22}  verdict")
    for value, verdict, gaps in ends(found):
        print(f"  {value:>13} {len(gaps):>7} {max(gaps):>22.1e}  {verdict}")
    print()
    print_written(options.format, written)
    print(f"next  {next_step(options.format)}, or set unequal classes: --samples 30,10,5,2")
    return 0


def _model(options: argparse.Namespace) -> Model:
    """The model that is asked for.

    Raises:
        InputError: an option that cannot be, or a model that does not fit into memory.
    """
    from neuralcollapse.ufm.model import Model
    from neuralcollapse.ufm.solvers import check_method
    from neuralcollapse.ufm.survey_cost import survey_bytes

    try:
        samples = [int(part) for part in options.samples.split(",")]
    except ValueError:
        raise InputError(f"expected --samples as a number or a list n1,n2,..., got {options.samples!r}") from None
    classes = options.classes if options.classes is not None else len(samples) if len(samples) > 1 else 4
    dim = options.dim if options.dim is not None else classes + 2
    if options.no_bias and options.bias_decay:
        raise InputError("expected --bias-decay without --no-bias, got both: a model without bias has nothing to decay")
    if not 0 <= options.seed < 2**32:
        raise InputError(f"expected --seed from 0 to 2^32 - 1, got {options.seed}")
    if options.starts < 1:
        raise InputError(f"expected --starts of at least 1, got {options.starts}")
    if not options.minutes > 0:
        raise InputError(f"expected --minutes above 0, got {options.minutes:g}")
    total = samples[0] * classes if len(samples) == 1 else sum(samples)
    needed = survey_bytes(classes, dim, total, options.starts) if min(classes, dim, total) > 0 else 0.0
    if needed > (there := _memory()):
        raise InputError(
            f"K = {classes:,}, d = {dim:,}, N = {total:,} and {options.starts:,} starts need about "
            f"{needed / 2**30:,.0f} GiB of memory, and {there / 2**30:,.0f} are there: ask for fewer --classes, "
            "--samples or --starts"
        )
    model = Model(
        classes,
        dim,
        samples[0] if len(samples) == 1 else samples,
        options.weight_decay,
        options.feature_decay,
        options.bias_decay,
        not options.no_bias,
        options.loss,
        features=options.features,
    )
    check_method(options.method, model)
    return model


def _memory() -> float:
    """Bytes of memory of this machine; without a limit where that cannot be told."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES")) * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return math.inf


def _check_cost(model: Model, options: argparse.Namespace) -> None:
    """Raise where the survey would take longer than --minutes, and say what would not; else say how long it takes."""
    from neuralcollapse.ufm.survey_cost import evaluation_seconds, survey_seconds

    once = evaluation_seconds(model)

    def seconds(starts: int) -> float:
        return survey_seconds(model, starts, options.method, evaluation=once)

    needed, most = seconds(options.starts), 60 * options.minutes
    about = f"K = {model.num_classes:,}, d = {model.feature_dim:,}, N = {model.num_samples:,}"
    if needed <= most:
        print(f"{about}: about {duration(needed)}", file=sys.stderr, flush=True)
        return
    fewer = next((count for count in (50, 20, 10, 5, 2, 1) if count < options.starts and seconds(count) <= most), None)
    methods = "" if options.method == "lbfgs" else ", --method lbfgs"
    instead = f"ask for fewer --classes or --samples{methods}"
    if fewer is not None:
        instead = f"with --starts {fewer} about {duration(seconds(fewer))}; or {instead}"
    raise InputError(
        f"{about}: {options.starts:,} starts by {options.method} would take about {duration(needed)} on this machine: "
        f"{instead}, or allow it with --minutes {math.ceil(1.2 * needed / 60)}"
    )


def _unused(kind: str, figures: Sequence[str]) -> Path:
    """The default place, or the first numbered one that holds nothing: landscape.html, landscape-2.html, ..."""
    from neuralcollapse.report.formats import files

    first = Path(_DEFAULTS[kind])
    for number in itertools.count(1):
        place = first if number == 1 else first.with_stem(f"{first.stem}-{number}")
        if kind == "markdown" and number > 1:  # with the images beside it
            place = Path(place.stem, first.name)
        if not any(path.exists() for path in (place, *files(kind, place, figures))):
            return place
    raise AssertionError
