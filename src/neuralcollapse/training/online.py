"""OnlineCollapse: measures from the features of the training steps, without a pass of its own."""

from __future__ import annotations

from typing import Any

import lightning
import torch

from neuralcollapse._sharded import merged, summed
from neuralcollapse.capture import Capture
from neuralcollapse.metric import classifier_tensors
from neuralcollapse.moments import ClassMoments
from neuralcollapse.training.callbacks import CollapseCallback
from neuralcollapse.training.module import Classification


class OnlineCollapse(CollapseCallback):
    """`CollapseCallback` that adds up the features as they pass, of a `Classification` that keeps them.

    Cheap, but another thing: the weights move while the epoch is measured, the images may be augmented, batch
    normalisation and dropout are in training mode. Records say source="online"; there is none of epoch 0, and no NC4.
    """

    source = "online"
    _moments: ClassMoments | None = None
    _correct = 0
    _loss = 0.0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Nothing was seen yet, so nothing is measured."""
        self._measured_epoch = self._measured_epoch or 0
        super().on_train_start(trainer, pl_module)

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the features of the step."""
        if not self._turn(trainer):
            return
        assert isinstance(pl_module, Classification)
        assert pl_module.seen is not None
        (features, logits), labels = pl_module.seen, batch[1]
        if self._moments is None:
            self._moments = ClassMoments.zeros(logits.shape[1], features.shape[1], features.device)
        self._moments.update(features, labels)
        self._correct += int((logits.argmax(1) == labels).sum())
        self._loss += float(self.loss(logits.float(), labels)) * len(labels)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Nothing: each epoch's record was made at its end."""

    def state_dict(self) -> dict[str, Any]:
        """With the sums of an epoch that is not over."""
        sums = None if self._moments is None else (self._moments.packed, *self._moments.means.shape)
        return {**super().state_dict(), "sums": sums, "correct": self._correct, "loss": self._loss}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        super().load_state_dict(state_dict)
        self._correct, self._loss = state_dict["correct"], state_dict["loss"]
        if state_dict["sums"] is not None:
            self._moments = ClassMoments(*state_dict["sums"])

    def _capture(self, module: lightning.LightningModule) -> Capture:
        weight, bias = classifier_tensors(module.get_submodule(self.classifier))
        assert self._moments is not None
        moments, correct, loss = self._moments, float(self._correct), self._loss
        self._moments, self._correct, self._loss = None, 0, 0.0
        if self.sharded:
            moments = merged(moments)
            correct, loss = summed(moments.packed.device, correct, loss)
        return Capture(moments, weight, bias, correct / moments.num_samples, loss / moments.num_samples)
