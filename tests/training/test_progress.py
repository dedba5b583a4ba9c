from types import SimpleNamespace

import pytest

from neuralcollapse.runs.records import Record
from neuralcollapse.training import callbacks
from neuralcollapse.training.callbacks import Progress


def record(epoch: int, **more) -> Record:
    return Record(epoch, 0.0, 0.1, {"loss": 0.5, "accuracy": 0.75}, measures={"nc1": 0.25}, **more)


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: now.seconds)
    return now


def steps_to(bar: Progress, epoch: int, step: int) -> None:
    bar.on_train_batch_end(SimpleNamespace(current_epoch=epoch), SimpleNamespace(step=step - 1), None, None, step - 1)


def test_off_a_terminal_a_tenth_of_the_epochs_has_a_line(capsys):
    bar = Progress(100, 5, show=True)
    for epoch in range(101):
        bar.show(record(epoch))
    bar.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 11
    assert err.splitlines()[1] == "epoch   10/100  accuracy 0.7500  NC1 2.50e-01"


def test_long_epochs_have_a_line_each_half_minute(capsys, clock):
    bar = Progress(3, 4, show=True)
    bar.show(record(0))
    for step in (1, 2, 3):
        clock.seconds += 20
        steps_to(bar, 1, step)
    bar.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines[1:] == ["epoch 1.50/3  (at epoch 0: accuracy 0.7500  NC1 2.50e-01)"]


def test_a_certified_head_is_shown(capsys):
    bar = Progress(3, 4, show=True)
    bar.show(record(0, head={"ratio": 1.5}))
    bar.close()
    assert "head 1.500 x minimum" in capsys.readouterr().err


def test_nothing_is_shown_where_it_is_not_wanted(capsys, clock):
    bar = Progress(3, 4, show=False)
    bar.show(record(0))
    clock.seconds += 100
    steps_to(bar, 1, 1)
    bar.close()
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_a_bar_moves_within_epochs(monkeypatch, capsys, clock):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    bar = Progress(4, 10, show=True)
    assert not bar.bar.disable
    clock.seconds += 1
    steps_to(bar, 1, 5)
    assert bar.bar.n == pytest.approx(1.5)
    steps_to(bar, 1, 6)
    assert bar.bar.n == pytest.approx(1.5), "not at every step"
    bar.show(record(2))
    assert bar.bar.n == pytest.approx(2)
    bar.bar.refresh()
    bar.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert "epoch 2.00/4" in err
    assert "at epoch 2: accuracy 0.7500  NC1 2.50e-01" in err
