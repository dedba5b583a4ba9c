"""A flipped bit anywhere in a file with a checksum is noticed; files without a checksum are read too."""

import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from neuralcollapse.runs.tensors import read_state, read_tensors, write_state, write_tensors

WEIGHTS = {"fc.weight": torch.arange(6.0).view(2, 3), "fc.bias": torch.zeros(2)}


@pytest.fixture
def weights(tmp_path):
    return write_tensors(tmp_path / "w.safetensors", WEIGHTS)


@pytest.fixture
def state(tmp_path):
    return write_state(tmp_path / "state.pt", {"network": WEIGHTS, "epoch": 3})


def assert_every_flip_is_noticed(read, file):
    content = file.read_bytes()
    for bit in range(8 * len(content)):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        file.write_bytes(changed)
        try:
            read(file)
        except ValueError:
            continue
        pytest.fail(f"bit {bit} of {8 * len(content)} was not noticed")


def test_weights_are_read_by_others_and_here(weights, tmp_path):
    for found in (load_file(weights), read_tensors(weights)[0]):
        assert all(torch.equal(found[name], value) for name, value in WEIGHTS.items())
    again = write_tensors(tmp_path / "again.safetensors", WEIGHTS)
    assert again.read_bytes() == weights.read_bytes()


def test_named_tensors_are_read_and_the_others_named(weights):
    found, others = read_tensors(weights, ["fc.bias", "labels"])
    assert set(found) == {"fc.bias"}
    assert others == ["fc.weight"]


def test_a_state_is_read_by_others_and_here(state):
    for found in (torch.load(state, weights_only=True), read_state(state)):
        assert found["epoch"] == 3
        assert torch.equal(found["network"]["fc.weight"], WEIGHTS["fc.weight"])
    assert zipfile.ZipFile(state).testzip() is None


def test_every_flipped_bit_of_weights_is_noticed(weights):
    assert_every_flip_is_noticed(read_tensors, weights)


@pytest.mark.slow
def test_every_flipped_bit_of_a_state_is_noticed(state):
    assert_every_flip_is_noticed(read_state, state)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 100, -65, -1])
def test_files_that_are_cut_off_are_noticed(weights, state, length):
    for file, read in ((weights, read_tensors), (state, read_state)):
        file.write_bytes(file.read_bytes()[:length])
        with pytest.raises(ValueError, match=r"cut off|damaged"):
            read(file)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"neuralcollapses": "1"}])
def test_files_of_others_and_of_version_0_1_0_have_no_checksum(metadata, tmp_path):
    save_file(WEIGHTS, tmp_path / "w.safetensors", metadata)
    assert set(read_tensors(tmp_path / "w.safetensors")[0]) == set(WEIGHTS)
    torch.save(WEIGHTS, tmp_path / "state.pt")
    assert set(read_state(tmp_path / "state.pt")) == set(WEIGHTS)


@pytest.mark.parametrize(
    "header", [b"", b"[]", b"null", b"{", b"[" * 10**5, b'{"__metadata__": 1}', b'{"__metadata__": [1]}']
)
@pytest.mark.parametrize("length", [None, 2**40, 2**63, 10**8])
def test_absurd_headers_are_refused(header, length, tmp_path):
    size = len(header) if length is None else length
    (tmp_path / "w.safetensors").write_bytes(size.to_bytes(8, "little") + header + np.zeros(8).tobytes())
    with pytest.raises(ValueError, match="it is damaged or not a safetensors file"):
        read_tensors(tmp_path / "w.safetensors")
