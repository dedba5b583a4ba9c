"""The command line: parse, call, print. Heavy modules load when a command needs them."""

from __future__ import annotations

import argparse
import atexit
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from typing import Any, NoReturn

from neuralcollapse.cli import landscape, measure, ood, report, reproduce, train
from neuralcollapse.cli.parser import Parser, UsageError, hyphenated
from neuralcollapse.cli.wording import in_flags
from neuralcollapse.errors import InputError, NeuralCollapseWarning, RenamedWarning
from neuralcollapse.runs.renamed import with_new_flags

_EXAMPLES = """\
examples:
  neuralcollapse train                                      digits, an MLP, half a minute, a page
  neuralcollapse train --frame simplex --feature-dim 10     the same with a classifier fixed to a simplex ETF
  neuralcollapse measure features.npz                       arrays features, labels [, weight, bias]
  neuralcollapse measure runs/digits-mlp-learned            the checkpoints of a run
  neuralcollapse measure --network timm:resnet18 --checkpoints 'ckpts/*' --data imagefolder:pets
  neuralcollapse ood runs/digits-mlp-learned --outside mnist
  neuralcollapse report runs/digits-mlp-learned             make the page again
  neuralcollapse landscape --samples 30,10,5,2              solve and draw an unconstrained feature model
  neuralcollapse reproduce                                  the paper's experiments, each by name
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 2 for wrong input, 130 when interrupted."""
    warnings.showwarning = _show_warning
    arguments = sys.argv[1:] if argv is None else argv
    try:
        options = parse(arguments)
        if options.run is None:
            _parser().print_help()
            return 0
        code: int = options.run(options)
        return code
    except InputError as error:
        said = str(error) if isinstance(error, UsageError) else _in_words(str(error), arguments)
        print(f"neuralcollapse: error: {said}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("neuralcollapse: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def script() -> NoReturn:
    """What the command `neuralcollapse` is: `main`, and the end of its process."""
    codes: list[int] = []
    atexit.register(_end_at_once, codes)  # the first to be registered is the last to be called
    codes.append(main())
    sys.exit(codes[0])


def _end_at_once(codes: Sequence[int]) -> None:
    """End where processes have talked, before Python takes itself apart.

    A thread of gloo that lets go of its last tensor meanwhile would abort the process: torch issue 190489.
    """
    distributed = sys.modules.get("torch.distributed")
    if codes and distributed is not None and distributed.is_available() and distributed.is_initialized():
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):  # the reader has gone
                stream.flush()
        os._exit(codes[0])


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of a command line; `run` is the function of its command, or None without one."""
    arguments = hyphenated(arguments)
    if arguments:
        arguments = [arguments[0], *with_new_flags(arguments[1:], arguments[0])]
    options: argparse.Namespace = _parser().parse_args(arguments)
    return options


def _parser() -> Parser:
    parser = Parser(prog="neuralcollapse", description="Measure, prove and use neural collapse.", epilog=_EXAMPLES)
    parser.add_argument("--version", action="version", version=f"neuralcollapse {version('neuralcollapse')}")
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=Parser)
    for command in (train, measure, ood, landscape, reproduce, report):
        command.add(commands)
    parser.commands = commands.choices
    for each in commands.choices.values():
        each.commands = commands.choices
    return parser


def _in_words(message: str, arguments: Sequence[str]) -> str:
    """An error in the words of the command that was given."""
    command = _parser().commands.get(arguments[0]) if arguments else None
    return message if command is None else in_flags(message, command.options, command.get_default("words"))


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if issubclass(category, NeuralCollapseWarning):
        print(f"neuralcollapse: warning: {message}", file=sys.stderr)
    elif issubclass(category, RenamedWarning):
        print(f"neuralcollapse: note: {message}", file=sys.stderr)
