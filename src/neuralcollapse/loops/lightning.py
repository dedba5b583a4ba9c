"""CollapseCallback: collapse in any Lightning training, with loggers, a run folder and its page."""

from __future__ import annotations

import functools
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from neuralcollapse.capture.collect import Capture
from neuralcollapse.errors import InputError
from neuralcollapse.loops.measuring import MeasuringCallback, numbers
from neuralcollapse.loops.options import check_loader, check_names, check_values, options_of
from neuralcollapse.loops.processes import Prepared, in_order, same_buffers
from neuralcollapse.loops.recorder import HeadDecay, Recorder
from neuralcollapse.report.write import write_page
from neuralcollapse.runs.records import Record

# Trainers of the package's other name take callbacks of that name alone.
_OTHER = tuple(filter(None, [getattr(sys.modules.get("pytorch_lightning"), "Callback", None)]))
_SPLIT = ("FSDP", "DeepSpeed", "ModelParallel")  # strategies that split the weights


class CollapseCallback(MeasuringCallback, *_OTHER):  # type: ignore[misc]
    """Measures collapse before training, every few epochs, and after the last, of any LightningModule.

    Three lines in a script: the import, and

        callback = nc.CollapseCallback(classifier="model.fc", out="runs/mine")
        trainer = lightning.Trainer(..., callbacks=[callback])

    The module's `forward` gets a batch's inputs: the first of (inputs, labels), or what a dict holds beside its
    labels, by keyword. A batch goes through the precision plugin and the module's (or data module's) transfer hooks
    first, as in validation; a module of another precision (`bf16-true`, `64-true`) is measured in that precision, one
    under mixed precision in that of its weights. Every logger of the trainer gets every measurement, as "collapse/nc1"
    and so on. Training itself goes as it would without. A fit that goes on from a checkpoint (`ckpt_path`) goes on in
    its run folder.

    Args:
        loader: the un-augmented training set; when not given, the trainer's own training data in order, of a data set
            that can only be iterated as many batches as the trainer takes. Give one if those are augmented: the paper
            measures images as they are.
        test_loader: adds loss and accuracy on the test set; when not given, the validation data, if the trainer has
            one loader of them. False for none.
        classifier: dotted name of the last layer within the LightningModule, or the layer itself; found when not
            given.
        every: epochs between measurements, or a function that says of an epoch whether it is measured.
        layers: dotted names of inner layers to measure too.
        head_decay: as for `neuralcollapse.Recorder`.
        out: the run folder, with report.html written anew after every measurement; without it there is none.
        force: overwrite an earlier run in `out`.
        loss: of logits (N, K) and labels (N,), their mean loss.
        sharded: in each of several processes the loaders given here give its own share of the samples; without it
            they are split, each sample for one process, and must be DataLoaders.
        progress: show a bar while measuring (on a terminal only).
        on_record: called with each record and the capture behind it.
        options: as for `neuralcollapse.Recorder` (nc4, pairwise, ignore_index, config, class_names, ...).

    Attributes:
        records: of all measurements, in order.

    Raises:
        InputError: an option that does not exist, or a value of the wrong kind. As training begins: `out` is in use,
            data that cannot be split or can be iterated only once, no layer of that name, a `forward` that takes other
            things. Later: training that diverged.
    """

    def __init__(
        self,
        loader: Iterable[Any] | None = None,
        test_loader: Iterable[Any] | Literal[False] | None = None,
        classifier: str | nn.Module | None = None,
        every: int | Callable[[int], bool] = 1,
        layers: Sequence[str] = (),
        head_decay: HeadDecay | None = None,
        *,
        out: str | Path | None = None,
        force: bool = False,
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        sharded: bool = False,
        progress: bool = False,
        on_record: Callable[[Record, Capture], None] | None = None,
        **options: Any,
    ) -> None:
        known = options_of(CollapseCallback, Recorder)
        check_names(options, known, "CollapseCallback", ("resume", "unit", "writes"))
        given: dict[str, Any] = {"layers": layers, "head_decay": head_decay, "out": out, "force": force, "loss": loss}
        given |= {"classifier": classifier, "sharded": sharded, "progress": progress, "on_record": on_record}
        check_values(given | options)
        self.wants_test = test_loader is not False
        super().__init__(
            () if loader is None else check_loader(loader),
            check_loader(test_loader, "test_loader") if self.wants_test and test_loader is not None else None,
            classifier,
            every,
            layers,
            head_decay,
            loss=loss,
            sharded=sharded,
            progress=progress,
            on_record=on_record,
        )
        self.given = loader
        self.out = None if out is None else Path(out)
        self.force = force
        self.options = options
        self.recorder: Recorder | None = None

    @property
    def state_key(self) -> str:
        """The name of the callback's state in checkpoints: two of them may measure into different folders."""
        return self._generate_state_key(out=self.out and self.out.name)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Find the data, take up or begin the run folder, and measure the network as training begins."""
        self.recorder = self._recorder(trainer, pl_module)
        self.records = self.recorder.records
        super().on_train_start(trainer, pl_module)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Measure the end, when training stopped between two measurements, and let others write in the run folder."""
        super().on_train_end(trainer, pl_module)
        if self.recorder is not None and self.recorder.folder is not None:
            self.recorder.folder.unlock()

    def _recorder(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> Recorder:
        strategy = type(trainer.strategy).__name__
        if strategy.startswith(_SPLIT):
            raise InputError(f"expected each process to hold all weights, got {strategy}: train with strategy='ddp'")
        train, test = self._loaders(trainer)
        recorder = Recorder(
            _prepared(train, trainer, module),
            None if test is None else _prepared(test, trainer, module),
            self.classifier,
            out=None if getattr(trainer, "fast_dev_run", False) else self.out,
            force=self.force,
            resume=self._measured_epoch is not None,
            head_decay=self.head_decay,
            writes=trainer.is_global_zero,
            on_record=self.on_record,
            config={**_settings(trainer, module), **(self.options.get("config") or {})},
            layers=self.layers,
            loss=self.loss,
            sharded=trainer.world_size > 1,
            progress=self.progress and trainer.is_global_zero,
            **{name: value for name, value in self.options.items() if name != "config"},
        )
        if self._measured_epoch is not None:
            recorder.resume(self._measured_epoch)
        return recorder

    def _loaders(self, trainer: lightning.Trainer) -> tuple[Any, Any]:
        """The data to measure on: the share of this process."""
        place = (trainer.global_rank, trainer.world_size)
        asis = self.sharded or trainer.world_size == 1
        if self.given is None:
            train = _own(trainer.train_dataloader, trainer, trainer.num_training_batches)
        else:
            train = self.loader if asis else in_order(self.given, *place)
        if self.test_loader is not None:
            return train, self.test_loader if asis else in_order(self.test_loader, *place)
        found: Any = trainer.val_dataloaders if self.wants_test else None
        if isinstance(found, Sequence) and len(found) == 1:
            found = found[0]
        batches = next(iter(trainer.num_val_batches), math.inf)
        return train, _own(found, trainer, batches) if hasattr(found, "dataset") else None

    def _measure(self, module: lightning.LightningModule, epoch: int) -> Record:
        trainer, recorder = module.trainer, self.recorder
        assert recorder is not None
        try:
            with same_buffers(module, trainer.world_size), _validating(trainer, module):
                record = recorder.measure(module, epoch, learning_rate=self._rate)
        except (TypeError, NotImplementedError) as error:
            raise InputError(
                f"expected {type(module).__name__}.forward to take a batch's inputs alone and run them through "
                f"{self.classifier or 'its last layer'}, got {type(error).__name__} ({error}): define it so, or give a "
                "loader of (inputs, labels) that fit"
            ) from error
        self._measured_epoch, self.records = epoch, recorder.records
        for logger in trainer.loggers:
            logger.log_metrics(numbers(record), step=trainer.global_step)
        if recorder.folder is not None:
            write_page(recorder.folder)
        return record

    def _log(self, module: lightning.LightningModule, record: Record, **options: Any) -> None:
        super()._log(module, record, logger=False, **options)  # for other callbacks; the loggers have it


def _own(loader: Any, trainer: lightning.Trainer, batches: float) -> Iterable[Any]:
    """The trainer's own data, in order; of a stream, which may have no end, as many batches as the trainer takes."""
    several = isinstance(loader, Sequence | Mapping)  # Lightning's way to say: a batch of each
    if several or not isinstance(loader, DataLoader):
        if several or trainer.world_size > 1:
            return in_order(loader)  # which says what was expected
        stream = check_loader(loader, "the trainer's data")
    else:
        check_loader(loader, "the trainer's data")
        stream = in_order(loader, trainer.global_rank, trainer.world_size)
        if not isinstance(loader.dataset, IterableDataset):
            return stream
    return stream if math.isinf(batches) else Prepared(stream, lambda batch: batch, int(batches))


def _prepared(loader: Iterable[Any], trainer: lightning.Trainer, module: Any) -> Prepared:
    """The batches of a loader as Lightning hands them to a step: converted, moved, and through the user's hooks."""

    @torch.no_grad()
    def prepare(batch: Any) -> Any:
        batch = trainer.precision_plugin.convert_input(batch)
        batch = module._on_before_batch_transfer(batch, dataloader_idx=0)
        return trainer.strategy.batch_to_device(batch, dataloader_idx=0)

    return Prepared(loader, prepare)


@contextmanager
def _validating(trainer: lightning.Trainer, module: Any) -> Iterator[None]:
    """Inside, hooks that augment in training see validation, and `forward` has the precision plugin's context.

    That of mixed precision but for its autocast: what is measured are the weights, and those are in full precision.
    """
    stage, modes = trainer.state.stage, [(part, part.training) for part in module.modules()]
    compiled, own = getattr(module, "_compiler_ctx", None), module.__dict__.get("forward")
    forward = compiled["original_forward"] if compiled else module.forward  # a compiled one may skip hooks

    @functools.wraps(forward)
    def in_precision(*args: Any, **kwargs: Any) -> Any:
        with trainer.precision_plugin.forward_context(), torch.autocast(module.device.type, enabled=False):
            return forward(*args, **kwargs)

    trainer.validating = True
    module.eval()
    module.forward = in_precision
    try:
        yield
    finally:
        trainer.state.stage = stage
        for part, training in modes:
            part.training = training
        del module.forward
        if own is not None:
            module.forward = own


def _settings(trainer: lightning.Trainer, module: lightning.LightningModule) -> dict[str, Any]:
    """What the page shows about the training."""
    optimizer = trainer.optimizers[0] if trainer.optimizers else None
    settings = {
        "optimizer": type(optimizer).__name__ if optimizer else None,
        "learning_rate": optimizer.param_groups[0]["lr"] if optimizer else None,
        "weight_decay": optimizer.param_groups[0].get("weight_decay") if optimizer else None,
        "batch_size": getattr(trainer.train_dataloader, "batch_size", None),
        "epochs": trainer.max_epochs,
        "precision": trainer.precision,
        "seed": os.environ.get("PL_GLOBAL_SEED"),
    }
    plain = {name: value for name, value in module.hparams.items() if isinstance(value, str | int | float)}
    return {name: value for name, value in (settings | plain).items() if value is not None}
