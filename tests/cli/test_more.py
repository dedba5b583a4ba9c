"""`neuralcollapse measure --more` and `--scree`: of a file and of a run."""

import json

import numpy as np
import pytest
import torch

import neuralcollapse as nc
from neuralcollapse.cli import main
from neuralcollapse.geometry.more import MORE_MEASURES

from ..helpers import refused


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 4
    features = (2 * rng.standard_normal((4, 6))[labels] + rng.standard_normal((40, 6))).astype(np.float32)
    return {"features": features, "labels": labels, "weight": rng.standard_normal((4, 6)).astype(np.float32)}


@pytest.fixture
def file(tmp_path, arrays):
    np.savez(tmp_path / "features.npz", **arrays)
    return tmp_path / "features.npz"


def test_json_has_the_further_measures_beside_the_others(file, arrays, capsys):
    assert main(["measure", str(file), "--more", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = nc.measure_features(**arrays, more=True)["more"]
    assert found["more"] == pytest.approx(expected)
    assert list(found["more"]) == list(MORE_MEASURES)
    assert "nc1" in found["measures"]
    assert not set(MORE_MEASURES) & set(found["measures"])
    assert main(["measure", str(file), "--json"]) == 0
    assert "more" not in json.loads(capsys.readouterr().out)


def test_the_table_has_them_with_their_meanings(file, capsys):
    assert main(["measure", str(file), "--more"]) == 0
    out = capsys.readouterr().out
    assert "least one-vs-rest margin" in out
    ranks = next(line.split()[1:5] for line in out.splitlines() if line.startswith("  rank"))
    assert ranks == ["6", "3", "6", "4"]


def test_pairs_and_classes_are_chosen_as_for_the_measures(file, capsys):
    assert main(["measure", str(file), "--more", "--no-pairwise", "--json"]) == 0
    assert "gnc2" not in json.loads(capsys.readouterr().out)["more"]
    assert main(["measure", str(file), "--more", "--pairs", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["more"]["num_margins"] == 1
    assert main(["measure", str(file), "--more", "--pairs", "3"]) == 0
    assert "sample of 3 pairs of classes, gnc2 of 1 classes" in capsys.readouterr().out


def test_the_spectra_are_drawn(file, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert main(["measure", str(file), "--scree", str(tmp_path / "scree.svg")]) == 0
    assert "scree.svg" in capsys.readouterr().out
    assert "number of the eigenvalue" in (tmp_path / "scree.svg").read_text()
    assert main(["measure", str(file), "--scree", str(tmp_path / "scree.svg"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["scree"].endswith("scree.svg")


def test_gnc1_is_that_of_features_at_length_one(arrays):
    more = nc.measure_features(**arrays, more=True)["more"]
    unit = torch.nn.functional.normalize(torch.from_numpy(arrays["features"]).double(), dim=1)
    assert more["gnc1"] == pytest.approx(nc.measure_features(unit, arrays["labels"])["nc1"], rel=1e-9)


def test_a_run_has_them_for_each_checkpoint(tmp_path, capsys):
    pytest.importorskip("lightning")
    run = tmp_path / "run"
    network = ["--data", "digits", "--network", "mlp", "--feature-dim", "16"]
    assert main(["train", *network, "--epochs", "1", "--out", str(run), "--checkpoint-every", "1"]) == 0
    capsys.readouterr()
    assert main(["measure", str(run), "--more", "--json"]) == 0
    records = json.loads(capsys.readouterr().out)["records"]
    assert records
    assert all(0 < each["more"]["gnc2"] < 2 and each["more"]["rank_between"] <= 9 for each in records)
    assert main(["measure", str(run), "--more"]) == 0
    assert "effective_rank" in capsys.readouterr().out
    weights = ["--checkpoints", str(run / "checkpoints" / "*.safetensors"), "--out", str(tmp_path / "measured")]
    assert main(["measure", *network, *weights, "--more", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["records"]
    assert found["more"] == pytest.approx(records[-1]["more"], rel=1e-6)
    assert "only --certify-head, --more" in refused(capsys, "measure", run, "--scree", tmp_path / "scree.png")


def test_what_does_not_fit_is_refused(file, tmp_path, capsys):
    assert "ends in .png, .svg or .pdf" in refused(capsys, "measure", file, "--scree", tmp_path / "scree.txt")
    assert "--scree is for files" in refused(
        capsys, "measure", "--network", "mlp", "--data", "digits", "--checkpoints", "*.pt", "--scree", "scree.png"
    )
