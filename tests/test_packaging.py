"""What pyproject.toml says of the package, where other files say it too."""

from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import neuralcollapse as nc

ROOT = Path(__file__).parent.parent
tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IN_TESTS = (
    "accelerate",
    "hypothesis",
    "pytest",
    "pytest-xdist",
    "transformers",
)  # besides the extras `train` and `hub`


def requirements() -> dict[str, Requirement]:
    extras = PROJECT["optional-dependencies"]
    lines = PROJECT["dependencies"] + extras["train"] + extras["hub"]
    lines += [line for line in PROJECT["optional-dependencies"]["dev"] if Requirement(line).name in IN_TESTS]
    return {Requirement(line).name.lower(): Requirement(line) for line in lines}


def pins(name: str) -> dict[str, Version]:
    lines = [line.partition(";")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    found = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {name.lower(): Version(version) for name, version in found}


def test_the_lowest_versions_are_those_that_the_tests_run_with():
    lowest = pins("constraints-lowest.txt")
    for name, requirement in requirements().items():
        (bound,) = requirement.specifier
        assert bound.operator == ">=", name
        assert lowest[name] == Version(bound.version), name


def test_the_pinned_versions_are_within_the_bounds():
    pinned = pins("constraints.txt")
    for name, requirement in requirements().items():
        assert pinned[name] in requirement.specifier, name


def test_one_version():
    assert PROJECT["version"] == nc.__version__
