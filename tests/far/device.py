"""A simulated accelerator: tensors on the device "far:0", whose values lie in memory of the CPU.

As on a GPU, operations that mix its tensors with others raise, and what has to wait for its values can be counted. A
process that has entered its `World` knows the device to its end, which other tests in it would notice.
"""

from __future__ import annotations

import math
from collections import Counter
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

FAR = "far:0"
_aten = torch.ops.aten
# These take tensors of several devices: copies, and indices on the CPU.
_MIXED = {
    _aten.copy_.default,
    _aten._to_copy.default,
    _aten.index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._index_put_impl_.default,
}
# Their results, or the shapes of these, depend on values.
_READING = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "unique", "bincount", "masked_select")


class Far(Tensor):
    """A tensor on the device; `near` holds its values."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor, requires_grad: bool = False) -> Far:
        made = Tensor._make_wrapper_subclass(
            cls,
            near.size(),
            strides=near.stride(),
            storage_offset=near.storage_offset(),
            dtype=near.dtype,
            device=FAR,
            requires_grad=requires_grad,
        )
        made.near = near
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __repr__(self, **_: Any) -> str:
        return f"Far({self.near!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copied: Tensor = Far(self.near.clone(), self.requires_grad)
        if isinstance(self, nn.Parameter):
            copied = nn.Parameter(copied, self.requires_grad)
        memo[id(self)] = copied
        return copied

    def __getitem__(self, place: Any) -> Tensor:
        return super().__getitem__(_indices(place))

    def __setitem__(self, place: Any, value: Any) -> None:
        super().__setitem__(_indices(place), value)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def new_tensor(self, data: Any, *, dtype: torch.dtype | None = None, device: Any = None, **more: Any) -> Tensor:
        return _made(data, dtype=dtype or self.dtype, device=device or FAR, **more)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        return _run(func, args, kwargs or {})


class World(TorchDispatchMode):
    """Inside, "far" is a device like any other; `waits` counts what waited for it, by operation."""

    def __enter__(self) -> World:
        _register()
        self.waits = _waits
        _waits.clear()
        torch.tensor = _made  # which does not come through dispatch
        super().__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        super().__exit__(*exc)
        torch.tensor = _tensor

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        return _run(func, args, kwargs or {})


@cache
def _register() -> None:
    """Let torch know the device."""
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend("far")
    torch.__future__.set_overwrite_module_params_on_conversion(True)


_waits: Counter[str] = Counter()
_tensor = torch.tensor


def _made(data: Any, *, device: Any = None, requires_grad: bool = False, **more: Any) -> Tensor:
    """`torch.tensor`."""
    if not _is_far(device):
        return _tensor(data, device=device, requires_grad=requires_grad, **more)
    return _tensor(data, device="cpu", **more).to(FAR).requires_grad_(requires_grad)


def _indices(place: Any) -> Any:
    """Lists of numbers as tensors, which torch makes of them without dispatch."""
    parts = place if isinstance(place, tuple) else (place,)
    parts = tuple(_tensor(part, device="cpu") if isinstance(part, list) else part for part in parts)
    return parts if isinstance(place, tuple) else parts[0]


def _is_far(device: Any) -> bool:
    return device is not None and torch.device(device).type == "far"


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An operation on the values, with its results on the device where they belong there."""
    tensors = [each for each in tree_iter((args, kwargs)) if isinstance(each, Tensor)]
    far = [each for each in tensors if isinstance(each, Far)]
    name, device = str(func).split(".")[1], kwargs.get("device")
    if far and func not in _MIXED and any(each.dim() for each in tensors if not isinstance(each, Far)):
        raise RuntimeError(f"expected all tensors to be on the same device, got far:0 and cpu in {func}")
    generator = kwargs.get("generator")
    if generator is not None and (far or _is_far(device)):
        raise RuntimeError(f"expected a generator on far:0, got one on {generator.device} in {func}")
    to_cpu = device is not None and torch.device(device).type == "cpu"
    lands_far = (bool(far) or _is_far(device)) and not to_cpu
    if func is _aten.copy_.default:
        lands_far = isinstance(args[0], Far)
        to_cpu = not lands_far
    masked = func in _MIXED and any(each.dtype in (torch.bool, torch.uint8) for each in tensors[1:])
    if far and ((to_cpu and func in _MIXED) or masked or name.startswith(_READING) or name.strip("_") in _READING):
        _waits[name] += 1

    known: dict[int, Far] = {}

    def near(value: Any) -> Any:
        if isinstance(value, Far):
            known[id(value.near)] = value
            return value.near
        return value

    near_args, near_kwargs = tree_map(near, (args, kwargs))
    if _is_far(device):
        near_kwargs["device"] = "cpu"
    result = func(*near_args, **near_kwargs)
    if far and torch.Tag.inplace_view in func.tags:
        with torch._C._DisableTorchDispatch():
            func(*args, **kwargs)
        return args[0]

    def landed(value: Any) -> Any:
        if not isinstance(value, Tensor) or isinstance(value, Far):
            return value
        if id(value) in known:
            return known[id(value)]
        return Far(value) if lands_far else value

    return tree_map(landed, result)


def numbers(value: Any, name: str = "") -> dict[str, list[float]]:
    """The numbers in dicts, lists and tensors, by name; NaN as None."""
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, list | tuple):
        parts = enumerate(value)
    elif isinstance(value, Tensor):
        flat = value.detach().cpu().double().flatten()[:100].tolist()
        return {name: [None if math.isnan(each) else each for each in flat]}
    elif isinstance(value, int | float):
        return {name: [None if math.isnan(value) else float(value)]}
    else:
        return {}
    return {key: found for label, part in parts for key, found in numbers(part, f"{name}/{label}").items()}
