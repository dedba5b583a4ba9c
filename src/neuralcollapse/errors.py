"""The errors and hints that users see. Importing this file loads nothing heavy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class InputError(ValueError):
    """Wrong input from the user. The message is one line: expected, got, what to do."""


class NumberedError(InputError):
    """Wrong input in a batch that the message names by its number."""


class Undefined(InputError):
    """A measure that has no value for this input, such as an angle of a zero vector. The message is the reason."""


class NeuralCollapseWarning(UserWarning):
    """Something was measured, but not in the way that a user may assume."""


class RenamedWarning(FutureWarning):
    """A name of an earlier version was used: it still works in this one, and the message gives the name it has now."""


def listed(names: Sequence[object], most: int = 8) -> str:
    """`a, b, c`; beyond `most` names an ellipsis and their number."""
    shown = ", ".join(str(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown}, ... ({len(names)} in all)"


def one_line(error: BaseException, most: int = 200) -> str:
    """The message of another library's error in one line of at most `most` characters; its type if that is empty."""
    said = " ".join(str(error).split()) or type(error).__name__
    return said if len(said) <= most else f"{said[: most - 3].rstrip()}..."


def nearest(name: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """The known name most like `name`, or an empty text when none is close (`difflib`'s ratio below the cutoff).

    Capitals make no difference, nor whether words are joined by hyphens, underscores or spaces.
    """
    plain = {_plain(each): each for each in known}
    close = difflib.get_close_matches(_plain(name), list(plain), n=1, cutoff=cutoff)
    return plain[close[0]] if close else ""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The hint ` (did you mean 'x'?)`, or an empty text when no known name is close."""
    close = nearest(name, known)
    return f" (did you mean {close!r}?)" if close else ""


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").replace(" ", "-")
