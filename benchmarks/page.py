"""The results as Markdown and JSON, written both or neither, with the machine they come from."""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from harness import BASELINE_SPREAD, RATIO_SPREAD, Result

INTRODUCTION = f"""# Benchmarks

Written by `make bench`. The rows of a table run in alternation, round by round, and a ratio is taken within a round, to
the first row of the table: shown are the median time and the median of the ratios with their quartiles. Nothing is
written when the middle half of a row's ratios is wider than {RATIO_SPREAD:.0%} of their median, or that of the first
row's times wider than {BASELINE_SPREAD:.0%}. Peaks are of fresh processes that run that row alone, all they hold
included. results.json has the same numbers.

Other scripts of this folder have pages of their own: [growth](growth.md) with the size of the input,
[heads of 128,000 classes](vocabulary.md) over several processes, [real architectures](architectures.md) and
[verdicts](verdicts.md) against brute force. `python benchmarks/gpu.py` prints the table of a GPU.
"""


class Section(NamedTuple):
    """A table that has been measured."""

    name: str
    heading: str
    results: list[Result]
    remarks: list[str]


def machine() -> dict[str, Any]:
    """What the numbers depend on; no path, no name of the machine."""
    return {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
    }


def processor() -> str:
    """The processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def rendered(sections: Iterable[Section], facts: dict[str, Any], import_peak: int | None) -> str:
    """The page."""
    lines = [
        INTRODUCTION,
        f"{facts['date']}: {facts['processor']}, {facts['threads']} threads, no GPU. Python {facts['python']}, torch "
        f"{facts['torch']}.",
    ]
    if import_peak is not None:
        lines[-1] += f" A process that only imports torch and neuralcollapse peaks at {_size(import_peak)}."
    for section in sections:
        lines += ["", table(section)]
    return "\n".join([*lines, ""])


def table(section: Section) -> str:
    """One heading and its table."""
    lines = [
        f"## {section.heading}",
        "",
        "| | time | ratio | quartiles | rounds | peak | asked | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for place, row in enumerate(section.results):
        ratio = "" if row.ratio is None else "1" if place == 0 else f"{row.ratio:.3g}"
        spread = f"{row.quartiles[0]:.3g} to {row.quartiles[1]:.3g}" if row.rounds > 1 else ""
        peak = "" if row.peak_bytes is None else _size(row.peak_bytes)
        note = "; ".join(part for part in ("**noisy**" if row.noisy else "", row.note) if part)
        cells = [row.label, duration(row.seconds), ratio, spread, str(row.rounds), peak, row.asked, note]
        lines.append("| " + " | ".join(cells) + " |")
    for remark in section.remarks:
        lines += ["", remark]
    return "\n".join(lines)


def write(folder: Path, sections: list[Section], facts: dict[str, Any], import_peak: int) -> None:
    """README.md and results.json, each first whole beside its place, so that no half of a run is ever left."""
    record = {
        "machine": facts,
        "import_peak_bytes": import_peak,
        "tables": [section._asdict() | {"results": [asdict(row) for row in section.results]} for section in sections],
    }
    texts = {
        "results.json": json.dumps(record, indent=1, allow_nan=False) + "\n",
        "README.md": rendered(sections, facts, import_peak),
    }
    for name, text in texts.items():
        (folder / f".{name}.new").write_text(text, encoding="utf-8")
    for name in texts:
        os.replace(folder / f".{name}.new", folder / name)


def duration(seconds: float) -> str:
    """A time in its unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.2e} s"


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
