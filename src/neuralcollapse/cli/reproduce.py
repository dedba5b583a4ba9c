"""`neuralcollapse reproduce`: list the paper's experiments, run one, go on with one, write its page."""

from __future__ import annotations

import argparse
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuralcollapse.cli.printing import print_json, train_packages
from neuralcollapse.errors import InputError, listed

if TYPE_CHECKING:
    from neuralcollapse.reproduce.launching import Settings
    from neuralcollapse.reproduce.runner import ExperimentFolder, Launch

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
        "  neuralcollapse reproduce losses --show > mine.yaml       to change it; then: reproduce mine.yaml\n"
        "  neuralcollapse reproduce losses --part $SLURM_ARRAY_TASK_ID/8     as a job array from 1 to 8\n"
        "  neuralcollapse reproduce losses --launcher submitit --launcher-config slurm.yaml\n",
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
    parser.add_argument(
        "--part", type=_part, default=(1, 1), metavar="I/N", help="only every N-th run from the I-th, for a job array"
    )
    parser.add_argument("--only", nargs="+", default=(), metavar="RUN", help="only these runs, by their names")
    parser.add_argument(
        "--launcher", choices=("submitit",), help="run them as jobs of SLURM, or of this machine where there is none"
    )
    parser.add_argument(
        "--launcher-config",
        type=Path,
        metavar="FILE",
        help="YAML for --launcher: cluster (slurm or local), and parameters of submitit such as slurm_partition",
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
        from neuralcollapse.reproduce.experiment import find_experiment, slug
        from neuralcollapse.reproduce.finish import finish
        from neuralcollapse.reproduce.launching import read_settings
        from neuralcollapse.reproduce.page import experiment_page
        from neuralcollapse.reproduce.runner import ExperimentFolder
        from neuralcollapse.training.resume import Stopped

    check_count(options.jobs, "--jobs", 1)
    if options.launcher_config and not options.launcher:
        raise InputError("--launcher-config is for --launcher submitit: add it, or leave the file out")
    if options.launcher and options.jobs > 1:
        raise InputError(
            "--jobs is for this machine, and --launcher hands all runs over at once: leave out one of them"
        )
    out = options.out or Path("runs") / f"{slug(Path(options.name).stem)}-{options.scale}"
    changes = {"data": options.data} if options.data else {}
    names = find_experiment(options.name, options.scale, changes).chosen(options.only, options.part)
    launch_settings = read_settings(options.launcher_config)
    folder = ExperimentFolder.create(options.name, options.scale, out, changes)
    experiment = folder.experiment
    count, waiting = len(experiment.runs), len(folder.missing())
    needs = f"needs {experiment.needs}; about {_minutes(experiment.minutes)} in all"
    done = f", {count - waiting} of them whole" if waiting < count else ""
    print(f"{experiment.name}, {experiment.scale}: {count} runs{done}; {needs}", file=sys.stderr, flush=True)
    if experiment.scale == "smoke":
        print(SMOKE, file=sys.stderr, flush=True)
    if len(names) < count:
        print(f"of these: {listed(names)}", file=sys.stderr, flush=True)
    again = f"to go on: give the same command again ({count} runs in {out})"
    try:
        folder.run(names, progress=True, on_message=_say, launch=_launcher(options, folder, launch_settings))
    except Stopped as stopped:
        print(f"neuralcollapse: {stopped}; {again}", file=sys.stderr)
        return 128 + stopped.signum
    except KeyboardInterrupt as interrupt:
        print(f"neuralcollapse: interrupted; {again}", file=sys.stderr)
        return 128 + getattr(interrupt, "signum", signal.SIGINT)
    place = finish(folder, _say)
    if place is None:
        return _unfinished(folder, options.json)
    page = experiment_page(folder)
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


def _say(text: str) -> None:
    print(f"... {text}", file=sys.stderr, flush=True)


def _part(text: str) -> tuple[int, int]:
    """I/N, for argparse."""
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal()):
        raise argparse.ArgumentTypeError(f"expected I/N, such as 2/8, got {text!r}")
    return int(index), int(count)


def _launcher(options: argparse.Namespace, folder: ExperimentFolder, settings: Settings) -> Launch | None:
    """What runs several at once, with a table of how far each is; None for one after the other in this process."""
    from functools import partial

    from neuralcollapse.reproduce.jobs import side_by_side
    from neuralcollapse.reproduce.launching import launched
    from neuralcollapse.reproduce.standing import Board, Looks

    if not options.launcher and options.jobs == 1:
        return None
    board = Board()
    if options.launcher:
        look = Looks(folder, board)
        return partial(launched, folder.path, settings=settings, on_message=_say, look=look)
    # on a terminal the table stands for the lines of the runs; elsewhere, as in a log, the lines say more
    quiet = board.redraws
    return partial(
        side_by_side,
        folder.path,
        jobs=options.jobs,
        progress=not quiet,
        on_message=(lambda text: None) if quiet else _say,
        look=Looks(folder, board) if quiet else lambda failed, now: None,
    )


def _unfinished(folder: ExperimentFolder, as_json: bool) -> int:
    """What is said where other parts are still to come: how far each run is."""
    from neuralcollapse.reproduce.standing import standings, table

    missing = [run.name for run in folder.missing()]
    found = standings(folder.path, folder.experiment.runs, missing)
    if as_json:
        print_json(
            {"experiment": folder.experiment.name, "folder": str(folder.path), "runs": [asdict(one) for one in found]}
        )
        return 0
    print("\n".join(table(found)))
    print("next  the other runs: whoever ends last writes the page")
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
