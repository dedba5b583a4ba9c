"""The training step: cross-entropy, SGD with momentum, a stepped learning rate."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neuralcollapse.training.config import TrainConfig


class Classification(lightning.LightningModule):
    """A network with the loss and the optimiser that a TrainConfig describes."""

    def __init__(self, network: nn.Module, config: TrainConfig) -> None:
        super().__init__()
        self.network = network
        self.config = config

    def forward(self, images: Tensor) -> Tensor:
        """The network's logits."""
        return self.network(images)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """The mean cross-entropy of a batch."""
        images, labels = batch
        return F.cross_entropy(self(images), labels)

    def configure_optimizers(self) -> Any:
        """SGD with coupled weight decay on every parameter."""
        config = self.config
        optimizer = torch.optim.SGD(
            [parameter for parameter in self.network.parameters() if parameter.requires_grad],
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, config.decay_every, config.decay_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}
