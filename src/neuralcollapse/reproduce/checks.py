"""Whether an experiment's numbers support its claim: one small check for each part of it, and a verdict from them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from neuralcollapse.errors import InputError, did_you_mean, listed
from neuralcollapse.reproduce.check_kinds import KINDS
from neuralcollapse.reproduce.results import COSTS, Results
from neuralcollapse.runs.records import MEASURES, check_key


class Finding(NamedTuple):
    """One check.

    Attributes:
        holds: None: these runs cannot decide it.
        statement: what it checks, in plain words.
        detail: the numbers behind it.
        why: why it has this form and these limits.
    """

    holds: bool | None
    statement: str
    detail: str
    why: str = ""


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


def judge(checks: Sequence[Mapping[str, Any]], results: Results) -> Verdict:
    """Look at each check: its `kind` names a function below, the rest are its options."""
    validate(checks, "checks")
    findings = []
    for check in checks:
        options = {name: item for name, item in check.items() if name not in ("kind", *_WORDS)}
        holds, detail = KINDS[str(check["kind"])](results, **options)
        findings.append(Finding(holds, str(check["statement"]), detail, " ".join(str(check.get("why", "")).split())))
    return Verdict(findings)


def validate(checks: Sequence[Mapping[str, Any]], source: str) -> None:
    """Raise unless every check has a statement, a known kind and options that it takes."""
    for check in checks:
        if "statement" not in check:
            raise InputError(f"{source}: check {check['kind']!r}: expected `statement`, what it checks in plain words")
        for name in _WORDS:
            if not isinstance(check.get(name, ""), str):
                raise InputError(f"{source}: check {check['kind']!r}: expected {name} as text, got {check[name]!r:.60}")
        options = {name: item for name, item in check.items() if name not in _WORDS}
        validate_item(options, KINDS, f"{source}: check")
        if check["kind"] == "end" and not {"at_least", "at_most"} & set(options):
            raise InputError(f"{source}: check 'end': expected at_least or at_most: without them anything holds")
        if check["kind"] == "nears" and check["key"] not in MEASURES:
            raise InputError(
                f"{source}: check 'nears': theory expects no {check['key']}: expected a measure, such as nc2"
            )


def validate_item(item: Mapping[str, Any], kinds: Mapping[str, Callable[..., Any]], source: str) -> None:
    """Raise unless an entry of an experiment (a check, a figure) names one of the kinds, with options that it takes."""
    kind, options = str(item["kind"]), {name: part for name, part in item.items() if name != "kind"}
    if kind not in kinds:
        raise InputError(f"{source}: no {kind!r}{did_you_mean(kind, kinds)}; there are: {', '.join(kinds)}")
    signature = inspect.signature(kinds[kind])
    taken = [name for name in signature.parameters if name != "results"]
    for name in options:
        if name not in taken:
            close = did_you_mean(str(name), taken)
            raise InputError(f"{source} {kind!r}: no option {name!r}{close}; it takes {', '.join(taken)}")
    try:
        signature.bind(Results(), **options)
    except TypeError as error:
        raise InputError(f"{source} {kind!r}: {error}") from None
    for name, part in options.items():
        wanted = signature.parameters[name].annotation
        if wanted in _FITS and not _FITS[wanted](part):
            raise InputError(f"{source} {kind!r}: expected {name} as {_TYPES[wanted]}, got {part!r:.60}")
    if "of" in options and options["of"] not in (*COSTS, "memory"):
        raise InputError(f"{source} {kind!r}: expected `of` as one of {', '.join(COSTS)}, got {options['of']!r}")
    if "key" in options:
        check_key(options["key"], f"{source} {kind!r}")


def validate_axes(items: Iterable[Mapping[str, Any]], labels: Sequence[Mapping[str, str]], source: str) -> None:
    """Raise unless the axes that checks and figures name are there in the `labels` of runs, with numbers if need be."""
    there = list(dict.fromkeys(axis for each in labels for axis in each))
    for item in items:
        named = [*([item["axis"]] if "axis" in item else []), *(item.get("threshold") or item.get("only") or {})]
        for axis in named:
            if axis not in there:
                names = ", ".join(there) or "nothing"
                raise InputError(
                    f"{source}: {item['kind']!r}: no axis {axis!r}{did_you_mean(axis, there)}: `vary` has {names}"
                )
            values = [each[axis] for each in labels if axis in each]
            if item["kind"] in _NUMERIC and not all(map(_is_number, values)):
                raise InputError(
                    f"{source}: {item['kind']!r}: expected numbers as the values of {axis}, got {listed(values, 3)}"
                )


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


_NUMERIC = ("grows", "axis", "minority")  # which order runs along an axis
_WORDS = ("statement", "why")  # what a check says, beside what it looks at

_FITS: dict[str, Callable[[Any], bool]] = {  # options by their annotations
    "float": lambda value: isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value),
    "str": lambda value: isinstance(value, str),
    "bool": lambda value: isinstance(value, bool),
    "Mapping[str, str]": lambda value: isinstance(value, dict) and all(isinstance(x, str) for x in value.values()),
}
_FITS["Mapping[str, str] | None"] = _FITS["Mapping[str, str]"]

_TYPES = {"float": "a number", "str": "text", "bool": "true or false"} | dict.fromkeys(
    ("Mapping[str, str]", "Mapping[str, str] | None"), 'labels by axis, numbers in quotes, as in {ratio: "40"}'
)


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:] if text[1:2].islower() else text
