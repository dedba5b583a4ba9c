"""`neuralcollapse landscape`: solve, certify and draw an unconstrained feature model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from neuralcollapse.cli.printing import print_json, train_packages
from neuralcollapse.cli.report import add_output, check_format, check_free, next_step, print_written, written_json
from neuralcollapse.errors import InputError


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
    add_output(
        parser,
        "html: landscape.html; png, svg, pdf: a folder, landscape-figures; markdown: landscape.md, with its images "
        "beside it",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """The command."""
    check_format(options.format)
    with train_packages(format=options.format):
        from neuralcollapse.report.formats import save_page
        from neuralcollapse.report.landscape import LANDSCAPE_FIGURES, ends, landscape_page, summary
    defaults = {"html": "landscape.html", "markdown": "landscape.md"}
    out: Path = options.out or Path(defaults.get(options.format, "landscape-figures"))
    check_free(options.format, out, LANDSCAPE_FIGURES, options.force)
    if not out.parent.is_dir():
        raise InputError(f"no folder {out.parent} to write {out.name} into: make it, or choose another --out")
    try:
        samples = [int(part) for part in options.samples.split(",")]
    except ValueError:
        raise InputError(f"expected --samples as a number or a list n1,n2,..., got {options.samples!r}") from None
    classes = options.classes if options.classes is not None else len(samples) if len(samples) > 1 else 4
    if options.no_bias and options.bias_decay:
        raise InputError("expected --bias-decay without --no-bias, got both: a model without bias has nothing to decay")
    if not 0 <= options.seed < 2**32:
        raise InputError(f"expected --seed from 0 to 2^32 - 1, got {options.seed}")
    if options.starts < 1:
        raise InputError(f"expected --starts of at least 1, got {options.starts}")
    from neuralcollapse.ufm.model import Model
    from neuralcollapse.ufm.solvers import check_method
    from neuralcollapse.ufm.survey import survey

    model = Model(
        classes,
        options.dim if options.dim is not None else classes + 2,
        samples[0] if len(samples) == 1 else samples,
        options.weight_decay,
        options.feature_decay,
        options.bias_decay,
        not options.no_bias,
        options.loss,
        features=options.features,
    )
    check_method(options.method, model)
    found = survey(
        model,
        starts=options.starts,
        method=options.method,
        seed=options.seed,
        on_message=lambda text: print(f"... {text}", file=sys.stderr, flush=True),
    )
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
