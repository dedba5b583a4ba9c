"""A flipped bit anywhere in a stamped file is noticed; files without a checksum are read as ever."""

import io
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save

from neuralcollapse.runs.checksums import METADATA, check_safetensors, check_zip, stamped_safetensors, stamped_zip

WEIGHTS = {"fc.weight": torch.arange(6.0).view(2, 3), "fc.bias": torch.zeros(2)}


@pytest.fixture(scope="module")
def weights() -> bytes:
    return stamped_safetensors(save(WEIGHTS, METADATA))


@pytest.fixture(scope="module")
def state() -> bytes:
    buffer = io.BytesIO()
    torch.save({"network": WEIGHTS, "epoch": 3}, buffer)
    return stamped_zip(buffer.getvalue())


def flips(content: bytes, every: int = 1):
    for bit in range(0, 8 * len(content), every):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        yield bit, bytes(changed)


def test_stamped_weights_are_read_as_before(weights, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(weights)
    check_safetensors(tmp_path / "w.safetensors")
    found = load_file(tmp_path / "w.safetensors")
    assert all(torch.equal(found[name], value) for name, value in WEIGHTS.items())
    assert weights == stamped_safetensors(save(WEIGHTS, METADATA))


def test_a_stamped_state_is_read_as_before(state):
    check_zip(state)
    found = torch.load(io.BytesIO(state), weights_only=True)
    assert torch.equal(found["network"]["fc.weight"], WEIGHTS["fc.weight"])
    assert zipfile.ZipFile(io.BytesIO(state)).testzip() is None


def test_every_flipped_bit_of_weights_is_noticed(weights, tmp_path):
    file = tmp_path / "w.safetensors"
    for bit, changed in flips(weights):
        file.write_bytes(changed)
        try:
            check_safetensors(file)
        except ValueError:
            continue
        pytest.fail(f"bit {bit} of {8 * len(weights)} was not noticed")


def test_every_flipped_bit_of_a_state_is_noticed(state):
    for bit, changed in flips(state):
        try:
            check_zip(changed)
        except ValueError:
            continue
        pytest.fail(f"bit {bit} of {8 * len(state)} was not noticed")


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 100, -65, -1])
def test_files_that_are_cut_off_are_noticed(weights, state, length, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(weights[:length])
    with pytest.raises(ValueError, match="damaged"):
        check_safetensors(tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"cut off|damaged"):
        check_zip(state[:length])


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"neuralcollapses": "1"}])
def test_files_of_others_and_of_earlier_versions_have_no_checksum(metadata, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(save(WEIGHTS, metadata))
    check_safetensors(tmp_path / "w.safetensors")
    buffer = io.BytesIO()
    torch.save(WEIGHTS, buffer)
    check_zip(buffer.getvalue())


@pytest.mark.parametrize(
    "header", [b"", b"[]", b"null", b"{", b"[" * 10**5, b'{"__metadata__": 1}', b'{"__metadata__": [1]}']
)
@pytest.mark.parametrize("length", [None, 2**40, 2**63, 10**8])
def test_absurd_headers_are_refused(header, length, tmp_path):
    size = len(header) if length is None else length
    (tmp_path / "w.safetensors").write_bytes(size.to_bytes(8, "little") + header + np.zeros(8).tobytes())
    with pytest.raises(ValueError, match="it is damaged, or no safetensors file"):
        check_safetensors(tmp_path / "w.safetensors")
