"""records.jsonl: appended line by line, read in order, without a torn last line."""

import errno
import json
import math
import os
import random
from dataclasses import replace

import pytest

from neuralcollapse import InputError
from neuralcollapse.runs import files, record_lines
from neuralcollapse.runs.folder import RunFolder
from neuralcollapse.runs.record_lines import append_record, keep_records, read_records
from neuralcollapse.runs.records import Record

RECORD = Record(
    epoch=0,
    seconds=1.5,
    learning_rate=0.1,
    train={"loss": 0.5, "accuracy": 0.75},
    measures={"nc1": 0.25, "nc2": math.nan},
    minimizer={"nc1": 0.0, "nc2": 0.5},
    untrained={"nc2": 0.7},
)
LINE = RECORD.to_json() + "\n"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_bytes(b"")
    return path


def records(*epochs, **changes):
    return [replace(RECORD, epoch=epoch, **changes) for epoch in epochs]


def write(file, *epochs):
    for record in records(*epochs):
        append_record(file, record)


def test_what_was_appended_is_read(file):
    assert read_records(file) == []
    write(file, 0, 1, 2)
    assert read_records(file) == records(0, 1, 2)
    assert [Record.from_json(line) for line in file.read_text().splitlines()] == records(0, 1, 2)


def test_an_append_costs_as_much_in_a_long_run_as_in_a_short_one(file, monkeypatch):
    """Counted in bytes that go through the file, to it and from it."""

    class Counted:
        def __init__(self, raw):
            self.raw = raw

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.raw.close()

        def __getattr__(self, name):
            return getattr(self.raw, name)

        def read(self, *size):
            found = self.raw.read(*size)
            moved[-1] += len(found)
            return found

        def write(self, content):
            moved[-1] += len(content)
            return self.raw.write(content)

    moved = []
    monkeypatch.setattr(record_lines, "cast", lambda kind, raw: Counted(raw))
    for epoch in range(1000, 1500):
        moved.append(0)
        write(file, epoch)
    assert set(moved) == {len(LINE) + 3, len(LINE) + 4}  # three digits more than LINE; the newline before is looked at
    assert len(read_records(file)) == 500


def test_epochs_are_put_in_order_and_the_last_record_of_one_counts(file):
    write(file, 5, 1, 3)
    append_record(file, replace(RECORD, epoch=1, seconds=9.0))
    found = read_records(file)
    assert [record.epoch for record in found] == [1, 3, 5]
    assert found[0].seconds == 9.0
    keep_records(file, 3)
    assert [json.loads(line)["epoch"] for line in file.read_text().splitlines()] == [1, 3]
    assert read_records(file) == found[:2]


@pytest.mark.parametrize("cut", [1, 2, 20, len(LINE) // 2, len(LINE) - 2])
def test_a_torn_last_line_is_left_out_and_cut_off_before_the_next(file, cut):
    write(file, 0, 1, 2)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) - len(LINE) + cut])
    assert read_records(file) == records(0, 1)
    write(file, 7)
    assert read_records(file) == records(0, 1, 7)
    assert file.read_bytes().count(b"\n") == 3


@pytest.mark.parametrize("torn", ["{", '{"epoch": 3, "seco', "\0\0\0\0", LINE[:-1] + "\0\0"])
def test_a_torn_line_may_be_the_only_one(file, torn):
    file.write_text(torn)
    assert read_records(file) == []
    write(file, 4)
    assert file.read_text() == replace(RECORD, epoch=4).to_json() + "\n"


def test_a_whole_record_without_its_newline_counts(file):
    write(file, 0, 1)
    file.write_bytes(file.read_bytes()[:-1])
    assert read_records(file) == records(0, 1)
    write(file, 2)
    assert read_records(file) == records(0, 1, 2)


@pytest.mark.parametrize("line", ["{", "[1]", '{"epoch": 1}', '{"epoch": 3, "seco'])
def test_a_damaged_line_that_is_complete_is_named(file, line):
    file.write_text(LINE + line + "\n" + LINE)
    with pytest.raises(InputError, match=r"records\.jsonl line 2 is not a record"):
        read_records(file)
    file.write_text(LINE + line + "\n")
    with pytest.raises(InputError, match=r"records\.jsonl line 2 is not a record"):
        keep_records(file, 9)
    assert file.read_text() == LINE + line + "\n"


@pytest.mark.parametrize("line", ["[1]", '{"epoch": 1}', "null"])
def test_a_last_line_that_is_whole_and_no_record_is_named(file, line):
    file.write_text(LINE + line)
    with pytest.raises(InputError, match=r"records\.jsonl line 2 is not a record"):
        read_records(file)


def test_a_line_is_named_by_its_number_in_the_file_and_not_in_its_block(file, monkeypatch):
    monkeypatch.setattr(record_lines, "_BLOCK_BYTES", 3 * len(LINE))
    file.write_text(LINE * 20 + "\n\nno record\n" + LINE)
    with pytest.raises(InputError, match="line 23 is not a record"):
        read_records(file)


@pytest.mark.parametrize("size", [1, 7, len(LINE), len(LINE) + 1, 10 * len(LINE)])
def test_blocks_of_any_size_give_the_same_records(file, monkeypatch, size):
    write(file, *range(8))
    wanted = read_records(file)
    monkeypatch.setattr(record_lines, "_BLOCK_BYTES", size)
    assert read_records(file) == wanted
    file.write_bytes(file.read_bytes() + b"{")
    assert read_records(file) == wanted


def test_lines_are_parsed_together_as_they_are_one_by_one(file):
    source = random.Random(0)
    given = [
        replace(
            RECORD,
            epoch=epoch,
            learning_rate=source.choice([0.1, math.nan, 1]),
            layers=source.choice([{}, {"a.b": {"nc1": math.nan}}, {'"minimizer": ': {}}, {"\u00e9": {"nc1": 1.0}}]),
            minimizer=source.choice([{}, {"nc1": float(epoch)}, {"nc1": math.nan}]),
            source=source.choice(["eval", "online"]),
        )
        for epoch in range(60)
    ]
    file.write_text("".join(record.to_json() + "\n" for record in given))
    assert read_records(file) == given == [Record.from_json(line) for line in file.read_text().splitlines()]
    one, other = given[:1] * 2
    assert one.minimizer is other.minimizer
    found = read_records(file)
    assert len({id(record.minimizer) for record in found}) == len(found)  # each may be changed alone


def test_a_line_too_long_to_be_a_record_is_not_read_whole(file, monkeypatch):
    monkeypatch.setattr(record_lines, "_LINE_BYTES", 2000)
    monkeypatch.setattr(record_lines, "_BLOCK_BYTES", 500)
    file.write_text(LINE + " " * 5000)
    with pytest.raises(InputError, match=r"line 2 is not a record \(it has more than 2,000 characters"):
        read_records(file)
    with pytest.raises(InputError, match="more than 2,000 bytes"):
        write(file, 1)
    monkeypatch.setattr(record_lines, "_FILE_BYTES", 4000)
    with pytest.raises(InputError, match="expected at most 4,000 bytes"):
        read_records(file)


@pytest.mark.parametrize("line", ["my notes", "99", "{'epoch': 1", "[1]"])
def test_a_last_line_of_somebody_else_is_never_cut_off(file, line):
    file.write_text(LINE + line)
    write(file, 1)
    assert file.read_text() == LINE + line + "\n" + replace(RECORD, epoch=1).to_json() + "\n"
    with pytest.raises(InputError, match="line 2 is not a record"):
        read_records(file)


@pytest.mark.parametrize("torn", [b"", b'{"epoch": 3, "se'])
def test_a_full_disk_leaves_the_file_as_it_was(file, monkeypatch, torn):
    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write(file, 0, 1)
    before = file.read_bytes() + torn
    file.write_bytes(before)
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            write(file, 2)
    assert file.read_bytes() == before
    write(file, 2)
    assert read_records(file) == records(0, 1, 2)


def test_a_file_that_is_missing_or_no_text_is_one_line(file):
    file.write_bytes(b"\xff\xfe\n")
    with pytest.raises(InputError, match="it is not text"):
        read_records(file)
    file.unlink()
    with pytest.raises(InputError, match=r"cannot read .*No such file"):
        read_records(file)


def test_a_second_process_is_refused_before_it_appends(tmp_path):
    run = RunFolder.create(tmp_path / "run")
    run.append(RECORD)
    child = os.fork()
    if child == 0:
        try:
            RunFolder.open(tmp_path / "run").lock()
        except InputError as error:
            os._exit(0 if "is being written by another process" in str(error) else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
