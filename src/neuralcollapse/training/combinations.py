"""Which options of a training run go together (no torch)."""

from __future__ import annotations

from typing import Any

from neuralcollapse.errors import InputError
from neuralcollapse.runs.records import check_key

UNSCALED = ("32-true", "32", "bf16-mixed", "bf16", "bf16-true", "64-true", "64")
"""Precisions without a scaler, which decides about each step by the whole gradient."""


def check_combinations(config: Any) -> None:
    """Raise if options of a `TrainConfig`, which is not imported here, do not go together."""
    if config.decay_on == "all" and (config.feature_decay or config.bias_decay):
        raise InputError("feature_decay and bias_decay need decay_on=classifier: with decay_on=all they do nothing")
    if config.milestones and config.schedule != "multistep":
        raise InputError(f"milestones are for schedule=multistep, got schedule={config.schedule}")
    if config.schedule == "multistep" and not config.milestones:
        raise InputError("schedule=multistep needs milestones, such as --milestones 80,120")
    if config.learn_scale and config.frame == "learned":
        raise InputError("learn_scale is for a fixed frame, such as frame=simplex: learned rows have any length")
    if config.rotation not in (None, "blocks") and config.frame == "learned":
        raise InputError(f"rotation={config.rotation} is for a fixed frame, such as frame=simplex, got frame=learned")
    if config.rotation == "blocks" and config.frame in ("orthoplex", "softmax_code"):
        raise InputError(f"rotation=blocks is for frame=simplex, got frame={config.frame}: leave it out")
    if config.rotation == "fast" and config.frame == "softmax_code":
        raise InputError("a softmax code has no rotation, got rotation=fast: leave it out")
    if config.certify_head and config.weight_decay == 0:
        raise InputError("certify_head needs weight_decay above 0: without decay no minimum exists")
    if config.certify_head and config.decay_on == "classifier" and config.feature_decay == 0:
        raise InputError("certify_head with decay_on=classifier needs feature_decay above 0")
    if config.certify_head and config.loss != "cross_entropy":
        raise InputError(f"certify_head knows cross_entropy only, got loss={config.loss}")
    if config.certify_head and config.optimizer == "adamw":
        raise InputError("certify_head needs a coupled decay, which is part of the objective: use sgd, adam or lbfgs")
    if config.imbalance and config.random_labels:
        raise InputError("imbalance does not go with random_labels, which give each class as often: choose one")
    if config.measure == "online" and config.errors:
        raise InputError("standard errors are taken in the eval pass only: leave out measure=online, or errors")
    if config.measure == "online" and config.layers:
        raise InputError("layers are measured in the eval pass only: leave out measure=online, or the layers")
    if config.measure == "online" and config.optimizer == "lbfgs":
        raise InputError("measure=online counts each sample once, and L-BFGS sees it several times: use eval")
    if config.channels_last and config.optimizer == "lbfgs":
        raise InputError("channels_last does not go with lbfgs, which lays all parameters in one row: leave it out")
    if config.gradient_clip and config.optimizer == "lbfgs":
        raise InputError("gradient_clip does not go with lbfgs: its line search needs the gradient as it is")

    if config.strategy == "fsdp2":
        _check_split(config)
    if config.stop_on is not None:
        check_key(config.stop_on, "stop_on")
    elif (config.patience, config.stop_mode, config.min_delta) != (5, "auto", 0):
        raise InputError("patience, stop_mode and min_delta are for stop_on: add it, as in stop_on=nc1")


def _check_split(config: Any) -> None:
    """Raise if an option does not go with weights that are split over processes."""
    if config.optimizer == "lbfgs":
        raise InputError(
            "strategy=fsdp2 does not go with lbfgs, which lays all parameters in one row: use sgd, or one process"
        )
    if config.learn_scale:
        raise InputError("strategy=fsdp2 splits rows, and learn_scale learns one number: leave it out, or use ddp")
    if config.channels_last:
        raise InputError("strategy=fsdp2 splits weights as they lie in memory: leave out channels_last, or use ddp")
    if config.cuda_graph == "on":
        raise InputError("cuda_graph=on is for one process with whole weights: leave it out under strategy=fsdp2")
    if config.precision not in ("auto", *UNSCALED):
        raise InputError(
            f"strategy=fsdp2 trains with precision 32-true, bf16-mixed, bf16-true or 64-true, got {config.precision}: "
            "choose one of those, or use ddp"
        )
