"""`neuralcollapse ood`: of a run, of a network with its checkpoints, and of files of features."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import neuralcollapse as nc
from neuralcollapse.cli import main
from neuralcollapse.cli.ood import _called
from neuralcollapse.ood.page import advice, ranking, results_csv
from tests.helpers import refused, write_idx

MLP = ["--network", "mlp", "--network-options", '{"width": 32, "depth": 2}', "--feature-dim", "16", "--data", "digits"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The current folder, with other images in idx/, and features in files."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    (tmp_path / "idx").mkdir()
    for split, count in (("train", 20), ("t10k", 30)):
        write_idx(tmp_path / "idx" / f"{split}-images-idx3-ubyte", generator.integers(0, 17, (count, 8, 8)))
        write_idx(tmp_path / "idx" / f"{split}-labels-idx1-ubyte", np.arange(count) % 2)
    means, labels = 3 * generator.normal(size=(3, 8)), np.arange(90) % 3

    def features(noise):
        return means[labels] + noise * generator.normal(size=(90, 8))

    np.savez(tmp_path / "train.npz", features=features(1), labels=labels, weight=means, bias=np.ones(3))
    np.savez(tmp_path / "test.npz", features=features(1))
    np.savez(tmp_path / "other.npz", features=features(3))
    np.savez(tmp_path / "empty.npz", features=features(3)[:0])
    return tmp_path


def found(capsys, *arguments):
    assert main(["ood", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_run_is_scored_as_in_python_and_has_a_page(place, capsys, short_run):
    result = found(capsys, short_run.path, "--outside", "idx:idx", "--save", "scorer.safetensors", "--neco-dim", "0.9")
    assert result["page"] == "outliers.html"
    scores = result["outside"]["idx:idx"]
    assert set(scores) == set(nc.ood.SCORES) - set(result["undefined"])
    assert scores["mahalanobis"]["auroc"] > 0.95  # noise is no digit
    scorer = nc.OODScorer.load("scorer.safetensors")
    assert scorer.options.neco_dim == 0.9
    assert scorer.layer == "network.fc"
    page = (place / "outliers.html").read_text()
    for words in ("Mahalanobis", "1,437 training images", "inside: 360 test images", "AUROC of every score"):
        assert words in page
    assert "http-equiv" not in page


def test_a_network_by_name_gives_the_numbers_of_its_run(place, capsys, short_run):
    epoch, file = short_run.checkpoints()[-1]
    (place / "ckpts").mkdir()
    for number in (1, epoch):  # the last is the one that counts
        weights = load_file(file)
        save_file(
            {name: value * (number == epoch) for name, value in weights.items()}, f"ckpts/epoch_{number}.safetensors"
        )
    of_run = found(capsys, short_run.path, "--outside", "idx:idx")
    of_network = found(
        capsys, *MLP, "--checkpoints", "ckpts/*.safetensors", "--outside", "idx:idx", "--out", "other.html"
    )
    for name, values in of_run["outside"]["idx:idx"].items():
        assert of_network["outside"]["idx:idx"][name]["auroc"] == pytest.approx(values["auroc"], abs=1e-3)


def test_files_of_features_are_scored(place, capsys):
    arguments = ["train.npz", "--inside", "test.npz", "--outside", "other.npz"]
    result = found(capsys, *arguments, "--scores", "mahalanobis,max-logit", "--out", "a.html")
    training = np.load("train.npz")
    moments = nc.ClassMoments.from_batch(torch.as_tensor(training["features"]), torch.as_tensor(training["labels"]), 3)
    scorer = nc.OODScorer.from_moments(moments, torch.as_tensor(training["weight"]), torch.as_tensor(training["bias"]))
    inside, outside = (scorer.score(np.load(f"{name}.npz")["features"]) for name in ("test", "other"))
    for name in ("mahalanobis", "max_logit"):
        assert result["outside"]["other.npz"][name] == pytest.approx(nc.ood.evaluate(inside[name], outside[name]))
    assert main(["ood", *arguments]) == 0
    shown = capsys.readouterr().out
    assert "outside: other.npz" in shown
    assert "Take Mahalanobis: AUROC" in shown
    assert "page  outliers.html" in shown


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ([], "expected other data with --outside"),
        (["--outside", "mnist"], "got no --network"),
        (["train.npz", "--outside", "other.npz"], "held-out features with --inside"),
        (["train.npz", "--inside", "none.npz", "--outside", "other.npz"], "no file or run folder none.npz"),
        (["test.npz", "--inside", "test.npz", "--outside", "other.npz"], "no array 'labels' or 'weight'"),
        (["train.npz", "--inside", "test.npz", "--outside", "a", "a"], "the same data twice"),
        (["train.npz", "--inside", "empty.npz", "--outside", "other.npz"], "empty.npz: expected features of at least"),
        (["train.npz", "--inside", "test.npz", "--outside", "empty.npz"], "empty.npz: expected features of at least"),
        (["train.npz", "--inside", "test.npz", "--outside", "other.npz", "--scores", "nec"], "no score 'nec'"),
        (["train.npz", "--inside", "test.npz", "--outside", "other.npz", "--neco-dim", "x"], "--neco-dim as a number"),
        (["train.npz", "--inside", "test.npz", "--outside", "other.npz", "--network", "mlp"], "got both"),
        (["train.npz", "--inside", "test.npz", "--outside", "other.npz", "--out", "idx"], "the folder idx"),
        (["train.npz", "--inside", "test.npz", "--outside", "other.npz", "--out", "test.npz"], "test.npz exists"),
        ([*MLP, "--outside", "idx:idx"], "got no --checkpoints"),
        ([*MLP, "--inside", "test.npz", "--checkpoints", "x", "--outside", "idx:idx"], "--inside is for files"),
        (["--outsides", "x"], "no option"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(place, capsys, arguments, match):
    assert match in refused(capsys, "ood", *arguments)


def test_other_images_must_fit_and_not_be_told_by_their_brightness(place, capsys, short_run):
    assert "--outside nodata: " in refused(capsys, "ood", short_run.path, "--outside", "nodata")
    write_idx(place / "idx" / "t10k-images-idx3-ubyte", np.random.default_rng(0).integers(0, 256, (30, 8, 8)))
    assert main(["ood", str(short_run.path), "--outside", "idx:idx"]) == 0
    told = capsys.readouterr()
    assert "brightness alone may tell them apart" in told.err
    assert "mean brightness alone has the AUROC idx 1.0000" in told.out.replace("idx:idx", "idx")
    assert "mean brightness alone has the AUROC" in (place / "outliers.html").read_text()


def test_advice_names_the_best_those_near_it_and_guessing():
    def values(auroc):
        return {"auroc": auroc, "auroc_error": 0.01, "aupr_in": 0.5, "aupr_out": 0.5, "fpr95": 0.5}

    results = {"a": {"nci": values(0.9), "vim": values(0.91), "msp": values(0.7)}}
    assert ranking(results) == ["vim", "nci", "msp"]
    assert "Take ViM: AUROC 0.9100 on these outliers. Within two standard errors of it: NCI. It was chosen" in advice(
        results
    )
    assert advice({"a": {"nci": values(0.51)}}).startswith("Take none")
    assert results_csv(results).splitlines()[1] == "a,nci,0.9,0.01,0.5,0.5,0.5"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["mnist:/data/m", "imagefolder:/data/pets/", "other.npz"], ["mnist", "pets", "other.npz"]),
        (["imagefolder:/a/x", "imagefolder:/b/x"], ["imagefolder:/a/x", "imagefolder:/b/x"]),
        (["uoft-cs/cifar10"], ["cifar10"]),
    ],
)
def test_a_page_calls_data_by_short_names_that_tell_them_apart(names, expected):
    assert list(_called(names).values()) == expected
