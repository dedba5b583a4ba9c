"""What version 0.1.0 wrote is read today: runs, series, states of metrics and heads (tests/data/v0_1_0)."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import neuralcollapse as nc
from neuralcollapse.cli import main
from neuralcollapse.runs.folder import RunFolder
from tests.helpers import record_lines

pytestmark = pytest.mark.usefixtures("own_warning_display")

OLD = Path(__file__).parent / "data" / "v0_1_0"
EXPECTED = json.loads((OLD / "expected.json").read_text())


def copied(name: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD / name, tmp_path / name))


@pytest.mark.parametrize("name", ["run-learned", "run-etf", "recorder", "series"])
def test_records_are_read_as_they_were_written(name):
    run = nc.read_run(OLD / name)
    assert [json.loads(record.to_json()) for record in run.records] == record_lines(OLD / name)
    assert run.environment["neuralcollapse"] == "0.1.0"
    assert [geometry.epoch for geometry in run.geometries] == [record.epoch for record in run.records]


@pytest.mark.parametrize("name", ["run-learned", "run-etf", "recorder", "series"])
def test_a_page_is_written(name, tmp_path):
    path = copied(name, tmp_path)
    main(["report", str(path)])
    assert "NC1" in (path / "report.html").read_text()


@pytest.mark.parametrize("name", ["run-learned", "run-etf"])
def test_checkpoints_are_measured_to_the_same_numbers(name, capsys):
    main(["measure", str(OLD / name), "--json"])
    measured = json.loads(capsys.readouterr().out)["records"]
    for new, old in zip(measured, record_lines(OLD / name)[1:], strict=True):
        assert new["epoch"] == old["epoch"]
        found = new["measures"]
        assert {key: found[key] for key in old["measures"]} == pytest.approx(old["measures"], rel=1e-6)


@pytest.mark.parametrize("name", ["run-learned", "run-etf"])
def test_a_run_goes_on(name, tmp_path):
    path = copied(name, tmp_path)
    main(["train", "--resume", str(path), "--epochs", "4"])
    run = nc.read_run(path)
    assert [record.epoch for record in run.records] == [0, 1, 2, 3, 4]
    assert [json.loads(record.to_json()) for record in run.records[:-1]] == record_lines(OLD / name)
    assert run.last.train["loss"] < run.records[-2].train["loss"]


def test_an_old_run_is_compared_with_a_new_one(tmp_path, short_run):
    main(["report", str(OLD / "run-etf"), str(short_run.path), "--out", str(tmp_path / "both.html")])
    page = (tmp_path / "both.html").read_text()
    assert "run-etf" in page
    assert "short" in page


def test_a_recorder_goes_on(tmp_path):
    path = copied("recorder", tmp_path)
    data = load_file(OLD / "recorder-data.safetensors")
    network = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    network.load_state_dict(load_file(OLD / "recorder-network.safetensors"))
    loader = DataLoader(TensorDataset(data["images"], data["labels"]), batch_size=10)
    recorder = nc.Recorder(loader, loader, "2", out=path, resume=True, head_decay=0.01, layers=["0"])
    recorder.measure(network, 3)
    assert [record.epoch for record in RunFolder.open(path).records()] == [0, 1, 2, 3]
    assert [json.loads(record.to_json()) for record in RunFolder.open(path).records()[:3]] == record_lines(
        OLD / "recorder"
    )


def without_nc0(measures):
    """What version 0.1.0 measured."""
    return {name: value for name, value in measures.items() if name != "nc0"}


def test_a_series_goes_on(tmp_path):
    path, run = copied("series", tmp_path), copied("run-learned", tmp_path)
    arguments = ["--model", "mlp", "--network-options", '{"width": 16, "depth": 2}', "--feature-dim", "10"]
    arguments += ["--data", "digits", "--samples-per-class", "20", "--out", str(path)]
    main(["measure", *arguments, "--checkpoints", str(run / "checkpoints" / "*.safetensors")])
    for new, old in zip(nc.read_run(path).records, record_lines(OLD / "series"), strict=True):
        assert new.epoch == old["epoch"]
        assert without_nc0(new.measures) == pytest.approx(old["measures"], rel=1e-6)


def test_the_state_of_a_metric_is_loaded():
    metric = nc.NeuralCollapse(4, 6)
    metric.persistent(True)
    metric.load_state_dict(torch.load(OLD / "metric.pt", weights_only=True))
    assert without_nc0({key: float(value) for key, value in metric.compute().items()}) == pytest.approx(
        EXPECTED["metric"], rel=1e-6, nan_ok=True
    )


def test_the_state_of_a_fixed_head_is_loaded():
    head = nc.ETFClassifier(6, 4, rotation="none")
    head.load_state_dict(torch.load(OLD / "head.pt", weights_only=True))
    images = load_file(OLD / "recorder-data.safetensors")["images"][:2]
    assert head(images).tolist() == pytest.approx([pytest.approx(row, abs=1e-6) for row in EXPECTED["head"]])
    assert torch.allclose(head.weight, torch.tensor(EXPECTED["head_weight"]), atol=1e-6)
