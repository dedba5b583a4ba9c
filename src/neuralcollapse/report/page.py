"""One self-contained HTML page from a run folder."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import yaml
from plotly.offline import get_plotlyjs

from neuralcollapse._errors import InputError
from neuralcollapse.records import MEASURES, Record, RunFolder, write_atomically
from neuralcollapse.report.figures import all_figures

_CARDS = ("nc1", "nc2", "nc3", "nc4")


def write_page(run: RunFolder, out: Path | None = None) -> Path:
    """Write the page of a run, into the run folder when no other place is given; returns its path.

    Raises:
        InputError: the run has no records, damaged files, or `out` cannot be written.
    """
    text = render(run)
    target = out or run.path / "report.html"
    try:
        return write_atomically(target, text.encode())
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror or error}") from None


def render(run: RunFolder) -> str:
    """The page as one HTML text; scripts and data are inside it, nothing is loaded from elsewhere."""
    records = run.records()
    config, environment = _mapping(run, "config.yaml"), _mapping(run, "environment.json")
    geometries = list(run.geometries())
    count = len(geometries[-1].means) if geometries else 0
    names = environment.pop("class_names", None) or [str(i) for i in range(count)]
    figures = [asdict(figure) for figure in all_figures(records, geometries, names)]

    template = resources.files("neuralcollapse.report").joinpath("page.html.jinja").read_text(encoding="utf-8")
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(template)
    first, last = records[0], records[-1]
    return page.render(
        title=f"{config.get('data', 'run')}, {config.get('network', 'network')}",
        subtitle=f"{config.get('classifier', '')} classifier, d = {config.get('feature_dim', '?')}",
        verdict=verdict(records),
        cards=_cards(last),
        figures=figures,
        figures_json=_script_json(figures),
        measures=[
            (label, meaning, _number(first.measures.get(name)), _number(last.measures.get(name)))
            for name, (label, meaning) in MEASURES.items()
            if name in last.measures
        ],
        epochs=(first.epoch, last.epoch),
        config=config,
        environment=environment,
        plotly=get_plotlyjs(),
    )


def verdict(records: Sequence[Record]) -> str:
    """What happened, in one plain sentence of facts."""
    first, last = records[0], records[-1]
    accuracy = f"train accuracy {last.train['accuracy']:.4f}"
    if last.test:
        accuracy += f", test accuracy {last.test['accuracy']:.4f}"
    now, start = last.measures.get("nc1", math.nan), first.measures.get("nc1", math.nan)
    change = f"NC1 {_number(now)}"
    if len(records) > 1 and now > 0 and start > 0:
        change = f"NC1 went from {_number(start)} to {_number(now)} ({_ratio(start, now)})"
    return f"After {last.epoch} epochs: {accuracy}; {change}."


def _ratio(start: float, now: float) -> str:
    factor = max(start / now, now / start)
    return f"{factor:,.3g} times {'less' if now < start else 'more'}"


def _cards(last: Record) -> list[tuple[str, str, str]]:
    cards = [("train accuracy", f"{last.train['accuracy']:.4f}", "")]
    if last.test:
        cards.append(("test accuracy", f"{last.test['accuracy']:.4f}", ""))
    return cards + [
        (MEASURES[name][0], _number(last.measures[name]), MEASURES[name][1]) for name in _CARDS if name in last.measures
    ]


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "undefined"
    return f"{value:.4g}" if value == 0 or 1e-2 <= abs(value) < 1e4 else f"{value:.2e}"


def _mapping(run: RunFolder, name: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(run.read_text(name))  # JSON is YAML too
    except yaml.YAMLError as error:
        raise InputError(f"{run.path / name} is damaged: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict):
        raise InputError(f"{run.path / name} is damaged: expected a mapping")
    return values


def _script_json(value: Any) -> str:
    """JSON that is safe inside a script element."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c").replace("&", "\\u0026")
