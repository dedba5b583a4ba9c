"""Text of others read as plain values: bounded in size, depth and expansion, and nothing but data (no torch)."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from neuralcollapse.errors import InputError, one_line

_JSON_BYTES = 64 * 2**20
_YAML_BYTES = 2**18  # it is read a thousand times more slowly
_YAML_VALUES = 100_000  # aliases expanded
_DEPTH = 64
_INTEGER_BITS = 256


def read_text(path: Path, most: int = _JSON_BYTES) -> str:
    """The text of a file of at most so many bytes, a byte order mark left out.

    Raises:
        InputError: it is not there, no text, or larger.
    """
    try:
        with path.open("rb") as file:
            content = file.read(min(os.fstat(file.fileno()).st_size, most) + 1)  # room is made for as many as are asked
        if len(content) > most:
            raise InputError(f"cannot read {path}: expected at most {most:,} bytes, got more")
        return content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else "it is not text"
        raise InputError(f"cannot read {path}: {reason}") from None


def parse_json(text: str) -> Any:
    """The value of a JSON text, checked by `plain`.

    Raises:
        ValueError: it is no JSON, or nested too deep.
    """
    try:
        return plain(json.loads(text))
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def parse_yaml(text: str) -> Any:
    """The value of a YAML text, checked by `plain`; of JSON too, which is YAML and read faster.

    Raises:
        ValueError: it is no YAML, too large, or nested too deep, or its aliases stand for too much.
    """
    import yaml

    try:
        return plain(json.loads(text))
    except (ValueError, RecursionError):
        pass
    if len(text) > _YAML_BYTES:
        raise ValueError(f"expected at most {_YAML_BYTES:,} characters of YAML, got {len(text):,}")
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            if _expanded(node, {}) > _YAML_VALUES:
                raise ValueError(f"it has more than {_YAML_VALUES:,} values, its aliases written out")
            return plain(loader.construct_document(node))
        finally:
            loader.dispose()
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except yaml.YAMLError as error:
        raise ValueError(f"it is not YAML: {' '.join(str(error).split())}"[:160]) from None
    except (TypeError, KeyError, AttributeError, IndexError, OverflowError) as error:  # of tags with wrong values
        raise ValueError(f"a value is not what its tag says ({error})"[:160]) from None


def read_mapping(path: Path, *, yaml: bool = True) -> dict[str, Any]:
    """The mapping in a file of YAML or JSON.

    Raises:
        InputError: it is not there, damaged, or no mapping from names.
    """
    text = read_text(path)
    try:
        values = parse_yaml(text) if yaml else parse_json(text)
    except ValueError as error:
        raise InputError(f"{path} is damaged: {one_line(error)}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} is damaged: expected a mapping")
    return values


def plain(value: Any, depth: int = 0) -> Any:
    """The value in Python's own types: mappings from text, lists, text, numbers, truth values and None.

    Subclasses become what they are made from (`torch.__version__` is one of str), tuples and sets lists, arrays of one
    number that number, anything else its text; halves of UTF-16 pairs become question marks, since no file takes them.

    Raises:
        ValueError: nested too deep, a key that is no text or number, or an integer of more than 256 bits.
    """
    if depth > _DEPTH:
        raise ValueError("it is nested too deep")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.encode(value, "utf-8", "replace").decode("utf-8")
    if isinstance(value, int):
        if int(value).bit_length() > _INTEGER_BITS:
            raise ValueError(f"an integer has more than {_INTEGER_BITS} bits")
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, dict):
        if any(isinstance(name, bool) or not isinstance(name, str | int | float) for name in value):
            raise ValueError("expected names as keys")
        return {plain(str(name)): plain(item, depth + 1) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item, depth + 1) for item in value]
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return plain(value.item(), depth + 1)
    return plain(str(value))


def number(value: Any, *, undefined: bool = True) -> float:
    """A number of a file as a float; None and NaN are undefined.

    Raises:
        ValueError: it is text, a truth value or infinite, or undefined where it may not be.
    """
    if value is None and undefined:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"expected a number, got {value!r:.40}")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if math.isinf(found) or (math.isnan(found) and not undefined):
        raise ValueError(f"expected a finite number, got {found}")
    return found


def finite(value: Any) -> Any:
    """The value with None for floats that are not finite, which JSON has no words for."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _expanded(node: Any, known: dict[int, int], depth: int = 0) -> int:
    """How many values a YAML node stands for when each alias is written out."""
    if depth > _DEPTH:
        raise ValueError("it is nested too deep")
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = _YAML_VALUES + 1  # what is met again before its end holds itself
    total = 1
    if isinstance(node.value, list):
        for child in node.value:
            for part in child if isinstance(child, tuple) else (child,):
                total += _expanded(part, known, depth + 1)
    known[id(node)] = min(total, _YAML_VALUES + 1)
    return known[id(node)]
