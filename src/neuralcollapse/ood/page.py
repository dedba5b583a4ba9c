"""The page of outlier scores: how well each tells the outside sets, histograms, and a line on which one to take."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

import numpy as np

from neuralcollapse.errors import listed
from neuralcollapse.ood.evaluation import MEASURES
from neuralcollapse.ood.options import SCORES
from neuralcollapse.report.figure import COLORS, Axis, Bars, Figure, Line
from neuralcollapse.report.page import Cell, Page, Table

NAMES = {
    "neco": "NECO",
    "nci": "NCI",
    "fdbd": "fDBD",
    "vim": "ViM",
    "residual": "residual",
    "mahalanobis": "Mahalanobis",
    "relative_mahalanobis": "relative Mahalanobis",
    "energy": "energy",
    "max_logit": "max logit",
    "msp": "MSP",
}
_HEADER = {"auroc": "AUROC", "aupr_in": "AUPR in", "aupr_out": "AUPR out", "fpr95": "FPR95"}
_BINS = 60
_TAILS = (0.5, 99.5)  # percentiles of all inputs between which a histogram is drawn
_WITHIN = 2.0  # standard errors

Results = Mapping[str, Mapping[str, Mapping[str, float]]]  # outside set -> score -> measure


def ranking(results: Results) -> list[str]:
    """The scores by falling AUROC, averaged over the outside sets."""
    names = list(next(iter(results.values())))
    return sorted(names, key=lambda name: -_mean(results, name))


def advice(results: Results) -> str:
    """Which score to take, in a sentence, and what that is worth."""
    order = ranking(results)
    best, sets = order[0], len(results)
    errors = [each[best]["auroc_error"] for each in results.values()]
    margin = _WITHIN * float(np.sqrt(np.sum(np.square(errors)))) / sets
    near = [NAMES[name] for name in order[1:] if _mean(results, best) - _mean(results, name) <= margin]
    value = f"{_mean(results, best):.4f}"
    where = "on these outliers" if sets == 1 else f"on average over these {sets} sets of outliers"
    others = f" Within two standard errors of it: {listed(near, 4)}." if near else ""
    if _mean(results, best) <= 0.5 + margin:
        return f"Take none of the scores: the best, {NAMES[best]}, has AUROC {value} {where}, no more than guessing."
    return (
        f"Take {NAMES[best]}: AUROC {value} {where}.{others} It was chosen on them, so other outliers may rank the "
        "scores in another way: try it on some that played no part in the choice."
    )


def outliers_page(
    title: str,
    subtitle: str,
    results: Results,
    inside: Mapping[str, np.ndarray],
    outside: Mapping[str, Mapping[str, np.ndarray]],
    undefined: Mapping[str, str],
) -> Page:
    """The page.

    Args:
        title: its heading.
        subtitle: what was scored.
        results: outside set -> score -> what `evaluate` gives.
        inside: score -> (N,) of the inside inputs.
        outside: outside set -> score -> (M,).
        undefined: score -> why it has no value.
    """
    order = ranking(results)
    tables = [_table(name, results[name], order) for name in results]
    if undefined:
        rows = [(NAMES[name], reason) for name, reason in undefined.items()]
        tables.append(Table("Left out", rows, words=True))
    meanings = [(NAMES[name], SCORES[name]) for name in order]
    tables.append(Table("The scores", meanings, note="Each is higher for inputs like the training set.", words=True))
    best = order[0]
    cards = [
        (f"AUROC of {NAMES[best]}, {name}", f"{results[name][best]['auroc']:.4f}", "0.5 is guessing")
        for name in results
    ]
    return Page(
        title=title,
        subtitle=subtitle,
        verdict=advice(results),
        cards=cards[:5],
        figures=[_overview(results, order), *(_histogram(name, inside, outside) for name in order)],
        tables=tables,
        lead=len(results),
        csv=("outliers.csv", results_csv(results)),
        csv_label="Download the table (CSV)",
    )


def results_csv(results: Results) -> str:
    """A line for each outside set and score."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["outside", "score", *MEASURES])
    for name, found in results.items():
        for score, values in found.items():
            writer.writerow([name, score, *(f"{values[key]:.6g}" for key in MEASURES)])
    return text.getvalue()


def _mean(results: Results, name: str) -> float:
    return float(np.mean([each[name]["auroc"] for each in results.values()]))


def _table(outside: str, found: Mapping[str, Mapping[str, float]], order: Sequence[str]) -> Table:
    rows = []
    for name in sorted(order, key=lambda name: -found[name]["auroc"]):
        values = found[name]
        cells = [Cell(f"{values[key]:.4f}", sort=values[key]) for key in _HEADER]
        cells[0] = Cell(cells[0].text, f"± {values['auroc_error']:.4f}", values["auroc"])
        rows.append([Cell(NAMES[name]), *cells])
    note = (
        "AUROC with its standard error: 0.5 is guessing, below that a score is upside down. AUPR in and out: average "
        "precision of finding the inside or the outside inputs. FPR95: share of outside inputs accepted where 95 % of "
        "the inside ones are; lower is better."
    )
    return Table(f"Outside: {outside}", rows, ["score", *_HEADER.values()], note=note, sortable=True)


def _overview(results: Results, order: Sequence[str]) -> Figure:
    shown = [NAMES[name] for name in order]
    marks = [
        Bars(outside, shown, [found[name]["auroc"] for name in order], color)
        for (outside, found), color in zip(results.items(), _colors(len(results)), strict=True)
    ]
    values = ", ".join(f"{NAMES[name]} {_mean(results, name):.3f}" for name in order)
    caption = "How well each score tells inside inputs from outside ones: 1 is perfect, 0.5 is guessing."
    return Figure(
        "auroc", "AUROC of every score", caption, f"Mean AUROC by score: {values}.", marks, y=Axis(range=(0, 1))
    )


def _histogram(name: str, inside: Mapping[str, np.ndarray], outside: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """A line for each set, its share of inputs by bin."""
    values = {"inside": inside[name]} | {f"outside: {place}": found[name] for place, found in outside.items()}
    ends = np.array([np.percentile(each, _TAILS) for each in values.values()])
    low, high = float(ends[:, 0].min()), float(ends[:, 1].max())
    if not low < high:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, _BINS + 1)
    middles = ((edges[1:] + edges[:-1]) / 2).tolist()
    colors = (COLORS[0], *_colors(len(outside)))
    marks = [
        Line(place, middles, (np.histogram(each, edges)[0] / len(each)).tolist(), color, hover="{y:.3g} at {x:.4g}")
        for (place, each), color in zip(values.items(), colors, strict=True)
    ]
    means = ", ".join(f"{place} {float(np.mean(each)):.4g}" for place, each in values.items())
    meaning = SCORES[name]
    return Figure(
        name.replace("_", "-"),
        NAMES[name],
        f"{meaning[0].upper()}{meaning[1:]}: share of the inputs by value. Drawn is where 99 % of each set lie.",
        f"Histogram of the score for inside and outside inputs. Means: {means}.",
        marks,
        Axis(title=NAMES[name]),
        Axis(from_zero=True, percent=True),
    )


def _colors(count: int) -> list[str]:
    """Those of the outside sets; the first of all is that of the inside."""
    return [COLORS[1 + number % (len(COLORS) - 1)] for number in range(count)]
