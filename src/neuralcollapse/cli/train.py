"""`neuralcollapse train`: a run from options and YAML files, or one that is resumed, and its page."""

from __future__ import annotations

import argparse
import json
import math
import re
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from itertools import takewhile
from pathlib import Path
from typing import Any

from neuralcollapse.cli.parser import ConfigFile, add_options
from neuralcollapse.cli.printing import (
    print_accuracies,
    print_events,
    print_json,
    print_measures,
    train_packages,
    unfitted,
)
from neuralcollapse.errors import InputError
from neuralcollapse.runs.files import as_builtin
from neuralcollapse.runs.folder import RunFolder
from neuralcollapse.runs.records import Record, goal, number
from neuralcollapse.training.config import TrainConfig

_SECTIONS = {
    "data": "data",
    "network": "network",
    "loss": "optimisation",
    "measure_every": "what is measured and kept",
    "accelerator": "hardware",
    "seed": "random numbers",
}
"""Sections of the help by the option that each begins with."""


def add(commands: Any) -> None:
    """Add the command and its options."""
    parser = commands.add_parser(
        "train",
        help="train a network, measure collapse as it goes, write a run folder and its page",
        description="Train a network, measure collapse as it goes, write a run folder and its page. Every option can "
        "also stand in a YAML file: --print-config prints one.",
        epilog="examples:\n"
        "  neuralcollapse train --epochs 100 --frame simplex --feature-dim 10 --out runs/simplex\n"
        "  neuralcollapse train --data fashion-mnist --network resnet18 --stem small --optimizer adam\n"
        "  neuralcollapse train --print-config > run.yaml\n"
        "  neuralcollapse train --config run.yaml --seed 1\n"
        "  neuralcollapse train --resume runs/simplex\n"
        "  neuralcollapse train --config run.yaml --out runs/mine --resume      begin or go on\n",
        usage="neuralcollapse train [--config FILE ...] [--out RUN] [--force] [--json] [--resume [RUN]] [--requeue] "
        "[--trust-code] "
        "[--OPTION VALUE ...]",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        nargs="+",
        action=ConfigFile,
        metavar="FILE",
        help="YAML files with options; of an option that is given several times the last value counts",
    )
    parser.add_argument("--print-config", action="store_true", help="print the options as YAML for --config, and stop")
    parser.add_argument("--out", metavar="RUN", help="the run folder (default: runs/DATA-NETWORK-FRAME)")
    parser.add_argument("--force", action="store_true", help="overwrite an earlier run in that folder")
    parser.add_argument(
        "--resume",
        nargs="?",
        const=True,
        metavar="RUN",
        help="go on with a run that was stopped; without RUN: go on with that in the folder of --out, or begin it if "
        "there is none, so that one command does both",
    )
    parser.add_argument(
        "--requeue",
        action="store_true",
        help="with --resume: after SIGUSR1 (of SLURM's --signal=USR1@90) queue the SLURM job again",
    )
    parser.add_argument(
        "--trust-code",
        action="store_true",
        help="import the code that the configuration in a run folder names, as in network: my_module:function",
    )
    parser.add_argument("--json", action="store_true", help="print JSON: the last record, the run and the page")
    for title, names in _sections():
        add_options(parser.add_argument_group(title), names)
    parser.set_defaults(run=run, values=None, sources=None)


def _sections() -> Iterator[tuple[str, list[str]]]:
    """Title and options of each section of the help."""
    waiting = [item.name for item in fields(TrainConfig)]
    while waiting:
        first, *others = waiting
        names = [first, *takewhile(lambda name: name not in _SECTIONS, others)]
        waiting = waiting[len(names) :]
        yield _SECTIONS[first], names


def run(options: argparse.Namespace) -> int:
    """The command."""
    values: dict[str, Any] = options.values or {}
    if options.print_config:
        printed = ({"out": options.out} if options.out else {}) | as_builtin(asdict(TrainConfig(**values)))
        with train_packages():
            import yaml
        print(yaml.safe_dump(printed, sort_keys=False, allow_unicode=True), end="")
        raise SystemExit(0)  # as --help does
    with train_packages(format="html"):
        from neuralcollapse.report.single import write_page
        from neuralcollapse.training.processes import LostProcess
        from neuralcollapse.training.resume import Interrupted, Stopped
        from neuralcollapse.training.run import resume, train
        from neuralcollapse.training.run_config import needs_trust, read_config
        from neuralcollapse.training.slurm import requeue
        from neuralcollapse.training.trainer import is_primary
    for flag in ("resume", "out"):
        if getattr(options, flag) == "":
            raise InputError(f"expected the path of a run folder after --{flag}, got an empty text")
    if options.requeue and not options.resume:
        raise InputError("--requeue has the same command run again: add --resume, so that it goes on with the run")
    named = isinstance(options.resume, str)  # a run folder that is there; without one --out names it
    if named:
        if options.out or options.force:
            raise InputError(
                "--resume RUN goes on in the run's own folder: leave out --out and --force (--out RUN --resume, with "
                "no path after it, begins the run or goes on with it)"
            )
        out = Path(options.resume)
    else:
        config = TrainConfig(**values)
        if not options.trust_code:
            _check_trusted(config, needs_trust(config), options.sources or {})
        name = f"{file_name(config.data)}-{file_name(config.network)}-{config.frame.replace('_', '-')}"
        out = Path(options.out or f"runs/{name}")

    try:
        if named:
            folder = resume(out, values, trust_code=options.trust_code)
        else:
            # a run's own configuration may be given for the run that takes its place, which writes it again
            own = (out / "config.yaml").resolve()
            files = [file.resolve() for file in options.config or ()]
            given = [file for file in files if file != own]
            folder = train(config, out, force=options.force, resume=bool(options.resume), given=given)
    except Stopped as stopped:
        if is_primary():
            trust = " --trust-code" if needs_trust(read_config(RunFolder(out))) else ""
            print(f"neuralcollapse: {stopped}; to go on: neuralcollapse train --resume {out}{trust}", file=sys.stderr)
            asked = options.requeue and signal.Signals(stopped.signum).name == "SIGUSR1"
            if asked and (said := requeue()):
                print(f"neuralcollapse: {said}", file=sys.stderr)
        return 128 + stopped.signum
    except LostProcess as lost:
        print(f"neuralcollapse: {lost}; to go on: neuralcollapse train --resume {out}", file=sys.stderr)
        return 1
    except Interrupted as interrupted:
        again = f"to go on: neuralcollapse train --resume {out}"
        if not interrupted.resumable:
            again = "to begin it again: the same command"
        if is_primary():
            print(f"neuralcollapse: {interrupted}; {again}", file=sys.stderr)
        return 128 + interrupted.signum
    if not is_primary():
        return 0
    page = write_page(folder)
    records = folder.records()
    last = records[-1]
    if options.json:
        print_json({"run": str(folder.path), "page": str(page), **asdict(last)})
        return 0
    how = "on the training set" if last.source == "eval" else "from the training steps of the last epoch"
    print(f"collapse after {last.epoch} epochs, {how} ({goal(last)})\n")
    print_measures(last)
    print_accuracies(last)
    print_events(records, "epoch")
    environment = json.loads(folder.read_text("environment.json"))
    if environment.get("decay_budget") is not None:
        left = number(environment["row_sum_left"])
        budget = number(environment["decay_budget"])
        print(f"decay budget {budget}: |1'W|, the sum of the classifier's rows, ends at {left} of its start by the law")
    print(f"run   {folder.path}\npage  {page}")
    print(f"next  {next_step(read_config(folder), folder.path, last, environment.get('num_classes'))}")
    return 0


def next_step(config: TrainConfig, path: Path, last: Record, num_classes: int | None) -> str:
    """What to do after a run; collapse comes after the data are fitted, so that comes first."""
    accuracy = last.train.get("accuracy", math.nan)
    if accuracy < 1:
        more = f"neuralcollapse train --resume {path} --epochs {2 * config.epochs}"
        how = "start again with more --epochs" if config.schedule == "cosine" else f"go on: {more}"
        noise = "; wrong labels take long" if config.label_noise or config.random_labels else ""
        return f"not fitted yet ({unfitted(accuracy)}{noise}): {how}; or try another --learning-rate"
    if config.frame == "learned":
        fixed = f"--frame simplex --feature-dim {num_classes or 'K, K the number of classes,'}"
        return f"open the page; or fix the classifier: the same command with {fixed} and another --out"
    return "open the page; or compare with another frame, loss or optimiser: neuralcollapse train --help"


def _check_trusted(config: TrainConfig, code: str | None, sources: Mapping[str, Path]) -> None:
    """Raise where the file that asks for `code` (in words; None for nothing) belongs to a run folder."""
    from neuralcollapse.networks.external import untrusted_code

    if code is None:
        return
    if untrusted_code(config.network, {}) is not None:
        name = "network"
    else:
        name = "data" if untrusted_code(config.network, config.network_options) is None else "network_options"
    file = sources.get(name)
    if file is not None and any((file.parent / other).exists() for other in ("records.jsonl", "environment.json")):
        raise InputError(
            f"{file} asks to {code}, and a run folder is data: if you trust it, allow that with --trust-code"
        )


def file_name(text: str) -> str:
    """A data set's or network's name as a part of a file's name: the last part of a path or dotted name."""
    return re.sub(r"[^\w.-]+", "-", re.split(r"[/\\]", text.rstrip("/\\"))[-1]) or "run"
