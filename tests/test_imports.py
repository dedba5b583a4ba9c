"""The public names, and what importing the package costs. The layering is a contract of `make lint`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import neuralcollapse as nc

SOURCE = Path(nc.__file__).parent
NO_TORCH = ["neuralcollapse", "runs.reading", "errors", "training.config", "cli"]


def module_name(path, source):
    """`training.run` for training/run.py, `training` for training/__init__.py, "" for the root."""
    parts = path.relative_to(source).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def loaded_by(code):
    """The top-level modules in memory after running `code` in a fresh interpreter."""
    code += "\nimport sys; print(); print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("name", NO_TORCH)
def test_files_that_need_no_torch_load_none(name):
    module = name if name == "neuralcollapse" else f"neuralcollapse.{name}"
    assert not {"torch", "torchmetrics", "lightning"} & loaded_by(f"import {module}")


@pytest.mark.slow
def test_the_heavy_import_would_be_seen():
    assert "torch" in loaded_by("import neuralcollapse.geometry.frames")


HEAVY = {"torchmetrics", "scipy", "lightning", "transformers", "sklearn", "matplotlib", "plotly", "datasets", "yaml"}
LIGHT = [
    *("ETFClassifier", "Recorder", "build_network", "fix_classifier", "measure", "measure_checkpoints"),
    *("measure_features", "measures", "read_run", "simplex_etf", "softmax_code", "ufm", "write_page"),
]


LOADED_ONE_BY_ONE = """
import sys
import neuralcollapse as nc
for name in {names!r}:
    getattr(nc, name)
    heavy = {heavy!r} & {{module.partition(".")[0] for module in sys.modules}}
    assert not heavy, f"{{name}} loads {{heavy}}"
"""


def test_names_that_need_torch_alone_load_nothing_else():
    loaded_by(LOADED_ONE_BY_ONE.format(names=LIGHT, heavy=HEAVY))


@pytest.mark.slow
def test_torchmetrics_is_loaded_for_the_metric():
    assert "torchmetrics" in loaded_by("import neuralcollapse as nc; nc.NeuralCollapse")


MEASURED = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
import neuralcollapse as nc
model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
data = TensorDataset(torch.randn(30, 4), torch.arange(30) % 3)
import sys
before = "torch._dynamo" in sys.modules
nc.measure(model, DataLoader(data, batch_size=8), layers=["0"])
nc.measure_features(torch.randn(30, 4), torch.arange(30) % 3, weight=torch.randn(3, 4))
assert before or "torch._dynamo" not in sys.modules
"""


def test_a_first_measurement_loads_nothing_else():
    assert not HEAVY & loaded_by(MEASURED)


COMMANDS = ["train", "measure", "landscape", "reproduce", "report"]
RUN = """
from neuralcollapse.cli import main
try:
    code = main({arguments!r})
except SystemExit as end:
    code = end.code or 0
assert code == {code}, code
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        *(([command, "--help"], 0) for command in COMMANDS),
        (["--help"], 0),
        ([], 0),
        (["train", "--epohcs", "3"], 2),
        (["train", "--epochs", "many"], 2),
        (["trian"], 2),
    ],
    ids=str,
)
def test_help_and_errors_of_usage_load_nothing_heavy(arguments, code):
    assert not (HEAVY | {"torch"}) & loaded_by(RUN.format(arguments=arguments, code=code))


def test_every_public_name_resolves():
    assert {"measure", "ETFClassifier", "ufm"} < set(nc.__all__)
    for name in nc.__all__:
        assert getattr(nc, name) is not None


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
    names = nc.__all__
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


@pytest.mark.slow
def test_importing_every_file_leaves_the_public_names_what_they_are():
    names = [name for path in SOURCE.rglob("*.py") if (name := module_name(path, SOURCE)) not in ("", "__main__")]
    code = "import importlib, types, neuralcollapse as nc\n"
    code += f"for name in {names!r}: importlib.import_module(f'neuralcollapse.{{name}}')\n"
    code += "found = [name for name in nc.__all__ if isinstance(getattr(nc, name), types.ModuleType)]\n"
    code += "assert found == ['ood', 'reproduce', 'ufm'], found"
    loaded_by(code)


def test_dir_lists_the_public_names():
    assert set(nc.__all__) <= set(dir(nc))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="No neuralcollapse attribute mesure"):
        nc.mesure  # noqa: B018
    with pytest.raises(ImportError, match="mesure"):
        from neuralcollapse import mesure  # noqa: F401
