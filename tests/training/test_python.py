"""Training from Python by the public names alone."""

import subprocess
import sys

import pytest

import neuralcollapse as nc
from tests.test_docs import assert_shown, blocks

QUICK = {"width": 12, "depth": 2, "feature_dim": 9, "samples_per_class": 20, "loggers": ()}


def test_the_guide_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ((code, shown),) = blocks("docs/training.md")
    exec(compile(code, "docs/training.md", "exec"), {})
    assert_shown(capsys.readouterr().out, shown)


def test_a_run_is_trained_resumed_and_read(tmp_path):
    folder = nc.train(nc.TrainConfig(epochs=2, **QUICK), tmp_path / "run", progress=False)
    assert nc.read_run(folder.path).last.epoch == 2
    nc.resume(folder.path, {"epochs": 3}, progress=False)
    run = nc.read_run(tmp_path / "run")
    assert [record.epoch for record in run.records] == [0, 1, 2, 3]
    assert run.config["epochs"] == 3
    assert run.environment["train_samples"] == 200
    assert 50_000 < nc.write_page(folder).stat().st_size < 2_000_000


def test_a_wrong_option_is_refused_as_the_command_does(tmp_path):
    with pytest.raises(nc.InputError, match="epochs"):
        nc.TrainConfig(epochs=0)
    with pytest.raises(nc.InputError, match="no run folder"):
        nc.resume(tmp_path / "none")


def test_the_names_are_there_at_once_and_nothing_heavy_is_imported():
    code = "import sys, neuralcollapse as nc; nc.TrainConfig(); print('torch' in sys.modules, 'train' in dir(nc))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["False", "True"]
