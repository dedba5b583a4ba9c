"""OnlineCollapse: measures from the features of the training steps, without a pass of its own."""

from __future__ import annotations

from typing import Any

import lightning
import torch

from neuralcollapse.capture.arguments import find_classifier
from neuralcollapse.capture.collect import Capture
from neuralcollapse.capture.processes import merged, summed
from neuralcollapse.errors import InputError
from neuralcollapse.geometry.moments import ClassMoments
from neuralcollapse.heads.linear import head_tensors
from neuralcollapse.loops.measuring import MeasuringCallback, is_primary
from neuralcollapse.training.step import Classification


class OnlineCollapse(MeasuringCallback):
    """`MeasuringCallback` that adds up the features as they pass, of a `Classification` that keeps them.

    Cheap, but another thing: the weights move while the epoch is measured, the images may be augmented, batch
    normalisation and dropout are in training mode. Records say source="online"; there is none of epoch 0, and no NC4.
    """

    source = "online"
    _moments: ClassMoments | None = None
    _correct = 0.0
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
        assert isinstance(pl_module, Classification)
        assert pl_module.seen is not None
        (features, logits), labels = pl_module.seen, batch[1]
        if self._moments is None:
            self._moments = ClassMoments.zeros(logits.shape[1], features.shape[1], features.device)
        try:
            self._moments.update(features, labels)
        except InputError as error:
            where = f"epoch {trainer.current_epoch + 1}"
            raise InputError(f"training diverged in {where} ({error}): lower the learning rate") from None
        self._correct += int((logits.argmax(1) == labels).sum())
        self._loss += float(self.loss(logits.float(), labels)) * len(labels)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Measure, when this epoch's turn has come, and begin anew."""
        super().on_train_epoch_end(trainer, pl_module)
        self._moments, self._correct, self._loss = None, 0.0, 0.0

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Nothing: each epoch's record was made at its end."""

    def state_dict(self) -> dict[str, Any]:
        """With the sums of an epoch that is not over, over all processes: all of them must call this."""
        sums, totals = None, [0.0, 0.0]
        if self._moments is not None:
            moments, totals = self._joined(self._moments)
            sums = (moments.packed, moments.num_classes, moments.feature_dim)
        return {**super().state_dict(), "sums": sums, "correct": totals[0], "loss": totals[1]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        super().load_state_dict(state_dict)
        if state_dict["sums"] is not None and is_primary():  # the others go on from nothing
            self._correct, self._loss = state_dict["correct"], state_dict["loss"]
            self._moments = ClassMoments(*state_dict["sums"])

    def _capture(self, module: lightning.LightningModule) -> Capture:
        weight, bias = head_tensors(find_classifier(module, self.classifier, None)[0].module)
        own = self._moments or ClassMoments.zeros(weight.shape[0], weight.shape[1], weight.device)
        moments, (correct, loss) = self._joined(own)
        return Capture(moments, weight, bias, correct / moments.num_samples, loss / moments.num_samples)

    def _joined(self, moments: ClassMoments) -> tuple[ClassMoments, list[float]]:
        """The sums of all processes."""
        if not self.sharded:
            return moments, [self._correct, self._loss]
        return merged(moments), summed(moments.packed.device, self._correct, self._loss)
