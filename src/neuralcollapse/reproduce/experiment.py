"""An experiment: a claim, the runs that test it, and what to check and draw, read from a YAML file (no torch).

A file gives `title`, `claim`, `source`, `kind` ("train" or "landscape"), `options` of every run, `vary` (axis -> value
-> options; each combination is a run), `costs` (configurations in the same form; the cost of a training step of each is
measured), `checks`, `figures`, and under `scales`, for each of smoke, laptop and paper, what it needs, its minutes, its
seeds, and options, vary, costs, checks and figures of its own, which win over those above; a list of `vary`
there is that many grids of runs. An option "=NAME" has the value of the option NAME in the same run.
"""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

from neuralcollapse.errors import InputError, did_you_mean
from neuralcollapse.runs.files import parse_yaml
from neuralcollapse.runs.renamed import with_new_names
from neuralcollapse.training.config import TrainConfig, check_names

SCALES = ("smoke", "laptop", "paper")

_EXPERIMENTS = resources.files("neuralcollapse.reproduce").joinpath("experiments")
_TOP = ("title", "claim", "source", "kind", "options", "vary", "costs", "checks", "figures", "scales")
_SCALE = ("needs", "minutes", "options", "vary", "seeds", "costs", "checks", "figures")


@dataclass(frozen=True)
class SurveyConfig:
    """A landscape to survey: the arguments of `ufm.Model`, random starts and their seed."""

    num_classes: int
    feature_dim: int
    samples_per_class: int | Sequence[int]
    weight_decay: float
    feature_decay: float
    bias_decay: float = 0.0
    bias: bool = True
    loss: str = "cross_entropy"
    starts: int = 100
    seed: int = 0


@dataclass(frozen=True)
class Planned:
    """A run of an experiment, not yet run: its name, its place on each axis, its configuration."""

    name: str
    labels: Mapping[str, str]
    config: TrainConfig | SurveyConfig


@dataclass(frozen=True)
class Experiment:
    """An experiment at one scale.

    Attributes:
        name: of the file.
        title: in a few words.
        claim: what the paper says, in a sentence or two.
        source: where it says so.
        kind: "train": the runs train networks; "landscape": they survey unconstrained feature models.
        scale: "smoke", "laptop" or "paper".
        needs: data and hardware.
        minutes: about how long, on what `needs` names.
        runs: in the order in which they run.
        costs: configurations for which the memory and time of a training step are measured.
        checks: what `checks.judge` looks at, in order.
        figures: what the page shows, in order.
    """

    name: str
    title: str
    claim: str
    source: str
    kind: str
    scale: str
    needs: str
    minutes: float
    runs: tuple[Planned, ...]
    costs: tuple[Planned, ...]
    checks: tuple[Mapping[str, Any], ...]
    figures: tuple[Mapping[str, Any], ...]

    def chosen(self, only: Sequence[str] = (), part: tuple[int, int] = (1, 1)) -> list[str]:
        """The names of the runs in `only` (default: all) that fall to part I of N: every N-th of them, from the I-th.

        Raises:
            InputError: there is no such run, or no such part.
        """
        names = [run.name for run in self.runs]
        for name in only:
            if name not in names:
                raise InputError(f"no run {name!r}{did_you_mean(name, names)}; there are: {', '.join(names)}")
        index, count = part
        if not 1 <= index <= count:
            last = max(count, 1)
            raise InputError(f"expected a part from 1/{last} to {last}/{last}, got {index}/{count}")
        return [name for name in names if name in (only or names)][index - 1 :: count]


def names() -> list[str]:
    """The experiments that come with the package."""
    return sorted(file.name.removesuffix(".yaml") for file in _EXPERIMENTS.iterdir() if file.name.endswith(".yaml"))


def text_of(name: str) -> str:
    """The YAML text of an experiment, by its name or as a file of one's own (a path that ends in .yaml or .yml)."""
    if not isinstance(name, str | os.PathLike):
        raise InputError(f"expected an experiment's name or the path of a .yaml file, got {name!r:.80}")
    name = str(name)
    if name.endswith((".yaml", ".yml")):
        try:
            return Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read {name}: {getattr(error, 'strerror', None) or 'it is not text'}") from None
    if name not in names():
        raise InputError(
            f"no experiment {name!r}{did_you_mean(name, names())}; there are: {', '.join(names())}, and your own "
            ".yaml files"
        )
    return _EXPERIMENTS.joinpath(f"{name}.yaml").read_text(encoding="utf-8")


def find_experiment(name: str, scale: str, changes: Mapping[str, Any] | None = None) -> Experiment:
    """An experiment by its name or file, at a scale; `changes` win over the options of the file in every run."""
    return parse(text_of(name), Path(name).stem, scale, changes)


def parse(
    text: str, name: str, scale: str, changes: Mapping[str, Any] | None = None, *, quiet: bool = False
) -> Experiment:
    """An experiment from its YAML text (see `find_experiment`); `quiet` leaves out the notes on names that changed."""
    if scale not in SCALES:
        raise InputError(f"expected a scale of {', '.join(SCALES)}, got {scale!r}{did_you_mean(str(scale), SCALES)}")
    try:
        whole = parse_yaml(text)
    except ValueError as error:
        raise InputError(f"{name} is damaged: {error}") from None
    whole = _mapping(whole, name, _TOP)
    scales = _mapping(whole.get("scales"), f"{name}: scales", SCALES)
    if scale not in scales:
        raise InputError(f"{name} has no scale {scale!r}: it has {', '.join(scales)}")
    part = _mapping(scales[scale], f"{name}: {scale}", _SCALE)

    kind = whole.get("kind", "train")
    if kind not in ("train", "landscape"):
        raise InputError(f"{name}: expected kind 'train' or 'landscape', got {kind!r}")

    def renamed(options: Mapping[str, Any]) -> Mapping[str, Any]:
        return with_new_names(options, "train", quiet=quiet) if kind == "train" else options

    options = {**renamed(_named(whole, "options", name)), **renamed(_named(part, "options", name))}
    grids = _grids(_named(whole, "vary", name), part.get("vary"), f"{name}: {scale}")
    costs = _named(part if "costs" in part else whole, "costs", name)
    seeds, minutes = part.get("seeds", [0]), part.get("minutes", 0)
    if not isinstance(seeds, list) or not seeds:
        raise InputError(f"{name}: {scale}: expected seeds as a list of numbers, got {seeds!r}")
    if isinstance(minutes, bool) or not isinstance(minutes, int | float):
        raise InputError(f"{name}: expected minutes as a number, got {minutes!r}")
    changed = renamed(changes or {})
    return Experiment(
        name=name,
        title=str(whole.get("title", name)),
        claim=" ".join(str(whole.get("claim", "")).split()),
        source=" ".join(str(whole.get("source", "")).split()),
        kind=kind,
        scale=scale,
        needs=str(part.get("needs", "")),
        minutes=float(minutes),
        runs=tuple(_plan(name, kind, options, grids, seeds, changed, renamed)),
        costs=tuple(_plan(name, kind, options, [costs], [None], changed, renamed)) if costs else (),
        checks=tuple(
            with_new_names(check, "check", quiet=quiet)
            for check in _list(part.get("checks", whole.get("checks")), f"{name}: checks")
        ),
        figures=_list(part.get("figures", whole.get("figures")), f"{name}: figures"),
    )


def _grids(vary: Mapping[Any, Any], own: Any, where: str) -> list[dict[Any, Any]]:
    """The grids of runs: `vary` with what a scale has in its place, one mapping or a list of several."""
    several = own if isinstance(own, list) and own else [own]
    grids = [{**vary, **_named({"vary": each}, "vary", where)} for each in several]
    # a scale drops an axis by leaving it empty
    return [{axis: values for axis, values in grid.items() if values} for grid in grids]


def _plan(
    name: str,
    kind: str,
    options: Mapping[str, Any],
    grids: Sequence[Mapping[str, Any]],
    seeds: Sequence[int | None],
    changes: Mapping[str, Any],
    renamed: Callable[[Mapping[str, Any]], Mapping[str, Any]],
) -> list[Planned]:
    combinations: list[tuple[tuple[str, str, Mapping[str, Any]], ...]] = []
    for grid in grids:
        axes = []
        for axis in grid:
            values = _named(grid, axis, f"{name}: vary")
            axes.append([(axis, str(value), renamed(_named(values, value, f"{name}: {axis}"))) for value in values])
        combinations += itertools.product(*axes)
    planned = []
    for seed, combination in itertools.product(seeds, combinations):
        labels = {axis: text for axis, text, _ in combination}
        merged = dict(options)
        for _, _, chosen in combination:
            merged |= chosen
        parts = list(labels.values())
        if seed is not None:
            merged["seed"] = seed
            parts.append(f"seed{seed}")
        planned.append(Planned(slug(" ".join(parts)), labels, _config(name, kind, {**merged, **changes})))
    clash = [each for each, times in Counter(run.name for run in planned).items() if times > 1]
    if clash:
        raise InputError(f"{name}: two runs would be called {clash[0]!r}: give the values of vary other names")
    return planned


def _config(name: str, kind: str, options: Mapping[str, Any]) -> TrainConfig | SurveyConfig:
    options = {option: _value(name, value, options) for option, value in options.items()}
    if kind == "train":
        check_names(options, name)
        return TrainConfig(**options)
    known = [item.name for item in fields(SurveyConfig)]
    for option in options:
        if option not in known:
            raise InputError(f"{name}: no option {option!r}{did_you_mean(option, known)}; it takes {', '.join(known)}")
    try:
        return SurveyConfig(**options)
    except TypeError as error:
        raise InputError(f"{name}: {error}") from None


def _value(name: str, value: Any, options: Mapping[str, Any]) -> Any:
    if not isinstance(value, str) or not value.startswith("="):
        return value
    other = value[1:]
    if other not in options or str(options[other]).startswith("="):
        raise InputError(f"{name}: {value!r} asks for the value of the option {other!r}, which this run does not have")
    return options[other]


def slug(text: str) -> str:
    """What can stand in a folder's name: "d = K" becomes "d-k"."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.") or "run"


def _mapping(value: Any, where: str, known: Sequence[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected a mapping with some of {', '.join(known)}, got {value!r}")
    for key in value:
        if key not in known:
            raise InputError(
                f"{where}: no entry {key!r}{did_you_mean(str(key), known)}; there may be {', '.join(known)}"
            )
    return value


def _named(parent: Mapping[Any, Any], key: Any, where: str) -> dict[Any, Any]:
    value = parent.get(key) or {}
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected {key} as a mapping, got {value!r}")
    return value


def _list(value: Any, where: str) -> tuple[Mapping[str, Any], ...]:
    value = value or []
    if not isinstance(value, list) or not all(isinstance(item, dict) and "kind" in item for item in value):
        raise InputError(f"{where}: expected a list of mappings, each with a kind, got {value!r}")
    return tuple(value)
