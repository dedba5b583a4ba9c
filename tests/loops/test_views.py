"""The views of a run that is measured: whatever becomes of them, the training and the records stay as they are."""

import random
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import neuralcollapse as nc
from neuralcollapse.loops import pace, views
from neuralcollapse.loops.views import Figures
from neuralcollapse.report import glance
from tests.loops.test_trackers import LightningWandb


@pytest.fixture
def at_once(monkeypatch):
    """Every view with every record."""
    monkeypatch.setattr(pace.Pace, "due", True)


@pytest.fixture
def loader():
    generator = torch.Generator().manual_seed(0)
    return DataLoader(TensorDataset(torch.randn(30, 4, generator=generator), torch.arange(30) % 3), 10, shuffle=True)


def trained(loader, epochs=2, **options):
    """The weights after a training that draws random numbers, and its recorder."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    model = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.ReLU(), nn.Linear(6, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    recorder = nc.Recorder(loader, progress=False, **options)
    for epoch in range(epochs):
        recorder.measure(model, epoch)
        for inputs, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
    drawn = (random.random(), np.random.rand(), float(torch.rand(())))  # noqa: NPY002
    return [value.clone() for value in model.parameters()], drawn, recorder


def test_weights_and_random_numbers_are_those_without_views(loader, tmp_path, at_once, monkeypatch):
    logger = LightningWandb()
    # what loggers draw from the random states is put back too
    logger.log_image = lambda **_: (random.random(), np.random.rand(), torch.rand(()))  # noqa: NPY002
    seen, drawn, recorder = trained(loader, out=tmp_path / "run", loggers=[logger])
    alone, wanted, _ = trained(loader)
    assert all(map(torch.equal, seen, alone))
    assert drawn == wanted
    text = (tmp_path / "run/report.html").read_text()
    assert "This run is going on" in text
    assert "after 1 epoch" in text
    recorder.finish()
    assert "This run is going on" not in (tmp_path / "run/report.html").read_text()


def test_loggers_get_numbers_and_figures(loader, at_once, monkeypatch):
    monkeypatch.setattr(views, "pixels", lambda figure: None)
    logger = LightningWandb()
    _, _, recorder = trained(loader, loggers=[logger])
    numbers = [(call[0]["collapse/nc1"], call[0]["epochs"], call[1]) for call in logger.calls if len(call) == 2]
    assert numbers == [(record.measures["nc1"], record.epoch, record.epoch) for record in recorder.records]
    images = [(key, step) for key, _, step in (call for call in logger.calls if len(call) == 3)]
    names = ["figures/nc1", "figures/cosines", "figures/cosine-histogram"]
    assert images == [(name, epoch) for epoch in range(2) for name in names]


def test_a_recorder_that_is_forgotten_leaves_no_page_that_says_that_the_run_goes_on(loader, tmp_path, at_once):
    _, _, recorder = trained(loader, out=tmp_path / "run")
    del recorder
    text = (tmp_path / "run/report.html").read_text()
    assert "This run is going on" not in text
    assert "after 1 epoch" in text


def test_a_short_training_and_one_without_page_have_none(loader, tmp_path, monkeypatch):
    trained(loader, out=tmp_path / "short")
    monkeypatch.setattr(pace.Pace, "due", True)
    trained(loader, out=tmp_path / "without", page=False)
    assert list(tmp_path.glob("*/report.html")) == []


def test_a_view_that_fails_is_left_out_with_one_warning(loader, tmp_path, at_once, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("of a plot")

    monkeypatch.setattr(views, "pixels", broken)
    with pytest.warns(
        nc.NeuralCollapseWarning, match=r"the figures for the loggers.*of a plot.*records are kept"
    ) as got:
        _, _, recorder = trained(loader, out=tmp_path / "run", loggers=[LightningWandb()])
    assert len(got) == 1
    assert len(recorder.folder.records()) == 2
    recorder.finish()
    assert (tmp_path / "run/report.html").is_file()


def test_missing_packages_are_named_with_the_extra_that_brings_them(loader, at_once, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.warns(nc.NeuralCollapseWarning, match=r"neuralcollapse\[train\]"):
        trained(loader, epochs=1, loggers=[LightningWandb()])


def test_figures_come_as_the_records_grow_by_a_tenth_and_at_the_end(at_once, monkeypatch):
    logger = LightningWandb()
    monkeypatch.setattr(glance.Glance, "for_loggers", lambda self: [SimpleNamespace(name="nc1")])
    monkeypatch.setattr(views, "pixels", lambda figure: None)
    figures = Figures()
    for count in range(1, 501):
        figures.update(glance.Glance([None] * count), [logger], count)
    steps = [step for _, _, step in logger.calls]
    assert steps[:10] == list(range(1, 11))
    assert 40 <= len(steps) <= 60
    figures.finish()
    assert logger.calls[-1][2] == 500
    figures.finish()
    assert len(logger.calls) <= 61


def test_a_logger_that_takes_no_pictures_costs_none(at_once, monkeypatch):
    monkeypatch.setattr(views, "pixels", lambda figure: pytest.fail("drawn"))
    figures = Figures()
    figures.update(glance.Glance([]), [SimpleNamespace(log_metrics=None, experiment=object())], 0)
