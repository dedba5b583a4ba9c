"""The parts of a state in a folder of torch.distributed.checkpoint: written, read by rows, refused where changed."""

import hashlib
import pickle
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from neuralcollapse import InputError
from neuralcollapse.runs.folder import RunFolder
from neuralcollapse.training.parts import Parts, joined, split_like, without_parts, write_parts
from neuralcollapse.training.sharding import fully_shard, split

try:
    fully_shard()
except InputError as error:
    pytest.skip(str(error), allow_module_level=True)


@pytest.fixture
def group(tmp_path):
    """A group of one process."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def run(tmp_path) -> RunFolder:
    found = RunFolder(tmp_path / "run")
    found.path.mkdir()
    found.write_text("config.yaml", "{network: mlp, data: digits, checkpoint_every: 1}")  # whose parts are train's own
    return found


def trained(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A split network with batch normalisation that has taken a step of Adam."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    split(network, torch.device("cpu"))
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.randn(8, 4)).square().sum().backward()
    optimizer.step()
    return network, optimizer


def tensors(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    found: dict = dict(network.state_dict())
    for number, values in optimizer.state_dict()["state"].items():
        found |= {f"{number}.{name}": value for name, value in values.items()}
    return {name: value.full_tensor() if hasattr(value, "full_tensor") else value for name, value in found.items()}


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def written(run: RunFolder) -> tuple[dict[str, torch.Tensor], dict, dict]:
    """What was trained, the entry that names its parts, and the rest of the optimiser's state."""
    network, optimizer = trained(0)
    return tensors(network, optimizer), write_parts(run, network, optimizer), without_parts(optimizer.state_dict())


def test_what_was_written_is_read_into_another_split_network(group, run):
    wanted, entry, rest = written(run)
    network, optimizer = trained(1)
    found = Parts.named(run, entry).load(network, optimizer)
    optimizer.load_state_dict(split_like(optimizer, joined(rest, found)))
    assert_same(tensors(network, optimizer), wanted)


def test_the_same_is_read_whole(group, run):
    wanted, entry, rest = written(run)
    weights, found = Parts.named(run, entry).whole()
    state = joined(rest, found)["state"]
    assert_same(
        weights | {f"{number}.{name}": value for number in state for name, value in state[number].items()}, wanted
    )


def test_a_whole_state_of_an_optimiser_is_split(group, run):
    wanted, entry, rest = written(run)
    network, optimizer = trained(1)
    _, found = Parts.named(run, entry).whole()
    optimizer.load_state_dict(split_like(optimizer, joined(rest, found)))
    assert_same(
        {name: value for name, value in tensors(network, optimizer).items() if name[0].isdigit() and "exp" in name},
        {name: value for name, value in wanted.items() if "exp" in name},
    )


def test_one_state_after_another_each_in_a_folder_of_its_own(group, run):
    names = [written(run)[1]["folder"] for _ in range(2)]
    assert names == ["00001", "00002"]
    assert not list(run.parts.glob(".*"))
    run.keep_parts("00002")
    assert [place.name for place in run.parts.iterdir()] == ["00002"]
    run.keep_parts(None)
    assert not run.parts.exists()


def test_a_changed_file_is_named_and_not_used(group, run):
    _, entry, _ = written(run)
    parts = Parts.named(run, entry)
    for name in entry["files"]:
        file = parts.folder / name
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        for read in (parts.whole, lambda: parts.load(*trained(1))):
            with pytest.raises(InputError, match=rf"{name} was changed or damaged"):
                read()
        file.write_bytes(content)


def test_nothing_in_a_folder_is_unpickled_even_if_its_checksums_are_right(group, run, tmp_path):
    class Call:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    _, entry, _ = written(run)
    folder = run.parts / entry["folder"]
    (folder / ".metadata").write_bytes(pickle.dumps(Call()))
    entry["files"][".metadata"] = hashlib.sha256((folder / ".metadata").read_bytes()).hexdigest()
    with pytest.raises(InputError, match="which are never loaded"):
        Parts.named(run, entry).load(*trained(1))
    assert not (tmp_path / "ran").exists()


def test_the_parts_of_another_network_are_refused(group, run):
    _, entry, _ = written(run)
    network = nn.Sequential(nn.Linear(4, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3))
    split(network, torch.device("cpu"))
    with pytest.raises(InputError, match=r"of another network.*has the shape \(6, 4\), expected \(7, 4\)"):
        Parts.named(run, entry).load(network, torch.optim.Adam(network.parameters()))


@pytest.mark.parametrize("folder", ["../00001", "1", "", None, "/etc"])
def test_the_name_of_a_folder_leads_nowhere_else(run, folder):
    with pytest.raises(ValueError, match="names no folder"):
        Parts.named(run, {"folder": folder, "files": {"a": "b"}})


def test_missing_files_are_named(run):
    (run.parts / "00001").mkdir(parents=True)
    with pytest.raises(ValueError, match="has no file 'a'"):
        Parts.named(run, {"folder": "00001", "files": {"a": "b"}})
    with pytest.raises(ValueError, match="is empty"):
        Parts.named(run, {"folder": "00001", "files": {}})
