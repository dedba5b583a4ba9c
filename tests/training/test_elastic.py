"""Three processes by torchrun's agent, killed again and again: the run ends as one that was never killed."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from neuralcollapse import cli
from neuralcollapse.runs.folder import RunFolder
from neuralcollapse.training.remeasure import remeasure
from tests.training.test_resume import ROOT, differences, lines

FLAGS = ["--epochs", "24", "--width", "12", "--depth", "2", "--feature-dim", "10", "--samples-per-class", "30"]
FLAGS += ["--batch-size", "50", "--accelerator", "cpu", "--loggers", "[]", "--save-seconds", "0"]
FLAGS += ["--checkpoint-every", "9", "--timeout", "60"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
]


def ready_to_fork() -> None:
    """Import what a run does, and compute nothing: torch has no threads then."""
    torch.set_num_threads(1)
    import sklearn.datasets
    import sklearn.model_selection  # noqa: F401

    import neuralcollapse.report.single
    import neuralcollapse.training.run  # noqa: F401


def worker(folder: str, *command: str) -> None:
    """The command in a forked process, which says who it is."""
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    for signum in (signal.SIGTERM, signal.SIGINT):  # the agent has handlers of its own
        signal.signal(signum, signal.SIG_DFL)
    rank = os.environ["RANK"]
    rank_zero_only.rank = int(rank)  # Lightning asked when it was imported, before the fork
    place = Path(folder, f"{os.environ['TORCHELASTIC_RESTART_COUNT']}-{rank}")
    place.with_suffix(".new").write_text(str(os.getpid()))
    place.with_suffix(".new").rename(place)
    log = os.open(place.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = cli.main([part.replace("{rank}", rank) for part in command])
    if code:  # the agent waits for what a worker that ends well returns
        sys.exit(code)


def by_torchrun(folder: Path, processes: int, restarts: int, *command: str) -> str:
    """Run the command as torchrun does; the workers are forked, as starting Python anew takes most of the time."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    folder.mkdir()
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=folder.name,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        start_method="fork",
        max_restarts=restarts,
        monitor_interval=0.05,
    )
    try:
        elastic_launch(config, worker)(str(folder), *command)
    except ChildFailedError as error:
        return str(error)
    return ""


class Killer(threading.Thread):
    """Kills one of the workers at random moments: as they start, or some epochs later."""

    def __init__(self, folder: Path, run: Path, kills: int, processes: int, least: int = 0) -> None:
        super().__init__(daemon=True)
        self.folder, self.run_folder, self.kills, self.processes = folder, run, kills, processes
        self.least = least  # records before the first kill
        self.done: list[int] = []
        self.moments: list[int] = []

    def run(self) -> None:
        source = random.Random(0)
        for kill in range(self.kills):
            places = [self.folder / f"{kill}-{rank}" for rank in range(self.processes)]
            while not all(place.exists() for place in places):
                time.sleep(0.02)
            wanted = lines(self.run_folder) + source.randrange(3) if kill % 5 else self.least
            while lines(self.run_folder) < wanted:
                time.sleep(0.01)
            time.sleep(source.uniform(0, 0.3))
            rank = source.randrange(self.processes)
            os.kill(int(places[rank].read_text()), signal.SIGKILL)
            self.done.append(rank)
            self.moments.append(lines(self.run_folder))


def kill_ten_times(folder: Path) -> None:
    """In a process of its own: prints what the first test looks at."""
    ready_to_fork()
    whole, run = folder / "whole", folder / "run"
    problem = by_torchrun(folder / "first", 3, 0, "train", "--out", str(whole), *FLAGS)
    assert not problem, problem
    killer = Killer(folder / "second", run, 10, 3)
    killer.start()
    problem = by_torchrun(folder / "second", 3, 10, "train", "--out", str(run), "--resume", *FLAGS)
    assert not problem, problem
    said = [file.read_text() for file in sorted((folder / "second").glob("*.log"))]
    found = {
        "kills": killer.done,
        "moments": killer.moments,
        "different": differences(run, whole),
        "tracebacks": [text[-2000:] for text in said if "Traceback" in text],
        "lost": sum("another process of the run ended; to go on" in text for text in said),
        "processes": json.loads(RunFolder(run).read_text("environment.json"))["processes"],
    }
    print(json.dumps(found))


def go_on_with_fewer(folder: Path) -> None:
    """In a process of its own: three processes, one of them killed, then two of the same command."""
    ready_to_fork()
    run = folder / "run"
    command = ("train", "--out", str(run), "--resume", "--devices", "3", *FLAGS, "--epochs", "12")
    killer = Killer(folder / "three", run, 1, 3, least=3)
    killer.start()
    assert "SIGKILL" in by_torchrun(folder / "three", 3, 0, *command)
    problem = by_torchrun(folder / "two", 2, 0, *command)
    assert not problem, problem
    print(json.dumps(json.loads(RunFolder(run).read_text("environment.json"))["processes"]))


def stop_one(folder: Path) -> None:
    """In a process of its own: one of two processes hangs."""
    ready_to_fork()
    run, place = folder / "run", folder / "two" / "0-1"

    def hang() -> None:
        while lines(run) < 3:
            time.sleep(0.01)
        os.kill(int(place.read_text()), signal.SIGSTOP)
        while "did not answer" not in (folder / "two" / "0-0.log").read_text():
            time.sleep(0.05)
        os.kill(int(place.read_text()), signal.SIGKILL)

    threading.Thread(target=hang, daemon=True).start()
    flags = [*FLAGS, "--epochs", "1000", "--timeout", "4"]
    started = time.monotonic()
    by_torchrun(folder / "two", 2, 0, "train", "--out", str(run), *flags)
    said = (folder / "two" / "0-0.log").read_text().splitlines()
    print(json.dumps({"last": said[-1], "seconds": time.monotonic() - started}))


def in_a_process_of_its_own(function, folder: Path, module: str = __name__) -> dict:
    code = f"from pathlib import Path; from {module} import *; {function.__name__}(Path({str(folder)!r}))"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**environment, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        printed, err = process.communicate(timeout=280)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # its workers too
        raise
    logs = "".join(f"\n{file}: {file.read_text()[-800:]}" for file in sorted(folder.glob("*/*.log")))
    assert process.returncode == 0, err[-3000:] + logs[-6000:]
    return json.loads(printed.splitlines()[-1])


def test_one_of_three_processes_killed_ten_times_a_run_ends_as_one_never_killed(tmp_path):
    found = in_a_process_of_its_own(kill_ten_times, tmp_path)
    assert len(found["kills"]) == 10
    assert len(set(found["kills"])) == 3, "each of the three was killed, the first one too"
    assert len(set(found["moments"])) >= 5, "at different times of training"
    assert found["different"] == []
    assert found["tracebacks"] == []
    assert found["lost"] >= 5, "those that were left said so in a line"
    assert found["processes"] == {"0": 3}


def test_two_processes_go_on_with_a_run_of_three(tmp_path):
    processes = in_a_process_of_its_own(go_on_with_fewer, tmp_path)
    assert list(processes.values())[-1] == 2
    run = RunFolder.open(tmp_path / "run")
    records = {record.epoch: record for record in run.records()}
    assert list(records) == list(range(13))
    for wanted in remeasure(run, progress=False):
        assert records[wanted.epoch].measures == pytest.approx(wanted.measures, rel=1e-6, abs=1e-9)


def test_a_process_that_does_not_answer_ends_the_run_in_a_line(tmp_path):
    found = in_a_process_of_its_own(stop_one, tmp_path)
    assert found["last"] == (
        "neuralcollapse: another process of the run did not answer for 4 s; to go on: neuralcollapse train --resume "
        f"{tmp_path / 'run'}"
    )
