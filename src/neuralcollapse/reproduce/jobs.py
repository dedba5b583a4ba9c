"""Runs of an experiment side by side, each in a process of its own (`one_run`)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch

from neuralcollapse.training.resume import SIGNALS, Stopped

IN_USE = 75  # exit code of a process whose run another one has: EX_TEMPFAIL of sysexits.h
_POLL = 0.05  # seconds between looks at the processes

OnMessage = Callable[[str], None]
Look = Callable[[Collection[str], bool], None]


class AllStopped(Stopped):
    """A signal ended runs side by side; each has saved its state, or goes on in the queue of a cluster."""

    def __init__(self, signum: int, said: str = "all runs stopped, and saved") -> None:
        Exception.__init__(self, said)
        self.signum = signum


def side_by_side(
    path: Path,
    names: Sequence[str],
    jobs: int,
    *,
    progress: bool,
    on_message: OnMessage,
    look: Look = lambda failed, now: None,
) -> tuple[list[str], dict[str, str]]:
    """Run some of the runs of an experiment's folder, at most `jobs` at a time, dividing the threads among them.

    `look` is called at each look at the processes with the names of those that failed, and whether it is the last.

    SIGINT, SIGTERM and SIGUSR1 end all processes after their current step, when they save; a second SIGINT kills them
    at once.

    Returns:
        The runs that another process has, and those that failed, with the last line that each printed.

    Raises:
        AllStopped: a signal came, and all processes have saved and ended.
        KeyboardInterrupt: SIGINT came twice.
    """
    waiting, running = list(names), dict[str, _Job]()
    elsewhere: list[str] = []
    failed: dict[str, str] = {}
    threads = max(1, torch.get_num_threads() // jobs)
    received: list[int] = []

    def passed_on(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        if received.count(signal.SIGINT) > 1:
            raise KeyboardInterrupt
        for job in running.values():
            job.process.terminate()  # SIGTERM, which also ends a process that has not begun to train

    with handled(passed_on):
        try:
            while running or (waiting and not received):
                while waiting and len(running) < jobs and not received:
                    name = waiting.pop(0)
                    on_message(f"run {len(names) - len(waiting)} of {len(names)}: {name}")
                    running[name] = _Job(path, name, threads, progress, on_message)
                    if received:  # it came between the two looks, before the process was among those it goes on to
                        running[name].process.terminate()
                time.sleep(_POLL)
                look(failed, False)
                for name in [name for name, job in running.items() if job.process.poll() is not None]:
                    job = running.pop(name)
                    code, said = job.end()
                    if code == IN_USE:
                        elsewhere.append(name)
                    elif code and not received:
                        failed[name] = said or f"it ended with code {code}"
                        on_message(f"{name} failed, the others go on: {failed[name]}")
        finally:
            for job in running.values():
                job.process.kill()
                job.end()
        look(failed, True)
    if received:
        raise AllStopped(received[0])
    return elsewhere, failed


class _Job:
    """A process with one run; what it prints is passed on line by line, with the run's name before it."""

    def __init__(self, path: Path, name: str, threads: int, progress: bool, on_message: OnMessage) -> None:
        command = [
            sys.executable,
            "-m",
            "neuralcollapse.reproduce.one_run",
            str(path),
            name,
            "show" if progress else "",
        ]
        # A session of its own: Ctrl-C reaches it once, through the first process, and not from the terminal too.
        self.process = subprocess.Popen(
            command,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._last = ""
        self._reader = threading.Thread(target=self._read, args=(name, on_message), daemon=True)
        self._reader.start()

    def _read(self, name: str, on_message: OnMessage) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.strip():
                self._last = line.strip()
                on_message(f"{name}: {self._last}")

    def end(self) -> tuple[int, str]:
        """The exit code of a process that has ended, or is about to, and the last line that it printed."""
        code = self.process.wait()
        self._reader.join()
        if self.process.stdout is not None:
            self.process.stdout.close()
        return code, self._last


@contextmanager
def handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle SIGINT, SIGTERM and SIGUSR1 inside (in the main thread, where Python lets one)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.signal(signum, handler) for signum in SIGNALS}
    try:
        yield
    finally:
        for signum, old in before.items():
            signal.signal(signum, old)
