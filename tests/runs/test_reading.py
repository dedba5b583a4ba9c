import math
import shutil

import pytest

from neuralcollapse import InputError
from neuralcollapse.runs.reading import Group, by_layer, group_runs, read_run, read_runs
from neuralcollapse.runs.records import check_key, label, number
from tests.helpers import made_record, made_run


def run(name="a", nc1=0.5, labels=None, config=None):
    return made_run(name, [made_record(nc1=nc1)], config, labels=labels or {})


def test_a_run_is_read_whole(short_run):
    found = read_run(short_run.path)
    assert found.name == "short"
    assert found.config["epochs"] == 4
    assert found.first.epoch == 0
    assert found.last.epoch == 4
    assert found.class_names == list("0123456789")
    assert sum(found.environment["class_counts"]) == found.environment["train_samples"]


def test_numbers_of_a_record_by_their_key():
    assert made_record(nc1=0.25).value("nc1") == 0.25
    assert made_record(train={"accuracy": 0.75}).value("train.accuracy") == 0.75
    assert math.isnan(made_record().value("head.ratio"))
    assert math.isnan(made_record().value("nc3"))
    assert made_record(minimizer={"nc2": 0.5}).value("minimizer.nc2") == 0.5
    assert check_key("untrained.nc2", "here") == "untrained.nc2"
    assert label("minimizer.nc2") == "NC2 at the minimum"


@pytest.mark.parametrize("key", ["nc5", "train", "valid.accuracy", "", 3, None])
def test_a_key_that_no_record_has_is_refused(key):
    with pytest.raises(InputError, match="no number"):
        check_key(key, "here")


@pytest.mark.parametrize(
    ("x", "text"), [(0.5, "0.5"), (1e-5, "1.00e-05"), (float("nan"), "undefined"), (None, "undefined")]
)
def test_numbers_for_reading(x, text):
    assert number(x) == text


def test_labels_for_reading():
    assert label("nc1") == "NC1"
    assert label("test.accuracy") == "test accuracy"


def test_groups_hold_the_runs_that_differ_in_the_seed_only():
    runs = [run("a0", 1.0, {"x": "a"}), run("b0", 5.0, {"x": "b"}), run("a1", 3.0, {"x": "a"})]
    first, second = group_runs(runs)
    assert [item.name for item in first.runs] == ["a0", "a1"]
    assert first.mean("nc1") == 2.0
    assert first.spread("nc1") == pytest.approx(math.sqrt(2))
    assert math.isnan(second.spread("nc1"))
    assert [group.name for group in group_runs([run("p"), run("q")])] == ["p", "q"]
    assert isinstance(first, Group)


def test_layers_come_in_the_order_of_the_network():
    layers = {"l10": {"nc1": 1.0}, "l2": {"nc1": 2.0}}
    found = by_layer(run(config={"layers": ["l2", "l10"]}), made_record(nc1=0.1, layers=layers), "nc1")
    assert found == {"l2": 2.0, "l10": 1.0, "features": 0.1}
    assert list(found) == ["l2", "l10", "features"]


def test_runs_of_one_name_are_told_apart(short_run, tmp_path):
    for name in ("x", "y"):
        shutil.copytree(short_run.path, tmp_path / name / "run")
    assert [item.name for item in read_runs([tmp_path / "x/run", tmp_path / "y/run"])] == ["x/run", "y/run"]
    with pytest.raises(InputError, match="given twice"):
        read_runs([tmp_path / "x/run", tmp_path / "x/../x/run"])


def test_a_damaged_configuration_is_named(short_run, tmp_path):
    shutil.copytree(short_run.path, tmp_path / "run")
    (tmp_path / "run/config.yaml").write_text("- 1\n")
    with pytest.raises(InputError, match=r"config\.yaml is damaged"):
        read_run(tmp_path / "run")
