"""What is asked of a Recorder at a measurement, checked before the processes that share it begin."""

from __future__ import annotations

from numbers import Real
from typing import Any

from torch import nn

from neuralcollapse.capture.arguments import check_model
from neuralcollapse.checks import check_count
from neuralcollapse.errors import InputError

_ALIKE = (
    "unit",
    "head_decay",
    "decays",
    "loss_name",
    "pairwise",
    "test_measures",
    "stop_on",
    "patience",
    "stop_mode",
    "min_delta",
    "inside",
)


def asked(recorder: Any, model: nn.Module, epoch: int, learning_rate: float) -> dict[str, object]:
    """What all processes that measure together must say alike.

    Raises:
        InputError: no network, or an epoch or a learning rate that is no number.
    """
    check_model(model)
    if not isinstance(learning_rate, Real):
        raise InputError(f"expected learning_rate as a number, got {learning_rate!r}: give one, or leave it out")
    return {
        "epoch": check_count(epoch, "epoch", 0),
        "test_loader": recorder.test_loader is not None,
        "online": recorder.online is not None,
        "sharded": recorder.options.get("sharded"),
        **{name: getattr(recorder, name) for name in _ALIKE},
    }
