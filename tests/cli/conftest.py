import warnings

import pytest

from neuralcollapse import NeuralCollapseWarning
from neuralcollapse.errors import RenamedWarning


@pytest.fixture(autouse=True)
def _own_warning_display(monkeypatch):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # main() sets it; put it back after
    with warnings.catch_warnings():
        warnings.simplefilter("always", NeuralCollapseWarning)
        warnings.simplefilter("always", RenamedWarning)
        yield
