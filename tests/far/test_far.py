"""Everything that takes tensors finds on a simulated accelerator what it finds on the CPU, and passes do not wait.

The device is simulated in a process of its own: torch would know of it in all other tests too.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.far.verbs import OPTIONS, VERBS

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(torch._C, "_acc"), reason="this torch simulates no device"),
]


@pytest.fixture(scope="module")
def found():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, "-m", "tests.far.verbs"]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", VERBS)
def test_both_devices_give_the_same_numbers(found, name):
    result = found["verbs"][name]
    assert "error" not in result, result["error"]
    assert result["cpu"].keys() == result["far"].keys()
    for key, expected in result["cpu"].items():
        largest = max((abs(each) for each in expected if each is not None), default=0.0)
        assert result["far"][key] == pytest.approx(expected, rel=1e-5, abs=1e-6 * largest + 1e-12), key


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("at", ["cpu", "far"])
def test_no_batch_waits_for_the_device(found, name, at):
    """Except once to see which labels are those of samples to measure, where the labels are on the device."""
    few, many = found["waits"][f"{name}, batches on {at}"]
    a_batch = {"classes": 1, "ignore_index": 1, "min_count": 2}.get(name, 0) if at == "far" else 0
    assert few > 0
    assert many == few + 35 * a_batch  # of 5 and of 40 batches
