"""The count of skipped tests, with their reasons, on what pytest itself writes."""

import subprocess
import sys

TESTS = """
import pytest

@pytest.mark.skip(reason="no GPU")
@pytest.mark.parametrize("i", range(3))
def test_a(i): ...

def test_b():
    pytest.skip("no\\n  browser")

def test_c(): ...
"""


def test_each_reason_has_its_count(tmp_path):
    from skipped import summary

    (tmp_path / "test_it.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", "--junit-xml=r.xml", "-p", "no:cacheprovider"]
    subprocess.run([*command, "test_it.py"], cwd=tmp_path, check=True, capture_output=True)
    assert summary(tmp_path / "r.xml").splitlines() == [
        "4 of 5 tests were skipped:",
        "     3  no GPU",
        "     1  no browser",
    ]


def test_nothing_skipped_is_said_too(tmp_path):
    from skipped import summary

    (tmp_path / "r.xml").write_text('<testsuites><testsuite><testcase name="a"/></testsuite></testsuites>')
    assert summary(tmp_path / "r.xml") == "0 of 1 tests were skipped"
