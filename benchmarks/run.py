"""Run the benchmarks and write the tables of benchmarks/README.md, unless the machine was too noisy: `make bench`.

    python benchmarks/run.py                  # all tables, a quarter of an hour; writes README.md and results.json
    python benchmarks/run.py moments stream   # some tables; prints them, writes nothing
    python benchmarks/run.py --quick          # tiny sizes, to see that all runs: times mean nothing, nothing is written

A table that was noisy is made once more at the end. Ends with 1, having written nothing, when it stayed noisy.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import harness
import neuralcollapse as nc
import page
from page import processor as processor  # heads.py takes it from here

HERE = Path(__file__).parent

# name -> the module whose function of that name makes the table; modules are loaded when their table's turn comes, as
# a process that takes a peak should hold no more than it needs.
TABLES = {
    "moments": "moments",
    "updates": "moments",
    "measures": "moments",
    "wide": "wide",
    "pairs": "moments",
    "stream": "stream",
    "outliers": "outliers",
    "classifier": "classifier",
    "codes": "codes",
    "certificate": "landscape",
    "landscape": "landscape",
    "training": "training",
    "measuring": "training",
    "startup": "startup",
}


def make(name: str, quick: bool) -> harness.Table:
    """The table of a name, prepared."""
    prepare: Callable[[bool], harness.Table] = getattr(importlib.import_module(TABLES[name]), name)
    return prepare(quick)


def main(arguments: list[str] | None = None, folder: Path = HERE) -> int:
    """Run, print, write; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"of {', '.join(TABLES)}; all when none is given")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, nothing judged, nothing written")
    parser.add_argument(
        "--peak", nargs=2, metavar=("TABLE", "ROW"), help="run row number ROW alone, print this process's peak in bytes"
    )
    options = parser.parse_args(arguments)
    named = [*options.tables, *(options.peak or [])[:1]]
    unknown = [name for name in named if name not in TABLES]
    if unknown:
        parser.error(f"no table {unknown[0]!r}: expected some of {', '.join(TABLES)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nc.NeuralCollapseWarning)  # more classes than a simplex holds
        if options.peak:
            make(options.peak[0], options.quick).rows[int(options.peak[1])].run()
            print(harness.peak_bytes())
            return 0
        return _run(options.tables, options.quick, folder)


def _run(names: list[str], quick: bool, folder: Path) -> int:
    facts = page.machine()
    import_peak = harness.fresh_peak(
        "-c",
        f"import sys; sys.path.append({str(HERE)!r}); import torch, neuralcollapse, harness; "
        "print(harness.peak_bytes())",
    )
    sections = []
    for name in names or TABLES:
        sections.append(_section(name, quick))
        print(page.table(sections[-1]), end="\n\n", flush=True)
    for place, section in enumerate(sections):  # a quarter of an hour should not be lost for a minute of noise
        if any(row.noisy for row in section.results):
            print(f"Again, as the machine was too noisy: {section.name}", flush=True)
            sections[place] = _section(section.name, quick)
            print(page.table(sections[place]), end="\n\n", flush=True)
    noisy = [f"{section.name}: {row.label}" for section in sections for row in section.results if row.noisy]
    if noisy:
        print(
            f"The machine was too noisy, even with {harness.MOST_TIMES} times the rounds, for\n  "
            + "\n  ".join(noisy)
            + "\nNothing was written: stop what else is running (`uptime`, `top`), then run again.",
            file=sys.stderr,
        )
        return 1
    if names or quick:
        print(page.rendered([], facts, import_peak).rstrip().rpartition("\n")[2])
        return 0
    page.write(folder, sections, facts, import_peak)
    print(f"wrote README.md and results.json of {len(sections)} tables")
    return 0


def _section(name: str, quick: bool) -> page.Section:
    """Run one table; what it holds is freed at the end."""
    made = make(name, quick)
    flags = ["--quick"] if quick else []

    def peak(number: int) -> int:
        return harness.fresh_peak(str(HERE / "run.py"), "--peak", name, str(number), *flags)

    results = harness.measured(made, judge=not quick, peak=peak)
    return page.Section(name, made.heading, results, made.remarks())


if __name__ == "__main__":
    sys.exit(main())
