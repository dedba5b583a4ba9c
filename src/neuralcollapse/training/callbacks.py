"""The Lightning callbacks of a run: the schedule of each epoch, the weights and the state that it keeps."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any

import lightning

from neuralcollapse.data.batches import Batches
from neuralcollapse.runs.folder import RunFolder
from neuralcollapse.runs.tensors import write_tensors
from neuralcollapse.training.config import TrainConfig
from neuralcollapse.training.optimizers import learning_rate
from neuralcollapse.training.resume import State, Stopped, StopSignal, origin_of
from neuralcollapse.training.step import Classification


class EpochSchedule(lightning.Callback):
    """Sets what depends on the epoch: the order of the samples and the learning rate. Goes before other callbacks."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Set both."""
        assert isinstance(pl_module, Classification)
        self.batches.set_epoch(trainer.current_epoch)
        rate = learning_rate(pl_module.config, trainer.current_epoch)
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = rate


class SaveWeights(lightning.Callback):
    """Keeps the network's weights every few epochs and at the end."""

    def __init__(self, run: RunFolder, config: TrainConfig) -> None:
        self.run = run
        self.config = config

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Write them, if this epoch is one to be kept."""
        epoch = trainer.current_epoch + 1
        if trainer.is_global_zero and (epoch % self.config.checkpoint_every == 0 or epoch == self.config.epochs):
            state = pl_module.network.state_dict()
            own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
            write_tensors(self.run.checkpoint(epoch), own)


class SaveState(lightning.Callback):
    """Writes the state at ends of epochs, and when a signal came, which ends the training. Goes after the others.

    Args:
        run: the run folder.
        measuring: gives the states of the callbacks that measure; it is called in all processes.
        stop: notes the signals.
        config: of the run.
    """

    def __init__(
        self, run: RunFolder, measuring: Callable[[], dict[str, Any]], stop: StopSignal, config: TrainConfig
    ) -> None:
        self.run = run
        self.measuring = measuring
        self.stop = stop
        self.config = config
        self._written = time.monotonic()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Take the signals from Lightning, which has put its own handlers there."""
        self.stop.install()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End here if a signal came to any process."""
        assert isinstance(pl_module, Classification)
        self._end_if_asked(trainer, pl_module, trainer.current_epoch, pl_module.step + 1)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write the state, if it is time, and end if a signal came while measuring."""
        epoch = trainer.current_epoch + 1
        last = epoch == trainer.max_epochs
        if not last:
            self._end_if_asked(trainer, pl_module, epoch, 0)
        if last or time.monotonic() - self._written >= self.config.save_seconds:
            self._write(trainer, pl_module, epoch, 0)

    def _end_if_asked(self, trainer: lightning.Trainer, module: Any, epoch: int, step: int) -> None:
        asked = self.stop.signum is not None
        if trainer.world_size > 1:
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        if asked:
            self._write(trainer, module, epoch, step)
            raise Stopped(self.stop.signum or signal.SIGTERM, epoch, step)

    def _write(self, trainer: lightning.Trainer, module: Any, epoch: int, step: int) -> None:
        measured = self.measuring()  # in all processes: it may join their sums
        if trainer.is_global_zero:
            State(
                epoch,
                step,
                trainer.global_step,
                module.network.state_dict(),
                trainer.optimizers[0].state_dict(),
                trainer.precision_plugin.state_dict(),
                measured,
                origin_of(self.config),
            ).write(self.run.state)
        self._written = time.monotonic()
