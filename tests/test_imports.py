"""The layering of docs/architecture.md, and what importing the package costs."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import neuralcollapse as nc

SOURCE = Path(nc.__file__).parent
# Bottom to top. In brackets the order of a subpackage's files, where it has one.
ROWS = {
    "_errors": (),
    "_checks": (),
    "_plain": (),
    "_arrays": (),
    "_checksums": (),
    "_locks": (),
    "_owned": (),
    "_record": (),
    "frames": (),
    "_precision": (),
    "_rounding": (),
    "moments": (),
    "_sharded": (),
    "subset": (),
    "_undefined": (),
    "_rows": (),
    "_means": (),
    "pairs": (),
    "collapse": (),
    "records": (),
    "runs": (),
    "codes": (),
    "rotation": (),
    "fixed": (),
    "nearest": (),
    "other_frames": (),
    "heads": (),
    "head_search": (),
    "classifier": (),
    "metric": (),
    "capture": (
        "batches",
        "layers",
        "linear_map",
        "returned",
        "hooks",
        "positions",
        "forward",
        "arguments",
        "agreement",
        "features",
        "collect",
    ),
    "_options": (),
    "ufm": (
        "losses",
        "model",
        "units",
        "descent",
        "hessian",
        "duality",
        "polish",
        "minimizers",
        "certificate",
        "solvers",
        "families",
        "atlas",
        "head",
        "facade",
    ),
    "recorder": (),
    "training": (
        "config",
        "splits",
        "binaries",
        "pictures",
        "hub",
        "sources",
        "alter",
        "data",
        "pixels",
        "resnet",
        "outside",
        "networks",
        "objective",
        "optimizers",
        "module",
        "callbacks",
        "online",
        "resume",
        "progress",
        "trainer",
        "assemble",
        "run",
        "cost",
    ),
    "reproduce": ("experiment", "minority", "checks", "surveys", "runner"),
    "report": (
        "figures",
        "compare",
        "page",
        "records_csv",
        "single",
        "several",
        "surveys",
        "experiment",
        "axes",
        "marks",
        "paper",
        "markdown",
    ),
    "integrations": ("pages", "processes", "weights", "lightning", "huggingface", "order", "checkpoints"),
    "cli": ("printing", "train", "checkpoints", "measure", "landscape", "report", "reproduce"),
    "__main__": (),
}
PACKAGES = [
    f"neuralcollapse.{name}" for name in ("capture", "ufm", "training", "reproduce", "report", "integrations", "cli")
]
NO_TORCH = ["neuralcollapse", "records", "_errors", "training.config", "cli"]


def module_name(path, source):
    """`training.run` for training/run.py, `training` for training/__init__.py, "" for the root."""
    parts = path.relative_to(source).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree, name, is_package):
    """The package's own modules that a file imports, anywhere in it; "" stands for the package root."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = ["neuralcollapse", *filter(None, name.split("."))]
                here = here[: len(here) - node.level + is_package]
                base = ".".join([*here, *filter(None, [node.module])])
            # `from package import file` imports the file; of anything else the part before `import` counts
            targets = [f"{base}.{alias.name}" if base in PACKAGES else base for alias in node.names]
        else:
            continue
        for target in targets:
            root, _, rest = target.partition(".")
            if root == "neuralcollapse":
                yield node.lineno, rest


def may_import(name, target):
    """Whether the layering lets the file `name` import the file `target`."""
    (row, _, file), (target_row, _, target_file) = name.partition("."), target.partition(".")
    rows = list(ROWS)
    if target_row not in rows or rows.index(target_row) > rows.index(row):
        return False
    if target_row != row:
        return True
    order = ROWS[row]
    if file in order and target_file in order:
        return order.index(target_file) < order.index(file)
    return file not in order and target_file != file


def violations(source):
    """Lines that break the layering, as text."""
    found = []
    for path in sorted(source.rglob("*.py")):
        name = module_name(path, source)
        if name == "":
            continue  # the root is the facade over all of it
        if name.partition(".")[0] not in ROWS:
            found.append(f"{name} has no row in the layering")
            continue
        for line, target in imported(ast.parse(path.read_text()), name, path.name == "__init__.py"):
            if target == "":
                found.append(f"{name}:{line} imports the package root")
            elif not may_import(name, target):
                found.append(f"{name}:{line} imports {target}")
    return found


def test_a_file_imports_only_from_rows_above_its_own():
    assert violations(SOURCE) == []


@pytest.mark.parametrize(
    ("file", "line", "broken"),
    [
        ("moments.py", "from neuralcollapse.frames import simplex_etf", False),
        ("moments.py", "from neuralcollapse.metric import NeuralCollapse", True),
        ("moments.py", "def lazily():\n    import neuralcollapse.metric", True),
        ("moments.py", "import neuralcollapse", True),
        ("moments.py", "from neuralcollapse import frames", True),
        ("moments.py", "from . import frames", True),
        ("moments.py", "from .frames import simplex_etf", False),
        ("moments.py", "from .metric import NeuralCollapse", True),
        ("moments.py", "import neuralcollapse_else, torch", False),
        ("training/data.py", "from neuralcollapse.training.config import TrainConfig", False),
        ("training/data.py", "from neuralcollapse.training.run import train", True),
        ("training/data.py", "from neuralcollapse.training import run", True),
        ("training/data.py", "from . import run", True),
        ("training/data.py", "from ..capture import measure", False),
        ("training/__init__.py", "from ..report import page", True),
        ("capture.py", "from neuralcollapse.training.config import TrainConfig", True),
        ("report/page.py", "from neuralcollapse.training.run import train", False),
        ("training/run.py", "from neuralcollapse.report.page import write_page", True),
        ("cli/report.py", "from neuralcollapse.report.page import write_page", False),
        ("new_idea.py", "", True),
    ],
)
def test_the_layering_test_sees_what_breaks_it(tmp_path, file, line, broken):
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(line)
    assert bool(violations(tmp_path)) is broken


def loaded_by(code):
    """The top-level modules in memory after running `code` in a fresh interpreter."""
    code += "\nimport sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("name", NO_TORCH)
def test_files_that_need_no_torch_load_none(name):
    module = name if name == "neuralcollapse" else f"neuralcollapse.{name}"
    assert not {"torch", "torchmetrics", "lightning"} & loaded_by(f"import {module}")


def test_the_heavy_import_would_be_seen():
    assert "torch" in loaded_by("import neuralcollapse.frames")


def test_every_public_name_resolves():
    assert len(nc.__all__) == len(set(nc.__all__))
    for name in nc.__all__:
        assert getattr(nc, name) is not None


def test_the_public_names_are_said_in_a_way_that_type_checkers_read():
    tree = ast.parse(Path(nc.__file__).read_text())
    (listed,) = [node.value for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "__all__"]
    assert ast.literal_eval(listed) == nc.__all__
    assert sorted(nc.__all__) == sorted([*nc._HOMES, "__version__", "ufm"])
    (checked,) = [node for node in tree.body if isinstance(node, ast.If)]
    found = {alias.name: node.module for node in checked.body for alias in node.names}
    assert found.pop("ufm") == "neuralcollapse"
    assert found == {name: f"neuralcollapse.{home}" for name, home in nc._HOMES.items()}
    assert (SOURCE / "py.typed").is_file()


USERS_FILE = """
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import neuralcollapse as nc
from neuralcollapse import ({names})
from neuralcollapse.ufm import ({ufm_names})

everything: list[object] = [{all_names}]
model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nc.ETFClassifier(6, 3))
data = TensorDataset(torch.randn(30, 4), torch.arange(30) % 3)
loader = DataLoader(data, batch_size=8)
values: dict[str, Any] = nc.measure(model, loader, "2", layers=["0"], pairwise=10)
etf: torch.Tensor = nc.simplex_etf(3, 6)
moments: nc.ClassMoments = nc.ClassMoments.from_batch(torch.randn(30, 6), torch.arange(30) % 3, 3)
floats: dict[str, float] = nc.measures(moments, etf)
metric = nc.NeuralCollapse(3, 6)
metric.update(torch.randn(30, 6), torch.arange(30) % 3)
recorder: nc.Recorder = nc.Recorder(loader, classifier="2", out="runs/mine", ignore_index=-100)
record: nc.Record = recorder.measure(model, 1, learning_rate=0.1)
nc1: float = record.measures["nc1"]
callback = nc.CollapseCallback(classifier="2", every=2)
records: list[nc.Record] = nc.measure_checkpoints(model, "*.pt", loader)
network: nn.Module = nc.build_network("resnet18", 10)
problem = nc.ufm.UnconstrainedFeatureModel(3, 4, 5, 1e-3, 1e-3)
minimum: float = problem.global_minimum()
try:
    nc.measure_features(torch.randn(30, 4), torch.arange(30) % 3)
except nc.InputError as error:
    print(error, nc.__version__)
"""


@pytest.mark.slow
def test_a_users_file_passes_the_strict_type_check(tmp_path):
    names = [name for name in nc.__all__ if name != "__version__"]
    text = USERS_FILE.format(
        names=", ".join(names),
        ufm_names=", ".join(nc.ufm.__all__),
        all_names=", ".join([*names, *nc.ufm.__all__, *(f"nc.{name}" for name in nc.__all__)]),
    )
    (tmp_path / "right.py").write_text(text)
    (tmp_path / "wrong.py").write_text("import neuralcollapse as nc\n\nnc.mesure\nfew: int = nc.simplex_etf(3)\n")
    (tmp_path / "mypy.ini").write_text("[mypy]\nstrict = true\n")
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--python-version", "3.10"]
    environment = {**os.environ, "MYPYPATH": str(SOURCE.parent)}
    done = subprocess.run(
        [*command, "right.py", "wrong.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert "right.py" not in done.stdout, done.stdout
    assert 'wrong.py:3: error: Module has no attribute "mesure"' in done.stdout, done.stdout + done.stderr
    assert "wrong.py:4: error: Incompatible types in assignment" in done.stdout


def test_importing_every_file_leaves_the_public_names_what_they_are():
    names = [name for path in SOURCE.rglob("*.py") if (name := module_name(path, SOURCE)) not in ("", "__main__")]
    code = "import importlib, types, neuralcollapse as nc\n"
    code += f"for name in {names!r}: importlib.import_module(f'neuralcollapse.{{name}}')\n"
    code += "assert [name for name in nc.__all__ if isinstance(getattr(nc, name), types.ModuleType)] == ['ufm']"
    loaded_by(code)


def test_dir_lists_the_public_names():
    assert set(nc.__all__) <= set(dir(nc))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'neuralcollapse' has no attribute 'mesure'"):
        nc.mesure  # noqa: B018
    with pytest.raises(ImportError, match="mesure"):
        from neuralcollapse import mesure  # noqa: F401
