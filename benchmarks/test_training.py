"""The training loop and the measuring pass, each beside bare PyTorch; `run.py` writes the table."""

import time
from dataclasses import replace

import lightning
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from neuralcollapse.capture import collect
from neuralcollapse.records import RunFolder
from neuralcollapse.training.callbacks import MeasuringCallback
from neuralcollapse.training.config import TrainConfig
from neuralcollapse.training.data import Batches, Data, Split
from neuralcollapse.training.module import Classification
from neuralcollapse.training.networks import build_network
from neuralcollapse.training.resume import KeepState, Pace, StopSignal
from neuralcollapse.training.trainer import quiet

COUNT, BATCH, EVAL_BATCH, ROUNDS = 6_400, 128, 512, 5
MEAN, STD = 72.9, 90.0
CONFIG = TrainConfig(network="resnet18_width", width=8, stem="small", batch_size=BATCH, weight_decay=5e-4, epochs=1)


@pytest.fixture(scope="module")
def data() -> Data:
    torch.manual_seed(0)
    images = torch.randint(0, 256, (COUNT, 1, 28, 28), dtype=torch.uint8)
    split = Split(images, torch.arange(COUNT) % 10)
    return Data(split, split, tuple("0123456789"), (MEAN,), (STD,), 1)


def network() -> nn.Module:
    torch.manual_seed(0)
    return build_network("resnet18_width", 10, stem="small", width=8, in_channels=1)


def bare_epoch(data: Data, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    images, labels = data.train.images, data.train.labels
    model.train()
    for chosen in torch.randperm(COUNT).split(BATCH):
        inputs = (images[chosen].float() - MEAN) / STD
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels[chosen]).backward()
        optimizer.step()


def loader_epoch(loader: torch.utils.data.DataLoader, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model.train()
    for images, labels in loader:
        optimizer.zero_grad()
        F.cross_entropy(model((images.float() - MEAN) / STD), labels).backward()
        optimizer.step()


class Ours:
    """One epoch by the trainer, setting it up included: what `neuralcollapse train` does, without measuring."""

    def __init__(self, data: Data, folder) -> None:
        self.module = Classification(network(), CONFIG, data)
        self.batches = Batches(data.train, BATCH, shuffle_seed=0)
        self.run = RunFolder.create(folder, force=True)

    def __call__(self) -> None:
        keep = KeepState(self.run, MeasuringCallback([]), StopSignal(), replace(CONFIG, save_seconds=1e9))
        with quiet():
            trainer = lightning.Trainer(
                max_epochs=1,
                accelerator="cpu",
                callbacks=[Pace(self.batches), keep],
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            trainer.fit(self.module, self.batches)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)


def paired(first, second) -> str:
    """The median of the ratios of rounds that alternate, which a change of the machine's pace hardly moves."""
    ratios = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        first()
        middle = time.perf_counter()
        second()
        ratios.append((time.perf_counter() - middle) / (middle - start))
    return f"in alternation {sorted(ratios)[ROUNDS // 2]:.3f}"


@pytest.mark.benchmark(group="training")
def test_bare_loop(benchmark, data):
    model = network()
    optimizer = sgd(model)
    benchmark.pedantic(lambda: bare_epoch(data, model, optimizer), rounds=ROUNDS, warmup_rounds=1)


@pytest.mark.benchmark(group="training")
def test_loader_loop(benchmark, data):
    model = network()
    optimizer = sgd(model)
    pairs = torch.utils.data.TensorDataset(data.train.images, data.train.labels)
    loader = torch.utils.data.DataLoader(pairs, batch_size=BATCH, shuffle=True)
    benchmark.pedantic(lambda: loader_epoch(loader, model, optimizer), rounds=ROUNDS, warmup_rounds=1)


@pytest.mark.benchmark(group="training")
def test_our_loop(benchmark, data, tmp_path):
    model = network()
    optimizer = sgd(model)
    ours = Ours(data, tmp_path / "run")
    benchmark.pedantic(ours, rounds=ROUNDS, warmup_rounds=1)
    benchmark.extra_info["note"] = paired(lambda: bare_epoch(data, model, optimizer), ours)


def bare_pass(data: Data, model: nn.Module) -> None:
    model.eval()
    with torch.no_grad():
        for images in data.train.images.split(EVAL_BATCH):
            model((images.float() - MEAN) / STD)


@pytest.mark.benchmark(group="measuring")
def test_bare_pass(benchmark, data):
    model = network()
    benchmark.pedantic(lambda: bare_pass(data, model), rounds=ROUNDS, warmup_rounds=1)


@pytest.mark.benchmark(group="measuring")
def test_measuring_pass(benchmark, data):
    model = network()
    module = Classification(model, CONFIG, data)
    batches = Batches(data.train, EVAL_BATCH)

    def measure() -> None:
        collect(module, batches, module.classifier, progress=False).measures()

    benchmark.pedantic(measure, rounds=ROUNDS, warmup_rounds=1)
    benchmark.extra_info["note"] = paired(lambda: bare_pass(data, model), measure)
