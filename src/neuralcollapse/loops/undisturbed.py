"""What measuring leaves as it was: the random states, and autocast."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from neuralcollapse.geometry.precision import without_autocast


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Without autocast inside; afterwards random numbers are drawn as if nothing had been measured."""
    first = next(model.parameters(), None)
    device = torch.device("cpu") if first is None else first.device
    with random_states(device), without_autocast(device):
        yield


@contextmanager
def random_states(device: torch.device | None = None) -> Iterator[None]:
    """Afterwards the random states of torch (on the CPU and on `device`), numpy and Python are as before."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002  the states that a data set's transforms may use
    try:
        with torch.random.fork_rng([device] if device is not None and device.type == "cuda" else []):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
