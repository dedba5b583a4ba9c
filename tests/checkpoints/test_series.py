import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import neuralcollapse as nc
from neuralcollapse.checkpoints import series as module
from neuralcollapse.checkpoints.order import find_checkpoints, training_order
from neuralcollapse.report.single import write_page
from neuralcollapse.runs.folder import RunFolder
from tests.helpers import SmallNet, as_held_out, small_loader


def network(seed=0, classes=3):
    return SmallNet(classes, seed=seed)


@pytest.fixture(scope="module")
def loader():
    return small_loader(60, batch_size=20)


@pytest.fixture
def read(monkeypatch):
    """The names of the files that were loaded."""
    names = []

    def read_weights(path):
        names.append(Path(path).name)
        return original(path)

    original = module.read_weights
    monkeypatch.setattr(module, "read_weights", read_weights)
    return names


def save(folder, *names, seed=None):
    """Networks of the seeds in their names (the last number)."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        number = int("".join(x if x.isdigit() else " " for x in name).split()[-1]) if seed is None else seed
        state = network(number).state_dict()
        if path.suffix == ".safetensors":
            save_file(state, path)
        else:
            torch.save({"state_dict": {"model." + key: value for key, value in state.items()}}, path)


def expected(seed, loader):
    return nc.measure(network(seed), loader)["nc1"]


def nc1(records):
    return [record.measures["nc1"] for record in records]


def unit(out):
    return json.loads((out / "config.yaml").read_text())["unit"]


# The order of training


@pytest.mark.parametrize(
    ("names", "unit", "numbers"),
    [
        (["epoch-10.pt", "epoch-2.pt"], "epoch", [2, 10]),
        (["epoch=3-step=1200.ckpt", "epoch=10-step=4000.ckpt"], "epoch", [3, 10]),
        (["epoch=0-step=1200.ckpt", "epoch=0-step=400.ckpt"], "step", [400, 1200]),
        (["epoch=3-val_loss=0.25.ckpt", "epoch=4-val_loss=0.17.ckpt"], "epoch", [3, 4]),
        (["out/checkpoint-1500/model.safetensors", "out/checkpoint-500/model.safetensors"], "step", [500, 1500]),
        (["global_step1000/w.pt", "global_step200/w.pt"], "step", [200, 1000]),
        (["iter_0000100.pth", "iter_0000020.pth"], "step", [20, 100]),
        (["resnet18_ep_3.pt", "resnet18_ep_12.pt"], "epoch", [3, 12]),
        (["Epoch007.pth", "Epoch012.pth"], "epoch", [7, 12]),
        (["net_10epochs.pt", "net_2epochs.pt"], "epoch", [2, 10]),
        (["ckpt_5.pt", "ckpt_40.pt"], "step", [5, 40]),
        (["model_10.pt", "model_9.pt"], "checkpoint", [9, 10]),
        (["run1/epoch_3/step_5.pt", "run1/epoch_2/step_9.pt"], "epoch", [2, 3]),
        (["epoch-00050.safetensors"], "epoch", [50]),
        (["resnet18.pt"], "checkpoint", [1]),
    ],
)
def test_the_number_that_counts_is_read_from_the_names(names, unit, numbers):
    order = training_order(names)
    assert order.unit == unit
    assert [number for number, _ in order.checkpoints] == numbers
    assert sorted(str(path) for _, path in order.checkpoints) == sorted(names)


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (["last.ckpt", "epoch=10.ckpt", "epoch=9.ckpt"], ["epoch=9.ckpt", "epoch=10.ckpt", "last.ckpt"]),
        (["a1b2.pt", "a1b10.pt", "a2b1.pt"], ["a1b2.pt", "a1b10.pt", "a2b1.pt"]),
        (["epoch-1.pt", "epoch-01.pt"], ["epoch-01.pt", "epoch-1.pt"]),
        (["epoch-1.safetensors", "epoch-2.pt"], ["epoch-1.safetensors", "epoch-2.pt"]),
    ],
)
def test_names_that_do_not_say_are_counted_in_natural_order(names, order):
    found = training_order(names)
    assert (found.unit, found.counted) == ("checkpoint", True)
    assert found.checkpoints == [(number, Path(name)) for number, name in enumerate(order, start=1)]


def test_the_same_checkpoint_twice_is_refused():
    with pytest.raises(nc.InputError, match="given twice"):
        training_order(["a/b/epoch-1.pt", "a/b/epoch-1.pt"])
    with pytest.raises(nc.InputError, match="given twice"):
        training_order(["epoch-1.pt", Path.cwd() / "epoch-1.pt"])
    with pytest.raises(nc.InputError, match="names of their own"):
        training_order(["x/a/b/epoch-1.pt", "y/a/b/epoch-1.pt"])


def test_patterns_paths_and_folders_are_found(tmp_path, monkeypatch):
    save(tmp_path, "c/checkpoint-1/model.safetensors", "c/checkpoint-2/pytorch_model.bin", "c/[3].pt")
    monkeypatch.chdir(tmp_path)
    assert [path.name for path in find_checkpoints("c/checkpoint-*")] == ["model.safetensors", "pytorch_model.bin"]
    assert find_checkpoints("c/[3].pt") == [Path("c/[3].pt")]
    assert find_checkpoints([tmp_path / "c" / "[3].pt"]) == [tmp_path / "c" / "[3].pt"]
    assert len(find_checkpoints("**/*.safetensors")) == 1
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(find_checkpoints("~/c/*.pt")) == 1
    for wrong, message in {
        "d/*.pt": f"no checkpoint 'd/\\*.pt' in {tmp_path}",
        "c": "the folder c without model.safetensors",
    }.items():
        with pytest.raises(nc.InputError, match=message):
            find_checkpoints(wrong)
    with pytest.raises(nc.InputError, match="empty list"):
        find_checkpoints([])
    (tmp_path / "c" / "log.txt").touch()
    with pytest.raises(nc.InputError, match=r"expected weights in .*c/log.txt: leave it out"):
        find_checkpoints("c/*.*")


# Measuring


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_each_checkpoint_is_measured_as_measure_would(tmp_path, loader, suffix):
    save(tmp_path, f"epoch-10.{suffix}", f"epoch-2.{suffix}")
    model = network(99)
    seen = []
    records = nc.measure_checkpoints(model, f"{tmp_path}/*.{suffix}", loader, on_checkpoint=seen.append)
    assert [record.epoch for record in records] == [2, 10]
    assert nc1(records) == pytest.approx([expected(2, loader), expected(10, loader)])
    assert [(one.path.name, one.unit, one.fresh) for one in seen] == [
        (f"epoch-{number}.{suffix}", "epoch", True) for number in (2, 10)
    ]
    own = network(99).state_dict()
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())


def test_a_compiled_model_and_inner_layers(tmp_path, loader):
    save(tmp_path, "epoch-1.pt")
    (record,) = nc.measure_checkpoints(torch.compile(network()), tmp_path / "epoch-1.pt", loader, layers=["body.0"])
    assert nc1([record]) == pytest.approx([expected(1, loader)])
    assert set(record.layers) == {"body.0"}


def test_the_run_folder_is_one_that_a_page_is_made_from(tmp_path, loader):
    save(tmp_path, "c/step-100.pt", "c/step-200000.pt")
    out = tmp_path / "run"
    records = nc.measure_checkpoints(
        network(), f"{tmp_path}/c/*.pt", loader, test_loader=loader, out=out, config={"data": "mine"}
    )
    assert nc1(RunFolder.open(out).records()) == nc1(records)
    assert unit(out) == "step"
    assert records[0].test.keys() == as_held_out(records[0]).keys()
    assert "after 200,000 steps" in write_page(RunFolder.open(out)).read_text()


def test_a_second_call_measures_only_what_is_new_and_puts_it_in_its_place(tmp_path, loader, read):
    save(tmp_path, "c/epoch-1.pt", "c/epoch-5.pt")
    out = tmp_path / "run"
    pattern = f"{tmp_path}/c/*.pt"
    nc.measure_checkpoints(network(), pattern, loader, out=out)
    first = (out / "records.jsonl").read_text().splitlines()
    save(tmp_path, "c/epoch-3.pt", "c/epoch-10.pt")
    seen = []
    records = nc.measure_checkpoints(network(), pattern, loader, out=out, on_checkpoint=seen.append)
    assert read == ["epoch-1.pt", "epoch-5.pt", "epoch-3.pt", "epoch-10.pt"]
    assert [one.fresh for one in seen] == [False, True, False, True]
    assert [record.epoch for record in records] == [1, 3, 5, 10]
    assert nc1(records) == pytest.approx([expected(number, loader) for number in (1, 3, 5, 10)])
    lines = (out / "records.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 3, 5, 10]
    assert [lines[0], lines[2]] == first
    assert [geometry.epoch for geometry in RunFolder.open(out).geometries()] == [1, 3, 5, 10]
    assert RunFolder.open(out).classes().epoch == 10
    nc.measure_checkpoints(network(), pattern, loader, out=out)
    assert len(read) == 4
    assert (out / "records.jsonl").read_text().splitlines() == lines


def test_a_changed_file_is_measured_anew_and_a_missing_one_keeps_its_record(tmp_path, loader, read):
    save(tmp_path, "c/epoch-1.pt", "c/epoch-2.pt", "c/epoch-3.pt")
    out = tmp_path / "run"
    nc.measure_checkpoints(network(), f"{tmp_path}/c/*.pt", loader, out=out)
    (tmp_path / "c" / "epoch-1.pt").unlink()
    save(tmp_path, "c/epoch-3.pt", seed=7)
    os.utime(tmp_path / "c" / "epoch-3.pt", (1, 1))
    del read[:]
    records = nc.measure_checkpoints(network(), f"{tmp_path}/c/*.pt", loader, out=out)
    assert read == ["epoch-3.pt"]
    assert [record.epoch for record in records] == [1, 2, 3]
    assert nc1(records) == pytest.approx([expected(seed, loader) for seed in (1, 2, 7)])


def test_records_get_new_numbers_where_new_names_call_for_them(tmp_path, loader, read):
    """One file alone is counted; two say by what they differ; within one epoch the steps count."""
    out = tmp_path / "run"

    def measured():
        records = nc.measure_checkpoints(network(), f"{tmp_path}/c/*.ckpt", loader, out=out)
        geometries = {one.epoch: one.weight for one in RunFolder.open(out).geometries()}
        assert list(geometries) == [record.epoch for record in records]
        return {record.epoch: round(record.measures["nc1"], 9) for record in records}, geometries

    def values(*seeds):
        return [round(expected(seed, loader), 9) for seed in seeds]

    save(tmp_path, "c/epoch=0-step=200.ckpt")
    assert measured()[0] == dict(zip([0], values(200), strict=True))
    assert unit(out) == "epoch"
    save(tmp_path, "c/epoch=0-step=100.ckpt")
    found, weights = measured()
    assert found == dict(zip([100, 200], values(100, 200), strict=True))
    assert unit(out) == "step"
    torch.testing.assert_close(torch.from_numpy(weights[200]), network(200).fc.weight.detach())
    save(tmp_path, "c/another-1.ckpt")
    with pytest.warns(nc.NeuralCollapseWarning, match=r"do not say .*counted from 1 to 3"):
        found, weights = measured()
    assert found == dict(zip([1, 2, 3], values(1, 100, 200), strict=True))
    assert unit(out) == "checkpoint"
    torch.testing.assert_close(torch.from_numpy(weights[2]), network(100).fc.weight.detach())
    assert len(read) == 3


@pytest.mark.parametrize("damage", ["cut", "other", "nan"])
def test_a_damaged_checkpoint_stops_and_what_was_measured_stays(tmp_path, loader, read, damage):
    save(tmp_path, "c/epoch-1.pt", "c/epoch-2.pt", "c/epoch-3.pt")
    bad = tmp_path / "c" / "epoch-2.pt"
    if damage == "cut":
        bad.write_bytes(bad.read_bytes()[:100])
    elif damage == "other":
        torch.save(network(2, classes=4).state_dict(), bad)
    else:
        torch.save({name: value * float("nan") for name, value in network(2).state_dict().items()}, bad)
    model, out = network(99), tmp_path / "run"
    with pytest.raises(nc.InputError) as error:
        nc.measure_checkpoints(model, f"{tmp_path}/c/*.pt", loader, out=out)
    message = str(error.value)
    assert str(bad) in message
    assert f"the 1 measured before are kept in {out}" in message
    assert "\n" not in message
    assert torch.equal(model.fc.weight, network(99).fc.weight)
    assert len(RunFolder.open(out).records()) == 1
    save(tmp_path, "c/epoch-2.pt")
    records = nc.measure_checkpoints(model, f"{tmp_path}/c/*.pt", loader, out=out)
    assert nc1(records) == pytest.approx([expected(seed, loader) for seed in (1, 2, 3)])
    assert read == ["epoch-1.pt", "epoch-2.pt", "epoch-2.pt", "epoch-3.pt"]


def test_a_damaged_first_checkpoint_leaves_no_folder(tmp_path, loader):
    (tmp_path / "epoch-1.pt").write_bytes(b"x")
    with pytest.raises(nc.InputError, match="damaged") as error:
        nc.measure_checkpoints(network(), tmp_path / "epoch-1.pt", loader, out=tmp_path / "run")
    assert "kept" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_kill_between_two_checkpoints_loses_nothing(tmp_path, loader, read):
    save(tmp_path, "c/epoch-1.pt", "c/epoch-2.pt", "c/epoch-3.pt")
    script = f"""
        import os, signal, torch
        from collections import OrderedDict
        from torch import nn
        from neuralcollapse.checkpoints.series import measure_checkpoints

        def die(checkpoint):
            if checkpoint.record.epoch == 2:
                os.kill(os.getpid(), signal.SIGKILL)

        body = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU())
        net = nn.Sequential(OrderedDict(body=body, fc=nn.Linear(6, 3)))
        torch.manual_seed(0)
        images = torch.randn(60, 4)
        loader = [(images, torch.arange(60) % 3)]
        same = {{"data": "mine", "network": "net"}}
        measure_checkpoints(net, {str(tmp_path / "c/*.pt")!r}, loader, out={str(tmp_path / "run")!r}, config=same,
                            on_checkpoint=die)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    same = {"data": "mine", "network": "net"}
    records = nc.measure_checkpoints(network(), f"{tmp_path}/c/*.pt", loader, out=tmp_path / "run", config=same)
    assert read == ["epoch-3.pt"]
    assert nc1(records) == pytest.approx([expected(seed, loader) for seed in (1, 2, 3)])


@pytest.mark.parametrize("written", [0, 1])
def test_a_kill_before_the_ledger_is_written_measures_that_one_again(tmp_path, loader, read, written, monkeypatch):
    save(tmp_path, "c/epoch-1.pt", "c/epoch-2.pt")
    out = tmp_path / "run"
    write = module.append_to_ledger
    calls = []

    def kill(*arguments):
        calls.append(None)
        if len(calls) > written:
            raise KeyboardInterrupt
        return write(*arguments)

    monkeypatch.setattr(module, "append_to_ledger", kill)
    with pytest.raises(KeyboardInterrupt):
        nc.measure_checkpoints(network(), f"{tmp_path}/c/*.pt", loader, out=out)
    monkeypatch.undo()
    records = nc.measure_checkpoints(network(), f"{tmp_path}/c/*.pt", loader, out=out)
    assert nc1(records) == pytest.approx([expected(seed, loader) for seed in (1, 2)])
    assert nc1(RunFolder.open(out).records()) == nc1(records)


def test_a_checkpoint_does_not_write_those_before_it_again(tmp_path, loader, monkeypatch):
    save(tmp_path, "c/epoch-1.pt", "c/epoch-2.pt", "c/epoch-3.pt")
    write, written = module.write_ledger, []
    monkeypatch.setattr(module, "write_ledger", lambda file, done: (written.append(len(done)), write(file, done)))
    nc.measure_checkpoints(network(), f"{tmp_path}/c/*.pt", loader, out=tmp_path / "run")
    assert written == [1]
    assert len(json.loads((tmp_path / "run/checkpoints.json").read_text())) == 3


def test_another_question_in_the_same_folder_is_refused_and_force_begins_anew(tmp_path, loader, read):
    save(tmp_path, "c/epoch-1.pt", "c/epoch-2.pt")
    out, pattern = tmp_path / "run", f"{tmp_path}/c/*.pt"
    nc.measure_checkpoints(network(), pattern, loader, out=out, config={"data": "mine"})
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for change, message in [
        ({"config": {"data": "yours"}}, "data='mine', got 'yours'"),
        ({"classifier": "body.0"}, "layer='fc', got 'body.0'"),
        ({"layers": ["body.0"]}, r"layers=None, got \['body.0'\]"),
        ({"prefix": "model."}, "prefix=None, got 'model.'"),
        ({"ignore_index": 2}, "ignore_index=None, got 2"),
        ({"decays": 0.01}, "decays=None, got 0.01"),
        ({"loss_name": "mse"}, "loss_name=None, got 'mse'"),
    ]:
        with pytest.raises(nc.InputError, match=message) as error:
            nc.measure_checkpoints(network(), pattern, loader, **({"out": out, "config": {"data": "mine"}} | change))
        assert "--force" in str(error.value)
    with pytest.raises(nc.InputError, match="network='SmallNet', got 'Sequential'"):
        nc.measure_checkpoints(
            nn.Sequential(nn.Linear(4, 3)), pattern, loader, "0", out=out, config={"data": "mine", "layer": "fc"}
        )
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    (tmp_path / "c" / "epoch-1.pt").unlink()
    del read[:]
    records = nc.measure_checkpoints(network(), pattern, loader, out=out, force=True, nc4=False)
    assert read == ["epoch-2.pt"]
    assert [record.epoch for record in records] == [2]
    assert len(RunFolder.open(out).records()) == 1
    assert [record.epoch for record in nc.measure_checkpoints(network(), pattern, loader, out=out, nc4=False)] == [2]


def test_another_trainings_checkpoints_do_not_join(tmp_path, loader):
    save(tmp_path, "a/epoch-1.pt", "a/epoch-2.pt", "b/epoch-1.pt", "b/epoch-2.pt")
    out = tmp_path / "run"
    nc.measure_checkpoints(network(), f"{tmp_path}/a/*.pt", loader, out=out)
    with pytest.raises(nc.InputError, match=r"holds .*a/epoch-1.pt and others.*--force"):
        nc.measure_checkpoints(network(), f"{tmp_path}/b/*.pt", loader, out=out)


def test_a_folder_that_is_no_such_run_is_refused_before_anything_is_read(tmp_path, loader, read, short_run):
    save(tmp_path, "epoch-1.pt")
    shutil.copytree(short_run.path, tmp_path / "run")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo.txt").touch()
    for out, force in [("run", False), ("notes", False), ("notes", True)]:
        with pytest.raises(nc.InputError, match="not empty"):
            nc.measure_checkpoints(network(), tmp_path / "epoch-1.pt", loader, out=tmp_path / out, force=force)
    assert read == []


def test_a_damaged_ledger_is_one_line(tmp_path, loader):
    save(tmp_path, "epoch-1.pt")
    out = tmp_path / "run"
    nc.measure_checkpoints(network(), tmp_path / "epoch-1.pt", loader, out=out)
    for text in ("{", "[1]", '{"a": [1]}', '{"a": [1, 2, {}]}'):
        (out / "checkpoints.json").write_text(text)
        with pytest.raises(nc.InputError, match=r"checkpoints.json is damaged"):
            nc.measure_checkpoints(network(), tmp_path / "epoch-1.pt", loader, out=out)


def test_a_wrong_classifier_is_named_before_anything_is_read(tmp_path, loader, read):
    save(tmp_path, "epoch-1.pt")
    with pytest.raises(nc.InputError, match="no layer 'head'"):
        nc.measure_checkpoints(network(), tmp_path / "epoch-1.pt", loader, "head")
    assert read == []


def test_two_sets_of_weights_in_a_file_need_a_prefix(tmp_path, loader):
    both = {"model": network(1).state_dict(), "ema": network(2).state_dict()}
    torch.save(both, tmp_path / "epoch-1.pt")
    with pytest.raises(nc.InputError, match=r"'model\.', 'ema\.'"):
        nc.measure_checkpoints(network(), tmp_path / "epoch-1.pt", loader)
    records = nc.measure_checkpoints(network(), tmp_path / "epoch-1.pt", loader, prefix="ema.")
    assert nc1(records) == pytest.approx([expected(2, loader)])
