"""Checkpoints in several files, written by torch.distributed.checkpoint and by Hugging Face: read, and never run."""

import json
import pickle
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import neuralcollapse as nc
from neuralcollapse.checkpoints.sharded import read_sharded
from neuralcollapse.checkpoints.weights import read_weights


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


def loader() -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(30) % 3
    return DataLoader(TensorDataset(torch.randn(30, 4, generator=generator), labels), batch_size=10)


def distributed(model: nn.Module, folder: Path) -> Path:
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(5, 4)).sum().backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optim": optimizer.state_dict(), "epoch": 3}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is one process
        dcp.save(state, checkpoint_id=folder)
    return folder


def indexed(model: nn.Module, folder: Path, **places: str) -> Path:
    folder.mkdir(parents=True)
    state = model.state_dict()
    files = {name: f"model-0000{1 + at % 2}-of-00002.safetensors" for at, name in enumerate(state)}
    for file in set(files.values()):
        save_file({name: state[name] for name in state if files[name] == file}, folder / file)
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": files | places}))
    return path


@pytest.mark.parametrize("write", [distributed, indexed])
def test_the_weights_are_those_that_were_written(tmp_path, write):
    model = network()
    path = write(model, tmp_path / "saved")
    found = {name.removeprefix("model."): value for name, value in read_weights(path).items()}
    assert found.keys() == model.state_dict().keys()
    assert all(torch.equal(found[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("write", [distributed, indexed])
def test_checkpoints_in_several_files_are_measured_in_order(tmp_path, write):
    models = {step: network(step) for step in (20, 3)}
    for step, model in models.items():
        write(model, tmp_path / f"step-{step}")
    records = nc.measure_checkpoints(network(9), str(tmp_path / "step-*"), loader(), progress=False)
    assert [record.epoch for record in records] == [3, 20]
    for record in records:
        wanted = nc.measure(models[record.epoch], loader(), progress=False)
        assert record.measures["nc1"] == pytest.approx(wanted["nc1"])


@pytest.mark.parametrize("place", ["../model.safetensors", "/etc/model.safetensors", "a/b.safetensors", "..", "x\\y"])
def test_file_names_that_lead_out_of_the_folder_are_refused(tmp_path, place):
    save_file({"0.weight": torch.zeros(6, 4)}, tmp_path / "model.safetensors")
    path = indexed(network(), tmp_path / "saved", **{"0.weight": place})
    with pytest.raises(nc.InputError, match=r"leads out of it|expected .safetensors files"):
        read_sharded(path)


class Runs:
    """A pickle that would run code."""

    def __reduce__(self):
        return print, ("it ran",)


def test_a_pickle_of_anything_else_is_never_loaded(tmp_path, capsys):
    folder = distributed(network(), tmp_path / "saved")
    (folder / ".metadata").write_bytes(pickle.dumps(Runs()))
    with pytest.raises(nc.InputError, match=r"pickled objects \(builtins.print\), which are never loaded"):
        read_sharded(folder)
    assert capsys.readouterr().out == ""


def test_parts_that_are_missing_cut_off_or_damaged_are_named(tmp_path):
    folder = distributed(network(), tmp_path / "saved")
    (part,) = folder.glob("*.distcp")
    content = part.read_bytes()
    part.write_bytes(content[: len(content) // 3])
    with pytest.raises(nc.InputError, match=r"cannot read .* is cut off"):
        read_sharded(folder)
    part.unlink()
    with pytest.raises(nc.InputError, match=r"no file .*distcp"):
        read_sharded(folder)
    (folder / ".metadata").write_bytes(b"no pickle")
    with pytest.raises(nc.InputError, match="cannot read"):
        read_sharded(folder)


def test_metadata_that_declare_more_than_the_folder_holds_are_refused(tmp_path):
    folder = distributed(nn.Linear(4, 6), tmp_path / "saved")
    content = (folder / ".metadata").read_bytes()
    metadata = dcp.FileSystemReader(folder).read_metadata()
    entry = metadata.state_dict_metadata["model.weight"]
    entry.size = torch.Size([2**40, 4])
    entry.chunks[0].sizes = entry.size
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(nc.InputError, match="larger than the whole checkpoint"):
        read_sharded(folder)
    (folder / ".metadata").write_bytes(content)
    assert read_sharded(folder)["model.weight"].shape == (6, 4)


@pytest.mark.parametrize(
    ("offsets", "sizes"),
    [
        ([(0, 0)], [(-6, -4)]),
        ([(0, 0), (2, 0)], [(3, 4), (3, 4)]),
        ([(0, 0), (0, 1)], [(6, 2), (6, 2)]),
        ([(0, 0), (3, 2)], [(3, 4), (3, 4)]),
        ([(-1, 0)], [(6, 4)]),
    ],
)
def test_parts_that_overlap_or_leave_a_gap_are_refused(tmp_path, offsets, sizes):
    """What no part covers would be whatever the memory held."""
    folder = distributed(nn.Linear(4, 6), tmp_path / "saved")
    metadata = dcp.FileSystemReader(folder).read_metadata()
    (chunk,) = metadata.state_dict_metadata["model.weight"].chunks
    chunks = [
        replace(chunk, offsets=torch.Size(at), sizes=torch.Size(part)) for at, part in zip(offsets, sizes, strict=True)
    ]
    metadata.state_dict_metadata["model.weight"].chunks[:] = chunks
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(nc.InputError, match=r"the parts of model\.weight do not make it up"):
        read_sharded(folder)


def test_a_folder_that_is_not_written_to_its_end_is_called_so(tmp_path):
    folder = distributed(network(), tmp_path / "step-1")
    (folder / ".metadata").unlink()
    for read in (read_weights, lambda path: nc.measure_checkpoints(network(), str(path), loader(), progress=False)):
        with pytest.raises(nc.InputError, match=r"expected a whole checkpoint, got .* without \.metadata"):
            read(folder)


def test_an_index_that_names_what_a_file_does_not_hold_is_refused(tmp_path):
    path = indexed(network(), tmp_path / "saved", other="model-00001-of-00002.safetensors")
    with pytest.raises(nc.InputError, match="holds 'other', and it does not"):
        read_sharded(path)
