"""MeasuringCallback: measures a Lightning run's network as it trains."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import lightning
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor, nn
from torch.nn import functional as F

from neuralcollapse.capture.collect import Capture, collect
from neuralcollapse.checks import check_count
from neuralcollapse.loops.recorder import HeadDecay, check_weights, record_of
from neuralcollapse.runs.records import Record


class MeasuringCallback(lightning.Callback):
    """Measures collapse before training, every few epochs, and after the last.

    Args:
        loader: the un-augmented training set, as (images, labels) batches.
        test_loader: adds loss and accuracy on the test set to the record.
        classifier: dotted name of the last layer within the LightningModule.
        every: epochs between measurements, or a function that says of an epoch whether it is measured.
        layers: dotted names of inner layers to measure too.
        head_decay: the weight decay of training, or (weight, feature, bias) decays; when given, each record compares
            the last layer with the exact optimum of the unconstrained feature model (see `ufm.certify_head`).
        loss: of logits (N, K) and labels (N,), their mean loss; cross-entropy when not given.
        sharded: in each process the loaders give its own share of the samples (see `neuralcollapse.measure`).
        progress: show a bar while measuring (on a terminal only).
        on_record: called with each record and the capture behind it.

    The measures also go to the module's logger, as "collapse/nc1" and so on. `records` holds them all.
    """

    source = "eval"

    def __init__(
        self,
        loader: Iterable[Any],
        test_loader: Iterable[Any] | None = None,
        classifier: str | nn.Module | None = None,
        every: int | Callable[[int], bool] = 1,
        layers: Sequence[str] = (),
        head_decay: HeadDecay | None = None,
        *,
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        sharded: bool = False,
        progress: bool = False,
        on_record: Callable[[Record, Capture], None] | None = None,
    ) -> None:
        self.loader = loader
        self.test_loader = test_loader
        self.classifier = classifier
        self.every = every if callable(every) else check_count(every, "every", 1)
        self.layers = layers
        self.head_decay = head_decay
        self.loss = loss
        self.sharded = sharded
        self.progress = progress
        self.on_record = on_record
        self.records: list[Record] = []
        self._seconds = 0.0  # of the runs that this one goes on from
        self._started = self._rate = math.nan
        self._measured_epoch: int | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Measure the network as training begins (not when a run is resumed)."""
        self._started = time.perf_counter()
        self._rate = _learning_rate(trainer)
        if self._measured_epoch is None:
            self._measure(pl_module, trainer.current_epoch)

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Note the learning rate: by the end of the epoch the schedule has moved on."""
        self._rate = _learning_rate(trainer)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Measure, when this epoch's turn has come."""
        if self._turn(trainer):
            self._log(pl_module, self._measure(pl_module, trainer.current_epoch + 1))

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Measure the end, when training stopped between two measurements."""
        if self._measured_epoch not in (None, trainer.current_epoch):
            self._measure(pl_module, trainer.current_epoch)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to know."""
        return {"seconds": self.seconds, "measured_epoch": self._measured_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self._seconds, self._measured_epoch = state_dict["seconds"], state_dict["measured_epoch"]

    @property
    def seconds(self) -> float:
        """Seconds of training so far, those of the runs that this one goes on from included."""
        running = 0.0 if math.isnan(self._started) else time.perf_counter() - self._started
        return self._seconds + running

    def _turn(self, trainer: lightning.Trainer) -> bool:
        """Whether the network is measured at the end of this epoch."""
        epoch = trainer.current_epoch + 1
        turn = self.every(epoch) if callable(self.every) else epoch % self.every == 0
        return turn or epoch == trainer.max_epochs

    def _log(self, module: lightning.LightningModule, record: Record, **options: Any) -> None:
        module.log_dict(numbers(record), **options)

    def _measure(self, module: lightning.LightningModule, epoch: int) -> Record:
        check_weights(module, epoch)
        if self.sharded:
            for buffer in module.buffers():  # those of batch normalisation differ between processes
                torch.distributed.broadcast(buffer, 0)
        capture = self._capture(module)
        record = record_of(
            capture,
            epoch,
            test=self._test(module),
            seconds=self.seconds,
            learning_rate=self._rate,
            head_decay=self.head_decay,
            source=self.source,
        )
        self._measured_epoch = epoch
        self.records.append(record)
        if self.on_record is not None:
            self.on_record(record, capture)
        return record

    def _capture(self, module: lightning.LightningModule) -> Capture:
        return collect(
            module,
            self.loader,
            self.classifier,
            layers=self.layers,
            loss=self.loss,
            sharded=self.sharded,
            progress=self.progress,
        )

    def _test(self, module: lightning.LightningModule) -> dict[str, float]:
        if self.test_loader is None:
            return {}
        test = collect(
            module,
            self.test_loader,
            self.classifier,
            nc4=False,
            loss=self.loss,
            sharded=self.sharded,
            progress=self.progress,
        )
        return {"loss": test.loss, "accuracy": test.accuracy}


def numbers(record: Record) -> dict[str, float]:
    """What loggers get of a record."""
    return {**record.flat(), "epochs": float(record.epoch), "learning_rate": record.learning_rate}


def is_primary() -> bool:
    """Whether this is the process that writes and prints: the first of those that train together."""
    return int(getattr(rank_zero_only, "rank", None) or 0) == 0


def _learning_rate(trainer: lightning.Trainer) -> float:
    return float(trainer.optimizers[0].param_groups[0]["lr"]) if trainer.optimizers else math.nan
