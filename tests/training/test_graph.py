"""Training by CUDA graphs. On the CPU a recording that runs the captured step again stands in for the graph."""

import inspect
import json
import signal
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from neuralcollapse import InputError
from neuralcollapse.runs.folder import RunFolder
from neuralcollapse.training import run as running
from neuralcollapse.training.config import TrainConfig
from neuralcollapse.training.graph import StaticStep, Watch, refusal, unchanged, unfit_operation
from neuralcollapse.training.resume import Stopped
from neuralcollapse.training.run import resume, train
from neuralcollapse.training.step import Classification
from neuralcollapse.training.trainer import UNCAPTURED, quiet

pytestmark = pytest.mark.filterwarnings("ignore::neuralcollapse.NeuralCollapseWarning")  # few samples, narrow networks
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SHORT = TrainConfig(
    epochs=4, width=12, depth=2, feature_dim=10, samples_per_class=11, batch_size=20, loggers=(), measure_at=(4,)
)  # 5 full batches and one of 10


class Again:
    """A recording on the CPU: the replay runs the captured step on the same tensors."""

    made: ClassVar[list["Again"]] = []

    def __init__(self, device: torch.device) -> None:
        self.replays = self.captures = self.rehearsals = 0
        self.step = None
        self.made.append(self)

    def rehearse(self, step):
        self.rehearsals += 1
        step()

    def capture(self, step):
        self.captures += 1
        self.step = step

    def replay(self):
        self.replays += 1
        self.step()


@pytest.fixture
def again(monkeypatch):
    """Runs on the CPU are taken for runs on a GPU, with `Again` for the graph; gives all that were made."""
    monkeypatch.setattr(running, "refusal", lambda config, device, world: refusal(config, CUDA, world))
    monkeypatch.setattr(running, "CudaRecording", Again)
    monkeypatch.setattr(Again, "made", [])
    return Again.made


def weights(run: RunFolder) -> dict[str, torch.Tensor]:
    return load_file(run.checkpoints()[-1][1])


def records(run: RunFolder) -> list[dict]:
    lines = [json.loads(line) for line in run.read_text("records.jsonl").splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


CASES = {
    "sgd": {},
    "no momentum": {"momentum": 0.0},
    "adam": {"optimizer": "adam"},
    "adamw": {"optimizer": "adamw"},
    "steps": {"decay_every": 2},
    "cosine": {"schedule": "cosine", "learning_rate": 0.1},
    "warm-up": {"decay_warmup": 2, "weight_decay": 0.05},
    "classifier": {"decay_on": "classifier", "feature_decay": 1e-3, "bias_decay": 0.02, "decay_warmup": 1},
    "augmented": {"augment": "crop+flip", "seed": 3},
    "bfloat16": {"precision": "bf16-mixed"},
    "64 bits": {"precision": "64-true"},
    "clipped": {"gradient_clip": 0.1},
    "online": {"measure": "online", "measure_at": (2, 4)},
    "channels last": {
        "network": "resnet18_width",
        "width": 4,
        "depth": None,
        "feature_dim": None,
        "channels_last": True,
    },
    "fixed": {"frame": "simplex", "learn_scale": True},
    "squares": {"loss": "mse"},
}


@pytest.mark.parametrize("case", CASES)
def test_the_end_is_that_of_the_ordinary_step(case, again, tmp_path):
    config = replace(SHORT, **CASES[case])
    replayed = train(config, tmp_path / "replayed", progress=False)
    plain = train(replace(config, cuda_graph="off"), tmp_path / "plain", progress=False)
    (recording,) = again
    assert recording.replays == 5 * config.epochs
    found, expected = weights(replayed), weights(plain)
    assert list(found) == list(expected)
    near = {"rtol": 1e-2, "atol": 1e-3} if case == "bfloat16" else {"rtol": 1e-5, "atol": 1e-6}
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, **near, msg=lambda text, name=name: f"{name}: {text}")
    assert [record["epoch"] for record in records(replayed)] == [record["epoch"] for record in records(plain)]


@pytest.mark.parametrize(
    ("options", "captures"),
    [({"schedule": "constant"}, 1), ({"decay_every": 2}, 2), ({"schedule": "cosine"}, 4), ({"decay_warmup": 1}, 2)],
)
def test_the_step_is_captured_again_when_a_rate_or_decay_changes(options, captures, again, tmp_path):
    train(replace(SHORT, **options), tmp_path / "run", progress=False)
    (recording,) = again
    assert (recording.captures, recording.rehearsals) == (captures, 3)


class Drops(nn.Module):
    """A network with dropout."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body, self.fc = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Dropout(0.5)), nn.Linear(12, num_classes)

    def forward(self, images):
        return self.fc(self.body(images))


OWN = {"width": None, "depth": None, "feature_dim": None}  # a network of our own takes none of these


@pytest.mark.parametrize("case", ["sgd", "adam", "augmented", "online", "channels last", "dropout"])
@pytest.mark.parametrize("step", [0, 3, 5])
def test_a_resumed_run_ends_bit_for_bit_the_same(case, step, again, tmp_path, monkeypatch):
    module = ModuleType("dropping")
    module.Drops = Drops
    monkeypatch.setitem(sys.modules, "dropping", module)
    config = replace(SHORT, **(CASES | {"dropout": {"network": "dropping:Drops", **OWN}})[case])
    whole = train(config, tmp_path / "whole", progress=False)
    original, left = Classification.training_step, [signal.SIGTERM]

    def training_step(self, *args):
        if left and (self.current_epoch, self.step) == (1, step):
            signal.raise_signal(left.pop())
        return original(self, *args)

    monkeypatch.setattr(Classification, "training_step", training_step)
    with pytest.raises(Stopped):
        train(config, tmp_path / "run", progress=False)
    run = resume(tmp_path / "run", progress=False, trust_code=True)
    assert records(run) == records(whole)
    assert run.checkpoints()[-1][1].read_bytes() == whole.checkpoints()[-1][1].read_bytes()


def test_the_loggers_count_the_steps(again, tmp_path):
    run = train(replace(SHORT, epochs=2, measure_at=(2,), loggers=("csv",)), tmp_path / "run", progress=False)
    lines = next((run.path / "logs").rglob("metrics.csv")).read_text().splitlines()
    steps = [dict(zip(lines[0].split(","), line.split(","), strict=True))["step"] for line in lines[1:]]
    assert steps[-1] == "12"


def test_what_was_decided_is_in_the_run_folder(again, tmp_path):
    on = train(replace(SHORT, epochs=1, measure_at=(1,)), tmp_path / "on", progress=False)
    assert json.loads(on.read_text("environment.json"))["cuda_graph"] == "on"
    off = train(replace(SHORT, epochs=1, measure_at=(1,), optimizer="lbfgs"), tmp_path / "off", progress=False)
    said = json.loads(off.read_text("environment.json"))
    assert said["cuda_graph"] == "off: the line search of lbfgs must know the loss before it goes on"
    assert said["precision"] == "32-true"
    assert resume(off.path, {"precision": "auto"}, progress=False).path == off.path
    assert TrainConfig(cuda_graph=True).cuda_graph == "on"  # as YAML reads it


@pytest.mark.parametrize(
    ("options", "device", "world", "why"),
    [
        ({}, CPU, 1, "it needs a CUDA GPU, got cpu"),
        ({}, CUDA, 2, "it is for one process, got 2"),
        ({"strategy": "ddp"}, CUDA, 1, "it is for one process, got strategy=ddp"),
        ({"precision": "16-mixed"}, CUDA, 1, "precision=16-mixed decides about each step by its gradients"),
        ({"compile": True}, CUDA, 1, "compile makes kernels of its own"),
        ({"precision": "bf16-mixed"}, CUDA, 1, None),
    ],
)
def test_when_it_cannot_be_done(options, device, world, why):
    assert refusal(TrainConfig(**{"precision": "32-true"} | options), device, world) == why


def test_asked_for_where_it_cannot_be_done_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"^cuda_graph=on cannot be done here: it needs a CUDA GPU, got cpu: "):
        train(replace(SHORT, cuda_graph="on", accelerator="cpu"), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


class Waits(nn.Module):
    """A network that looks at its features between two layers."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body, self.fc = nn.Linear(64, 12), nn.Linear(12, num_classes)

    def forward(self, images):
        features = self.body(images.flatten(1))
        return self.fc(features if features.sum() > 0 else -features)


def test_a_network_that_waits_trains_without(again, tmp_path, monkeypatch):
    module = ModuleType("waiting")
    module.Waits = Waits
    monkeypatch.setitem(sys.modules, "waiting", module)
    config = replace(SHORT, epochs=1, measure_at=(1,), network="waiting:Waits", **OWN)
    run = train(config, tmp_path / "auto", progress=False)
    assert json.loads(run.read_text("environment.json"))["cuda_graph"].startswith("off: the network waits ")
    with pytest.raises(InputError, match="cuda_graph=on cannot be done here: the network waits for the device"):
        train(replace(config, cuda_graph="on"), tmp_path / "on", progress=False)


def test_looking_for_what_is_unfit_changes_nothing():
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert unfit_operation(network, lambda: network(torch.randn(5, 3)).sum().backward()) is None
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_what_a_first_pass_alone_does_is_not_unfit():
    made = []

    def gradients():
        if not made:
            made.append(torch.ones(3).sum().item())

    assert unfit_operation(nn.Linear(2, 2), gradients) is None


def test_what_no_step_touched_is_not_written_to():
    """A layer that made something from a buffer would see the writing, and make it again."""
    network = nn.BatchNorm1d(3)
    network.register_buffer("scale", torch.ones(3))
    versions = network.scale._version, network.num_batches_tracked._version
    with unchanged(network):
        network(torch.randn(4, 3))
    assert network.num_batches_tracked == 0
    assert torch.equal(network.running_mean, torch.zeros(3))
    assert network.scale._version == versions[0]
    assert network.num_batches_tracked._version > versions[1]


@pytest.mark.parametrize(
    ("error", "expected", "words"),
    [
        (RuntimeError("no such copy"), InputError, "as a CUDA graph \\(no such copy\\): train with --cuda-graph off"),
        (torch.OutOfMemoryError("no memory"), torch.OutOfMemoryError, "no memory"),
    ],
)
def test_the_error_of_a_capture_is_that_of_the_step(error, expected, words):
    """The end of a capture that went wrong raises an error of its own over it."""

    class Ends(Again):
        made: ClassVar[list[Again]] = []

        def capture(self, step):
            try:
                step()
            finally:
                raise RuntimeError("operation failed due to a previous error during capture")

        def rehearse(self, step):
            pass

    def step(_):
        raise error

    steps = StaticStep(step, Ends(CPU), lambda: unchanged(nn.Linear(2, 2)))
    with pytest.raises(expected, match=words):
        steps([torch.ones(2)], 0)


@pytest.mark.parametrize("make", [lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), lambda p: torch.optim.Adam(p, 0.1)])
def test_what_a_rehearsal_leaves_is_no_state(make):
    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    optimizer = make(network.parameters())

    def step():
        network.zero_grad()
        network(torch.ones(4, 3)).square().sum().backward()
        optimizer.step()

    start = {name: value.clone() for name, value in network.state_dict().items()}
    step()
    once = {name: value.clone() for name, value in network.state_dict().items()}
    network.load_state_dict(start)
    optimizer.state.clear()
    with unchanged(network, optimizer):
        step()
        step()
    assert all(torch.equal(value, start[name]) for name, value in network.state_dict().items())
    step()
    assert all(torch.equal(value, once[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("case", ["sgd", "classifier", "augmented", "bfloat16", "clipped", "online", "fixed"])
def test_no_step_waits_for_the_device(case, again, tmp_path, monkeypatch):
    """The operations of each replayed step hold none whose result the processor needs. (Adam's on the CPU do.)"""
    watches = []
    original = Again.replay

    def replay(self):
        with Watch() as watch:
            original(self)
        watches.append(watch)

    monkeypatch.setattr(Again, "replay", replay)
    train(
        replace(SHORT, **CASES[case] | {"epochs": 1, "measure_at": (1,), "decay_warmup": 0}), tmp_path, progress=False
    )
    assert len(watches) == 5
    assert all(watch.count > 10 for watch in watches)
    assert [watch.unfit for watch in watches] == [[]] * 5


def test_the_watch_sees_what_waits():
    with Watch() as watch:
        torch.ones(3).sum().item()
        torch.ones(3).nonzero()
    assert watch.unfit == ["aten::_local_scalar_dense", "aten::nonzero"]


def test_the_watch_sees_masks_that_choose_a_number_of_values():
    values = torch.ones(3)
    with Watch() as watch:
        values[values > 0] = 2.0  # a number for all: no count is needed
        values[[0, 1]]
    assert watch.unfit == []
    with Watch() as watch:
        values[values > 0]
        values[values > 0] = torch.ones(3)
    assert watch.unfit == ["aten::index", "aten::index_put_"]


def test_the_warning_that_is_silenced_is_one_of_torch():
    assert UNCAPTURED in inspect.getsource(torch.optim.Optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with quiet():
            warnings.warn(f"{UNCAPTURED} or some of all the param_groups", stacklevel=1)


@pytest.mark.parametrize("found", [((8, 0), "bf16-mixed"), ((7, 5), "32-true"), (None, "32-true")])
def test_the_precision_is_that_of_the_chip(found, monkeypatch):
    from neuralcollapse.training.trainer import with_precision

    capability, precision = found
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert with_precision(TrainConfig()).precision == precision
    assert with_precision(TrainConfig(accelerator="cpu")).precision == "32-true"
    assert with_precision(TrainConfig(optimizer="lbfgs")).precision == "32-true"
    assert with_precision(TrainConfig(precision="64-true")).precision == "64-true"


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@gpu
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_cuda_graph_ends_where_the_ordinary_step_does(optimizer, precision, tmp_path: Path):
    config = replace(SHORT, optimizer=optimizer, precision=precision, decay_every=2, accelerator="cuda")
    replayed = train(replace(config, cuda_graph="on"), tmp_path / "replayed", progress=False)
    plain = train(replace(config, cuda_graph="off"), tmp_path / "plain", progress=False)
    near = {"rtol": 1e-3, "atol": 1e-4} if precision == "32-true" else {"rtol": 5e-2, "atol": 5e-3}
    for name, value in weights(plain).items():
        torch.testing.assert_close(weights(replayed)[name], value, **near)


@gpu
def test_a_cuda_graph_goes_on_bit_for_bit(tmp_path: Path):
    config = replace(
        SHORT,
        network="resnet18_width",
        width=2,
        depth=None,
        feature_dim=None,
        augment="crop",
        cuda_graph="on",
        accelerator="cuda",
    )
    whole = train(config, tmp_path / "whole", progress=False)
    train(replace(config, epochs=2, measure_at=(2,)), tmp_path / "run", progress=False)
    run = resume(tmp_path / "run", {"epochs": 4, "measure_at": (4,)}, progress=False)
    assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(run).items())
