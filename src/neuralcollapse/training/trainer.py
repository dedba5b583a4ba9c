"""Lightning's trainer and loggers, as a TrainConfig describes them."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from neuralcollapse.errors import InputError, one_line
from neuralcollapse.training.config import TrainConfig
from neuralcollapse.training.sharding import FSDP2Strategy

UNCAPTURED = "This instance was constructed with capturable=True"
"""How torch begins to warn of an optimiser for CUDA graphs that steps without one, as ours does for short batches."""


def with_precision(config: TrainConfig) -> TrainConfig:
    """The configuration with what precision "auto" means on this machine, as the run folder is to say it."""
    if config.precision != "auto":
        return config
    native = config.optimizer != "lbfgs" and config.accelerator in ("auto", "cuda", "gpu") and _has_bfloat16()
    return replace(config, precision="bf16-mixed" if native else "32-true")


def _has_bfloat16() -> bool:
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)


def make_trainer(config: TrainConfig, path: Path) -> lightning.Trainer:
    """The trainer, without loggers: those begin to write (see `make_logger`) once the run folder is there."""
    if config.strategy != "fsdp2" and config.strategy.startswith(("fsdp", "deepspeed", "model_parallel")):
        raise InputError(
            f"expected a strategy that keeps the weights whole, or fsdp2, got {config.strategy}: use one of those, or "
            "shard a network in a loop of your own, where a Recorder measures it"
        )
    if config.optimizer == "lbfgs" and config.devices * config.nodes > 1:
        raise InputError("lbfgs runs in one process: its line search needs the loss of the whole batch")
    # Lightning itself would requeue a SLURM job from its own checkpoints. torchrun may run inside of one.
    slurm = not TorchElasticEnvironment.detect() and SLURMEnvironment.detect()
    try:
        trainer = lightning.Trainer(
            max_epochs=config.epochs,
            accelerator=config.accelerator,
            devices=config.devices,
            num_nodes=config.nodes,
            strategy=FSDP2Strategy() if config.strategy == "fsdp2" else config.strategy,
            precision=config.precision,  # type: ignore[arg-type]
            gradient_clip_val=config.gradient_clip,
            deterministic="warn" if config.deterministic else False,
            logger=False,
            default_root_dir=path,
            plugins=[SLURMEnvironment(auto_requeue=False)] if slurm else None,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except (MisconfigurationException, ValueError, RuntimeError, TypeError) as error:
        raise InputError(
            f"cannot train with accelerator={config.accelerator}, devices={config.devices}, "
            f"strategy={config.strategy}, precision={config.precision}: {one_line(error)}"
        ) from None
    if config.strategy == "fsdp2" and trainer.strategy.root_device.type == "mps":
        raise InputError("strategy=fsdp2 runs on CPUs and CUDA GPUs, got mps: give accelerator=cpu")
    if hasattr(trainer.strategy, "_timeout"):  # in Lightning an argument of each strategy's class, not of the trainer
        trainer.strategy._timeout = timedelta(seconds=config.timeout)
    return trainer


@contextmanager
def kept_flags() -> Iterator[None]:
    """Afterwards torch chooses its algorithms as before: a trainer of Lightning changes that for the whole process."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = benchmark


def make_logger(name: str, path: Path) -> Logger:
    """A logger that has begun to write into the run's folder, or to its service."""
    logs = path / "logs"
    logs.mkdir(exist_ok=True)
    try:
        logger: Any
        if name == "csv":
            logger = CSVLogger(logs, name="csv")
        elif name == "tensorboard":
            logger = TensorBoardLogger(logs, name="tensorboard")
        elif name == "wandb":
            logger = WandbLogger(name=path.name, project="neuralcollapse", save_dir=logs)
        else:
            uri = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{(logs / 'mlflow.db').resolve()}")
            logger = MLFlowLogger("neuralcollapse", run_name=path.name, tracking_uri=uri)
        logger.experiment  # noqa: B018  makes it
        return logger
    except ModuleNotFoundError as error:
        raise InputError(f"the logger {name} is not installed ({error}): pip install {name}") from None
    except OSError:
        raise
    except Exception as error:  # each service has kinds of its own
        raise InputError(
            f"the logger {name} does not start: {one_line(error)}: set it up, or leave it out of --loggers"
        ) from None


def is_primary() -> bool:
    """Whether this is the process that writes and prints: the first of those that train together."""
    return int(getattr(rank_zero_only, "rank", None) or 0) == 0


@contextmanager
def quiet() -> Iterator[None]:
    """Without tips, banners and warnings of Lightning and of torch's optimisers: our own progress says enough."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", message=UNCAPTURED)
        yield
