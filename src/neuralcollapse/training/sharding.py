"""Strategy fsdp2: each process keeps a part of every weight, gradient and optimiser state, by torch's `fully_shard`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from neuralcollapse.errors import InputError


class FSDP2Strategy(DDPStrategy):
    """Processes as Lightning's DDP starts and joins them, whose network is split instead of copied."""

    def __init__(self) -> None:
        super().__init__()
        fully_shard()  # which is refused where torch has none, before any process starts

    def model_to_device(self) -> None:
        """Split the network, group by group, each on its way to the device; then move what is not split."""
        module: Any = self.model
        split(module.network, self.root_device)
        module.to(self.root_device)

    def configure_ddp(self) -> None:
        """Wrap nothing: the network's own layers gather their weights."""

    def teardown(self) -> None:
        """End, and leave the parts where they are: those of a GPU's mesh cannot be moved to the CPU."""
        assert self.cluster_environment is not None
        assert self.accelerator is not None
        self.cluster_environment.teardown()
        self.precision_plugin.teardown()
        self.accelerator.teardown()


def fully_shard() -> Any:
    """The function of torch.

    Raises:
        InputError: this version of torch has none that runs on every device.
    """
    try:
        from torch.distributed.fsdp import fully_shard as found
    except ImportError:
        raise InputError(
            f"strategy=fsdp2 needs torch 2.6 or later, got {torch.__version__}: upgrade it, or use ddp"
        ) from None
    return found


def split(network: nn.Module, device: torch.device) -> None:
    """Split a network over all processes, in place: its blocks each on its own, and the rest together.

    Only one block is whole at a time, in its forward and in its backward pass.
    """
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for block in blocks(network):
        fully_shard()(block, mesh=mesh)
    fully_shard()(network, mesh=mesh)


def blocks(network: nn.Module) -> Iterator[nn.Module]:
    """The parts that a network repeats: what has a weight matrix in its outermost Sequentials and ModuleLists.

    Those that hold such a list themselves, as the body of a ResNet holds its stages, are entered. A part that shares a
    weight with another is left to the rest.
    """
    count = Counter(id(value) for _, value in network.named_parameters(remove_duplicate=False))

    def inside(module: nn.Module) -> Iterator[nn.Module]:
        listed = isinstance(module, nn.Sequential | nn.ModuleList)
        for part in module.children():
            if not listed or isinstance(part, nn.Sequential | nn.ModuleList):
                yield from inside(part)
                continue
            values = list(part.parameters())
            if any(value.dim() > 1 for value in values) and all(count[id(value)] == 1 for value in values):
                yield part

    return inside(network)


def reads_parts(error: BaseException) -> bool:
    """Whether an error came from a part of a weight that was used as if it were whole."""
    return "mixed torch.Tensor and DTensor" in str(error)  # of torch's dispatch, which has no error of its own for it
