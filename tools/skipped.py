"""Say how many tests were skipped, and why, from pytest's JUnit file.

python tools/skipped.py report.xml
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree


def summary(report: Path) -> str:
    """One line with the counts, and one for each reason, the most frequent first."""
    cases = list(ElementTree.parse(report).iter("testcase"))
    reasons = Counter(" ".join(skip.get("message", "").split()) for case in cases for skip in case.iter("skipped"))
    lines = [f"{sum(reasons.values())} of {len(cases)} tests were skipped" + (":" if reasons else "")]
    return "\n".join(
        [*lines, *(f"  {count:4}  {reason or 'no reason given'}" for reason, count in reasons.most_common())]
    )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("expected one file, as in: python tools/skipped.py report.xml")
    print(summary(Path(sys.argv[1])))
