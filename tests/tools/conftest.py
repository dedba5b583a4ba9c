"""The files of tools/ are no package: they are on Python's path here as in `make docs`."""

import sys

import pytest

from tests.test_docs import ROOT


@pytest.fixture(autouse=True)
def _tools(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    yield
    for name in [name for name in sys.modules if name == "skipped" or name.startswith("docs_")]:
        del sys.modules[name]
