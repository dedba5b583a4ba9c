"""One run from a TrainConfig: data, network, trainer, records, checkpoints."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning
import torch
import yaml
from safetensors.torch import load_file, save
from torch import nn

from neuralcollapse.capture.collect import Capture, collect
from neuralcollapse.data.load import Batches, Data, load_data
from neuralcollapse.errors import InputError, one_line
from neuralcollapse.heads.search import find_module
from neuralcollapse.loops.measuring import MeasuringCallback, is_primary
from neuralcollapse.loops.recorder import geometry_of, head_record, machine
from neuralcollapse.networks.external import code_named
from neuralcollapse.runs.checksums import METADATA, check_safetensors, stamped_safetensors
from neuralcollapse.runs.folder import Record, RunFolder, write_atomically
from neuralcollapse.runs.plain import plain, read_mapping
from neuralcollapse.training.config import TrainConfig, check_names, completed, resumed
from neuralcollapse.training.losses import loss_function
from neuralcollapse.training.network import network_for
from neuralcollapse.training.online import OnlineCollapse
from neuralcollapse.training.progress import Progress
from neuralcollapse.training.resume import KeepState, Pace, State, Stopped, StopSignal, take_up
from neuralcollapse.training.step import Classification
from neuralcollapse.training.trainer import make_logger, make_trainer, quiet

_EVAL_BATCH = 512  # samples of a batch when measuring
_INSIDE = "network."  # where the network is in the module
_WITH_PATHS = ("idx", "imagefolder", "mnist", "fashion-mnist", "cifar10", "cifar100", "hf", "transformers")
_GEOMETRIES = 40  # class means are kept at about this many epochs


def train(
    config: TrainConfig,
    out: str | Path,
    *,
    force: bool = False,
    progress: bool = True,
    given: Iterable[str | Path] = (),
) -> RunFolder:
    """Train a network as described, measuring collapse, and leave a run folder.

    SIGTERM and a first SIGINT end the training after the step at hand; `resume` goes on from there.

    Args:
        config: the run.
        out: the run folder; must be new or empty.
        force: overwrite an earlier run in `out`, if there is nothing in it that others made. It goes when the new run
            has its first record.
        progress: show how far it is.
        given: files that are still needed, such as that of the configuration: a folder that holds one is not
            overwritten. So are the data and a network's files that `config` names.

    Raises:
        InputError: an unknown data set or network, files that are not as they should be, d < K-1 for an ETF classifier,
            a folder in use, training that diverged (a run folder with no state to resume from is removed).
        Stopped: a signal came; the state is in the folder.
    """
    needed = [*given, *named_paths(config)]

    def folder(data: Data, network: nn.Module) -> RunFolder:
        run = RunFolder.create(out, force=force, given=needed)
        run.write_text("config.yaml", yaml.safe_dump(plain(asdict(config)), sort_keys=False))
        run.write_text("environment.json", json.dumps(plain(environment(data, network)), indent=2) + "\n")
        return run

    if is_primary():
        RunFolder.check_free(out, force=force, given=needed)
    return _train(config, Path(out), folder, None, progress, fresh=True)


def resume(
    path: str | Path, changes: Mapping[str, Any] | None = None, *, progress: bool = True, trust_code: bool = False
) -> RunFolder:
    """Go on with a run that was stopped or killed; its end is bit for bit that of a run never stopped.

    From the state that the run kept, or from the start where there is none yet. A run that is whole stays as it is,
    unless `changes` gives it more epochs.

    Args:
        path: the run folder.
        changes: new values of options that may change (`neuralcollapse.training.config.CHANGEABLE`).
        progress: show how far it is.
        trust_code: import the code that the folder's configuration names, such as `network: my_module:function`.

    Raises:
        InputError: no run there or one that another process writes, a damaged state, code named without `trust_code`,
            a change of what made the weights, fewer epochs than were trained.
        Stopped: a signal came again.
    """
    run = RunFolder.open(path)
    if is_primary():
        run.lock()
    try:
        return _resume(run, changes or {}, progress, trust_code)
    finally:
        run.unlock()


def _resume(run: RunFolder, changes: Mapping[str, Any], progress: bool, trust_code: bool) -> RunFolder:
    old = read_config(run)
    _check_trusted(old, run, trust_code)
    config = resumed(old, changes)
    state = State.read(run.state) if run.state.exists() else None
    whole = state is None and _is_whole(run, old)
    if whole and config == old:
        return run
    if whole or (state is None and len(run.checkpoints()) > 2):  # one killed before its first state has fewer
        raise InputError(
            f"{run.path} has no state.pt to go on from, and training from the start would delete its records and "
            "weights: restore it, or train in another folder"
        )
    if state is not None:
        state.check_origin(old)
        if state.epoch == old.epochs and config == old:
            return run
        if state.epoch >= config.epochs:
            done = f"{state.epoch} epochs" + (f" and {state.step} steps" if state.step else "")
            raise InputError(
                f"{run.path} was trained for {done} already, got epochs={config.epochs}: give more, or measure the "
                f"checkpoints it has with 'neuralcollapse measure {run.path}'"
            )

    def folder(data: Data, network: nn.Module) -> RunFolder:
        run.sweep()
        run.make_folders()
        run.rewind(-1 if state is None else state.epoch)
        if config != old:
            run.write_text("config.yaml", yaml.safe_dump(plain(asdict(config)), sort_keys=False))
        return run

    return _train(config, run.path, folder, state, progress, fresh=False)


def _train(
    config: TrainConfig,
    path: Path,
    folder: Callable[[Data, nn.Module], RunFolder],
    state: State | None,
    progress: bool,
    *,
    fresh: bool,
) -> RunFolder:
    """The run that `train` (fresh) and `resume` share; `folder` makes the run folder ready."""
    loss = loss_function(config.loss)
    data = load_data(config.data, **config.data_options)
    lightning.seed_everything(config.seed, verbose=False)
    network = _network(config, data)
    module = Classification(network, config, data)
    for name in config.layers:
        find_module(network, name)
    with quiet():
        trainer = make_trainer(config, path)
    primary = trainer.is_global_zero
    run = RunFolder(path)
    many = trainer.world_size > 1
    place: dict[str, Any] = {
        "device": trainer.strategy.root_device,
        "rank": trainer.global_rank,
        "world": trainer.world_size,
    }
    batches = Batches(data.train, config.batch_size, shuffle_seed=config.seed, **place)
    module.batch_sizes = batches.sizes
    bar = Progress(config.epochs, len(batches), progress and primary)
    keep = _spaced(config.epochs, _GEOMETRIES)

    def on_record(record: Record, capture: Capture) -> None:
        if not primary:
            return
        layers = {name.removeprefix(_INSIDE): values for name, values in record.layers.items()}
        run.append(replace(record, layers=layers))
        if record.epoch in keep or record.epoch == config.epochs:
            run.write_geometry(geometry_of(record.epoch, capture))
        bar.show(record)

    collapse = (OnlineCollapse if config.measure == "online" else MeasuringCallback)(
        Batches(batches.split, _EVAL_BATCH, **place),
        Batches(data.test, _EVAL_BATCH, **place) if len(data.test.labels) else None,
        classifier=module.classifier,
        every=config.measured,
        layers=[_INSIDE + name for name in config.layers],
        head_decay=_head_decay(config) if config.certify_head else None,
        loss=loss,
        sharded=many,
        progress=progress and primary,
        on_record=on_record,
    )
    stop = StopSignal()
    callbacks = [
        Pace(batches),
        collapse,
        _Checkpoints(run, config),
        KeepState(run, collapse, stop, config),
    ]
    if state is not None:
        take_up(state, trainer, module, batches, callbacks)
    trainer.callbacks += [*callbacks, bar]  # type: ignore[attr-defined]
    made: RunFolder | None = None  # before that the folder may be another's
    try:
        if primary:
            made = folder(data, network)
            trainer.loggers = [make_logger(name, path) for name in config.loggers]
        with stop.installed(), quiet():
            trainer.fit(module, train_dataloaders=batches)
    except Stopped:
        raise
    except Exception as error:
        kept = run.state.is_file()
        if fresh and made and not kept:
            made.discard()
        if not isinstance(error, OSError) or not _is_of_writing(error, path):
            raise
        hint = f"; then go on with 'neuralcollapse train --resume {path}'" if kept or not fresh else ""
        raise InputError(
            f"cannot write the run folder {path}: {error.strerror or error}: free some space or mend the folder{hint}"
        ) from None
    except (KeyboardInterrupt, SystemExit):  # Lightning turns an interrupt into an exit of its own
        if fresh and made and made.replaces_earlier:  # before the first record: the earlier run comes back
            made.discard()
            raise KeyboardInterrupt("the earlier run is as it was") from None
        raise KeyboardInterrupt from None
    finally:
        bar.close()
        if fresh and made:
            made.unlock()
    return run


def _is_of_writing(error: OSError, path: Path) -> bool:
    """Whether an error came from the run folder, or from a disk that takes nothing more."""
    inside = isinstance(error.filename, str | os.PathLike) and Path(error.filename).is_relative_to(path)
    return inside or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


class _Checkpoints(lightning.Callback):
    """Keeps the network's weights every few epochs and at the end."""

    def __init__(self, run: RunFolder, config: TrainConfig) -> None:
        self.run = run
        self.config = config

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        epoch = trainer.current_epoch + 1
        if trainer.is_global_zero and (epoch % self.config.checkpoint_every == 0 or epoch == self.config.epochs):
            state = pl_module.network.state_dict()
            own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
            write_atomically(self.run.checkpoint(epoch), stamped_safetensors(save(own, METADATA)))


def remeasure(
    run: RunFolder, *, certify_head: bool = False, progress: bool = True, trust_code: bool = False
) -> dict[int, dict[str, Any]]:
    """Measure the kept checkpoints of a run anew on its training set: epoch -> measures, with "head" if certified.

    Args:
        run: the folder.
        certify_head: compare the last layer with its exact optimum.
        progress: show how far it is.
        trust_code: import the code that the folder's configuration names, such as `network: my_module:function`.

    Raises:
        InputError: no checkpoints, a config that does not fit, code named without `trust_code`, weights of another
            network, or weights that were changed since they were written.
    """
    config = read_config(run)
    _check_trusted(config, run, trust_code)
    data = load_data(config.data, **config.data_options)
    network = _network(config, data)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module = Classification(network, config, data).to(device)
    loader = Batches(data.train, _EVAL_BATCH, device=device)
    results = {}
    for epoch, file in run.checkpoints():
        try:
            check_safetensors(file)
            network.load_state_dict(load_file(file))
        except Exception as error:  # safetensors and torch raise kinds of their own
            raise InputError(f"cannot load {file} into the run's network: {one_line(error)}") from None
        layers = [_INSIDE + name for name in config.layers]
        capture = collect(module, loader, module.classifier, layers=layers, loss=module.loss, progress=progress)
        results[epoch] = capture.measures()
        if layers:
            found = results[epoch]["layers"]
            results[epoch]["layers"] = {name.removeprefix(_INSIDE): values for name, values in found.items()}
        if certify_head:
            results[epoch]["head"] = head_record(capture, _head_decay(config))
    if not results:
        raise InputError(f"{run.path} holds no checkpoints: train with a smaller checkpoint_every or to the end")
    return results


def read_config(run: RunFolder) -> TrainConfig:
    """The configuration of a run.

    Raises:
        InputError: config.yaml is missing, no YAML mapping, or has unknown or wrong values.
    """
    values = completed(read_mapping(run.path / "config.yaml"))
    check_names(values, str(run.path / "config.yaml"))
    try:
        return TrainConfig(**values)
    except TypeError as error:
        raise InputError(f"{run.path / 'config.yaml'}: {error}") from None


def _is_whole(run: RunFolder, config: TrainConfig) -> bool:
    """Whether a run has its last record."""
    try:
        return run.records()[-1].epoch >= config.epochs
    except InputError:
        return False


def _network(config: TrainConfig, data: Data) -> nn.Module:
    """The run's network; one of sizes that no memory holds is the configuration's fault, not the program's."""
    try:
        return network_for(config, data)
    except (MemoryError, OverflowError) as error:
        why: BaseException = error
    except (RuntimeError, TypeError) as error:
        if not any(word in str(error) for word in ("alloc", "memory", "verflow", "too large")):
            raise
        why = error
    raise InputError(f"the network {config.network} is too large for this machine ({one_line(why)})") from None


def needs_trust(config: TrainConfig) -> str | None:
    """What training or measuring by a configuration would import or load beyond the installed libraries; or None."""
    code = code_named(config.network, config.network_options)
    hub = config.data.startswith("hf:") or ("/" in config.data and ":" not in config.data)
    if code is None and hub and int(version("datasets").split(".")[0]) < 4:  # later ones run no scripts of data sets
        return f"load the data set {config.data}, which may come with a script"
    return code


def _check_trusted(config: TrainConfig, run: RunFolder, trust_code: bool) -> None:
    code = needs_trust(config)
    if code is not None and not trust_code:
        raise InputError(
            f"{run.path / 'config.yaml'} asks to {code}, and a run folder is data: if you trust it, allow that with "
            "--trust-code (trust_code=True)"
        )


def named_paths(config: TrainConfig) -> list[Path]:
    """The files and folders that a configuration names."""
    found = [config.data] if config.data.startswith((".", "/", "~")) else []
    for name in (config.data, config.network):
        kind, colon, place = name.partition(":")
        found += [place] if colon and kind in _WITH_PATHS else []
    return [path for path in (Path(place).expanduser() for place in found) if path.parts and path.exists()]


def environment(data: Data, network: nn.Module) -> dict[str, object]:
    """Versions, hardware, and the shapes of data and network, for the record."""
    return {
        **machine(),
        "lightning": version("lightning"),
        "class_names": list(data.class_names),
        "class_counts": data.train.labels.bincount(minlength=len(data.class_names)).tolist(),
        "train_samples": len(data.train.labels),
        "test_samples": len(data.test.labels),
        "image_shape": list(data.image_shape),
        "pixel_mean": list(data.mean),
        "pixel_std": list(data.std),
        "parameters": sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad),
    }


def _head_decay(config: TrainConfig) -> tuple[float, float | None, float | None]:
    if config.decay_on == "all":
        return config.weight_decay, None, None
    return config.weight_decay, config.feature_decay, config.bias_decay


def _spaced(last: int, count: int) -> set[int]:
    """About `count` epochs from 0 to `last`, closer together at first, where more happens."""
    return {round(last * (i / count) ** 2) for i in range(count + 1)} | set(range(min(last, 5) + 1))
