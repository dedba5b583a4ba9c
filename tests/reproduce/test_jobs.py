"""Runs side by side, with a script in place of Python: what becomes of processes that end, fail or are stopped."""

import signal
import time
from types import SimpleNamespace

import pytest

from neuralcollapse.reproduce import jobs

# Called as Python is: -m, the module, the folder, the name of the run.
SCRIPT = """#!/bin/sh
case "$4" in
  good) echo "trained with $OMP_NUM_THREADS";;
  bad) echo "begun"; echo "no memory"; exit 1;;
  silent) exit 3;;
  taken) exit 75;;
  long*) trap 'echo saved; exit 0' TERM; echo begun; for i in $(seq 500); do sleep 0.02; done;;
  deaf) trap '' TERM; echo begun; for i in $(seq 500); do sleep 0.02; done;;
esac
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run these names two at a time: (what came of them, what was said)."""
    (tmp_path / "python").write_text(SCRIPT)
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(jobs, "sys", SimpleNamespace(executable=str(tmp_path / "python")))

    def made(*names, on_message=lambda text: None):
        said = []
        hear = lambda text: (said.append(text), on_message(text))  # noqa: E731
        try:
            return jobs.side_by_side(tmp_path, names, 2, progress=True, on_message=hear), said
        except BaseException as error:
            return error, said

    return made


def test_one_that_fails_is_named_by_what_it_said_last_and_the_others_go_on(run):
    (elsewhere, failed), said = run("bad", "silent", "taken", "good")
    assert elsewhere == ["taken"]
    assert failed == {"bad": "no memory", "silent": "it ended with code 3"}
    assert {"bad failed, the others go on: no memory", "run 4 of 4: good", "good: trained with 1"} <= set(said)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_all_save_and_begins_none(run, signum):
    before = signal.getsignal(signum)
    heard = lambda text: signal.raise_signal(signum) if text == "long-1: begun" else None  # noqa: E731
    found, said = run("long-1", "long-2", "good", on_message=heard)
    assert isinstance(found, jobs.AllStopped)
    assert found.signum == signum
    assert "long-1: saved" in said
    assert not any("good" in text for text in said)
    assert signal.getsignal(signum) is before


def test_a_second_interrupt_waits_for_nothing(run):
    def heard(text):
        if text == "deaf: begun":
            signal.raise_signal(signal.SIGINT)
            time.sleep(0.2)  # else Python may handle both as one
            signal.raise_signal(signal.SIGINT)

    found, _ = run("deaf", on_message=heard)
    assert isinstance(found, KeyboardInterrupt)
