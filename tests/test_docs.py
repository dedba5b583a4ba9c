"""The code blocks of README and tutorial run as they stand."""

import re
import shlex
from pathlib import Path

import pytest
import torch

import neuralcollapse as nc
from neuralcollapse.cli import main
from neuralcollapse.training.config import TrainConfig

ROOT = Path(__file__).parent.parent


def blocks(name: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / name).read_text(), re.MULTILINE | re.DOTALL)


def test_the_tutorial_runs(capsys):
    namespace: dict = {}
    found = blocks("docs/tutorial.md")
    assert len(found) >= 8
    for block in found:
        exec(compile(block, "docs/tutorial.md", "exec"), namespace)
    assert "global_minimum" in capsys.readouterr().out


def test_the_readme_runs_on_a_users_model(capsys):
    torch.manual_seed(0)
    model = nc.build_network("mlp", 10, 512, in_features=6, width=8, depth=2)
    labels = torch.arange(40) % 10
    images = torch.randn(40, 6)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), batch_size=16)
    with torch.no_grad():
        features = model.eval().features(images)
    namespace = {"model": model, "loader": loader, "features": features}
    found = blocks("README.md")
    assert len(found) >= 3
    for block in found:
        exec(compile(block, "README.md", "exec"), namespace)
    assert isinstance(model.fc, nc.ETFClassifier)


def commands() -> list[list[str]]:
    text = "\n".join((ROOT / name).read_text() for name in ("README.md", "docs/training.md"))
    found = re.findall(r"^    (?:torchrun .* -m )?neuralcollapse train (--.*?)(?: +#.*)?$", text, re.MULTILINE)
    return [shlex.split(arguments.partition(" > ")[0]) for arguments in found if "--resume" not in arguments]


@pytest.mark.parametrize("arguments", commands(), ids=" ".join)
def test_the_commands_that_the_docs_give_describe_runs(arguments, monkeypatch, tmp_path):
    """Each is parsed, and stops where the training would begin."""
    seen = []

    def train(config, out, *, force):
        seen.append(config)
        raise nc.InputError("far enough")

    (tmp_path / "run.yaml").write_text("epochs: 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("neuralcollapse.training.run.train", train)
    if "--print_config" in arguments:
        with pytest.raises(SystemExit):
            main(["train", *arguments])
    else:
        assert main(["train", *arguments]) == 2
        assert isinstance(seen[0], TrainConfig)


def test_the_docs_give_many_commands():
    assert len(commands()) >= 10


@pytest.mark.parametrize(
    "name", ["README.md", "docs/architecture.md", "docs/training.md", "docs/tutorial.md", "CONTRIBUTING.md"]
)
def test_files_that_the_docs_name_exist(name):
    text = (ROOT / name).read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / name).parent.joinpath(target).exists(), target
