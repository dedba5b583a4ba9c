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
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from neuralcollapse.checks import check_count
from neuralcollapse.errors import InputError
from neuralcollapse.heads.split import check_not_flat
from neuralcollapse.loops.expected import HeadDecay
from neuralcollapse.loops.loaders import MappedBatches, check_loader, sequential
from neuralcollapse.loops.options import check_names, check_values, options_of
from neuralcollapse.loops.recorder import Recorder
from neuralcollapse.runs.folder import RunFolder
from neuralcollapse.runs.records import Record

# Trainers of the package's other name take callbacks of that name alone.
_OTHER = tuple(filter(None, [getattr(sys.modules.get("pytorch_lightning"), "Callback", None)]))


class CollapseCallback(lightning.Callback, *_OTHER):  # type: ignore[misc]
    """Measures collapse before training, every few epochs, and after the last, of any LightningModule.

    Three lines in a script: the import, and

        callback = nc.CollapseCallback(classifier="model.fc", out="runs/mine")
        trainer = lightning.Trainer(..., callbacks=[callback])

    The module's `forward` gets a batch's inputs: the first of (inputs, labels), or what a dict holds beside its
    labels, by keyword. A batch goes through the precision plugin and the module's (or data module's) transfer hooks
    first, as in validation; a module of another precision (`bf16-true`, `64-true`) is measured in that precision, one
    under mixed precision in that of its weights. Every logger of the trainer gets every measurement, as "collapse/nc1"
    and so on; TensorBoard, W&B and MLflow get figures too. Training itself goes as it would without. A fit that goes on
    from a checkpoint (`ckpt_path`) goes on in its run folder. In a notebook `show` shows the figures while it fits.

    Args:
        loader: the un-augmented training set; when not given, the trainer's own training data in order, of a data set
            that can only be iterated as many batches as the trainer takes. Give one if those are augmented: the paper
            measures images as they are.
        test_loader: adds the test set to the records: loss, accuracy and measures; when not given, the validation data,
            if the trainer has one loader of them. False for none.
        classifier: dotted name of the last layer within the LightningModule, or the layer itself; found when not
            given.
        every: epochs between measurements, or a function that says of an epoch whether it is measured.
        out: the run folder, with report.html kept up to date; without it no folder is made. In a
            `RunFolder` of the caller's that page is there only while the training goes on for long enough.
        force: overwrite an earlier run in `out`.
        sharded: in each of several processes the loaders given here give its own share of the samples; without it
            they are split, each sample for one process, and must be DataLoaders.
        progress: show a bar while measuring (on a terminal only).
        options: as for `neuralcollapse.Recorder` (layers, head_decay, decays, loss, on_record, nc4, pairwise,
            ignore_index, config, class_names, ...). With `stop_on`, training ends when that number of the records gets
            no better for `patience` measurements, as in `CollapseCallback(stop_on="nc1", patience=5)`.

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
        out: str | Path | RunFolder | None = None,
        force: bool = False,
        sharded: bool = False,
        progress: bool = False,
        **options: Any,
    ) -> None:
        known = options_of(CollapseCallback, Recorder)
        check_names(options, known, "CollapseCallback", ("resume", "unit", "writes", "loggers"))
        options |= {"classifier": classifier, "layers": layers, "head_decay": head_decay, "force": force}
        made = isinstance(out, RunFolder)
        check_values({**options, "out": None if made else out, "sharded": sharded, "progress": progress})
        self.loader = None if loader is None else check_loader(loader)
        self.wants_test = test_loader is not False
        given = test_loader if self.wants_test else None
        self.test_loader = None if given is None else check_loader(given, "test_loader")
        self.every = every if callable(every) else check_count(every, "every", 1)
        self.out = out if out is None or isinstance(out, RunFolder) else Path(out)
        self.sharded = sharded
        self.progress = progress
        self.options = options
        self.recorder: Recorder | None = None
        self._shows = False
        self._rate = math.nan
        self._measured: int | None = None  # the last epoch that was
        self._seconds: float | None = None  # what the run had taken where this fit goes on from it

    @property
    def records(self) -> list[Record]:
        """Of all measurements, in order."""
        return self.recorder.records if self.recorder else []

    @property
    def state_key(self) -> str:
        """The name of the callback's state in checkpoints: two of them may measure into different folders."""
        place = self.out.path if isinstance(self.out, RunFolder) else self.out
        return self._generate_state_key(out=place and place.name)

    def state_dict(self) -> dict[str, Any]:
        """What a fit that goes on from here needs to know."""
        seconds = self.recorder.seconds if self.recorder else self._seconds or 0.0
        return {"seconds": seconds, "measured_epoch": self._measured}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self._seconds, self._measured = state_dict["seconds"], state_dict["measured_epoch"]

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Find the data, make or reopen the run folder, and measure the network, unless it was already."""
        self.recorder = self._recorder(trainer, pl_module)
        self._rate = _learning_rate(trainer)
        if self.recorder.online is not None:
            self._measured = self._measured or 0  # no step has shown anything yet that could be measured
        elif self._measured is None:
            self._measure(pl_module, trainer.current_epoch)
        self._stop_if_asked(trainer)  # a fit that goes on where one has stopped is over at once

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Note the learning rate: by the end of the epoch the schedule has moved on."""
        self._rate = _learning_rate(trainer)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Measure, if this epoch is one to be measured."""
        epoch = trainer.current_epoch + 1
        wanted = self.every(epoch) if callable(self.every) else epoch % self.every == 0
        if wanted or epoch == trainer.max_epochs:
            record = self._measure(pl_module, epoch)
            self._stop_if_asked(trainer)
            # for other callbacks; the loggers have it already. Equal in all processes, which Lightning cannot know
            pl_module.log_dict(_numbers(record), logger=False, sync_dist=trainer.world_size > 1)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Measure the end, if training stopped between two measurements, and let others write in the run folder."""
        if self._measured not in (None, trainer.current_epoch):
            self._measure(pl_module, trainer.current_epoch)
        assert self.recorder is not None
        self.recorder.views.flush()
        self._close(finished=True)

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Leave no page that says that the run goes on."""
        if self.recorder is not None:
            self._close(finished=False)

    def show(self) -> None:
        """Show the figures in this cell of a notebook, and keep them up to date while the trainer fits."""
        self._shows = True
        if self.recorder is not None:
            self.recorder.show()

    def _close(self, *, finished: bool) -> None:
        """Write the last page, and let others write in the run folder, unless it is the caller's."""
        assert self.recorder is not None
        own = self.recorder.folder is not None and self.recorder.folder is not self.out
        if not finished:
            self.recorder.views.abandon()
        elif own:
            self.recorder.finish()
        else:
            self.recorder.views.settle()
        if own and finished and self.recorder.folder is not None:
            self.recorder.folder.unlock()

    def _stop_if_asked(self, trainer: lightning.Trainer) -> None:
        """End the training if its number gets no better, in all processes or in none."""
        assert self.recorder is not None
        asked = self.recorder.should_stop
        if self.options.get("stop_on") is not None and trainer.world_size > 1:
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        trainer.should_stop = trainer.should_stop or asked

    def _recorder(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> Recorder:
        check_not_flat(module)
        train, test = self._loaders(trainer)
        recorder = Recorder(
            _prepared(train, trainer, module),
            None if test is None else _prepared(test, trainer, module),
            out=None if getattr(trainer, "fast_dev_run", False) else self.out,
            resume=self._measured is not None,
            writes=trainer.is_global_zero,
            sharded=trainer.world_size > 1,
            progress=self.progress and trainer.is_global_zero,
            **{**self.options, "config": {**_settings(trainer, module), **(self.options.get("config") or {})}},
        )
        recorder.views.others = lambda: (trainer.loggers, trainer.global_step)
        if self._shows:
            recorder.show()
        if self._measured is not None:
            recorder.resume(self._measured, seconds=self._seconds)
            self._seconds = None  # from here on the recorder counts
        return recorder

    def _loaders(self, trainer: lightning.Trainer) -> tuple[Any, Any]:
        """The data to measure on: the share of this process."""
        place = _place(trainer)
        as_given = self.sharded or trainer.world_size == 1
        if self.loader is None:
            train = _own(trainer.train_dataloader, trainer, trainer.num_training_batches)
        else:
            train = self.loader if as_given else sequential(self.loader, *place)
        if self.test_loader is not None:
            return train, self.test_loader if as_given else sequential(self.test_loader, *place)
        found: Any = trainer.val_dataloaders if self.wants_test else None
        if isinstance(found, Sequence) and len(found) == 1:
            found = found[0]
        batches = next(iter(trainer.num_val_batches), math.inf)
        return train, _own(found, trainer, batches) if hasattr(found, "dataset") else None

    def _measure(self, module: lightning.LightningModule, epoch: int) -> Record:
        trainer, recorder = module.trainer, self.recorder
        assert recorder is not None
        try:
            with _validating(trainer, module):
                record = recorder.measure(module, epoch, learning_rate=self._rate)
        except (TypeError, NotImplementedError) as error:
            classifier = self.options["classifier"] or "its last layer"
            raise InputError(
                f"expected {type(module).__name__}.forward to take a batch's inputs alone and run them through "
                f"{classifier}, got {type(error).__name__} ({error}): define it so, or give a loader of "
                "(inputs, labels) that fit"
            ) from error
        self._measured = epoch
        for logger in trainer.loggers:  # as Lightning logs what a module does: with "epoch", and written at once
            logger.log_metrics({**_numbers(record), "epoch": trainer.current_epoch}, step=trainer.global_step)
            logger.save()
        return record


def _numbers(record: Record) -> dict[str, float]:
    """What loggers get of a record."""
    return {**record.flat(), "epochs": float(record.epoch), "learning_rate": record.learning_rate}


def _learning_rate(trainer: lightning.Trainer) -> float:
    return float(trainer.optimizers[0].param_groups[0]["lr"]) if trainer.optimizers else math.nan


def _place(trainer: lightning.Trainer) -> tuple[int, int]:
    """Which share of the samples this process has, and of how many: those that share layers have the same."""
    sampler = getattr(trainer.strategy, "distributed_sampler_kwargs", None) or {}
    return sampler.get("rank", trainer.global_rank), sampler.get("num_replicas", trainer.world_size)


def _own(loader: Any, trainer: lightning.Trainer, batches: float) -> Iterable[Any]:
    """The trainer's own data, in order; of a stream, which may have no end, as many batches as the trainer takes."""
    several = isinstance(loader, Sequence | Mapping)  # to Lightning that means a batch of each
    if several or not isinstance(loader, DataLoader):
        if several or trainer.world_size > 1:
            return sequential(loader)  # which raises and says what it expected
        stream = check_loader(loader, "the trainer's data")
    else:
        check_loader(loader, "the trainer's data")
        stream = sequential(loader, *_place(trainer))
        if not isinstance(loader.dataset, IterableDataset):
            return stream
    return stream if math.isinf(batches) else MappedBatches(stream, lambda batch: batch, int(batches))


def _prepared(loader: Iterable[Any], trainer: lightning.Trainer, module: Any) -> MappedBatches:
    """The batches of a loader as Lightning hands them to a step: converted, moved, and through the user's hooks."""

    @torch.no_grad()
    def prepare(batch: Any) -> Any:
        batch = trainer.precision_plugin.convert_input(batch)
        # Lightning's loops call this private method: it runs the hook of the module or of the data module, whichever
        # has one, and there is no public way to ask for that.
        batch = module._on_before_batch_transfer(batch, dataloader_idx=0)
        return trainer.strategy.batch_to_device(batch, dataloader_idx=0)

    return MappedBatches(loader, prepare)


@contextmanager
def _validating(trainer: lightning.Trainer, module: Any) -> Iterator[None]:
    """Inside, the trainer says that it validates, and `forward` runs in the context of the precision plugin.

    So hooks of the user's that augment only in training leave the batches alone. The autocast of mixed precision is
    off: the weights, which are what is measured, are in full precision.
    """
    stage, modes = trainer.state.stage, [(part, part.training) for part in module.modules()]
    # Of a compiled module Lightning keeps the plain `forward` in this private place; a compiled one may skip hooks.
    compiled, own = getattr(module, "_compiler_ctx", None), module.__dict__.get("forward")
    forward = compiled["original_forward"] if compiled else module.forward

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
