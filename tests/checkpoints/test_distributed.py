"""A folder of torch.distributed.checkpoint, of which some rows are read."""

import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from neuralcollapse.checkpoints.distributed import DistributedFolder

TENSORS = {"weight": torch.arange(35.0).reshape(7, 5), "count": torch.tensor(3), "optim.step": torch.ones(2)}


@pytest.fixture
def folder(tmp_path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is one process
        dcp.save(dict(TENSORS), checkpoint_id=tmp_path / "saved")
    return tmp_path / "saved"


def test_rows_are_those_of_the_whole_tensor(folder):
    found = DistributedFolder(folder)
    assert found.shape("weight") == (7, 5)
    for start, stop in ((0, 7), (2, 5), (6, 7), (0, 0), (7, 7)):
        assert torch.equal(found.rows("weight", start, stop), TENSORS["weight"][start:stop])
    assert torch.equal(found.rows("weight"), TENSORS["weight"])
    assert torch.equal(found.rows("count"), TENSORS["count"])


def test_the_tensors_of_an_optimiser_are_named_and_are_no_weights(folder):
    found = DistributedFolder(folder)
    assert sorted(found.names) == sorted(TENSORS)
    assert sorted(found.weights()) == ["count", "weight"]
