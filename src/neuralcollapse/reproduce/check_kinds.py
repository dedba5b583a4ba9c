"""The kinds of checks: each a function of an experiment's results that says whether something holds, with numbers.

None for an answer: these runs cannot decide it. A number that is undefined never makes a check hold.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from neuralcollapse.reproduce.minority import cosine_at_minimum, minority_cosine
from neuralcollapse.reproduce.results import Results
from neuralcollapse.runs.reading import Group, Run, by_layer, group_runs
from neuralcollapse.runs.records import label, number

Outcome = tuple[bool | None, str]


def end(
    results: Results, key: str, at_least: float = -math.inf, at_most: float = math.inf, of_logits: bool = False
) -> Outcome:
    """A number at the end of every run lies within bounds.

    `of_logits` divides it by the root mean square length of the centred class logits, `|W M| / sqrt(K)`: what the bias
    leaves over counts for as much as it shifts them.
    """
    if not results.runs:
        return None, "no such run"
    if of_logits and not all(run.geometries for run in results.runs):
        return None, "the class means were not kept"
    found = [
        _ratio(run.last.value(key), _logit_length(run)) if of_logits else run.last.value(key) for run in results.runs
    ]
    bounds = [f"at least {at_least:g}"] * (at_least > -math.inf) + [f"at most {at_most:g}"] * (at_most < math.inf)
    what = f"{label(key)} over the length of the logits" if of_logits else label(key)
    return all(at_least <= x <= at_most for x in found), f"{what} {_range(found)}; asked {' and '.join(bounds)}"


def falls(
    results: Results, key: str, times: float, to: float = -math.inf, only: Mapping[str, str] | None = None
) -> Outcome:
    """A number falls in every run (with the labels `only`), from its peak to the end, by a factor, or to a level.

    From the peak, because an untrained network says nothing: its NC2 may be small, and rises before it falls.
    """
    runs = [run for run in results.runs if not only or only.items() <= run.labels.items()]
    if not runs:
        return None, "no such run"
    ends = {run.name: run.last.value(key) for run in runs}
    factors = {run.name: _ratio(_peak(run, key), run.last.value(key)) for run in runs}
    fallen = {name: factors[name] >= times or ends[name] <= to for name in ends}
    least = max(factors, key=lambda name: (not fallen[name], _high(-factors[name])))
    asked = f"{times:g} times" + (f", or to {to:g}" if to > -math.inf else "")
    how = f"falls {factors[least]:.3g} times ({least}) to {max(factors.values()):.3g} times from its peak"
    rises = [run for run in runs if run.last.value(key) >= _peak(run, key) > run.first.value(key)]
    if rises:
        how += f", and rises to the end in {rises[0].name}, from {number(rises[0].first.value(key))}"
    return all(fallen.values()), f"{label(key)} {how}; at the end {_range([*ends.values()])}; asked {asked}"


def nears(results: Results, key: str, share: float) -> Outcome:
    """A number ends near its value at the exact minimiser: at most so large a share of the way from it is left.

    The way begins at the expected value of an untrained head; at the run's peak where none is known.
    """
    left, parts = {}, []
    for run in results.runs:
        last, minimum = run.last.value(key), run.last.value(f"minimizer.{key}")
        start = run.last.value(f"untrained.{key}")
        start = _peak(run, key) if math.isnan(start) else start
        dead = math.isnan(run.last.measures.get("nc1", 0.0))  # and so far from any minimum
        if math.isnan(minimum) and not dead:
            return None, f"the exact minimum of {run.name} is not known"
        left[run.name] = abs(last - minimum) / abs(start - minimum) if start != minimum else math.nan
        parts.append((run.name, start, last, minimum))
    if not left:
        return None, "no such run"
    worst = max(left, key=lambda name: _high(left[name]))
    start, last, minimum = next(numbers for name, *numbers in parts if name == worst)
    return left[worst] <= share, (
        f"{label(key)}: {100 * min(left.values()):.0f} to {100 * left[worst]:.0f} % of the way is left, the most in "
        f"{worst} (from {number(start)} to {number(last)}, {number(minimum)} at the exact minimum); asked at most "
        f"{100 * share:.0f} %"
    )


def alike(results: Results, key: str, axis: str, within: float) -> Outcome:
    """Groups that differ on one axis only have means that lie within a distance."""
    differences = [(abs(a.mean(key) - b.mean(key)), a, b) for a, b in _pairs(group_runs(results.runs), axis)]
    if not differences:
        return None, f"no two groups differ in {axis} only"
    worst, a, b = max(differences, key=lambda item: _high(item[0]))
    named = f"{a.name}: {a.formatted(key)}, {b.name}: {b.formatted(key)}"
    return worst <= within, f"{label(key)} differs by at most {worst:.4f} ({named}); asked at most {within:g}"


def no_worse(results: Results, key: str, less: Mapping[str, str], more: Mapping[str, str], within: float) -> Outcome:
    """The mean over seeds of the groups with the labels `less` is at most `within` below that of those with `more`."""
    groups = group_runs(results.runs)
    found = [
        (b.mean(key) - a.mean(key), a, b)
        for a, b in itertools.product(groups, groups)
        if less.items() <= a.labels.items() and b.labels == {**a.labels, **more}
    ]
    if not found:
        return None, "these runs are not there"
    worst, a, b = max(found, key=lambda item: _high(item[0]))
    named = f"{a.name}: {a.formatted(key)}, {b.name}: {b.formatted(key)}"
    return worst <= within, f"{label(key)} {0.0 - worst:+.4f} at worst ({named}); asked no more than {within:g} below"


def fewer(results: Results, of: str, less: Mapping[str, str], more: Mapping[str, str], percent: float) -> Outcome:
    """A cost of a training step is lower by so many percent.

    `of` is one of parameters, weights, gradients, optimizer_state, peak, step_seconds; `less` and `more` are labels of
    the configurations to compare, pair by pair of those that agree in all other labels.
    """
    parts, holds = [], True
    for cost, other in itertools.product(results.costs, results.costs):
        if not less.items() <= cost["labels"].items() or other["labels"] != {**cost["labels"], **more}:
            continue
        saving = 100 * (other[of] - cost[of]) / other[of] if other[of] else 0.0
        holds = holds and saving >= percent
        rest = ", ".join(text for axis, text in cost["labels"].items() if axis not in less)
        parts.append(f"{rest + ': ' if rest else ''}{other[of]:,.10g} to {cost[of]:,.10g}, {saving:.2f} % less")
    if not parts:
        return None, "these costs were not measured"
    return holds, f"{of.replace('_', ' ')}: {'; '.join(parts)}; asked {percent:g} % less"


def interpolates(results: Results, key: str, accuracy: float) -> Outcome:
    """Every run that fits its training set (train accuracy) has a lower number than every run that does not.

    A network that is dead, or answers by chance, has no such number: it is not collapsed, however its features lie.
    """
    fits = [run.last.value(key) for run in results.runs if run.last.train["accuracy"] >= accuracy]
    others = [run.last.value(key) for run in results.runs if run.last.train["accuracy"] < accuracy]
    fails = [x for x in others if not math.isnan(x)]
    dead = f", and {len(others) - len(fails)} dead, not collapsed" if len(fails) < len(others) else ""
    detail = (
        f"{label(key)} of the {len(fits)} runs with train accuracy of at least {accuracy:g}: {_range(fits)}; "
        f"of the {len(others)} others: {_range(fails)}{dead}"
    )
    if not fits or not others:
        return None, detail
    return max(fits, key=_high) < min(fails, default=math.inf), detail


def grows(results: Results, key: str, axis: str, by: float) -> Outcome:
    """A number is higher at the largest value of an axis than at the smallest, by at least `by`, whatever the rest."""
    rows: dict[tuple[str, ...], list[Group]] = {}
    for group in group_runs(run for run in results.runs if axis in run.labels):
        rows.setdefault(tuple(text for name, text in group.labels.items() if name != axis), []).append(group)
    parts, holds = [], True
    for others, groups in rows.items():
        if len(groups) < 2:
            return None, f"only one value of {axis}"
        ordered = sorted(groups, key=lambda group: float(group.labels[axis]))
        low, high = ordered[0].mean(key), ordered[-1].mean(key)
        holds = holds and high - low >= by
        ends = f"{number(low)} at {axis} {ordered[0].labels[axis]} to {number(high)} at {ordered[-1].labels[axis]}"
        parts.append(f"{', '.join(others)}: {ends}")
    return (holds if rows else None), f"{label(key)} {'; '.join(parts)}; asked a rise of at least {by:g}"


def deeper(results: Results, key: str, correlation: float) -> Outcome:
    """A number falls from layer to layer at the end of every run: Spearman's rank correlation with depth."""
    from scipy.stats import spearmanr

    found = {}
    for run in results.runs:
        layers = [*by_layer(run, run.last, key).values()]
        if len(layers) > 2:
            found[run.name] = float(spearmanr(range(len(layers)), layers).statistic)  # NaN if one of them is
    if not found:
        return None, "no inner layers were measured"
    worst = max(found, key=lambda name: _high(found[name]))
    highest = f"{found[worst]:.3f} at most ({worst})"
    detail = f"rank correlation of {label(key)} with depth {highest}; asked at most {correlation:g}"
    return found[worst] <= correlation, detail


def minimizer(results: Results, within: float, threshold: Mapping[str, str] | None = None) -> Outcome:
    """The cosine between the rows of small classes is that of the exact minimiser with the same class counts.

    Groups with the labels `threshold` are near the line of minority collapse, where the minimiser moves so fast with
    the decays that a distance says little: they are shown and not judged.
    """
    parts, near, worst = [], [], 0.0
    for group in group_runs(results.runs):
        cosines = [minority_cosine(run) for run in group.runs]
        pairs = [
            (found, cosine_at_minimum(run)) for found, run in zip(cosines, group.runs, strict=True) if found is not None
        ]
        pairs = [(found, exact) for found, exact in pairs if not math.isnan(exact)]  # rows of zero point nowhere
        if not pairs:
            continue
        found = _range([found for found, _ in pairs])
        text = f"{group.name}: {found}, exact {pairs[0][1]:.3f}"
        if threshold and threshold.items() <= group.labels.items():
            near.append(text)
            continue
        worst = max(worst, *(_high(abs(found - exact)) for found, exact in pairs))
        parts.append(text)
    if not parts:
        why = (
            f"all are near the threshold: {'; '.join(near)}"
            if near
            else "of no run are small classes and minimum known"
        )
        return None, why
    detail = f"cosine of {'; '.join(parts)}; apart by at most {worst:.3f}; asked {within:g}"
    if near:
        detail += f"; near the threshold, not judged: {'; '.join(near)}"
    return worst <= within, detail


def merges(results: Results, near: float) -> Outcome:
    """Where the exact minimiser has minority collapse (cosine 1) the network's small classes have a cosine near 1."""
    parts, holds, decided = [], True, False
    for run in results.runs:
        found = minority_cosine(run)
        if found is not None and cosine_at_minimum(run) > 0.999:
            decided = True
            holds = holds and found >= near
            parts.append(f"{run.name}: {found:.3f}")
    if not decided:
        return None, "no run lies beyond the line of minority collapse"
    return holds, f"cosine of {'; '.join(parts)}, where the minimiser has 1; asked at least {near:g}"


def certified(results: Results, gap: float) -> Outcome:
    """Every random start ends at a certified global minimum, with a gap of at most so much."""
    if not results.surveys:
        return None, "no survey"
    starts = sum(len(survey["starts"]["verdicts"]) for survey in results.surveys)
    good = sum(survey["starts"]["verdicts"].count("global_minimum") for survey in results.surveys)
    worst = max((gap for survey in results.surveys for gap in survey["starts"]["gaps"]), key=_high)
    models = f"{len(results.surveys)} models"
    detail = f"{good} of {starts} starts in {models}; largest certified gap {worst:.1e}; asked {gap:.0e}"
    return good == starts and worst <= gap, detail


def saddles(results: Results) -> Outcome:
    """Every critical point of the atlas but the lowest is a certified strict saddle."""
    atlases = {survey["name"]: survey["atlas"] for survey in results.surveys if survey["atlas"]}
    if not atlases:
        return None, "no atlas"
    higher = [entry for atlas in atlases.values() for entry in atlas if entry["verdict"] != "global_minimum"]
    strict = [entry for entry in higher if entry["verdict"] == "strict_saddle"]
    minima = [sum(entry["verdict"] == "global_minimum" for entry in atlas) for atlas in atlases.values()]
    detail = (
        f"{len(strict)} of {len(higher)} other critical points are strict saddles, and {sum(minima)} global minima in "
        f"{len(atlases)} atlases"
    )
    return len(strict) == len(higher) and all(count == 1 for count in minima), detail


KINDS: dict[str, Callable[..., Outcome]] = {
    function.__name__: function
    for function in (
        end,
        falls,
        nears,
        alike,
        no_worse,
        fewer,
        interpolates,
        grows,
        deeper,
        minimizer,
        merges,
        certified,
        saddles,
    )
}


def _pairs(groups: Sequence[Group], axis: str) -> list[tuple[Group, Group]]:
    """Groups that differ on `axis` and nowhere else."""

    def rest(group: Group) -> dict[str, str]:
        return {name: text for name, text in group.labels.items() if name != axis}

    return [
        (a, b)
        for a, b in itertools.combinations(groups, 2)
        if axis in a.labels and rest(a) == rest(b) and a.labels[axis] != b.labels[axis]
    ]


def _peak(run: Run, key: str) -> float:
    """The largest value of a number in a run; NaN where it never had one."""
    return max((x for record in run.records if not math.isnan(x := record.value(key))), default=math.nan)


def _logit_length(run: Run) -> float:
    """`|W M| / sqrt(K)` of the last kept class means and classifier: 0 for a dead network."""
    last = run.geometries[-1]
    logits = np.asarray(last.weight, np.float64) @ np.asarray(last.centred, np.float64).T
    return float(np.linalg.norm(logits) / math.sqrt(len(logits)))


def _ratio(start: float, now: float) -> float:
    if math.isnan(start) or math.isnan(now):
        return math.nan
    return start / now if now else (math.inf if start else math.nan)


def _range(found: Sequence[float]) -> str:
    if not found:
        return "none"
    low, high = min(found), max(found)
    return number(low) if low == high else f"{number(low)} to {number(high)}"


def _high(x: float) -> float:
    """A key to sort by that puts what is undefined last, so that it cannot hide."""
    return math.inf if math.isnan(x) else x
