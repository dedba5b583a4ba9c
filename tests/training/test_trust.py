"""A run folder is data: what it names is not imported, run or unpickled unless the user says so."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from neuralcollapse import InputError
from neuralcollapse.cli import main
from neuralcollapse.networks.external import untrusted_code
from neuralcollapse.runs.folder import RunFolder
from neuralcollapse.training.remeasure import remeasure
from neuralcollapse.training.run import resume
from neuralcollapse.training.run_config import read_config

EVIL = "from pathlib import Path\nPath('touched').touch()\ndef net(num_classes): raise SystemExit\n"
NETWORKS = ["evil:net", "evil_folder.evil:net", "os:system", "torch.hub:load", "builtins:exec"]


@pytest.fixture
def hostile(short_run, tmp_path, monkeypatch):
    """hostile(changes): a copy of a run with another configuration, in the current folder, with code that tells."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text(EVIL)
    (tmp_path / "evil_folder").mkdir()
    (tmp_path / "evil_folder" / "evil.py").write_text(EVIL)

    def make(**changes) -> Path:
        run = Path(shutil.copytree(short_run.path, tmp_path / "run"))
        config = yaml.safe_load((run / "config.yaml").read_text())
        (run / "config.yaml").write_text(yaml.safe_dump(config | changes))
        return run

    yield make
    for name in ("evil", "evil_folder", "evil_folder.evil"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(
    "command", [["measure"], ["train", "--resume"], ["report"], ["train", "--out", "new", "--config"]]
)
def test_no_command_runs_code_that_a_folder_names(command, network, hostile, capsys):
    run = hostile(network=network, width=None, depth=None, feature_dim=None)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    place = run / "config.yaml" if "--config" in command else run
    code = main([*command, str(place)])
    assert not Path("touched").exists()
    if command == ["report"]:
        assert code == 0
        return
    assert code == 2
    message = capsys.readouterr().err
    module, _, function = network.partition(":")
    assert f"asks to import {module} and call {function}, and a run folder is data" in message
    assert "--trust-code" in message
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_in_python_the_keyword_allows_it(hostile):
    run = RunFolder.open(hostile(network="evil:net", width=None, depth=None, feature_dim=None))
    with pytest.raises(InputError, match="trust_code=True"):
        resume(run.path, {"epochs": 9}, progress=False)
    with pytest.raises(InputError, match="trust_code=True"):
        remeasure(run, progress=False)
    with pytest.raises(SystemExit):
        remeasure(run, progress=False, trust_code=True)
    assert Path("touched").exists()


OWN = (
    "from torch import nn\ndef net(num_classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))\n"
)


def test_a_network_of_ones_own_is_trained_as_ever_and_measured_when_trusted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("own_net.py").write_text(OWN)
    flags = ["--epochs", "1", "--checkpoint_every", "1", "--loggers=[]"]
    try:
        assert main(["train", "--network", "own_net:net", "--out", "run", *flags]) == 0
        assert main(["measure", "run"]) == 2
        assert main(["measure", "run", "--trust-code", "--json"]) == 0
        assert main(["train", "--resume", "run", "--epochs", "2"]) == 2
        assert main(["train", "--resume", "run", "--epochs", "2", "--trust-code"]) == 0
        assert len(RunFolder.open("run").records()) == 3
    finally:
        sys.modules.pop("own_net", None)
    capsys.readouterr()


@pytest.mark.parametrize(
    ("name", "options", "allowed"),
    [
        ("mlp", {"width": 3}, True),
        ("resnet18", {}, True),
        ("torchvision:resnet18", {"weights": "IMAGENET1K_V1"}, True),
        (
            "timm:vit_tiny_patch16_224",
            {"img_size": 32, "pretrained": True, "act_layer": "gelu", "depths": [1, 2]},
            True,
        ),
        ("transformers:vit", {"hidden_size": 64, "id2label": {"0": "a cat"}}, True),
        ("transformers:./folder", {}, True),
        ("transformers:google/vit-base-patch16-224", {}, True),
        ("my_net:build", {}, False),
        ("a.b.c:d", {}, False),
        ("timm.models:create_model", {}, False),
        ("timm:resnet18", {"checkpoint_path": "evil.pth"}, False),
        ("timm:resnet18", {"pretrained_cfg": {"file": "evil.pth"}}, False),
        ("timm:resnet18", {"pretrained_cfg_overlay": {"url": "http://x"}}, False),
        ("timm:resnet18", {"act_layer": "https://x/y"}, False),
        ("transformers:vit", {"attn_implementation": "someone/kernel"}, False),
        ("transformers:timm_wrapper", {"model_args": {"checkpoint_path": "x"}}, False),
    ],
)
def test_what_counts_as_code(name, options, allowed):
    assert (untrusted_code(name, options) is None) == allowed


def test_a_configuration_that_asks_for_a_kernel_of_the_hub_is_refused(tmp_path):
    pytest.importorskip("transformers")
    from neuralcollapse.networks.external import external_network

    config = {"model_type": "vit", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 16}
    (tmp_path / "config.json").write_text(json.dumps(config | {"attn_implementation": "someone/kernel"}))
    with pytest.raises(InputError, match="code from the hub is never run"):
        external_network(f"transformers:{tmp_path}", 3, None, {})


def test_weights_that_were_changed_are_named_and_not_measured(short_run, tmp_path, capsys):
    run = RunFolder(shutil.copytree(short_run.path, tmp_path / "run"))
    file = run.checkpoint(2)
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    assert main(["measure", str(run.path)]) == 2
    message = capsys.readouterr().err
    assert f"cannot read {file} (" in message
    assert "was changed" in message
    assert message.count("\n") == 1


def test_weights_and_states_of_earlier_versions_are_read(short_run, tmp_path):
    run = RunFolder(shutil.copytree(short_run.path, tmp_path / "run"))
    before = [record.measures for record in remeasure(run, progress=False)]
    for _, file in run.checkpoints():
        from safetensors.torch import load_file

        save_file(load_file(file), file)  # without a checksum
    torch.save(torch.load(run.state, weights_only=True), run.state)
    assert [record.measures for record in remeasure(run, progress=False)] == before
    resume(run.path, {"epochs": 5}, progress=False)
    assert run.records()[-1].epoch == 5


def test_torchs_version_is_plain_text_wherever_it_is_kept(short_run, tmp_path):
    kept = json.loads((short_run.path / "environment.json").read_text())
    assert kept["torch"] == str(torch.__version__)
    assert read_config(short_run).seed == 0


def test_torchs_version_in_a_users_options_is_written_as_plain_text(tmp_path, monkeypatch):
    import neuralcollapse as nc
    from neuralcollapse.training.config import TrainConfig
    from neuralcollapse.training.run import train

    monkeypatch.chdir(tmp_path)
    Path("kept_net.py").write_text(OWN.replace("(num_classes)", "(num_classes, version)", 1))
    config = TrainConfig(epochs=1, network="kept_net:net", network_options={"version": torch.__version__}, loggers=())
    run = train(config, "run", progress=False)
    sys.modules.pop("kept_net", None)
    assert read_config(run).network_options == {"version": str(torch.__version__)}

    model = torch.nn.Sequential()
    model.add_module("fc", torch.nn.Linear(2, 3))
    batches = [(torch.randn(9, 2), torch.arange(9) % 3)]
    kept = {"torch": torch.__version__, "rate": torch.tensor(0.5), "where": Path("a")}
    nc.Recorder(batches, out="recorded", config=kept, progress=False).measure(model, 0)
    found = json.loads(Path("recorded/config.yaml").read_text())
    assert (found["torch"], found["rate"], found["where"]) == (str(torch.__version__), 0.5, "a")
