"""`nc.measure` on real architectures against brute force: benchmarks/architectures.py says what each model is."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent.parent / "benchmarks"


def script():
    """The script as a module, which finds those beside it by their names."""
    before = set(sys.modules)
    sys.path.insert(0, str(FOLDER))
    try:
        return importlib.import_module("architectures")
    finally:
        sys.path.remove(str(FOLDER))
        for name in {path.stem for path in FOLDER.glob("*.py")} - before:
            sys.modules.pop(name, None)


architectures = script()
CASES = list(architectures.cases())


def check(case):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        row = architectures.judge(case)
    finally:
        torch.set_num_threads(threads)
    if row.verdict == "missing":
        pytest.skip(row.words)
    assert row.verdict in (("agrees",) if case.must_agree else ("agrees", "refused")), row.words


def named(cases):
    return [pytest.param(case, id=case.name) for case in cases]


def quick(case):
    """Those of a tenth of a second."""
    if case.name.startswith("layer:"):
        return "timm" not in case.name and "torchvision" not in case.name
    return case.name.startswith("head:") or (
        "transformers" in case.name and ("Bert" in case.name or "GPT2" in case.name)
    )


@pytest.mark.parametrize("case", named(filter(quick, CASES)))
def test_heads_layers_and_tiny_transformers(case):
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", named(case for case in CASES if not quick(case)))
def test_real_architectures(case):
    check(case)
