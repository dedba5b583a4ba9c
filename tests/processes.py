"""A job in several real processes that talk by gloo, and what each of them found."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

LONGEST = 60.0  # seconds that processes may wait for each other


def on_ranks(world: int, folder: Path, job: Callable[..., Any], *args: Any, longest: float = 2 * LONGEST) -> list[Any]:
    """What `job(rank, world, *args)` returns on each rank; a test that waits for longer fails."""
    processes = mp.spawn(_rank, args=(world, os.fspath(folder), job, *args), nprocs=world, join=False)
    ends = time.monotonic() + longest
    while not processes.join(timeout=1):
        if time.monotonic() > ends:
            for process in processes.processes:
                process.kill()
            pytest.fail(f"the ranks still wait for each other after {longest:g} s")
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]


def _rank(rank: int, world: int, folder: str, job: Callable[..., Any], *args: Any) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", meeting, timedelta(seconds=LONGEST), rank=rank, world_size=world)
    torch.save(job(rank, world, *args), f"{folder}/{rank}.pt")
    # Not `destroy_process_group`: torch 2.5 holds Python's lock there while it waits for a thread that waits for this
    # lock, to let go of the last tensor it sent.
    os._exit(0)
