"""Whether an experiment's numbers support its claim: one small check for each part of it, and a verdict from them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from neuralcollapse.errors import InputError, did_you_mean
from neuralcollapse.reproduce.check_kinds import KINDS
from neuralcollapse.reproduce.results import COSTS, Results
from neuralcollapse.runs.records import check_key


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
        options = {name: item for name, item in check.items() if name not in _WORDS}
        validate_item(options, KINDS, f"{source}: check")


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


_WORDS = ("statement", "why")  # what a check says, beside what it looks at

_FITS: dict[str, Callable[[Any], bool]] = {  # options by their annotations
    "float": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "str": lambda value: isinstance(value, str),
    "bool": lambda value: isinstance(value, bool),
    "Mapping[str, str]": lambda value: isinstance(value, dict) and all(isinstance(x, str) for x in value.values()),
}
_FITS["Mapping[str, str] | None"] = _FITS["Mapping[str, str]"]


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:] if text[1:2].islower() else text
