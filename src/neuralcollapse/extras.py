"""The optional packages: which extra brings each, and the hint where one is missing. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from neuralcollapse.errors import InputError

# Packages by the name that is imported. One that is not here is installed by that name.
_EXTRAS = {
    "datasets": "hub",
    "jinja2": "train",
    "lightning": "train",
    "matplotlib": "train",
    "PIL": "train",
    "sklearn": "train",
    "submitit": "cluster",
    "tensorboard": "train",
    "yaml": "train",
}


def to_install(error: ImportError) -> str:
    """`pip install ...`, with the extra that brings the package whose import failed."""
    package = (error.name or "").partition(".")[0]
    extra = _EXTRAS.get(package, "" if package else "train")
    return f"pip install 'neuralcollapse[{extra}]'" if extra else f"pip install {package}"


@contextmanager
def needed_by(what: str) -> Iterator[None]:
    """Around imports of optional packages: where one fails, an InputError that says how to install it for `what`."""
    try:
        yield
    except ImportError as error:
        raise InputError(f"{what} needs more packages ({error}): {to_install(error)}") from None
