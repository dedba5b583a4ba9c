"""The parser of all commands, and the options that are made from the fields of TrainConfig."""

from __future__ import annotations

import argparse
import json
import re
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

from neuralcollapse.errors import InputError, did_you_mean
from neuralcollapse.runs.files import read_mapping
from neuralcollapse.runs.renamed import with_new_names
from neuralcollapse.training.config import TrainConfig, check_names, check_value, descriptions, types
from neuralcollapse.training.values import read

_METAVARS = {int: "N", float: "X", str: "TEXT", bool: "true|false"}


class Parser(argparse.ArgumentParser):
    """argparse's, with errors of one line, which name the nearest option for one that does not exist."""

    def __init__(self, **options: Any) -> None:
        options["description"] = textwrap.fill(options["description"], 80)  # the formatter leaves it, and the examples
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        """Raise argparse's complaint."""
        raise InputError(f"{message}; see '{self.prog} --help'")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse; what nobody knows is an error here, where the options of the command are known."""
        options, unknown = super().parse_known_args(args, namespace)
        if unknown:
            flag = next((word for word in unknown if word.startswith("-")), unknown[0]).partition("=")[0]
            known = [text for action in self._actions for text in action.option_strings]  # argparse lists them nowhere
            hint = did_you_mean(flag, known) if flag.startswith("-") else ""
            self.error(f"{self.prog.rpartition(' ')[2]}: no option {flag!r}{hint}")
        return options, unknown


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
        flag = "--" + name.replace("_", "-")
        shown = f" (default: {_shown(getattr(TrainConfig, name, ()))})" if defaults else ""
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
            key, _, word = text[1:].partition("=")
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
            namespace.out = found.pop("out", None) or namespace.out
            found = with_new_names(found, "train")
            check_names(found, file)
            for name, value in found.items():
                found[name] = read(types()[name], value) if isinstance(value, str) else value  # 5e-4 is text in YAML
                try:
                    check_value(name, found[name])
                except InputError as error:
                    raise InputError(f"{file}: {error}") from None
            namespace.values = {**(namespace.values or {}), **found}
            namespace.sources = {**(namespace.sources or {}), **dict.fromkeys(found, Path(file))}
            namespace.config = [*(namespace.config or ()), Path(file)]
