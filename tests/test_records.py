import itertools
import json
import math
import os
from dataclasses import replace

import numpy as np
import pytest

from neuralcollapse import InputError
from neuralcollapse.records import Geometry, Record, RunFolder, write_atomically

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
    run.append(RECORD)
    geometry = Geometry(7, np.eye(3), np.ones(3), 2 * np.eye(3), np.zeros(3))
    run.write_geometry(geometry)
    opened = RunFolder.open(tmp_path / "run")
    assert [record.epoch for record in opened.records()] == [3, 3]
    (kept,) = opened.geometries()
    assert kept.epoch == 7
    np.testing.assert_array_equal(kept.centred, np.eye(3) - 1)
    np.testing.assert_array_equal(kept.weight, 2 * np.eye(3))


def test_a_used_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"not empty.*--force"):
        RunFolder.create(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_force_clears_an_earlier_run_and_nothing_else(tmp_path):
    run = RunFolder.create(tmp_path)
    run.append(RECORD)
    run.checkpoint(5).write_bytes(b"old")
    (tmp_path / "notes.txt").write_text("mine")
    RunFolder.create(tmp_path, force=True)
    assert (tmp_path / "records.jsonl").read_text() == ""
    assert not run.checkpoints()
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_force_clears_the_state_and_the_logs_too(tmp_path):
    run = RunFolder.create(tmp_path)
    run.logs.mkdir()
    old = [run.state, run.logs / "mlflow.db", run.logs / "theirs", tmp_path / ".state.pt.x.tmp"]
    for file in (*old, tmp_path / "geometry" / ".a.tmp"):
        file.write_bytes(b"old")
    RunFolder.create(tmp_path, force=True)
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert names == ["checkpoints", "geometry", "logs", "logs/theirs", "records.jsonl"]


def test_force_leaves_a_folder_alone_that_holds_no_run(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    (tmp_path / "config.yaml").write_text("mine")
    with pytest.raises(InputError, match="holds no run that could be overwritten"):
        RunFolder.create(tmp_path, force=True)
    assert {path.read_text() for path in tmp_path.iterdir()} == {"mine"}


def full_run(path) -> RunFolder:
    """Records, geometry and weights of epochs 0 to 4."""
    run = RunFolder.create(path)
    for epoch in range(5):
        run.append(replace(RECORD, epoch=epoch))
        run.write_geometry(Geometry(epoch, np.eye(3), np.ones(3), np.eye(3), np.zeros(3)))
        run.checkpoint(epoch).write_bytes(b"weights")
    return run


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


def test_geometries_are_thinned_evenly_in_the_root_of_the_epoch(tmp_path):
    run = RunFolder.create(tmp_path)
    for epoch in range(101):
        run.write_geometry(Geometry(epoch, np.eye(2), np.ones(2), np.eye(2), np.zeros(2)))
        run.thin_geometries(11)
    kept = [geometry.epoch for geometry in run.geometries()]
    assert (len(kept), kept[0], kept[-1]) == (11, 0, 100)
    assert kept[1] <= 4
    assert max(b - a for a, b in itertools.pairwise(kept)) <= 30


def test_a_folder_is_checked_without_a_trace(tmp_path):
    RunFolder.check_free(tmp_path / "new" / "run")
    assert list(tmp_path.iterdir()) == []
    full_run(tmp_path / "run")
    RunFolder.check_free(tmp_path / "run", force=True)
    assert len(RunFolder.open(tmp_path / "run").records()) == 5


@pytest.mark.parametrize("epoch", [-1, 0, 2, 4, 9])
def test_a_run_is_rewound_to_an_epoch(tmp_path, epoch):
    run = full_run(tmp_path)
    before = (tmp_path / "records.jsonl").read_text().splitlines()
    run.rewind(epoch)
    kept = list(range(min(epoch, 4) + 1))
    assert (tmp_path / "records.jsonl").read_text().splitlines() == before[: len(kept)]
    assert [geometry.epoch for geometry in run.geometries()] == kept
    assert [epoch for epoch, _ in run.checkpoints()] == kept


def test_rewinding_leaves_other_files_alone(tmp_path):
    run = full_run(tmp_path)
    others = [tmp_path / "geometry" / "mine.npz", tmp_path / "checkpoints" / "best.safetensors", tmp_path / "notes.txt"]
    for other in (*others, run.state):
        other.write_text("mine")
    run.rewind(-1)
    assert all(other.read_text() == "mine" for other in (*others, run.state))


def test_damaged_records_are_not_rewound_away(tmp_path):
    run = full_run(tmp_path)
    text = run.read_text("records.jsonl") + "{"
    (tmp_path / "records.jsonl").write_text(text)
    with pytest.raises(InputError, match="line 6 is not a record"):
        run.rewind(2)
    assert run.read_text("records.jsonl") == text
    assert len(run.checkpoints()) == 5


def test_a_sweep_takes_the_temporary_files_and_nothing_else(tmp_path):
    run = full_run(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for folder in (tmp_path, tmp_path / "geometry", tmp_path / "checkpoints"):
        (folder / ".records.jsonl.abc.tmp").write_bytes(b"half")
    (tmp_path / "notes.tmp").write_text("mine")
    run.sweep()
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "notes.tmp"])


def test_a_discarded_run_leaves_what_is_not_its_own(tmp_path):
    full_run(tmp_path / "run").discard()
    assert not (tmp_path / "run").exists()
    other = full_run(tmp_path / "other")
    (tmp_path / "other" / "notes.txt").write_text("mine")
    other.discard()
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["notes.txt"]


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write the run folder"):
        RunFolder.create(tmp_path / "file" / "run")


def test_opening_what_is_no_run_says_so(tmp_path):
    with pytest.raises(InputError, match="no run folder"):
        RunFolder.open(tmp_path / "missing")
    with pytest.raises(InputError, match=r"records\.jsonl"):
        RunFolder.open(tmp_path)


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
