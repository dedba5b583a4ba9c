"""Runs of an experiment as jobs of a cluster, or of this machine, through submitit: each job is one `run_one`.

submitit writes the jobs, sends them to SLURM and reads what became of them. Nothing is scheduled here: all jobs are
handed over at once, and the locks of the run folders keep two of them off the same run.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from neuralcollapse.errors import InputError, one_line
from neuralcollapse.extras import needed_by
from neuralcollapse.reproduce.jobs import AllStopped, Look, OnMessage, handled
from neuralcollapse.runs.files import read_mapping

LOGS = "jobs"  # in the experiment's folder: what submitit writes, the output of each job among it
_MINUTES = 7 * 24 * 60  # submitit would end a local job after two
_POLL = {"local": 0.2, "slurm": 10.0}  # seconds between looks; those at SLURM ask its scheduler


@dataclass(frozen=True)
class Settings:
    """Where jobs go, and what submitit is told about them.

    Attributes:
        cluster: "slurm", "local" (processes of this machine) or None: SLURM where there is one.
        parameters: of submitit's `update_parameters`, such as slurm_partition, gpus_per_node, timeout_min.
    """

    cluster: str | None
    parameters: Mapping[str, Any]


def read_settings(file: Path | None) -> Settings:
    """The settings in a YAML file: `cluster`, and parameters of submitit by their names.

    Raises:
        InputError: the file is no mapping, or `cluster` is none that there is.
    """
    values = {} if file is None else read_mapping(file)
    cluster = values.pop("cluster", None)
    if cluster not in (None, *_POLL):
        raise InputError(f"{file}: expected cluster slurm or local, got {cluster!r}")
    return Settings(cluster, values)


def launched(
    path: Path, names: Sequence[str], settings: Settings, *, on_message: OnMessage, look: Look
) -> tuple[list[str], dict[str, str]]:
    """Hand runs over as jobs and wait until all have ended; `look` is called as by `jobs.side_by_side`.

    SIGINT, SIGTERM and SIGUSR1 end jobs of this machine, which save; jobs in SLURM's queue go on.

    Returns:
        The runs that another process has, and those that failed, with the last line that each printed.

    Raises:
        AllStopped: a signal came.
        InputError: submitit is not installed, does not know a parameter, or cannot reach SLURM.
    """
    executor = _executor(path / LOGS, settings)
    here = executor.cluster == "local"
    threads = max(1, torch.get_num_threads() // len(names)) if here else 0
    running: dict[str, Any] = {}
    elsewhere: list[str] = []
    failed: dict[str, str] = {}
    received: list[int] = []

    def passed_on(signum: int, frame: object) -> None:
        received.append(signum)
        for job in running.values() if here else ():
            # a local job's id is the process that starts it, and passes SIGTERM on; `cancel` would kill after a second
            with suppress(OSError, ValueError):
                os.kill(int(job.job_id), signal.SIGTERM)

    with handled(passed_on):
        try:
            with executor.batch():  # one array in SLURM
                submitted = [executor.submit(Job(str(path.resolve()), name, threads)) for name in names]
        except Exception as error:
            raise InputError(f"the jobs cannot be submitted: {one_line(error)}") from None
        running |= zip(names, submitted, strict=True)
        on_message(f"{len(names)} jobs in {executor.cluster}; what each prints: {path / LOGS}")
        if received:  # it came while they were submitted, before their processes were known
            passed_on(received[0], None)
        while running and (here or not received):
            for name in [name for name, job in running.items() if job.done()]:
                said = _outcome(running.pop(name))
                if said == Job.ELSEWHERE:
                    elsewhere.append(name)
                elif said and not received:
                    failed[name] = said
                    on_message(f"{name} failed, the others go on: {said}")
            look(failed, not running)
            if running:
                time.sleep(_POLL["local" if here else "slurm"])
    if received:
        raise AllStopped(received[0], "all runs stopped, and saved" if here else "the jobs go on in SLURM")
    return elsewhere, failed


@dataclass(frozen=True)
class Job:
    """What a job does: one run, which goes on where an earlier job of it has stopped."""

    ELSEWHERE = "another process has it"

    path: str
    name: str
    threads: int = 0

    def __call__(self) -> str:
        """Run it; returns an empty text, or why it is not whole."""
        from neuralcollapse.reproduce.one_run import run_one
        from neuralcollapse.runs.locks import InUse
        from neuralcollapse.training.resume import Stopped

        if self.threads:
            torch.set_num_threads(self.threads)
        try:
            run_one(self.path, self.name, progress=True)
        except InUse:
            return self.ELSEWHERE
        except (InputError, Stopped) as error:
            return one_line(error)
        return ""

    def checkpoint(self) -> Any:
        """Called by submitit before SLURM takes the job away: the same again, once there is room."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _executor(folder: Path, settings: Settings) -> Any:
    with needed_by("--launcher submitit"):
        import submitit
    try:
        executor = submitit.AutoExecutor(folder, cluster=settings.cluster)
        executor.update_parameters(**{"timeout_min": _MINUTES} if executor.cluster == "local" else {})
        executor.update_parameters(**{"name": "neuralcollapse", **settings.parameters})
    except (AssertionError, NameError, TypeError, ValueError, RuntimeError) as error:  # of types: by assert
        raise InputError(f"submitit does not take these settings: {one_line(error)}") from None
    return executor


def _outcome(job: Any) -> str:
    """What a job that has ended returned; where it died, the last line that it printed."""
    try:
        return str(job.result())
    except Exception as error:
        printed = [line.strip() for line in (job.stderr() or "").splitlines() if line.strip()]
        return one_line(Exception(printed[-1])) if printed else one_line(error)
