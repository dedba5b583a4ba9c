"""Several processes on one machine, over gloo: the measures are those of one process."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from torch import nn

import neuralcollapse as nc
from neuralcollapse.capture.collect import collect
from neuralcollapse.geometry.groups import GroupedMoments
from neuralcollapse.runs.folder import RunFolder
from neuralcollapse.training.remeasure import remeasure
from tests.processes import on_ranks

FLAGS = ["--epochs", "2", "--width", "16", "--depth", "2", "--feature_dim", "12", "--accelerator", "cpu"]
FLAGS += ["--devices", "2", "--checkpoint_every", "1", "--layers", "features.1", "--json"]
STARTS = {
    "train": [sys.executable, "-m", "neuralcollapse", "train"],
    "torchrun": [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
        *("-m", "neuralcollapse", "train"),
    ],
}


@pytest.fixture(scope="module", params=[pytest.param(way, marks=pytest.mark.slow) for way in ("train", "torchrun")])
def two(request, tmp_path_factory) -> tuple[RunFolder, str, str]:
    """A run of two processes, started each way."""
    out = tmp_path_factory.mktemp("two") / "run"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    process = subprocess.Popen(
        [*STARTS[request.param], *FLAGS, "--out", str(out)],
        env={**environment, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        printed, err = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # its children too
        raise
    assert process.returncode == 0, err[-3000:]
    return RunFolder.open(out), printed, err


def test_the_measures_are_those_of_one_process_on_the_same_weights(two):
    run, _, _ = two
    records = {record.epoch: record for record in run.records()}
    assert list(records) == [0, 1, 2]
    again = remeasure(run, progress=False)
    assert [record.epoch for record in again] == [1, 2]
    for wanted in again:
        record = records[wanted.epoch]
        assert record.measures == pytest.approx(wanted.measures, rel=1e-6, abs=1e-9)
        assert record.train == pytest.approx(wanted.train, rel=1e-6)
        (name,) = record.layers
        assert record.layers[name] == pytest.approx(wanted.layers[name], rel=1e-6, abs=1e-9)


def test_one_process_prints_and_writes(two):
    run, printed, err = two
    assert json.loads(printed)["epoch"] == 2
    assert err.count("epoch    1/2") == 1
    assert (run.path / "report.html").is_file()
    assert not list(run.path.rglob(".*"))
    assert [path.name for path in (run.path / "logs" / "csv").iterdir()] == ["version_0"]


def test_the_rows_sum_shrinks_as_predicted_from_the_configuration(two):
    """With a last step of 29 samples, of which the processes have unequal shares."""
    run, _, err = two
    environment = json.loads(run.read_text("environment.json"))
    sums = [torch.from_numpy(kept.weight).double().sum(0).norm() for kept in run.geometries()]
    assert float(sums[-1] / sums[0]) == pytest.approx(environment["row_sum_left"], rel=1e-5)
    assert environment["row_sum_left"] < 0.9
    assert err.count("decay budget B = ") == 1


# Sharded measuring

K, D, N = 4, 8, 61


def samples() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(N) % K
    return torch.eye(K).repeat(1, 2)[labels] + 0.5 * torch.randn(N, D, generator=generator), labels


def network() -> nn.Module:
    torch.manual_seed(1)
    model = nn.Sequential()
    model.add_module("body", nn.Linear(D, 6))
    model.add_module("relu", nn.ReLU())
    model.add_module("fc", nn.Linear(6, K))
    return model.double()


def loader(rank: int, world: int, shares: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """This process's batches: every other sample, or all but a few on the first."""
    inputs, labels = samples()
    mine = torch.arange(N) % world == rank
    if shares == "uneven":
        mine = torch.arange(N) >= 3 if rank else torch.arange(N) < 3
    elif shares == "none on the second":
        mine = torch.full((N,), rank == 0)
    return list(zip(inputs.double()[mine].split(7), labels[mine].split(7), strict=True))


def tight(rank: int, world: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """This process's batches of samples that lie near the means of their classes."""
    batches = loader(rank, world, "even")
    return [(0.1 * inputs + 3 * torch.eye(K).repeat(1, 2)[labels], labels) for inputs, labels in batches]


SHARES = ["even", "uneven", "none on the second"]


def measure(rank: int, world: int) -> dict:
    found = {}
    for shares in SHARES:
        batches = loader(rank, world, shares)
        found[shares] = nc.measure(network(), batches, layers=["body"], sharded=True, progress=False)
    body = torch.nn.Sequential(nn.Identity(), nn.Linear(D, K))  # its features are the inputs
    signed = [(inputs.abs() - 9 * (rank == 1), labels) for inputs, labels in loader(rank, world, "even")]
    positive = [(inputs.abs(), labels) for inputs, labels in signed]
    for name, batches in (("one signed", signed), ("none signed", positive)):
        capture = collect(body.double(), batches, "1", nc4=False, sharded=True, progress=False)
        found[name] = capture.nonnegative
    found["errors"] = nc.measure(body, tight(rank, world), "1", errors=5, sharded=True, progress=False)
    return found


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> list[dict]:
    """What each of two processes measured, by shares."""
    return on_ranks(2, tmp_path_factory.mktemp("sharded"), measure)


@pytest.mark.parametrize("shares", SHARES)
def test_sharded_over_two_processes_the_measures_are_those_of_one(shares, sharded):
    expected = nc.measure(network(), loader(0, 1, "even"), layers=["body"], progress=False)
    assert expected["num_samples"] == N
    assert 0 < expected["nc4"] < 1
    assert expected["layers"]["body"]
    for found in sharded:
        values = found[shares]
        assert set(values) == set(expected)
        assert values["layers"] == {"body": pytest.approx(expected["layers"]["body"], rel=1e-9)}
        others = set(values) - {"layers"}
        assert {name: values[name] for name in others} == pytest.approx(
            {name: expected[name] for name in others}, rel=1e-9
        )


def test_standard_errors_are_those_of_each_group_over_all_processes(sharded):
    dealt = []
    for rank in range(2):
        groups = GroupedMoments(K, D, 5, share=rank / 2)  # each process begins with other groups
        for inputs, labels in tight(rank, 2):
            groups.update(inputs, labels)
        dealt.append(groups.parts())
    expected = nc.standard_errors([mine.merge(theirs) for mine, theirs in zip(*dealt, strict=True)])
    assert 0 < expected["nc1_error"] < expected["nc1_corrected"]
    for found in sharded:
        assert {name: found["errors"][name] for name in expected} == pytest.approx(expected, rel=1e-9)


def test_features_are_nonnegative_if_they_are_in_every_process(sharded):
    assert [(found["one signed"], found["none signed"]) for found in sharded] == [(False, True)] * 2
