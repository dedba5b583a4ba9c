"""The features of a network over a loader, batch by batch, whether or not the batches have labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from neuralcollapse.capture.arguments import check_device, check_loader, check_model, find_classifier
from neuralcollapse.capture.batches import LABEL_KEYS
from neuralcollapse.capture.captured import CapturedBatch
from neuralcollapse.capture.forward import Forward
from neuralcollapse.capture.team import Team, ToldError
from neuralcollapse.errors import InputError
from neuralcollapse.heads.meshes import split_again, tensor_dims
from neuralcollapse.heads.split import whole_heads

PADDING = -100


def captured_batches(
    model: nn.Module,
    loader: Iterable[Any],
    classifier: str | nn.Module | None,
    text: str,
    *,
    ignore_index: int | None = None,
    next_token: bool = False,
    device: torch.device | str | None = None,
    progress: bool = True,
    labels: bool = True,
    team: Team | None = None,
) -> Iterator[CapturedBatch]:
    """Each batch as the head sees it: features, and logits.

    `text` is what the progress bar says. Without `labels`, batches may have none, or those of other classes, and they
    are not looked at. `team` are the processes that run the model together, where its weights are split or the batches
    are. The other arguments are as for `neuralcollapse.measure`.
    """
    model, device = check_model(model), check_device(device)
    if labels or not _are_inputs(loader):
        loader = check_loader(loader)
    head, others = find_classifier(model, classifier, None)
    ignore_index = ignore_index if labels else PADDING
    team = Team.of(model, sharded=False) if team is None else team
    passes: dict[str, Any] = {"next_token": next_token, "chosen": True, "team": team}
    error: Exception | None = None
    with torch.no_grad(), split_again(model), whole_heads([head.module], tensor_dims(model)):
        forward = Forward(model, head, others, {}, ignore_index, device, **passes)
        with forward:
            try:
                for number, batch in enumerate(
                    tqdm(loader, text, unit="batch", leave=False, disable=None if progress else True)
                ):
                    try:
                        captured = forward(batch if labels else with_labels(batch))
                    except ToldError:
                        raise
                    except InputError as wrong:
                        raise InputError(f"batch {number + 1}: {wrong}") from wrong.__cause__
                    yield captured
            except Exception as caught:
                error = caught
            team.run(partial(_end, error), forward.idle)


def _end(error: Exception | None) -> None:
    """The end of a pass, with or without an error."""
    if error is not None:
        raise error


def _are_inputs(loader: object) -> bool:
    """Whether this is a list of batches of inputs alone, which with labels would be taken for (inputs, labels)."""
    return isinstance(loader, list | tuple) and len(loader) > 0 and all(isinstance(each, Tensor) for each in loader)


def with_labels(batch: Any) -> tuple[Any, Tensor]:
    """(inputs, zeros) of a batch that may have labels or not: one zero for each sample.

    Where there is a label for each token, there is a zero for each, but for the padding (-100), which stays.
    """
    inputs, labels = batch, None
    if isinstance(batch, Mapping):
        inputs = {name: value for name, value in batch.items() if name not in LABEL_KEYS}
        labels = next((batch[name] for name in LABEL_KEYS if name in batch), None)
    elif isinstance(batch, Sequence) and not isinstance(batch, str) and len(batch) > 0:
        inputs, labels = batch[0], batch[1] if len(batch) > 1 else None
    if isinstance(labels, Tensor) and labels.dim() > 1 and not labels.is_floating_point():
        return inputs, torch.where(labels == PADDING, PADDING, 0)
    values = inputs.values() if isinstance(inputs, Mapping) else (inputs,)
    count = next((len(value) for value in values if isinstance(value, Tensor) and value.dim() > 0), None)
    if count is None:
        raise InputError(f"expected a batch of inputs as tensors, got {type(inputs).__name__}: give (inputs, labels)")
    return inputs, torch.zeros(count, dtype=torch.int64)
