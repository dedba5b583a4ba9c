import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from neuralcollapse import InputError
from neuralcollapse.runs import folder as folder_module
from neuralcollapse.runs.files import write_atomically
from neuralcollapse.runs.folder import RunFolder
from neuralcollapse.runs.records import Geometry, Record

RECORD = Record(3, 1.5, 0.1, {"loss": 0.5, "accuracy": 0.75}, {}, {"nc1": 0.25, "nc2": math.nan})


def test_a_record_survives_json_and_nan_becomes_null():
    line = RECORD.to_json()
    assert json.loads(line)["measures"]["nc2"] is None
    back = Record.from_json(line)
    assert back.epoch == 3
    assert back.train == RECORD.train
    assert back.measures["nc1"] == 0.25
    assert math.isnan(back.measures["nc2"])


def test_layers_and_the_source_survive_json():
    record = replace(RECORD, layers={"a.b": {"nc1": 0.5, "nc2": math.nan}, "c": {}}, source="online")
    line = record.to_json()
    assert json.loads(line)["layers"] == {"a.b": {"nc1": 0.5, "nc2": None}, "c": {}}
    back = Record.from_json(line)
    assert math.isnan(back.layers["a.b"].pop("nc2"))
    assert back.layers == {"a.b": {"nc1": 0.5}, "c": {}}
    assert back.source == "online"


@pytest.mark.parametrize("lacks", [["layers", "source"], ["layers", "source", "head"]])
def test_records_of_earlier_versions_still_read(lacks):
    values = json.loads(RECORD.to_json())
    back = Record.from_json(json.dumps({name: value for name, value in values.items() if name not in lacks}))
    assert back.layers == {}
    assert back.head == {}
    assert back.source == "eval"
    assert back.train == RECORD.train


def test_a_run_folder_gives_back_what_was_written(tmp_path):
    run = RunFolder.create(tmp_path / "run")
    run.append(RECORD)
    run.append(replace(RECORD, epoch=4))
    geometry = Geometry(7, np.eye(3), np.ones(3), 2 * np.eye(3), np.zeros(3))
    run.write_geometry(geometry)
    opened = RunFolder.open(tmp_path / "run")
    assert [record.epoch for record in opened.records()] == [3, 4]
    (kept,) = opened.geometries()
    assert kept.epoch == 7
    np.testing.assert_array_equal(kept.centred, np.eye(3) - 1)
    np.testing.assert_array_equal(kept.weight, 2 * np.eye(3))


TRAINING = "network: mlp\ndata: digits\ncheckpoint_every: 50\n"  # enough to tell it from a run of another loop


def full_run(path, config=TRAINING) -> RunFolder:
    """Records, geometry and weights of epochs 0 to 4."""
    run = RunFolder.create(path)
    run.write_text("config.yaml", config)
    for epoch in range(5):
        run.append(replace(RECORD, epoch=epoch))
        run.write_geometry(Geometry(epoch, np.eye(3), np.ones(3), np.eye(3), np.zeros(3)))
        run.checkpoint(epoch).write_bytes(b"weights")
    return run


def names(path) -> list[str]:
    return sorted(str(each.relative_to(path)) for each in path.rglob("*") if each.name != ".lock")


def test_nan_in_a_record_equals_itself():
    again = Record.from_json(RECORD.to_json())
    assert again == RECORD
    assert hash(again) == hash(RECORD)
    assert again != replace(RECORD, measures={"nc1": 0.25, "nc2": 1.0})
    assert again != replace(RECORD, learning_rate=math.nan)
    assert replace(RECORD, seconds=math.nan) == replace(RECORD, seconds=math.nan)
    assert RECORD != "a record"


def test_a_used_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"not empty and holds no run .*choose another \(--out, out=\)$"):
        RunFolder.create(tmp_path)
    assert names(tmp_path) == ["notes.txt"]


def test_an_earlier_run_is_refused_and_force_named(tmp_path):
    full_run(tmp_path)
    with pytest.raises(
        InputError, match=r"not empty: choose another .* or overwrite the run in it \(--force, force=True"
    ):
        RunFolder.create(tmp_path)


def test_force_clears_an_earlier_run_once_the_new_one_has_a_record(tmp_path):
    before = full_run(tmp_path)
    for folder in ("logs/csv/version_0", "state/00002", "state/.00003.tmp"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("state.pt", "logs/csv/version_0/metrics.csv", "logs/mlflow.db", ".state.pt.x.tmp", "geometry/.7.tmp"):
        (tmp_path / file).write_bytes(b"old")
    for file in ("00002/.metadata", "00002/__0_0.distcp", ".00003.tmp/__1_0.distcp", ".00003.tmp/.metadata.tmp"):
        (tmp_path / "state" / file).write_bytes(b"old")
    before.unlock()
    run = RunFolder.create(tmp_path, force=True)
    assert (tmp_path / "records.jsonl").read_text() == ""
    assert (run.checkpoints(), run.replaces_earlier) == ([], True)
    run.append(RECORD)
    assert names(tmp_path) == ["checkpoints", "geometry", "records.jsonl"]


@pytest.mark.parametrize("how", ["discarded", "killed"])
def test_an_earlier_run_comes_back_when_the_new_one_ends_without_a_record(tmp_path, how, monkeypatch):
    full_run(tmp_path).write_text("report.html", "page")
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path) if (tmp_path / name).is_file()}
    if how == "killed":  # while its files move
        moved = Path.rename

        def rename(self, target):
            if self.name == "report.html":
                raise KeyboardInterrupt
            return moved(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", rename)
            with pytest.raises(KeyboardInterrupt):
                RunFolder.create(tmp_path, force=True)
    run = RunFolder.create(tmp_path, force=True)
    run.write_text("config.yaml", "other")
    run.discard()
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path) if (tmp_path / name).is_file()} == before


@pytest.mark.parametrize("earlier", [True, False])
@pytest.mark.parametrize("at", ["_set_aside", "make_folders", "records.jsonl"])
def test_an_interrupt_while_a_folder_is_made_leaves_it_as_it_was(tmp_path, monkeypatch, earlier, at):
    out = tmp_path / "run"
    if earlier:
        full_run(out)
    before = {name: (out / name).read_bytes() for name in names(out) if (out / name).is_file()} if earlier else {}

    def after(method):
        def interrupted(*arguments):
            method(*arguments)
            raise KeyboardInterrupt

        return interrupted

    with monkeypatch.context() as patch:
        if at == "records.jsonl":
            patch.setattr(folder_module, "write_atomically", after(folder_module.write_atomically))
        else:
            patch.setattr(RunFolder, at, after(getattr(RunFolder, at)))
        with pytest.raises(KeyboardInterrupt):
            RunFolder.create(out, force=True)
    if earlier:
        assert {name: (out / name).read_bytes() for name in names(out) if (out / name).is_file()} == before
    else:
        assert not out.exists()
    RunFolder.create(out, force=earlier).discard()


FOREIGN = [
    "notes.txt",
    "config.yaml.bak",
    "last.ckpt",
    "checkpoint-500/model.safetensors",
    "checkpoints/best.safetensors",
    "checkpoints/epoch-00001.ckpt",
    "checkpoints/epoch-00001 (1).safetensors",
    "checkpoints/epoch-1.safetensors",
    "checkpoints/sub/epoch-00001.safetensors",
    "geometry/mine.npz",
    "geometry/epoch-00001 copy.npz",
    "logs/theirs",
    "state/notes.txt",
    "state/00001/model.pt",
    "logs/csv/version_0/notes.txt",
    "logs/tensorboard/best.pt",
    "figures/data.csv",
    ".hidden",
    ".notes.tmp",
    ".earlier/notes.txt",
]


@pytest.mark.parametrize("name", FOREIGN)
def test_force_is_refused_where_others_wrote_and_names_that(tmp_path, name):
    full_run(tmp_path)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    before = names(tmp_path)
    first = (
        name
        if name.split("/")[0] in ("checkpoints", "geometry", "logs", "figures", "state", ".earlier")
        else name.split("/")[0]
    )
    found = first if first != "checkpoints/sub/epoch-00001.safetensors" else "checkpoints/sub"
    for force in (True, False):
        with pytest.raises(InputError) as error:
            RunFolder.create(tmp_path, force=force)
        assert f"holds {found}, not written by this library" in str(error.value)
        assert "--force" not in str(error.value)
    assert names(tmp_path) == before


@pytest.mark.parametrize(
    "name", ["checkpoints", "geometry", "logs", "state.pt", "state", "link", "checkpoints/epoch-00009.safetensors"]
)
def test_force_follows_no_symbolic_link(tmp_path, name):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/epoch-00001.safetensors").write_text("mine")
    run = full_run(tmp_path / "run")
    place = run.path / name
    if place.is_dir():
        shutil.rmtree(place)
    place.symlink_to(tmp_path / "theirs")
    with pytest.raises(InputError, match=f"holds the symbolic link {name}"):
        RunFolder.create(run.path, force=True)
    (tmp_path / "link").symlink_to(run.path)
    with pytest.raises(InputError, match="is a symbolic link to"):
        RunFolder.create(tmp_path / "link", force=True)
    assert (tmp_path / "theirs/epoch-00001.safetensors").read_text() == "mine"
    assert len(run.records()) == 5


def test_weights_in_a_run_that_keeps_none_are_others(tmp_path):
    full_run(tmp_path, config='{"network": "Net", "data": "mine", "layer": "fc", "unit": "epoch"}')
    with pytest.raises(InputError, match=r"holds checkpoints/epoch-00000\.safetensors and 4 more"):
        RunFolder.create(tmp_path, force=True)


@pytest.mark.parametrize("given", ["checkpoints/epoch-00001.safetensors", "config.yaml", "checkpoints", "."])
def test_a_folder_with_what_is_still_needed_is_not_overwritten(tmp_path, given):
    full_run(tmp_path)
    for force in (True, False):
        with pytest.raises(InputError, match="which is still needed: choose another") as error:
            RunFolder.create(tmp_path, force=force, given=[tmp_path / "x" / ".." / given])
        assert "--force" not in str(error.value)
    assert len(RunFolder.open(tmp_path).checkpoints()) == 5


def test_force_leaves_a_folder_alone_that_holds_no_run(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    (tmp_path / "config.yaml").write_text("mine")
    with pytest.raises(InputError, match="holds no run that could be overwritten"):
        RunFolder.create(tmp_path, force=True)
    assert {path.read_text() for path in tmp_path.iterdir()} == {"mine"}


@pytest.mark.parametrize(
    "files",
    [
        {"records.jsonl": "mine\n"},
        {"records.jsonl": '{"epoch": 1}\n', "config.yaml": TRAINING},
        {"records.jsonl": "", "report.html": "mine"},
        {"records.jsonl": "", "geometry/epoch-00001.npz": "mine"},
        {"environment.json": '{"python": "3.12"}', "config.yaml": TRAINING},
        {"config.yaml": TRAINING, "checkpoints/epoch-00001.safetensors": "mine"},
    ],
    ids=str,
)
def test_files_of_such_names_make_no_run(tmp_path, files):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match="holds no run that could be overwritten"):
        RunFolder.create(tmp_path, force=True)
    assert {name: (tmp_path / name).read_text() for name in files} == files


def test_a_folder_of_a_run_that_was_killed_early_can_be_overwritten(tmp_path):
    RunFolder.create(tmp_path).write_text("config.yaml", TRAINING)
    RunFolder.create(tmp_path, force=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/.lock").touch()  # a process was killed there
    RunFolder.create(tmp_path / "empty")


def test_numbers_that_are_not_there_come_back_as_nan(tmp_path):
    run = RunFolder.create(tmp_path)
    run.append(replace(RECORD, seconds=math.nan, learning_rate=math.nan, train={"loss": math.nan}))
    (found,) = run.records()
    assert math.isnan(found.seconds)
    assert math.isnan(found.learning_rate)
    assert math.isnan(found.train["loss"])


def test_files_are_in_the_order_of_their_numbers(tmp_path):
    run = RunFolder.create(tmp_path)
    for epoch in (100_000, 99_999, 5):
        run.write_geometry(Geometry(epoch, np.eye(3), np.ones(3), np.eye(3), np.zeros(3)))
        run.checkpoint(epoch).write_bytes(b"weights")
    assert [geometry.epoch for geometry in run.geometries()] == [5, 99_999, 100_000]
    assert [epoch for epoch, _ in run.checkpoints()] == [5, 99_999, 100_000]


def test_the_geometries_of_other_epochs_are_deleted(tmp_path):
    run = full_run(tmp_path)
    run.keep_geometries([0, 3, 9])
    assert [geometry.epoch for geometry in run.geometries()] == [0, 3]


def test_a_folder_is_checked_without_a_trace(tmp_path):
    RunFolder.check_free(tmp_path / "new" / "run")
    assert list(tmp_path.iterdir()) == []
    assert len(list(full_run(tmp_path / "kept").geometries())) == 5
    full_run(tmp_path / "run")
    RunFolder.check_free(tmp_path / "run", force=True)
    assert len(RunFolder.open(tmp_path / "run").records()) == 5


@pytest.mark.parametrize("epoch", [-1, 0, 2, 4, 9])
def test_a_run_is_rewound_to_an_epoch(tmp_path, epoch):
    run = full_run(tmp_path)
    before = (tmp_path / "records.jsonl").read_text().splitlines()
    run.truncate(epoch)
    kept = list(range(min(epoch, 4) + 1))
    assert (tmp_path / "records.jsonl").read_text().splitlines() == before[: len(kept)]
    assert [geometry.epoch for geometry in run.geometries()] == kept
    assert [epoch for epoch, _ in run.checkpoints()] == kept


def test_rewinding_leaves_other_files_alone(tmp_path):
    run = full_run(tmp_path)
    others = [tmp_path / "geometry" / "mine.npz", tmp_path / "checkpoints" / "best.safetensors", tmp_path / "notes.txt"]
    for other in (*others, run.state):
        other.write_text("mine")
    run.truncate(-1)
    assert all(other.read_text() == "mine" for other in (*others, run.state))


def test_damaged_records_are_not_rewound_away(tmp_path):
    run = full_run(tmp_path)
    text = run.read_text("records.jsonl") + "{\n"
    (tmp_path / "records.jsonl").write_text(text)
    with pytest.raises(InputError, match="line 6 is not a record"):
        run.truncate(2)
    assert run.read_text("records.jsonl") == text
    assert len(run.checkpoints()) == 5


def test_a_sweep_takes_the_temporary_files_and_nothing_else(tmp_path):
    run = full_run(tmp_path)
    others = [tmp_path / "notes.tmp", tmp_path / ".notes.tmp"]
    for other in others:
        other.write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    for scrap in (
        ".records.jsonl.abc.tmp",
        "geometry/.epoch-00001.npz.x.tmp",
        "checkpoints/.epoch-00001.safetensors.tmp",
    ):
        (tmp_path / scrap).write_bytes(b"half")
    run.remove_temporary()
    assert sorted(tmp_path.rglob("*")) == before


def test_a_discarded_run_leaves_what_is_not_its_own(tmp_path):
    full_run(tmp_path / "run").discard()
    assert not (tmp_path / "run").exists()
    other = full_run(tmp_path / "other")
    for name in ("notes.txt", "checkpoints/best.safetensors"):
        (tmp_path / "other" / name).write_text("mine")
    other.discard()
    assert names(tmp_path / "other") == ["checkpoints", "checkpoints/best.safetensors", "notes.txt"]


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write the run folder"):
        RunFolder.create(tmp_path / "file" / "run")


def test_opening_what_is_no_run_says_so(tmp_path):
    with pytest.raises(InputError, match="no run folder"):
        RunFolder.open(tmp_path / "missing")
    with pytest.raises(InputError, match=r"records\.jsonl"):
        RunFolder.open(tmp_path)


@pytest.mark.parametrize("folder", ["geometry", "checkpoints"])
@pytest.mark.parametrize("made", ["file", "folder"])
@pytest.mark.parametrize(
    "name",
    [
        "epoch-00001 (1)",
        "epoch-00001 copy",
        "epoch-1e5",
        "epoch-1",
        "epoch-",
        "epoch-000001",
        "epoch-\u0661\u0661\u0661\u0661\u0661",
    ],
)
def test_copies_and_folders_beside_the_files_of_epochs_are_ignored(tmp_path, folder, made, name):
    run = full_run(tmp_path)
    place = tmp_path / folder / f"{name}{'.npz' if folder == 'geometry' else '.safetensors'}"
    place.mkdir() if made == "folder" else place.write_text("mine")
    (tmp_path / folder / f"epoch-00009{place.suffix}").mkdir()
    assert [geometry.epoch for geometry in run.geometries()] == list(range(5))
    assert [epoch for epoch, _ in run.checkpoints()] == list(range(5))
    run.keep_geometries(range(3))
    run.truncate(1)
    assert len(run.checkpoints()) == 2
    assert place.exists()


@pytest.mark.parametrize("line", ["{", "[]", '{"epoch": 1}', "null"])
def test_a_damaged_record_is_named_by_its_line(tmp_path, line):
    run = RunFolder.create(tmp_path)
    run.append(RECORD)
    with (tmp_path / "records.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(InputError, match="line 2 is not a record"):
        run.records()


def test_no_records_yet_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no records yet"):
        RunFolder.create(tmp_path).records()


def test_a_failed_write_leaves_the_old_file_and_no_scraps(tmp_path, monkeypatch):
    target = tmp_path / "file"
    write_atomically(target, b"old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(target, b"new")
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_geometry_with_pickled_arrays_is_not_loaded(tmp_path):
    run = RunFolder.create(tmp_path)
    np.savez(tmp_path / "geometry" / "epoch-00001.npz", means=np.array([{}], dtype=object))
    with pytest.raises(InputError, match="damaged"):
        list(run.geometries())
