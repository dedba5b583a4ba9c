"""What pyproject.toml says of the package, where other files say it too."""

import importlib.util
import re
import shutil
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import neuralcollapse as nc
from neuralcollapse.cli import main

ROOT = Path(__file__).parent.parent
tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT, TOOLS = PYPROJECT["project"], PYPROJECT["tool"]
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


def test_every_link_of_the_readme_leads_into_the_repository_on_pypi():
    hook = TOOLS["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    (fragment,) = hook["fragments"]
    text = (ROOT / fragment["path"]).read_text()
    for rule in hook["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    links = re.findall(r"\]\(([^)]+)\)", text)
    repository = PROJECT["urls"]["Repository"]
    bases = (f"{repository}/blob/main/", repository.replace("//github.com", "//raw.githubusercontent.com") + "/main/")
    own = [link for link in links if link.startswith(bases)]
    assert len(own) > 10
    for link in own:
        path = next(link.removeprefix(base) for base in bases if link.startswith(base)).partition("#")[0]
        assert (ROOT / path).exists(), link
    assert all(link.startswith(("https://", "#")) for link in links)
    assert all(address.startswith(repository) for address in PROJECT["urls"].values())


def test_each_python_that_is_allowed_has_its_classifier():
    named = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if line.startswith("Programming Language")]
    versions = [version for version in named if version.startswith("3.")]
    assert f">={versions[0]}" == PROJECT["requires-python"]
    assert [int(version[2:]) for version in versions] == list(range(10, 10 + len(versions)))


@pytest.mark.slow
def test_every_command_that_the_check_of_the_wheel_gives_is_one(tmp_path, monkeypatch, capsys):
    """In an environment that lacks nothing; training is tried elsewhere."""
    spec = importlib.util.spec_from_file_location("check_wheel", ROOT / "tools" / "check_wheel.py")
    check_wheel = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(check_wheel)
    monkeypatch.chdir(tmp_path)
    exec(check_wheel.FEATURES)
    shutil.copytree(ROOT / "docs/results/fashion-mnist", "run")
    given = [words for words in check_wheel.COMMANDS if words[0] not in ("train", "--version")]
    assert len(given) > 5
    for words in given:
        assert main(list(words)) == 0, f"{words}: {capsys.readouterr().err}"
