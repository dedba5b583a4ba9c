"""The notebooks of examples/ are those of the programs, and their cells run in order."""

import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "examples/notebooks"
SHORT = {"plain_loop": {}, "train_from_python": {}, "few_shots": {"default=1000": "default=100"}}


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import make_notebooks

    return make_notebooks


def cells(name, kind="code"):
    found = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == kind]


def shortened(text, name):
    for long, short in {"default=20": "default=1", "default=40": "default=20", **SHORT[name]}.items():
        text = text.replace(long, short)
    return text


def test_every_program_has_a_notebook_and_each_is_up_to_date(tool):
    programs = {file.stem for file in (ROOT / "examples").glob("*.py")}
    assert set(tool.NAMES) == programs
    assert {file.stem for file in NOTEBOOKS.glob("*.ipynb")} == programs
    for name in tool.NAMES:
        made = tool.notebook((ROOT / f"examples/{name}.py").read_text(encoding="utf-8"), tool.NEEDS.get(name, ""))
        written = (NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8")
        assert written == made, "make them again: python tools/make_notebooks.py"


def test_a_notebook_begins_with_text_and_one_line_that_installs():
    for file in NOTEBOOKS.glob("*.ipynb"):
        assert cells(file.stem, "markdown")[0].startswith("# ")
        first, *others = cells(file.stem)
        assert first.startswith("%pip install")
        assert "\n" not in first
        for text in others:
            compile(text, file.name, "exec")


def test_nothing_of_a_program_is_lost(tool):
    """Comments, decorators and all statements are in the cells."""
    source = (
        '"""Title.\n\npython examples/x.py\n"""\nimport a\n# why\nx = 1  # that\n\n\n@d\ndef f():\n    pass\n\n\nf()\n'
    )
    text = "\n".join("".join(cell["source"]) for cell in json.loads(tool.notebook(source))["cells"])
    assert [line for line in ("import a", "# why", "x = 1  # that", "@d", "f()") if line not in text] == []
    assert "examples/x.py" not in text


@pytest.mark.parametrize("name", SHORT)
def test_the_cells_of_a_notebook_run_in_order(name, tmp_path, monkeypatch):
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["kernel", "-f", "connection.json"])
    namespace = {"__name__": "__main__", "__doc__": "as in a kernel"}
    for text in cells(name)[1:]:
        exec(compile(shortened(text, name), name, "exec"), namespace)
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    random.setstate(states[2])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain_loop", "few_shots"])
def test_a_notebook_runs_in_a_kernel(name, tmp_path):
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    found = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    nbformat.validate(found)
    found.cells.pop(1)  # what installs the library
    for cell in found.cells:
        cell.source = shortened(cell.source, name)
    ran = nbclient.NotebookClient(found, timeout=120, kernel_name="python3", resources={"metadata": {"path": tmp_path}})
    printed = "".join(output.get("text", "") for cell in ran.execute().cells for output in cell.get("outputs", []))
    assert "NC1" in printed
