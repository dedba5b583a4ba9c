"""Parts, single runs and jobs: whoever does the runs, the records and the page are those of one process."""

import io
import itertools
import json
import os
import re
import signal
from pathlib import Path

import pytest
import yaml

from neuralcollapse import InputError
from neuralcollapse.cli import main
from neuralcollapse.reproduce import run_one
from neuralcollapse.reproduce.jobs import AllStopped
from neuralcollapse.reproduce.launching import LOGS, Settings, launched, read_settings
from neuralcollapse.reproduce.runner import ExperimentFolder
from neuralcollapse.reproduce.standing import Board, Looks, Standing, standings, table
from tests.helpers import refused
from tests.reproduce.test_runner import records_of

pytestmark = pytest.mark.filterwarnings("ignore::neuralcollapse.NeuralCollapseWarning")
FEW = {"epochs": 2, "decay_warmup": 0}
NAMES = ["all-parameters-seed0", "w-h-and-b-seed0"]


def begun(place: Path, changes=FEW) -> ExperimentFolder:
    return ExperimentFolder.create("feature-decay", "smoke", place, changes)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Both runs one after the other in this process, without a page."""
    folder = begun(tmp_path_factory.mktemp("alone") / "out")
    folder.run(progress=False)
    return folder


def seen(page: str) -> str:
    """A page without the times in it."""
    return re.sub(r"\d+(\.\d+)? s in all|[\d.e-]+ s|\"seconds\":[\d.e-]+", "", page)


def test_the_parts_of_an_experiment_are_all_of_it_each_once(tmp_path):
    folder = ExperimentFolder.create("optimizers", "laptop", tmp_path / "out")
    names = [run.name for run in folder.experiment.runs]
    for count in (1, 2, 5, len(names) + 3):
        parts = [folder.experiment.chosen((), (index, count)) for index in range(1, count + 1)]
        assert sorted(itertools.chain(*parts)) == sorted(names)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert folder.experiment.chosen(names[:3], (2, 2)) == names[1:2]
    with pytest.raises(InputError, match="expected a part from 1/2 to 2/2, got 0/2"):
        folder.experiment.chosen((), (0, 2))
    with pytest.raises(InputError, match="did you mean 'adam-seed0'"):
        folder.experiment.chosen(["adam-sed0"])


def test_run_one_writes_the_page_with_the_last_run(alone, tmp_path):
    folder = begun(str(tmp_path / "out"))
    assert run_one(folder.path, NAMES[1]) is None
    assert not (folder.path / "report.html").exists()
    page = run_one(folder.path, NAMES[0])
    assert page == folder.path / "report.html"
    assert page.is_file()
    assert records_of(folder) == records_of(alone)
    written = page.stat().st_mtime_ns
    assert run_one(folder.path, NAMES[0]) == page, "a run that is whole is left as it is"
    assert page.stat().st_mtime_ns >= written
    with pytest.raises(InputError, match="no run 'all'"):
        run_one(folder.path, "all")
    with pytest.raises(InputError, match="experiment"):
        run_one(tmp_path, NAMES[0])


def test_parts_on_the_command_line_share_an_experiment(alone, capsys, tmp_path):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(shortened(), sort_keys=False))
    command = ["reproduce", str(tmp_path / "mine.yaml"), "--scale", "smoke", "--out", str(tmp_path / "out")]
    assert main([*command, "--part", "1/2"]) == 0
    out = capsys.readouterr().out
    assert f"{NAMES[0]}  whole" in out
    assert f"{NAMES[1]}       waits" in out
    assert "1 whole, 1 waits" in out
    assert main([*command, "--part", "1/2", "--json"]) == 0
    assert [run["state"] for run in json.loads(capsys.readouterr().out)["runs"]] == ["whole", "waits"]
    assert main([*command, "--only", NAMES[1]]) == 0
    assert "page  " in capsys.readouterr().out
    assert (tmp_path / "out" / "report.html").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--part", "2"], "expected I/N, such as 2/8, got '2'"),
        (["--part", "3/2"], "expected a part from 1/2 to 2/2, got 3/2"),
        (["--only", "none"], "no run 'none'"),
        (["--launcher-config", "x.yaml"], "is for --launcher submitit"),
        (["--launcher", "submitit", "--jobs", "2"], "leave out one of them"),
        (["--launcher", "submitit", "--launcher-config", "missing.yaml"], "missing.yaml"),
    ],
)
def test_wrong_words_are_one_line(capsys, tmp_path, words, message):
    command = ["reproduce", "feature-decay", "--scale", "smoke", "--out", tmp_path / "out"]
    assert message in refused(capsys, *command, *words)
    assert not (tmp_path / "out").exists()


def test_settings_are_read_and_refused(tmp_path):
    pytest.importorskip("submitit")
    file = tmp_path / "slurm.yaml"
    file.write_text("cluster: local\ntimeout_min: 5\n")
    assert read_settings(file) == Settings("local", {"timeout_min": 5})
    assert read_settings(None) == Settings(None, {})
    file.write_text("cluster: pbs\n")
    with pytest.raises(InputError, match="expected cluster slurm or local, got 'pbs'"):
        read_settings(file)
    folder = begun(tmp_path / "out")
    for wrong in ({"gpu_per_nodes": 1}, {"timeout_min": "long"}, {"name": 3}):
        with pytest.raises(InputError, match=f"submitit does not take these settings: .*{next(iter(wrong))}"):
            launch(folder, NAMES, wrong)


def launch(folder, names, parameters=None, look=lambda failed, now: None, said=None):
    settings = Settings("local", parameters or {})
    return launched(folder.path, names, settings, on_message=(said or []).append, look=look)


@pytest.mark.slow
def test_jobs_leave_the_records_of_one_process_and_one_that_is_killed_goes_on(alone, tmp_path):
    pytest.importorskip("submitit")
    folder, board = begun(tmp_path / "out", {"epochs": 12, "decay_warmup": 0}), Board(io.StringIO())
    killed = []

    def kill_the_first(failed, now):
        Looks(folder, board)(failed, True)
        if not killed and (folder.path / NAMES[0] / "records.jsonl").is_file():
            owner = (folder.path / NAMES[0] / ".lock").read_text()
            killed.append(int(re.search(r"pid (\d+)", owner).group(1)))
            os.kill(killed[0], signal.SIGKILL)

    elsewhere, failed = launch(folder, NAMES, look=kill_the_first)
    assert (elsewhere, list(failed)) == ([], NAMES[:1])
    assert [run.name for run in folder.missing()] == NAMES[:1]
    assert f"... {NAMES[0]}: failed" in board.stream.getvalue()
    assert launch(folder, NAMES[:1]) == ([], {})
    whole = begun(tmp_path / "whole", {"epochs": 12, "decay_warmup": 0})
    whole.run(progress=False)
    assert records_of(folder) == records_of(whole)
    pages = [run_one(each.path, NAMES[0]).read_text() for each in (folder, whole)]
    assert len(pages[0]) == pytest.approx(len(pages[1]), rel=0.01)
    assert (folder.path / LOGS).is_dir()


@pytest.mark.slow
def test_a_signal_stops_local_jobs_which_save(tmp_path):
    pytest.importorskip("submitit")
    folder = begun(tmp_path / "out", {"epochs": 500, "decay_warmup": 0})
    left = [signal.SIGINT]

    def interrupt(failed, now):
        if left and (folder.path / NAMES[0] / "records.jsonl").is_file():
            signal.raise_signal(left.pop())

    with pytest.raises(AllStopped, match="all runs stopped, and saved"):
        launch(folder, NAMES[:1], look=interrupt)
    assert (folder.path / NAMES[0] / "state.pt").is_file()
    assert not list(folder.path.rglob(".lock"))


def test_the_table_says_how_far_each_run_is(alone, tmp_path):
    runs = alone.experiment.runs
    found = standings(alone.path, runs, missing=[])
    assert [(each.state, each.epoch, each.epochs) for each in found] == [("whole", 2, 2)] * 2
    assert all(0 <= each.accuracy <= 1 and each.nc1 > 0 for each in found)
    nothing = standings(tmp_path, runs, missing=NAMES, failed=NAMES[:1])
    assert [each.state for each in nothing] == ["failed", "waits"]
    lines = table([*nothing, Standing("third", "runs", 3, 40, 0.5, 0.25)])
    assert lines[0].split() == ["run", "state", "epoch", "train", "acc.", "NC1"]
    assert lines[-1] == "1 runs, 1 waits, 1 failed"
    assert "3 of 40  0.5000" in lines[3]


def test_the_board_is_drawn_again_in_its_place_on_a_terminal_only():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    first, second = [Standing("a", "waits")], [Standing("a", "runs", 1, 2)]
    terminal, log = Board(Terminal()), Board(io.StringIO())
    for board in (terminal, log):
        for found in (first, first, second):
            board.show(found)
    assert terminal.stream.getvalue() == "\n".join(table(first)) + "\n\x1b[3F\x1b[J" + "\n".join(table(second)) + "\n"
    assert log.stream.getvalue() == "... a: runs\n"


def shortened() -> dict:
    """The experiment's file with two epochs."""
    from neuralcollapse.reproduce.experiment import text_of

    whole = yaml.safe_load(text_of("feature-decay"))
    whole["scales"]["smoke"]["options"] = {**whole["scales"]["smoke"].get("options", {}), **FEW}
    return whole
