"""`neuralcollapse landscape`: what is checked, numbered, shown and refused before and while it works."""

import io

import pytest

from neuralcollapse.cli import landscape, main
from neuralcollapse.cli.progress import Progress, duration
from tests.helpers import refused

QUICK = ["landscape", "--classes", "2", "--dim", "2", "--samples", "2", "--starts", "2"]


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_default_file_is_numbered_if_there_is_one(in_a_folder):
    (in_a_folder / "landscape.html").touch()
    assert main(QUICK) == 0
    assert sorted(path.name for path in in_a_folder.iterdir()) == ["landscape-2.html", "landscape.html"]
    assert main([*QUICK, "--force"]) == 0
    assert (in_a_folder / "landscape.html").stat().st_size > 0
    assert len(list(in_a_folder.iterdir())) == 2


def test_figures_and_markdown_are_numbered_too(in_a_folder):
    assert landscape._unused("svg", ["gaps"]).name == "landscape-figures"
    (in_a_folder / "landscape-figures").mkdir()
    assert landscape._unused("svg", ["gaps"]).name == "landscape-figures-2"
    (in_a_folder / "figures").mkdir()
    (in_a_folder / "figures/gaps.png").touch()  # of another Markdown file
    assert landscape._unused("markdown", ["gaps"]).as_posix() == "landscape-2/landscape.md"


def test_options_are_checked_before_the_output_is_looked_at(in_a_folder, capsys):
    (in_a_folder / "there.html").write_text("mine")
    assert "no method 'adamm'" in refused(capsys, *QUICK, "--method", "adamm", "--out", "there.html")
    assert "there.html exists" in refused(capsys, *QUICK, "--out", "there.html")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--classes", "1"], "expected --classes to be"),
        (["--dim", "0"], "expected --dim to be"),
        (["--dim", "2.5"], "expected --dim as a whole number, got '2.5'"),
        (["--samples", "3,4", "--classes", "3"], "expected --samples for 3 classes"),
        (["--weight-decay", "-1"], "expected --weight-decay to be positive"),
        (["--minutes", "0"], "expected --minutes above 0"),
        (["--classes", "100000000"], "GiB of memory"),
        (["--out", "."], "expected --out as a file, got the folder"),
        (["--out", "nowhere/x.html"], "no folder nowhere"),
    ],
)
def test_messages_name_the_options_of_the_command(in_a_folder, capsys, flags, message):
    assert message in refused(capsys, "landscape", *flags)
    assert not list(in_a_folder.iterdir())


def test_what_would_take_too_long_is_refused_with_what_would_not(capsys, monkeypatch):
    monkeypatch.setattr("neuralcollapse.ufm.survey_cost.evaluation_seconds", lambda model: 0.1)
    message = refused(capsys, "landscape", "--classes", "50")
    assert "100 starts by lbfgs would take about 30 min on this machine: with --starts 20 about" in message
    assert "or allow it with --minutes 36" in message
    monkeypatch.setattr("neuralcollapse.ufm.survey_cost.evaluation_seconds", lambda model: 10.0)
    assert "ask for fewer --classes or --samples, --method lbfgs, or" in refused(
        capsys, "landscape", "--classes", "50", "--method", "gd"
    )


def test_an_interrupt_leaves_nothing(in_a_folder, capsys, monkeypatch):
    def interrupted(*args, **options):
        options["on_progress"](0.5)
        raise KeyboardInterrupt

    monkeypatch.setattr("neuralcollapse.ufm.survey.many_starts", interrupted)
    assert main(QUICK) == 130
    assert "interrupted" in capsys.readouterr().err
    assert not list(in_a_folder.iterdir())


def test_every_stage_says_how_far_it_is(monkeypatch):
    now = iter([0.0, 0.0, 1.0, 6.0, 7.0, 30.0])
    monkeypatch.setattr("neuralcollapse.cli.progress.time.monotonic", lambda: next(now))
    stream = io.StringIO()
    progress = Progress(stream)
    progress.stage("the atlas")
    for share in (0.1, 0.25, 0.3, 0.75):
        progress.share(share)
    assert stream.getvalue().splitlines() == ["... the atlas", "    25 %, about 18 s left", "    75 %, about 10 s left"]


def test_a_terminal_is_drawn_over(monkeypatch):
    now = iter([0.0, 1.0, 2.0])
    monkeypatch.setattr("neuralcollapse.cli.progress.time.monotonic", lambda: next(now))
    stream = io.StringIO()
    stream.isatty = lambda: True
    progress = Progress(stream)
    progress.share(0.5)
    progress.stage("the next")
    assert stream.getvalue().endswith("\r... the next\n")


def test_durations_are_said_in_words():
    assert [duration(x) for x in (0.2, 8, 200, 20000)] == ["1 s", "8 s", "3 min", "6 hours"]
