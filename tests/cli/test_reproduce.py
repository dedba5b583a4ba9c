import json
import shutil

import pytest
import yaml

from neuralcollapse.cli import main
from neuralcollapse.reproduce.experiment import names
from tests.helpers import refused


@pytest.fixture(scope="module")
def landscape(tmp_path_factory):
    place = tmp_path_factory.mktemp("landscape") / "out"
    assert main(["reproduce", "landscape", "--scale", "smoke", "--out", str(place)]) == 0
    return place


def test_reproduce_alone_lists_the_experiments(capsys):
    assert main(["reproduce"]) == 0
    text = capsys.readouterr().out
    for name in names():
        assert f"\n{name}  " in f"\n{text}"
    assert "Fashion-MNIST (2,000 images of it)" in text
    assert main(["reproduce", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [item["name"] for item in found] == names()
    assert found[0]["scales"]["laptop"]["minutes"] > 0


def test_show_prints_the_yaml(capsys):
    assert main(["reproduce", "losses", "--show"]) == 0
    assert "MSE" in yaml.safe_load(capsys.readouterr().out)["vary"]["loss"]


def test_wrong_names_and_scales_are_refused(capsys, tmp_path):
    assert "did you mean 'optimizers'" in refused(capsys, "reproduce", "optimisers", "--out", tmp_path / "x")
    assert "expected a scale" in refused(capsys, "reproduce", "losses", "--scale", "small", "--out", tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("kind: curve, key: nc2}", "kind: curv, key: nc2}", "did you mean 'curve'"),
        ("kind: curve, key: nc2}", "kind: curve, key: nc9}", "no number 'nc9'"),
        ("kind: curve, key: nc2}", "kind: curve, kye: nc2}", "figure 'curve'"),
        ("kind: curve, key: nc2}", "kind: axis, key: nc2, axis: loss}", "expected numbers as the values of loss"),
        ("axis: loss", "axis: lots", "no axis 'lots'"),
    ],
)
def test_a_figure_that_there_is_not_is_refused_before_anything_runs(capsys, tmp_path, old, new, message):
    assert main(["reproduce", "losses", "--show"]) == 0
    text = capsys.readouterr().out
    assert old in text
    (tmp_path / "mine.yaml").write_text(text.replace(old, new))
    out = tmp_path / "out"
    assert message in refused(capsys, "reproduce", tmp_path / "mine.yaml", "--scale", "smoke", "--out", out)
    assert not out.exists()


def test_a_smoke_run_says_that_it_tests_the_machinery(landscape, capsys):
    assert main(["reproduce", "landscape", "--scale", "smoke", "--out", str(landscape)]) == 0
    out, err = capsys.readouterr()
    assert "a smoke run tests the machinery" in err
    assert "to test the claim: neuralcollapse reproduce landscape" in out


def test_an_experiment_from_the_command_line(landscape, capsys):
    assert main(["reproduce", "landscape", "--scale", "smoke", "--out", str(landscape), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["verdict"] == "not tested"
    assert [item["holds"] for item in values["findings"]] == [True, True]
    assert (landscape / "report.html").is_file()


def test_an_experiment_as_a_report(landscape, tmp_path, capsys):
    assert main(["report", str(landscape), "--format", "markdown"]) == 0
    text = capsys.readouterr().out
    assert "proves nothing of the claim: 2 of 2 checks hold.**" in text
    assert "**A smoke run, which tests the machinery" in text
    assert main(["report", str(landscape), "--format", "markdown", "--out", str(tmp_path / "r.md")]) == 0
    assert "(figures/energy.png)" in (tmp_path / "r.md").read_text()
    assert (tmp_path / "figures/gaps.png").read_bytes()[:4] == b"\x89PNG"
    assert "give it alone" in refused(capsys, "report", landscape, landscape)


def test_a_page_of_several_runs(short_run, tmp_path, capsys):
    for name in ("a", "b"):
        shutil.copytree(short_run.path, tmp_path / name / "run")
    runs = [str(tmp_path / name / "run") for name in ("a", "b")]
    assert main(["report", *runs, "--out", str(tmp_path / "both.html")]) == 0
    page = (tmp_path / "both.html").read_text()
    assert "a/run" in page
    assert "b/run" in page
    assert "--force" in refused(capsys, "report", *runs, "--out", tmp_path / "both.html")
    assert "given twice" in refused(capsys, "report", runs[0], runs[0], "--out", tmp_path / "c.html")


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_figures_for_a_paper(short_run, tmp_path, kind):
    assert main(["report", str(short_run.path), "--format", kind, "--out", str(tmp_path / "f")]) == 0
    assert (tmp_path / f"f/variability.{kind}").stat().st_size > 1000


def test_an_unknown_format_is_refused(short_run, capsys):
    assert "png, svg, pdf, markdown" in refused(capsys, "report", short_run.path, "--format", "jpeg")


def test_names_are_text_not_markup(short_run, tmp_path, capsys):
    evil = "<img src=x onerror=alert(1)>"
    for name in (evil, "other"):
        shutil.copytree(short_run.path, tmp_path / name)
    arguments = ["report", str(tmp_path / evil), str(tmp_path / "other")]
    assert main([*arguments, "--out", str(tmp_path / "page.html")]) == 0
    assert "<img" not in (tmp_path / "page.html").read_text().split("<script>")[0]
    assert '"<img' not in (tmp_path / "page.html").read_text()
    capsys.readouterr()
    assert main([*arguments, "--format", "markdown"]) == 0
    assert "<img" not in capsys.readouterr().out
