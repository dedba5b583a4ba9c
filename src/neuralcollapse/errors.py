"""The errors and hints that users see; imports nothing heavy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class InputError(ValueError):
    """Wrong input from the user. The message is one line: expected, got, what to do."""


class NeuralCollapseWarning(UserWarning):
    """Something was measured, but not in the way that the user may assume."""


class RenamedWarning(FutureWarning):
    """A name of an earlier version was used: it still works in this one, and the message gives the name it has now."""


def listed(names: Sequence[object], most: int = 8) -> str:
    """`a, b, c` with an ellipsis and a count after `most` names."""
    shown = ", ".join(str(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown}, ... ({len(names)} in all)"


def one_line(error: BaseException, most: int = 200) -> str:
    """What another library's error says, in one line of at most so many characters; its type where it says nothing."""
    said = " ".join(str(error).split()) or type(error).__name__
    return said if len(said) <= most else f"{said[: most - 3].rstrip()}..."


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint ` (did you mean 'x'?)`, or nothing when no known name is near."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
