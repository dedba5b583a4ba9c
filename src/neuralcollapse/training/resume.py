"""Stop anywhere and go on: the state that a run keeps, when it is written, and how it is taken up again."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import FrameType
from typing import Any

import lightning
import torch

from neuralcollapse.data.batches import Batches
from neuralcollapse.errors import InputError, one_line
from neuralcollapse.loops.measuring import MeasuringCallback
from neuralcollapse.runs.files import as_float, parse_json
from neuralcollapse.runs.folder import RunFolder
from neuralcollapse.runs.tensors import read_state, write_state
from neuralcollapse.training.config import CHANGEABLE, TrainConfig
from neuralcollapse.training.optimizers import learning_rate
from neuralcollapse.training.step import Classification


class Stopped(Exception):
    """A signal ended the training after a whole step; the state was saved, so the run can go on."""

    def __init__(self, signum: int, epoch: int, step: int) -> None:
        where = f"in epoch {epoch + 1} after {step} steps" if step else f"after epoch {epoch}"
        super().__init__(f"stopped {where}, and saved")
        self.signum = signum
        self.epoch = epoch
        self.step = step


@dataclass(frozen=True)
class State:
    """Where a run stands.

    Attributes:
        epoch: whole epochs trained.
        step: steps done in the epoch after those.
        total_steps: steps in all, for loggers.
        network: its state dict.
        optimizer: its state dict.
        precision: the state of the precision plugin (the scale of 16-mixed).
        collapse: the state of the measuring callback.
        origin: what made the weights: the options that may not change (JSON).
    """

    epoch: int
    step: int
    total_steps: int
    network: dict[str, Any]
    optimizer: dict[str, Any]
    precision: dict[str, Any]
    collapse: dict[str, Any]
    origin: str

    def check_origin(self, config: TrainConfig) -> None:
        """Raise unless the state was made with these options, those that may change aside.

        Raises:
            InputError: naming the first that differs.
        """
        try:
            made, said = parse_json(self.origin), json.loads(_origin(config))
            items = made.items()
        except (ValueError, AttributeError):
            raise InputError("the state does not say what made it: delete it to train the run from its start") from None
        for name, value in items:
            if said.get(name) != value:
                raise InputError(
                    f"the state is of another run: made with {name}={value!r}, and config.yaml says "
                    f"{said.get(name)!r}: set that back"
                )

    def write(self, path: Path) -> None:
        """Write it, whole or not at all."""
        write_state(path, {item.name: getattr(self, item.name) for item in fields(self)})

    @classmethod
    def read(cls, path: Path) -> State:
        """Read it; nothing but tensors, numbers and plain containers is ever unpickled.

        Raises:
            InputError: the file is cut off, was changed since it was written, holds other objects, or is no state of a
                run.
        """
        try:
            values = read_state(path)
        except (OSError, ValueError) as error:
            raise InputError(_no_state(path, getattr(error, "strerror", None) or str(error))) from None
        names = [item.name for item in fields(cls)]
        if not isinstance(values, dict) or sorted(map(str, values)) != sorted(names):
            raise InputError(_no_state(path, f"expected the entries {', '.join(names)}"))
        for name in names:
            value, kind = values[name], {"epoch": int, "step": int, "total_steps": int, "origin": str}.get(name, dict)
            if not isinstance(value, kind) or isinstance(value, bool) or (isinstance(value, int) and value < 0):
                raise InputError(_no_state(path, f"expected {name} of type {kind.__name__}, got {value!r:.40}"))
        return cls(**values)


def _no_state(path: Path, why: str) -> str:
    return f"{path} is no state to resume from, or damaged ({why}): delete it to train the run from its start"


def _origin(config: TrainConfig) -> str:
    """The options that made the weights; epochs too where the learning rate depends on them."""
    values = asdict(config)
    kept = {name: value for name, value in values.items() if name not in CHANGEABLE}
    if config.schedule == "cosine":
        kept["epochs"] = config.epochs
    return json.dumps(kept, default=str)


class Pace(lightning.Callback):
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


class StopSignal:
    """Notes SIGINT and SIGTERM, so that a step ends whole; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.signum: int | None = None

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """The handler."""
        if self.signum == signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = signum

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals inside (in the main thread, where Python lets one)."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
        self.install()
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def install(self) -> None:
        """Take the signals, over what Lightning put there: its own handler would end a run between two processes."""
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                signal.signal(signum, self)


class KeepState(lightning.Callback):
    """Writes the state at ends of epochs, and when a signal came, which ends the training. Goes after the others."""

    def __init__(self, run: RunFolder, collapse: MeasuringCallback, stop: StopSignal, config: TrainConfig) -> None:
        self.run = run
        self.collapse = collapse
        self.stop = stop
        self.config = config
        self.total_steps = 0
        self._written = time.monotonic()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Take the signals over."""
        self.stop.install()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End here when a signal came to any process."""
        assert isinstance(pl_module, Classification)
        self.total_steps += 1
        self._end_if_asked(trainer, pl_module, trainer.current_epoch, pl_module.step + 1)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write the state, when it is time, and end when a signal came while measuring."""
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
        collapse = self.collapse.state_dict()  # in all processes: it may join their sums
        if trainer.is_global_zero:
            State(
                epoch,
                step,
                self.total_steps,
                module.network.state_dict(),
                trainer.optimizers[0].state_dict(),
                trainer.precision_plugin.state_dict(),
                collapse,
                _origin(self.config),
            ).write(self.run.state)
        self._written = time.monotonic()


def take_up(
    state: State, trainer: lightning.Trainer, module: Classification, batches: Batches, callbacks: list[Any]
) -> None:
    """Put a trainer that has not begun where the state was.

    Raises:
        InputError: the state is of another network, or further than the data reach.
    """
    if state.step > len(batches):
        raise InputError(f"the state is of other data: {state.step} steps in an epoch of {len(batches)}")
    _check_optimizer(state.optimizer, module)
    try:
        module.network.load_state_dict(state.network)
    except (RuntimeError, InputError, TypeError, AttributeError, KeyError) as error:
        raise InputError(f"the state is of another network: {one_line(error)}") from None
    module.optimizer_state = state.optimizer
    module.step = batches.skip = state.step
    try:
        trainer.precision_plugin.load_state_dict(state.precision)
        for callback in callbacks:
            if isinstance(callback, MeasuringCallback):
                as_float(state.collapse["seconds"])
                if not isinstance(state.collapse["measured_epoch"], int | None):
                    raise ValueError("expected measured_epoch as a number")
                callback.load_state_dict(state.collapse)
    except (RuntimeError, TypeError, ValueError, AttributeError, KeyError) as error:
        raise InputError(f"the state is of another kind of run, or damaged: {one_line(error)}") from None
    progress: Any = trainer.fit_loop.epoch_progress.current
    progress.processed = progress.completed = state.epoch
    trainer.fit_loop.epoch_loop._batches_that_stepped = state.total_steps
    for callback in callbacks:
        if isinstance(callback, KeepState):
            callback.total_steps = state.total_steps


def _check_optimizer(saved: dict[str, Any], module: Classification) -> None:
    """Raise unless an optimiser's state is like that of the module's own: the same groups, tensors of the same shapes.

    Raises:
        InputError: it is not.
    """
    optimizer = module.configure_optimizers()
    shapes = [value.shape for group in optimizer.param_groups for value in group["params"]]
    own = optimizer.state_dict()["param_groups"]
    groups, states = saved.get("param_groups"), saved.get("state")
    if not isinstance(groups, list) or not isinstance(states, dict) or len(groups) != len(own):
        raise InputError("the state is of another optimiser: it has other groups of parameters")
    for group, expected in zip(groups, own, strict=True):
        for name, value in expected.items():
            found = group.get(name, value) if isinstance(group, dict) else None
            of_a_kind = found is None or value is None or type(found) is type(value)
            if not of_a_kind or (name == "params" and found != value):
                raise InputError(
                    f"the state is of another optimiser: expected {name} like {value!r:.60}, got {found!r:.60}"
                )
    for index, parts in states.items():
        if type(index) is not int or not 0 <= index < len(shapes) or not isinstance(parts, dict):
            raise InputError(f"the state is of another optimiser: it has an entry {index!r:.40}")
        wrong = [
            name
            for name, value in parts.items()
            if isinstance(value, torch.Tensor) and value.ndim and value.shape != shapes[index]
        ]
        if wrong and module.config.optimizer != "lbfgs":  # which keeps all parameters in one row
            raise InputError(f"the state is of another optimiser: {wrong[0]} has another shape than its weight")
