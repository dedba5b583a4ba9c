"""What is in the folder of a run that goes on: whether it is whole, and what of its description has changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neuralcollapse.errors import InputError
from neuralcollapse.runs.events import Patience
from neuralcollapse.runs.files import read_mapping
from neuralcollapse.runs.folder import RunFolder
from neuralcollapse.training.config import TrainConfig
from neuralcollapse.training.processes import counts_by_epoch


def update_environment(run: RunFolder, epoch: int, world: int, values: Mapping[str, Any]) -> None:
    """Write what has changed since the run began, such as the number of processes from this epoch on."""
    file = run.path / "environment.json"
    if not file.is_file():
        return  # the first record will bring it
    old = read_mapping(file)
    values = {**values, "processes": counts_by_epoch(old.get("processes"), epoch, world)}
    if old != {**old, **values}:
        run.write_text(file.name, json.dumps({**old, **values}, indent=2) + "\n")


def has_records(path: Path) -> bool:
    """Whether a folder holds a record."""
    file = path / "records.jsonl"
    return file.is_file() and file.stat().st_size > 0


def is_whole(run: RunFolder, config: TrainConfig) -> bool:
    """Whether a run has its last record."""
    try:
        last = run.records()[-1].epoch
        return last >= config.epochs or bool(stop_reason(run, config, last))
    except InputError:
        return False


def stop_reason(run: RunFolder, config: TrainConfig, epoch: int) -> str:
    """Why the configuration stops a run after an epoch, by its records until then; empty if it does not."""
    if config.stop_rule is None:
        return ""
    records = [record for record in run.records(allow_none=True) if record.epoch <= epoch]
    return Patience(config.stop_rule, records).reason() if records and records[-1].epoch == epoch else ""
