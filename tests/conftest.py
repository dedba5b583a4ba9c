"""Fixtures of several test files: runs that are trained once, a browser, warnings as the command shows them."""

import shutil
import warnings

import pytest

from neuralcollapse import NeuralCollapseWarning
from neuralcollapse.runs.folder import RunFolder
from neuralcollapse.training.config import TrainConfig
from neuralcollapse.training.run import train

SHORT = TrainConfig(epochs=4, width=32, depth=2, feature_dim=16, checkpoint_every=2)


@pytest.fixture(scope="session")
def short_run(tmp_path_factory) -> RunFolder:
    """Four epochs of a small network: a run folder as a finished run leaves it, but for the page."""
    return train(SHORT, tmp_path_factory.mktemp("runs") / "short", progress=False)


@pytest.fixture(scope="session")
def default_run(tmp_path_factory) -> RunFolder:
    """What `neuralcollapse train` does with no options (some 25 s)."""
    return train(TrainConfig(), tmp_path_factory.mktemp("runs") / "default", progress=False)


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window; one for a test file, since playwright's event loop would be in the way of others."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no chromium, chromium-browser or google-chrome is installed")
    arguments = ["--no-sandbox", "--disable-gpu", "--use-gl=swiftshader", "--enable-unsafe-swiftshader"]
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=program, args=arguments)
        yield found
        found.close()


@pytest.fixture
def own_warning_display(monkeypatch):
    """For tests that call the command: it shows warnings in its own way, which is undone after the test."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    with warnings.catch_warnings():
        warnings.simplefilter("always", NeuralCollapseWarning)
        yield
