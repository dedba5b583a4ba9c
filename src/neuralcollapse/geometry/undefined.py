"""What has no value: raised inside a measure, NaN and a warning outside."""

from __future__ import annotations

import functools
import inspect
import math
import warnings
from collections.abc import Callable

from neuralcollapse.errors import NeuralCollapseWarning


class Undefined(Exception):
    """Raised inside a measure that has no value here; becomes NaN and a warning."""


def nan_when_undefined(measure: Callable[..., float]) -> Callable[..., float]:
    """The measure, with NaN and a warning where it raises `Undefined`."""

    @functools.wraps(measure)
    def guarded(*args: object, **options: object) -> float:
        try:
            return measure(*args, **options)
        except Undefined as reason:
            warnings.warn(f"{measure.__name__} is undefined (NaN): {reason}", NeuralCollapseWarning, stacklevel=2)
            return math.nan

    return guarded


def unguarded(measure: Callable[..., float], *args: object) -> float:
    """A measure without its guard: raises `Undefined` where the public function warns."""
    return inspect.unwrap(measure)(*args)
