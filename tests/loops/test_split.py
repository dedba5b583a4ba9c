"""Lightning's ModelParallelStrategy: measured in two processes, and trained as without."""

import json
import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("lightning")
if not hasattr(torch.distributed.fsdp, "fully_shard"):
    pytest.skip("FSDP2 runs on the CPU from torch 2.6 on", allow_module_level=True)

SCRIPT = """
import json, sys
import lightning, torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, TensorDataset
import neuralcollapse as nc

generator = torch.Generator().manual_seed(0)
labels = torch.arange(37) % 3
data = DataLoader(TensorDataset(torch.randn(37, 4, generator=generator) + labels[:, None], labels), batch_size=8)


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))

    def configure_model(self):
        if not type(self.net).__name__.startswith("FSDP"):
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

    def forward(self, inputs):
        return self.net(inputs)

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


if __name__ == "__main__":
    ends = []
    for out in (sys.argv[1], None):
        module = Module()
        callback = nc.CollapseCallback(data, out=out)
        quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
        trainer = lightning.Trainer(
            max_epochs=2, accelerator="cpu", devices=2, callbacks=[callback] if out else [], **quiet,
            strategy=ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
        )
        trainer.fit(module, data)
        ends.append({name: value.full_tensor() for name, value in module.net.named_parameters()})
    if trainer.is_global_zero:
        whole = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
        whole.load_state_dict(ends[0])
        same = all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
        values = nc.measure(whole, data, progress=False)
        with open(sys.argv[1] + ".json", "w") as file:
            json.dump({"same": same, "nc1": values["nc1"], "samples": values["num_samples"]}, file)
"""


@pytest.mark.slow
def test_under_model_parallel_strategy(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "run")]
    done = subprocess.run(command, env={**clean, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "run.json").read_text())
    records = [json.loads(line) for line in (tmp_path / "run/records.jsonl").read_text().splitlines()]
    assert found["same"]
    assert [record["epoch"] for record in records] == [0, 1, 2]
    assert records[-1]["measures"]["nc1"] == pytest.approx(found["nc1"], rel=1e-6)
    assert json.loads((tmp_path / "run/environment.json").read_text())["train_samples"] == found["samples"]
