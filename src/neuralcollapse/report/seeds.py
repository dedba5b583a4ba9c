"""Runs of one configuration but for the seed, together: what a comparison draws as one curve with a band."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from neuralcollapse.runs.reading import Group, Run, group_runs

QUIET = ("seed", "loggers", "save_seconds", "checkpoint_every", "measure_every", "measure_at")
"""Options that leave a network as it is, and the seed."""


def seed_groups(runs: Sequence[Run]) -> list[Group]:
    """The runs in groups that differ in nothing but the seed, by their first run.

    Runs with labels are grouped by these. Others belong together where their configurations are the same and each has
    a seed of its own. A group is named by what the names of its runs have in common.
    """
    if any(run.labels for run in runs):
        return group_runs(runs)
    together: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for run in runs:
        options = tuple(sorted((name, str(value)) for name, value in run.config.items() if name not in QUIET))
        together.setdefault(options, []).append(run)
    groups: dict[str, list[Run]] = {}  # by the name of the first run
    for members in together.values():
        seeds = [run.config.get("seed") for run in members]
        one = None not in seeds and len(set(map(str, seeds))) == len(seeds)
        groups |= {members[0].name: members} if one else {run.name: [run] for run in members}
    names = [_common_name(members) for members in groups.values()]
    times = Counter(names)
    taken = {run.name for members in groups.values() if len(members) > 1 for run in members}
    found = []
    for name, members in zip(names, groups.values(), strict=True):
        clear = times[name] == 1 and (len(members) == 1 or name not in taken)
        found.append(Group(name if clear else f"{members[0].name} and {len(members) - 1} more", {}, members))
    order = {run.name: i for i, run in enumerate(runs)}
    return sorted(found, key=lambda group: order[group.runs[0].name])


def differing(runs: Sequence[Run]) -> list[str]:
    """The options in which the configurations of the runs differ, but for the seed and those that change no network."""
    names = dict.fromkeys(name for run in runs for name in run.config if name not in QUIET)
    return [name for name in names if len({str(run.config.get(name)) for run in runs}) > 1]


def _common_name(members: Sequence[Run]) -> str:
    """What the names of the runs begin with, without a last word such as "seed"."""
    names = [run.name for run in members]
    if len(names) == 1:
        return names[0]
    shared = re.sub(r"\d+$", "", _prefix(names))
    stem = re.sub(r"[\W_]*(seed|(?<=[\W_])s)?[\W_]*$", "", shared, flags=re.IGNORECASE)
    return stem or f"{names[0]} and {len(names) - 1} more"


def _prefix(names: Sequence[str]) -> str:
    """The letters with which all the names begin."""
    first, last = min(names), max(names)
    same = (i for i, (one, other) in enumerate(zip(first, last, strict=False)) if one != other)
    return first[: next(same, min(len(first), len(last)))]
