"""The network of a run: built as the configuration says, and tried on the data's images."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from neuralcollapse.data.load import Data
from neuralcollapse.errors import InputError, listed, one_line
from neuralcollapse.heads.search import main_heads
from neuralcollapse.networks.build import build_network, classifier_name
from neuralcollapse.training.config import TrainConfig


def network_for(config: TrainConfig, data: Data) -> nn.Module:
    """The network that a run trains, with new weights, in train mode."""
    try:
        network = _built(config, data)
        _check_takes(network, config, data)
    except (MemoryError, OverflowError, RuntimeError, TypeError) as error:
        words = ("alloc", "memory", "verflow", "too large")
        if not isinstance(error, MemoryError | OverflowError) and not any(word in str(error) for word in words):
            raise
        raise InputError(f"the network {config.network} is too large for this machine ({one_line(error)})") from None
    return network


def _built(config: TrainConfig, data: Data) -> nn.Module:
    options: dict[str, Any] = {"width": config.width, "depth": config.depth}
    if config.network == "mlp":
        options["in_features"] = math.prod(data.image_shape)
    elif config.network.startswith("resnet"):
        options["in_channels"] = data.image_shape[0]
    return build_network(
        config.network,
        data.num_classes,
        config.feature_dim,
        stem=config.stem,
        frame=config.frame,
        learn_scale=config.learn_scale,
        rotation=config.rotation,
        **(options | config.network_options),
    )


def _check_takes(network: nn.Module, config: TrainConfig, data: Data) -> None:
    """Raise unless the network makes K logits of the data's images."""
    shape = data.image_shape
    network.eval()
    seen: list[torch.Tensor] = []
    name = classifier_name(network)
    hook = network.get_submodule(name).register_forward_hook(lambda layer, inputs, output: seen.append(output))
    try:
        with torch.no_grad():
            logits = network(torch.rand(2, *shape))
            found = tuple(logits.shape)
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"the network {config.network} cannot take images {shape[0]}x{shape[1]}x{shape[2]} ({one_line(error)}): "
            "see --channels, --image-size, --network-options"
        ) from None
    finally:
        hook.remove()
    network.train()
    if found != (2, data.num_classes):
        raise InputError(f"expected logits of shape (2, {data.num_classes}) from {config.network}, got {found}")
    if len(seen) != 1 or not torch.equal(seen[0].flatten(1), logits):  # a 1x1 convolution gives (2, K, 1, 1)
        shown = name.removeprefix("network.")
        heads = [head.removeprefix("network.") for head in main_heads(network, data.num_classes)]
        why = f"it has {len(heads)} heads, {listed(heads)}" if len(heads) > 1 else "define it after all other layers"
        raise InputError(
            f"expected the last nn.Linear of {config.network}, {shown!r}, to make its logits, got other logits: {why}, "
            "and return what it gives"
        )
