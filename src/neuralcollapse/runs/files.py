"""Text files of a run: JSON and YAML read as data alone, bounded in size and depth, and files written whole (no torch).

A run folder may come from anywhere, so nothing in it is run, unpickled or trusted to be small.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from neuralcollapse.errors import InputError, one_line
from neuralcollapse.extras import needed_by

_TEXT_BYTES = 64 * 2**20
_YAML_CHARACTERS = 2**18  # PyYAML reads a thousand times more slowly than json
_YAML_VALUES = 100_000  # with every alias written out: a few lines of aliases can stand for billions
_DEPTH = 64
_INTEGER_BITS = 256


def as_path(path: object, what: str) -> Path:
    """A path that a caller gave.

    Raises:
        InputError: something else, in the words for `what` it should be the path of.
    """
    if not isinstance(path, str | os.PathLike):
        raise InputError(f"expected the path of {what}, got {path!r:.80}: give a str or a pathlib.Path")
    return Path(path)


def read_text(path: Path, most: int = _TEXT_BYTES) -> str:
    """The text of a UTF-8 file of at most `most` bytes, without a byte order mark.

    Raises:
        InputError: the file is missing, larger, or not text.
    """
    try:
        with path.open("rb") as file:
            content = file.read(min(os.fstat(file.fileno()).st_size, most) + 1)  # read() allocates what it is asked
        if len(content) > most:
            raise InputError(f"cannot read {path}: expected at most {most:,} bytes, got more")
        return content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else "it is not text"
        raise InputError(f"cannot read {path}: {reason}") from None


def parse_json(text: str) -> Any:
    """The value of a JSON text, in the types of `as_builtin`.

    Raises:
        ValueError: it is not JSON, or nested too deep.
    """
    try:
        return as_builtin(json.loads(text))
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def parse_yaml(text: str) -> Any:
    """The value of a YAML text, in the types of `as_builtin`. JSON is YAML, and is read as JSON since that is faster.

    Raises:
        ValueError: it is not YAML, too long, nested too deep, or its aliases expand to too many values.
    """
    try:
        return as_builtin(json.loads(text))
    except (ValueError, RecursionError):
        pass
    with needed_by("a YAML file"):
        import yaml
    if len(text) > _YAML_CHARACTERS:
        raise ValueError(f"expected at most {_YAML_CHARACTERS:,} characters of YAML, got {len(text):,}")
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            if _expanded(node, {}) > _YAML_VALUES:
                raise ValueError(f"it has more than {_YAML_VALUES:,} values with its aliases written out")
            return as_builtin(loader.construct_document(node))
        finally:
            loader.dispose()
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except yaml.YAMLError as error:
        raise ValueError(f"it is not YAML: {' '.join(str(error).split())}"[:160]) from None
    except (TypeError, KeyError, AttributeError, IndexError, OverflowError) as error:  # of tags with wrong values
        raise ValueError(f"a value is not what its tag says ({error})"[:160]) from None


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a file: JSON if it is called .json, else YAML.

    Raises:
        InputError: the file is missing, damaged, or holds something other than a mapping.
    """
    text = read_text(path)
    try:
        values = parse_json(text) if path.suffix == ".json" else parse_yaml(text)
    except ValueError as error:
        raise InputError(f"{path} is damaged: {one_line(error)}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} is damaged: expected a mapping")
    return values


def write_atomically(path: Path, content: bytes) -> Path:
    """Write a file whole or not at all: beside its place, then moved there, so that no reader meets half of it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp lets the owner alone read its files
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return path


def write_end(file: BinaryIO, end: int, content: bytes) -> None:
    """Write a file from the offset `end` on, and to the disk; where that fails, as on a full disk, nothing changes.

    `file` is open for reading and writing without a buffer. A process that is killed meanwhile leaves a part of
    `content` there.
    """
    file.seek(end)
    before = file.read()
    file.seek(end)
    try:
        left = content
        while left:
            left = left[file.write(left) :]
        file.truncate()
        os.fsync(file.fileno())
    except BaseException:
        with suppress(OSError):
            file.truncate(end)
            file.seek(end)
            file.write(before)
        raise


def as_builtin(value: Any, depth: int = 0) -> Any:
    """The value in Python's own types: dict with text as keys, list, str, int, float, bool and None.

    An instance of a subclass becomes one of its base (`torch.__version__` is a subclass of str), a tuple or set a list,
    an array of one number that number, and anything else its text. Unpaired UTF-16 surrogates become question marks,
    since no file can hold them.

    Raises:
        ValueError: nested too deep, a key that is neither text nor a number, or an integer of more than 256 bits.
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
        return {as_builtin(str(name)): as_builtin(item, depth + 1) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [as_builtin(item, depth + 1) for item in value]
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return as_builtin(value.item(), depth + 1)
    return as_builtin(str(value))


def as_float(value: Any, *, undefined: bool = True) -> float:
    """A number from a file as a float; None stands for NaN, an undefined number.

    Raises:
        ValueError: it is not a number, infinite, or undefined although `undefined` is False.
    """
    if value is None and undefined:
        return math.nan
    if type(value) is float and math.isfinite(value):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"expected a number, got {value!r:.40}")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if math.isinf(found) or (math.isnan(found) and not undefined):
        raise ValueError(f"expected a finite number, got {found}")
    return found


def nan_to_none(value: Any) -> Any:
    """The value with None in place of each NaN or infinity, which JSON cannot express."""
    if isinstance(value, dict):
        return {name: nan_to_none(item) for name, item in value.items()}
    if isinstance(value, list):
        return [nan_to_none(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _umask() -> int:
    mask = os.umask(0)  # the mask can only be read by setting it
    os.umask(mask)
    return mask


def _expanded(node: Any, known: dict[int, int], depth: int = 0) -> int:
    """How many values a YAML node has when each alias is written out."""
    if depth > _DEPTH:
        raise ValueError("it is nested too deep")
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = _YAML_VALUES + 1  # a node met again before its end contains itself
    total = 1
    if isinstance(node.value, list):
        for child in node.value:
            for part in child if isinstance(child, tuple) else (child,):
                total += _expanded(part, known, depth + 1)
    known[id(node)] = min(total, _YAML_VALUES + 1)
    return known[id(node)]
