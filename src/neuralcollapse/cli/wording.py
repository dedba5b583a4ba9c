"""Errors in the words of the command that was given: options as its flags, and no flag that it does not have."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

_COMMANDS = re.compile(r"('neuralcollapse [^']*')")
_BOTH = re.compile(r"(--[a-z-]+)(?:, | \()\w+=(?:True)?(\)?)")  # "--out, out=" and "--trust-code (trust_code=True)"
_FLAG = re.compile(r"(?<![\w-])--([a-z][a-z-]+)")
_NAME = re.compile(r"(?<![\w./'\"`=-])(?<!array )([a-z]+(?:_[a-z]+)*)(?:(=)(?=\w)|(?![\w./(=]))")
_FILE = re.compile(r"\S+\.(?:yaml|yml|json): ")


def in_flags(message: str, options: Collection[str], words: Mapping[str, str] | None = None) -> str:
    """A message of the library, with the `options` of a command (names as in Python) written as its flags.

    Names of one word stay, but for `name=value`, since most are words of English too. `words` says which option of the
    command an argument of the library is. What is wrong in a file is said in the words of the file; a flag that the
    command lacks becomes the plain name, which a file of options may have. Commands in quotes stay as they are.
    """
    if _FILE.match(message):
        return message
    known = {name: name for name in options if "_" in name} | dict(words or {})

    def named(match: re.Match[str]) -> str:
        name, equals = match.groups()
        option = known.get(name) or (name if equals and name in options else None)
        return match.group() if option is None else f"--{option.replace('_', '-')}{' ' if equals else ''}"

    def flagged(match: re.Match[str]) -> str:
        name = match.group(1).replace("-", "_")
        return match.group() if name in options else name

    parts = _COMMANDS.split(message)
    for place in range(0, len(parts), 2):
        text = _BOTH.sub(lambda match: match[1] + (match[2] if "(" not in match[0] else ""), parts[place])
        parts[place] = _FLAG.sub(flagged, _NAME.sub(named, text))
    return "".join(parts)
