import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import neuralcollapse as nc
from neuralcollapse.records import RunFolder
from neuralcollapse.report.figures import all_figures
from neuralcollapse.training.config import TrainConfig
from neuralcollapse.training.run import read_config, remeasure, train
from tests.conftest import SHORT


def test_the_default_run_collapses(default_run):
    last = default_run.records()[-1]
    assert last.train["accuracy"] == 1.0
    assert last.test["accuracy"] >= 0.975
    assert last.measures["nc1"] <= 5e-3
    assert last.measures["nc2"] <= 0.1
    assert last.measures["nc3"] <= 0.1
    assert last.measures["nc4"] <= 0.001


def test_the_fixed_classifier_is_as_accurate_as_the_learned_one(default_run, tmp_path):
    fixed = train(TrainConfig(classifier="etf", feature_dim=10), tmp_path / "etf", progress=False).records()[-1]
    assert fixed.train["accuracy"] == 1.0
    assert abs(fixed.test["accuracy"] - default_run.records()[-1].test["accuracy"]) <= 0.01
    assert fixed.measures["nc1"] <= 5e-3
    assert fixed.measures["nc2"] <= 1e-6


def test_a_run_folder_holds_config_environment_records_geometry_and_weights(short_run):
    assert read_config(short_run) == SHORT
    assert [record.epoch for record in short_run.records()] == [0, 1, 2, 3, 4]
    assert [epoch for epoch, _ in short_run.checkpoints()] == [2, 4]
    assert [geometry.epoch for geometry in short_run.geometries()] == [0, 1, 2, 3, 4]
    environment = json.loads(short_run.read_text("environment.json"))
    assert environment["train_samples"] == 1437
    assert environment["torch"] == torch.__version__
    assert not list(short_run.path.rglob(".*")), "no temporary files are left"


def test_checkpoints_measure_as_the_records_say(short_run):
    records = {record.epoch: record for record in short_run.records()}
    for epoch, values in remeasure(short_run, progress=False).items():
        assert values["nc1"] == pytest.approx(records[epoch].measures["nc1"], rel=1e-6)
        assert values["accuracy"] == records[epoch].train["accuracy"]


def test_the_same_seed_gives_the_same_run_and_another_seed_another(short_run, tmp_path):
    def nc1(run: RunFolder) -> float:
        return run.records()[-1].measures["nc1"]

    assert nc1(train(SHORT, tmp_path / "same", progress=False)) == nc1(short_run)
    assert nc1(train(replace(SHORT, seed=1), tmp_path / "other", progress=False)) != nc1(short_run)


def test_measure_every_skips_epochs_but_not_the_last(tmp_path):
    run = train(replace(SHORT, epochs=5, measure_every=2), tmp_path / "run", progress=False)
    assert [record.epoch for record in run.records()] == [0, 2, 4, 5]
    assert [epoch for epoch, _ in run.checkpoints()] == [2, 4, 5]


def test_the_heads_ratio_to_its_exact_minimum_is_recorded_and_falls(tmp_path):
    config = replace(SHORT, certify_head=True)
    run = train(config, tmp_path / "run", progress=False)
    heads = [record.head for record in run.records()]
    assert all(head["lower_bound"] <= head["minimum"] <= head["objective"] for head in heads)
    assert heads[-1]["ratio"] < heads[0]["ratio"] / 2
    assert heads[-1]["ratio"] == pytest.approx(heads[-1]["objective"] / heads[-1]["minimum"])
    (figure,) = [figure for figure in all_figures(run.records(), [], []) if figure.name == "head"]
    assert figure.data[0]["y"] == pytest.approx([head["objective"] for head in heads], rel=1e-4)
    again = remeasure(run, certify_head=True, progress=False)[4]["head"]
    assert again["ratio"] == pytest.approx(heads[-1]["ratio"], rel=1e-5)


def test_wrong_configurations_leave_no_folder(tmp_path):
    for config in (replace(SHORT, data="digit"), replace(SHORT, classifier="etf", feature_dim=3)):
        with pytest.raises(nc.InputError):
            train(config, tmp_path / "run", progress=False)
        assert not (tmp_path / "run").exists()


def test_weights_of_another_network_are_refused(short_run, tmp_path):
    run = RunFolder.create(tmp_path)
    run.write_text("config.yaml", short_run.read_text("config.yaml"))
    state = load_file(short_run.checkpoints()[0][1])
    state["fc.weight"] = torch.zeros(10, 99)
    save_file(state, run.checkpoint(1))
    with pytest.raises(nc.InputError, match=r"cannot load .*epoch-00001.safetensors"):
        remeasure(run, progress=False)
    run.checkpoint(1).write_bytes(b"\x80\x04junk")
    with pytest.raises(nc.InputError, match=r"cannot load .*epoch-00001.safetensors"):
        remeasure(run, progress=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3\n", "'epoch'.*did you mean 'epochs'"),
        ("- 1\n", "mapping"),
        ("a: [\n", "not YAML"),
        ("epochs: many\n", "epochs"),
    ],
)
def test_a_wrong_config_file_says_what_is_wrong(tmp_path, text, message):
    run = RunFolder.create(tmp_path)
    run.write_text("config.yaml", text)
    with pytest.raises(nc.InputError, match=message):
        read_config(run)


def test_the_callback_measures_any_lightning_module():
    import lightning

    class Plain(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.body = torch.nn.Linear(4, 6)
            self.head = torch.nn.Linear(6, 3)

        def forward(self, inputs):
            return self.head(self.body(inputs).relu())

        def training_step(self, batch, index):
            assert self.training
            return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    torch.manual_seed(0)
    data = torch.utils.data.TensorDataset(torch.randn(30, 4), torch.arange(30) % 3)
    loader = torch.utils.data.DataLoader(data, batch_size=10)
    callback = nc.CollapseCallback(loader, classifier="head", every=2)
    trainer = lightning.Trainer(
        max_epochs=3,
        accelerator="cpu",
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Plain(), loader)
    assert [record.epoch for record in callback.records] == [0, 2, 3]
    assert float(trainer.callback_metrics["collapse/nc1"]) == pytest.approx(callback.records[-1].measures["nc1"])


def test_records_hold_the_learning_rate_of_the_epoch_that_ended(tmp_path):
    run = train(replace(SHORT, epochs=3, decay_every=1, learning_rate=0.1), tmp_path / "run", progress=False)
    assert [record.learning_rate for record in run.records()] == pytest.approx([0.1, 0.1, 0.01, 0.001])
