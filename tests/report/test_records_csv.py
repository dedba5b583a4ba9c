import csv
import io
import math

from neuralcollapse.report.records_csv import records_csv
from neuralcollapse.runs.reading import Run
from neuralcollapse.runs.records import Record


def rows(*runs):
    return list(csv.DictReader(io.StringIO(records_csv(runs))))


def run(name="r", labels=None, **parts):
    return Run(name, {"seed": 3}, {}, [Record(2, 1.25, 0.1, {"loss": 1 / 3}, **parts)], labels=labels or {})


def test_a_line_for_each_record():
    (line,) = rows(run(measures={"nc1": 1e-9}, layers={"l1": {"nc1": 2.0}}, labels={"x": "p"}))
    assert (line["run"], line["x"], line["seed"], line["epoch"], line["source"]) == ("r", "p", "3", "2", "eval")
    assert (line["train_loss"], line["nc1"], line["l1/nc1"]) == ("0.333333", "1e-09", "2.0")


def test_what_a_run_has_not_is_empty():
    first, second = rows(run(measures={"nc1": math.nan}), run("s", test={"accuracy": 0.5}))
    assert first["nc1"] == first["test_accuracy"] == second["nc1"] == ""
    assert second["test_accuracy"] == "0.5"


def test_names_are_no_formulas_and_labels_hide_no_column():
    (line,) = rows(run("=1+1", labels={"epoch": "late", "@x": "-y"}))
    assert line["run"] == "'=1+1"
    assert line["epoch"] == "2"
    assert line["epoch (axis)"] == "late"
    assert line["'@x"] == "'-y"
