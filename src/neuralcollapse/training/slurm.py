"""SLURM: a job that ran out of time is put into the queue again."""

from __future__ import annotations

import os
import subprocess


def job_id() -> str | None:
    """What `scontrol` calls the job that this process belongs to (of an array its element); None outside SLURM."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID") or None


def requeue() -> str | None:
    """Put the job into the queue again; what came of it, in words, or None outside SLURM."""
    job = job_id()
    if job is None:
        return None
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip()
        return f"SLURM's job {job} could not be queued again ({said}): submit it again"
    return f"SLURM's job {job} is queued again"
