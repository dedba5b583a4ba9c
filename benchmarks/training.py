"""The training loop and the measuring pass, each beside bare PyTorch on the same network and images."""

from __future__ import annotations

import tempfile
from dataclasses import replace

import lightning
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from harness import Row, Table
from neuralcollapse.capture.collect import collect
from neuralcollapse.data.batches import Batches
from neuralcollapse.data.load import Data
from neuralcollapse.data.splits import Split
from neuralcollapse.networks.build import build_network
from neuralcollapse.runs.folder import RunFolder
from neuralcollapse.training.callbacks import EpochSchedule, SaveState
from neuralcollapse.training.config import TrainConfig
from neuralcollapse.training.resume import StopSignal
from neuralcollapse.training.step import Classification
from neuralcollapse.training.trainer import quiet

BATCH, EVAL_BATCH = 128, 512
MEAN, STD = 72.9, 90.0
CONFIG = TrainConfig(network="resnet18_width", width=8, stem="small", batch_size=BATCH, weight_decay=5e-4, epochs=1)


def training(quick: bool) -> Table:
    """One epoch."""
    data = _data(256 if quick else 6_400)
    bare, loaded = network(), network()
    bare_sgd, loaded_sgd = sgd(bare), sgd(loaded)
    loader = DataLoader(TensorDataset(data.train.images, data.train.labels), batch_size=BATCH, shuffle=True)
    return Table(
        f"Training: ResNet18 of width 8, 3x3 stem, an epoch of {len(data.train.labels):,} images 1x28x28, batches of "
        f"{BATCH}, SGD",
        [
            Row(
                "bare PyTorch loop over tensors in memory",
                lambda: bare_epoch(data, bare, bare_sgd),
                peak=True,
            ),
            Row("the same with a DataLoader", lambda: loader_epoch(loader, loaded, loaded_sgd)),
            Row("an epoch of `neuralcollapse train`, with a new trainer", Ours(data), "at most 1.1", peak=True),
        ],
        rounds=2 if quick else 5,
    )


def measuring(quick: bool) -> Table:
    """One pass over the data in eval mode."""
    data = _data(256 if quick else 6_400)
    model = network()
    module = Classification(model, CONFIG, data)
    batches = Batches(data.train, EVAL_BATCH)
    return Table(
        f"Measuring: the same network and images, batches of {EVAL_BATCH}, with NC4",
        [
            Row("bare forward pass", lambda: bare_pass(data, model), peak=True),
            Row(
                "measuring pass and measures",
                lambda: collect(module, batches, module.classifier, progress=False).measures(),
                "at most 1.05",
                peak=True,
            ),
        ],
        rounds=2 if quick else 7,
    )


class Ours:
    """One epoch by the trainer, setting it up included: what `neuralcollapse train` does, without measuring."""

    def __init__(self, data: Data) -> None:
        self.module = Classification(network(), CONFIG, data)
        self.batches = Batches(data.train, BATCH, shuffle_seed=0)
        self.folder = tempfile.TemporaryDirectory()
        self.run = RunFolder.create(f"{self.folder.name}/run")

    def __call__(self) -> None:
        save = SaveState(self.run, dict, StopSignal(), replace(CONFIG, save_seconds=1e9))
        with quiet():
            trainer = lightning.Trainer(
                max_epochs=1,
                accelerator="cpu",
                callbacks=[EpochSchedule(self.batches), save],
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            trainer.fit(self.module, self.batches)


def network() -> nn.Module:
    """The same at each call."""
    torch.manual_seed(0)
    return build_network("resnet18_width", 10, stem="small", width=8, in_channels=1)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of CONFIG."""
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)


def bare_epoch(data: Data, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """What a loop written by hand does."""
    images, labels = data.train.images, data.train.labels
    model.train()
    for chosen in torch.randperm(len(labels)).split(BATCH):
        inputs = (images[chosen].float() - MEAN) / STD
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels[chosen]).backward()
        optimizer.step()


def loader_epoch(loader: DataLoader, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """The same, one image at a time."""
    model.train()
    for images, labels in loader:
        optimizer.zero_grad()
        F.cross_entropy(model((images.float() - MEAN) / STD), labels).backward()
        optimizer.step()


def bare_pass(data: Data, model: nn.Module) -> None:
    """Forward alone."""
    model.eval()
    with torch.no_grad():
        for images in data.train.images.split(EVAL_BATCH):
            model((images.float() - MEAN) / STD)


def _data(count: int) -> Data:
    torch.manual_seed(0)
    images = torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8)
    split = Split(images, torch.arange(count) % 10)
    return Data(split, split, tuple("0123456789"), (MEAN,), (STD,), 1)
