"""Stop anywhere and go on: the signals that end a run, the state that it keeps, and how a run is restored from it."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import FrameType
from typing import Any

import lightning
import torch

from neuralcollapse.data.batches import Batches, training_starts
from neuralcollapse.errors import InputError, one_line
from neuralcollapse.loops.lightning import CollapseCallback
from neuralcollapse.runs.files import as_float, parse_json
from neuralcollapse.runs.folder import RunFolder
from neuralcollapse.runs.tensors import read_state, write_state
from neuralcollapse.training.config import CHANGEABLE, TrainConfig, completed
from neuralcollapse.training.online import OnlineFeatures
from neuralcollapse.training.parts import Parts, joined
from neuralcollapse.training.step import Classification

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""What ends a run after the step at hand; SIGUSR1 is what SLURM's --signal=USR1@90 sends before the time is up."""


class Stopped(Exception):
    """A signal ended the training after a whole step; the state was saved, so the run can go on."""

    def __init__(self, signum: int, epoch: int, step: int) -> None:
        where = f"in epoch {epoch + 1} after {step} steps" if step else f"after epoch {epoch}"
        super().__init__(f"stopped {where}, and saved")
        self.signum = signum
        self.epoch = epoch
        self.step = step


class Interrupted(KeyboardInterrupt):
    """A signal ended a run before a state could be saved; the message says what was trained, and what became of it.

    Attributes:
        signum: the signal.
        resumable: whether the folder holds the run, to go on with; otherwise it is as it was before.
    """

    def __init__(self, message: str, signum: int, *, resumable: bool) -> None:
        super().__init__(message)
        self.signum = signum
        self.resumable = resumable


_KINDS = {"epoch": int, "step": int, "total_steps": int, "processes": int, "origin": str}


@dataclass(frozen=True)
class State:
    """How far a run is, and everything that its next step depends on.

    Attributes:
        epoch: whole epochs trained.
        step: steps done in the epoch after those.
        total_steps: steps in all, for loggers.
        network: its state dict.
        optimizer: its state dict.
        precision: the state of the precision plugin (the scale of 16-mixed).
        collapse: the states of the callbacks that measure.
        origin: the options that made the weights and so may not change, as JSON (`origin_of`).
        processes: how many trained; 0 if an earlier version wrote the state, which did not say.
        parts: under fsdp2 the folder that has the tensors of `network` and `optimizer` in their place (`Parts`).
    """

    epoch: int
    step: int
    total_steps: int
    network: dict[str, Any]
    optimizer: dict[str, Any]
    precision: dict[str, Any]
    collapse: dict[str, Any]
    origin: str
    processes: int = 0
    parts: dict[str, Any] = field(default_factory=dict)

    def check_origin(self, config: TrainConfig) -> None:
        """Raise unless the state was made with these options, apart from those that may change."""
        try:
            made, said = completed(parse_json(self.origin)), json.loads(origin_of(config))
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
        """Write it: the whole file or nothing."""
        write_state(path, {item.name: getattr(self, item.name) for item in fields(self)})

    @classmethod
    def read(cls, path: Path) -> State:
        """Read it; nothing but tensors, numbers and plain containers is ever unpickled."""
        try:
            values = read_state(path)
        except (OSError, ValueError) as error:
            raise InputError(_no_state(path, getattr(error, "strerror", None) or str(error))) from None
        names = [item.name for item in fields(cls)]
        values = {"processes": 0, "parts": {}, **values} if isinstance(values, dict) else values
        if not isinstance(values, dict) or sorted(map(str, values)) != sorted(names):
            raise InputError(_no_state(path, f"expected the entries {', '.join(names)}"))
        for name in names:
            value, kind = values[name], _KINDS.get(name, dict)
            if not isinstance(value, kind) or isinstance(value, bool) or (isinstance(value, int) and value < 0):
                raise InputError(_no_state(path, f"expected {name} of type {kind.__name__}, got {value!r:.40}"))
        return cls(**values)


def _no_state(path: Path, why: str) -> str:
    return f"{path} is no state to resume from, or damaged ({why}): delete it to train the run from its start"


def origin_of(config: TrainConfig) -> str:
    """The options that made the weights, as JSON; the epochs too if the learning rate depends on them."""
    values = asdict(config)
    kept = {name: value for name, value in values.items() if name not in CHANGEABLE}
    if config.schedule == "cosine":
        kept["epochs"] = config.epochs
    return json.dumps(kept, default=str)


class StopSignal:
    """Notes SIGINT, SIGTERM and SIGUSR1, so that a step ends whole; a second SIGINT interrupts at once.

    So does any of them `before_training`, where no step is to be ended.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.began = False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """The handler."""
        again = self.signum == signum == signal.SIGINT
        self.signum = signum
        if again or not self.began:
            raise KeyboardInterrupt

    @contextmanager
    def before_training(self) -> Iterator[None]:
        """Interrupt at once inside, whichever of the signals comes."""
        with _as_before():
            self.install()
            yield

    @contextmanager
    def installed(self, *, at_once: bool = True) -> Iterator[None]:
        """Handle the signals inside (in the main thread, where Python lets one).

        With `at_once=False` only from `install` on: a process that waits for others to join has nothing to save, and
        Python would not come to its handler before they have.
        """
        self.began = True
        with _as_before():
            if at_once:
                self.install()
            yield

    def install(self) -> None:
        """Take the signals, over what Lightning put there: its own handler would end a run between two processes."""
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                signal.signal(signum, self)


@contextmanager
def _as_before() -> Iterator[None]:
    """Afterwards signals are handled as before."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def restore(
    state: State,
    run: RunFolder,
    trainer: lightning.Trainer,
    module: Classification,
    batches: Batches,
    collapse: CollapseCallback,
    online: OnlineFeatures | None,
) -> None:
    """Put a trainer that has not started where the state was.

    Another number of processes divides each batch anew. Where it makes one step of the last two of an epoch, or two of
    one (see `Batches`), an epoch of which all steps were done stays done, and one that was cut between those two goes
    without the few samples of the last.
    """
    step = _step_here(state, batches)
    if step > len(batches):
        raise InputError(f"the state is of other data: {state.step} steps in an epoch of {len(batches)}")
    parts = _parts(run, state)
    if parts and module.config.strategy != "fsdp2":
        network, tensors = parts.whole()
        state, parts = replace(state, network=network, optimizer=joined(state.optimizer, tensors)), None
    _check_optimizer(state.optimizer, module)
    module.parts = parts
    try:
        if parts is None:
            module.network.load_state_dict(state.network)
    except (RuntimeError, InputError, TypeError, AttributeError, KeyError) as error:
        raise InputError(f"the state is of another network: {one_line(error)}") from None
    module.optimizer_state = state.optimizer
    module.step = batches.skip = step
    try:
        trainer.precision_plugin.load_state_dict(state.precision)
        as_float(state.collapse["seconds"])
        if not isinstance(state.collapse["measured_epoch"], int | None):
            raise ValueError("expected measured_epoch as a number")
        collapse.load_state_dict(state.collapse)
        if online is not None:
            online.load_state_dict(state.collapse)
    except (RuntimeError, TypeError, ValueError, AttributeError, KeyError) as error:
        raise InputError(f"the state is of another kind of run, or damaged: {one_line(error)}") from None
    # Lightning counts epochs and steps in these trackers. It restores them from checkpoints of its own alone.
    loop: Any = trainer.fit_loop
    loop.epoch_progress.current.processed = loop.epoch_progress.current.completed = state.epoch
    loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.completed = state.total_steps
    loop.epoch_loop.manual_optimization.optim_step_progress.total.completed = state.total_steps


def _parts(run: RunFolder, state: State) -> Parts | None:
    """The folder that has the tensors of a state, if they are not in it."""
    try:
        return Parts.named(run, state.parts) if state.parts else None
    except ValueError as error:
        raise InputError(_no_state(run.state, str(error))) from None


def _step_here(state: State, batches: Batches) -> int:
    """How many of this epoch's steps are done, as these processes divide it."""
    if state.processes in (0, batches.world) or not state.step:
        return state.step
    before = len(training_starts(len(batches.split.labels), batches.batch_size, state.processes))
    if state.step == before:
        return len(batches)
    return min(state.step, len(batches)) if state.step < before else state.step


def _check_optimizer(saved: dict[str, Any], module: Classification) -> None:
    """Raise unless an optimiser's state is like that of the module's own: the same groups, tensors of equal shapes."""
    optimizer = module.configure_optimizers()
    shapes = [value.shape for group in optimizer.param_groups for value in group["params"]]
    own = optimizer.state_dict()["param_groups"]
    groups, states = saved.get("param_groups"), saved.get("state")
    if not isinstance(groups, list) or not isinstance(states, dict) or len(groups) != len(own):
        raise InputError("the state is of another optimiser: it has other groups of parameters")
    for group, expected in zip(groups, own, strict=True):
        for name, value in expected.items():
            found = group.get(name, value) if isinstance(group, dict) else None
            numbers = {type(found), type(value)} <= {int, float}  # a decay of 1 is 0.1 in a warm-up
            of_a_kind = found is None or value is None or numbers or type(found) is type(value)
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
