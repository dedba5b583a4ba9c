"""Strategy fsdp2: which parts of a network are split, what goes with it, and runs beside those of whole weights."""

import json
import os
import shutil
import threading
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import nn

from neuralcollapse import InputError, TrainConfig, build_network, cli
from neuralcollapse.checkpoints.weights import read_weights
from neuralcollapse.runs.folder import RunFolder
from neuralcollapse.training.remeasure import remeasure
from neuralcollapse.training.sharding import blocks, fully_shard
from tests.training.test_elastic import Killer, by_torchrun, in_a_process_of_its_own, ready_to_fork
from tests.training.test_resume import end

try:
    fully_shard()
except InputError as error:
    pytest.skip(str(error), allow_module_level=True)

FLAGS = [
    "--width",
    "12",
    "--feature-dim",
    "10",
    "--samples-per-class",
    "30",
    "--batch-size",
    "50",
    "--accelerator",
    "cpu",
]
FLAGS += ["--loggers", "[]", "--save-seconds", "0", "--timeout", "60", "--epochs", "2", "--checkpoint-every", "1"]
LONGER = [*FLAGS, "--epochs", "3"]
PLAIN = [
    "--precision",
    "64-true",
    "--network",
    f"{__name__}:plain",
    *FLAGS[4:],
    "--optimizer",
    "adam",
    "--gradient-clip",
    "1",
    "--layers",
    "network.body.2",
]


class Plain(nn.Module):
    """A network without batch normalisation, which sees the shares of the processes."""

    def __init__(self, num_classes: int, reach: bool) -> None:
        super().__init__()
        self.reach = reach
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 14), nn.ReLU(), nn.Linear(14, 10), nn.ReLU())
        self.fc = nn.Linear(10, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.reach:
            return self.fc(nn.functional.linear(self.body[:3](images), self.body[3].weight))
        return self.fc(self.body(images))


def plain(num_classes: int) -> nn.Module:
    return Plain(num_classes, False)


def reaching(num_classes: int) -> nn.Module:
    return Plain(num_classes, True)


# Which parts are split each on its own


def names_of(network: nn.Module) -> list[str]:
    names = {module: name for name, module in network.named_modules()}
    return [names[block] for block in blocks(network)]


def test_the_layers_of_an_mlp_and_the_blocks_of_a_resnet_are_split_each_on_its_own():
    assert names_of(build_network("mlp", 10, depth=2)) == ["features.1", "features.4"]
    found = names_of(build_network("resnet18", 10))
    assert found == [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]


def test_lists_are_entered_and_what_shares_a_weight_is_left_to_the_rest():
    tied = nn.Linear(3, 3)
    body = nn.ModuleList([nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3), nn.ReLU()), tied, nn.LayerNorm(3)])
    network = nn.ModuleDict({"body": body, "tied": tied})
    assert names_of(network) == ["body.0", "body.1.0"]


# What goes with it


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"optimizer": "lbfgs"}, "use sgd, or one process"),
        ({"learn_scale": True, "frame": "simplex"}, "leave it out, or use ddp"),
        ({"channels_last": True}, "leave out channels_last"),
        ({"cuda_graph": "on"}, "leave it out under strategy=fsdp2"),
        ({"precision": "16-mixed"}, "bf16-mixed, bf16-true or 64-true, got 16-mixed"),
    ],
)
def test_what_does_not_go_with_split_weights_is_refused(options, said):
    with pytest.raises(InputError, match=said):
        TrainConfig(strategy="fsdp2", **options)


def test_a_run_cannot_go_on_with_split_weights_if_its_options_do_not_go_with_them(tmp_path, capsys):
    out = str(tmp_path / "run")
    flags = [*FLAGS, "--epochs", "1", "--samples-per-class", "10", "--channels-last"]
    assert cli.main(["train", "--out", out, *flags, "true"]) == 0
    assert cli.main(["train", "--resume", out, "--epochs", "2", "--strategy", "fsdp2"]) == 2
    assert "leave out --channels-last, or use ddp" in capsys.readouterr().err


# Runs of several processes


def numbers(run: Path) -> list[dict[str, float]]:
    """The numbers of each record, but for the seconds."""

    def flat(values: dict, prefix: str = "") -> dict[str, float]:
        found = {}
        for name, value in values.items():
            if isinstance(value, dict):
                found |= flat(value, f"{prefix}{name}.")
            elif isinstance(value, int | float) and name != "seconds":
                found[prefix + name] = value
        return found

    return [flat(asdict(record)) for record in RunFolder.open(run).records()]


def all_runs(folder: Path) -> None:
    """In a process of its own: every run that the tests below look at; prints what went wrong in each."""
    ready_to_fork()
    said: dict[str, str] = {}

    def run(name: str, processes: int, *command: str, restarts: int = 0) -> None:
        place = folder / f"log-{name}"
        said[name] = by_torchrun(place, processes, restarts, "train", *command) and "".join(
            file.read_text() for file in sorted(place.glob("*.log"))
        )

    def begin(name: str, strategy: str, processes: int, *flags: str) -> None:
        run(name, processes, "--out", str(folder / name), "--strategy", strategy, *flags)

    begin("one", "auto", 1, *PLAIN)
    begin("ddp", "ddp", 2, *PLAIN)
    begin("fsdp2", "fsdp2", 2, *PLAIN)
    begin("mlp ddp", "ddp", 3, *FLAGS)
    begin("mlp", "fsdp2", 3, *LONGER)
    begin("cut", "fsdp2", 2, *PLAIN, "--epochs", "1")
    more = ("--epochs", "2", "--trust-code")
    for name, processes in (("three", 3), ("alone", 1)):
        shutil.copytree(folder / "cut", folder / name)
        run(name, processes, "--resume", str(folder / name), *more)
    shutil.copytree(folder / "cut", folder / "whole again")
    run("whole again", 1, "--resume", str(folder / "whole again"), *more, "--strategy", "auto")
    killer = Killer(folder / "log-killed", folder / "killed", 1, 3, least=2)
    killer.start()
    run("killed", 3, "--out", str(folder / "killed"), "--resume", "--strategy", "fsdp2", *LONGER, restarts=1)
    begin("reaching", "fsdp2", 2, *PLAIN, "--network", f"{__name__}:reaching")
    begin("options", "fsdp2", 2, *FLAGS, "--loss", "focal:{rank}")
    damaged = folder / "damaged"
    shutil.copytree(folder / "cut", damaged)
    part = next(damaged.glob("state/*/__1_0.distcp"))
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    run("damaged", 2, "--resume", str(damaged), *more)
    assert len(killer.done) == 1
    assert threading.active_count() == 1
    print(json.dumps(said))


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("runs")
    return folder, in_a_process_of_its_own(all_runs, folder, __name__)


slow = pytest.mark.slow
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@slow
@forks
def test_split_weights_copied_ones_and_one_process_give_the_same_records(runs):
    folder, said = runs
    assert [said[name] for name in ("one", "ddp", "fsdp2", "mlp", "mlp ddp")] == [""] * 5
    for name in ("one", "ddp"):
        for record, wanted in zip(numbers(folder / "fsdp2"), numbers(folder / name), strict=True):
            assert record == pytest.approx(wanted, rel=1e-9, abs=1e-12, nan_ok=True)
    for record, wanted in zip(numbers(folder / "mlp")[:3], numbers(folder / "mlp ddp"), strict=True):
        # in float32, with the gradients of the processes added up in another order
        assert record == pytest.approx(wanted, rel=1e-5, abs=1e-8, nan_ok=True)


@slow
@forks
def test_the_kept_weights_are_whole_and_measured_as_those_of_any_run(runs):
    folder, _ = runs
    run = RunFolder.open(folder / "mlp")
    records = {record.epoch: record for record in run.records()}
    for wanted in remeasure(run, progress=False):
        assert records[wanted.epoch].measures == pytest.approx(wanted.measures, rel=1e-6, abs=1e-9)
    weights, (state,) = read_weights(run.checkpoint(3)), (run.path / "state").iterdir()
    parts = read_weights(state)
    assert {f"network.{name}" for name in weights} == set(parts)
    assert all(torch.equal(weights[name.removeprefix("network.")], parts[name]) for name in parts)


@slow
@forks
def test_one_of_three_processes_killed_and_started_again_the_run_ends_as_one_never_killed(runs):
    folder, said = runs
    assert said["killed"] == ""
    left, right = end(folder / "killed"), end(folder / "mlp")
    assert [name for name in left if left[name] != right[name]] == []


@slow
@forks
@pytest.mark.parametrize("name", ["three", "alone", "whole again"])
def test_more_or_fewer_processes_or_another_strategy_go_on_from_the_parts(runs, name):
    folder, said = runs
    assert said[name] == ""
    wanted = numbers(folder / "fsdp2")[-1]
    assert numbers(folder / name)[-1] == pytest.approx(wanted, rel=1e-9, abs=1e-12, nan_ok=True)
    split = name != "whole again"
    assert len(list(folder.glob(f"{name}/state/*"))) == split, "older ones are removed"


@slow
@forks
@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("options", "expected the same options in all processes, got loss='focal:0' in process 0"),
        ("damaged", "(__1_0.distcp was changed or damaged since it was written): delete state.pt"),
        ("reaching", "uses a layer's weights outside of that layer's forward"),
    ],
)
def test_what_is_wrong_ends_all_processes_with_a_line(runs, name, line):
    _, said = runs
    assert line in said[name]
    assert "Traceback" not in said[name]
