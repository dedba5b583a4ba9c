"""The Lightning callbacks of a run: the schedule of each epoch, kept weights, the state to resume from, progress."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import lightning
import torch
from tqdm import tqdm

from neuralcollapse.data.batches import Batches
from neuralcollapse.heads.split import whole
from neuralcollapse.runs.events import event_lines
from neuralcollapse.runs.folder import RunFolder
from neuralcollapse.runs.records import Record
from neuralcollapse.runs.tensors import write_tensors
from neuralcollapse.training.config import TrainConfig
from neuralcollapse.training.optimizers import set_epoch
from neuralcollapse.training.parts import without_parts, write_parts
from neuralcollapse.training.resume import State, Stopped, StopSignal, origin_of
from neuralcollapse.training.step import Classification

_BAR_SECONDS = 0.2
_LINE_SECONDS = 30.0


class EpochSchedule(lightning.Callback):
    """Sets what depends on the epoch: the order of the samples, learning rate, decays. Goes before other callbacks."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Set them."""
        assert isinstance(pl_module, Classification)
        self.batches.set_epoch(trainer.current_epoch)
        set_epoch(trainer.optimizers[0], pl_module.decay_groups(), pl_module.config, trainer.current_epoch)


class SaveWeights(lightning.Callback):
    """Keeps the network's weights every few epochs and at the end."""

    def __init__(self, run: RunFolder, config: TrainConfig) -> None:
        self.run = run
        self.config = config

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Write them, if this epoch is one to be kept."""
        epoch = trainer.current_epoch + 1
        last = epoch == self.config.epochs or trainer.should_stop
        if epoch % self.config.checkpoint_every == 0 or last:
            own = {}
            for name, tensor in pl_module.network.state_dict().items():
                value = whole(tensor)  # in all processes: it may gather the parts of one
                if trainer.is_global_zero:
                    own[name] = value.cpu().contiguous().clone()
            if trainer.is_global_zero:
                write_tensors(self.run.checkpoint(epoch), own)


class SaveState(lightning.Callback):
    """Writes the state at ends of epochs, and when a signal came, which ends the training. Goes after the others.

    `measuring` gives the states of the callbacks that measure; it is called in all processes.
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
        last = epoch == trainer.max_epochs or trainer.should_stop
        if not last:
            self._end_if_asked(trainer, pl_module, epoch, 0)
        due = last or time.monotonic() - self._written >= self.config.save_seconds
        if trainer.strategy.reduce_boolean_decision(due, all=False):  # writing needs all processes: clocks differ
            self._write(trainer, pl_module, epoch, 0)

    def _end_if_asked(self, trainer: lightning.Trainer, module: Any, epoch: int, step: int) -> None:
        signum = self.stop.signum or 0
        if trainer.world_size > 1 and trainer.strategy.reduce_boolean_decision(signum > 0, all=False):
            # of several signals that which asks for most: SIGTERM (15) before SIGUSR1 (10) before SIGINT (2)
            signums = torch.tensor(float(signum), device=trainer.strategy.root_device)
            signum = int(trainer.strategy.reduce(signums, reduce_op="max"))
        if signum:
            self._write(trainer, module, epoch, step)
            raise Stopped(signum, epoch, step)

    def _write(self, trainer: lightning.Trainer, module: Any, epoch: int, step: int) -> None:
        measured = self.measuring()  # in all processes: it may join their sums
        network, optimizer = module.network, trainer.optimizers[0]
        split = self.config.strategy == "fsdp2"
        parts = write_parts(self.run, network, optimizer) if split else {}
        if trainer.is_global_zero:
            State(
                epoch,
                step,
                trainer.global_step,
                {} if split else network.state_dict(),
                without_parts(optimizer.state_dict()),
                trainer.precision_plugin.state_dict(),
                measured,
                origin_of(self.config),
                trainer.world_size,
                parts,
            ).write(self.run.state)
            self.run.keep_parts(parts.get("folder"))
        self._written = time.monotonic()


class Progress(lightning.Callback):
    """Counts epochs, and steps within them, on stderr.

    Off a terminal a line comes at every tenth of the epochs and, where epochs are long, every half minute.
    """

    def __init__(self, epochs: int, steps: int, show: bool) -> None:
        self.epochs = epochs
        self.steps = steps
        self.visible = show
        self.bar = tqdm(
            total=epochs,
            unit="epoch",
            disable=None if show else True,
            leave=False,
            bar_format="{percentage:3.0f}%|{bar:20}| epoch {n:.2f}/{total} [{elapsed}<{remaining}] {postfix}",
        )
        self._text = ""
        self._last = time.monotonic()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar, if it is time."""
        wait = _LINE_SECONDS if self.bar.disable else _BAR_SECONDS
        if not self.visible or time.monotonic() - self._last < wait:
            return
        done = trainer.current_epoch + (pl_module.step + 1) / self.steps
        if self.bar.disable:
            self._line(f"epoch {done:.2f}/{self.epochs}  ({self._text})")
        else:
            self.bar.update(done - self.bar.n)
            self._last = time.monotonic()

    def show(self, record: Record) -> None:
        """Say what was measured."""
        text = f"accuracy {record.train['accuracy']:.4f}  NC1 {record.measures['nc1']:.2e}"
        if record.head:
            text += f"  head {record.head['ratio']:.3f} x minimum"
        self._text = f"at epoch {record.epoch}: {text}"
        if not self.bar.disable:
            self.bar.set_postfix_str(self._text, refresh=False)
            self.bar.update(record.epoch - self.bar.n)
        elif self.visible and record.epoch % max(1, self.epochs // 10) == 0:
            self._line(f"epoch {record.epoch:>4}/{self.epochs}  {text}")
        for sentence in event_lines(record, "epoch"):
            self.say(sentence)

    def say(self, text: str) -> None:
        """A line on stderr, above the bar where there is one."""
        if self.visible:
            tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        """Clear the bar."""
        self.bar.close()

    def _line(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)
        self._last = time.monotonic()
