import math
import shutil

import numpy as np
import pytest

from neuralcollapse import InputError
from neuralcollapse.records import Geometry, Record
from neuralcollapse.runs import Run, by_layer, check_key, grouped, label, number, read_run, read_runs, value

RECORD = Record(
    2,
    1.0,
    0.1,
    {"loss": 0.5, "accuracy": 0.75},
    {"accuracy": 0.5},
    {"nc1": 0.25, "nc2": math.nan},
    {"ratio": 1.5},
    {"b": {"nc1": 2.0}, "a": {"nc1": 3.0}},
)


def run(name="run", nc1=0.25, labels=None, **rest) -> Run:
    return Run(name, {}, {}, [Record(1, 0.0, 0.1, {"accuracy": 1.0}, {}, {"nc1": nc1})], labels=labels or {}, **rest)


@pytest.mark.parametrize(
    ("key", "expected"), [("nc1", 0.25), ("train.accuracy", 0.75), ("test.accuracy", 0.5), ("head.ratio", 1.5)]
)
def test_a_number_of_a_record_is_found_by_its_key(key, expected):
    assert value(RECORD, key) == expected


@pytest.mark.parametrize("key", ["nc2", "nc3", "test.loss", "head.minimum"])
def test_a_number_that_is_not_there_is_nan(key):
    assert math.isnan(value(RECORD, key))


@pytest.mark.parametrize("key", ["nc1", "nc_bias", "train.accuracy", "test.loss", "head.ratio"])
def test_known_keys_pass(key):
    assert check_key(key, "here") == key


@pytest.mark.parametrize("key", ["nc9", "accuracy", "layers.nc1", "", 3, None])
def test_unknown_keys_are_refused_with_what_there_is(key):
    with pytest.raises(InputError, match=r"^here: no number .*nc1.*such as test\.accuracy$"):
        check_key(key, "here")


def test_layers_come_in_the_order_of_the_configuration_and_the_features_last():
    of = Run("r", {"layers": ["a", "b", "not measured"]}, {}, [RECORD])
    assert list(by_layer(of, RECORD, "nc1").items()) == [("a", 3.0), ("b", 2.0), ("features", 0.25)]
    assert list(by_layer(Run("r", {}, {}, [RECORD]), RECORD, "nc1")) == ["b", "a", "features"]
    assert math.isnan(by_layer(of, RECORD, "nc1_cdnv")["a"])


def test_runs_are_grouped_by_their_labels_and_those_without_stand_alone():
    runs = [run("x", 1, {"a": "1"}), run("y", 5, {"a": "2"}), run("z", 3, {"a": "1"}), run("p"), run("q")]
    groups = grouped(runs)
    assert [[member.name for member in group.runs] for group in groups] == [["x", "z"], ["y"], ["p"], ["q"]]
    assert [group.name for group in groups] == ["1", "2", "p", "q"]
    assert groups[0].values("nc1") == [1, 3]
    assert groups[0].mean("nc1") == 2
    assert groups[0].spread("nc1") == pytest.approx(math.sqrt(2))
    assert math.isnan(groups[1].spread("nc1"))
    assert math.isnan(grouped([run("x", 1, {"a": "1"}), run("y", math.nan, {"a": "1"})])[0].mean("nc1"))


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (None, "undefined"),
        (math.nan, "undefined"),
        (0.0, "0"),
        (0.12345, "0.1235"),
        (-12.5, "-12.5"),
        (0.001234, "1.23e-03"),
        (12345.0, "1.23e+04"),
        (math.inf, "inf"),
    ],
)
def test_numbers_are_short(x, text):
    assert number(x) == text


def test_labels_are_what_people_say():
    assert (label("nc1"), label("train.accuracy"), label("head.ratio")) == (
        "NC1",
        "train accuracy",
        "head / exact minimum",
    )


def test_classes_are_named_by_the_environment_or_by_their_numbers():
    geometry = Geometry(1, np.eye(3), np.zeros(3), np.eye(3), np.zeros(3))
    assert run(geometries=[geometry]).class_names == ["0", "1", "2"]
    assert Run("r", {}, {"class_names": ["x", "y"]}, [RECORD]).class_names == ["x", "y"]


def test_a_run_is_read_whole(short_run):
    found = read_run(short_run.path, labels={"a": "b"})
    assert found.name == "short"
    assert found.labels == {"a": "b"}
    assert (found.first.epoch, found.last.epoch) == (0, 4)
    assert found.config["width"] == 32
    assert found.environment["train_samples"] == 1437
    assert found.geometries[-1].epoch == 4
    assert found.last == short_run.records()[-1]


@pytest.fixture
def copies(short_run, tmp_path):
    def copy(*names):
        return [shutil.copytree(short_run.path, tmp_path / name) for name in names]

    return copy


def test_runs_are_told_apart_by_as_many_folders_as_it_takes(copies):
    names = [one.name for one in read_runs(copies("a/x/run", "b/x/run", "c/y/run", "other"))]
    assert names == ["a/x/run", "b/x/run", "y/run", "other"]


def test_a_run_given_twice_is_refused_however_it_is_written(copies, monkeypatch, tmp_path):
    (place,) = copies("run")
    monkeypatch.chdir(tmp_path)
    for other in (place, "run", "run/../run"):
        with pytest.raises(InputError, match="is given twice: leave one out"):
            read_runs([place, other])


@pytest.mark.parametrize("text", ["a: [", "- 1", ""])
@pytest.mark.parametrize("name", ["config.yaml", "environment.json"])
def test_damaged_files_of_a_run_are_named_in_one_line(copies, name, text):
    (place,) = copies("run")
    (place / name).write_text(text)
    with pytest.raises(InputError, match=rf"{name} is damaged") as caught:
        read_run(place)
    assert "\n" not in str(caught.value)
