"""`neuralcollapse measure --checkpoints`; the other forms of the command are in test_cli.py."""

import json
import pickle
import shutil
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

import neuralcollapse as nc
from neuralcollapse.cli import main
from neuralcollapse.cli.checkpoints import pixel_statistics
from neuralcollapse.data.load import load_data
from tests.helpers import refused

MLP = ["--network", "mlp", "--network-options", '{"width": 32, "depth": 2}', "--feature-dim", "16", "--data", "digits"]
ALL = ["--checkpoints", "ckpts/*.pt"]


@pytest.fixture
def place(tmp_path, monkeypatch, short_run):
    """The current folder, with the weights of a short training as one of DDP would have saved them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ckpts").mkdir()
    for epoch, file in short_run.checkpoints():
        state = {f"module.{name}": value for name, value in load_file(file).items()}
        torch.save({"state_dict": state, "epoch": epoch}, tmp_path / "ckpts" / f"epoch_{epoch}.pt")
    return tmp_path


def measured(capsys, *arguments):
    assert main(["measure", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def images(folder, classes=3, count=4, size=8):
    torch.manual_seed(0)
    for name in range(classes):
        (folder / "train" / f"kind{name}").mkdir(parents=True)
        for number in range(count):
            pixels = torch.randint(0, 256, (size, size, 3), dtype=torch.uint8).numpy()
            Image.fromarray(pixels).save(folder / "train" / f"kind{name}" / f"{number}.png")


# The new form


def test_the_checkpoints_of_a_training_give_its_records_again(place, capsys, short_run):
    """By the same pixels, those of a run of `neuralcollapse train` are what it measured itself."""
    result = measured(capsys, *MLP, "--checkpoints", "ckpts/*.pt", "--batch-size", "100")
    assert result["run"] == "runs/digits-mlp-checkpoints"
    assert result["unit"] == "epoch"
    assert [record["checkpoint"] for record in result["records"]] == ["ckpts/epoch_2.pt", "ckpts/epoch_4.pt"]
    known = {record.epoch: record for record in short_run.records()}
    for record in result["records"]:
        assert record["measures"] == pytest.approx(known[record["epoch"]].measures, rel=1e-4)
        assert record["train"] == pytest.approx(known[record["epoch"]].train, rel=1e-4)
        assert record["test"] == pytest.approx(known[record["epoch"]].test, rel=1e-4)
    assert (place / result["page"]).read_text().startswith("<!doctype html>")


def test_it_prints_a_line_for_each_a_table_and_the_next_step_and_goes_on(place, capsys):
    flags = ["measure", *MLP, "--checkpoints", "ckpts/epoch_2.pt"]
    assert main(flags) == 0
    out = capsys.readouterr().out
    assert out.startswith("epoch 2 ")
    assert "collapse after 2 epochs, training set, 1,437 samples" in out
    assert "nc1 " in out
    assert "page  runs/digits-mlp-checkpoints/report.html" in out
    assert "\nnext  " in out
    assert main([*flags, "ckpts/epoch_4.pt"]) == 0  # as a shell expands a pattern
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("ckpts/epoch_2.pt (measured before)")
    assert lines[1].endswith("ckpts/epoch_4.pt")
    assert main([*flags, "--force", "--out", "runs/digits-mlp-checkpoints"]) == 0
    assert len((place / "runs/digits-mlp-checkpoints/records.jsonl").read_text().splitlines()) == 1


class Small(nn.Module):
    """As one of timm: `forward_features`, and the classifier at `fc`."""

    def __init__(self, num_classes, width=6):
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU())
        self.fc = nn.Linear(width, num_classes)

    def forward(self, images):
        return self.fc(self.layer1(images).mean((2, 3)))


def test_a_model_of_timm_on_an_image_folder_by_the_names_in_the_model(place, capsys, monkeypatch):
    timm = types.ModuleType("timm")
    timm.list_models = lambda: ["resnet18"]
    timm.create_model = lambda name, num_classes, **options: Small(num_classes, **options)
    monkeypatch.setitem(sys.modules, "timm", timm)
    images(place / "pets")
    (place / "weights").mkdir()
    nets = {epoch: Small(3).eval() for epoch in (3, 20)}
    for epoch, net in nets.items():
        state = {f"model._orig_mod.{name}": value for name, value in net.state_dict().items()}
        save_file(state, place / "weights" / f"epoch={epoch}-step={epoch * 7}.safetensors")
    flags = [
        "--network",
        "timm:resnet18",
        "--checkpoints",
        "weights/*.safetensors",
        "--data",
        f"imagefolder:{place}/pets",
    ]
    flags += ["--layer", "fc", "--layers", "layer1.0,layer1", "--normalize", "imagenet", "--num_classes", "3"]
    result = measured(capsys, *flags)
    data = load_data(f"imagefolder:{place}/pets").train
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    inputs = (data.images / 255 - mean[:, None, None]) / std[:, None, None]
    assert [record["epoch"] for record in result["records"]] == [3, 20]
    for record, net in zip(result["records"], nets.values(), strict=True):
        with torch.no_grad():
            features = net.layer1(inputs).mean((2, 3))
        expected = nc.measure_features(features, data.labels, net.fc.weight, net.fc.bias)
        assert record["measures"]["nc1"] == pytest.approx(expected["nc1"], rel=1e-3)
        assert set(record["layers"]) == {"layer1.0", "layer1"}


def test_a_saved_model_of_transformers_from_its_folder(place, capsys):
    transformers = pytest.importorskip("transformers")
    options = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.ViTConfig(image_size=8, patch_size=4, num_channels=1, num_labels=10, **options)
    for step in (20, 100):
        network = transformers.ViTForImageClassification(config)
        network.save_pretrained(place / "out" / f"checkpoint-{step}")
    flags = ["--network", "transformers:./out/checkpoint-100", "--data", "digits", "--samples-per-class", "5"]
    result = measured(capsys, *flags, "--checkpoints", "out/checkpoint-*", "--no-pairwise")
    assert [(record["epoch"], record["checkpoint"]) for record in result["records"]] == [
        (20, "out/checkpoint-20/model.safetensors"),
        (100, "out/checkpoint-100/model.safetensors"),
    ]
    assert result["unit"] == "step"
    assert result["run"] == "runs/digits-checkpoint-100-checkpoints"
    assert "nc1_cdnv" not in result["records"][0]["measures"]


def test_a_function_of_ones_own_and_a_fixed_classifier(place, capsys):
    (place / "nets_of_mine.py").write_text(
        "from torch import nn\ndef make(num_classes, width=5):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, num_classes))\n"
    )
    try:
        network = nc.build_network("nets_of_mine:make", 10, frame="simplex", width=12)
        save_file(network.state_dict(), place / "last.safetensors")
        flags = ["--network", "nets_of_mine:make", "--data", "digits", "--checkpoints", "last.safetensors"]
        result = measured(capsys, *flags, "--network-options", '{"width": 12}', "--frame", "simplex")
        assert result["records"][0]["measures"]["nc2"] == pytest.approx(0, abs=1e-5)
        assert "is missing 1 of the model's 4 weights" in refused(
            capsys, "measure", *flags, "--network-options", '{"width": 12}', "--out", "x"
        )
    finally:
        sys.modules.pop("nets_of_mine", None)


def test_a_subset_keeps_the_pixels_statistics_of_all_images(place, capsys):
    whole = measured(capsys, *MLP, "--checkpoints", "ckpts/epoch_4.pt", "--out", "whole")
    part = measured(capsys, *MLP, "--checkpoints", "ckpts/epoch_4.pt", "--out", "part", "--samples-per-class", "100")
    assert part["records"][0]["test"] == whole["records"][0]["test"]
    assert part["records"][0]["train"] != whole["records"][0]["train"]


def test_more_classes_than_the_data_have(place, capsys):
    network = nc.build_network("mlp", 12, in_features=64)
    torch.save(network.state_dict(), "w.pt")
    flags = ["--network", "mlp", "--data", "digits", "--checkpoints", "w.pt"]
    assert main(["measure", *flags, "--num-classes", "12"]) == 0
    assert "no samples of classes 10, 11" in capsys.readouterr().err
    assert "expected fc.weight as float32 (10, 256), got float32 (12, 256)" in refused(
        capsys, "measure", *flags, "--out", "x"
    )


def test_the_head_is_certified_with_the_decays_of_the_training(place, capsys):
    flags = [*MLP, "--checkpoints", "ckpts/epoch_4.pt"]
    result = measured(capsys, *flags, "--certify-head", "--weight-decay", "0.01")
    assert result["records"][0]["head"]["ratio"] >= 1
    assert "--weight-decay" in refused(capsys, "measure", *flags, "--certify-head")
    assert "--certify-head" in refused(capsys, "measure", *flags, "--weight-decay", "0.1")


def test_an_accuracy_of_guessing_is_pointed_out(place, capsys):
    torch.manual_seed(0)
    torch.save(nc.build_network("mlp", 10, in_features=64).state_dict(), "w.pt")
    assert main(["measure", "--network", "mlp", "--data", "digits", "--checkpoints", "w.pt"]) == 0
    assert "next  the accuracy is that of guessing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("how", "channels", "mean", "std"),
    [
        ("unit", 1, [0], [255]),
        ("half", 3, [127.5], [127.5]),
        ("imagenet", 3, [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]),
        ("0.5/0.25", 3, [127.5], [63.75]),
        ("0.1,0.2,0.3/0.5,0.5,1", 3, [25.5, 51, 76.5], [127.5, 127.5, 255]),
        ("data", 1, [3.0], [4.0]),
    ],
)
def test_how_pixels_are_normalised(how, channels, mean, std):
    data = types.SimpleNamespace(channels=channels, mean=[3.0], std=[4.0])
    found = pixel_statistics(how, data)
    assert list(found[0]) == pytest.approx(mean)
    assert list(found[1]) == pytest.approx(std)


# Mistakes


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--network", "mlp"], "got no --checkpoints: add it, as in"),
        (["--checkpoints", "ckpts/*.pt", "--data", "digits"], "got no --network"),
        (["--checkpoints", "ckpts/*.pt", "--network", "mlp"], "got no --data"),
        (["ckpts/epoch_2.pt", *MLP], "got both: leave one out"),
        (["runs/x", "--force"], "(--force), got both"),
        ([*MLP, "--checkpoints", "chkpts/*.pt"], "no checkpoint 'chkpts/*.pt' in {place}"),
        ([*MLP, "--checkpoints", "ckpts"], "the folder ckpts without model.safetensors"),
        ([*MLP, "--checkpoints", "ckpts/*.pt", "notes.txt"], "got notes.txt: leave it out"),
        ([*MLP, "--checkpoints", "ckpts/*.pt", "ckpts/epoch_2.pt"], "given twice"),
        ([*MLP, "--checkpoints", "bomb.pt"], "pickled objects (_pytest.outcomes._Fail), which are never loaded"),
        ([*MLP, "--checkpoints", "cut.pt"], "cannot read cut.pt"),
        ([*MLP, "--network", "mpl", *ALL], "did you mean 'mlp'"),
        (
            [*MLP, "--network", "resnet18", "--network-options", "{}", *ALL],
            "is missing 105 of the model's",
        ),
        ([*MLP, "--data", "digit", *ALL], "did you mean 'digits'"),
        ([*MLP, "--network-options", "width=3", *ALL], "expected --network-options to be a mapping"),
        ([*MLP, "--network-options", "[1]", *ALL], "expected --network-options to be a mapping"),
        ([*MLP, "--network-options", '{"widht": 3}', *ALL], "did you mean 'width'"),
        ([*MLP, "--feature-dim", "17", *ALL], "(17, 32), got float32 (16, 32)"),
        ([*MLP, "--feature-dim", "0", *ALL], "--feature-dim to be at least 1"),
        ([*MLP, "--layer", "head", *ALL], "no layer 'head'"),
        ([*MLP, "--layers", "featurs.1", *ALL], "did you mean 'features"),
        ([*MLP, "--frame", "fixed", *ALL], "expected frame to be one of 'learned', 'simplex'"),
        ([*MLP, "--frame", "simplex", *ALL], "fc.scale"),
        ([*MLP, "--learn-scale", *ALL], "--learn-scale is for a fixed frame"),
        ([*MLP, "--stem", "small", *ALL], "only the ResNets"),
        ([*MLP, "--normalize", "imagnet", *ALL], "expected --normalize to be data, imagenet"),
        ([*MLP, "--normalize", "imagenet", *ALL], "sees 1 channels: give 1 of each"),
        ([*MLP, "--normalize", "0.5", *ALL], "expected --normalize to be data"),
        ([*MLP, "--normalize", "127/64", *ALL], "of pixels from 0 to 1"),
        ([*MLP, "--normalize", "0.5/0", *ALL], "of pixels from 0 to 1"),
        ([*MLP, "--num-classes", "9", *ALL], "at least 10"),
        ([*MLP, "--channels", "2", *ALL], "channels to be 1 or 3"),
        ([*MLP, "--image-size", "16", *ALL], "got float32 (32, 64)"),
        ([*MLP, "--samples-per-class", "1000", *ALL], "--samples-per-class of at most"),
        ([*MLP, "--samples-per-class", "0", *ALL], "--samples-per-class to be at least 1"),
        ([*MLP, "--batch-size", "0", *ALL], "--batch-size to be at least 1"),
        ([*MLP, "--batch-size", "many", *ALL], "expected --batch-size as a whole number"),
        ([*MLP, "--prefix", "modul", *ALL], "under the prefix 'modul.'"),
        ([*MLP, "--device", "gpu", *ALL], "expected --device to be one that this machine has"),
        ([*MLP, "--out", "ckpts", *ALL], "not empty"),
        ([*MLP, "--out", "notes.txt/run", *ALL], "cannot write the run folder"),
        ([*MLP, "--checkpoint"], "expected at least one argument"),
        ([], "--help"),
    ],
)
def test_a_newcomers_mistake_is_one_line_and_leaves_nothing(place, capsys, flags, message):
    (place / "notes.txt").write_text("x")
    torch.save({"state_dict": Bomb()}, place / "bomb.pt")
    (place / "cut.pt").write_bytes((place / "ckpts" / "epoch_2.pt").read_bytes()[:500])
    before = sorted(place.rglob("*"))
    assert message.format(place=place) in refused(capsys, "measure", *flags)
    assert sorted(place.rglob("*")) == before


def test_a_damaged_checkpoint_in_the_middle_can_be_mended(place, capsys):
    whole = (place / "ckpts" / "epoch_4.pt").read_bytes()
    (place / "ckpts" / "epoch_4.pt").write_bytes(whole[:900])
    flags = ["measure", *MLP, "--checkpoints", "ckpts/*.pt"]
    assert main(flags) == 2
    out, err = capsys.readouterr()
    assert out.startswith("epoch 2")
    assert "cannot read ckpts/epoch_4.pt" in err
    assert "the 1 measured before are kept in runs/digits-mlp-checkpoints" in err
    (place / "ckpts" / "epoch_4.pt").write_bytes(whole)
    assert main(flags) == 0
    assert "epoch_2.pt (measured before)" in capsys.readouterr().out


def test_the_same_folder_with_another_question_is_refused(place, capsys):
    measured(capsys, *MLP, "--checkpoints", "ckpts/epoch_2.pt")
    flags = [*MLP, "--checkpoints", "ckpts/*.pt"]
    for change, message in [
        (["--normalize", "unit"], "normalize='data', got 'unit'"),
        (["--samples-per-class", "20"], "--samples-per-class None, got 20"),
        (["--no-pairwise"], "pairwise=True, got False"),
        (["--layers", "features.1"], r"layers=[], got ['features.1']"),
    ]:
        assert message in refused(capsys, "measure", *flags, *change)
    assert len(measured(capsys, *flags)["records"]) == 2


def test_the_run_folder_is_not_taken_for_one_of_a_training(place, capsys):
    measured(capsys, *MLP, "--checkpoints", "ckpts/epoch_2.pt", "--out", "r")
    assert "neuralcollapse report r" in refused(capsys, "measure", "r")


def test_weights_twice_in_a_file_need_a_prefix(place, capsys):
    state = load_file_of(place / "ckpts" / "epoch_2.pt")
    torch.save({"model": state, "model_ema": {name: value + 1 for name, value in state.items()}}, "both.pt")
    flags = [*MLP, "--checkpoints", "both.pt"]
    assert "choose one with prefix" in refused(capsys, "measure", *flags)
    assert len(measured(capsys, *flags, "--prefix", "model.module.")["records"]) == 1


def load_file_of(path):
    return torch.load(path, weights_only=True)["state_dict"]


def test_missing_packages_name_the_extra(place, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert "neuralcollapse[train]" in refused(capsys, "measure", *MLP, "--checkpoints", "ckpts/*.pt")


def test_help_says_that_the_pixels_must_be_those_of_the_training(capsys):
    with pytest.raises(SystemExit):
        main(["measure", "--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert "must be what the training used" in out
    assert "timm:resnet18" in out


def test_a_whole_pickle_never_runs(place, capsys):
    (place / "w.ckpt").write_bytes(pickle.dumps(Bomb()))
    assert "never loaded" in refused(capsys, "measure", *MLP, "--checkpoints", "w.ckpt")


def test_the_report_can_be_made_again(place, capsys):
    measured(capsys, *MLP, "--checkpoints", "ckpts/*.pt", "--out", "r")
    shutil.copytree("r", "moved")
    assert main(["report", "moved"]) == 0


def test_rare_classes_are_left_out_and_pairs_sampled_of_a_file(tmp_path, capsys):
    rng = np.random.default_rng(0)
    labels = np.concatenate([np.arange(120) % 30, [30, 31]])  # two classes of one sample
    features = rng.standard_normal((32, 40))[labels] + 0.1 * rng.standard_normal((122, 40))
    np.savez(tmp_path / "features.npz", features=features, labels=labels)
    assert main(["measure", str(tmp_path / "features.npz"), "--min-count", "2", "--pairs", "50", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["num_samples"] == 120
    assert found["measures"]["num_pairs"] == 50
    expected = nc.measure_features(features, labels, min_count=2, pairwise=50)
    assert found["measures"]["nc1_cdnv"] == expected["nc1_cdnv"]
    assert main(["measure", str(tmp_path / "features.npz"), "--pairs", "50"]) == 0
    shown = capsys.readouterr().out
    assert "(±" in shown
    assert "of a sample of 50 pairs of classes" in shown
    assert main(["measure", str(tmp_path / "features.npz"), "--pairs", "50", "--no-pairwise"]) == 2
    assert "--pairs or --no-pairwise, got both" in capsys.readouterr().err
    assert main(["measure", str(tmp_path / "features.npz"), "--pairs", "1"]) == 2
    assert "expected --pairs of at least 2" in capsys.readouterr().err


# A test set in a file of features


def features_file(path, count, seed, **more):
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    np.savez(path, features=generator.normal(size=(count, 4)) + 2 * np.eye(4)[labels], labels=labels, **more)
    return path


def test_a_test_set_in_a_file_of_its_own_is_measured_beside_the_features(tmp_path, capsys):
    head = {"weight": np.eye(4)[:3], "bias": np.zeros(3)}
    train, test = features_file(tmp_path / "a.npz", 60, 0, **head), features_file(tmp_path / "b.npz", 30, 1)
    found = measured(capsys, train, "--test-data", test)
    arrays, test_arrays = np.load(train), np.load(test)
    want = nc.measure_features(
        *(arrays[name] for name in ("features", "labels", "weight", "bias")),
        test_features=test_arrays["features"],
        test_labels=test_arrays["labels"],
    )["test"]
    del want["num_samples"]
    assert found["test"] == pytest.approx(want)
    assert main(["measure", str(train), "--test-data", str(test)]) == 0
    out = capsys.readouterr().out
    assert f"test accuracy {want['accuracy']:.4f}" in out
    line = next(line for line in out.splitlines() if line.startswith("  ncc_accuracy"))
    assert line.split()[1:3] == [f"{found['measures']['ncc_accuracy']:.3g}", f"{want['ncc_accuracy']:.3g}"]


def test_a_wrong_test_file_is_refused(tmp_path, capsys, short_run):
    train = features_file(tmp_path / "a.npz", 60, 0)
    np.savez(tmp_path / "c.npz", features=np.zeros((6, 3)), labels=np.arange(6) % 3)
    assert "test set: expected features of dimension 4, got 3" in refused(
        capsys, "measure", train, "--test-data", tmp_path / "c.npz"
    )
    assert "no file or run folder" in refused(capsys, "measure", train, "--test-data", tmp_path / "none.npz")
    assert "--test-data is for a file of features" in refused(capsys, "measure", short_run.path, "--test-data", train)
