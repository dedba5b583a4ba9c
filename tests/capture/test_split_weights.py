"""Weights that FSDP2 and tensor parallelism have split over gloo processes: measured as one process measures them."""

import math
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

import neuralcollapse as nc
from tests.processes import on_ranks

try:
    from torch.distributed.fsdp import fully_shard
except ImportError:
    fully_shard = None

pytestmark = pytest.mark.skipif(fully_shard is None, reason="FSDP2 runs on the CPU from torch 2.6 on")

K, D, N = 5, 8, 61
CLOSE = {"float64": 1e-9, "float32": 1e-6, "bfloat16": 2e-2}
SHARES = ("even", "uneven", "empty")
WIDE = 12  # tensor parallelism needs a multiple of 2 and of 3


def samples(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(N) % K
    noise = torch.randn(N, D, generator=generator, dtype=torch.float64)
    return (torch.eye(K).repeat(1, 2)[labels, :D] + noise / 2).to(dtype), labels


def network(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(1)
    model = nn.Sequential()
    model.add_module("body", nn.Linear(D, WIDE))
    model.add_module("relu", nn.ReLU())
    model.add_module("mid", nn.Linear(WIDE, 6))
    model.add_module("norm", nn.BatchNorm1d(6))
    model.add_module("fc", nn.Linear(6, K))
    return model.to(dtype)


def batches(rank: int, world: int, shares: str, dtype: torch.dtype = torch.float64) -> list:
    """This process's batches: every sample, every so manieth, three on the first; on the last one empty, or none."""
    inputs, labels = samples(dtype)
    place = torch.arange(N)
    mine = {
        "all": place >= 0,
        "even": place % world == rank,
        "uneven": place < 3 if rank == 0 else (place >= 3) & (place % max(1, world - 1) == rank - 1),
        "none": (place % max(1, world - 1) == rank) & torch.tensor(rank < world - 1),
        "empty": (place % max(1, world - 1) == rank) & torch.tensor(rank < world - 1),
    }[shares]
    if shares == "none" and rank == world - 1:
        return []
    return list(zip(inputs[mine].split(7), labels[mine].split(7), strict=True))


def sharded(dtype: torch.dtype, parts: tuple[str, ...]) -> nn.Module:
    model = network(dtype)
    for name in parts:
        fully_shard(model.get_submodule(name), mesh=mesh())
    return fully_shard(model, mesh=mesh())


def mesh():
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cpu", (dist.get_world_size(),))


def alone(dtype: torch.dtype) -> dict:
    """What one process measures."""
    every = batches(0, 1, "all", dtype)
    return nc.measure(network(dtype), every, layers=["mid"], test_loader=every, progress=False)


def farthest(found: dict, wanted: dict) -> float:
    """The largest relative difference between the numbers of two dicts."""
    assert found.keys() == wanted.keys()
    worst = 0.0
    for name, value in wanted.items():
        if isinstance(value, dict):
            worst = max(worst, farthest(found[name], value))
        elif not (math.isnan(value) and math.isnan(found[name])):
            worst = max(worst, abs(found[name] - value) / abs(value) if value else abs(found[name]))
    return worst


def message(function) -> str:
    """What an error says; of another kind, its kind too."""
    try:
        function()
    except nc.InputError as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


# What each process does. A result is a dict that JSON can hold.


def measured_under_fsdp2(rank: int, world: int) -> dict:
    found = {}
    for dtype in (torch.float64, torch.float32):
        wanted = alone(dtype)
        for parts in ((), ("body", "fc")):
            model = sharded(dtype, parts)
            for shares in SHARES:
                own = batches(rank, world, shares, dtype)
                values = nc.measure(model, own, layers=["mid"], test_loader=own, sharded=True, progress=False)
                found[f"{dtype} {parts} {shares}"] = [str(dtype)[6:], farthest(values, wanted)]
            every = batches(0, 1, "all", dtype)
            values = nc.measure(model, every, layers=["mid"], test_loader=every, progress=False)
            found[f"{dtype} {parts} all"] = [str(dtype)[6:], farthest(values, wanted)]
    return found


def measured_under_tensor_parallelism(rank: int, world: int) -> dict:
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    plans = {
        "columns": {"fc": ColwiseParallel()},
        "columns, together": {"fc": ColwiseParallel(output_layouts=Replicate())},
        "columns, as a DTensor": {"fc": ColwiseParallel(use_local_output=False)},
        "rows": {"fc": RowwiseParallel(input_layouts=Replicate())},
        "all": {"body": ColwiseParallel(), "mid": RowwiseParallel(), "fc": ColwiseParallel()},
    }
    found = {}
    for dtype in (torch.float64, torch.float32):
        wanted, own = alone(dtype), batches(0, 1, "all", dtype)
        for name, plan in plans.items():
            for joined in (False, True):
                model = parallelize_module(network(dtype), mesh(), plan)
                values = nc.measure(model, own, layers=["mid"], test_loader=own, sharded=joined, progress=False)
                found[f"{dtype} {name} {joined}"] = [str(dtype)[6:], farthest(values, wanted)]
    return found


def measured_beside(rank: int, world: int) -> dict:
    """The metric, the scorer and a Recorder, and what stays as it was."""
    wanted = alone(torch.float64)
    model = sharded(torch.float64, ("fc",))
    own = batches(rank, world, "uneven")
    metric, seen = nc.NeuralCollapse(K, 6, model.fc), []
    hook = model.fc.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    model.eval()
    with torch.no_grad():
        for inputs, labels in batches(rank, world, "even"):
            model(inputs)
            metric.update(seen[-1], labels)
    hook.remove()
    by_metric = {name: float(value) for name, value in metric.compute().items()}
    scorer = nc.OODScorer.fit(model, own, sharded=True, progress=False)
    alike = nc.OODScorer.fit(network(torch.float64), batches(0, 1, "all"), progress=False)
    recorder = nc.Recorder(own, sharded=True, progress=False)
    record = recorder.measure(model, 1)
    by_recorder = {name: wanted[name] for name in record.measures}
    return {
        "metric": ["float64", farthest(by_metric, {name: wanted[name] for name in by_metric})],
        "scorer": ["float64", abs(scorer.vim_alpha / alike.vim_alpha - 1)],
        "recorder": ["float64", farthest(record.measures, by_recorder)],
        "in parts again": ["float64", float("to_local" not in dir(sharded(torch.float64, ()).fc.weight))],
    }


class Scaled(nn.Linear):
    """Logits that are three times W h + b."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return 3 * super().forward(features)


class Beside(nn.Module):
    """Logits to which another map of the head's input is added, which is found by least squares."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network(torch.float64)
        self.beside = nn.Parameter(torch.randn(K, 6, dtype=torch.float64))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        features = self.inner[:-1](inputs)
        return self.inner.fc(features) + features @ self.beside.T


def with_head(head: nn.Module) -> nn.Module:
    model = network(torch.float64)
    head.load_state_dict(model.fc.state_dict())
    model.fc = head
    return model


def measured_with_maps_that_rows_show(rank: int, world: int) -> dict:
    """A head whose own weight did not make the logits; some processes have too few rows to find out what did."""
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nc.NeuralCollapseWarning)  # that it is measured with another weight
        for name, make in {"scaled": lambda: with_head(Scaled(6, K).double()), "beside": Beside}.items():
            wanted = nc.measure(make(), batches(0, 1, "all"), progress=False)
            for shares in (*SHARES, "none"):
                own = batches(rank, world, shares)
                for kind, model in (("split", fully_shard(make(), mesh=mesh())), ("whole", make())):
                    values = nc.measure(model, own, sharded=True, progress=False)
                    found[f"{name} {kind} {shares}"] = ["float64", farthest(values, wanted)]
    return found


def measured_under_ddp(rank: int, world: int) -> dict:
    """With buffers, which DDP sends before each forward pass, and which are others in each process until then."""
    found, wanted = {}, alone(torch.float64)
    wanted["layers"]["module.mid"] = wanted["layers"].pop("mid")
    wanted["test"]["layers"]["module.mid"] = wanted["test"]["layers"].pop("mid")
    for shares in (*SHARES, "none"):
        model = nn.parallel.DistributedDataParallel(network(torch.float64))
        model.module.norm.running_mean += rank
        own = batches(rank, world, shares)
        values = nc.measure(model, own, layers=["module.mid"], test_loader=own, sharded=True, progress=False)
        found[shares] = ["float64", farthest(values, wanted)]
        kept = model.require_forward_param_sync and bool((model.module.norm.running_mean == rank).all())
        found[f"{shares} as before"] = ["float64", float(not kept)]
    return found


def measured_in_bfloat16(rank: int, world: int) -> dict:
    """Computed in bfloat16 by FSDP2, with outputs in float32: near what one process measures of it in float32."""
    from torch.distributed.fsdp import MixedPrecisionPolicy

    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, output_dtype=torch.float32)
    model, alike = network(torch.float32), network(torch.float32)
    model.norm, alike.norm = nn.LayerNorm(6), nn.LayerNorm(6)  # a batch norm's buffers would stay in float32
    fully_shard(model.fc, mesh=mesh(), mp_policy=policy)
    fully_shard(model, mesh=mesh(), mp_policy=policy)
    values = nc.measure(model, batches(rank, world, "uneven", torch.float32), sharded=True, progress=False)
    wanted = nc.measure(alike, batches(0, 1, "all", torch.float32), progress=False)
    return {name: ["bfloat16", abs(values[name] - wanted[name])] for name in ("nc2", "nc3", "nc1_quotient")}


def measured_under_both(rank: int, world: int) -> dict:
    """FSDP2 over pairs of processes that share layers by tensor parallelism."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    both = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("data", "tensor"))
    plan = {"body": ColwiseParallel(), "mid": RowwiseParallel(), "fc": ColwiseParallel()}
    wanted, found = alone(torch.float64), {}
    for shares in SHARES:
        model = parallelize_module(network(torch.float64), both["tensor"], plan)
        fully_shard(model.fc, mesh=both["data"])
        fully_shard(model, mesh=both["data"])
        own = batches(both["data"].get_local_rank(), 2, shares)
        values = nc.measure(model, own, layers=["mid"], test_loader=own, sharded=True, progress=False)
        found[shares] = ["float64", farthest(values, wanted)]
    return found


def measured_from_checkpoints(rank: int, world: int, folder: Path) -> dict:
    """Written in parts by torch.distributed.checkpoint, loaded into another model, and into a run twice."""
    import torch.distributed.checkpoint as dcp

    dcp.save({"model": sharded(torch.float64, ("fc",)).state_dict()}, checkpoint_id=folder / "step-2")
    other = sharded(torch.float64, ())
    with torch.no_grad():
        for value in other.parameters():
            value.mul_(2)
        other.eval()(torch.zeros(2, D, dtype=torch.float64))  # leaves the outermost parameters whole
    before = [value.full_tensor() for value in other.state_dict().values() if hasattr(value, "full_tensor")]
    own, found, wanted = batches(rank, world, "even"), {}, alone(torch.float64)
    for name, out in (("alone", None), ("new", folder / "run"), ("again", folder / "run")):
        given = {"sharded": True, "progress": False, "out": out}
        (record,) = nc.measure_checkpoints(other, str(folder / "step-*"), own, **given)
        found[name] = ["float64", farthest(record.measures, {key: wanted[key] for key in record.measures})]
    after = [value.full_tensor() for value in other.state_dict().values() if hasattr(value, "full_tensor")]
    return {**found, "as before": ["float64", float(not all(map(torch.equal, before, after)))]}


def trained(rank: int, world: int) -> dict:
    """With two backward passes a step, measured before and after each of them and after the step."""
    found = {}
    inputs, labels = (values[rank::world] for values in samples(torch.float32))
    for parts in ((), ("body", "fc")):
        ends = []
        for measuring in (False, True):
            model = sharded(torch.float32, parts)
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
            recorder = nc.Recorder(batches(rank, world, "empty", torch.float32), sharded=True, progress=False)

            def look(at: int, model=model, recorder=recorder, measuring=measuring) -> None:
                if measuring:
                    recorder.measure(model, at)

            for step in range(3):
                model.train()
                for part in range(2):
                    model.set_requires_gradient_sync(part == 1)
                    loss = F.cross_entropy(model(inputs[part::2]), labels[part::2])
                    look(10 * step + 2 * part)
                    loss.backward()
                    look(10 * step + 2 * part + 1)
                optimizer.step()
                look(10 * step + 5)
                optimizer.zero_grad()
            whole = [value.full_tensor() for value in model.parameters()]
            ends.append([*whole, *(value.clone() for value in model.buffers()), loss.detach()])
        found[str(parts)] = all(map(torch.equal, *ends))
    return found


class Broken:
    """A loader that fails after two batches in one process."""

    def __init__(self, own: list, broken: bool) -> None:
        self.own, self.broken = own, broken

    def __iter__(self):
        yield from self.own[:2]
        if self.broken:
            raise OSError("the disk is gone")
        yield from self.own[2:]


def refuse(*_: object) -> None:
    raise ValueError("too warm")


def wrong_on_one(rank: int, world: int) -> dict:
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    bad = rank == world - 1
    own = batches(rank, world, "even")
    labels = [(inputs, labels + 100 * (bad and at == 2)) for at, (inputs, labels) in enumerate(own)]
    spoilt = [(inputs * (math.nan if bad and at == 1 else 1), labels) for at, (inputs, labels) in enumerate(own)]
    cases = {
        "classifier": {"classifier": "fcc" if bad else "fc"},
        "layers": {"layers": ["nope"] if bad else []},
        "nc4": {"nc4": not bad},
        "errors": {"errors": "x" if bad else False},
        "device": {"device": "nowhere" if bad else None},
        "loader": {"loader": 3 if bad else own},
        "test_loader": {"test_loader": own if bad else None},
        "labels": {"loader": labels},
        "values": {"loader": spoilt},
        "loader that ends": {"loader": iter(own) if bad else own, "min_count": 1},
        "reference": {"reference": nc.ClassMoments.from_batch(torch.eye(6), torch.arange(6) % 4, K - bad)},
        "everywhere": {"classifier": "fcc"},
    }
    found = {}
    for kind, model in (("split", sharded(torch.float64, ("body", "fc"))), ("whole", network(torch.float64))):
        for name, options in cases.items():
            given = {"loader": own, "sharded": True, "progress": False, **options}
            found[f"{kind} {name}"] = message(lambda model=model, given=given: nc.measure(model, **given))
        broken = Broken(own, bad)
        found[f"{kind} disk"] = message(lambda m=model, b=broken: nc.measure(m, b, sharded=True, progress=False))
        recorder = nc.Recorder(own, sharded=True, progress=False)
        found[f"{kind} epoch"] = message(lambda m=model, r=recorder: r.measure(m, 1 + bad))
    split = sharded(torch.float64, ())
    found["split sharded"] = message(lambda: nc.measure(split, own, sharded=not bad, progress=False))
    singles = [(inputs.float() if bad else inputs, labels) for inputs, labels in own]
    found["types"] = message(lambda: nc.measure(sharded(torch.float64, ("fc",)), singles, sharded=True, progress=False))
    broken = sharded(torch.float64, ())
    broken.relu.register_forward_pre_hook(refuse)
    found["network"] = message(lambda: nc.measure(broken, [] if bad else own, sharded=True, progress=False))
    plan = {"body": ColwiseParallel(), "mid": RowwiseParallel()}
    model = parallelize_module(network(torch.float64), mesh(), plan)
    every = batches(0, 1, "all")
    found["parts of a layer"] = message(lambda: nc.measure(model, every, layers=["relu"], progress=False))
    found["other batches"] = message(lambda: nc.measure(model, own, sharded=True, progress=False))
    flat = FullyShardedDataParallel(network(torch.float64), device_id=torch.device("cpu"))
    found["flat"] = message(lambda: nc.measure(flat, own, sharded=True, progress=False))
    with torch.no_grad():
        for value in split.parameters():
            if bad:
                value.to_local().fill_(math.nan)
    found["diverged"] = message(lambda: nc.Recorder(own, sharded=True, progress=False).measure(split, 1))
    return found


MEASURED = (
    measured_under_fsdp2,
    measured_under_tensor_parallelism,
    measured_with_maps_that_rows_show,
    measured_under_ddp,
    measured_in_bfloat16,
    measured_beside,
)
WORK = (*MEASURED, trained, wrong_on_one)


def work(rank: int, world: int, folder: Path, names: tuple[str, ...]) -> dict:
    found = {each.__name__: each(rank, world) for each in (*WORK, measured_under_both) if each.__name__ in names}
    if measured_from_checkpoints.__name__ in names:
        found["measured_from_checkpoints"] = measured_from_checkpoints(rank, world, folder)
    return found


def results(folder: Path, world: int, *names: str) -> list[dict]:
    """What each process found."""
    return on_ranks(world, folder, work, folder, names)


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> list[dict]:
    quick = [each.__name__ for each in WORK if each is not measured_beside]
    return results(tmp_path_factory.mktemp("two"), 2, *quick)


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> list[dict]:
    return results(tmp_path_factory.mktemp("three"), 3, *(each.__name__ for each in WORK))


def check_close(found: list[dict], name: str) -> None:
    for each in found:
        assert each[name]
        for case, (dtype, off) in each[name].items():
            assert off <= CLOSE[dtype], case


def check_told(found: list[dict]) -> None:
    """One message in all processes, and the right one."""
    last = len(found) - 1
    told = [each["wrong_on_one"] for each in found]
    for case, text in told[0].items():
        assert text != "no error", case
        for rank, each in enumerate(told):
            assert each[case] == ("OSError: the disk is gone" if "disk" in case and rank == last else text), case
    first = told[0]
    for kind in ("split", "whole"):
        assert f"got classifier='fc' in process 0 and 'fcc' in process {last}" in first[f"{kind} classifier"]
        assert f"got nc4=True in process 0 and False in process {last}" in first[f"{kind} nc4"]
        assert f"got test_loader=False in process 0 and True in process {last}" in first[f"{kind} test_loader"]
        assert f"got epoch=1 in process 0 and 2 in process {last}" in first[f"{kind} epoch"]
        assert first[f"{kind} errors"].startswith(f"process {last}: expected errors")
        assert first[f"{kind} device"].startswith(f"process {last}: expected a device")
        assert first[f"{kind} loader"].startswith(f"process {last}: expected loader")
        assert first[f"{kind} labels"].startswith(f"process {last}: batch 3: expected labels from 0 to 4")
        assert first[f"{kind} values"].startswith(f"process {last}: batch 2: expected finite features")
        assert first[f"{kind} disk"] == f"process {last}: OSError (the disk is gone)"
        assert first[f"{kind} loader that ends"].startswith(
            f"process {last}: expected a loader that can be run through"
        )
        assert first[f"{kind} reference"].startswith(f"process {last}: expected reference moments of the features")
        assert "no layer 'fcc' (did you mean 'fc'?)" in first[f"{kind} everywhere"]
        assert not first[f"{kind} everywhere"].startswith("process")
    assert f"same floating types in all processes, got others in process {last}" in first["types"]
    assert first["network"].startswith("process 0: batch 1: expected inputs that the network takes")
    assert "sharded=True in process 0" in first["split sharded"]
    assert "a part of its channels in each of the processes 0 and 1" in first["parts of a layer"]
    assert "expected the same batches in the processes 0 and 1" in first["other batches"]
    assert "(FSDP1): shard the network with fully_shard" in first["flat"]
    assert "diverged by epoch 1" in first["diverged"]


def test_sharded_weights_of_a_single_process_are_measured_as_whole_ones(tmp_path):
    """The fast one: a group of one process has its weights in shards, too."""
    dist.init_process_group("gloo", f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        model, every = sharded(torch.float64, ("body", "fc")), batches(0, 1, "all")
        assert type(model.fc.weight.data) is not torch.Tensor
        found = nc.measure(model, every, layers=["mid"], test_loader=every, progress=False)
        with pytest.raises(nc.InputError, match=r"no layer 'fcc' \(did you mean 'fc'\?\)"):
            nc.measure(model, every, "fcc", progress=False)
    finally:
        dist.destroy_process_group()
    assert farthest(found, alone(torch.float64)) < CLOSE["float64"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [each.__name__ for each in MEASURED[:-1]])
def test_two_processes_measure_what_one_does(two, name):
    check_close(two, name)


@pytest.mark.slow
def test_training_under_fsdp2_goes_as_it_would_without_measuring(two):
    assert [all(each["trained"].values()) for each in two] == [True, True]


@pytest.mark.slow
def test_an_error_in_one_process_is_raised_in_all(two):
    check_told(two)


@pytest.mark.slow
@pytest.mark.parametrize("name", [each.__name__ for each in MEASURED])
def test_three_processes_measure_what_one_does(three, name):
    check_close(three, name)


@pytest.mark.slow
def test_three_processes_train_and_fail_as_two_do(three):
    assert [all(each["trained"].values()) for each in three] == [True] * 3
    check_told(three)


@pytest.mark.slow
def test_four_processes_on_a_mesh_of_two_dimensions_and_their_checkpoints(tmp_path):
    names = ("measured_under_both", "measured_from_checkpoints")
    found = results(tmp_path, 4, *names)
    for name in names:
        check_close(found, name)
