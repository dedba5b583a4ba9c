"""--force, force=True and a second writer: nothing of the user's is lost, whichever command or class is asked."""

import json
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import neuralcollapse as nc
from neuralcollapse import InputError
from neuralcollapse.cli import main
from neuralcollapse.runs.folder import RunFolder
from neuralcollapse.training.config import TrainConfig
from neuralcollapse.training.run import resume, train
from tests.helpers import SmallNet, files_in, refused, small_loader

NETWORK = [
    "--network",
    "mlp",
    "--network-options",
    '{"width": 32, "depth": 2}',
    "--feature-dim",
    "16",
    "--data",
    "digits",
]
QUICK = ["--epochs", "1", "--width", "8", "--depth", "2", "--feature_dim", "10", "--loggers=[]"]


@pytest.fixture
def exp1(short_run, tmp_path, monkeypatch) -> Path:
    """A run of a training, in the current folder."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(short_run.path, "exp1"))


@pytest.fixture
def loader():
    return small_loader(batch_size=10)


@pytest.mark.parametrize("force", [[], ["--force"]])
@pytest.mark.parametrize("pattern", ["exp1/checkpoints/*.safetensors", "./exp1/../exp1/checkpoints/epoch-00002.*"])
def test_the_checkpoints_to_measure_are_never_what_is_overwritten(pattern, force, exp1, capsys):
    before = files_in(exp1)
    message = refused(capsys, "measure", *NETWORK, "--checkpoints", pattern, "--out", "exp1", *force)
    assert "which is still needed: choose another (--out)" in message
    assert "--force" not in message
    assert files_in(exp1) == before


def test_nor_those_that_lie_in_the_folder_of_an_earlier_measurement(exp1, capsys):
    flags = ["measure", *NETWORK, "--checkpoints", "exp1/checkpoints/*.safetensors", "--out", "measured"]
    assert main([*flags, "--json"]) == 0
    assert "--force" in refused(capsys, *flags, "--no-pairwise")  # nothing would be lost
    shutil.copytree("exp1/checkpoints", "measured/checkpoints", dirs_exist_ok=True)
    before = files_in("measured")
    inside = ["measure", *NETWORK, "--checkpoints", "measured/checkpoints/*", "--out", "measured"]
    for given in (["--force"], ["--no-pairwise"], []):
        assert "--force" not in refused(capsys, *inside, *given)
    assert "holds checkpoints/epoch-00002.safetensors" in refused(capsys, *flags, "--force")
    assert files_in("measured") == before


@pytest.mark.parametrize("force", [[], ["--force"]])
@pytest.mark.parametrize("what", ["data", "config", "own config", "network"])
def test_no_run_takes_the_place_of_its_own_data_or_configuration(what, force, exp1, capsys):
    if what == "data":
        shutil.copytree(exp1 / "geometry", exp1 / "logs" / "csv" / "version_0", dirs_exist_ok=True)
        flags = ["--data", f"imagefolder:{exp1 / 'logs'}"]
    elif what == "network":
        flags = ["--network", f"transformers:{exp1 / 'geometry'}"]
    else:
        (exp1 / "mine.yaml").write_text("epochs: 1\n")
        flags = ["--config", "exp1/mine.yaml"] if what == "config" else ["--config", "exp1/checkpoints/../mine.yaml"]
    before = files_in(exp1)
    message = refused(capsys, "train", "--out", "exp1", *flags, *force)
    assert "choose another (--out)" in message
    assert "--force" not in message
    assert files_in(exp1) == before


def test_a_run_that_cannot_begin_leaves_the_earlier_one(exp1, monkeypatch, capsys):
    from neuralcollapse.training import run as module

    before = files_in(exp1)
    flags = ["train", "--out", "exp1", "--force", *QUICK]
    assert main([*flags, "--learning_rate", "1e30"]) == 2  # diverges after the first record
    shutil.rmtree("exp1", ignore_errors=True)
    for name, content in before.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content)
    for error in (RuntimeError, KeyboardInterrupt):

        def collect(*_, error=error, **__):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr("neuralcollapse.loops.recorder.collect", collect)
            with pytest.raises(error):
                train(module.TrainConfig(epochs=1, loggers=()), "exp1", force=True, progress=False)
        assert files_in(exp1) == before


def test_in_python_too(exp1, loader):
    torch.save(SmallNet().state_dict(), exp1 / "epoch-1.pt")
    before = files_in(exp1)
    asked = [
        lambda: nc.measure_checkpoints(SmallNet(), exp1 / "epoch-1.pt", loader, out=exp1, force=True, progress=False),
        lambda: nc.Recorder(loader, out=exp1, force=True),
        lambda: train(TrainConfig(epochs=1), exp1, force=True, progress=False),
    ]
    for ask in asked:
        with pytest.raises(nc.InputError, match=r"holds .*epoch-1\.pt"):
            ask()
    assert files_in(exp1) == before


def test_a_recorders_weights_of_ones_own_are_kept(loader, tmp_path):
    nc.Recorder(loader, out=tmp_path, progress=False).measure(SmallNet(), 0)
    mine = tmp_path / "checkpoints" / "epoch-00000.safetensors"
    mine.write_text("mine")
    with pytest.raises(nc.InputError, match=r"holds checkpoints/epoch-00000\.safetensors, not written by this library"):
        nc.Recorder(loader, out=tmp_path, force=True)
    assert mine.read_text() == "mine"


@contextmanager
def held_by_another(folder):
    code = (
        "import sys; from neuralcollapse.runs.locks import hold; h = hold(sys.argv[1]); print(1, flush=True); input()"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout.readline()
        yield child.pid
    finally:
        child.kill()
        child.communicate()


def test_there_is_one_writer_a_run(exp1, loader, capsys):
    nc.Recorder(loader, out="recorded", progress=False).measure(SmallNet(), 0)
    flags = [*NETWORK, "--checkpoints", "exp1/checkpoints/*", "--out", "measured"]
    assert main(["measure", *flags, "--json"]) == 0
    before = files_in(".")
    with held_by_another("exp1") as pid, held_by_another("measured"), held_by_another("recorded"):
        for arguments in (
            ["train", "--resume", "exp1", "--epochs", "9"],
            ["train", "--out", "exp1", "--force"],
            ["train", "--out", "exp1"],
            ["measure", *NETWORK, "--checkpoints", "exp1/checkpoints/*", "--out", "exp1"],
            ["measure", *flags],
            ["measure", *flags, "--force"],
        ):
            message = refused(capsys, *arguments)
            assert "is being written by another process (pid " in message
            assert "wait for it, or choose another folder" in message
        assert f"(pid {pid} on " in refused(capsys, "train", "--resume", "exp1")
        for options in ({"force": True}, {"resume": True}, {}):
            with pytest.raises(nc.InputError, match="is being written by another process"):
                nc.Recorder(loader, out="recorded", **options)
        assert main(["measure", "exp1", "--json"]) == 0  # to read is no harm
        assert main(["report", "exp1", "--out", "page.html"]) == 0
    Path("page.html").unlink()
    assert files_in(".") == before
    nc.Recorder(loader, out="recorded", resume=True, progress=False).measure(SmallNet(), 1)


def test_in_a_notebook_a_second_recorder_goes_on_where_the_first_was(loader, tmp_path):
    first = nc.Recorder(loader, out=tmp_path / "run", progress=False)
    first.measure(SmallNet(), 0)
    nc.Recorder(loader, out=tmp_path / "run", resume=True, progress=False).measure(SmallNet(), 1)
    again = nc.Recorder(loader, out=tmp_path / "run", force=True, progress=False)
    again.measure(SmallNet(), 5)
    lines = (tmp_path / "run/records.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [5]


def test_a_run_of_another_kind_may_take_the_place_of_a_training(exp1, loader):
    nc.Recorder(loader, out=exp1, force=True, progress=False).measure(SmallNet(), 0)
    left = sorted(str(path.relative_to(exp1)) for path in exp1.rglob("*") if path.name != ".lock")
    assert left == [
        "checkpoints",
        "classes",
        "classes/epoch-00000.npz",
        "config.yaml",
        "environment.json",
        "geometry",
        "geometry/epoch-00000.npz",
        "records.jsonl",
    ]
    assert main(["train", "--out", "exp1", "--force", *QUICK]) == 0
    assert not (exp1 / ".earlier").exists()


def test_a_finished_command_leaves_no_lock(exp1, capsys):
    assert main(["train", "--out", "exp1", "--force", *QUICK]) == 0
    assert main(["train", "--resume", "exp1", "--epochs", "2"]) == 0
    assert not list(Path().rglob(".lock"))
    assert not list(Path().rglob(".earlier"))


@pytest.mark.parametrize("name", ["records.jsonl", "config.yaml", "state.pt", "checkpoints/epoch-00002.safetensors"])
@pytest.mark.parametrize("kind", ["html", "markdown"])
@pytest.mark.parametrize("force", [[], ["--force"]])
def test_a_page_never_takes_the_place_of_what_it_is_made_from(name, kind, force, exp1, capsys):
    before = files_in(exp1)
    message = refused(capsys, "report", "exp1", "--format", kind, "--out", f"./exp1/{name}", *force)
    assert "is a file of the run: choose another with --out" in message
    assert "--force" not in message
    assert files_in(exp1) == before


def test_the_images_of_a_markdown_page_overwrite_nothing_unasked(exp1, capsys):
    Path("figures").mkdir()
    Path("figures/loss.png").write_text("mine")
    assert "figures/loss.png exists" in refused(capsys, "report", "exp1", "--format", "markdown", "--out", "page.md")
    assert (Path("figures/loss.png").read_text(), Path("page.md").exists()) == ("mine", False)
    assert main(["report", "exp1", "--format", "markdown", "--out", "page.md", "--force"]) == 0


def test_logs_of_loggers_that_the_run_had_not_are_others(tmp_path, short_run):
    run = tmp_path / "run"
    shutil.copytree(short_run.path, run)
    for name in ("logs/wandb/mydata.csv", "logs/mlflow.db"):
        file = run / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("mine")
        with pytest.raises(InputError, match="not written by this library"):
            RunFolder.check_free(run, force=True)
        file.unlink()
    shutil.rmtree(run / "logs" / "wandb")
    RunFolder.check_free(run, force=True)


def test_a_whole_run_without_its_state_is_left_as_it_is(tmp_path, short_run):
    run = tmp_path / "run"
    shutil.copytree(short_run.path, run)
    (run / "state.pt").unlink()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    resume(run, progress=False)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"} == before
    with pytest.raises(InputError, match=r"no state\.pt to go on from"):
        resume(run, {"epochs": 9}, progress=False)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"} == before


def test_images_that_no_memory_holds_are_one_line(capsys):
    assert main(["train", "--data", "digits", "--image_size", "10000000", "--out", "never"]) == 2
    assert "too large for this machine" in capsys.readouterr().err
    assert not Path("never").exists()
