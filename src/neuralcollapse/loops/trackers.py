"""Loggers that take numbers and pictures: TensorBoard, W&B, MLflow, as themselves or through Lightning.

None of these packages is imported here: a logger that a user hands over says by its own methods what it takes.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from neuralcollapse.errors import InputError

Images = Mapping[str, np.ndarray]  # (height, width, 3) uint8 by name
_Log = Callable[[Any, int], None]


def check_loggers(loggers: Any) -> list[Any]:
    """The loggers, each of a kind that is known.

    Raises:
        InputError: something else, or one logger instead of a list.
    """
    expected = "expected loggers as a list, each a SummaryWriter, a run of wandb, mlflow, or a logger of Lightning"
    if not isinstance(loggers, list | tuple):
        what = "[], or leave it out, for none" if loggers is None else "[logger]"
        raise InputError(f"{expected}, got {type(loggers).__name__}: write {what}")
    for logger in loggers:
        if numbers_into(logger) is None:
            name = logger.__name__ if isinstance(logger, type) else type(logger).__name__
            raise InputError(f"{expected}, got {name}: log record.flat() to it in your own loop")
    return list(loggers)


def numbers_into(logger: Any) -> _Log | None:
    """A function that logs numbers by name at a step; None for a kind that is not known."""
    if isinstance(logger, type):
        return None
    if _is_lightning(logger):

        def log_metrics(numbers: Mapping[str, float], step: int) -> None:
            logger.log_metrics(numbers, step=step)
            logger.save()

        return log_metrics
    if hasattr(logger, "add_scalar"):

        def add_scalars(numbers: Mapping[str, float], step: int) -> None:
            for name, value in numbers.items():
                logger.add_scalar(name, value, step)
            logger.flush()

        return add_scalars
    if _is_wandb(logger):
        return lambda numbers, step: logger.log(dict(numbers))
    if _is_mlflow(logger):
        return lambda numbers, step: logger.log_metrics(dict(numbers), step=step)
    return None


def images_into(logger: Any) -> _Log | None:
    """A function that logs pictures by name at a step; None for a logger that takes none, such as one of CSV files."""
    if isinstance(logger, type):
        return None
    if _is_lightning(logger):
        return _lightning_images(logger)
    if hasattr(logger, "add_image"):

        def add_images(images: Images, step: int) -> None:
            for name, image in images.items():
                logger.add_image(name, image, step, dataformats="HWC")
            logger.flush()

        return add_images
    if _is_wandb(logger):
        return lambda images, step: logger.log({name: _wandb_image(image) for name, image in images.items()})
    if _is_mlflow(logger):
        return lambda images, step: _mlflow_images(logger.log_image, images, step)
    return None


def _lightning_images(logger: Any) -> _Log | None:
    if hasattr(logger, "log_image"):  # that of W&B, which counts the trainer's steps

        def log_images(images: Images, step: int) -> None:
            for name, image in images.items():
                logger.log_image(key=name, images=[image], step=step)

        return log_images
    own = logger.experiment
    if hasattr(own, "add_image"):
        return images_into(own)
    if hasattr(own, "log_image") and hasattr(logger, "run_id"):
        return lambda images, step: _mlflow_images(own.log_image, images, step, logger.run_id)
    return None


def _mlflow_images(log_image: Callable[..., Any], images: Images, step: int, *run: str) -> None:
    """Log pictures to MLflow: with a slider over the steps where it has one (from 2.13 on), else as files."""
    slider = "key" in inspect.signature(log_image).parameters
    for name, image in images.items():
        if slider:
            log_image(*run, image, key=name, step=step)
        else:
            log_image(*run, image, f"{name}-{step:08d}.png")


def _wandb_image(image: np.ndarray) -> Any:
    return sys.modules["wandb"].Image(image)


def _is_lightning(logger: Any) -> bool:
    return hasattr(logger, "log_metrics") and hasattr(logger, "experiment")


def _is_wandb(logger: Any) -> bool:
    """Whether it is the module wandb or a run of it."""
    module = str(getattr(logger, "__module__", "")).partition(".")[0]
    return "wandb" in sys.modules and (module == "wandb" or logger is sys.modules["wandb"]) and hasattr(logger, "log")


def _is_mlflow(logger: Any) -> bool:
    """Whether it is the module mlflow, which logs to the run that is active."""
    return getattr(logger, "__name__", "") == "mlflow" and hasattr(logger, "log_metrics")
