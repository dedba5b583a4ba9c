"""CollapseCallback: measures a Lightning run's network as it trains."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import lightning
import torch

from neuralcollapse._checks import check_count
from neuralcollapse._errors import InputError
from neuralcollapse.capture import Capture, collect
from neuralcollapse.records import Record
from neuralcollapse.ufm.head import certify_head_moments


class CollapseCallback(lightning.Callback):
    """Measures collapse before training, every few epochs, and after the last.

    Args:
        loader: the un-augmented training set, as (images, labels) batches.
        test_loader: adds loss and accuracy on the test set to the record.
        classifier: dotted name of the last layer within the LightningModule.
        every: epochs between measurements.
        head_decay: the weight decay of training; when given, each record compares the last layer with the exact
            optimum of the unconstrained feature model (`neuralcollapse.ufm.certify_head`).
        on_record: called with each record and the capture behind it.

    The measures also go to the module's logger, as "collapse/nc1" and so on. `records` holds them all.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        test_loader: Iterable[Any] | None = None,
        classifier: str = "fc",
        every: int = 1,
        head_decay: float | None = None,
        on_record: Callable[[Record, Capture], None] | None = None,
    ) -> None:
        self.loader = loader
        self.test_loader = test_loader
        self.classifier = classifier
        self.every = check_count(every, "every", 1)
        self.head_decay = head_decay
        self.on_record = on_record
        self.records: list[Record] = []
        self._started = self._rate = 0.0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Measure the network as training begins (epoch 0, or the epoch that a resumed run stands at)."""
        self._started = time.perf_counter()
        self._rate = _learning_rate(trainer)
        self._measure(pl_module, trainer.current_epoch)

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Note the learning rate: by the end of the epoch the schedule has moved on."""
        self._rate = _learning_rate(trainer)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Measure, when this epoch's turn has come."""
        epoch = trainer.current_epoch + 1
        if epoch % self.every == 0 or epoch == trainer.max_epochs:
            record = self._measure(pl_module, epoch)
            pl_module.log_dict({f"collapse/{name}": value for name, value in record.measures.items()})

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Measure the end, when training stopped between two measurements."""
        if self.records and self.records[-1].epoch != trainer.current_epoch:
            self._measure(pl_module, trainer.current_epoch)

    def _measure(self, module: lightning.LightningModule, epoch: int) -> Record:
        if not all(bool(torch.isfinite(value).all()) for value in module.parameters()):
            raise InputError(f"training diverged by epoch {epoch} (weights are not finite): lower the learning rate")
        train = collect(module, self.loader, self.classifier, progress=False)
        values = train.measures()
        record = Record(
            epoch=epoch,
            seconds=time.perf_counter() - self._started,
            learning_rate=self._rate,
            train={"loss": values.pop("loss"), "accuracy": values.pop("accuracy")},
            test=self._test(module),
            measures={name: value for name, value in values.items() if name != "num_samples"},
            head={} if self.head_decay is None else head_record(train, self.head_decay),
        )
        self.records.append(record)
        if self.on_record is not None:
            self.on_record(record, train)
        return record

    def _test(self, module: lightning.LightningModule) -> dict[str, float]:
        if self.test_loader is None:
            return {}
        test = collect(module, self.test_loader, self.classifier, nc4=False, progress=False)
        return {"loss": test.loss, "accuracy": test.accuracy}


def _learning_rate(trainer: lightning.Trainer) -> float:
    return float(trainer.optimizers[0].param_groups[0]["lr"]) if trainer.optimizers else math.nan


def head_record(capture: Capture, weight_decay: float) -> dict[str, float]:
    """The head certificate of a capture, as a record keeps it."""
    return certify_head_moments(capture.moments, capture.loss, capture.weight, capture.bias, weight_decay).record()
