"""A training run from a TrainConfig: begun in a new run folder, or resumed in its own."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lightning
import yaml

from neuralcollapse.checks import on_host
from neuralcollapse.data.batches import Batches
from neuralcollapse.data.load import Data, load_data
from neuralcollapse.errors import InputError
from neuralcollapse.heads.search import find_module
from neuralcollapse.loops.lightning import CollapseCallback
from neuralcollapse.runs.files import as_builtin
from neuralcollapse.runs.folder import RunFolder
from neuralcollapse.training.budget import Budget, run_budget
from neuralcollapse.training.callbacks import EpochSchedule, Progress, SaveState, SaveWeights
from neuralcollapse.training.config import TrainConfig, resumed
from neuralcollapse.training.going_on import has_records, is_whole, stop_reason, update_environment
from neuralcollapse.training.graph import CudaRecording, refusal, unfit_operation
from neuralcollapse.training.network import network_for
from neuralcollapse.training.online import OnlineFeatures
from neuralcollapse.training.processes import Together, as_launched, lost
from neuralcollapse.training.resume import Interrupted, State, Stopped, StopSignal, restore
from neuralcollapse.training.run_config import check_trusted, named_paths, read_config
from neuralcollapse.training.sharding import reads_parts
from neuralcollapse.training.step import NETWORK, Classification, loss_function
from neuralcollapse.training.trainer import is_primary, kept_flags, make_logger, make_trainer, quiet, with_precision

OnMessage = Callable[[str], None]

EVAL_BATCH = 512  # samples of a batch when measuring


def train(
    config: TrainConfig,
    out: str | Path,
    *,
    force: bool = False,
    resume: bool = False,
    progress: bool = True,
    on_message: OnMessage | None = None,
    given: Iterable[str | Path] = (),
    page: bool = True,
) -> RunFolder:
    """Train a network as a configuration says, measure collapse meanwhile, and leave a run folder.

    While it trains, for at most 5 % of the time, report.html in the folder shows how far it is and reloads itself.

    SIGTERM, SIGUSR1 and a first SIGINT end the training after the current step; `resume` goes on from there.

    Args:
        config: the run.
        out: the run folder; it must be new or empty.
        force: overwrite an earlier run in `out`, if the folder holds nothing else. The earlier run is deleted when the
            new one has its first record.
        resume: go on with the run in `out` if there is one, as `neuralcollapse.resume` does with the options of
            `config`: the same call begins the run and goes on with it, however often it was stopped. What made the
            weights must be as it was.
        progress: show how far the training is.
        on_message: called before the training with a sentence that says what it cannot reach, if there is such a
            thing; when not given, the sentence goes to stderr with the progress.
        given: files that are still needed, such as that of the configuration: a folder that holds one of them, or the
            data or the network's files that `config` names, is not overwritten.
        page: keep that page while it trains.

    Returns:
        The run folder; `neuralcollapse.read_run` reads it, and `neuralcollapse.write_page` makes its page.

    Raises:
        InputError: an unknown data set or network, files that are not as they should be, d < K-1 for an ETF classifier,
            a folder in use, training that diverged (a run folder with no state to resume from is removed).
        Stopped: a signal came; the state is in the folder.
        Interrupted: a signal came before anything was trained, or a second one; a KeyboardInterrupt.
        LostProcess: another process of the run died or did not answer for `config.timeout` seconds.
    """
    if not isinstance(config, TrainConfig):
        raise InputError(
            f"expected a TrainConfig first, as in train(TrainConfig(epochs=3), 'runs/mine'), got {config!r:.80}"
        )
    if resume and force:
        raise InputError("resume goes on with the run in the folder, and force overwrites it: give one of the two")
    out = RunFolder(out).path
    if resume and (out / "config.yaml").is_file():
        # no code is imported that the caller's own configuration does not name: any other is refused before that
        return _open_and_resume(out, asdict(config), progress, on_message, trust_code=True)
    if resume and not has_records(out):
        force = True  # of a process that was killed while it made the folder
    config = as_launched(with_precision(config))
    needed = [*given, *named_paths(config)]

    def folder() -> RunFolder:
        run = RunFolder.create(out, force=force, given=needed)
        try:
            _write_config(run, config)
        except BaseException:  # an interrupt too
            run.discard()
            raise
        return run

    if is_primary():
        RunFolder.check_free(out, force=force, given=needed)
    return _train(config, out, folder, None, progress, on_message, fresh=True, page=page)


def resume(
    path: str | Path,
    changes: Mapping[str, Any] | None = None,
    *,
    progress: bool = True,
    on_message: OnMessage | None = None,
    trust_code: bool = False,
) -> RunFolder:
    """Go on with a run that was stopped or killed; it ends bit for bit as if it had never been stopped.

    It goes on from the state that it saved, or from the start if it had saved none. A run that is complete stays as it
    is, unless `changes` gives it more epochs.

    Args:
        path: the run folder.
        changes: new values of options that may change (`neuralcollapse.training.config.CHANGEABLE`).
        progress: show how far the training is.
        on_message: as for `train`.
        trust_code: import the code that the folder's configuration names, such as `network: my_module:function`.

    Returns:
        The run folder.

    Raises:
        InputError: there is no run or another process writes it, its state is damaged, it names code and `trust_code`
            is not set, a change concerns what made the weights, or more epochs were trained than are asked for.
        Stopped: a signal came again.
        LostProcess: as for `train`.
    """
    if changes is not None and not isinstance(changes, Mapping):
        raise InputError(f"expected changes as a mapping of options, such as {{'epochs': 300}}, got {changes!r:.80}")
    return _open_and_resume(path, changes or {}, progress, on_message, trust_code=trust_code)


def _open_and_resume(
    path: str | Path,
    changes: Mapping[str, Any],
    progress: bool,
    on_message: OnMessage | None,
    *,
    trust_code: bool,
) -> RunFolder:
    run = RunFolder.open(path)
    if is_primary():
        run.lock()
    try:
        return _resume(run, changes, progress, on_message, trust_code)
    finally:
        run.unlock()


def _resume(
    run: RunFolder, changes: Mapping[str, Any], progress: bool, on_message: OnMessage | None, trust_code: bool
) -> RunFolder:
    old = with_precision(read_config(run))
    check_trusted(old, run, trust_code)
    if changes.get("precision") == "auto":  # the run has found what that means
        changes = {name: value for name, value in changes.items() if name != "precision"}
    config = resumed(old, changes)
    state = State.read(run.state) if run.state.exists() else None
    as_it_is = replace(config, devices=old.devices, nodes=old.nodes) == old
    whole = state is None and is_whole(run, old)
    if whole and as_it_is:
        return run
    if whole or (state is None and len(run.checkpoints()) > 2):  # a run killed before its first state has fewer
        raise InputError(
            f"{run.path} has no state.pt to go on from, and training from the start would delete its records and "
            "weights: restore it, or train in another folder"
        )
    if state is not None:
        state.check_origin(old)
        reason = stop_reason(run, config, state.epoch) if state.step == 0 else ""
        if as_it_is and (state.epoch == old.epochs or reason):
            return run
        if reason:
            raise InputError(
                f"{run.path} was stopped after {state.epoch} epochs ({reason}): give more patience, or null as stop_on"
            )
        if state.epoch >= config.epochs:
            done = f"{state.epoch} epochs" + (f" and {state.step} steps" if state.step else "")
            raise InputError(
                f"{run.path} was trained for {done} already, got epochs={config.epochs}: give more, or measure the "
                f"checkpoints it has with 'neuralcollapse measure {run.path}'"
            )

    config = as_launched(config)

    def folder() -> RunFolder:
        run.remove_temporary()
        run.keep_parts(state.parts["folder"] if state and state.parts else None)
        run.make_folders()
        run.truncate(-1 if state is None else state.epoch)
        if config != old:
            _write_config(run, config)
        return run

    return _train(config, run.path, folder, state, progress, on_message, fresh=False)


def _write_config(run: RunFolder, config: TrainConfig) -> None:
    run.write_text("config.yaml", yaml.safe_dump(as_builtin(asdict(config)), sort_keys=False))


def _of_budget(budget: Budget) -> dict[str, float | None]:
    """What environment.json says of a budget."""
    return {"decay_budget": budget.decay_budget, "row_sum_left": budget.row_sum_left}


@on_host()
@kept_flags()
def _train(
    config: TrainConfig,
    path: Path,
    folder: Callable[[], RunFolder],
    state: State | None,
    progress: bool,
    on_message: OnMessage | None,
    *,
    fresh: bool,
    page: bool = True,
) -> RunFolder:
    """The part that `train` (fresh) and `resume` share; `folder` makes the run folder, or makes it ready again."""
    loss = loss_function(config.loss)  # an unknown one is refused before the data are read
    data = load_data(config.data, **config.data_options)
    lightning.seed_everything(config.seed, verbose=False)
    network = network_for(config, data)
    module = Classification(network, config, data)
    for name in config.layers:
        find_module(network, name)
    with quiet():
        trainer = make_trainer(config, path)
    graph = _captured(config, module, trainer, data)
    primary = trainer.is_global_zero
    run = RunFolder(path)
    place: dict[str, Any] = {
        "device": trainer.strategy.root_device,
        "rank": trainer.global_rank,
        "world": trainer.world_size,
    }
    batches = Batches(data.train, config.batch_size, shuffle_seed=config.seed, **place)
    module.batch_sizes = batches.sizes
    budget = run_budget(config, len(data.train.labels))
    bar = Progress(config.epochs, len(batches), progress and primary)
    online = OnlineFeatures(sharded=trainer.world_size > 1) if config.measure == "online" else None
    collapse = CollapseCallback(
        Batches(batches.split, EVAL_BATCH, **place),
        Batches(data.test, EVAL_BATCH, **place) if len(data.test.labels) else False,
        module.classifier,
        config.measured,
        config.layers,
        head_decay(config) if config.certify_head else None,
        decays=known_decays(config),
        loss_name=config.loss,
        inside=NETWORK,
        test_measures=config.test_measures,
        errors=config.errors,
        stop_on=config.stop_on,
        patience=config.patience,
        stop_mode=config.stop_mode,
        min_delta=config.min_delta,
        out=run,
        loss=loss,
        online=online,
        page=page,
        sharded=True,
        progress=progress and primary,
        environment={  # what only the configuration and the data set can say
            **_of_budget(budget),
            "precision": config.precision,
            "processes": {"0": trainer.world_size},
            "cuda_graph": graph,
            "test_samples": len(data.test.labels),
            "image_shape": list(data.image_shape),
            "pixel_mean": list(data.mean),
            "pixel_std": list(data.std),
        },
        class_names=data.class_names,
        on_record=lambda record, capture: bar.show(record),
    )
    stop = StopSignal()

    def measuring() -> dict[str, Any]:
        return collapse.state_dict() | (online.state_dict() if online else {})

    callbacks = [
        Together(config, *((state.epoch, state.step, state.total_steps) if state else ())),
        EpochSchedule(batches),
        collapse,
        *([online] if online else []),
        SaveWeights(run, config),
        SaveState(run, measuring, stop, config),
        bar,
    ]
    if state is not None:
        restore(state, run, trainer, module, batches, collapse, online)
    trainer.callbacks += callbacks  # type: ignore[attr-defined]
    made: RunFolder | None = None  # before that the folder may be another's
    try:
        with stop.before_training():
            if primary:
                made = folder()
                if budget.advice:
                    (on_message or bar.say)(budget.advice)
                if not fresh:
                    now = {**_of_budget(budget), "cuda_graph": graph}
                    update_environment(run, state.epoch if state else 0, trainer.world_size, now)
                trainer.loggers = [make_logger(name, path) for name in config.loggers]
        with stop.installed(at_once=trainer.world_size == 1), quiet():
            trainer.fit(module, train_dataloaders=batches)
    except Stopped:
        raise
    except Exception as error:
        gone = lost(error, config.timeout) if trainer.world_size > 1 else None
        if gone:
            raise gone from None
        kept = run.state.is_file()
        if fresh and made and not kept:
            made.discard()
        if config.strategy == "fsdp2" and reads_parts(error):
            raise InputError(
                f"the network {config.network} uses a layer's weights outside of that layer's forward, where "
                "strategy=fsdp2 has them in parts: use ddp, or call the layer"
            ) from None
        if not isinstance(error, OSError) or not _is_of_writing(error, path):
            raise
        hint = f"; then go on with 'neuralcollapse train --resume {path}'" if kept or not fresh else ""
        raise InputError(
            f"cannot write the run folder {path}: {error.strerror or error}: free some space or repair the folder{hint}"
        ) from None
    except (KeyboardInterrupt, SystemExit):  # Lightning turns an interrupt into an exit of its own
        said = "interrupted" if stop.began else f"stopped before anything {'' if fresh else 'more '}was trained"
        resumable = not fresh or (stop.began and not (made and made.replaces_earlier))
        if made and not resumable:  # there is no record yet, so an earlier run is put back
            earlier = made.replaces_earlier
            made.discard()
            said += ", and the earlier run is as it was" if earlier else ""
        raise Interrupted(said, stop.signum or signal.SIGINT, resumable=resumable) from None
    finally:
        bar.close()
        if fresh and made:
            made.unlock()
    return run


def _captured(config: TrainConfig, module: Classification, trainer: lightning.Trainer, data: Data) -> str:
    """Let the module replay its steps where the configuration asks for that and it can be done; what was decided."""
    if config.cuda_graph == "off":
        return "off"
    device = trainer.strategy.root_device
    why = refusal(config, device, trainer.world_size)
    if why is None:
        module.to(device)  # where the trainer would take it later
        images, labels = data.train.images[:2].to(device), data.train.labels[:2].to(device)
        found = unfit_operation(module.network, lambda: module.gradients(module.inputs(images), labels))
        why = found and f"the network waits for the device or copies between devices ({found})"
    if why is None:
        trainer.gradient_clip_val = None  # which Lightning refuses where a module clips by itself
        module.replay_steps(CudaRecording(device))
        return "on"
    if config.cuda_graph == "on":
        raise InputError(f"cuda_graph=on cannot be done here: {why}: leave it out, or give --cuda-graph off")
    return f"off: {why}"


def _is_of_writing(error: OSError, path: Path) -> bool:
    """Whether an error came from the run folder, or from a disk that takes nothing more."""
    inside = isinstance(error.filename, str | os.PathLike) and Path(error.filename).is_relative_to(path)
    return inside or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def head_decay(config: TrainConfig) -> tuple[float, float | None, float | None]:
    """The decays of (weight, features, bias) that the last layer is certified with."""
    if config.decay_on == "all":
        return config.weight_decay, None, None
    return config.weight_decay, config.feature_decay, config.bias_decay


def known_decays(config: TrainConfig) -> tuple[float, float | None, float | None] | None:
    """The decays of the objective that a run minimises, None where it has none: without decay, or under AdamW."""
    coupled = config.weight_decay > 0 and config.optimizer != "adamw"
    return head_decay(config) if coupled and (config.decay_on == "all" or config.feature_decay > 0) else None
