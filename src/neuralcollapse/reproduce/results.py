"""Results: what an experiment found, from which its checks, figures and tables are made (no torch)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from neuralcollapse.runs.reading import Run

COSTS = ("parameters", "weights", "gradients", "optimizer_state", "peak", "step_seconds")


@dataclass(frozen=True)
class Results:
    """What an experiment found.

    Attributes:
        runs: trained networks, with records.
        surveys: of landscapes (`surveys.facts`).
        costs: of training steps: each a mapping with "labels" and the numbers of `training.cost.Cost`.
    """

    runs: Sequence[Run] = ()
    surveys: Sequence[Mapping[str, Any]] = ()
    costs: Sequence[Mapping[str, Any]] = ()
