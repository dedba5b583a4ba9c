import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

import neuralcollapse as nc
from neuralcollapse.cli import main, printing
from neuralcollapse.runs.renamed import RENAMED, RENAMED_VALUES
from neuralcollapse.training.config import TrainConfig
from neuralcollapse.training.resume import Interrupted
from neuralcollapse.ufm.expected import Decays, expected_at_minimum
from tests.helpers import refused

SHORT_FLAGS = ["--epochs", "2", "--width", "16", "--depth", "1", "--feature-dim", "9"]


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = np.arange(30) % 3
    return {
        "features": (rng.standard_normal((3, 4))[labels] + 0.1 * rng.standard_normal((30, 4))).astype(np.float32),
        "labels": labels.astype(np.uint8),
        "weight": rng.standard_normal((3, 4)).astype(np.float32),
        "bias": rng.standard_normal(3).astype(np.float32),
    }


def test_help_names_the_commands_and_gives_examples():
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "neuralcollapse", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    for command in ("train", "measure", "report", "examples:"):
        assert command in result.stdout
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert not imported & {"torch", "lightning", "jinja2", "sklearn"}, "heavy modules load only when used"


@pytest.mark.parametrize("command", ["measure", "report"])
def test_every_command_has_help_with_an_example(capsys, command):
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    assert exit_.value.code == 0
    assert "example" in capsys.readouterr().out


def test_no_command_prints_the_help(capsys):
    assert main([]) == 0
    assert "usage: neuralcollapse" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_measure_gives_what_the_library_gives(tmp_path, capsys, arrays, kind):
    path = tmp_path / f"features.{kind}"
    if kind == "npz":
        np.savez(path, **arrays)
    else:
        save_file({name: torch.from_numpy(array) for name, array in arrays.items()}, path)
    assert main(["measure", str(path), "--json"]) == 0
    expected = nc.measure_features(*(torch.from_numpy(array) for array in arrays.values()))
    found = json.loads(capsys.readouterr().out)
    assert (found["file"], found["num_samples"]) == (str(path), expected.pop("num_samples"))
    assert found["train"] == {"accuracy": expected.pop("accuracy")}
    assert found["measures"] == pytest.approx(expected)


def test_measure_prints_a_table_and_the_next_step(tmp_path, capsys, arrays):
    np.savez(tmp_path / "f.npz", features=arrays["features"], labels=arrays["labels"])
    assert main(["measure", str(tmp_path / "f.npz")]) == 0
    out = capsys.readouterr().out
    assert "nc1 " in out
    assert "equinorm_means" in out
    assert "next  add the classifier's weight" in out


def test_measure_takes_bfloat16_and_leaves_out_ignored_labels(tmp_path, capsys, arrays):
    features = torch.from_numpy(arrays["features"]).bfloat16()
    labels = torch.from_numpy(arrays["labels"]).long()
    labels[:5] = -100
    save_file({"features": features, "labels": labels}, tmp_path / "f.safetensors")
    assert main(["measure", str(tmp_path / "f.safetensors"), "--json", "--ignore-index", "-100"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["num_samples"] == 25
    assert values["measures"]["nc1"] == pytest.approx(nc.measure_features(features[5:], labels[5:])["nc1"])


def test_measure_warns_in_one_line_and_prints_undefined_values_as_null(tmp_path, capsys, arrays):
    np.savez(tmp_path / "f.npz", features=arrays["features"], labels=0 * arrays["labels"])
    assert main(["measure", str(tmp_path / "f.npz"), "--json", "--num-classes", "2"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["measures"]["nc1"] is None
    assert all(line.startswith("neuralcollapse: warning: ") for line in err.splitlines())
    assert "only class 0 has samples" in err


@pytest.mark.parametrize("missing", ["features", "labels"])
def test_a_missing_array_is_named_with_those_found(tmp_path, capsys, arrays, missing):
    np.savez(tmp_path / "f.npz", **{name: array for name, array in arrays.items() if name != missing})
    err = refused(capsys, "measure", tmp_path / "f.npz")
    assert f"no array '{missing}'" in err
    assert "bias" in err


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


@pytest.mark.parametrize("name", ["f.pt", "f.pkl", "f.npz", "f.npy", "f.safetensors"])
def test_pickled_data_is_never_loaded_and_the_way_out_is_named(tmp_path, capsys, name):
    (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    assert "numpy.savez" in refused(capsys, "measure", tmp_path / name)


def test_object_arrays_inside_a_file_are_not_unpickled(tmp_path, capsys):
    np.savez(tmp_path / "f.npz", features=np.array([Bomb()], dtype=object), labels=np.zeros(1, int))
    assert "pickled data" in refused(capsys, "measure", tmp_path / "f.npz")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.zeros((30, 1), int)}, "squeeze"),
        ({"labels": np.full(30, -1)}, "0 to 2"),
        ({"labels": np.full(30, 0.5)}, "integer labels"),
        ({"features": np.full((30, 4), np.nan, np.float32)}, "120 NaN or infinite of 120"),
        ({"features": np.zeros((0, 4), np.float32), "labels": np.zeros(0, int)}, "no samples"),
        ({"weight": np.zeros((4, 3), np.float32)}, "weight"),
        ({"bias": np.zeros(4, np.float32)}, "bias of shape"),
        ({"features": np.array(["a"] * 30)}, "features"),
    ],
)
def test_wrong_arrays_are_one_clear_line(tmp_path, capsys, arrays, change, message):
    np.savez(tmp_path / "f.npz", **(arrays | change))
    assert message in refused(capsys, "measure", tmp_path / "f.npz")


def test_a_truncated_file_and_a_missing_one_are_refused(tmp_path, capsys, arrays):
    np.savez(tmp_path / "f.npz", **arrays)
    (tmp_path / "half.npz").write_bytes((tmp_path / "f.npz").read_bytes()[:200])
    assert "cut off" in refused(capsys, "measure", tmp_path / "half.npz")
    assert "no file or run folder" in refused(capsys, "measure", tmp_path / "none.npz")


def test_train_writes_a_run_and_its_page_and_says_where(tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["train", "--out", str(out), *SHORT_FLAGS, "--frame=simplex"]) == 0
    text = capsys.readouterr().out
    assert "nc1 " in text
    assert f"page  {out / 'report.html'}" in text
    assert 50_000 < (out / "report.html").stat().st_size < 2_000_000
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert (config["feature_dim"], config["frame"], config["epochs"]) == (9, "simplex", 2)
    assert {path.name for path in (out / "logs").iterdir()} == {"csv", "tensorboard"}
    assert refused(capsys, "train", "--out", out, *SHORT_FLAGS).count("--force") == 1
    before = (out / "records.jsonl").read_text()
    assert main(["train", "--config", str(out / "config.yaml"), "--out", str(out), "--force", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["epoch"] == 2
    assert len((out / "records.jsonl").read_text().splitlines()) == len(before.splitlines())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--epoch", "3"], "no option '--epoch' (did you mean '--epochs'?)"),
        (["--epochs", "three"], "epochs"),
        (["--epochs", "0"], "epochs to be at least 1"),
        (["--frame", "fixed"], "frame"),
        (["--network", "mpl"], "did you mean 'mlp'"),
        (["--data", "digit"], "did you mean 'digits'"),
        (["--frame", "simplex", "--feature-dim", "8"], "d >= K-1 = 9"),
        (["--config", "missing.yaml"], "missing.yaml"),
        (["stray"], "stray"),
        (["--resum", "runs/x"], "resum"),
        (["--milestones", "3,x", "--schedule", "multistep"], "milestones"),
        (["--milestones", "3,5"], "milestones are for --schedule multistep"),
        (["--loggers", "cvs"], "loggers"),
        (["--optimizer", "adm"], "optimizer"),
        (["--layers", "featurs.1"], "did you mean 'features"),
        (["--milestones"], "milestones"),
    ],
)
def test_wrong_options_of_train_are_one_line_and_leave_nothing(tmp_path, capsys, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, "train", *flags)
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_run_folder_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert "cannot write the run folder" in refused(capsys, "train", *SHORT_FLAGS, "--out", tmp_path / "file" / "run")


# Options of train


def printed_config(capsys, *flags: str) -> dict[str, object]:
    with pytest.raises(SystemExit) as exit_:
        main(["train", "--print-config", *flags])
    assert exit_.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


@pytest.fixture
def configured(monkeypatch):
    """The configurations that `train` would have run."""
    got = []

    def stop(config, out, **_):
        got.append(config)
        raise nc.InputError("not run")

    monkeypatch.setattr("neuralcollapse.training.run.train", stop)
    return got


@pytest.mark.parametrize(
    "flags",
    [
        ["--schedule", "multistep", "--milestones", "3,5"],
        ["--schedule", "multistep", "--milestones=3,5"],
        ["--schedule", "multistep", "--milestones=[3,5]"],
        ["--schedule", "multistep", "--milestones", "[3, 5]"],
    ],
)
def test_lists_are_written_with_commas_or_brackets(flags, configured):
    main(["train", *flags])
    assert [config.milestones for config in configured] == [(3, 5)]


@pytest.mark.parametrize(
    ("flags", "name", "value"),
    [
        (["--milestones", "7", "--schedule", "multistep"], "milestones", (7,)),
        (["--layers", "features.0,features.3"], "layers", ("features.0", "features.3")),
        (["--layers", "features"], "layers", ("features",)),
        (["--measure-at", "1,10"], "measure_at", (1, 10)),
        (["--loggers", "csv"], "loggers", ("csv",)),
        (["--loggers=[]"], "loggers", ()),
        (["--loggers="], "loggers", ()),
        (["--network_options", '{"drop": 0.1}'], "network_options", {"drop": 0.1}),
        (["--certify_head", "true"], "certify_head", True),
        (["--learning-rate", "1e-3"], "learning_rate", 1e-3),
        (["--image_size", "16"], "image_size", 16),
        (["--data", "mnist:some/folder"], "data", "mnist:some/folder"),
    ],
)
def test_an_option_of_any_kind_reaches_the_config(flags, name, value, configured):
    main(["train", *flags])
    assert [getattr(config, name) for config in configured] == [value]


def test_the_printed_config_reads_back(tmp_path, capsys, configured):
    flags = ["--schedule=multistep", "--milestones", "3,5", "--feature-dim", "12", "--loggers", "csv"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(printed_config(capsys, *flags)))
    main(["train", *flags])
    main(["train", "--config", str(tmp_path / "config.yaml")])
    one, other = configured
    assert one == other
    assert other.milestones == (3, 5)


def test_the_printed_config_keeps_the_run_folder_and_not_what_is_for_the_command_line(tmp_path, capsys, monkeypatch):
    printed = printed_config(capsys, "--out", str(tmp_path / "run"), "--force", "--json")
    assert printed["out"] == str(tmp_path / "run")
    assert list(printed)[1:] == [item.name for item in fields(TrainConfig)]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(printed))
    asked = []

    def stop(config, out, *, force, given, resume):
        asked.append((out, force))
        raise nc.InputError("not run")

    monkeypatch.setattr("neuralcollapse.training.run.train", stop)
    main(["train", "--config", str(tmp_path / "config.yaml")])
    assert asked == [(tmp_path / "run", False)]


def test_a_file_cannot_allow_what_only_the_command_line_may(tmp_path, capsys):
    """Version 0.1.0 wrote these names, switched off, into the files that it printed: those are read."""
    file = tmp_path / "config.yaml"
    file.write_text("trust_code: false\nforce: false\njson: false\nresume: null\nout: null\nweight_decay: 5e-4\n")
    assert printed_config(capsys, "--config", str(file))["weight_decay"] == 5e-4
    for name, value in {"trust_code": "true", "force": "true", "resume": "runs/x"}.items():
        file.write_text(f"{name}: {value}\n")
        message = refused(capsys, "train", "--config", file)
        assert f"config.yaml: {name} is for the command line" in message


def test_a_wrong_value_in_a_file_names_the_file(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("epochs: ten\n")
    assert "config.yaml: expected epochs to be of type int, got 'ten'" in refused(
        capsys, "train", "--config", tmp_path / "config.yaml"
    )


def test_of_files_and_flags_the_last_value_counts(tmp_path, capsys):
    one, other = tmp_path / "one.yaml", tmp_path / "other.yaml"
    one.write_text("epochs: 7\nwidth: 20\nnetwork_options: {a: 1}\n")
    other.write_text("epochs: 9\n")
    for flags, epochs, width in [
        (["--config", one, other], 9, 20),
        (["--config", one, "--config", other, "--width=null"], 9, None),
        (["--epochs", "3", "--config", one], 7, 20),
        (["--config", one, "--epochs", "3", "--epochs=4"], 4, 20),
    ]:
        found = printed_config(capsys, *map(str, flags))
        assert (found["epochs"], found["width"]) == (epochs, width)
    flags = ["--network_options.hidden_size", "64", "--network-options.b=[1]", "--network_options.c", "x_y"]
    found = printed_config(capsys, "--config", str(one), *flags)
    assert found["network_options"] == {"a": 1, "hidden_size": 64, "b": [1], "c": "x_y"}


def test_code_may_be_named_on_the_command_line_but_not_in_the_file_of_a_run_folder(
    short_run, tmp_path, configured, capsys
):
    file = tmp_path / "config.yaml"
    shutil.copyfile(short_run.path / "environment.json", tmp_path / "environment.json")
    file.write_text("network: my_net:build\nepochs: 3\n")
    assert "asks to import my_net and call build" in refused(capsys, "train", "--config", file)
    assert "asks to import" in refused(capsys, "train", "--network", "my_net:build", "--config", file)
    assert not configured
    for flags in (["--network", "my_net:build"], ["--network=mlp"], ["--trust-code"]):
        main(["train", "--config", str(file), *flags])
    assert [config.network for config in configured] == ["my_net:build", "mlp", "my_net:build"]
    capsys.readouterr()
    file.write_text("network: timm:resnet18\nnetwork_options: {checkpoint_path: evil.pth}\n")
    for flags in (["--network", "timm:resnet34"], ["--network-options.drop", "0.1"]):
        assert "asks to give timm the option" in refused(capsys, "train", "--config", file, *flags)


# Names of version 0.1.0


VALUES = {"classifier": "etf", "model": "mlp", "head": "etf", "say": "so"}
FLAGS = [(command, old, new) for command in ("train", "measure") for old, new in RENAMED[command].items()]


@pytest.mark.parametrize(("command", "old", "new"), FLAGS)
@pytest.mark.parametrize("form", ["--{name}={value}", "--{name} {value}"])
def test_an_old_flag_works_with_a_note_that_gives_the_new_one(command, old, new, form, capsys, monkeypatch):
    seen = []
    module = sys.modules[f"neuralcollapse.cli.{command}"]
    monkeypatch.setattr(module, "run", lambda options: seen.append(options) or 0)
    value = VALUES[old]
    now = RENAMED_VALUES.get(new, {}).get(value, value)
    assert main([command, *form.format(name=old, value=value).split()]) == 0
    assert main([command, *form.format(name=new, value=now).split()]) == 0
    assert vars(seen[0]) == vars(seen[1])
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert re.match(
        rf"neuralcollapse: note: --{old}( {value})? is now called --{new}( {now})?; the old name works", err
    )


@pytest.mark.parametrize(("old", "new"), RENAMED["train"].items())
def test_an_old_name_in_a_file_works_with_a_note_that_gives_the_new_one(old, new, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text(f"{old}: {VALUES[old]}\n")
    with pytest.raises(SystemExit):
        main(["train", "--config", str(tmp_path / "config.yaml"), "--print-config"])
    out, err = capsys.readouterr()
    assert yaml.safe_load(out)[new] == RENAMED_VALUES[new][VALUES[old]]
    assert (
        err == f"neuralcollapse: note: {old}=etf is now called {new}=simplex; the old name works in this version only\n"
    )
    (tmp_path / "config.yaml").write_text(f"{old}: learned\n{new}: simplex\n")
    assert f"{old} is now called {new}, got both" in refused(capsys, "train", "--config", tmp_path / "config.yaml")


def test_flags_come_before_the_config_file_and_that_before_the_defaults(tmp_path, configured):
    (tmp_path / "config.yaml").write_text("epochs: 7\nwidth: 20\n")
    main(["train", "--config", str(tmp_path / "config.yaml"), "--width", "30"])
    (config,) = configured
    assert (config.epochs, config.width, config.depth) == (7, 30, None)


@pytest.mark.parametrize(
    ("data", "network", "folder"),
    [
        ("digits", "mlp", "runs/digits-mlp-learned"),
        ("mnist:/data/my mnist/", "timm:vit_tiny", "runs/my-mnist-timm-vit_tiny-learned"),
        ("uoft-cs/cifar10", "my.module:build", "runs/cifar10-my.module-build-learned"),
    ],
)
def test_the_run_folder_is_named_after_data_network_and_classifier(data, network, folder, monkeypatch):
    asked = []

    def stop(config, out, **_):
        asked.append(str(out))
        raise nc.InputError("not run")

    monkeypatch.setattr("neuralcollapse.training.run.train", stop)
    main(["train", "--data", data, "--network", network])
    assert asked == [folder]


def test_resume_takes_up_only_what_is_given(monkeypatch, tmp_path):
    asked = []

    def stop(path, changes, **_):
        asked.append((str(path), changes))
        raise nc.InputError("not run")

    monkeypatch.setattr("neuralcollapse.training.run.resume", stop)
    main(["train", "--resume", str(tmp_path)])
    main(["train", "--resume", str(tmp_path), "--epochs", "300", "--layers", "features"])
    assert asked[0] == (str(tmp_path), {})
    path, changes = asked[1]
    assert path == str(tmp_path)
    assert {name: list(value) if name == "layers" else value for name, value in changes.items()} == {
        "epochs": 300,
        "layers": ["features"],
    }


def test_resume_refuses_what_made_the_weights_in_one_line(short_run, capsys):
    before = (short_run.path / "records.jsonl").read_text()
    assert "width was 32 and cannot become 33" in refused(capsys, "train", "--resume", short_run.path, "--width", "33")
    assert "--epochs 3" in refused(capsys, "train", "--resume", short_run.path, "--epochs", "3")
    assert "no run folder" in refused(capsys, "train", "--resume", short_run.path / "none")
    assert (short_run.path / "records.jsonl").read_text() == before


def test_inner_layers_and_the_source_are_printed(tmp_path, capsys):
    flags = [*SHORT_FLAGS, "--loggers=[]"]
    assert main(["train", "--out", str(tmp_path / "a"), *flags, "--layers", "features.1"]) == 0
    assert "features.1" in capsys.readouterr().out
    assert main(["train", "--out", str(tmp_path / "b"), *flags, "--measure", "online"]) == 0
    assert "from the training steps of the last epoch" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["train", "measure", "landscape", "reproduce", "report"])
def test_no_flag_in_the_help_of_a_command_has_an_underscore(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    out = capsys.readouterr().out
    assert "--json" in out
    assert not re.findall(r"--[\w-]*_[\w-]*", out)


def test_the_help_of_train_names_every_option_and_its_default(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    out = " ".join(capsys.readouterr().out.split())
    for item in fields(TrainConfig):
        assert f"--{item.name.replace('_', '-')} " in out
    defaults = [field.default for field in fields(TrainConfig)]
    assert out.count("(default: ") == len(defaults) - defaults.count(None) + 1  # and --out
    assert "(default: 0.0)" in out
    assert "(default: csv,tensorboard)" in out


def test_the_help_of_train_loads_nothing_heavy():
    command = [sys.executable, "-X", "importtime", "-m", "neuralcollapse", "train", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert not imported & {"torch", "lightning", "jinja2", "sklearn", "scipy"}


def test_train_help_is_made_from_the_config(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    out = capsys.readouterr().out
    assert "--weight-decay" in out
    assert "dimension d of the features" in out


def test_a_run_folder_is_measured_checkpoint_by_checkpoint(short_run, capsys):
    assert main(["measure", str(short_run.path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    files = [str(file) for _, file in short_run.checkpoints()]
    assert (found["run"], found["unit"]) == (str(short_run.path), "epoch")
    assert [(record["epoch"], record["checkpoint"]) for record in found["records"]] == list(
        zip([2, 4], files, strict=True)
    )
    assert main(["measure", str(short_run.path)]) == 0
    out = capsys.readouterr().out
    assert [line.split()[:2] for line in out.splitlines()[:2]] == [["epoch", "2"], ["epoch", "4"]]
    assert "collapse after 4 epochs, training set, 1,437 samples" in out


def test_report_writes_the_page_where_asked(short_run, tmp_path, capsys):
    assert main(["report", str(short_run.path), "--out", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    assert "page.html" in capsys.readouterr().out
    assert "no run folder" in refused(capsys, "report", tmp_path / "none")


def test_report_keeps_the_script_of_many_pages_in_one_file(short_run, tmp_path, capsys):
    for name in ("a", "b"):
        assert main(["report", str(short_run.path), "--out", str(tmp_path / f"{name}.html"), "--shared-assets"]) == 0
    (script,) = tmp_path.glob("*.js")
    assert script.name in (tmp_path / "b.html").read_text()
    figures = ["--format", "svg", "--out", tmp_path / "figures"]
    assert "--shared-assets is for pages" in refused(capsys, "report", short_run.path, *figures, "--shared-assets")


def test_report_of_a_folder_without_records_is_refused(short_run, tmp_path, capsys):
    shutil.copytree(short_run.path, tmp_path / "run")
    (tmp_path / "run" / "records.jsonl").write_text("")
    assert "no records yet" in refused(capsys, "report", tmp_path / "run")
    assert "records.jsonl" in refused(capsys, "report", tmp_path)


def test_landscape_prints_the_minimum_atlas_and_ends_and_writes_a_page(tmp_path, capsys):
    page = tmp_path / "page.html"
    flags = ["landscape", "--classes", "3", "--dim", "3", "--samples", "2", "--starts", "5", "--out", str(page)]
    assert main(flags) == 0
    out = capsys.readouterr().out
    assert "global minimum" in out
    assert "2+1" in out
    assert "strict_saddle" in out
    assert page.read_text().startswith("<!doctype html>")
    assert "--force" in refused(capsys, *flags)
    assert main([*flags, "--force", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    model = nc.ufm.UnconstrainedFeatureModel(3, 3, 2, 0.005, 0.005)
    assert values["minimum"] == pytest.approx(model.global_minimum())
    assert [entry["index"] for entry in values["atlas"]] == [entry.index for entry in model.atlas()]
    assert values["ends"][0]["starts"] == 5


@pytest.mark.slow
def test_a_landscape_in_other_formats(tmp_path, capsys):
    flags = ["landscape", "--classes", "3", "--dim", "3", "--samples", "2", "--starts", "2"]
    assert main([*flags, "--format", "markdown", "--out", str(tmp_path / "l.md"), "--json"]) == 0
    files = json.loads(capsys.readouterr().out)["files"]
    assert files[:2] == [str(tmp_path / "l.md"), str(tmp_path / "figures/energy.png")]
    assert "(figures/gaps.png)" in (tmp_path / "l.md").read_text()
    figures = [*flags, "--format", "svg", "--out", str(tmp_path / "svg")]
    assert main(figures) == 0
    assert {"energy.svg", "gaps.svg", "spectrum.svg"} == {path.name for path in (tmp_path / "svg").iterdir()}
    capsys.readouterr()
    assert "energy.svg exists" in refused(capsys, *figures)
    assert "png, svg, pdf, markdown" in refused(capsys, *flags, "--format", "jpeg")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--samples", "3,x"], "--samples"),
        (["--samples", "3,0"], "samples of class 1"),
        (["--classes", "3", "--samples", "3,4"], "3 classes, got 2"),
        (["--classes", "1"], "expected --classes to be"),
        (["--classes", "0"], "expected --classes to be"),
        (["--bias-decay", "0.1", "--no-bias"], "--no-bias"),
        (["--dim", "0"], "expected --dim to be"),
        (["--weight-decay", "0"], "expected --weight-decay to be"),
        (["--loss", "mae"], "mse"),
        (["--method", "adm"], "adam"),
        (["--starts", "0"], "--starts"),
        (["--out", "missing/page.html"], "missing"),
    ],
)
def test_wrong_options_of_landscape_are_one_line_and_leave_nothing(tmp_path, capsys, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, "landscape", *flags)
    assert list(tmp_path.iterdir()) == []


def test_the_head_of_a_file_and_of_a_run_is_certified_on_request(tmp_path, capsys, arrays, short_run):
    np.savez(tmp_path / "f.npz", **arrays)
    flags = ["measure", str(tmp_path / "f.npz"), "--certify-head"]
    assert main([*flags, "--weight-decay", "0.01", "--json"]) == 0
    tensors = [torch.from_numpy(array) for array in arrays.values()]
    expected = nc.ufm.certify_head(*tensors, weight_decay=0.01)
    assert json.loads(capsys.readouterr().out)["head"]["ratio"] == pytest.approx(expected.ratio)
    assert "--weight-decay" in refused(capsys, *flags)
    assert "--certify-head" in refused(capsys, "measure", tmp_path / "f.npz", "--weight-decay", "0.01")
    assert "leave them out" in refused(capsys, "measure", short_run.path, "--weight-decay", "0.01")
    assert main(["measure", str(short_run.path), "--certify-head"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("times the minimum of the unconstrained feature model") == 1
    assert printed.count("features >= 0, bias; decay of weight") == 1  # the last layer of the run follows a ReLU
    assert main(["measure", str(short_run.path), "--certify-head", "--json"]) == 0
    heads = [record["head"] for record in json.loads(capsys.readouterr().out)["records"]]
    assert all(head["ratio"] >= 1 and head["nonnegative"] == 1 for head in heads)


def test_the_sign_of_the_features_of_a_file_may_be_given(tmp_path, capsys, arrays):
    arrays = arrays | {"features": np.abs(arrays["features"])}
    np.savez(tmp_path / "f.npz", **arrays)
    flags = ["measure", str(tmp_path / "f.npz"), "--certify-head", "--weight-decay", "0.01", "--json"]
    found = {}
    for sign in ("auto", "real", "nonnegative"):
        assert main([*flags, "--features-sign", sign]) == 0
        found[sign] = json.loads(capsys.readouterr().out)["head"]
    assert main(flags) == 0
    assert json.loads(capsys.readouterr().out)["head"] == found["auto"] == found["nonnegative"]
    assert found["real"]["nonnegative"] == 0
    assert found["real"]["ratio"] > found["auto"]["ratio"]
    assert "add it, or leave them out" in refused(capsys, *flags[:2], "--features-sign", "real")


def test_a_file_is_compared_with_the_exact_minimum(tmp_path, capsys, arrays):
    np.savez(tmp_path / "f.npz", **arrays)
    flags = ["measure", str(tmp_path / "f.npz"), "--certify-head", "--weight-decay", "0.01"]
    assert main([*flags, "--json"]) == 0
    minimum = json.loads(capsys.readouterr().out)["minimizer"]
    counts = np.bincount(arrays["labels"]).tolist()
    feature_decay = 0.01 * (arrays["weight"] ** 2).sum() / (arrays["features"] ** 2).sum()
    decays = Decays(0.01, float(feature_decay), 0.01)
    dim = arrays["features"].shape[1]
    expected = expected_at_minimum(counts, dim, decays, nonnegative=bool((arrays["features"] >= 0).all()))
    assert {name: minimum[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert minimum["feature_decay"] == pytest.approx(feature_decay)
    assert main(flags) == 0
    lines = capsys.readouterr().out.splitlines()
    (header,) = [line for line in lines if "measured" in line]
    assert header.split() == ["measured", "minimum"]
    table = lines[lines.index(header) : [line.startswith("  minimum:") for line in lines].index(True)]
    assert len(table) > len(expected)
    assert max(map(len, table)) <= 100


@pytest.mark.parametrize("arguments", [["mesure"], ["measure"], ["measure", "a", "b"], ["report", "--what"]])
def test_a_wrong_command_line_is_one_line(capsys, arguments):
    assert "--help" in refused(capsys, *arguments)


def test_missing_packages_name_the_extra(monkeypatch, capsys, tmp_path):
    monkeypatch.delitem(sys.modules, "neuralcollapse.training.run", raising=False)
    monkeypatch.setitem(sys.modules, "lightning", None)
    assert "neuralcollapse[train]" in refused(capsys, "train", "--out", tmp_path / "run")


def test_an_interrupt_is_no_traceback(monkeypatch, capsys, tmp_path):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("neuralcollapse.training.run.train", interrupt)
    assert main(["train", "--out", str(tmp_path / "run")]) == 130
    assert capsys.readouterr().err == "neuralcollapse: interrupted\n"


@pytest.mark.parametrize("resumable", [True, False])
def test_an_interrupted_training_says_how_to_go_on(monkeypatch, capsys, tmp_path, resumable):
    def interrupt(*_, **__):
        raise Interrupted("interrupted", 2, resumable=resumable)

    monkeypatch.setattr("neuralcollapse.training.run.train", interrupt)
    assert main(["train", "--out", str(tmp_path)]) == 130
    again = (
        f"to go on: neuralcollapse train --resume {tmp_path}" if resumable else "to begin it again: the same command"
    )
    assert capsys.readouterr().err == f"neuralcollapse: interrupted; {again}\n"


@pytest.mark.slow
def test_ctrl_c_stops_a_real_run_and_resume_goes_on_to_its_end(tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "neuralcollapse", "train"]
    flags = ["--out", str(out), "--epochs", "5000", "--width", "8", "--samples_per_class", "20", "--measure_every", "2"]
    # A job in the background starts with interrupts ignored, and its children with it: undo that for this one.
    heed = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    process = subprocess.Popen([*command, *flags], stderr=subprocess.PIPE, text=True, **heed)
    records = out / "records.jsonl"
    for _ in range(600):
        if records.is_file() and len(records.read_text().splitlines()) > 2:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    try:
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert re.fullmatch(
        rf"neuralcollapse: stopped (in epoch \d+ after \d+ steps|after epoch \d+), and saved; to go on: neuralcollapse "
        rf"train --resume {re.escape(str(out))}",
        err.splitlines()[-1],
    )
    assert "Traceback" not in err
    assert main(["report", str(out)]) == 0
    kept = [json.loads(line)["epoch"] for line in records.read_text().splitlines()]
    last = kept[-1] + 3
    result = subprocess.run(
        [*command, "--resume", str(out), "--epochs", str(last), "--json"], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["epoch"] == last
    assert [json.loads(line)["epoch"] for line in records.read_text().splitlines()] == [*kept, kept[-1] + 2, last]


def test_training_that_diverges_says_so_and_leaves_nothing(tmp_path, capsys):
    flags = ["train", *SHORT_FLAGS, "--learning-rate", "1e30", "--out", str(tmp_path / "run")]
    assert main(flags) == 2
    err = capsys.readouterr().err.splitlines()
    assert "neuralcollapse: error: training diverged by epoch 1" in err[-1]
    assert list(tmp_path.iterdir()) == []


def test_options_for_files_are_refused_for_runs_and_pages_are_not_overwritten(short_run, tmp_path, capsys):
    for flag in (["--num-classes", "3"], ["--ignore_index", "3"], ["--no-pairwise"]):
        assert "for files" in refused(capsys, "measure", short_run.path, *flag)
    (tmp_path / "page.html").write_text("precious")
    assert "--force" in refused(capsys, "report", short_run.path, "--out", tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == "precious"
    assert main(["report", str(short_run.path), "--out", str(tmp_path / "page.html"), "--force"]) == 0


def test_records_that_are_not_text_and_unknown_keys_of_a_config_are_one_line(short_run, tmp_path, capsys):
    shutil.copytree(short_run.path, tmp_path / "run")
    (tmp_path / "run" / "records.jsonl").write_bytes(b"\xff\xfe")
    assert "it is not text" in refused(capsys, "report", tmp_path / "run")
    (tmp_path / "config.yaml").write_text("widht: 3\n")
    assert "did you mean 'width'" in refused(capsys, "train", "--config", tmp_path / "config.yaml")


def test_arrays_that_are_not_used_are_named(tmp_path, capsys, arrays):
    np.savez(tmp_path / "f.npz", features=arrays["features"], labels=arrays["labels"], W=arrays["weight"])
    assert main(["measure", str(tmp_path / "f.npz")]) == 0
    assert "not used: the arrays W" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--optimizer", "adm"], "expected optimizer to be one of .*got 'adm' \\(did you mean 'adam'\\?\\)"),
        (["--epochs", "ten"], "expected epochs to be of type int, got 'ten'"),
        (["--learning_rate", "fast"], "expected --learning-rate to be of type float, or left out, got 'fast'"),
        (["--measure_at", "1", "x"], "expected --measure-at to be a list, each of type int"),
        (["--network", "my_nets.py:make"], "say my_nets:make"),
    ],
)
def test_a_wrong_value_of_training_is_one_line_in_our_words(arguments, message, capsys):
    assert re.search(message, refused(capsys, "train", *arguments))


def test_lists_and_flags_are_read_as_people_write_them(monkeypatch, tmp_path):
    seen = []

    def train(config, out, *, force, given, resume):
        seen.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr("neuralcollapse.training.run.train", train)
    monkeypatch.chdir(tmp_path)
    main(["train", "--measure-at", "1", "2", "5", "--random-labels", "--layers=a.b,c", "--compile", "false"])
    assert seen[0].measure_at == (1, 2, 5)
    assert seen[0].layers == ("a.b", "c")
    assert (seen[0].random_labels, seen[0].compile) == (True, False)


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [
        (["train", "--epochs", "1", "--out", "run"], "jinja2"),
        (["landscape", "--samples", "3"], "jinja2"),
        (["landscape", "--samples", "3", "--format", "png"], "matplotlib"),
        (["reproduce", "landscape", "--scale", "smoke"], "jinja2"),
        (["measure", "--network", "mlp", "--data", "digits", "--checkpoints", "x.pt"], "jinja2"),
    ],
)
def test_packages_of_the_page_are_looked_for_before_the_work(arguments, missing, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(printing, "find_spec", lambda name: None if name == missing else object())
    assert f"No module named '{missing}'): pip install 'neuralcollapse[train]'" in refused(capsys, *arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("out", ["[a]", "3", "{a: 1}", "''"])
def test_a_folder_in_a_file_is_a_path(out, capsys, tmp_path):
    (tmp_path / "t.yaml").write_text(f"out: {out}\nepochs: 1\n")
    assert "t.yaml: expected out to be the path of a folder" in refused(
        capsys, "train", "--config", tmp_path / "t.yaml"
    )


@pytest.mark.parametrize("flag", ["--resume", "--out"])
def test_an_empty_path_is_no_path(flag, capsys):
    assert f"after {flag}, got an empty text" in refused(capsys, "train", f"{flag}=")


@pytest.mark.parametrize("entry", [".", ".name", ".=3"])
def test_an_entry_of_a_mapping_has_a_name_and_a_value(entry, capsys):
    assert "expected --network-options.NAME VALUE" in refused(capsys, "train", f"--network-options{entry}")


def test_null_hyphens_and_unicode_in_a_file(capsys, tmp_path):
    (tmp_path / "t.yaml").write_text("layers: null\nnetwork_options: null\nfeature-dim: 12\ndata: idx:dätä\n")
    with pytest.raises(SystemExit):
        main(["train", "--config", str(tmp_path / "t.yaml"), "--print-config", "--frame", "softmax-code"])
    printed = capsys.readouterr().out
    assert "data: idx:dätä" in printed
    read = yaml.safe_load(printed)
    assert (read["layers"], read["network_options"], read["feature_dim"]) == ([], {}, 12)
    assert read["frame"] == "softmax_code"


ENDING = """
import atexit, sys
import torch.distributed as dist
from neuralcollapse import cli

class Last:
    def __del__(self):
        print("Python takes itself apart")

def main():
    atexit.register(print, "what others registered")
    if sys.argv[2] == "together":
        dist.init_process_group("gloo", f"file://{sys.argv[1]}", rank=0, world_size=1)
    return 3

last = Last()
cli.main = main
cli.script()
"""


@pytest.mark.parametrize("together", [True, False])
def test_a_command_whose_processes_have_talked_ends_before_python_takes_itself_apart(tmp_path, together):
    arguments = [str(tmp_path / "meeting"), "together" if together else "alone"]
    done = subprocess.run([sys.executable, "-c", ENDING, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 3, done.stderr
    last = [] if together else ["Python takes itself apart"]
    assert done.stdout.splitlines() == ["what others registered", *last]


def test_a_command_whose_processes_have_talked_ends_so_when_nobody_reads_it_any_more(tmp_path):
    arguments = [sys.executable, "-c", ENDING, str(tmp_path / "meeting"), "together"]
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    kept_back = {**os.environ, "PYTHONUNBUFFERED": ""}  # until the end, as in a pipe
    with subprocess.Popen(arguments, env=kept_back, **piped) as process:
        process.stdout.close()
        said = process.stderr.read()
    assert process.returncode == 3, said
    assert "BrokenPipe" not in said
