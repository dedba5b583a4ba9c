"""One self-contained HTML page: of figures and tables in general, and of a run folder."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import yaml
from plotly.offline import get_plotlyjs

from neuralcollapse._errors import InputError
from neuralcollapse.records import MEASURES, Geometry, Record, RunFolder, write_atomically
from neuralcollapse.report.figures import Figure, all_figures

_SOURCES = {
    "eval": "On the training set, in eval mode.",
    "online": "From the features of the epoch's training steps, while the weights moved (measured online).",
}
_CARDS = ("nc1", "nc2", "nc2_means", "nc3", "nc4")


@dataclass(frozen=True)
class Table:
    """A table of a page. A cell is a text, or a pair of a text and a smaller one below it."""

    heading: str
    rows: Sequence[Sequence[object]]
    header: Sequence[str] = ()
    note: str = ""
    narrow: bool = False


def document(
    title: str,
    subtitle: str,
    verdict: str,
    cards: Sequence[tuple[str, str, str]],
    figures: Sequence[Figure],
    tables: Sequence[Table],
) -> str:
    """The page as one HTML text; scripts and data are inside it, nothing is loaded from elsewhere."""
    template = resources.files("neuralcollapse.report").joinpath("page.html.jinja").read_text(encoding="utf-8")
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(template)
    plain = [asdict(figure) for figure in figures]
    return page.render(
        title=title,
        subtitle=subtitle,
        verdict=verdict,
        cards=cards,
        figures=plain,
        figures_json=_script_json(plain),
        tables=tables,
        plotly=get_plotlyjs(),
    )


def write_page(run: RunFolder, out: Path | None = None) -> Path:
    """Write the page of a run, into the run folder when no other place is given; returns its path.

    Raises:
        InputError: the run has no records, damaged files, or `out` cannot be written.
    """
    return save_page(render(run), out or run.path / "report.html")


def save_page(text: str, target: Path) -> Path:
    """Write a page, whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    try:
        return write_atomically(target, text.encode())
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror or error}") from None


def render(run: RunFolder) -> str:
    """The page of a run."""
    records = run.records()
    config, environment = _mapping(run, "config.yaml"), _mapping(run, "environment.json")
    geometries = list(run.geometries())
    count = len(geometries[-1].means) if geometries else 0
    names = environment.pop("class_names", None) or [str(i) for i in range(count)]
    first, last = records[0], records[-1]
    rows = [
        ((label, f"{name}: {meaning}"), number(first.measures.get(name)), number(last.measures.get(name)))
        for name, (label, meaning) in MEASURES.items()
        if name in last.measures
    ]
    return document(
        title=f"Neural collapse: {_data_name(config.get('data', 'run'))}, {config.get('network', 'network')}",
        subtitle=_subtitle(config, geometries),
        verdict=verdict(records),
        cards=_cards(last),
        figures=all_figures(records, geometries, names),
        tables=[
            Table(
                "Every measure",
                rows,
                ("measure", f"epoch {first.epoch}", f"epoch {last.epoch}"),
                f"{_SOURCES[last.source]} All but NC bias go to 0 under collapse. W: the classifier's rows; "
                "M: the class means about their mean mu_G; S_W, S_B: covariance within and between K classes.",
            ),
            *_layers(last),
            Table("Configuration", _options(config), note="Options that were left out are not listed.", narrow=True),
            Table("Where it ran", [(name, str(value)) for name, value in environment.items()], narrow=True),
        ],
    )


def _subtitle(config: dict[str, Any], geometries: Sequence[Geometry]) -> str:
    dim = geometries[-1].means.shape[1] if geometries else config.get("feature_dim") or "?"
    return f"{config.get('classifier', '')} classifier, d = {dim}"


def _layers(last: Record) -> list[Table]:
    rows = [(name, number(values.get("nc1")), number(values.get("nc1_cdnv"))) for name, values in last.layers.items()]
    note = "On the same samples; outputs averaged over positions."
    return [Table(f"Inner layers at epoch {last.epoch}", rows, ("layer", "NC1", "NC1, CDNV"), note)] if rows else []


def _data_name(data: object) -> str:
    """A data set's name without its folder, or the folder's name where the data have none of their own."""
    kind, _, folder = str(data).partition(":")
    return Path(folder).name if kind in ("idx", "imagefolder") and folder else kind


def _options(config: dict[str, Any]) -> list[tuple[str, str]]:
    """The options that have a value, for reading."""
    return [
        (name, ", ".join(map(str, value)) if isinstance(value, list) else str(value))
        for name, value in config.items()
        if value is not None and value != [] and value != {}
    ]


def verdict(records: Sequence[Record]) -> str:
    """What happened, in one plain sentence of facts."""
    first, last = records[0], records[-1]
    accuracy = f"train accuracy {last.train['accuracy']:.4f}"
    if last.test:
        accuracy += f", test accuracy {last.test['accuracy']:.4f}"
    now, start = last.measures.get("nc1", math.nan), first.measures.get("nc1", math.nan)
    change = f"NC1 {number(now)}"
    if len(records) > 1 and now > 0 and start > 0:
        change = f"NC1 went from {number(start)} to {number(now)} ({_ratio(start, now)})"
    return f"After {last.epoch} epochs: {accuracy}; {change}."


def _ratio(start: float, now: float) -> str:
    factor = max(start / now, now / start)
    return f"{factor:,.3g} times {'less' if now < start else 'more'}"


def _cards(last: Record) -> list[tuple[str, str, str]]:
    cards = [("train accuracy", f"{last.train['accuracy']:.4f}", "")]
    if last.test:
        cards.append(("test accuracy", f"{last.test['accuracy']:.4f}", ""))
    return cards + [
        (MEASURES[name][0], number(last.measures[name]), MEASURES[name][1]) for name in _CARDS if name in last.measures
    ]


def number(value: float | None) -> str:
    """A number for reading: four significant digits, or a power of ten."""
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
