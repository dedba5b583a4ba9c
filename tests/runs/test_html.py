"""How records and runs show themselves in a notebook."""

from neuralcollapse.runs.folder import RunFolder
from neuralcollapse.runs.reading import Run
from neuralcollapse.runs.records import Record

EVIL = "<script>alert(1)</script>"


def test_a_record_is_a_table_of_its_numbers():
    record = Record(
        1200, 3.0, 0.1, {"loss": 0.25, "accuracy": 1.0}, {"accuracy": 0.5, "nc1": 2.0},
        {"nc1": 0.125, "nc2": float("nan")}, {"ratio": 1.5}, events={"stopped": EVIL},
    )  # fmt: skip
    text = record._repr_html_()
    for words in ("Record 1,200", "NC1", ">0.125<", ">2<", ">undefined<", "tr(S_W S_B^+)/K", ">1.5<", "test set"):
        assert words in text, words
    assert EVIL not in text
    assert "&lt;script&gt;" in text
    assert "NC3" not in text
    assert "test set" not in Record(0, 0.0, 0.1, {"loss": 0.25, "accuracy": 1.0})._repr_html_()


def test_a_run_says_what_it_was_and_ends_with_its_last_record():
    records = [Record(epoch, 0.0, 0.1, {"loss": 0.25, "accuracy": 1.0}) for epoch in range(3)]
    run = Run(EVIL, {"data": EVIL, "seed": 0}, {"num_classes": 10}, records)
    text = run._repr_html_()
    assert EVIL not in text
    for words in ("seed", ">0<", "num_classes", "3, the last after 2 epochs", "Record 2"):
        assert words in text, words
    assert repr(run) == f"Run('{EVIL}', 3 records, the last after 2 epochs)"


def test_a_folder_says_what_it_holds(tmp_path):
    place = tmp_path / "<b>run"
    assert "It holds no run." in RunFolder(place)._repr_html_()
    folder = RunFolder.create(place)
    assert "<td" in folder._repr_html_()
    for epoch in (0, 5):
        folder.append(Record(epoch, 0.0, 0.1, {"loss": 0.25, "accuracy": 1.0}))
    text = folder._repr_html_()
    assert "2, from 0 to 5" in text
    assert "&lt;b&gt;run" in text
    assert "<b>run" not in text
    (place / "records.jsonl").write_text("damaged\n{}\n")
    assert "records.jsonl" in folder._repr_html_()
    assert repr(folder) == f"RunFolder({str(place)!r})"
