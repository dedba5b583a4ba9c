"""`neuralcollapse measure --per-class`: the table on the terminal, in JSON and in a CSV file, with names."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import neuralcollapse as nc
from neuralcollapse.cli import main
from tests.helpers import refused

pytestmark = pytest.mark.filterwarnings("ignore::neuralcollapse.NeuralCollapseWarning")
NAMES = ["cat", "dog", "a\x1b[2Jb", "eel"]


@pytest.fixture
def arrays(tmp_path, monkeypatch):
    """Arrays of 4 classes in 6 dimensions, saved as f.npz in the current folder."""
    monkeypatch.chdir(tmp_path)
    source = np.random.default_rng(0)
    labels = np.arange(40) % 4
    weight = source.normal(size=(4, 6))
    made = {"features": weight[labels] + 0.8 * source.normal(size=(40, 6)), "labels": labels, "weight": weight}
    np.savez("f.npz", **made)
    return made


def lines(capsys, *arguments):
    assert main(["measure", *map(str, arguments)]) == 0
    return capsys.readouterr().out.splitlines()


def expected(arrays, **more):
    moments = nc.ClassMoments.from_batch(torch.tensor(arrays["features"]), torch.tensor(arrays["labels"]), 4)
    right = (arrays["features"] @ arrays["weight"].T).argmax(1) == arrays["labels"]
    accuracy = [float(right[arrays["labels"] == k].mean()) for k in range(4)]
    return nc.per_class(moments, torch.tensor(arrays["weight"]), accuracy=accuracy, **more)


def test_the_table_is_printed_the_worst_first(arrays, capsys):
    out = lines(capsys, "f.npz", "--per-class")
    table = str(expected(arrays)).splitlines()
    start = out.index(table[0])
    assert out[start : start + len(table)] == table
    assert out[start + len(table)] == "hardest to tell apart:"
    assert not [line for line in lines(capsys, "f.npz") if line.startswith("class ")]


def test_json_and_csv_have_every_row(arrays, capsys):
    assert main(["measure", "f.npz", "--per-class", "out.csv", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = expected(arrays).rows()
    assert found["per_class"] == rows
    assert [pair["cdnv"] for pair in found["worst_pairs"]] == sorted(
        (pair["cdnv"] for pair in found["worst_pairs"]), reverse=True
    )
    assert len(found["worst_pairs"]) == 6
    with open("out.csv", encoding="utf-8", newline="") as file:
        written = list(csv.DictReader(file))
    assert [float(line["alignment"]) for line in written] == [row["alignment"] for row in rows]
    assert "per_class" not in json.loads("\n".join(lines(capsys, "f.npz", "--json")))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("names.txt", "\n".join(NAMES) + "\n"),
        ("names.json", json.dumps(NAMES)),
        ("config.json", json.dumps({"x": 1, "id2label": dict(enumerate(NAMES))})),
        ("numbers.json", json.dumps({str(k): NAMES[k] for k in (3, 1, 0, 2)})),
    ],
)
def test_names_of_a_file_win_over_those_of_the_arrays(arrays, capsys, tmp_path, file, content):
    (tmp_path / file).write_text(content)
    np.savez("f.npz", **arrays, class_names=np.array(["p", "q", "r", "s"]))
    out = json.loads("\n".join(lines(capsys, "f.npz", "--per-class", "--json")))
    assert [row["name"] for row in out["per_class"]] == ["p", "q", "r", "s"]
    text = lines(capsys, "f.npz", "--per-class", "--class-names", file)
    assert any(line.startswith("1 dog") for line in text)
    assert all(letter.isprintable() for line in text for letter in line)


def test_classes_left_out_keep_the_numbers_and_names_of_the_others(arrays, capsys):
    kept = np.r_[np.flatnonzero(arrays["labels"] != 1), 1]
    np.savez("few.npz", features=arrays["features"][kept], labels=arrays["labels"][kept], weight=arrays["weight"])
    Path("n.txt").write_text("a\nb\nc\nd\n")
    words = ["few.npz", "--min-count", "2", "--per-class", "--class-names", "n.txt", "--json"]
    found = json.loads("\n".join(lines(capsys, *words)))["per_class"]
    assert [(row["class"], row["name"]) for row in found] == [(0, "a"), (2, "c"), (3, "d")]
    assert {row["nearest"] for row in found} <= {0, 2, 3}


@pytest.mark.parametrize("flags", [["--no-pairwise"], ["--pairs", "3"]])
def test_without_all_pairs_there_is_no_nearest_class(arrays, capsys, flags):
    out = json.loads("\n".join(lines(capsys, "f.npz", "--per-class", "--json", *flags)))
    assert "nearest" not in out["per_class"][0]
    assert "by cos first" in "\n".join(lines(capsys, "f.npz", "--per-class", *flags))


def test_what_cannot_be_meant_is_refused(arrays, capsys, tmp_path):
    assert "before the options" in refused(capsys, "measure", "--per-class", "f.npz")
    (tmp_path / "two.txt").write_text("a\nb\n")
    assert "names of 4 classes, got 2" in refused(capsys, "measure", "f.npz", "--per-class", "--class-names", "two.txt")
    (tmp_path / "bad.json").write_text("3")
    assert "id2label" in refused(capsys, "measure", "f.npz", "--per-class", "--class-names", "bad.json")
    assert "cannot read" in refused(capsys, "measure", "f.npz", "--per-class", "--class-names", "none.txt")
    assert "cannot write" in refused(capsys, "measure", "f.npz", "--per-class", "no/out.csv")
    np.savez("f.npz", **arrays, class_names=np.arange(4))
    assert "array class_names as K texts" in refused(capsys, "measure", "f.npz", "--per-class")
    np.savez("f.npz", **arrays, class_names=np.array([{}, 1, 2, 3], dtype=object))
    assert "pickled data" in refused(capsys, "measure", "f.npz", "--per-class")
    assert "not used: the arrays class_names" in lines(capsys, "f.npz")


def test_a_run_and_its_checkpoints(short_run, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = json.loads("\n".join(lines(capsys, short_run.path, "--per-class", "run.csv", "--json")))
    assert [row["name"] for row in found["per_class"]] == list("0123456789")
    known = short_run.classes()
    assert known.epoch == 4
    assert [row["cdnv"] for row in found["per_class"]] == pytest.approx(known.columns["cdnv"].tolist(), rel=1e-4)
    assert [row["accuracy"] for row in found["per_class"]] == pytest.approx(known.columns["accuracy"].tolist())
    assert (tmp_path / "run.csv").is_file()
    network = ["--network", "mlp", "--network-options", '{"width": 32, "depth": 2}', "--feature-dim", "16"]
    weights = ["--data", "digits", "--checkpoints", str(short_run.checkpoints()[-1][1])]
    text = "\n".join(lines(capsys, *network, *weights, "--per-class", "ckpt.csv"))
    assert "10 classes, the worst by CDNV first" in text
    assert "classes  ckpt.csv" in text
