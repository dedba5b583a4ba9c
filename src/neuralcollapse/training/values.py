"""Values of options by their types: read from text, compared with a type, and types described in words (no torch)."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

from neuralcollapse.runs.files import parse_yaml

_TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_NOTHING = ("none", "null")  # an empty list in one word, which no shell takes for a pattern as it may take []


def read(kind: Any, text: str) -> object:
    """The value of a type, read from text on the command line or in a YAML file.

    "null" is None where an option may be left out. Lists are written `a,b`, with or without brackets, and `none` or
    `[]` when empty, mappings as JSON or YAML, truth values as true or false. Text that does not fit the type stays
    text, for `fits` to refuse.
    """
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return text if text in parts else text.replace("-", "_") if text.replace("-", "_") in parts else text
    if kind is str:
        return text
    if origin is tuple:
        return () if text.lower() in _NOTHING else tuple(read(parts[0], item) for item in _items(text))
    if kind is bool:
        return _TRUTH.get(text.lower(), text)
    try:
        if origin is dict:
            return parse_yaml(text)
        if parts:  # X | None
            return None if text == "null" else read(parts[0], text)
        return kind(text)
    except ValueError:
        return text


def _items(text: str) -> list[str]:
    """The items of a list written `a,b`, `[a, b]` or `["a", "b"]`."""
    bare = text.strip()
    if (bare[:1], bare[-1:]) in (("[", "]"), ("(", ")")):
        bare = bare[1:-1]
    return [item for item in (part.strip().strip("\"'") for part in bare.split(",")) if item]


def fits(value: object, kind: Any) -> bool:
    """Whether a value is of a type; an int is a float, and a list a tuple."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return value in parts
    if origin is tuple:
        return isinstance(value, list | tuple) and all(fits(item, parts[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(isinstance(key, str) for key in value)
    if parts:  # X | None
        return any(fits(value, part) for part in parts)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is bool) == isinstance(value, bool)


def means_nothing(value: object) -> bool:
    """Whether a value that is no list of a type, or an item of it, may stand for an empty list."""
    items = value if isinstance(value, list | tuple) else [value]
    return any(
        item is None or item is False or str(item).lower() in (*_NOTHING, "no", "off", "false") for item in items
    )


def described(kind: Any) -> str:
    """A type in words, as in "expected epochs to be of type int"."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, parts))
    if origin is tuple:
        return f"a list, each {described(parts[0])}"
    if origin is dict:
        return "a mapping of option names to values"
    if parts:
        return " or ".join(described(part) for part in parts if part is not type(None)) + ", or left out"
    return f"of type {kind.__name__}"


def choices(kind: Any) -> tuple[Any, ...]:
    """The values of a Literal, of one that may be left out, or of the items of a tuple of them; () for other types."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    parts = [part for part in get_args(kind) if get_origin(part) is Literal]
    return get_args(parts[0]) if parts else ()
