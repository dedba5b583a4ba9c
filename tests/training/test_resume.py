"""Stop anywhere and go on: the end is bit for bit that of a run never stopped."""

import csv
import errno
import io
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from neuralcollapse import InputError, cli
from neuralcollapse.runs import tensors
from neuralcollapse.runs.folder import RunFolder
from neuralcollapse.training import run as run_module
from neuralcollapse.training.config import TrainConfig, types
from neuralcollapse.training.resume import State, Stopped, StopSignal
from neuralcollapse.training.run import resume, train
from neuralcollapse.training.run_config import read_config
from neuralcollapse.training.step import Classification
from neuralcollapse.training.trainer import make_logger, with_precision

ROOT = Path(__file__).parents[2]
QUICK = TrainConfig(epochs=3, width=12, depth=2, feature_dim=10, samples_per_class=30, batch_size=50, loggers=())
STEPS = 6  # of an epoch of QUICK


def end(run: Path) -> dict[str, object]:
    """Everything that a run leaves, but for the seconds and the hardware."""
    folder = RunFolder.open(run)
    records = [json.loads(line) for line in folder.read_text("records.jsonl").splitlines()]
    return {
        "config": folder.read_text("config.yaml"),
        "records": [{name: value for name, value in record.items() if name != "seconds"} for record in records],
        "weights": {epoch: file.read_bytes() for epoch, file in folder.checkpoints()},
        "geometry": {file.name: file.read_bytes() for file in sorted((run / "geometry").iterdir())},
        "scraps": [str(path) for path in run.rglob(".*") if path.name != ".metadata"],
    }


def differences(one: Path, other: Path) -> list[str]:
    left, right = end(one), end(other)
    return [name for name in left if left[name] != right[name]]


def assert_same_end(run: Path, whole: Path):
    assert differences(run, whole) == []


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> Path:
    """QUICK, never stopped."""
    return train(QUICK, tmp_path_factory.mktemp("quick") / "whole", progress=False).path


@pytest.fixture
def signals(monkeypatch):
    """signals(epoch, step, signum): the signal comes in that step, once."""

    def at(epoch: int, step: int, signum: signal.Signals = signal.SIGTERM) -> None:
        original = Classification.training_step
        left = [signum]

        def training_step(self, *args):
            if left and (self.current_epoch, self.step) == (epoch, step):
                signal.raise_signal(left.pop())
            return original(self, *args)

        monkeypatch.setattr(Classification, "training_step", training_step)

    return at


# Killed at any moment. The children are forked from a process that has imported everything and computed nothing (torch
# has no threads then), because starting Python anew each time would take most of the time.


class Forks:
    """Commands in forked children, with their exit codes and messages."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "log"

    def start(self, *arguments: object) -> int:
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            code = cli.main([str(argument) for argument in arguments])
        finally:
            os._exit(code)

    def ended(self, pid: int, seconds: float) -> int | None:
        """The exit code within so many seconds (minus the signal that killed it), or None."""
        stop = time.monotonic() + seconds
        while True:
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > stop:
                return None
            time.sleep(0.002)

    def run(self, *arguments: object) -> None:
        code = self.ended(self.start(*arguments), 60)
        assert code == 0, f"{arguments}: {code}: {self.log.read_text()}"


def lines(run: Path) -> int:
    """Records of a run that is being written."""
    records = run / "records.jsonl"
    return records.read_text().count("\n") if records.is_file() else 0


def kill_twenty_times(folder: Path) -> None:
    """In a process of its own: prints what `test_killed_at_twenty_moments...` looks at."""
    torch.set_num_threads(1)
    import sklearn.datasets
    import sklearn.model_selection  # noqa: F401

    import neuralcollapse.report.single  # noqa: F401

    forks = Forks(folder)
    flags = ["--epochs", 60, "--width", 12, "--depth", 2, "--feature_dim", 10, "--checkpoint_every", 9, "--loggers=[]"]
    flags += ["--save_seconds", 0]
    whole, run = folder / "whole", folder / "run"
    started = time.monotonic()
    first = forks.start("train", "--out", whole, *flags)
    while not (whole / "records.jsonl").is_file():
        time.sleep(0.001)
    startup = time.monotonic() - started
    code = forks.ended(first, 60)
    assert code == 0, forks.log.read_text()
    training = RunFolder(whole).records()[-1].seconds

    source = random.Random(0)
    kills, trained = 0, []
    while kills < 20:
        begun = (run / "config.yaml").exists()
        command = ["--resume", run] if begun else ["--out", run, "--force", *flags]
        pid = forks.start("train", *command)
        # as it starts, or in one of the next epochs: by what it has done, since clocks and machines differ
        epochs, seen = source.randrange(4), lines(run)
        code = forks.ended(pid, source.uniform(0.3 * startup, startup))
        while epochs and code is None:
            now = lines(run)
            epochs, seen = epochs - (now > seen), now
            code = forks.ended(pid, 0.001)
        code = forks.ended(pid, source.uniform(0, training / 60)) if code is None else code
        assert code is None, f"ended by itself: {code}: {forks.log.read_text()}"
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        kills += 1
        trained.append(lines(run))
    forks.run("train", "--resume", run)
    print(json.dumps({"kills": kills, "records": trained, "different": differences(run, whole)}))


def in_a_process_of_its_own(function, folder: Path) -> dict:
    code = f"from pathlib import Path; from {__name__} import *; {function.__name__}(Path({str(folder)!r}))"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_twenty_moments_a_run_ends_as_one_never_killed(tmp_path):
    result = in_a_process_of_its_own(kill_twenty_times, tmp_path)
    assert result["kills"] == 20
    assert result["different"] == []
    assert len({count for count in result["records"] if count}) >= 5, "the kills came at different times of training"


# Stopped by a signal


KINDS = {
    "sgd": {"augment": "crop+flip"},
    "adam": {"optimizer": "adam", "augment": "flip", "schedule": "cosine"},
    "adamw": {"optimizer": "adamw", "frame": "simplex", "learn_scale": True},
    "lbfgs": {"optimizer": "lbfgs", "lbfgs_iterations": 3, "batch_size": 100},
    "online": {"measure": "online", "augment": "flip"},
    "decays": {"decay_on": "classifier", "feature_decay": 1e-4, "schedule": "multistep", "milestones": (1, 2)},
    "warmup": {"decay_on": "classifier", "feature_decay": 1e-4, "bias_decay": 1, "decay_warmup": 2},
    "lbfgs warmup": {"optimizer": "lbfgs", "lbfgs_iterations": 3, "decay_warmup": 2, "decay_warmup_factor": 0},
    "bfloat16": {"precision": "bf16-mixed", "measure_at": (2,), "gradient_clip": 0.5},
}


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_within_an_epoch_a_run_ends_as_one_never_stopped(kind, tmp_path, signals):
    config = replace(QUICK, **KINDS[kind])
    train(config, tmp_path / "whole", progress=False)
    signals(1, 2)
    with pytest.raises(Stopped, match=r"^stopped in epoch 2 after 3 steps, and saved$"):
        train(config, tmp_path / "run", progress=False)
    resume(tmp_path / "run", progress=False)
    assert_same_end(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("kind", ["warmup", "lbfgs warmup"])
def test_decays_that_warm_up_are_whole_from_their_epoch_on(kind, tmp_path):
    """Epochs before the end of the warm-up are as with smaller decays all along, bit for bit; those after are not."""
    warm = replace(QUICK, **KINDS[kind])
    scale = warm.decay_warmup_factor
    names = ("weight_decay", "feature_decay", "bias_decay")
    small = replace(warm, decay_warmup=0, **{name: scale * getattr(warm, name) for name in names})
    first, other = (train(config, tmp_path / str(at), progress=False) for at, config in enumerate((warm, small)))
    one, two = (  # theory expects of each what its decays after the warm-up say
        [{name: part for name, part in record.items() if name != "minimizer"} for record in end(run.path)["records"]]
        for run in (first, other)
    )
    assert one[:3] == two[:3]
    assert one[3] != two[3]


def test_a_run_without_the_options_of_a_warm_up_goes_on_without_one(tmp_path, signals, quick):
    signals(1, 2)
    with pytest.raises(Stopped):
        train(QUICK, tmp_path / "run", progress=False)
    file = tmp_path / "run" / "config.yaml"
    lines = [line for line in file.read_text().splitlines() if not line.startswith("decay_warmup")]
    file.write_text("\n".join(lines) + "\n")
    assert len(lines) == len(types()) - 2
    assert read_config(RunFolder(tmp_path / "run")) == with_precision(QUICK)
    resume(tmp_path / "run", progress=False)
    assert [name for name in differences(tmp_path / "run", quick) if name != "config"] == []


@pytest.mark.parametrize(("epoch", "step"), [(0, 0), (0, STEPS - 1), (1, STEPS - 1), (2, STEPS - 2), (2, STEPS - 1)])
def test_stopped_at_an_edge_of_an_epoch_a_run_ends_as_one_never_stopped(epoch, step, tmp_path, signals, quick):
    signals(epoch, step)
    with pytest.raises(Stopped) as stopped:
        train(QUICK, tmp_path / "run", progress=False)
    assert (stopped.value.epoch, stopped.value.step) == (epoch, step + 1)
    resume(tmp_path / "run", progress=False)
    assert_same_end(tmp_path / "run", quick)


def test_stopped_while_measuring_a_run_ends_as_one_never_stopped(tmp_path, monkeypatch, quick):
    original = RunFolder.append

    def append(self, record):
        if record.epoch == 1:
            signal.raise_signal(signal.SIGTERM)
        original(self, record)

    monkeypatch.setattr(RunFolder, "append", append)
    with pytest.raises(Stopped, match=r"^stopped after epoch 1, and saved$"):
        train(QUICK, tmp_path / "run", progress=False)
    monkeypatch.undo()
    assert len(RunFolder(tmp_path / "run").records()) == 2
    resume(tmp_path / "run", progress=False)
    assert_same_end(tmp_path / "run", quick)


def test_stopped_again_and_again_a_run_ends_as_one_never_stopped(tmp_path, signals, quick):
    signals(0, 3)
    with pytest.raises(Stopped):
        train(QUICK, tmp_path / "run", progress=False)
    for epoch, step in ((0, 4), (1, 0), (2, 5)):
        signals(epoch, step)
        with pytest.raises(Stopped, match=f"in epoch {epoch + 1} after {step + 1} steps"):
            resume(tmp_path / "run", progress=False)
    resume(tmp_path / "run", progress=False)
    assert_same_end(tmp_path / "run", quick)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_command_says_that_it_stopped_and_how_to_go_on(signum, code, tmp_path, signals, capsys, quick):
    out = tmp_path / "run"
    signals(1, 2, signum)
    assert cli.main(["train", "--config", str(quick / "config.yaml"), "--out", str(out)]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines()[-1] == (
        f"neuralcollapse: stopped in epoch 2 after 3 steps, and saved; to go on: neuralcollapse train --resume {out}"
    )
    assert cli.main(["train", "--resume", str(out)]) == 0
    assert "collapse after 3 epochs" in capsys.readouterr().out
    assert (out / "report.html").is_file()
    assert_same_end(out, quick)


def test_a_second_interrupt_does_not_wait_for_the_step():
    stop = StopSignal()
    with stop.installed():
        stop(signal.SIGTERM, None)
        stop(signal.SIGINT, None)
        with pytest.raises(KeyboardInterrupt):
            stop(signal.SIGINT, None)


def files_of(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138)])
@pytest.mark.parametrize("how", ["new", "force", "resume"])
def test_a_signal_before_the_training_leaves_the_folder_as_it_was(
    how, signum, code, tmp_path, monkeypatch, capsys, quick
):
    """The folder is made, and a logger takes its time to start."""
    out, ready = tmp_path / "run", []

    def slow(name: str, path: Path) -> object:
        logger = made(name, path)
        assert (path / "config.yaml").is_file()
        ready.append(signum)
        signal.raise_signal(signum)
        return logger

    command = ["train", "--config", str(quick / "config.yaml"), "--loggers", "csv", "--out", str(out)]
    if how == "force":
        train(replace(QUICK, seed=7), out, progress=False)
        command.append("--force")
    elif how == "resume":
        train(replace(QUICK, epochs=1), out, progress=False)
        command = ["train", "--resume", str(out), "--epochs", "3", "--loggers", "csv"]
    before = files_of(out)
    with monkeypatch.context() as patch:
        made = run_module.make_logger
        patch.setattr(run_module, "make_logger", slow)
        assert cli.main(command) == code
    assert ready == [signum]
    said = capsys.readouterr().err.splitlines()[-1]
    if how == "resume":
        to_go_on = f"to go on: neuralcollapse train --resume {out}"
        assert said == f"neuralcollapse: stopped before anything more was trained; {to_go_on}"
    else:
        earlier = ", and the earlier run is as it was" if how == "force" else ""
        again = "to begin it again: the same command"
        assert said == f"neuralcollapse: stopped before anything was trained{earlier}; {again}"
        assert files_of(out) == before
    assert cli.main(command) == 0


def test_an_interrupt_while_the_data_are_read_says_nothing_of_the_earlier_run(tmp_path, monkeypatch, capsys):
    def slow(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    train(QUICK, tmp_path / "run", progress=False)
    monkeypatch.setattr(run_module, "load_data", slow)
    assert cli.main(["train", "--out", str(tmp_path / "run"), "--force"]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "neuralcollapse: interrupted"


def test_a_run_that_was_killed_when_its_loggers_had_started_is_overwritten(tmp_path, quick):
    """SIGKILL between the first logger and the first record: no environment.json, and files of loggers."""
    run = RunFolder.create(tmp_path / "run")
    run.write_text("config.yaml", (quick / "config.yaml").read_text().replace("loggers: []", "loggers: [csv]"))
    run.unlock()
    make_logger("csv", run.path).save()
    (run.path / "logs" / "csv" / "version_0" / "hparams.yaml").write_text("{}")
    train(QUICK, run.path, force=True, progress=False)
    assert_same_end(run.path, quick)


def test_afterwards_signals_are_handled_as_before(tmp_path, signals):
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    train(QUICK, tmp_path / "run", progress=False)
    assert {signum: signal.getsignal(signum) for signum in before} == before
    signals(0, 1)
    with pytest.raises(Stopped):
        train(QUICK, tmp_path / "other", progress=False)
    assert {signum: signal.getsignal(signum) for signum in before} == before


def test_a_thread_can_train(tmp_path, quick):
    """Python takes signals in the main thread only."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        pool.submit(train, QUICK, tmp_path / "run", progress=False).result()
    assert_same_end(tmp_path / "run", quick)


# When the state is written


def test_the_state_is_written_at_ends_of_epochs_as_often_as_asked(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(State, "write", lambda self, path: written.append((self.epoch, self.step, self.total_steps)))
    train(replace(QUICK, save_seconds=0), tmp_path / "often", progress=False)
    assert written == [(1, 0, STEPS), (2, 0, 2 * STEPS), (3, 0, 3 * STEPS)]
    written.clear()
    train(replace(QUICK, save_seconds=1000), tmp_path / "seldom", progress=False)
    assert written == [(3, 0, 3 * STEPS)]


# A state that is none


@pytest.fixture
def stopped(tmp_path, signals) -> RunFolder:
    """QUICK, stopped in its second epoch."""
    signals(1, 2)
    with pytest.raises(Stopped):
        train(QUICK, tmp_path / "run", progress=False)
    return RunFolder(tmp_path / "run")


@pytest.mark.parametrize("length", [0, 1, 100, -1])
def test_a_state_that_is_cut_off_is_refused(length, stopped):
    before = end(stopped.path)
    stopped.state.write_bytes(stopped.state.read_bytes()[:length])
    with pytest.raises(InputError, match=r"state\.pt is no state to resume from, or damaged .*: delete it to train"):
        resume(stopped.path, progress=False)
    assert end(stopped.path) == before


class Payload:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return (os.system, (f"touch {self.file}",))


@pytest.mark.parametrize("how", ["torch", "pickle", "inside"])
def test_nothing_in_a_state_is_ever_run(how, stopped, tmp_path):
    payload = Payload(tmp_path / "touched")
    if how == "pickle":
        stopped.state.write_bytes(pickle.dumps(payload))
    elif how == "torch":
        torch.save(payload, stopped.state)
    else:
        torch.save({**asdict(State.read(stopped.state)), "collapse": payload}, stopped.state)
    with pytest.raises(InputError, match=r"state\.pt is no state"):
        resume(stopped.path, progress=False)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("values", [{}, {"epoch": 1}, [1, 2], torch.zeros(3)])
def test_a_file_of_other_things_is_no_state(values, stopped):
    torch.save(values, stopped.state)
    with pytest.raises(InputError, match=r"state\.pt is no state"):
        resume(stopped.path, progress=False)


def test_a_state_of_another_network_is_refused(stopped):
    records = stopped.read_text("records.jsonl")
    config = replace(QUICK, width=13)
    stopped.write_text("config.yaml", yaml.safe_dump(asdict(config)))
    with pytest.raises(InputError, match=r"the state is of another run: made with \w+="):
        resume(stopped.path, progress=False)
    assert stopped.read_text("records.jsonl") == records
    assert stopped.state.is_file()


@pytest.mark.parametrize("changed", [{"optimizer": "adam"}, {"decay_on": "classifier"}], ids=str)
def test_a_state_of_another_optimiser_is_refused(changed, stopped):
    stopped.write_text("config.yaml", yaml.safe_dump(asdict(replace(QUICK, **changed))))
    with pytest.raises(InputError, match="the state is of another"):
        resume(stopped.path, progress=False)


def test_a_state_gives_back_what_was_written(tmp_path):
    state = State(3, 2, 20, {"w": torch.randn(3)}, {"state": {0: {"step": 3}}}, {}, {"seconds": 1.5}, "{}")
    state.write(tmp_path / "state.pt")
    back = State.read(tmp_path / "state.pt")
    assert torch.equal(back.network.pop("w"), state.network.pop("w"))
    assert back == state


# What a run is resumed to


def test_a_run_that_is_whole_stays_as_it_is(quick):
    before = {path: path.read_bytes() for path in quick.rglob("*") if path.is_file()}
    assert resume(quick, progress=False).path == quick
    assert {path: path.read_bytes() for path in quick.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("schedule", [{"schedule": "step", "decay_every": 2}, {"schedule": "constant"}])
def test_given_more_epochs_a_run_ends_as_one_that_had_them_from_the_start(schedule, tmp_path):
    config = replace(QUICK, checkpoint_every=2, **schedule)
    run = train(config, tmp_path / "run", progress=False).path
    resume(run, {"epochs": 5}, progress=False)
    whole = train(replace(config, epochs=5), tmp_path / "whole", progress=False).path
    found, wanted = end(run), end(whole)
    assert found["config"] == wanted["config"]
    assert found["records"] == wanted["records"]
    assert set(found["weights"]) == {2, 3, 4, 5}, "the weights kept as the last stay"
    assert wanted["weights"] == {epoch: found["weights"][epoch] for epoch in (2, 4, 5)}


def test_given_more_epochs_the_end_between_two_measurements_stays_a_record(tmp_path):
    run = train(replace(QUICK, measure_every=2), tmp_path / "run", progress=False)
    resume(run.path, {"epochs": 5}, progress=False)
    assert [record.epoch for record in run.records()] == [0, 2, 3, 4, 5]


def test_fewer_epochs_than_were_trained_are_refused(quick):
    with pytest.raises(InputError, match="was trained for 3 epochs already, got epochs=2"):
        resume(quick, {"epochs": 2}, progress=False)
    assert read_config(RunFolder(quick)).epochs == 3


def test_an_end_before_the_step_at_hand_is_refused(stopped):
    before = end(stopped.path)
    with pytest.raises(InputError, match="epochs=1"):
        resume(stopped.path, {"epochs": 1}, progress=False)
    assert end(stopped.path) == before


def test_an_end_where_the_run_stands_leaves_it_whole(tmp_path, signals):
    signals(1, STEPS - 1)
    with pytest.raises(Stopped):
        train(QUICK, tmp_path / "run", progress=False)
    run = RunFolder(tmp_path / "run")
    values = asdict(State.read(run.state))
    resume(run.path, {"epochs": 2}, progress=False)
    assert values["step"] == STEPS
    assert read_config(run).epochs == 2
    assert [epoch for epoch, _ in run.checkpoints()] == [2]
    assert [record.epoch for record in run.records()] == [0, 1, 2]


def test_an_end_at_the_last_whole_epoch_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Classification, "on_train_epoch_start", _stop_at(2), raising=False)
        with pytest.raises(RuntimeError, match="power cut"):
            train(replace(QUICK, save_seconds=0), tmp_path / "run", progress=False)
    with pytest.raises(InputError, match=r"trained for 2 epochs already, got epochs=2: give more"):
        resume(tmp_path / "run", {"epochs": 2}, progress=False)
    assert len(resume(tmp_path / "run", progress=False).records()) == QUICK.epochs + 1


def _stop_at(epoch: int):
    def stop(self):
        if self.current_epoch == epoch:
            raise RuntimeError("power cut")

    return stop


def test_what_may_change_changes_from_here_on(stopped):
    run = resume(stopped.path, {"layers": ("features",), "certify_head": True, "epochs": 4}, progress=False)
    assert read_config(run) == replace(with_precision(QUICK), layers=("features",), certify_head=True, epochs=4)
    assert [bool(record.layers) for record in run.records()] == [False, False, True, True, True]
    assert [bool(record.head) for record in run.records()] == [False, False, True, True, True]


def test_what_made_the_weights_is_refused_and_nothing_is_touched(stopped):
    before = end(stopped.path)
    with pytest.raises(InputError, match="width was 12 and cannot become 13"):
        resume(stopped.path, {"width": 13}, progress=False)
    assert end(stopped.path) == before


def test_seconds_go_on_from_those_before(stopped, monkeypatch):
    before = State.read(stopped.state).collapse["seconds"]
    assert before > 0
    values = asdict(State.read(stopped.state))
    values["collapse"]["seconds"] = 1000.0
    State(**values).write(stopped.state)
    run = resume(stopped.path, progress=False)
    seconds = [record.seconds for record in run.records()]
    assert seconds[1] < 100
    assert 1000 < seconds[2] < seconds[3] < 1100


def test_loggers_get_each_measurement_at_the_steps_done_when_resumed_too(tmp_path, signals):
    config = replace(QUICK, loggers=("csv",))
    signals(1, 2)
    with pytest.raises(Stopped):
        train(config, tmp_path / "run", progress=False)
    resume(tmp_path / "run", progress=False)
    rows = []
    for version in (0, 1):
        with open(tmp_path / f"run/logs/csv/version_{version}/metrics.csv") as file:
            rows += list(csv.DictReader(file))
    assert [float(row["epochs"]) for row in rows] == [0, 1, 2, 3]
    assert [int(row["step"]) for row in rows] == [0, STEPS, 2 * STEPS, 3 * STEPS]
    assert {"epoch", "learning_rate", "train/loss", "test/accuracy", "collapse/nc1", "collapse/nc4"} <= set(rows[0])
    records = RunFolder(tmp_path / "run").records()
    assert [float(row["collapse/nc1"]) for row in rows] == [record.measures["nc1"] for record in records]


def test_without_a_state_a_run_begins_anew(stopped, quick):
    stopped.state.unlink()
    resume(stopped.path, progress=False)
    assert_same_end(stopped.path, quick)


def test_what_came_after_the_state_is_made_again(tmp_path, quick):
    """A kill may come long after the last state, with records, weights and geometry beyond it."""
    config = replace(QUICK, checkpoint_every=1)
    whole = train(config, tmp_path / "whole", progress=False).path
    states = []
    original = tensors.write_atomically

    def write(path, content):
        states.extend([content] if path.name == "state.pt" else [])
        return original(path, content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensors, "write_atomically", write)
        run = train(replace(config, save_seconds=0), tmp_path / "run", progress=False)
    assert len(states) == 3
    run.state.write_bytes(states[0])
    for epoch in (2, 3):
        run.checkpoint(epoch).write_bytes(b"of weights that will never be")
    (run.path / "geometry" / "epoch-00002.npz").write_bytes(b"likewise")
    run.append(replace(run.records()[-1], epoch=2, learning_rate=7.0))
    resume(run.path, {"save_seconds": 10.0}, progress=False)
    assert_same_end(run.path, whole)


def test_the_scraps_of_a_kill_are_swept(stopped):
    for place in (".", "geometry", "checkpoints"):
        (stopped.path / place / ".state.pt.abc.tmp").write_bytes(b"half")
    resume(stopped.path, progress=False)
    assert end(stopped.path)["scraps"] == []


@pytest.mark.parametrize("option", [["--out", "elsewhere"], ["--force"]])
def test_a_resumed_run_stays_in_its_folder(option, quick, capsys):
    assert cli.main(["train", "--resume", str(quick), *option]) == 2
    assert "leave out --out and --force" in capsys.readouterr().err


def test_a_folder_killed_before_its_config_says_why_it_cannot_go_on(tmp_path):
    run = RunFolder.create(tmp_path / "run")
    with pytest.raises(InputError, match=r"cannot read .*config.yaml: No such file"):
        resume(run.path, progress=False)
    with pytest.raises(InputError, match="no run folder"):
        resume(tmp_path / "nothing", progress=False)


# A full disk


@pytest.mark.parametrize("when", [2, 3, 4, 5, 6, 7, 9])
def test_a_full_disk_is_one_line_and_leaves_whole_files(when, tmp_path, monkeypatch, capsys, quick):
    out, writes = tmp_path / "run", []
    original = os.fsync

    def fsync(handle):
        writes.append(handle)
        if len(writes) >= when:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(handle)

    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(asdict(replace(QUICK, save_seconds=0))))
    monkeypatch.setattr(os, "fsync", fsync)
    assert cli.main(["train", "--config", str(config), "--out", str(out)]) == 2
    monkeypatch.undo()
    assert len(writes) == when
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("neuralcollapse:")]
    assert f"error: cannot write the run folder {out}: No space left on device" in line
    if not out.exists() or not (out / "config.yaml").exists():
        return
    run = RunFolder.open(out)
    assert end(out)["scraps"] == []
    assert len(list(run.geometries())) == len(list((out / "geometry").iterdir()))
    assert len(run.records(allow_none=True)) in range(5)
    if run.state.is_file():
        assert f"then go on with 'neuralcollapse train --resume {out}'" in line
        State.read(run.state)
    resume(out, {"save_seconds": 10.0}, progress=False)
    assert_same_end(out, quick)


def test_the_state_before_stays_whole_when_the_disk_is_full(stopped, monkeypatch, quick):
    before = stopped.state.read_bytes()

    def full(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(tensors, "write_atomically", full)
        with pytest.raises(InputError, match=r"No space left on device.*then go on with .*--resume"):
            resume(stopped.path, progress=False)
    assert stopped.state.read_bytes() == before
    resume(stopped.path, progress=False)
    assert_same_end(stopped.path, quick)


def test_a_full_disk_while_a_geometry_is_written_keeps_the_others(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    run = train(QUICK, tmp_path / "run", progress=False)
    before = {file.name: file.read_bytes() for file in (run.path / "geometry").iterdir()}
    monkeypatch.setattr(os, "replace", full)
    (geometry, *_) = run.geometries()
    with pytest.raises(OSError, match="No space"):
        run.write_geometry(replace(geometry, means=np.zeros_like(geometry.means)))
    assert {file.name: file.read_bytes() for file in (run.path / "geometry").iterdir()} == before


def test_a_full_disk_when_the_page_is_written_is_one_line(quick, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert cli.main(["train", "--resume", str(quick)]) == 2
    assert "No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "bf16-mixed"])
def test_a_state_is_taken_up_in_the_precision_of_its_weights(precision, signals, tmp_path):
    config = replace(QUICK, precision=precision)
    whole = train(config, tmp_path / "whole", progress=False).path
    signals(1, 2)
    with pytest.raises(Stopped):
        train(config, tmp_path / "run", progress=False)
    assert_same_end(resume(tmp_path / "run", progress=False).path, whole)


@pytest.mark.parametrize("changes", [{"measure_every": 2}, {"measure_at": (2,)}], ids=str)
def test_online_records_are_of_whole_epochs_when_the_epochs_measured_change(changes, signals, tmp_path):
    config = replace(QUICK, measure="online", epochs=4)
    whole = {r.epoch: r for r in train(config, tmp_path / "whole", progress=False).records()}
    signals(1, 3)
    with pytest.raises(Stopped):
        train(replace(config, measure_every=3), tmp_path / "run", progress=False)
    records = resume(tmp_path / "run", changes | {"measure_every": changes.get("measure_every", 3)}, progress=False)
    found = records.records()
    assert [record.epoch for record in found] == [2, 4]
    for record in found:
        assert (record.train, record.measures) == (whole[record.epoch].train, whole[record.epoch].measures)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epoch": "x"}, "expected epoch of type int"),
        ({"step": -1}, "expected step of type int"),
        ({"step": 9999}, "the state is of other data: 9999 steps in an epoch of 6"),
        ({"optimizer": {"state": {}, "param_groups": []}}, "the state is of another optimiser"),
        ({"network": {}}, "the state is of another network"),
        ({"network": {"fc.weight": 3}}, "the state is of another network"),
        ({"collapse": {}}, "the state is of another kind of run, or damaged"),
        ({"collapse": {"seconds": "1", "measured_epoch": 1}}, "the state is of another kind of run, or damaged"),
        ({"collapse": {"seconds": 1.0, "measured_epoch": [1]}}, "the state is of another kind of run, or damaged"),
        ({"optimizer": {}}, "the state is of another optimiser"),
        ({"optimizer": {"state": {}, "param_groups": [1]}}, "the state is of another optimiser"),
        ({"optimizer": {"state": [], "param_groups": {}}}, "the state is of another optimiser"),
        ({"origin": "{"}, "the state does not say what made it"),
        ({"origin": "[" * 9999}, "the state does not say what made it"),
        ({"origin": "[]"}, "the state does not say what made it"),
        ({"total_steps": True}, "expected total_steps of type int"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_state_with_other_values_is_refused_in_one_line(values, message, stopped):
    torch.save(torch.load(stopped.state, weights_only=True) | values, stopped.state)
    with pytest.raises(InputError, match=message) as error:
        resume(stopped.path, progress=False)
    assert "\n" not in str(error.value)
    assert stopped.state.is_file()


@pytest.mark.parametrize("change", ["momentum", "shape", "index", "entry"])
def test_an_optimisers_state_of_other_values_is_refused(change, stopped):
    values = torch.load(stopped.state, weights_only=True)
    states, groups = values["optimizer"]["state"], values["optimizer"]["param_groups"]
    if change == "momentum":
        groups[0]["momentum"] = "much"
    elif change == "shape":
        states[0]["momentum_buffer"] = torch.zeros(2, 3)
    elif change == "index":
        states[99] = states[0]
    else:
        states[0] = 3
    torch.save(values, stopped.state)
    with pytest.raises(InputError, match="the state is of another optimiser"):
        resume(stopped.path, progress=False)


def test_a_flipped_bit_in_a_state_is_named_and_never_used(stopped, capsys):
    before = end(stopped.path)
    content = stopped.state.read_bytes()
    source = random.Random(0)
    for at in [0, 30, len(content) - 1, len(content) - 70, *(source.randrange(len(content)) for _ in range(20))]:
        changed = bytearray(content)
        changed[at] ^= 1 << source.randrange(8)
        stopped.state.write_bytes(changed)
        assert cli.main(["train", "--resume", str(stopped.path)]) == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        assert "state.pt is no state to resume from, or damaged" in message
    stopped.state.write_bytes(content)
    assert end(stopped.path) == before


def test_a_state_that_declares_more_than_it_holds_is_not_inflated(stopped):
    buffer = io.BytesIO()
    with zipfile.ZipFile(stopped.state) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info) if "data/" not in info.filename else b"\0" * 2**24)
    stopped.state.write_bytes(buffer.getvalue())
    with pytest.raises(InputError, match="it declares more than it holds"):
        resume(stopped.path, progress=False)
