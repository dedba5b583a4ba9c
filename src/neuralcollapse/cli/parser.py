"""The parser of all commands, and the options that are made from the fields of TrainConfig."""

from __future__ import annotations

import argparse
import json
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NoReturn, get_args, get_origin

from neuralcollapse.errors import InputError, did_you_mean
from neuralcollapse.runs.files import read_mapping
from neuralcollapse.runs.other_tools import needless, option_meant, plain
from neuralcollapse.runs.renamed import with_new_names
from neuralcollapse.training.config import TrainConfig, check_names, check_value, descriptions, types
from neuralcollapse.training.values import read

_NUMBERS = {"int": "whole number", "float": "number"}
_INVALID = re.compile(rf"^argument (\S+): invalid ({'|'.join(_NUMBERS)}) value: (.*)$")  # argparse's words
_METAVARS = {int: "N", float: "X", str: "TEXT", bool: "true|false"}


class UsageError(InputError):
    """A command line that cannot be read: its message is in the words of the command line already."""


class Parser(argparse.ArgumentParser):
    """argparse's, with errors of one line, which name the option or the command that is meant.

    `commands` are the parsers of all commands by name, so that an option of another command is known as such.
    """

    commands: Mapping[str, Parser] = MappingProxyType({})

    def __init__(self, **options: Any) -> None:
        options["description"] = textwrap.fill(options["description"], 80)  # the formatter leaves it, and the examples
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        """Raise argparse's complaint, in the words of the other errors."""
        message = _INVALID.sub(lambda match: f"expected {match[1]} as a {_NUMBERS[match[2]]}, got {match[3]}", message)
        message = re.sub(r"^argument (\S+): expected ", r"after \1 expected ", message)
        raise UsageError(f"{message}; see '{self.prog} --help'")

    @property
    def command(self) -> str:
        """The name of the command."""
        return self.prog.rpartition(" ")[2]

    @property
    def options(self) -> list[str]:
        """The names of its options, as in Python."""
        flags = [flag for action in self._actions for flag in action.option_strings]  # argparse lists them nowhere else
        return [plain(flag) for flag in flags if flag.startswith("--")]

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse; what nobody knows is an error here, where the options of the command are known."""
        options, unknown = super().parse_known_args(args, namespace)
        flag = next((word for word in unknown if word.startswith("-")), "").partition("=")[0]
        if flag:
            self.error(f"{self.command}: no option {flag!r}{self._hint(flag)}")
        if unknown:
            self.error(f"{self.command}: expected options, got {unknown[0]!r}{self._flag_for(unknown[0])}")
        return options, unknown

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Argparse's check of choices, whose message lists them differently in each version of Python."""
        if action.choices is not None and value not in action.choices:
            what = "a command" if action.dest == argparse.SUPPRESS else "/".join(action.option_strings) or action.dest
            known = [str(choice) for choice in action.choices]
            self.error(
                f"expected {what} to be one of {', '.join(known)}, got {value!r}{did_you_mean(str(value), known)}"
            )

    def _hint(self, flag: str) -> str:
        """What is surely meant by a flag that does not exist: an option here, or in another command; or nothing.

        Words of other tools are those of training: only `train` is asked for them when they are none of this command.
        """
        if found := option_meant(flag, [name for name in self.options if name != "help"]):
            return f" (did you mean {flag_of(found)!r}?)"
        if self.command == "train" and (why := needless(flag)):
            return f" ({why})"
        others = {command: each.options for command, each in self.commands.items() if each is not self}
        trained = option_meant(flag, others.get("train", ()))
        if trained in types() and self.command == "reproduce":
            return f" (the experiment sets {flag_of(trained)} of its runs: change it in the YAML of --show)"
        owner = next((command for command, options in others.items() if plain(flag) in options), "")
        if owner:
            return f" ({flag_of(plain(flag))} is an option of {owner!r})"
        return f" ('train' has {flag_of(trained)})" if trained else ""

    def _flag_for(self, word: str) -> str:
        """How a word that stands alone could be meant, by the options of the command."""
        known = self.options
        if word.endswith((".yaml", ".yml")) and "config" in known:
            return f": a file of options is named by --config {word}"
        if Path(word, "config.yaml").is_file() and "resume" in known:
            return f": to go on with a run, --resume {word}"
        return f": data are named by --data {word}" if "data" in known else ""


def flag_of(name: str) -> str:
    """An option's name on the command line."""
    return "--" + name.replace("_", "-")


def hyphenated(arguments: Sequence[str]) -> list[str]:
    """The words of a command line with hyphens in the names of flags, so that `--feature_dim` works too.

    An entry of a mapping, `--network-options.hidden_size 64`, becomes `--network-options=.hidden_size=64`.
    """
    result: list[str] = []
    entry = False
    for argument in arguments:
        if entry and not argument.startswith("--"):
            result[-1] += f"={argument}"
            entry = False
            continue
        entry = False
        if argument.startswith("--"):
            name, rest = re.fullmatch(r"(--[^.=]*)(.*)", argument, re.DOTALL).groups()  # type: ignore[union-attr]
            entry = rest.startswith(".") and "=" not in rest
            argument = name.replace("_", "-") + (f"={rest}" if rest.startswith(".") else rest)
        result.append(argument)
    return result


def add_options(group: Any, names: Iterable[str], *, defaults: bool = True) -> None:
    """Add options for fields of TrainConfig, whose values come in `namespace.values`; the help says the `defaults`."""
    for name in names:
        kind = types()[name]
        shape: dict[str, Any] = {"metavar": _metavar(kind)}
        if kind is bool:
            shape |= {"nargs": "?", "const": "true"}
        elif get_origin(kind) is tuple:
            shape |= {"nargs": "+"}
        flag = flag_of(name)
        default = getattr(TrainConfig, name, ())
        shown = f" (default: {_shown(default)})" if defaults and default is not None else ""
        text = f"{descriptions().get(name, '').removesuffix('.')}{shown}".replace("%", "%%")
        group.add_argument(flag, dest="values", action=_Option, help=text, **shape)


def _shown(value: Any) -> str:
    """A default as it would be given."""
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    return value if isinstance(value, str) else json.dumps(value)


def _metavar(kind: Any) -> str:
    if get_origin(kind) is tuple:
        return "N" if get_args(kind)[0] is int else "NAME"
    if get_origin(kind) is Literal:
        return "{" + ",".join(map(str, get_args(kind))) + "}"
    if get_origin(kind) is dict:
        return "JSON"
    return _METAVARS.get(kind) or _metavar(get_args(kind)[0])  # of X | None


class _Option(argparse.Action):
    """Puts an option of TrainConfig into `namespace.values`, read and checked."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        name = self.option_strings[0].removeprefix("--").replace("-", "_")
        text = ",".join(values) if isinstance(values, list) else values
        known = dict(namespace.values or {})
        sources = dict(namespace.sources or {})
        kind = types()[name]
        if get_origin(kind) is dict and text.startswith("."):
            key, equals, word = text[1:].partition("=")
            if not key or not equals:
                flag = f"{self.option_strings[0]}.NAME VALUE"
                raise InputError(f"expected {flag}, got {self.option_strings[0]}{text}")
            value: object = {**known.get(name, {}), key: read(kind, word)}  # the other entries are still the file's
        else:
            value = read(kind, text)
            sources.pop(name, None)
        check_value(name, value)
        namespace.values, namespace.sources = {**known, name: value}, sources


class ConfigFile(argparse.Action):
    """Reads `--config FILE ...` into `namespace.values`; flags that follow win over it, and it wins over those before.

    `namespace.sources` keeps which file a value came from.
    """

    own = ("force", "json", "resume", "trust_code")
    """Options of the command line only. Version 0.1.0 wrote them into the files that it printed, switched off."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Read the files."""
        for file in values:
            found = read_mapping(Path(file))
            for name in self.own:
                if found.pop(name, None):
                    raise InputError(
                        f"{file}: {name} is for the command line, not for a file: give --{name.replace('_', '-')}"
                    )
            out = found.pop("out", None)
            if out is not None and (not isinstance(out, str) or not out):
                raise InputError(f"{file}: expected out to be the path of a folder, got {out!r}")
            namespace.out = out or namespace.out
            try:
                found = with_new_names({str(name).replace("-", "_"): value for name, value in found.items()}, "train")
                check_names(found, "the file")
                for name, value in found.items():
                    kind = types()[name]
                    if value is None and get_origin(kind) in (tuple, dict):
                        value = () if get_origin(kind) is tuple else {}
                    found[name] = read(kind, value) if isinstance(value, str) else value  # 5e-4 is text in YAML
                    check_value(name, found[name])
            except InputError as error:
                raise InputError(f"{file}: {error}") from None
            namespace.values = {**(namespace.values or {}), **found}
            namespace.sources = {**(namespace.sources or {}), **dict.fromkeys(found, Path(file))}
            namespace.config = [*(namespace.config or ()), Path(file)]
