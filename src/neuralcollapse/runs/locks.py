"""One writer a folder: a lock that dies with its process.

The lock is a file in the folder (`NAME`), there while somebody writes, and says who that is. The thread that holds a
folder may take it again, and so may any other thread once that one has ended: a second Recorder in a notebook continues
where the first one stopped. Other threads and other processes are refused.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
import warnings
import weakref
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from neuralcollapse.errors import InputError, NeuralCollapseWarning

NAME = ".lock"
_PATIENCE = 0.2  # seconds, for a process that is about to release it
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # from file systems without locks


class InUse(InputError):
    """Another process, or another thread of this one, writes into the folder."""


@dataclass
class _Held:
    """A lock that this process holds, and how many share it."""

    folder: str
    lock: BaseFileLock | None  # None where the file system has no locks
    pid: int = field(default_factory=os.getpid)
    thread: int = field(default_factory=threading.get_ident)
    shares: int = 0


_held: dict[str, _Held] = {}
_abandoned: list[_Held] = []  # kept alive, since releasing one could remove the lock of another process
_guard = threading.RLock()


class Hold:
    """A share in the lock of a folder, until `release`, the end of this object or that of the process."""

    def __init__(self, held: _Held) -> None:
        held.shares += 1
        held.thread = threading.get_ident()
        self._end = weakref.finalize(self, _release, held)

    def release(self) -> None:
        """Give the share up."""
        self._end()


def hold(folder: str | Path) -> Hold:
    """Take the lock of an existing folder.

    Raises:
        InUse: somebody else has it.
        OSError: the folder cannot be written.
    """
    place = os.path.realpath(folder)
    file = Path(place, NAME)
    with _guard:
        held = _held.get(place)
        if held is not None and held.lock is not None and not file.exists():  # the folder was removed meanwhile
            _held.pop(place)
            held = None
        if held is None:
            held = _held[place] = _acquire(folder, place, file)
        elif held.thread != threading.get_ident() and held.thread in [thread.ident for thread in threading.enumerate()]:
            raise InUse(f"{folder} is being written by another thread: wait for it, or choose another folder")
        return Hold(held)


def check_unlocked(folder: str | Path) -> None:
    """Raise where `hold` would; nothing is written."""
    if Path(folder, NAME).is_file():  # a killed process leaves the file, unlocked
        hold(folder).release()


def _acquire(folder: str | Path, place: str, file: Path) -> _Held:
    owner = ""
    with suppress(OSError, UnicodeDecodeError):
        owner = file.read_text(encoding="utf-8")[:200].strip()
    lock: BaseFileLock = FileLock(file, thread_local=False)
    try:
        lock.acquire(timeout=_PATIENCE, poll_interval=_PATIENCE / 10)
    except Timeout:
        who = f" ({owner})" if owner.isprintable() and owner else ""
        with suppress(OSError):
            if who and not file.read_bytes():  # filelock before version 4 empties the file when it tries
                file.write_text(f"{owner}\n", encoding="utf-8")
        raise InUse(
            f"{folder} is being written by another process{who}: wait for it, or choose another folder"
        ) from None
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
        warnings.warn(
            f"the file system of {folder} has no locks: let one process at a time write there",
            NeuralCollapseWarning,
            stacklevel=4,
        )
        return _Held(place, None)
    if not isinstance(lock, SoftFileLock):  # a SoftFileLock writes into the file itself
        with suppress(OSError):
            file.write_text(f"pid {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
    return _Held(place, lock)


def _release(held: _Held) -> None:
    with _guard:
        held.shares -= 1
        if held.shares > 0 or held.pid != os.getpid():
            return
        if _held.get(held.folder) is not held:  # the folder was removed, and may since have been made and locked again
            _abandoned.append(held)
            return
        _held.pop(held.folder)
        if held.lock is not None and not isinstance(held.lock, SoftFileLock):
            with suppress(OSError):
                Path(held.folder, NAME).unlink()  # before the release: whoever waits checks that the file is there
        if held.lock is not None:
            with suppress(OSError):
                held.lock.release(force=True)


def _after_fork() -> None:
    global _guard
    _guard = threading.RLock()
    _abandoned.extend(_held.values())
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
