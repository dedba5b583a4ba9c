"""Weights that are split over processes: FSDP2 and tensor parallel (DTensor), and DeepSpeed's ZeRO-3.

Only the head is ever gathered. `whole_heads` makes a copy of each head with whole weights before a pass, so that
nothing that is asked of the head during the pass, by one process or by all, needs the others.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed
from torch import Tensor, nn

from neuralcollapse.checks import is_dtensor
from neuralcollapse.errors import InputError, one_line

_FSDP1 = "FullyShardedDataParallel"
_FSDP2 = "FSDPModule"  # what `fully_shard` puts before a layer's own class, in every version of torch
_REPLICATE = "torch.distributed._composable.replicate"
_ADDED = (_FSDP2, "ReplicateModule")  # the latter is put there by torch's composable `replicate`
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_HOOK_MARKS = ("_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs", "_forward_hooks_always_called")


def is_split(value: object) -> bool:
    """Whether a parameter is a part of one: a DTensor, or managed by ZeRO-3 (which marks its own by `ds_id`)."""
    return is_dtensor(value) or hasattr(value, "ds_id")


def is_fsdp2(module: nn.Module) -> bool:
    """Whether `fully_shard` was applied to a module."""
    return any(kind.__name__ == _FSDP2 for kind in type(module).__mro__)


def has_split_weights(model: nn.Module) -> bool:
    """Whether the processes hold parts of the model's weights, or else cannot run it one without the others."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return False
    # The layers are asked too: the outermost one may keep its weights whole after a pass.
    return any(map(_keeps_step, model.modules())) or any(map(is_split, model.parameters()))


def _keeps_step(module: nn.Module) -> bool:
    """Whether a layer sends something whenever it runs: after `fully_shard`, or torch's composable `replicate`."""
    kinds = ((kind.__name__, kind.__module__) for kind in type(module).__mro__)
    return any(name == _FSDP2 or (name == "DDP" and place == _REPLICATE) for name, place in kinds)


def check_not_flat(model: nn.Module) -> None:
    """Raise if the weights lie in the flat parameters of FSDP1, which know no layers."""
    if any(type(module).__name__ == _FSDP1 for module in model.modules()):
        raise InputError(
            "expected whole weights or those of FSDP2 (torch.distributed.fsdp.fully_shard), got "
            f"{_FSDP1} (FSDP1): shard the network with fully_shard, or measure an unwrapped copy of it that loads the "
            f"state dict taken inside {_FSDP1}.summon_full_params"
        )


def whole(value: Tensor) -> Tensor:
    """A parameter in one piece, detached; all processes that hold parts of it must call this."""
    if is_dtensor(value):
        part: Any = value.detach()
        kind = part.device_mesh.device_type  # the weights may wait on the CPU, which the processes cannot send from
        return (part if part.device.type == kind else part.to(kind)).full_tensor()
    if hasattr(value, "ds_id"):
        with _zero3().GatheredParameters([value]):
            return value.detach().clone()
    return value.detach()


def own_part(value: Tensor) -> Tensor:
    """The part of a parameter that this process holds."""
    if is_dtensor(value):
        part: Any = value.detach()
        return part.to_local()
    part = getattr(value, "ds_tensor", None)  # where ZeRO-3 keeps it while the parameter itself is empty
    return value.detach() if part is None or value.numel() else part.detach()


def whole_shape(value: Tensor) -> torch.Size:
    """The shape of a parameter in one piece; nothing is gathered."""
    return torch.Size(value.ds_shape) if hasattr(value, "ds_shape") else value.shape


def outline(value: Tensor) -> Tensor:
    """A tensor without content that has the shape and type of a parameter in one piece."""
    return torch.empty(whole_shape(value), dtype=value.dtype, device="meta")


@dataclass(frozen=True)
class WholeHead:
    """A copy of a head with whole weights, outside the network.

    Attributes:
        module: the copy.
        classes: the processes over which the rows of the weight are split by tensor parallelism, as a DeviceMesh of
            one dimension; None if each pass has all of them.
        part: how many of the K rows this process has.
    """

    module: nn.Module
    classes: Any = None
    part: int = 0

    def gathered(self, outputs: Tensor, axis: int) -> Tensor:
        """The outputs for all K classes, of outputs for the part of this process or for all."""
        if is_dtensor(outputs):
            return whole(outputs)
        if self.classes is None or outputs.shape[axis] != self.part or outputs.dim() < 2:
            return outputs
        from torch.distributed.tensor import DTensor, Shard

        count = whole_shape(self.module.weight)[0]  # type: ignore[arg-type]
        shape = list(outputs.shape)
        shape[axis] = count
        stride = torch.empty(shape, device="meta").stride()
        place = [Shard(axis % outputs.dim())]
        outputs = outputs.detach().contiguous()
        return DTensor.from_local(
            outputs, self.classes, place, run_check=False, shape=torch.Size(shape), stride=stride
        ).full_tensor()


_WHOLE: WeakKeyDictionary[nn.Module, WholeHead] = WeakKeyDictionary()


def whole_head(module: nn.Module) -> WholeHead | None:
    """The copy of a head with whole weights, while one is kept."""
    return _WHOLE.get(module)


@contextmanager
def whole_heads(modules: Iterable[nn.Module], tensor_dims: Mapping[int, int]) -> Iterator[None]:
    """Keep copies with whole weights of the modules that have split ones. All processes must call this alike.

    Weights that FSDP2 keeps whole for the moment are copied too: it frees their memory when it splits them again.

    Args:
        modules: heads.
        tensor_dims: by `id` of a parameter of FSDP2's, the first dimension of its mesh that is not FSDP2's.
    """
    kept = []
    try:
        for module in modules:
            parts = any(is_split(value) or id(value) in tensor_dims for value in module.parameters())
            if parts and module not in _WHOLE:
                _WHOLE[module] = _made_whole(module, tensor_dims)
                kept.append(module)
        yield
    finally:
        for module in kept:
            del _WHOLE[module]


def _made_whole(module: nn.Module, tensor_dims: Mapping[int, int]) -> WholeHead:
    weight = module._parameters.get("weight")
    mesh, part = None, 0
    if is_dtensor(weight):
        first = tensor_dims.get(id(weight), 0)
        split: Any = weight
        dims = [dim for dim in range(first, split.device_mesh.ndim) if split.placements[dim].is_shard(0)]
        if len(dims) == 1:
            mesh = split.device_mesh
            mesh = mesh if mesh.ndim == 1 else mesh[mesh.mesh_dim_names[dims[0]]]
            count, place, ranks = weight.shape[0], mesh.get_local_rank(), mesh.size()  # type: ignore[union-attr]
            size = -(-count // ranks)  # as torch.chunk deals
            part = max(0, min(size, count - place * size))
    return WholeHead(_copied(module), mesh, part)


@torch.no_grad()
def _copied(module: nn.Module) -> nn.Module:
    """A copy of a layer and the layers in it, with whole weights and without hooks.

    `copy.deepcopy` refuses what FSDP2 manages, and would copy the parts. The attributes are those that torch's modules
    keep privately, and that nn.Module.__setstate__ knows.
    """
    twin: nn.Module = object.__new__(_own_type(module))
    twin.__dict__ = dict(module.__dict__)
    for name in (*_HOOKS, *_HOOK_MARKS):
        if name in twin.__dict__:
            twin.__dict__[name] = type(twin.__dict__[name])()
    twin._parameters = {
        name: None if value is None else nn.Parameter(whole(value).clone(), requires_grad=False)
        for name, value in module._parameters.items()
    }
    twin._buffers = {name: None if value is None else whole(value).clone() for name, value in module._buffers.items()}
    twin._modules = {name: None if part is None else _copied(part) for name, part in module._modules.items()}
    return twin


def _own_type(module: nn.Module) -> type[nn.Module]:
    """The class of a layer, without what FSDP2 put before it."""
    kind: Any = type(module)
    while any(base.__name__ in _ADDED for base in kind.__bases__):
        kind = next(base for base in kind.__bases__ if base.__name__ not in _ADDED)
    return kind


def _zero3() -> Any:
    try:
        return importlib.import_module("deepspeed").zero
    except Exception as error:  # its import builds and probes, and may raise anything
        raise InputError(
            f"expected deepspeed to gather the head, whose weight ZeRO-3 has split, got {one_line(error)}: install "
            "deepspeed, or train with ZeRO-2"
        ) from None
