"""One run from a TrainConfig: data, network, trainer, records, checkpoints."""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
import warnings
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
import yaml
from safetensors.torch import load_file, save
from torch import nn
from tqdm import tqdm

from neuralcollapse._errors import InputError
from neuralcollapse.capture import Capture, collect
from neuralcollapse.records import Geometry, Record, RunFolder, write_atomically
from neuralcollapse.training.callbacks import CollapseCallback, head_record
from neuralcollapse.training.config import TrainConfig, check_names
from neuralcollapse.training.data import Batches, Data, load_data
from neuralcollapse.training.module import Classification
from neuralcollapse.training.networks import build_network

_EVAL_BATCH = 512  # samples of a batch when measuring
_GEOMETRIES = 40  # class means are kept at about this many epochs


def train(config: TrainConfig, out: str | Path, *, force: bool = False, progress: bool = True) -> RunFolder:
    """Train a network as described, measuring collapse, and leave a run folder.

    Args:
        config: the run.
        out: the run folder; must be new or empty.
        force: overwrite an earlier run in `out`.
        progress: show how far it is.

    Raises:
        InputError: an unknown data set or network, d < K-1 for an ETF classifier, a folder in use, training that
            diverged (the run folder is removed).
        KeyboardInterrupt: the records so far stay in the folder.
    """
    data = load_data(config.data)
    lightning.seed_everything(config.seed, verbose=False)
    network = _build(config, data)
    run = RunFolder.create(out, force=force)
    run.write_text("config.yaml", yaml.safe_dump(asdict(config), sort_keys=False))
    run.write_text("environment.json", json.dumps(environment(data), indent=2) + "\n")

    keep = _spaced(config.epochs, _GEOMETRIES)
    with _Progress(config.epochs, progress) as bar:

        def on_record(record: Record, capture: Capture) -> None:
            run.append(record)
            if record.epoch in keep or record.epoch == config.epochs:
                run.write_geometry(_geometry(record.epoch, capture))
            if record.epoch and (record.epoch % config.checkpoint_every == 0 or record.epoch == config.epochs):
                write_atomically(run.checkpoint(record.epoch), save(_own(network.state_dict())))
            bar.show(record)

        callback = CollapseCallback(
            Batches(data.train, _EVAL_BATCH),
            Batches(data.test, _EVAL_BATCH),
            classifier="network.fc",
            every=config.measure_every,
            head_decay=config.weight_decay if config.certify_head else None,
            on_record=on_record,
        )
        shuffle = torch.Generator().manual_seed(config.seed)
        batches = Batches(data.train, config.batch_size, shuffle)
        try:
            _fit(Classification(network, config), batches, callback, config.epochs)
        except InputError:
            run.discard()
            raise
    return run


def remeasure(run: RunFolder, *, certify_head: bool = False, progress: bool = True) -> dict[int, dict[str, Any]]:
    """Measure the kept checkpoints of a run anew on its training set: epoch -> measures, with "head" if certified.

    Raises:
        InputError: no checkpoints, a config that does not fit, weights of another network.
    """
    config = read_config(run)
    data = load_data(config.data)
    network = _build(config, data)
    results = {}
    for epoch, file in run.checkpoints():
        try:
            network.load_state_dict(load_file(file))
        except Exception as error:  # safetensors and torch raise kinds of their own
            first = str(error).splitlines()[0]
            raise InputError(f"cannot load {file} into the run's network: {first}") from None
        loader = Batches(data.train, _EVAL_BATCH)
        capture = collect(network, loader, "fc", progress=progress)
        results[epoch] = capture.measures()
        if certify_head:
            results[epoch]["head"] = head_record(capture, config.weight_decay)
    if not results:
        raise InputError(f"{run.path} holds no checkpoints: train with a smaller checkpoint_every or to the end")
    return results


def read_config(run: RunFolder) -> TrainConfig:
    """The configuration of a run.

    Raises:
        InputError: config.yaml is missing, no YAML mapping, or has unknown or wrong values.
    """
    text = run.read_text("config.yaml")
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{run.path / 'config.yaml'} is not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict):
        raise InputError(f"{run.path / 'config.yaml'}: expected a mapping of options")
    check_names(values, str(run.path / "config.yaml"))
    try:
        return TrainConfig(**values)
    except TypeError as error:
        raise InputError(f"{run.path / 'config.yaml'}: {error}") from None


def environment(data: Data) -> dict[str, object]:
    """Versions, hardware and the data's shape, for the record."""
    packages = ("neuralcollapse", "torch", "lightning", "torchmetrics", "numpy")
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "class_names": list(data.class_names),
        "train_samples": len(data.train.labels),
        "test_samples": len(data.test.labels),
    }


def _build(config: TrainConfig, data: Data) -> nn.Module:
    return build_network(
        config.network,
        data.num_classes,
        config.feature_dim,
        config.classifier,
        in_features=data.train.images[0].numel(),
        width=config.width,
        depth=config.depth,
    )


def _fit(module: Classification, batches: Batches, callback: CollapseCallback, epochs: int) -> None:
    for name in ("lightning.pytorch", "lightning.fabric"):  # its tips and banners; our own progress says enough
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator="auto",
            devices=1,
            callbacks=[callback],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        try:
            trainer.fit(module, train_dataloaders=batches)
        except SystemExit:  # Lightning turns an interrupt into an exit of its own
            raise KeyboardInterrupt from None
        if trainer.interrupted:
            raise KeyboardInterrupt


def _geometry(epoch: int, capture: Capture) -> Geometry:
    moments = capture.moments
    bias = np.zeros(moments.num_classes) if capture.bias is None else capture.bias.float().cpu().numpy()
    return Geometry(
        epoch,
        moments.means.cpu().numpy(),
        moments.global_mean.cpu().numpy(),
        capture.weight.float().cpu().numpy(),
        bias,
    )


def _own(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def _spaced(last: int, count: int) -> set[int]:
    """About `count` epochs from 0 to `last`, closer together at first, where more happens."""
    return {round(last * (i / count) ** 2) for i in range(count + 1)} | set(range(min(last, 5) + 1))


class _Progress:
    """One line: a bar on a terminal, or now and then a line elsewhere."""

    def __init__(self, epochs: int, show: bool) -> None:
        self.epochs = epochs
        self.visible = show
        self.bar = tqdm(total=epochs, unit="epoch", disable=None if show else True, leave=False)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def show(self, record: Record) -> None:
        text = f"accuracy {record.train['accuracy']:.4f}  NC1 {record.measures['nc1']:.2e}"
        if record.head:
            text += f"  head {record.head['ratio']:.3f} x minimum"
        if not self.bar.disable:
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(record.epoch - self.bar.n)
        elif self.visible and record.epoch % max(1, self.epochs // 10) == 0:
            print(f"epoch {record.epoch:>4}/{self.epochs}  {text}", file=sys.stderr, flush=True)
