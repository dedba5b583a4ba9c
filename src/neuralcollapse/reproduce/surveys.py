"""A survey of a landscape as an experiment keeps it: two files of a folder, its configuration and what was found."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from neuralcollapse.errors import InputError, one_line
from neuralcollapse.reproduce.experiment import SurveyConfig
from neuralcollapse.runs.files import as_float, nan_to_none, parse_json, parse_yaml, read_text, write_atomically
from neuralcollapse.ufm.model import Model
from neuralcollapse.ufm.survey import survey

CONFIG, FACTS = "model.yaml", "survey.json"
_MOST = 10**5  # steps, and directions down


def facts(config: SurveyConfig) -> dict[str, Any]:
    """What `ufm.survey` finds, in plain numbers: minimum, atlas, ends of the starts, and gaps step by step."""
    values = asdict(config)
    starts, seed = values.pop("starts"), values.pop("seed")
    return survey(Model(**values), starts=starts, seed=seed).record()


def write(folder: Path, config: SurveyConfig, found: dict[str, Any]) -> None:
    """Keep a survey in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / CONFIG, yaml.safe_dump(asdict(config), sort_keys=False).encode())
    text = json.dumps(nan_to_none(found), separators=(",", ":"))
    write_atomically(folder / FACTS, text.encode() + b"\n")


def read(folder: Path) -> tuple[SurveyConfig, dict[str, Any]] | None:
    """The survey that a folder keeps, or None if it is missing or not complete."""
    if not (folder / FACTS).is_file():  # written last
        return None
    try:
        config = parse_yaml(read_text(folder / CONFIG))
        found = parse_json(read_text(folder / FACTS))
        _check(found)
        return SurveyConfig(**config), found
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"the survey in {folder} is damaged ({one_line(error)}): remove the folder to run it again"
        ) from None


def _check(found: Any) -> None:
    """Raise unless tables and figures can be made from the facts; undefined numbers of starts become NaN.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: something is missing or of another kind.
    """
    if found["minimum"] is not None:
        as_float(found["minimum"])
    for entry in found["atlas"]:
        _words(entry["name"], entry["verdict"])
        _count(entry["index"])
        for name in ("objective", "least_eigenvalue", "nc2", "gap"):
            as_float(entry[name], undefined=name != "objective")
    starts = found["starts"]
    for name in ("objectives", "gaps"):
        starts[name] = [as_float(value) for value in starts[name]]
    _words(*starts["verdicts"])
    if not starts["gaps"] or not len(starts["objectives"]) == len(starts["gaps"]) == len(starts["verdicts"]):
        raise ValueError("expected as many objectives, gaps and verdicts of starts, at least one")
    for path in found["trajectories"]:
        for iteration, objective, gap in path:
            _count(iteration)
            as_float(objective), as_float(gap)
    if not found["trajectories"] or not all(found["trajectories"]):
        raise ValueError("expected trajectories, each of at least one step")


def _words(*values: object) -> None:
    if not all(isinstance(value, str) for value in values):
        raise TypeError("expected names and verdicts as text")


def _count(value: object) -> None:
    if type(value) is not int or not 0 <= value <= _MOST:
        raise ValueError(f"expected a number from 0 to {_MOST:,}, got {value!r:.40}")
