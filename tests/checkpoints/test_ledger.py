"""checkpoints.json: an entry for each checkpoint, appended."""

import errno
import json
import os
from dataclasses import replace

import pytest

from neuralcollapse import InputError
from neuralcollapse.checkpoints.ledger import Done, append_to_ledger, read_ledger, write_ledger
from neuralcollapse.runs import files
from neuralcollapse.runs.records import Record

RECORD = Record(3, 1.5, 0.1, {"loss": 0.5, "accuracy": 0.75})
DONE = Done(7, 11, RECORD)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "checkpoints.json"
    write_ledger(path, {"a": DONE})
    return path


def test_an_entry_is_appended_and_the_file_stays_json(file):
    other = replace(DONE, size=8)
    assert append_to_ledger(file, "b", DONE)
    assert append_to_ledger(file, 'c "quoted"', other)
    assert read_ledger(file) == {"a": DONE, "b": DONE, 'c "quoted"': other}
    assert list(json.loads(file.read_text())) == ["a", "b", 'c "quoted"']
    assert len(file.read_text().splitlines()) == 5


def test_the_last_entry_of_a_checkpoint_counts(file):
    append_to_ledger(file, "a", replace(DONE, size=9))
    assert read_ledger(file)["a"].size == 9


def test_nothing_is_appended_where_nothing_can_be(tmp_path, file):
    assert not append_to_ledger(tmp_path / "missing", "b", DONE)
    for text in ("", "{\n\n}\n", "{}", "[1]\n", file.read_text()[:-1]):
        file.write_text(text)
        assert not append_to_ledger(file, "b", DONE)
        assert file.read_text() == text


@pytest.mark.parametrize("cut", [1, 4, 30, 60])
def test_an_entry_that_was_torn_is_left_out(file, cut):
    append_to_ledger(file, "b", DONE)
    text = file.read_text()
    file.write_text(text[:-cut])
    found = read_ledger(file)
    assert found == ({"a": DONE} if cut > 1 else {"a": DONE, "b": DONE})


@pytest.mark.parametrize("before", [{"a": DONE}, {"a": DONE, "b": DONE}])
def test_a_kill_at_any_byte_of_an_entry_loses_none_before_it(file, before):
    write_ledger(file, before)
    old = file.read_bytes()
    append_to_ledger(file, "c", DONE)
    new = file.read_bytes()
    for end in range(len(old) - 3, len(new)):
        for zeros in (b"", b"\0\0"):
            file.write_bytes(new[:end] + old[end:] + zeros)
            assert read_ledger(file) in (before, {**before, "c": DONE})


def test_a_full_disk_leaves_the_ledger_as_it_was(file, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = file.read_bytes()
    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        append_to_ledger(file, "b", DONE)
    assert file.read_bytes() == before


@pytest.mark.parametrize("text", ["{", "[1]", '{"a": [1]}', '{"a": [1, 2, {}]}', "{,\n", "x,\ny"])
def test_another_file_of_that_name_is_one_line(file, text):
    file.write_text(text)
    with pytest.raises(InputError, match=r"checkpoints\.json is damaged"):
        read_ledger(file)
