"""Float32 products are in full float32 whatever the user has set, and every setting is left as it was found."""

import subprocess
import sys
import threading

import pytest
import torch

from neuralcollapse.geometry import precision
from neuralcollapse.geometry.precision import full_precision

NEW = precision._NEW
CPU = torch.device("cpu")
OLD_SETTINGS = [
    "",
    "torch.set_float32_matmul_precision('high')",
    "torch.set_float32_matmul_precision('medium')",
    "b.cuda.matmul.allow_tf32 = True",
    "b.cudnn.allow_tf32 = False",
]
NEW_SETTINGS = [
    "b.fp32_precision = 'tf32'",
    "b.fp32_precision = 'bf16'",
    "b.cuda.matmul.fp32_precision = 'tf32'",
    "b.mkldnn.matmul.fp32_precision = 'bf16'",
    "b.mkldnn.fp32_precision = 'bf16'",
    "b.cudnn.fp32_precision = 'tf32'",
    "b.cudnn.conv.fp32_precision = 'ieee'",
    "b.cudnn.rnn.fp32_precision = 'ieee'",
    "b.mkldnn.conv.fp32_precision = 'bf16'",
    "torch.set_float32_matmul_precision('medium'); b.fp32_precision = 'tf32'",
    "b.cuda.matmul.allow_tf32 = True; b.mkldnn.matmul.fp32_precision = 'ieee'",
    "b.fp32_precision = 'tf32'; b.mkldnn.matmul.fp32_precision = 'tf32'",
]
# In a process of its own. What is looked at: every level of the new settings and the old one, after an update, after
# one that fails, and once the topmost is taken back (what was taken over from it follows, what was set itself stays).
PROGRAM = """
import sys
import torch
from neuralcollapse import ClassMoments
torch.set_num_threads(1)
b = torch.backends
get = getattr(torch._C, "_get_fp32_precision_getter", None)
put = getattr(torch._C, "_set_fp32_precision_setter", None)
levels = [(x, y) for x in ("cuda", "mkldnn") for y in ("all", "matmul", "conv", "rnn")]
levels = [*levels, ("generic", "all")] if get else []
first = [get(*level) for level in levels]

def settings():
    try:
        return [get(*level) for level in levels] + [torch.get_float32_matmul_precision()]
    except RuntimeError:
        return [get(*level) for level in levels] + ["mixed"]

def update():
    torch.manual_seed(0)
    return ClassMoments.from_batch(100 + torch.randn(64, 300), torch.arange(64) % 4, 4).packed

def user(setting):
    torch.set_float32_matmul_precision("highest")
    b.cudnn.allow_tf32 = True
    for level, value in zip(reversed(levels), reversed(first)):
        put(*level, value)
    exec(setting, {"torch": torch, "b": b})

def take_back():
    if get:
        b.fp32_precision = "none"

plain = update()
for setting in sys.argv[1:]:
    user(setting)
    found = settings()
    take_back()
    left = settings()
    user(setting)
    assert settings() == found
    assert torch.equal(update(), plain), setting
    try:
        ClassMoments.from_batch(torch.full((64, 300), torch.nan), torch.arange(64) % 4, 4)
    except ValueError:
        pass
    assert settings() == found, (setting, settings(), found)
    take_back()
    assert settings() == left, (setting, settings(), left)
print(len(sys.argv) - 1)
"""


def test_an_update_is_the_same_under_every_setting_and_leaves_it():
    settings = [*OLD_SETTINGS, *(NEW_SETTINGS if NEW else ())]
    run = subprocess.run([sys.executable, "-c", PROGRAM, *settings], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.strip() == str(len(settings))


@pytest.fixture(params=["new", "old"] if NEW else ["old"])
def setting(request, monkeypatch):
    """A fresh setting by the new or the old API, and how to read and write what a user has set."""
    monkeypatch.setattr(precision, "_NEW", request.param == "new")
    fresh = precision._Setting("mkldnn")
    monkeypatch.setattr(precision, "_other", fresh)
    low = "bf16" if request.param == "new" else "medium"
    before = fresh._own() if fresh._read() not in precision._FULL else fresh._read()
    fresh._write(low)
    yield fresh, low
    fresh._write(before)


def test_inside_it_is_full_and_afterwards_as_found_even_after_an_error(setting):
    fresh, low = setting
    with full_precision(CPU), full_precision(CPU):
        assert fresh._read() in precision._FULL
    assert fresh._read() == low
    with pytest.raises(KeyError), full_precision(CPU):
        raise KeyError
    assert fresh._read() == low


def test_it_stays_full_until_the_last_thread_is_done(setting):
    fresh, low = setting
    inside, go = threading.Event(), threading.Event()

    def other():
        with full_precision(CPU):
            inside.set()
            go.wait(10)

    thread = threading.Thread(target=other)
    with full_precision(CPU):
        thread.start()
        inside.wait(10)
    assert fresh._read() in precision._FULL  # this thread has left, the other has not
    go.set()
    thread.join()
    assert fresh._read() == low


def test_autocast_is_off_inside():
    with torch.autocast("cpu", dtype=torch.bfloat16), full_precision(CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
