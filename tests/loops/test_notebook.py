"""A notebook's output that is updated in place: with a stand-in for IPython."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import neuralcollapse as nc
from neuralcollapse.loops import notebook


class Shell:
    """A notebook: its outputs by number, each the last that it was given, and what is called as a cell ends."""

    def __init__(self):
        self.kernel = object()
        self.outputs = []
        self.hooks = []
        self.events = SimpleNamespace(
            register=lambda name, hook: self.hooks.append(hook), unregister=lambda name, hook: self.hooks.remove(hook)
        )

    def display(self, data, *, raw, display_id):
        assert raw
        assert display_id is True
        place = len(self.outputs)
        self.outputs.append(data)

        def update(data, *, raw):
            self.outputs[place] = data

        return SimpleNamespace(update=update)

    def end_cell(self):
        for hook in list(self.hooks):
            hook(object())


@pytest.fixture
def shell(monkeypatch):
    shell = Shell()
    ipython, display = ModuleType("IPython"), ModuleType("IPython.display")
    ipython.get_ipython = lambda: shell
    display.display = shell.display
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return shell


@pytest.fixture
def recorder():
    loader = DataLoader(TensorDataset(torch.randn(30, 4), torch.arange(30) % 3), 10)
    return nc.Recorder(loader, progress=False, class_names=["<b>cat</b>", "dog", "eel"])


def test_figures_are_shown_in_place_and_whole_when_the_cell_ends(shell, recorder, monkeypatch):
    monkeypatch.setattr(notebook, "png", lambda figure: b"\x89PNG")
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    recorder.show()
    assert shell.outputs[0]["text/plain"] == "No records yet."
    for epoch in range(3):
        recorder.measure(model, epoch)
    shell.end_cell()
    (output,) = shell.outputs
    assert "after 2 epochs" in output["text/plain"]
    assert output["text/html"].count('src="data:image/png;base64,') == 4
    assert "<script" not in output["text/html"]
    recorder.measure(model, 7)  # in a later cell
    shell.end_cell()
    assert len(shell.outputs) == 1
    assert "after 7 epochs" in shell.outputs[0]["text/plain"]
    recorder.show()  # in another cell: the first one stays as it is
    assert "after 7 epochs" in shell.outputs[1]["text/plain"]
    recorder.measure(model, 8)
    shell.end_cell()
    assert ["after 8 epochs" in output["text/plain"] for output in shell.outputs] == [False, True]


def test_elsewhere_there_is_nothing_to_show_figures_in(recorder, monkeypatch):
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    with pytest.raises(nc.InputError, match="expected a notebook"):
        recorder.show()
    terminal = ModuleType("IPython")
    terminal.get_ipython = lambda: object()
    monkeypatch.setitem(sys.modules, "IPython", terminal)
    with pytest.raises(nc.InputError, match="expected a notebook"):
        recorder.show()


@pytest.mark.slow
def test_a_real_notebook(tmp_path):
    nbclient = pytest.importorskip("nbclient", reason="nbclient runs notebooks, and is not installed")
    nbformat = pytest.importorskip("nbformat", reason="nbformat makes notebooks, and is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel runs notebooks, and is not installed")
    cells = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "import torch, neuralcollapse as nc\n"
        "data = torch.utils.data.TensorDataset(torch.randn(30, 4), torch.arange(30) % 3)\n"
        "loader = torch.utils.data.DataLoader(data, 10)\n"
        "model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))\n"
        "recorder = nc.Recorder(loader, progress=False)\n"
        "recorder.show()\n"
        "for epoch in range(3): record = recorder.measure(model, epoch)",
        "record",
    )
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(book, timeout=120, kernel_name="python3").execute()
    (shown,), (record,) = (cell.outputs for cell in book.cells)
    assert "after 2 epochs" in shown.data["text/plain"]
    assert shown.data["text/html"].count("data:image/png") == 4
    assert "Record 2" in record.data["text/html"]
