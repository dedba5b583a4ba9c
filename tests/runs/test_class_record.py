"""The numbers of the classes in a run folder: written and read alike, the last alone kept, damage is refused."""

import math

import numpy as np
import pytest

from neuralcollapse.errors import InputError
from neuralcollapse.runs.class_record import ClassRecord
from neuralcollapse.runs.class_rows import table_text, worst_first
from neuralcollapse.runs.folder import RunFolder
from neuralcollapse.runs.reading import read_run
from tests.helpers import made_record

COLUMNS = {
    "number": [2, 5, 7],
    "count": [4, 0, 9],
    "nearest": [5, -1, 2],
    "cdnv": [0.5, math.nan, math.inf],
    "variance": [1e-300, math.nan, 1e30],
}


def record(epoch=1, **changed):
    columns = {name: np.array(values, np.float64) for name, values in {**COLUMNS, **changed}.items()}
    return ClassRecord(epoch, columns, np.array([[2, 7, 0.25]]))


@pytest.fixture
def folder(tmp_path):
    run = RunFolder.create(tmp_path / "run")
    run.write_text("config.yaml", "{}")
    run.write_text("environment.json", '{"neuralcollapse": "0.1.0", "class_names": ["a", "b", "c"]}')
    run.append(made_record(1))
    return run


def test_what_is_written_is_read(folder):
    assert folder.classes() is None
    folder.write_classes(record())
    found = read_run(folder.path)
    assert found.class_names == ["a", "b", "c"]
    for name, values in COLUMNS.items():
        np.testing.assert_array_equal(found.classes.columns[name], values)
    first, second, third = found.classes.rows(found.class_names)
    assert (first["class"], first["name"], first["nearest"], first["nearest_name"]) == (2, "a", 5, "b")
    assert (second["count"], second["nearest"], second["nearest_name"]) == (0, None, None)
    assert third["cdnv"] == math.inf
    (pair,) = found.classes.pair_rows(found.class_names)
    assert (pair["name"], pair["nearest_name"], pair["cdnv"]) == ("a", "c", 0.25)
    assert found.classes.rows(["only one"])[0]["name"] is None


def test_only_the_last_is_kept_and_it_goes_with_its_record(folder):
    for epoch in (1, 5, 3):
        folder.write_classes(record(epoch))
    assert [file.name for file in (folder.path / "classes").iterdir()] == ["epoch-00003.npz"]
    folder.truncate(2)
    assert folder.classes() is None


def test_the_files_are_the_library_s_own(folder):
    folder.write_classes(record())
    folder.unlock()
    again = RunFolder.create(folder.path, force=True)
    assert again.classes() is None
    again.discard()
    assert RunFolder.open(folder.path).classes().epoch == 1


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"number": [0.5, 1, 2]}, "number holds a value that is not a whole number"),
        ({"number": [1, 1, 2]}, "a class twice"),
        ({"number": [-1, 1, 2]}, "at least 0"),
        ({"nearest": [-2, 1, 2]}, "at least -1"),
        ({"nearest": [math.nan, 1, 2]}, "nearest holds"),
        ({"count": [1e300, 1, 2]}, "count holds"),
        ({"cdnv": [1, 2]}, "expected cdnv of shape"),
        ({"cdnv": [[1, 2, 3]]}, "expected cdnv of shape"),
    ],
)
def test_damage_is_refused(folder, changed, why):
    folder.write_classes(record(**changed))
    with pytest.raises(InputError, match=rf"is damaged \(.*{why}.*delete it to go on without the table"):
        folder.classes()


@pytest.mark.parametrize("content", [b"", b"PK", b"x" * 100])
def test_another_file_is_refused(folder, content):
    folder.write_classes(record())
    (folder.path / "classes/epoch-00001.npz").write_bytes(content)
    with pytest.raises(InputError, match="is damaged"):
        read_run(folder.path)


def test_other_counts_of_classes_are_refused(folder):
    folder.write_text("environment.json", '{"class_counts": [1, 2]}')
    folder.write_classes(record())
    with pytest.raises(InputError, match="it counts 2 classes"):
        read_run(folder.path)


def test_the_worst_first_with_nan_last():
    rows = record().rows(["a", "b", "c"])
    assert [row["class"] for row in worst_first(rows, "cdnv")] == [7, 2, 5]
    assert [row["class"] for row in worst_first(rows, "count")] == [5, 2, 7]
    assert table_text(rows).splitlines()[1].startswith("7 c")
