"""Runs an experiment in one folder: whatever runs, costs and surveys are missing, so it can be stopped at any time.

experiment.yaml    the experiment's own text, with the scale and the changes it was run with
RUN/               a run folder (`records.RunFolder`), or a survey (`surveys`)
costs.json         what training steps cost, where the experiment asks
report.html        the page
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from neuralcollapse.errors import InputError, listed, one_line
from neuralcollapse.reproduce import surveys
from neuralcollapse.reproduce.checks import validate, validate_axes
from neuralcollapse.reproduce.experiment import Experiment, Planned, SurveyConfig, parse, text_of
from neuralcollapse.reproduce.figures import validate_figures
from neuralcollapse.reproduce.jobs import side_by_side
from neuralcollapse.reproduce.results import COSTS as COST_NAMES
from neuralcollapse.reproduce.results import Results
from neuralcollapse.runs.events import stopped
from neuralcollapse.runs.files import as_builtin, as_float, as_path, parse_json, parse_yaml, read_text, write_atomically
from neuralcollapse.runs.folder import RunFolder
from neuralcollapse.runs.locks import InUse, check_unlocked, hold
from neuralcollapse.runs.ownership import is_in_use
from neuralcollapse.runs.reading import Run, read_run
from neuralcollapse.training.config import CHANGEABLE, TrainConfig, check_names

FILE, COSTS = "experiment.yaml", "costs.json"
_POLL = 1.0  # seconds between looks at the runs of others

OnMessage = Callable[[str], None]
Launch = Callable[[list[str]], tuple[list[str], dict[str, str]]]


@dataclass(frozen=True)
class ExperimentFolder:
    """An experiment on disk."""

    path: Path
    experiment: Experiment

    @classmethod
    def create(
        cls, name: str, scale: str, out: str | Path, changes: Mapping[str, Any] | None = None
    ) -> ExperimentFolder:
        """The folder of an experiment, new or one to go on with.

        Args:
            name: of the experiment, or a YAML file of your own.
            scale: "smoke", "laptop" or "paper".
            out: the folder.
            changes: options of `TrainConfig`, which win over those of the file in every run.

        Raises:
            InputError: there is no such experiment or scale, or the folder holds something else.
        """
        out = as_path(out, "a folder for the experiment")
        text = text_of(name)
        title = Path(name).stem
        experiment = parse(text, title, scale, changes)
        validate(experiment.checks, title)
        validate_figures(experiment.figures, title)
        validate_axes((*experiment.checks, *experiment.figures), [run.labels for run in experiment.runs], title)
        content = {"name": title, "scale": scale, "changes": dict(changes or {}), "text": text}
        if (out / FILE).is_file():
            there = _read(out)
            if (there["name"], there["scale"]) != (title, scale):
                raise InputError(
                    f"{out} holds the experiment {there['name']} at the scale {there['scale']}: choose another --out"
                )
        elif out.exists() and is_in_use(out):
            raise InputError(f"{out} is not empty and holds no experiment: choose another --out")
        folder = cls(out, experiment)
        folder._check_runs()
        try:
            out.mkdir(parents=True, exist_ok=True)
            write_atomically(out / FILE, yaml.safe_dump(content, sort_keys=False, width=120).encode())
        except OSError as error:
            raise InputError(f"cannot write {out}: {error.strerror or error}") from None
        return folder

    @classmethod
    def open(cls, path: str | Path) -> ExperimentFolder:
        """An existing experiment.

        Raises:
            InputError: the folder holds none.
        """
        path = as_path(path, "an experiment's folder")
        there = _read(path)
        return cls(path, parse(there["text"], there["name"], there["scale"], there["changes"], quiet=True))

    @staticmethod
    def is_one(path: Path) -> bool:
        """Whether a folder holds an experiment."""
        return (path / FILE).is_file()

    def missing(self) -> list[Planned]:
        """The runs that are not whole yet, in order."""
        return [run for run in self.experiment.runs if not self._whole(run)]

    def run(
        self,
        names: Sequence[str] | None = None,
        *,
        progress: bool = True,
        on_message: OnMessage = lambda text: None,
        jobs: int = 1,
        launch: Launch | None = None,
    ) -> None:
        """Run what is missing, or what is missing of the runs in `names`.

        Several processes can run the same experiment in the same folder: each takes runs that no other has taken, and
        all stay until every run in `names` is complete, so that one finishes what another leaves unfinished.

        Args:
            names: of runs (default: all).
            progress: a line for each epoch, or a bar.
            on_message: called with what happens.
            jobs: runs at a time, each in a process of its own where there are several.
            launch: called with names in place of that: it runs them somewhere and waits, and returns the names of those
                that another process has, and for those that failed why.

        Raises:
            InputError: as `training.run.train`, or a run there with another configuration; of several jobs, when the
                others are complete, with the names of the runs that failed.
            Stopped: a signal came; to be called again.
        """
        done, began = 0, time.monotonic()
        mine = [run for run in self.experiment.runs if names is None or run.name in names]
        waiting, announced = [run for run in mine if not self._whole(run)], False
        if launch is None and jobs > 1:
            launch = partial(side_by_side, self.path, jobs=jobs, progress=progress, on_message=on_message)
        failed: dict[str, str] = {}
        while waiting:
            elsewhere: list[Planned] = []
            if launch is not None:
                free = [run for run in waiting if self._is_free(run)]
                busy, new = launch([run.name for run in free]) if free else ([], {})
                failed |= new
                elsewhere, waiting = [run for run in waiting if run not in free or run.name in busy], []
            for at, run in enumerate(waiting):
                left = ""
                if done:
                    seconds = (time.monotonic() - began) / done * (len(waiting) - at)
                    left = f", about {seconds:.0f} s left" if seconds < 100 else f", about {seconds / 60:.0f} min left"
                try:
                    done += self._take(run, progress, on_message, left)
                except InUse:
                    elsewhere.append(run)
            if elsewhere and len(elsewhere) >= len(waiting):
                if not announced:
                    those = listed([run.name for run in elsewhere], 3)
                    on_message(f"waiting for {those}, which another process runs")
                announced = True
                time.sleep(_POLL)
            waiting = [run for run in elsewhere if not self._whole(run)]
        failed = {run.name: failed[run.name] for run in mine if run.name in failed and not self._whole(run)}
        if failed:  # and no other process went on with them meanwhile
            first, why = next(iter(failed.items()))
            raise InputError(f"{len(failed)} of {len(mine)} runs failed: {listed(list(failed), 3)} ({first}: {why})")

    def measure_costs(self, on_message: OnMessage = lambda text: None) -> None:
        """Measure what a training step costs where the experiment asks it, unless it is known by now."""
        announced = False
        wanted = [plan.name for plan in self.experiment.costs]
        while wanted and [cost["name"] for cost in self._costs()] != wanted:
            try:
                held = hold(self.path)
            except InUse:
                if not announced:
                    on_message("waiting for what a training step costs, which another process measures")
                announced = True
                time.sleep(_POLL)
                continue
            try:
                self._measure_costs(on_message)
            finally:
                held.release()

    def _is_free(self, run: Planned) -> bool:
        """Whether no other process has a run now."""
        try:
            check_unlocked(self.path / run.name)
        except InUse:
            return False
        return True

    def take(self, name: str, *, progress: bool = True) -> bool:
        """Run one by its name, unless it is complete; returns whether it ran.

        Raises:
            InUse: another process has it.
            InputError: there is no such run.
        """
        (name,) = self.experiment.chosen([name])
        (planned,) = [run for run in self.experiment.runs if run.name == name]
        return self._take(planned, progress, _unsaid, "")

    def _take(self, planned: Planned, progress: bool, on_message: OnMessage, left: str) -> bool:
        """Run one, unless it is complete by now; returns whether it ran.

        Raises:
            InUse: another process has it.
        """
        place = self.path / planned.name
        try:
            place.mkdir(parents=True, exist_ok=True)
            held = hold(place)
        except OSError as error:
            raise InputError(f"cannot write {place}: {error.strerror or error}") from None
        try:
            if self._whole(planned):
                return False
            number = self.experiment.runs.index(planned) + 1
            on_message(f"run {number} of {len(self.experiment.runs)}: {planned.name}{left}")
            if isinstance(planned.config, SurveyConfig):
                surveys.write(place, planned.config, surveys.facts(planned.config))
                return True
            from neuralcollapse.training.run import resume, train

            if _begun(place):
                # its configuration is that of the experiment, which `create` made sure of
                resume(place, progress=progress, on_message=_unsaid, trust_code=True)
            else:
                train(planned.config, place, force=True, progress=progress, on_message=_unsaid, page=False)
            return True
        finally:
            held.release()
            with suppress(OSError):
                place.rmdir()  # where nothing came of it

    def results(self) -> Results:
        """What is there so far."""
        if self.experiment.kind == "landscape":
            found = []
            for run in self.experiment.runs:
                kept = surveys.read(self.path / run.name)
                if kept is not None:
                    found.append({"name": run.name, "labels": dict(run.labels), **kept[1]})
            return Results(surveys=found)
        runs = [
            read_run(self.path / run.name, run.name, run.labels) for run in self.experiment.runs if self._whole(run)
        ]
        for found_run in runs:
            _check_config(found_run, self.path / found_run.name / "config.yaml")
        return Results(runs=runs, costs=self._costs())

    def _whole(self, run: Planned) -> bool:
        place = self.path / run.name
        if isinstance(run.config, SurveyConfig):
            return surveys.read(place) is not None
        if not _begun(place):
            return False
        folder = RunFolder(place)
        records = folder.records(allow_none=True)
        if not records or (records[-1].epoch < run.config.epochs and not stopped(records)):
            return False
        # The state is written after all else; kept records without weights have none.
        return folder.checkpoint(records[-1].epoch).is_file() or not folder.state.is_file()

    def _check_runs(self) -> None:
        """Raise if a run of the same name was made with another configuration."""
        for run in self.experiment.runs:
            place = self.path / run.name
            if isinstance(run.config, SurveyConfig):
                kept = surveys.read(place)
                there: Any = kept[0] if kept else run.config
            elif (place / "config.yaml").is_file():
                from neuralcollapse.training.run_config import read_config

                there = read_config(RunFolder(place))
                same = {name: getattr(run.config, name) for name in CHANGEABLE if name != "epochs"}
                if run.config.precision == "auto":  # the run folder has what that meant where it was run
                    same["precision"] = "auto"
                there = replace(there, **same)
            else:
                continue
            for name, old in asdict(there).items():
                new = asdict(run.config)[name]
                if as_builtin(old) != as_builtin(new):
                    raise InputError(
                        f"{place} was run with {name} {old!r}, and the experiment now asks {new!r}: choose another "
                        "--out, or remove that folder to run it again"
                    )

    def _costs(self) -> list[dict[str, Any]]:
        file = self.path / COSTS
        if not file.is_file():
            return []
        try:
            found: list[dict[str, Any]] = parse_json(read_text(file))
            for cost in found:
                if not isinstance(cost["name"], str) or not isinstance(cost["labels"], dict):
                    raise ValueError("expected a name and labels")
                cost |= {name: None if cost[name] is None else as_float(cost[name]) for name in COST_NAMES}
        except (ValueError, TypeError, KeyError):
            raise InputError(f"{file} is damaged: remove it to measure the costs again") from None
        return found

    def _measure_costs(self, on_message: OnMessage) -> None:
        from neuralcollapse.training.cost import step_costs

        on_message("what a training step costs: memory and time")
        plans = {plan.name: plan for plan in self.experiment.costs}
        found = step_costs({name: plan.config for name, plan in plans.items() if isinstance(plan.config, TrainConfig)})
        content = [{"name": name, "labels": dict(plans[name].labels), **asdict(cost)} for name, cost in found.items()]
        write_atomically(self.path / COSTS, json.dumps(content, indent=1).encode() + b"\n")


def _read(path: Path) -> dict[str, Any]:
    file = path / FILE
    try:
        there = parse_yaml(read_text(file))
        if not isinstance(there, dict) or set(there) != {"name", "scale", "changes", "text"}:
            raise ValueError("expected name, scale, changes, text")
        if not all(isinstance(there[name], str) for name in ("name", "scale", "text")):
            raise ValueError("expected name, scale and text as text")
        if not isinstance(there["changes"], dict):
            raise ValueError("expected changes by name")
    except ValueError as error:
        raise InputError(
            f"{file} is no experiment ({one_line(error)}): expected a folder that 'reproduce' wrote"
        ) from None
    return there


def _check_config(run: Run, source: Path) -> None:
    """Raise unless checks and figures can rely on the configuration: it must be one of a training."""
    check_names(run.config, str(source))
    try:
        TrainConfig(**run.config)
    except (InputError, TypeError) as error:
        raise InputError(f"{source}: {error}") from None


def _unsaid(_: str) -> None:
    """What a run cannot reach is said on its page and the experiment's, not before each run."""


def _begun(place: Path) -> bool:
    """Whether a run has left the files from which it can go on."""
    return all((place / name).is_file() for name in ("records.jsonl", "config.yaml", "environment.json"))
