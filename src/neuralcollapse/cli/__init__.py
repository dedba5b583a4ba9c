"""The command line: parse, call, print. Heavy modules load when a command needs them."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from neuralcollapse.cli import landscape, measure, report, reproduce, train
from neuralcollapse.cli.printing import spelled
from neuralcollapse.errors import InputError, NeuralCollapseWarning

_EXAMPLES = """\
examples:
  neuralcollapse train                                      digits, an MLP, half a minute, a page
  neuralcollapse train --classifier etf --feature_dim 10    the same with a fixed ETF classifier
  neuralcollapse measure features.npz                       arrays features, labels [, weight, bias]
  neuralcollapse measure runs/digits-mlp-learned            the checkpoints of a run
  neuralcollapse measure --model timm:resnet18 --checkpoints 'ckpts/*' --data imagefolder:pets
  neuralcollapse report runs/digits-mlp-learned             make the page again
  neuralcollapse landscape --samples 30,10,5,2              solve and draw an unconstrained feature model
  neuralcollapse reproduce                                  the paper's experiments, each by name
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 2 for wrong input, 130 when interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    warnings.showwarning = _show_warning
    try:
        parser = _parser()
        if arguments[:1] == ["train"]:
            return train.run(arguments[1:])
        options = parser.parse_args([spelled(argument, "_", "-") for argument in arguments])
        command: Callable[[argparse.Namespace], int] | None = getattr(options, "run", None)
        if command is None:
            parser.print_help()
            return 0
        return command(options)
    except InputError as error:
        print(f"neuralcollapse: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("neuralcollapse: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see '{self.prog} --help'")


def _parser() -> _Parser:
    parser = _Parser(
        prog="neuralcollapse",
        description="Measure, prove and use neural collapse.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    from importlib.metadata import version

    parser.add_argument("--version", action="version", version=f"neuralcollapse {version('neuralcollapse')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=_Parser)
    commands.add_parser("train", help="train a network, measure collapse as it goes, write a run folder and its page")
    for command in (measure, landscape, reproduce, report):
        command.add(commands)
    return parser


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if issubclass(category, NeuralCollapseWarning):
        print(f"neuralcollapse: warning: {message}", file=sys.stderr)
