"""CollapseTrainerCallback: collapse in any training by the Trainer of Hugging Face transformers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from neuralcollapse.capture.class_names import find_class_names
from neuralcollapse.checks import check_count
from neuralcollapse.errors import InputError, listed
from neuralcollapse.heads.search import find_head
from neuralcollapse.heads.split import check_not_flat
from neuralcollapse.loops.loaders import MappedBatches, check_restarts, sequential
from neuralcollapse.loops.options import check_names, check_values, options_of
from neuralcollapse.loops.recorder import Recorder
from neuralcollapse.runs.records import Record


class CollapseTrainerCallback(TrainerCallback):
    """Measures collapse before training, as it goes, and at its end.

    Three lines in a script: the import, and after the trainer is made

        trainer.add_callback(nc.CollapseTrainerCallback(trainer, out="runs/mine"))
        trainer.train()

    Every integration of the trainer (`report_to`) gets every measurement, as "collapse/nc1" and so on; TensorBoard, W&B
    and MLflow get figures too. Training itself goes as it would without. Training that goes on from a checkpoint goes
    on in its run folder. What is measured are the weights in their own precision: mixed precision (`bf16`, `fp16`) does
    not reach the measuring. In a notebook `show` shows the figures while the training goes on.

    Args:
        trainer: the trainer that the callback is added to.
        out: the run folder, with report.html kept up to date; without it no folder is made.
        classifier: dotted name of the last layer; when not given, the layer that makes a language model's logits, or
            the last linear layer with as many outputs as there are labels.
        dataset: the un-augmented training set; when not given, the trainer's own, and of one that can only be iterated
            at most as many samples as the training takes. Give one if a transform augments that: the paper measures
            images as they are.
        test_dataset: adds the test set to the records: loss, accuracy and measures; when not given, the trainer's
            eval_dataset, if it is one data set. False for none.
        every: when to measure: "epoch", "save" (with each checkpoint), or a number of steps. The last step is measured
            in any case; an epoch that max_steps cuts short counts as one.
        force: overwrite an earlier run in `out`.
        options: as for `neuralcollapse.Recorder` (layers, nc4, pairwise, ignore_index (-100 when not given),
            next_token, head_decay, config, class_names, ...). With `stop_on`, training ends when that number of the
            records gets no better for `patience` measurements.

    Attributes:
        records: of all measurements, in order.

    Raises:
        InputError: an option that does not exist, or a value of the wrong kind. As training begins: `out` is in use,
            no such layer, data that cannot be split over processes, weights under FSDP1. Later: training that diverged.
    """

    def __init__(
        self,
        trainer: Trainer,
        out: str | Path | None = None,
        classifier: str | None = None,
        dataset: Any = None,
        test_dataset: Any = None,
        every: str | int = "epoch",
        *,
        force: bool = False,
        **options: Any,
    ) -> None:
        self.every = every if every in ("epoch", "save") else check_count(every, "every ('epoch', 'save' or steps)", 1)
        known = options_of(CollapseTrainerCallback, Recorder, without=("loader", "test_loader"))
        check_names(options, known, "CollapseTrainerCallback", ("resume", "sharded", "unit", "writes", "loggers"))
        check_values({"out": out, "classifier": classifier, "force": force, **options})
        if not isinstance(trainer, Trainer):
            got = f"the class {trainer.__name__}" if isinstance(trainer, type) else f"a {type(trainer).__name__}"
            raise InputError(f"expected the trainer, a transformers.Trainer that was made, got {got}: give it first")
        for name, given in (("dataset", dataset), ("test_dataset", None if test_dataset is False else test_dataset)):
            if given is not None:
                _check_dataset(given, name)
        self.trainer = trainer
        self.out = out
        self.classifier = classifier
        self.dataset = dataset
        self.test_dataset = test_dataset
        self.force = force
        self.options = options
        self.recorder: Recorder | None = None
        self._shows = False
        self._rate = math.nan
        self._measured: int | None = None

    @property
    def records(self) -> list[Record]:
        """Of all measurements, in order."""
        return self.recorder.records if self.recorder else []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Find the data, make or reopen the run folder, and measure the network as training begins."""
        retry = self.recorder is not None and args.auto_find_batch_size
        self.recorder = self._recorder(args, resume=state.global_step > 0, force=self.force or retry)
        self.recorder.views.others = lambda: (_loggers(self.trainer), self.trainer.state.global_step)
        if self._shows:
            self.recorder.show()
        self._measured = None
        self._note_rate(kwargs.get("optimizer"))
        if state.global_step > 0:
            self.recorder.resume(math.floor(self._count(state) + 1e-6))
            control.should_training_stop = control.should_training_stop or self.recorder.should_stop
        else:
            self._measure(state, control)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note the learning rate: by the end of the step the schedule has moved on."""
        self._note_rate(kwargs.get("optimizer"))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure, if this step is one to be measured."""
        if isinstance(self.every, int) and state.global_step % self.every == 0:
            self._measure(state, control)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure, if checkpoints are measured."""
        if self.every == "save":
            self._measure(state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure, if epochs are measured, and at the end: a later event would see the best weights loaded."""
        if self.every == "epoch" or control.should_training_stop:
            self._measure(state, control)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the last page, and let others write in the run folder."""
        if self.recorder is not None:
            self.recorder.finish()
            if self.recorder.folder is not None:
                self.recorder.folder.unlock()

    def show(self) -> None:
        """Show the figures in this cell of a notebook, and keep them up to date while the trainer trains."""
        self._shows = True
        if self.recorder is not None:
            self.recorder.show()

    def _count(self, state: TrainerState) -> float:
        return (state.epoch or 0.0) if self.every == "epoch" else state.global_step

    def _note_rate(self, optimizer: Any) -> None:
        self._rate = float(optimizer.param_groups[0]["lr"]) if optimizer is not None else math.nan

    def _recorder(self, args: TrainingArguments, *, resume: bool, force: bool) -> Recorder:
        trainer = self.trainer
        model: Any = trainer.model
        check_not_flat(model)
        dataset: Any = trainer.train_dataset if self.dataset is None else self.dataset
        if dataset is None:
            raise InputError("expected a data set to measure on, got none: give dataset=, or the trainer train_dataset")
        test = trainer.eval_dataset if self.test_dataset is None else self.test_dataset
        names = find_class_names(model, dataset, getattr(model.config, "num_labels", 0)) or ()
        given = {"ignore_index": -100, "progress": False, "class_names": names, **self.options}
        return Recorder(
            self._loader(dataset, self._steps(args) if self.dataset is None else None),
            None if test is None or test is False or isinstance(test, dict) else self._loader(test),
            find_head(model) if self.classifier is None else self.classifier,
            out=self.out,
            force=force,
            resume=resume,
            unit="epoch" if self.every == "epoch" else "step",
            writes=trainer.is_world_process_zero(),
            sharded=args.world_size > 1,
            config={**_settings(args, dataset), **(given.pop("config", None) or {})},
            **given,
        )

    def _loader(self, dataset: Any, most: int | None = None) -> MappedBatches:
        """The share of this process, as the trainer would give it to the model; of a stream, `most` batches.

        Where the weights are in half precision and mixed precision trains them, autocast would convert the inputs to
        their type. There is no autocast here, so the inputs are converted.
        """
        trainer, args = self.trainer, self.trainer.args
        stream = isinstance(dataset, IterableDataset)
        check_restarts(dataset, "the training data")
        if stream and args.world_size > 1:
            raise InputError(
                f"expected a data set with a length to measure in {args.world_size} processes, got the iterable "
                f"{type(dataset).__name__}: give dataset= (and test_dataset=)"
            )
        prepared = trainer.get_test_dataloader(dataset)  # get_eval_dataloader would keep it for later evaluations
        loader = sequential(prepared, args.process_index, args.world_size, batch_size=args.eval_batch_size)
        weights: Any = trainer.model
        kinds = {value.dtype for value in weights.parameters() if value.is_floating_point()}
        half = kinds.pop() if kinds in ({torch.bfloat16}, {torch.float16}) else None

        def prepare(batch: Any) -> Any:
            # The private step between loader and model of every Trainer, which subclasses override: it moves a batch
            # to the device. There is no public way to it.
            batch = trainer._prepare_inputs(batch)
            if half is None:
                return batch
            real = {name for name, value in batch.items() if isinstance(value, Tensor) and value.is_floating_point()}
            return {name: value.to(half) if name in real else value for name, value in batch.items()}

        return MappedBatches(loader, prepare, most if stream else None)

    def _steps(self, args: TrainingArguments) -> int | None:
        """Batches of evaluation that hold as many samples as all steps of the training."""
        samples = args.max_steps * args.train_batch_size * args.gradient_accumulation_steps
        return math.ceil(samples / args.eval_batch_size) if args.max_steps > 0 else None

    def _measure(self, state: TrainerState, control: TrainerControl) -> None:
        count, recorder = math.ceil(self._count(state) - 1e-6), self.recorder
        model: Any = self.trainer.model
        if count == self._measured or recorder is None:
            return
        with _unpatched(model):
            record = recorder.measure(model, count, learning_rate=self._rate)
        self._measured = count
        control.should_training_stop = control.should_training_stop or recorder.should_stop
        wanted = control.should_log
        self.trainer.log(dict(record.flat()))
        control.should_log = wanted  # `log` cleared it, and the trainer's own numbers would not be logged
        if control.should_training_stop or state.global_step >= state.max_steps:
            recorder.views.flush()  # as the training ends, the integrations close their loggers


def _loggers(trainer: Any) -> list[Any]:
    """What the trainer's integrations log to, which they keep in private places."""
    places = {"TensorBoardCallback": "tb_writer", "WandbCallback": "_wandb", "MLflowCallback": "_ml_flow"}
    found = [(each, places.get(type(each).__name__)) for each in trainer.callback_handler.callbacks]
    loggers = [getattr(each, place, None) for each, place in found if place is not None]
    return [logger for logger in loggers if logger is not None]


def _check_dataset(data: Any, name: str) -> None:
    expected = f"expected {name} as one data set of samples"
    if isinstance(data, DataLoader):
        raise InputError(f"{expected}, got a DataLoader: give its data set, as in loader.dataset")
    if isinstance(data, dict):
        raise InputError(f"{expected}, got a {type(data).__name__} of {listed(list(data))}: give one of them")
    by_number = hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, str | bytes)
    if isinstance(data, type | nn.Module) or not (by_number or isinstance(data, IterableDataset)):
        got = f"the class {data.__name__}" if isinstance(data, type) else f"a {type(data).__name__}"
        raise InputError(f"{expected}, got {got}: give one with __getitem__ and __len__, as for the trainer")
    check_restarts(data, name)


@contextmanager
def _unpatched(model: Any) -> Iterator[None]:
    """With the model's own `forward`: for mixed precision, accelerate replaces it by one with autocast.

    Accelerate keeps the original as the private `_original_forward`, and undoes the replacement only for good.
    """
    patched, own = model.__dict__.get("forward"), model.__dict__.get("_original_forward")
    if patched is not None and own is not None:
        model.forward = own
    try:
        yield
    finally:
        if patched is not None:
            model.forward = patched


def _settings(args: TrainingArguments, dataset: Any) -> dict[str, Any]:
    """What the page shows about the training."""
    info = getattr(dataset, "info", None)
    return {
        "data": getattr(info, "dataset_name", None) or getattr(info, "builder_name", None) or type(dataset).__name__,
        "optimizer": str(getattr(args.optim, "value", args.optim)),
        "learning_rate": args.learning_rate,
        "schedule": str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)),
        "weight_decay": args.weight_decay,
        "batch_size": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        **({"steps": args.max_steps} if args.max_steps > 0 else {"epochs": args.num_train_epochs}),
        "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "32",
        "seed": args.seed,
    }
