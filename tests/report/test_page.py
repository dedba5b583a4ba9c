import base64
import gzip
import json
import math
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from neuralcollapse import InputError
from neuralcollapse.report.comparison import comparison_page
from neuralcollapse.report.figure import Figure, HeatMap, Line
from neuralcollapse.report.formulas import formula
from neuralcollapse.report.page import page_script, widths
from neuralcollapse.report.single import shown, single_page, verdict, write_page
from neuralcollapse.runs.folder import RunFolder
from neuralcollapse.runs.reading import Run, read_run
from neuralcollapse.runs.records import MEASURES, Record


def render(run: RunFolder) -> str:
    return single_page(read_run(run.path)).html()


@pytest.fixture(scope="module")
def page(short_run) -> str:
    return render(short_run)


class Sources(HTMLParser):
    """Everything that a browser would fetch, and the text outside scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.text: list[str] = []
        self.inside = ""

    def handle_starttag(self, tag, attributes):
        self.inside = tag
        for name, value in attributes:
            if name in ("src", "href", "srcset", "data") and not (value or "").startswith("data:"):
                self.fetched.append(f"{tag} {name}={value}")

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside not in ("script", "style"):
            self.text.append(data)


def test_the_page_is_one_file_that_fetches_nothing(page):
    sources = Sources()
    sources.feed(page)
    assert sources.fetched == []
    assert len(page.encode()) < 300_000


def test_the_page_holds_the_figures_data_and_the_last_record(page, short_run):
    figures = json.loads(re.search(r"const figures = (\[.*?\]);\n", page).group(1))
    assert [figure["name"] for figure in figures] == [
        "loss",
        "accuracy",
        "variability",
        "simplex",
        "nearest",
        "cosines",
        "simplex-motion",
        "scree",
    ]
    for figure in figures:
        assert f'id="{figure["name"]}"' in page
    last = short_run.records()[-1]
    assert verdict(short_run.records()).replace("'", "&#39;") in page
    assert f"{last.test['accuracy']:.4f}" in page


def test_the_verdict_states_the_records_facts():
    def at(epoch: int, nc1: float) -> Record:
        return Record(epoch, 0.0, 0.1, {"loss": 1.0, "accuracy": 0.5}, {"loss": 1.0, "accuracy": 0.25}, {"nc1": nc1})

    assert verdict([at(0, 2.0), at(9, 0.5)]) == (
        "Not collapsed after 9 epochs: train accuracy 0.5000, test accuracy 0.2500; "
        "NC1 went from 2 to 0.5 (4 times less)."
    )
    assert "NC1 went from 0.5 to 2 (4 times more)" in verdict([at(0, 0.5), at(9, 2.0)])
    assert "NC1 undefined" in verdict([at(0, float("nan"))])


def test_the_verdict_speaks_of_the_unit_and_of_what_is_undefined():
    def at(count: int) -> Record:
        return Record(count, math.nan, math.nan, {}, {"loss": 1.0}, {})

    undefined = "train accuracy undefined, test accuracy undefined; NC1 undefined."
    assert verdict([at(0), at(1)]) == f"Not collapsed after 1 epoch: {undefined}"
    assert verdict([at(0), at(1500)], "step") == f"Not collapsed after 1,500 steps: {undefined}"
    assert verdict([at(3)], "checkpoint") == f"Not collapsed at checkpoint 3: {undefined}"


@pytest.mark.parametrize("unit", ["epoch", "step", "checkpoint"])
def test_a_run_of_little_has_a_page_in_its_unit(unit):
    """No geometry, no seed, no learning rate, no accuracy, measures that are undefined."""
    records = [Record(count, math.nan, math.nan, {}, {}, {"nc1": math.nan}) for count in (0, 2000)]
    run = Run("mine", {"unit": unit, "data": "TensorDataset"}, {}, records)
    page = single_page(run)
    assert page.title == "Neural collapse: mine"
    assert page.subtitle == ""
    assert {figure.x.title for figure in page.figures} == {unit}
    assert page.tables[0].header == ("measure", f"{unit} 0", f"{unit} 2,000")
    assert f",{unit},seconds" in page.csv[1].splitlines()[0]
    others = {"epoch", "step", "checkpoint"} - {unit}
    words = [page.verdict, *(figure.alt + figure.caption for figure in page.figures), *page.tables[0].header]
    assert not [text for text in words for other in others if other in text]
    page.html()


def test_runs_of_different_units_are_side_by_side():
    def run(unit: str) -> Run:
        records = [Record(count, 1.0, 0.1, {"accuracy": 0.5}, {}, {"nc1": 1.0 / (count + 1)}) for count in (0, 5)]
        return Run(unit, {"unit": unit}, {}, records)

    page = comparison_page([run("step"), run("epoch")])
    assert page.figures[0].x.title == "step or epoch"
    assert page.tables[1].header[2] == "steps or epochs"
    assert page.csv[1].splitlines()[0].startswith("run,seed,step,")
    assert comparison_page([run("step")]).tables[0].header[2] == "steps"
    page.html()


def test_long_lists_are_cut_short():
    assert shown([0] * 3) == "0, 0, 0"
    assert shown(list(range(100))).endswith("19, ... (100 in all)")


def copied(run: RunFolder, to) -> RunFolder:
    shutil.copytree(run.path, to)
    return RunFolder(to)


def test_names_from_users_are_escaped(short_run, tmp_path):
    run = copied(short_run, tmp_path / "run")
    environment = json.loads(run.read_text("environment.json"))
    environment["class_names"][0] = "</script><script>alert(1)</script>"
    environment["note"] = "<img src=x onerror=alert(1)>"
    run.write_text("environment.json", json.dumps(environment))
    sources = Sources()
    text = render(run)
    sources.feed(text)
    assert sources.fetched == []
    assert text.count("alert(1)</script>") == 0


@pytest.mark.parametrize(("name", "text"), [("config.yaml", "a: ["), ("environment.json", "[1]")])
def test_damaged_files_are_named(short_run, tmp_path, name, text):
    run = copied(short_run, tmp_path / "run")
    run.write_text(name, text)
    with pytest.raises(InputError, match=f"{name} is damaged"):
        render(run)


def test_a_place_that_cannot_be_written_is_one_clear_error(short_run, tmp_path):
    with pytest.raises(InputError, match="cannot write"):
        write_page(short_run, tmp_path / "missing" / "page.html")


def test_many_pages_share_one_copy_of_the_script(short_run, tmp_path):
    for page in (tmp_path / "a.html", tmp_path / "b.html"):
        assert write_page(short_run, page, shared_assets=True) == page
    (shared,) = tmp_path.glob("*.js")
    assert shared.read_text(encoding="utf-8") == page_script()
    text = (tmp_path / "b.html").read_text(encoding="utf-8")
    assert f'<script src="{shared.name}"' in text
    assert len(text) < len(render(short_run)) - len(page_script()) / 2
    shared.write_text("torn")
    write_page(short_run, tmp_path / "a.html", shared_assets=True)
    assert shared.read_text(encoding="utf-8") == page_script()


def test_long_files_are_kept_compressed_and_always_alike(short_run):
    rows = "a,b\n" + "1,2\n" * 20_000
    page = replace(single_page(read_run(short_run.path)), csv=("records.csv", rows))
    text = page.html()
    assert text == page.html()
    packed = json.loads(re.search(r"const files = (\{.*?\});\n", text).group(1))["records.csv"]["gzip"]
    assert gzip.decompress(base64.b64decode(packed)).decode() == rows


def test_the_cards_name_the_limits_and_which_number_is_off():
    def cards(**measures):
        record = Record(3, 0.0, 0.1, {"accuracy": 0.995}, {}, {"nc2_means": 0.15, "nc3": 0.3} | measures)
        return {card[0]: card[3:] for card in single_page(Run("a", {}, {}, [record])).cards}

    assert cards(nc1=0.01) == {
        "train accuracy": ("at least 0.99", True),
        "NC1": ("at most 0.1", True),
        "NC2, means": ("at most 0.2", True),
        "NC3": ("at most 0.2", False),
    }
    assert cards(nc1=math.nan)["NC1"] == ("at most 0.1", False)


def test_every_measure_has_its_formula_as_well_formed_mathml():
    worded = {key for key in MEASURES if not formula(key)}
    assert worded == {"nc4", "ncc_accuracy", "nc_bias_centered"}
    for key in MEASURES.keys() - worded:
        assert ElementTree.fromstring(formula(key)).tag == "math"


def test_a_run_without_geometry_still_has_its_curves(short_run, tmp_path):
    run = copied(short_run, tmp_path / "run")
    shutil.rmtree(run.path / "geometry")
    assert 'id="cosines"' not in render(run)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("digits", "digits"),
        ("fashion-mnist:/data/fashion", "fashion-mnist"),
        ("imagefolder:/data/pets", "pets"),
        ("uoft-cs/cifar10", "uoft-cs/cifar10"),
    ],
)
def test_the_title_names_the_data_without_their_folder(data, name, short_run, tmp_path):
    run = RunFolder(shutil.copytree(short_run.path, tmp_path / "run"))
    config = run.read_text("config.yaml")
    run.write_text("config.yaml", config.replace("data: digits", f"data: {data}"))
    assert f"<h1>Neural collapse: {name}, mlp</h1>" in render(run)


def test_options_left_out_are_not_listed(short_run):
    rows = re.findall(r"<td>(\w+)</td>", render(short_run))
    assert "weight_decay" in rows
    assert not {"imbalance", "milestones", "network_options"} & set(rows)


def test_the_page_of_a_run_with_a_head_says_with_which_model_it_is_compared():
    head = {"objective": 0.3, "minimum": 0.25, "ratio": 1.2, "lower_bound": 0.2, "nonnegative": 1, "exact": 1}
    record = Record(0, 0.0, 0.1, {"loss": 1.0, "accuracy": 0.5}, {}, {"nc1": 0.5}, head)
    tables = {table.heading: table for table in single_page(Run("a", {}, {}, [record])).tables}
    rows = tables["The head against its optimum at epoch 0"].rows
    assert [row[0] for row in rows] == ["model", "ratio", "bound"]
    assert rows[0][1] == "cross-entropy, features >= 0"
    without = single_page(Run("a", {}, {}, [replace(record, head={})])).tables
    assert not any("head" in table.heading for table in without)


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ("sss", ["", "", ""]),
        ("ssmm", ["large"] * 4),
        ("ssssmm", [""] * 6),
        ("ssssm", ["large"] * 5),
        ("sssssmm", ["", "", "", "large", "large", "large", "large"]),
        ("sssmms", ["", "", "", "", "", ""]),
        ("smms", ["whole", "large", "large", "whole"]),
        ("s", ["whole"]),
    ],
)
def test_no_row_of_figures_has_a_gap(kinds, expected):
    """s: a small figure, m: a map."""
    heat = HeatMap(["a"], ["a"], np.zeros((1, 1, 1)), -1, 1, "cos", "")
    marks = {"s": [Line("a", [1], [1], "#000000")], "m": [heat]}
    figures = [Figure(f"f{i}", "", "", "", marks[kind]) for i, kind in enumerate(kinds)]
    assert widths(figures) == expected
