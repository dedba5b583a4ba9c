"""The scripts of examples/ run as they are, shortened by their options."""

import random
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from neuralcollapse.runs.reading import read_run

EXAMPLES = Path(__file__).parents[1] / "examples"
FLAGS = {
    "plain_loop": (),
    "lightning_module": ("--logs", "logs"),
    "huggingface_images": ("--trainer", "trainer"),
    "train_from_python": (),
}
OUT = {"train_from_python": ("run-learned", "run-simplex")}


@pytest.fixture
def seeds(monkeypatch):
    """What a script seeds is as before afterwards."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    yield
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    random.setstate(states[2])


@pytest.mark.usefixtures("seeds")
@pytest.mark.parametrize("name", FLAGS)
def test_an_example_gives_the_record_and_the_page(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, "--epochs", "1", "--out", "run", *FLAGS[name]])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    for out in OUT.get(name, ("run",)):
        run = read_run(tmp_path / out)
        assert [record.epoch for record in run.records] == [0, 1]
        assert run.environment["train_samples"] == 1437
        assert run.last.test
        assert 50_000 < (tmp_path / out / "report.html").stat().st_size < 2_000_000


@pytest.mark.usefixtures("seeds")
def test_the_example_of_training_goes_on_where_it_ended(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for epochs in ("1", "2"):
        monkeypatch.setattr(sys, "argv", ["train_from_python", "--epochs", epochs, "--out", "run"])
        runpy.run_path(str(EXAMPLES / "train_from_python.py"), run_name="__main__")
    assert [record.epoch for record in read_run(tmp_path / "run-simplex").records] == [0, 1, 2]
    assert "run-simplex: 3 records, test accuracy" in capsys.readouterr().out


@pytest.mark.usefixtures("seeds")
def test_the_example_of_few_shots_predicts_what_is_drawn(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["few_shots", "--epochs", "20", "--episodes", "300"])
    runpy.run_path(str(EXAMPLES / "few_shots.py"), run_name="__main__")
    lines = [line.split()[-3:] for line in capsys.readouterr().out.splitlines() if "-way" in line]
    assert len(lines) == 6
    for predicted, _, drawn in lines:
        assert float(predicted) == pytest.approx(float(drawn), abs=0.1)


@pytest.mark.parametrize(("name", "lines"), [("plain_loop", 5), ("lightning_module", 3), ("huggingface_images", 2)])
def test_an_example_numbers_the_lines_that_were_added(name, lines):
    text = (EXAMPLES / f"{name}.py").read_text()
    assert [number for number in range(1, 9) if f"  # {number}" in text] == list(range(1, lines + 1))
