"""`neuralcollapse train`: options from TrainConfig, a run or one taken up again, its page."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_origin

from neuralcollapse.cli.printing import needs_train, print_head, print_json, print_layers, print_table, spelled
from neuralcollapse.errors import InputError
from neuralcollapse.runs.folder import RunFolder
from neuralcollapse.training.config import TrainConfig, check_names, check_value, types


def run(arguments: list[str]) -> int:
    """The command; its options come from TrainConfig, by jsonargparse."""
    try:
        import jsonargparse
        import yaml  # noqa: F401  jsonargparse reads config files with it

        from neuralcollapse.report.single import write_page
        from neuralcollapse.training.resume import Stopped
        from neuralcollapse.training.run import resume, train
        from neuralcollapse.training.run_config import needs_trust, read_config
        from neuralcollapse.training.trainer import is_primary
    except ImportError as error:
        raise needs_train(error) from None
    parser = jsonargparse.ArgumentParser(
        prog="neuralcollapse train",
        description="Train a network, measure collapse as it goes, write a run folder and its page.",
        epilog="examples: neuralcollapse train --epochs 100 --classifier etf --feature_dim 10 --out runs/etf; "
        "neuralcollapse train --data fashion-mnist --network resnet18 --stem small --optimizer adam; "
        "neuralcollapse train --resume runs/etf",
        usage="neuralcollapse train [--config FILE] [--out RUN] [--force] [--json] [--resume RUN] [--trust_code] "
        "[--OPTION VALUE ...]",
        exit_on_error=False,
    )
    parser.add_argument("--config", action="config", help="a YAML file with any of the options below")
    parser.add_argument("--out", type=str | None, help="the run folder (runs/DATA-NETWORK-CLASSIFIER)")
    parser.add_argument("--force", action="store_true", help="overwrite an earlier run in that folder")
    parser.add_argument("--resume", type=str | None, metavar="RUN", help="go on with a run that was stopped")
    parser.add_argument(
        "--trust_code",
        action="store_true",
        help="import the code that the configuration in a run folder names, as in network: my_module:function",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_class_arguments(TrainConfig)
    arguments = [_listed(spelled(argument, "-", "_")) for argument in _joined(arguments)]
    parsed = _parse(parser, arguments)
    options = {name: parsed[name] for name in types()}
    if parsed.resume:
        if parsed.out or parsed.force:
            raise InputError("--resume goes on in the run's own folder: leave out --out and --force")
        out = Path(parsed.resume)
        files: list[Path] = []
        given = parser.parse_args(arguments, defaults=False)
        changes = {name: given[name] for name in types() if name in given}
    else:
        config = TrainConfig(**options)
        files = [Path(str(file)) for file in parsed.config or ()]
        if not parsed.trust_code and not any(argument.startswith("--network=") for argument in arguments):
            _check_trusted(needs_trust(config), files)
        out = Path(parsed.out or f"runs/{file_name(config.data)}-{file_name(config.network)}-{config.classifier}")

    try:
        if parsed.resume:
            folder = resume(out, changes, trust_code=parsed.trust_code)
        else:
            # a run's own configuration may be given for the run that takes its place, which writes it anew
            own = (out / "config.yaml").resolve()
            needed = [file for file in files if file.resolve() != own and file.resolve().is_relative_to(out.resolve())]
            also: dict[str, Any] = {"given": needed} if needed else {}
            folder = train(config, out, force=parsed.force, **also)
    except Stopped as stopped:
        if is_primary():
            trust = " --trust-code" if needs_trust(read_config(RunFolder(out))) else ""
            print(f"neuralcollapse: {stopped}; to go on: neuralcollapse train --resume {out}{trust}", file=sys.stderr)
        return 128 + stopped.signum
    except KeyboardInterrupt as interrupt:
        if interrupt.args or not (out / "config.yaml").is_file():
            raise
        print(f"neuralcollapse: interrupted; to go on: neuralcollapse train --resume {out}", file=sys.stderr)
        return 130
    if not is_primary():
        return 0
    page = write_page(folder)
    last = folder.records()[-1]
    values: dict[str, Any] = {"epoch": last.epoch, "train": last.train, "test": last.test, "measures": last.measures}
    if last.head:
        values["head"] = last.head
    if last.layers:
        values["layers"] = last.layers
    if parsed.json:
        print_json({"run": str(folder.path), "page": str(page), **values})
        return 0
    how = "on the training set" if last.source == "eval" else "from the training steps of the last epoch"
    print(f"collapse after {last.epoch} epochs, {how} (all but NC bias go to 0)\n")
    print_table(last.measures)
    print_head({"head": last.head} if last.head else {})
    print_layers(last.layers)
    test = f"   test accuracy {last.test['accuracy']:.4f}" if last.test else ""
    print(f"\ntrain accuracy {last.train['accuracy']:.4f}{test}")
    print(f"run   {folder.path}\npage  {page}")
    if options["classifier"] == "learned" and not parsed.resume:
        print(
            "next  open the page; or fix the classifier: add --classifier etf --feature_dim K, K the number of classes"
        )
    else:
        print("next  open the page; or compare with another classifier, loss or optimiser: neuralcollapse train --help")
    return 0


def _check_trusted(code: str | None, files: Sequence[Path]) -> None:
    """Raise where a configuration that asks for code is that of a run folder.

    Raises:
        InputError: it is.
    """
    for file in files:
        if code is not None and any((file.parent / name).exists() for name in ("records.jsonl", "environment.json")):
            raise InputError(
                f"{file} asks to {code}, and a run folder is data: if you trust it, allow that with --trust-code"
            )


def file_name(text: str) -> str:
    """What can stand in a file's name of a data set or network: the last part of a path or dotted name."""
    return re.sub(r"[^\w.-]+", "-", re.split(r"[/\\]", text.rstrip("/\\"))[-1]) or "run"


def _joined(arguments: list[str]) -> list[str]:
    """Each option and its value joined by "=" where jsonargparse needs help: lists (--layers a,b, or a b) and flags."""
    joined: list[str] = []
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        kind = types().get(argument.removeprefix("--").replace("-", "_")) if argument.startswith("--") else None
        following: list[str] = []
        while (
            waiting
            and not waiting[0].startswith("--")
            and (get_origin(kind) is tuple or (kind is bool and not following))
        ):
            following.append(waiting.pop(0))
        if kind is bool:
            argument += f"={following[0] if following else 'true'}"
        elif following:
            argument += f"={','.join(following)}"
        joined.append(argument)
    return joined


def _listed(argument: str) -> str:
    """A list written a,b as jsonargparse reads one: [a,b]."""
    name, equals, value = argument.partition("=")
    kind = types().get(name.removeprefix("--"))
    if not equals or get_origin(kind) is not tuple or value.startswith(("[", "(")):
        return argument
    return f"{name}=[{value}]"


def _parse(parser: Any, arguments: list[str]) -> Any:
    """Parse with jsonargparse; its errors in one line, unknown options with the nearest known."""
    known = {name.lstrip("-") for action in parser._actions for name in action.option_strings}
    for argument in arguments:
        name = re.split(r"[=.+]", argument[2:])[0]
        if argument.startswith("--") and name not in known:
            check_names({name: None}, "train")
    try:
        return parser.parse_args(arguments)
    except Exception as error:  # jsonargparse raises argparse's, its own and its YAML reader's
        unknown = re.search(r"Option '(\w+)' is not accepted", str(error))
        if unknown:
            check_names({unknown[1]: None}, "train --config")
        wrong = re.search(r'key "(\w+)".*(?:Got|Given) value: (.*)', str(error), re.DOTALL)
        if wrong and wrong[1] in types():
            check_value(wrong[1], wrong[2].strip().splitlines()[0])
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise InputError(f"train: {' '.join(lines)[:300]}; see 'neuralcollapse train --help'") from None
