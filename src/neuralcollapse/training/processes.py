"""Several processes of one run: how many were started and by whom, and what they do before the first step."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import lightning
import torch
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from torch.nn.parallel import DistributedDataParallel

from neuralcollapse.capture.team import Team
from neuralcollapse.errors import InputError
from neuralcollapse.training.config import TrainConfig


class LostProcess(RuntimeError):
    """Another process of the run ended or stopped to answer; what was saved last is whole, and the run can go on."""


def as_launched(config: TrainConfig) -> TrainConfig:
    """The configuration with as many devices and nodes as torchrun, or srun with several tasks, has started.

    They may be fewer than asked for: an elastic job goes on with the machines that are left.
    """
    if TorchElasticEnvironment.detect():
        devices, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    elif SLURMEnvironment.detect() and int(os.environ["SLURM_NTASKS"]) > 1:
        world = int(os.environ["SLURM_NTASKS"])
        devices = world // int(os.environ.get("SLURM_NNODES", 1))
    else:
        return config
    if devices < 1 or world % devices:
        raise InputError(f"expected as many processes on each machine, got {world} with {devices} on this one")
    return replace(config, devices=devices, nodes=world // devices)


def counts_by_epoch(before: object, epoch: int, world: int) -> dict[str, int]:
    """How many processes trained from which epoch on, as environment.json keeps it, with the number of today."""
    kept = before if isinstance(before, Mapping) else {}
    counts = {str(key): int(value) for key, value in kept.items() if str(key).isdecimal() and int(key) < epoch}
    return counts if counts and list(counts.values())[-1] == world else {**counts, str(epoch): world}


def lost(error: BaseException, seconds: float) -> LostProcess | None:
    """What an error of torch.distributed means to a user: another process is gone; None for any other error."""
    text = str(error).lower()
    # gloo raises plain RuntimeErrors; there is nothing but their text to know them by
    if not isinstance(error, torch.distributed.DistError) and not any(word in text for word in ("gloo", "nccl")):
        return None
    silent = f"did not answer for {seconds:g} s" if "timed out" in text or "timeout" in text else "ended"
    return LostProcess(f"another process of the run {silent}{_hint()}")


def _hint() -> str:
    """Of torchrun's restarts: since torch 2.5 it keeps one store for all of them, with the addresses of the dead."""
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if not shared or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        return ""
    return " (torchrun finds the processes that it starts again with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 alone)"


class Together(lightning.Callback):
    """All processes begin alike: with the same options, at the same place, and with gradients summed in a fixed order.

    Goes before other callbacks.
    """

    def __init__(self, config: TrainConfig, epoch: int = 0, step: int = 0, total_steps: int = 0) -> None:
        self.config = config
        self.place = (epoch, step, total_steps)

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Raise in all processes if they got different options, or read different states.

        This comes before anything is built together: under fsdp2 each process then reads its part of the state.
        """
        if trainer.world_size == 1:
            return
        team = Team(joins=True, in_step=False, device=trainer.strategy.root_device)
        team.agree(None, lambda: asdict(self.config))
        if len(set(team.exchanged(lambda: self.place))) > 1:
            raise InputError(
                "the processes would go on from different states: give a run folder that all machines share"
            )

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Make all steps of DistributedDataParallel alike."""
        if isinstance(trainer.strategy.model, DistributedDataParallel):
            _rehearse(trainer.strategy, pl_module)


def _rehearse(strategy: Any, module: Any) -> None:
    """A backward pass of zeros.

    After its first backward pass DistributedDataParallel lays the gradients out anew in its buckets. Where a gradient
    lies decides in which order gloo and NCCL add up three and more processes, so the first step after a resume would
    round otherwise than the same step of a run that was never stopped. After this pass all steps are alike.
    """
    loss: Any = strategy.training_step(None, -1)
    loss.backward()
    for parameter in module.parameters():
        parameter.grad = None
