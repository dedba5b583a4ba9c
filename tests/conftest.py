"""Runs that several tests look at, trained once."""

import pytest

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
