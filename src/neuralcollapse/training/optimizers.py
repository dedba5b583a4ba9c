"""Optimisers with their weight decay, and the learning rate and decays of each epoch, as a TrainConfig gives them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from neuralcollapse.heads.fixed import FixedClassifier
from neuralcollapse.training.config import TrainConfig

Groups = list[dict[str, Any]]


def learning_rate(config: TrainConfig, epoch: int) -> float:
    """The learning rate while `epoch` epochs are behind: a function of the epoch alone, so that a run resumes anywhere.

    "step": rate f^floor(e / decay_every); "multistep": rate f^(milestones passed); "cosine":
    rate (1 + cos(pi e / E)) / 2; "constant": rate.
    """
    if config.schedule == "constant":
        return config.rate
    if config.schedule == "cosine":
        return config.rate * (1 + math.cos(math.pi * epoch / config.epochs)) / 2
    if config.schedule == "step":
        drops = epoch // config.decay_every
    else:
        drops = sum(epoch >= milestone for milestone in config.milestones)
    return config.rate * config.decay_factor**drops


def decay_scale(config: TrainConfig, epoch: int) -> float:
    """What every decay is multiplied by while `epoch` epochs are behind: again a function of the epoch alone."""
    return config.decay_warmup_factor if epoch < config.decay_warmup else 1.0


def set_epoch(optimizer: torch.optim.Optimizer, groups: Groups, config: TrainConfig, epoch: int) -> None:
    """Give an optimiser the learning rate and the decays of an epoch.

    `groups` come from another call of `decay_groups` than those of the optimiser, which keeps its dicts and so changes
    them here.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, epoch)
    if config.optimizer != "lbfgs":  # which knows no decay: its `penalty` is multiplied instead
        for group, given in zip(optimizer.param_groups, groups, strict=True):
            group["weight_decay"] = given["weight_decay"] * decay_scale(config, epoch)


def decay_groups(network: nn.Module, classifier: nn.Module, config: TrainConfig) -> Groups:
    """The trainable parameters in groups, each with its own "weight_decay".

    decay_on="all": one group. decay_on="classifier": the classifier's weight with weight_decay, its bias with
    bias_decay, everything else without (the features' own decay is part of the loss, see `step`). These are the decays
    after a warm-up (`decay_scale`).
    """
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if config.decay_on == "all":
        return [{"params": trainable, "weight_decay": config.weight_decay}]
    decays = {"weight": config.weight_decay, "bias": config.bias_decay}
    if isinstance(classifier, FixedClassifier):  # a learnt scale s: W has K rows of that length, |W|^2 = K s^2
        decays["scale"] = classifier.num_classes * config.weight_decay
    own = {id(parameter): decays.get(name, 0.0) for name, parameter in classifier.named_parameters(recurse=False)}
    groups: dict[float, list[nn.Parameter]] = {}
    for parameter in trainable:
        groups.setdefault(own.get(id(parameter), 0.0), []).append(parameter)
    return [{"params": parameters, "weight_decay": decay} for decay, parameters in groups.items()]


def build_optimizer(groups: Groups, config: TrainConfig, *, capturable: bool = False) -> torch.optim.Optimizer:
    """The optimiser over groups from `decay_groups`; `capturable`: it keeps all its state on the CUDA device.

    SGD and Adam add weight_decay times the parameter to the gradient (coupled), AdamW shrinks the parameter itself
    (decoupled); L-BFGS knows no decay, so that `penalty` must be in its closure.
    """
    rate = learning_rate(config, 0)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=config.momentum)
    if config.optimizer == "adam":
        return torch.optim.Adam(groups, lr=rate, capturable=capturable)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=rate, capturable=capturable)
    return torch.optim.LBFGS(
        [parameter for group in groups for parameter in group["params"]],
        lr=rate,
        max_iter=config.lbfgs_iterations,
        history_size=config.lbfgs_history,
        line_search_fn="strong_wolfe",
    )


def penalty(groups: Iterable[dict[str, Any]]) -> Tensor:
    """The decay as a term of the loss: sum over groups of weight_decay |params|^2 / 2."""
    terms = [
        group["weight_decay"] / 2 * sum(parameter.square().sum() for parameter in group["params"])
        for group in groups
        if group["weight_decay"]
    ]
    return sum(terms, torch.zeros(()))
