"""`neuralcollapse reproduce`: list the paper's experiments, run one, go on with one, write its page."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from neuralcollapse.cli.printing import print_json, train_packages

SMOKE = "a smoke run tests the machinery on something tiny and proves nothing of the claim: --scale laptop does"


def add(commands: Any) -> None:
    """Add the command and its options."""
    parser = commands.add_parser(
        "reproduce",
        help="the paper's experiments, each by name, at smoke, laptop or paper scale",
        description="Run an experiment of the paper as a set of runs and write its page: the figures, the table, the "
        "claim, and whether the numbers support it. After a stop, give the same command again: runs that are complete "
        "are not repeated. Without a name: the list of experiments.",
        epilog="examples:\n  neuralcollapse reproduce\n"
        "  neuralcollapse reproduce landscape                          a minute, needs no data\n"
        "  neuralcollapse reproduce optimizers --scale smoke           whether it runs here\n"
        "  neuralcollapse reproduce fixed-etf --data fashion-mnist:FOLDER\n"
        "  neuralcollapse reproduce losses --show > mine.yaml       to change it; then: reproduce mine.yaml\n",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="an experiment, or a YAML file of your own")
    parser.add_argument("--scale", default="laptop", metavar="SCALE", help="smoke (seconds), laptop, or paper (a GPU)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where the runs go (runs/NAME-SCALE)")
    parser.add_argument("--data", metavar="DATA", help="another data set in every run, as for 'train --data'")
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="runs side by side, each in a process of its own; they share the GPU, or the threads (default: 1)",
    )
    parser.add_argument("--show", action="store_true", help="print the experiment's YAML and stop")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """The command."""
    with train_packages():
        import yaml  # noqa: F401  the experiments are YAML

        from neuralcollapse.reproduce.experiment import text_of
    if options.name is None:
        return _list(options.json)
    if options.show:
        print(text_of(options.name), end="")
        return 0
    with train_packages(format="html"):
        from neuralcollapse.checks import check_count
        from neuralcollapse.report.page import save_text
        from neuralcollapse.reproduce.experiment import slug
        from neuralcollapse.reproduce.page import experiment_page
        from neuralcollapse.reproduce.runner import ExperimentFolder
        from neuralcollapse.training.resume import Stopped

    check_count(options.jobs, "--jobs", 1)
    out = options.out or Path("runs") / f"{slug(Path(options.name).stem)}-{options.scale}"
    changes = {"data": options.data} if options.data else {}
    folder = ExperimentFolder.create(options.name, options.scale, out, changes)
    experiment = folder.experiment
    count, waiting = len(experiment.runs), len(folder.missing())
    needs = f"needs {experiment.needs}; about {_minutes(experiment.minutes)} in all"
    done = f", {count - waiting} of them whole" if waiting < count else ""
    print(f"{experiment.name}, {experiment.scale}: {count} runs{done}; {needs}", file=sys.stderr, flush=True)
    if experiment.scale == "smoke":
        print(SMOKE, file=sys.stderr, flush=True)
    again = f"to go on: give the same command again ({count} runs in {out})"
    try:
        folder.run(
            progress=True,
            on_message=lambda text: print(f"... {text}", file=sys.stderr, flush=True),
            jobs=options.jobs,
        )
    except Stopped as stopped:
        print(f"neuralcollapse: {stopped}; {again}", file=sys.stderr)
        return 128 + stopped.signum
    except KeyboardInterrupt:
        print(f"neuralcollapse: interrupted; {again}", file=sys.stderr)
        return 130
    page = experiment_page(folder)
    place = save_text(page.html(), out / "report.html")
    assert page.claim is not None
    findings = page.claim.findings
    if options.json:
        print_json(
            {
                "experiment": experiment.name,
                "scale": experiment.scale,
                "folder": str(out),
                "page": str(place),
                "verdict": page.claim.word,
                "findings": [
                    {"statement": statement, "holds": holds, "detail": detail, "why": why}
                    for holds, statement, detail, why in findings
                ],
            }
        )
        return 0
    print(f"\n{experiment.title}\n  {experiment.claim}\n")
    for holds, statement, detail, _ in findings:
        mark = {True: "holds   ", False: "does not", None: "untested"}[holds]
        print(f"  {mark}  {statement}\n            {detail}")
    print(f"\n{page.verdict}\npage  {place}\nnext  ", end="")
    if experiment.scale == "smoke":
        print(f"the machinery works; to test the claim: neuralcollapse reproduce {options.name}")
    else:
        print(f"open it in a browser; figures for a paper: neuralcollapse report {out} --format pdf")
    return 0


def _list(as_json: bool) -> int:
    """Every experiment, with what each scale needs and how long it takes."""
    from neuralcollapse.reproduce.experiment import SCALES, find_experiment, names

    found = {name: [find_experiment(name, scale) for scale in SCALES] for name in names()}
    if as_json:
        print_json(
            [
                {
                    "name": name,
                    "title": scales[0].title,
                    "claim": scales[0].claim,
                    "scales": {
                        one.scale: {"runs": len(one.runs), "minutes": one.minutes, "needs": one.needs} for one in scales
                    },
                }
                for name, scales in found.items()
            ]
        )
        return 0
    for name, scales in found.items():
        print(f"{name}  {scales[0].title}")
        for one in scales:
            size = f"{len(one.runs)} run{'s' if len(one.runs) > 1 else ''}, {_minutes(one.minutes)}"
            print(f"    {one.scale:<7} {size:<20} {one.needs}")
    print("\nTimes of smoke and laptop: measured on one CPU thread; of paper: estimates for one GPU, not run yet.")
    print("A smoke run tests the machinery and proves nothing of the claim.")
    print("next  neuralcollapse reproduce landscape")
    return 0


def _minutes(minutes: float) -> str:
    if minutes < 1:
        return f"{60 * minutes:.0f} s"
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.0f} h"
