"""Several processes of one run: what torchrun and SLURM started, requeueing, errors that mean that one is gone."""

import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from neuralcollapse import InputError, cli
from neuralcollapse.data.batches import Batches
from neuralcollapse.data.splits import Split
from neuralcollapse.training.callbacks import SaveState
from neuralcollapse.training.config import TrainConfig
from neuralcollapse.training.processes import LostProcess, as_launched, counts_by_epoch, lost
from neuralcollapse.training.resume import State, _step_here
from neuralcollapse.training.slurm import job_id, requeue
from neuralcollapse.training.step import Classification

FLAGS = ["--epochs", "2", "--width", "12", "--depth", "2", "--feature-dim", "10", "--samples-per-class", "30"]
FLAGS += ["--batch-size", "50", "--loggers", "[]"]


@pytest.fixture(autouse=True)
def outside(monkeypatch):
    """Neither torchrun nor SLURM, until a test says so."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "TORCHELASTIC_")):
            monkeypatch.delenv(name)


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A SLURM job, and a stand-in for scontrol that notes what it was asked for."""
    script = tmp_path / "bin" / "scontrol"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "1234")
    return script


@pytest.fixture
def comes(monkeypatch):
    """comes(signum): that signal comes in the third step of the second epoch, once."""

    def at(signum: signal.Signals) -> None:
        original, left = Classification.training_step, [signum]

        def training_step(self, *args):
            if left and (self.current_epoch, self.step) == (1, 2):
                signal.raise_signal(left.pop())
            return original(self, *args)

        monkeypatch.setattr(Classification, "training_step", training_step)

    return at


def asked(slurm: Path) -> list[str]:
    notes = slurm.parents[1] / "asked"
    return notes.read_text().splitlines() if notes.exists() else []


# Requeueing


def test_at_sigusr1_the_run_saves_and_its_job_is_queued_again_where_asked(tmp_path, slurm, comes, capsys):
    command = ["train", "--out", str(tmp_path / "run"), "--resume", "--requeue", *FLAGS]
    comes(signal.SIGUSR1)
    assert cli.main(command) == 128 + signal.SIGUSR1
    assert asked(slurm) == ["requeue 1234"]
    assert capsys.readouterr().err.splitlines()[-1] == "neuralcollapse: SLURM's job 1234 is queued again"
    assert cli.main(command) == 0, "the same command goes on"
    assert "collapse after 2 epochs" in capsys.readouterr().out
    records = (tmp_path / "run" / "records.jsonl").read_text()
    assert cli.main(command) == 0, "and leaves a run alone that is whole"
    assert (tmp_path / "run" / "records.jsonl").read_text() == records
    assert asked(slurm) == ["requeue 1234"]


@pytest.mark.parametrize(("signum", "flags"), [(signal.SIGTERM, ["--requeue"]), (signal.SIGUSR1, [])])
def test_a_job_that_was_cancelled_or_did_not_ask_is_not_queued_again(signum, flags, tmp_path, slurm, comes):
    comes(signum)
    assert cli.main(["train", "--out", str(tmp_path / "run"), "--resume", *flags, *FLAGS]) == 128 + signum
    assert asked(slurm) == []


def test_outside_slurm_nothing_is_queued(slurm, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID")
    assert requeue() is None
    assert asked(slurm) == []


def test_an_element_of_an_array_is_queued_again_by_its_number(slurm, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "1230")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "4")
    assert job_id() == "1230_4"
    requeue()
    assert asked(slurm) == ["requeue 1230_4"]


def test_a_job_that_cannot_be_queued_again_says_why(slurm, monkeypatch):
    slurm.write_text("#!/bin/sh\necho 'Requested operation is presently disabled' >&2\nexit 1\n")
    assert requeue() == (
        "SLURM's job 1234 could not be queued again (Requested operation is presently disabled): submit it again"
    )
    monkeypatch.setenv("PATH", "")
    assert "No such file" in requeue()


# One command that begins a run and goes on with it


def test_resume_without_a_run_begins_one_whatever_a_kill_left(tmp_path, capsys):
    run = tmp_path / "run"
    for left in ((), (".lock",), (".lock", "records.jsonl")):  # as a process makes them, one after the other
        run.mkdir(exist_ok=True)
        for name in left:
            (run / name).touch()
        code = cli.main(["train", "--out", str(run), "--resume", *FLAGS, "--epochs", "1"])
        assert code == 0, capsys.readouterr().err
        for file in sorted(run.rglob("*"), reverse=True):
            file.unlink() if file.is_file() else file.rmdir()


def test_resume_without_a_run_keeps_what_is_not_one(tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "thesis.tex").write_text("x")
    assert cli.main(["train", "--out", str(run), "--resume", *FLAGS]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert [file.name for file in run.iterdir()] == ["thesis.tex"]
    (run / "thesis.tex").rename(run / "records.jsonl")  # records without the configuration that they belong to
    assert cli.main(["train", "--out", str(run), "--resume", *FLAGS]) == 2
    assert (run / "records.jsonl").read_text() == "x"


def test_another_command_for_the_same_folder_is_refused(tmp_path, capsys):
    command = ["train", "--out", str(tmp_path / "run"), "--resume", *FLAGS, "--epochs", "1"]
    assert cli.main(command) == 0
    assert cli.main([*command, "--width", "13"]) == 2
    assert "width was 12 and cannot become 13" in capsys.readouterr().err
    assert cli.main([*command, "--force"]) == 2
    assert "give one of the two" in capsys.readouterr().err
    assert cli.main(["train", "--requeue", *FLAGS]) == 2
    assert "add --resume" in capsys.readouterr().err


def test_code_that_the_folder_names_and_the_command_does_not_is_never_imported(tmp_path, capsys):
    command = ["train", "--out", str(tmp_path / "run"), "--resume", *FLAGS, "--epochs", "1"]
    assert cli.main(command) == 0
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("network: mlp", "network: some_module:function"))
    assert cli.main(command) == 2
    assert "network was 'some_module:function' and cannot become 'mlp'" in capsys.readouterr().err


# What was started


def test_torchrun_says_how_many_processes_there_are(monkeypatch):
    config = TrainConfig(devices=3)
    assert as_launched(config) is config
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert (as_launched(config).nodes, as_launched(config).devices) == (2, 2)
    monkeypatch.setenv("SLURM_NTASKS", "8")  # torchrun inside of a SLURM job
    assert as_launched(config).devices == 2
    monkeypatch.setenv("WORLD_SIZE", "5")
    with pytest.raises(InputError, match="as many processes on each machine, got 5 with 2 on this one"):
        as_launched(config)


def test_srun_with_several_tasks_says_how_many_processes_there_are(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "8")
    monkeypatch.setenv("SLURM_NNODES", "2")
    assert (as_launched(TrainConfig()).nodes, as_launched(TrainConfig()).devices) == (2, 4)
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert as_launched(TrainConfig(devices=2)).devices == 2, "one task may start processes of its own"


def test_how_many_processes_trained_from_which_epoch_on():
    assert counts_by_epoch(None, 0, 3) == {"0": 3}
    assert counts_by_epoch({"0": 3}, 5, 3) == {"0": 3}
    assert counts_by_epoch({"0": 3}, 5, 2) == {"0": 3, "5": 2}
    assert counts_by_epoch({"0": 3, "5": 2}, 5, 1) == {"0": 3, "5": 1}
    assert counts_by_epoch({"0": 3, "5": 2}, 2, 3) == {"0": 3}


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("[/gloo/transport/tcp/pair.cc:553] Connection closed by peer [::1]:9"), "run ended"),
        (RuntimeError("[gloo/unbound_buffer.cc:81] Timed out waiting 5000ms for recv"), "did not answer for 5 s"),
        (torch.distributed.DistNetworkError("Broken pipe"), "run ended"),
        (torch.distributed.DistBackendError("NCCL communicator was aborted: timeout"), "did not answer for 5 s"),
    ],
)
def test_an_error_of_a_collective_names_what_happened(error, said):
    found = lost(error, 5)
    assert isinstance(found, LostProcess)
    assert str(found).endswith(said)


def test_after_a_restart_by_torchrun_the_line_says_what_it_needs(monkeypatch):
    error = RuntimeError("gloo connectFullMesh failed: Connection refused")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert str(lost(error, 5)) == "another process of the run ended"
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in str(lost(error, 5))


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("x")])
def test_other_errors_stay_what_they_are(error):
    assert lost(error, 5) is None


@pytest.mark.parametrize(
    ("before", "step", "now", "expected"),
    [
        (2, 7, 3, 6),  # 65 samples by 10: two processes take 7 steps, three join the last 5 samples to the sixth
        (2, 6, 3, 6),
        (2, 5, 3, 5),
        (3, 6, 2, 7),  # the whole epoch is done
        (3, 5, 2, 5),
        (3, 0, 2, 0),
        (0, 4, 3, 4),  # a state of an earlier version
        (3, 6, 3, 6),
    ],
)
def test_within_an_epoch_other_processes_go_on_where_those_before_stopped(before, step, now, expected):
    split = Split(torch.zeros(65, 1, 2, 2, dtype=torch.uint8), torch.zeros(65, dtype=torch.long))
    batches = Batches(split, 10, shuffle_seed=0, world=now)
    state = State(1, step, 7 + step, {}, {}, {}, {}, "{}", before)
    assert _step_here(state, batches) == expected


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("own", [True, False])
def test_a_state_is_written_by_all_processes_or_by_none(own, together, monkeypatch):
    """Writing it needs all of them, and their clocks do not agree when it is time."""
    written, asked = [], []

    def reduce_boolean_decision(decision, all=True):
        asked.append((decision, all))
        return together

    config = TrainConfig(save_seconds=0 if own else 1e6)
    save = SaveState(None, dict, SimpleNamespace(signum=None), config)
    monkeypatch.setattr(save, "_end_if_asked", lambda *_: None)
    monkeypatch.setattr(save, "_write", lambda *_: written.append(1))
    strategy = SimpleNamespace(reduce_boolean_decision=reduce_boolean_decision)
    trainer = SimpleNamespace(current_epoch=0, max_epochs=9, should_stop=False, strategy=strategy)
    save.on_train_epoch_end(trainer, None)
    assert asked == [(own, False)]
    assert bool(written) == together
