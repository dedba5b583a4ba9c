"""OnlineFeatures: what the training steps see of the features, as a source of records without a pass of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning
import torch
from torch import nn

from neuralcollapse.capture.arguments import find_classifier
from neuralcollapse.capture.collect import Capture
from neuralcollapse.capture.processes import merged, summed
from neuralcollapse.capture.sums import exact, least_feature
from neuralcollapse.errors import InputError
from neuralcollapse.geometry.moments import ClassMoments
from neuralcollapse.geometry.packed import state_device
from neuralcollapse.heads.linear import head_tensors
from neuralcollapse.training.step import Classification
from neuralcollapse.training.trainer import is_primary


class OnlineFeatures(lightning.Callback):
    """Adds up the features of each epoch's steps, and is called for the capture of them (`Recorder(online=...)`).

    Cheap, but not what a pass in eval mode measures: the weights move during the epoch, the images may be augmented,
    batch normalisation and dropout are in training mode. There is no record of epoch 0, and no NC4 of the
    training set; the test set, in eval mode, is compared with the class means of the steps.

    `sharded`: several processes train, and each adds up its own share.
    """

    def __init__(self, *, sharded: bool = False) -> None:
        self.sharded = sharded
        self._epoch = 0
        self._begin()

    def _begin(self) -> None:
        self._moments: ClassMoments | None = None
        self._least: torch.Tensor | None = None
        self._signed_before = False
        self._totals: torch.Tensor | None = None  # correct predictions and losses; as tensors, so that no step waits

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the features of the step."""
        assert isinstance(pl_module, Classification)
        assert pl_module.seen is not None
        (features, logits), labels = pl_module.seen, batch[1]
        if self._moments is None:
            self._moments = ClassMoments.zeros(logits.shape[1], features.shape[1], features.device)
        elif self._moments.device != state_device(features.device):  # after a resume
            self._moments = ClassMoments.restored(self._moments.snapshot(), state_device(features.device))
        self._epoch = trainer.current_epoch + 1
        with self._diverging():
            self._moments.update(features, labels)
        self._least = least_feature(features, self._least)
        correct, loss = (logits.argmax(1) == labels).sum(), pl_module.loss(logits.float(), labels) * len(labels)
        totals = torch.stack([exact(correct), exact(loss)])
        self._totals = totals if self._totals is None else self._totals.to(totals.device) + totals

    @contextmanager
    def _diverging(self) -> Iterator[None]:
        """Inside, features that are not finite are said to come from the training."""
        try:
            yield
        except InputError as error:
            where = f"epoch {self._epoch}"
            raise InputError(f"training diverged in {where} ({error}): lower the learning rate") from None

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Begin the next epoch's sums; so this callback goes after the one that measures."""
        self._begin()

    def __call__(self, model: nn.Module) -> Capture:
        """The capture of the epoch so far, over all processes: all of them must call this."""
        assert isinstance(model, Classification)
        weight, bias = head_tensors(find_classifier(model, model.classifier, None)[0].module)
        own = self._moments or ClassMoments.zeros(weight.shape[0], weight.shape[1], weight.device)
        with self._diverging():
            moments, (correct, loss, signed) = self._joined(own)
        count = moments.num_samples
        return Capture(moments, weight, bias, correct / count, loss / count, nonnegative=not signed)

    def state_dict(self) -> dict[str, Any]:
        """The sums of an epoch that is not over, over all processes: all of them must call this.

        Those of one process go on bit for bit.
        """
        sums, totals = None, [0.0, 0.0, 0.0]
        if self._moments is not None and self.sharded:
            moments, totals = self._joined(self._moments)
            sums = moments.snapshot()
        elif self._moments is not None:
            totals, sums = self._own_totals(), self._moments.snapshot()
        return {"sums": sums, "correct": totals[0], "loss": totals[1], "nonnegative": not totals[2]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a `state_dict`; the sums of all processes are the first one's now, the others begin with none."""
        if state_dict["sums"] is not None and is_primary():
            self._totals = torch.tensor([state_dict["correct"], state_dict["loss"]], dtype=torch.float64)
            sums = state_dict["sums"]  # version 0.1.0 kept the arguments of ClassMoments
            self._moments = ClassMoments.restored(sums) if isinstance(sums, dict) else ClassMoments(*sums)
            self._signed_before = not state_dict.get("nonnegative", False)  # version 0.1.0 did not keep it

    def _joined(self, moments: ClassMoments) -> tuple[ClassMoments, list[float]]:
        totals = self._own_totals()
        moments.num_samples  # noqa: B018 - raises for a batch that was wrong
        return (merged(moments), summed(moments.packed.device, *totals)) if self.sharded else (moments, totals)

    def _own_totals(self) -> list[float]:
        """Correct predictions and losses so far, and whether a feature was below 0."""
        signed = self._signed_before or (self._least is not None and bool(self._least < 0))
        return [*([0.0, 0.0] if self._totals is None else self._totals.tolist()), float(signed)]
