"""Whether an experiment's numbers support its claim: one small check for each part of it, and a verdict from them."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from neuralcollapse.errors import InputError, did_you_mean
from neuralcollapse.reproduce.minority import cosine_at_minimum, minority_cosine
from neuralcollapse.runs.reading import Group, Run, by_layer, group_runs
from neuralcollapse.runs.records import check_key, label, number


class Finding(NamedTuple):
    """One check: whether it holds (None: these runs cannot decide it), its statement, and the numbers behind it."""

    holds: bool | None
    statement: str
    detail: str


@dataclass(frozen=True)
class Verdict:
    """All checks of an experiment together."""

    findings: Sequence[Finding]

    @property
    def word(self) -> str:
        """Supported (every check holds), partly supported, not supported (none holds) or not tested."""
        decided = [finding.holds for finding in self.findings if finding.holds is not None]
        if not decided:
            return "not tested"
        if all(decided) and len(decided) == len(self.findings):
            return "supported"
        return "partly supported" if any(decided) else "not supported"

    @property
    def sentence(self) -> str:
        """The word, how many checks hold, and which do not."""
        failed = [finding.statement for finding in self.findings if finding.holds is False]
        open_ = [finding.statement for finding in self.findings if finding.holds is None]
        count = sum(finding.holds is True for finding in self.findings)
        text = f"{self.word.capitalize()}: {count} of {len(self.findings)} checks hold"
        if failed:
            text += f"; not that {'; nor that '.join(map(_lower, failed))}"
        if open_:
            text += f"; these runs cannot tell whether {'; nor whether '.join(map(_lower, open_))}"
        return text + "."


@dataclass(frozen=True)
class Results:
    """What an experiment found.

    Attributes:
        runs: trained networks, with records.
        surveys: of landscapes (`surveys.facts`).
        costs: of training steps: each a mapping with "labels" and the numbers of `training.cost.Cost`.
    """

    runs: Sequence[Run] = ()
    surveys: Sequence[Mapping[str, Any]] = ()
    costs: Sequence[Mapping[str, Any]] = ()


def judge(checks: Sequence[Mapping[str, Any]], results: Results) -> Verdict:
    """Look at each check: its `kind` names a function below, the rest are its options."""
    validate(checks, "checks")
    findings = []
    for check in checks:
        options = {name: item for name, item in check.items() if name not in ("kind", "statement")}
        holds, detail = _KINDS[str(check["kind"])](results, **options)
        findings.append(Finding(holds, str(check["statement"]), detail))
    return Verdict(findings)


def validate(checks: Sequence[Mapping[str, Any]], source: str) -> None:
    """Raise unless every check has a statement, a known kind and options that it takes."""
    for check in checks:
        if "statement" not in check:
            raise InputError(f"{source}: check {check['kind']!r}: expected `statement`, what it checks in plain words")
        options = {name: item for name, item in check.items() if name != "statement"}
        validate_item(options, _KINDS, f"{source}: check")


def validate_item(item: Mapping[str, Any], kinds: Mapping[str, Callable[..., Any]], source: str) -> None:
    """Raise unless an entry of an experiment (a check, a figure) names one of the kinds, with options that it takes."""
    kind, options = str(item["kind"]), {name: part for name, part in item.items() if name != "kind"}
    if kind not in kinds:
        raise InputError(f"{source}: no {kind!r}{did_you_mean(kind, kinds)}; there are: {', '.join(kinds)}")
    signature = inspect.signature(kinds[kind])
    try:
        signature.bind(Results(), **options)
    except TypeError as error:
        raise InputError(f"{source} {kind!r}: {error}") from None
    for name, part in options.items():
        wanted = signature.parameters[name].annotation
        if wanted in _FITS and not _FITS[wanted](part):
            raise InputError(f"{source} {kind!r}: expected {name} of type {wanted}, got {part!r:.60}")
    if "of" in options and options["of"] not in (*COSTS, "memory"):
        raise InputError(f"{source} {kind!r}: expected `of` as one of {', '.join(COSTS)}, got {options['of']!r}")
    if "key" in options:
        check_key(options["key"], f"{source} {kind!r}")


_FITS: dict[str, Callable[[Any], bool]] = {  # options by their annotations
    "float": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "str": lambda value: isinstance(value, str),
    "bool": lambda value: isinstance(value, bool),
    "Mapping[str, str]": lambda value: isinstance(value, dict) and all(isinstance(x, str) for x in value.values()),
}

COSTS = ("parameters", "weights", "gradients", "optimizer_state", "peak", "step_seconds")

Outcome = tuple[bool | None, str]


def end(results: Results, key: str, at_least: float = -math.inf, at_most: float = math.inf) -> Outcome:
    """A number at the end of every run lies within bounds."""
    found = [run.last.value(key) for run in results.runs]
    if not found:
        return None, "no such run"
    bounds = [f"at least {at_least:g}"] * (at_least > -math.inf) + [f"at most {at_most:g}"] * (at_most < math.inf)
    detail = f"{label(key)} from {number(min(found))} to {number(max(found))}; asked {' and '.join(bounds)}"
    return all(at_least <= x <= at_most for x in found), detail


def falls(results: Results, key: str, times: float) -> Outcome:
    """A number falls by a factor in every run, from the first record to the last."""
    if not results.runs:
        return None, "no such run"
    factors = {run.name: _ratio(run.first.value(key), run.last.value(key)) for run in results.runs}
    least = max(factors, key=lambda name: _high(-factors[name]))
    most = max(factors.values())
    return (
        all(factor >= times for factor in factors.values()),
        f"{label(key)} falls {factors[least]:.3g} ({least}) to {most:.3g} times; asked {times:g} times",
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
    return worst <= within, f"{label(key)} {-worst:+.4f} at worst ({named}); asked no more than {within:g} below"


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

    A network that does not fit may be dead and have no such number: if the others agree, these runs cannot decide.
    """
    fits = [run.last.value(key) for run in results.runs if run.last.train["accuracy"] >= accuracy]
    others = [run.last.value(key) for run in results.runs if run.last.train["accuracy"] < accuracy]
    fails = [x for x in others if not math.isnan(x)]
    dead = f" ({len(others) - len(fails)} more are undefined)" if len(fails) < len(others) else ""
    detail = (
        f"{label(key)} of the {len(fits)} runs with train accuracy of at least {accuracy:g}: {_range(fits)}; "
        f"of the {len(fails)} others: {_range(fails)}{dead}"
    )
    if not fits or not fails:
        return None, detail
    holds = max(fits, key=_high) < min(fails)
    return (None if holds and dead else holds), detail


def grows(results: Results, key: str, axis: str, by: float) -> Outcome:
    """A number is higher at the largest value of an axis than at the smallest, by at least `by`, whatever the rest."""
    rows: dict[tuple[str, ...], list[Group]] = {}
    for group in group_runs(results.runs):
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


def minimizer(results: Results, within: float) -> Outcome:
    """The cosine between the rows of small classes is that of the exact minimiser with the same class counts."""
    parts, worst = [], 0.0
    for group in group_runs(results.runs):
        cosines = [minority_cosine(run) for run in group.runs]
        pairs = [
            (found, cosine_at_minimum(run)) for found, run in zip(cosines, group.runs, strict=True) if found is not None
        ]
        pairs = [(found, exact) for found, exact in pairs if not math.isnan(exact)]  # rows of zero point nowhere
        if not pairs:
            continue
        worst = max(worst, *(_high(abs(found - exact)) for found, exact in pairs))
        parts.append(f"{group.name}: {pairs[0][0]:.3f}, exact {pairs[0][1]:.3f}")
    if not parts:
        return None, "no run has two equally small classes"
    return worst <= within, f"cosine of {'; '.join(parts)}; apart by at most {worst:.3f}; asked {within:g}"


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


_KINDS: dict[str, Callable[..., Outcome]] = {
    function.__name__: function
    for function in (
        end,
        falls,
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


def _ratio(start: float, now: float) -> float:
    if math.isnan(start) or math.isnan(now):
        return math.nan
    return start / now if now else (math.inf if start else math.nan)


def _range(found: Sequence[float]) -> str:
    if not found:
        return "none"
    low, high = min(found), max(found)
    return number(low) if low == high else f"{number(low)} to {number(high)}"


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:] if text[1:2].islower() else text


def _high(x: float) -> float:
    """A key to sort by that puts what is undefined last, so that it cannot hide."""
    return math.inf if math.isnan(x) else x
