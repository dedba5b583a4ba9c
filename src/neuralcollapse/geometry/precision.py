"""Float32 products in full float32, without autocast, TF32 or bfloat16, whatever the user has set.

PyTorch has two settings for reduced precision. The old one (`set_float32_matmul_precision`, `allow_tf32`) raises when
it is read after the new one was used. In the new one (`torch.backends.*.fp32_precision`) each level inherits from the
level above until it is given a value of its own. Where the new one exists, it also reflects what the old one set.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

_FULL = ("ieee", "none", "highest")


class _Setting:
    """The precision of float32 products on one kind of device: forced while any thread needs it, then restored."""

    def __init__(self, backend: str) -> None:
        self._backend = backend
        self._lock = threading.Lock()
        self._users = 0
        self._found: str | None = None

    @contextmanager
    def full(self) -> Iterator[None]:
        with self._lock:
            if self._read() not in _FULL:
                self._found = self._own()
                self._write("ieee" if _NEW else "highest")
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0 and self._found is not None:
                    found, self._found = self._found, None
                    self._write(found)

    def _read(self, level: str = "matmul") -> str:
        return str(_get(self._backend, level)) if _NEW else torch.get_float32_matmul_precision()

    def _write(self, value: str, level: str = "matmul") -> None:
        if _NEW:
            _set(self._backend, level, value)
        else:
            torch.set_float32_matmul_precision(value)

    def _own(self) -> str:
        """Its own value, "none" if it inherits from a level above: found by changing those levels for a moment."""
        found = self._read()
        if not _NEW:
            return found
        above = str(_get("generic", "all"))
        _set("generic", "all", "ieee")
        follows, backend = self._read() != found, self._read("all")
        _set("generic", "all", above)
        if follows:
            return "none"
        if backend != "ieee":  # the level between has a value of its own
            self._write("ieee", "all")
            follows = self._read() != found
            self._write(backend, "all")
        return "none" if follows else found


# The private functions behind `torch.backends.*.fp32_precision`: the public attributes cannot be read level by level.
_get: Any = getattr(torch._C, "_get_fp32_precision_getter", None)
_set: Any = getattr(torch._C, "_set_fp32_precision_setter", None)
_NEW = _get is not None and _set is not None  # from PyTorch 2.9 on
_cuda = _Setting("cuda")
_other = _Setting("mkldnn") if _NEW else _cuda  # the old setting is the same for all devices


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Inside this context float32 products on the device have full precision; the user's settings are restored."""
    setting = _cuda if device.type == "cuda" else _other
    with without_autocast(device), setting.full():
        yield


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """A context without autocast on the device.

    Devices such as the meta device have none, and torch raises when it is asked about it there.
    """
    on = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if on else nullcontext()
