"""What one training step of a run costs: parameters, measured memory and time."""

from __future__ import annotations

import gc
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from neuralcollapse.checks import check_count
from neuralcollapse.data.batches import Batches
from neuralcollapse.data.load import load_data
from neuralcollapse.errors import InputError
from neuralcollapse.training.config import TrainConfig
from neuralcollapse.training.network import network_for
from neuralcollapse.training.step import Classification
from neuralcollapse.training.trainer import kept_flags

_WARM_UP = 2  # rounds before those that count
_PROBE = 1021  # bytes; any number


@dataclass(frozen=True)
class Cost:
    """What one step costs; memory in bytes, in which a storage that several tensors share counts once.

    Args:
        parameters: trainable numbers of the network.
        weights: the network's parameters and buffers.
        gradients: of the parameters, as a backward pass leaves them.
        optimizer_state: tensors that the optimiser keeps from step to step.
        peak: the most that was held at once during a step: weights, gradients, optimiser state, batch, activations and
            what the operations needed beside (see `peak_of`).
        step_seconds: median over the timed steps: forward, loss, backward, optimiser step.
        device: "cpu", or the GPU's name.
    """

    parameters: int
    weights: int
    gradients: int
    optimizer_state: int
    peak: int
    step_seconds: float
    device: str


def step_costs(configs: Mapping[str, TrainConfig], *, steps: int = 12) -> dict[str, Cost]:
    """What a training step of each configuration costs, on this machine.

    Each network takes the steps that `train` does, on the first batch of its training set again and again. They go in
    turns, a step of each configuration a round, with another one first each time, so that what disturbs the machine
    falls on all alike; two rounds come before the `steps` that are timed. The networks, gradients and optimisers are
    all in memory at once, the activations of one at a time. Time to read the data, and what Lightning does around a
    step, are left out. The device is that of accelerator: "cpu", "cuda", or "auto" for a GPU where there is one.
    """
    check_count(steps, "steps", 1)
    if not configs:
        raise InputError("expected at least one configuration, got none: give a mapping from names to TrainConfig")
    device = _common_device(configs)
    runs = {name: _Steps(config, device) for name, config in configs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    order = list(runs)
    for _ in range(_WARM_UP + steps):
        for name in order:
            seconds[name].append(_seconds(runs[name], device))
        order.append(order.pop(0))
    return {name: run.cost(median(seconds[name][_WARM_UP:])) for name, run in runs.items()}


def peak_of(step: Callable[[], object], device: torch.device) -> int:
    """The most bytes that torch's allocator held at once during a step, beyond what it held before.

    The step runs twice and the second is measured, so that it begins as in the middle of training: what the first
    leaves (gradients) is held already, and what the second frees of that counts as freed.

    Every block that torch's allocator of the device gives away counts, those inside operations too. On the CPU: the
    bytes asked for, from the profiler's events; what libraries (MKL, OpenMP) take from the system on their own is not
    seen, and a block from before the first step which the second frees is taken to be held on. On CUDA: from the
    allocator's statistics, in its blocks, which are multiples of 512 bytes.

    Args:
        step: leaves as much held as it finds, from the second time on.
        device: where it works, "cpu" or "cuda".

    Raises:
        RuntimeError: this torch's profiler tells of allocations in a way that is not known here.
    """
    with _no_collection():
        return _rise_on_cuda(step, device) if device.type == "cuda" else _rise_on_cpu(step)


def _rise_on_cuda(step: Callable[[], object], device: torch.device) -> int:
    step()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    return torch.cuda.max_memory_allocated(device) - before


def _rise_on_cpu(step: Callable[[], object]) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
        probe = torch.empty(_PROBE, dtype=torch.uint8)  # its event marks where the second step begins
        step()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(file))
        trace = json.loads(file.read_bytes())
    return _rise(trace["traceEvents"], probe)


def _rise(events: Iterable[Mapping[str, Any]], probe: Tensor) -> int:
    """The greatest "Total Allocated" of the trace above that at the probe's allocation, from there on.

    Writing the trace is public, the names in it are not promised: hence the probe, which must be found.
    """
    try:
        memory = sorted((event for event in events if event.get("name") == "[memory]"), key=lambda event: event["ts"])
        found = [event["args"] for event in memory if event["args"]["Device Type"] == 0]  # 0: the CPU
        marks = [i for i, args in enumerate(found) if (args["Bytes"], args["Addr"]) == (probe.nbytes, probe.data_ptr())]
        totals = [args["Total Allocated"] for args in found[marks[-1] :]]
    except (KeyError, IndexError):
        raise RuntimeError(f"torch {torch.__version__}: no allocations found in the profiler's trace") from None
    return max(totals) - totals[0]


class _Steps:
    """A configuration's training steps, one a call, on one batch."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        data = load_data(config.data, **config.data_options)
        if config.batch_size > len(data.train.labels):
            raise InputError(
                f"expected a batch_size of at most the {len(data.train.labels)} training samples, got "
                f"{config.batch_size}: such a batch never comes; choose a smaller one"
            )
        if device.type == "cuda" and config.deterministic:
            os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # as Lightning's trainer does
        torch.manual_seed(config.seed)
        self.config = config
        self.device = device
        self.network: nn.Module = network_for(config, data)
        self.module = Classification(self.network, config, data).to(device)
        self.optimizer = self.module.configure_optimizers()
        images, labels = next(iter(Batches(data.train, config.batch_size, shuffle_seed=config.seed)))
        self.batch = images.to(device), labels.to(device)

    def __call__(self) -> None:
        """A step in the order of Lightning's loop, where the old gradients live until the forward pass is done."""
        with _deterministic(self.config.deterministic):
            loss = self.module.training_step(self.batch, 0)
            self.optimizer.zero_grad()
            loss.backward()
            if self.config.gradient_clip:
                nn.utils.clip_grad_norm_(self.module.parameters(), self.config.gradient_clip)
            self.optimizer.step()
        self.module.on_train_batch_end()

    def cost(self, seconds: float) -> Cost:
        """What was measured: the memory now, the time before."""
        module = self.module
        self.optimizer.zero_grad()  # blocks that the profiler would not know
        module.seen = None
        rise = peak_of(self, self.device)
        weights = [*self.network.parameters(), *self.network.buffers()]
        gradients = [parameter.grad for parameter in self.network.parameters() if parameter.grad is not None]
        state = [
            value for kept in self.optimizer.state.values() for value in kept.values() if isinstance(value, Tensor)
        ]
        others = [*module.buffers(), *self.batch, *(module.seen or ())]
        return Cost(
            parameters=sum(parameter.numel() for parameter in self.network.parameters() if parameter.requires_grad),
            weights=_bytes(weights),
            gradients=_bytes(gradients),
            optimizer_state=_bytes(state),
            peak=_bytes([*weights, *gradients, *state, *others]) + rise,
            step_seconds=seconds,
            device=torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu",
        )


def _bytes(tensors: Iterable[Tensor]) -> int:
    """The bytes of the tensors' storages, each once."""
    storages = [(tensor.device, tensor.untyped_storage()) for tensor in tensors]
    return sum({(device, storage.data_ptr()): storage.nbytes() for device, storage in storages}.values())


def _seconds(run: Callable[[], None], device: torch.device) -> float:
    """What a call takes, until the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


@contextmanager
def _no_collection() -> Iterator[None]:
    """Without Python's garbage collector, which might free old tensors in the midst of a step."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    """Deterministic algorithms where there are any, as the trainer sets them, for a while."""
    with kept_flags():
        torch.use_deterministic_algorithms(wanted, warn_only=True)
        yield


def _common_device(configs: Mapping[str, TrainConfig]) -> torch.device:
    """The one device of all, after checking what can be measured."""
    for name, config in configs.items():
        if config.optimizer == "lbfgs":
            raise InputError(
                f"{name}: expected optimizer sgd, adam or adamw, got lbfgs, whose step is many passes: choose another"
            )
        if config.devices * config.nodes > 1:
            raise InputError(
                f"{name}: expected one process, got devices={config.devices}, nodes={config.nodes}: give one's share "
                "of the batch_size, with devices=1, nodes=1"
            )
        if config.precision not in ("auto", "32-true", "32"):
            raise InputError(f"{name}: expected precision 32-true, got {config.precision}: leave it out")
    types = {name: _device_type(name, config.accelerator) for name, config in configs.items()}
    if len(set(types.values())) > 1:
        raise InputError(f"expected one device for all, since times are compared, got {types}: set accelerator alike")
    return torch.device(next(iter(types.values())))


def _device_type(name: str, accelerator: str) -> str:
    if accelerator == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if accelerator == "cpu":
        return "cpu"
    if accelerator in ("cuda", "gpu") and torch.cuda.is_available():
        return "cuda"
    there = "auto, cpu or cuda" if torch.cuda.is_available() else "auto or cpu (there is no CUDA GPU here)"
    raise InputError(f"{name}: expected accelerator {there}, got {accelerator}: choose one of these")
