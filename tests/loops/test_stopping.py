"""Training that stops early in every loop, and goes on right; the event that collapse has begun."""

import json

import lightning
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import neuralcollapse as nc
from neuralcollapse.runs.folder import RunFolder
from neuralcollapse.runs.records import Record
from tests.helpers import SmallNet, record_lines, small_loader, small_set

FROZEN = 3  # the weights do not move: no number gets better, so that training stops after as many records as patience


def recorder(out=None, **options):
    return nc.Recorder(small_loader(), small_loader(), out=out, progress=False, stop_on="nc1", **options)


def test_a_loop_of_ones_own_asks_whether_to_stop(tmp_path):
    model, own = SmallNet(seed=0), recorder(tmp_path / "run", patience=3, layers=["body"])
    asked = []
    for epoch in range(5):
        record = own.measure(model, epoch)
        asked.append(own.should_stop)
        assert own.should_stop == bool(own.stop_reason)
        assert record.test_layers["body"].keys() >= {"nc1", "ncc_accuracy"}
    assert asked == [False, False, False, True, True]
    reasons = [line.get("events", {}).get("stopped", "") for line in record_lines(tmp_path / "run")]
    assert reasons[3].startswith("nc1 has not fallen for 3 measurements: the best was")
    assert [bool(reason) for reason in reasons] == [False, False, False, True, False]
    assert RunFolder.open(tmp_path / "run").records() == own.records


def test_a_run_that_is_resumed_stops_where_it_would_have(tmp_path):
    model = SmallNet(seed=0)
    first = recorder(tmp_path / "run", patience=3)
    for epoch in range(3):
        first.measure(model, epoch)
    first.folder.unlock()
    again = recorder(tmp_path / "run", patience=3, resume=True)
    assert not again.should_stop
    again.measure(model, 3)
    assert again.should_stop
    again.resume(2)  # the last record is dropped
    assert not again.should_stop


def test_a_measurement_that_is_repeated_counts_once():
    model, own = SmallNet(seed=0), recorder(patience=2)
    for epoch in (0, 1, 1, 1):
        own.measure(model, epoch)
        assert not own.should_stop
    own.measure(model, 2)
    assert own.should_stop


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stop_on": "nc9"}, "stop_on: no number 'nc9'"),
        ({"stop_on": "nc1", "patience": 0}, "expected patience"),
        ({"stop_mode": "down"}, "expected stop_mode"),
        ({"min_delta": -1.0}, "expected min_delta"),
        ({"test_measures": 1}, "expected test_measures True or False, got 1"),
        ({"reference": None}, "no option 'reference'"),
    ],
)
def test_wrong_options_are_refused_when_they_are_given(options, message):
    for make in (nc.Recorder, nc.CollapseCallback):
        with pytest.raises(nc.InputError, match=message):
            make(small_loader(), **options)


def test_a_number_that_is_not_measured_is_refused_with_the_first_record():
    own = nc.Recorder(small_loader(), progress=False, stop_on="test.accuracy")
    with pytest.raises(nc.InputError, match=r"'test\.accuracy', which they do not have"):
        own.measure(SmallNet(seed=0), 0)
    assert own.records == []


def test_the_measures_of_the_test_set_may_be_left_out():
    own = nc.Recorder(small_loader(), small_loader(), layers=["body"], progress=False, test_measures=False)
    record = own.measure(SmallNet(seed=0), 0)
    assert set(record.test) == {"loss", "accuracy"}
    assert record.test_layers == {}


# Lightning and the Trainer


class Frozen(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = SmallNet(seed=0)

    def forward(self, inputs):
        return self.model(inputs)

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def on_train_batch_start(self, batch, _):
        self.model.body[1].eval()  # its statistics stay too


def fit(out, epochs=9, checkpoint=None, **options):
    callback = nc.CollapseCallback(out=out, **{"stop_on": "nc1", "patience": FROZEN} | options)
    trainer = lightning.Trainer(
        max_epochs=epochs, callbacks=[callback], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu", default_root_dir=out.parent,
    )  # fmt: skip
    trainer.fit(Frozen(), DataLoader(small_set(), batch_size=10), ckpt_path=checkpoint)
    return trainer, callback


def test_lightning_stops_and_a_fit_that_goes_on_stops_at_once(tmp_path):
    trainer, callback = fit(tmp_path / "run")
    assert [record.epoch for record in callback.records] == list(range(FROZEN + 1))
    assert trainer.current_epoch == FROZEN
    assert callback.records[-1].events["stopped"].startswith("nc1 has not fallen for 3 measurements")
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    _, again = fit(tmp_path / "run", checkpoint=tmp_path / "model.ckpt")
    assert again.records == callback.records
    _, longer = fit(tmp_path / "run", checkpoint=tmp_path / "model.ckpt", patience=5)
    assert [record.epoch for record in longer.records] == list(range(6))


def test_without_a_number_to_stop_on_lightning_trains_to_the_end(tmp_path):
    trainer, callback = fit(tmp_path / "run", epochs=5, stop_on=None)
    assert trainer.current_epoch == 5
    assert len(callback.records) == 6


def test_the_trainer_of_transformers_stops(tmp_path):
    from transformers import Trainer, TrainingArguments

    class Wrapped(nn.Module):
        config = None

        def __init__(self):
            super().__init__()
            self.model = SmallNet(seed=0)

        def forward(self, inputs, labels=None):
            logits = self.model(inputs)
            loss = {} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels)}
            return loss | {"logits": logits}

    rows = [{"inputs": inputs, "labels": labels} for inputs, labels in small_set()]
    model = Wrapped()
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            str(tmp_path / "trainer"), num_train_epochs=9, per_device_train_batch_size=10, learning_rate=0.0,
            report_to="none", save_strategy="no", use_cpu=True, disable_tqdm=True,
        ),
        train_dataset=rows,
    )  # fmt: skip
    callback = nc.CollapseTrainerCallback(
        trainer, stop_on="layers.model.body.0.nc1", patience=2, layers=["model.body.0"]
    )
    trainer.add_callback(callback)
    trainer.train()
    assert [record.epoch for record in callback.records] == [0, 1, 2]
    assert "layers.model.body.0.nc1 has not fallen" in callback.records[-1].events["stopped"]


# `train`


def config(**options):
    given = {"epochs": 8, "width": 12, "depth": 2, "feature_dim": 9, "samples_per_class": 10, "loggers": ()}
    return nc.TrainConfig(**given | {"stop_on": "nc1", "min_delta": 100.0, "patience": 2} | options)


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("stopped") / "run"
    nc.train(config(), out, progress=False)
    return out


def test_train_stops_and_keeps_weights_and_state_of_the_end(stopped_run):
    run = RunFolder.open(stopped_run)
    assert [record.epoch for record in run.records()] == [0, 1, 2]
    assert run.checkpoint(2).is_file()
    assert run.state.is_file()
    assert nc.resume(stopped_run, progress=False).records() == run.records()  # it is complete


def test_a_run_that_was_stopped_goes_on_with_more_patience_alone(stopped_run, tmp_path):
    import shutil

    out = tmp_path / "run"
    shutil.copytree(stopped_run, out)
    with pytest.raises(nc.InputError, match=r"was stopped after 2 epochs \(nc1 has not fallen.*give more patience"):
        nc.resume(out, {"epochs": 9}, progress=False)
    nc.resume(out, {"stop_on": None, "patience": 5, "min_delta": 0.0}, progress=False)
    nc.train(config(stop_on=None, patience=5, min_delta=0.0), tmp_path / "whole", progress=False)
    resumed, whole = (RunFolder.open(path).records() for path in (out, tmp_path / "whole"))
    assert [record.measures for record in resumed] == [record.measures for record in whole]
    assert [record.test for record in resumed] == [record.test for record in whole]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stop_on": "nc9"}, "stop_on: no number 'nc9'"),
        ({"patience": 0}, "expected patience to be at least 1"),
        ({"stop_mode": "down"}, "expected stop_mode to be one of"),
        ({"min_delta": -1.0}, "expected min_delta to be 0 or positive"),
        ({"stop_on": None}, "patience, stop_mode and min_delta are for stop_on"),
    ],
)
def test_a_configuration_that_cannot_stop_is_refused(options, message):
    with pytest.raises(nc.InputError, match=message):
        config(**options)


def test_train_may_leave_the_measures_of_the_test_set_out(tmp_path):
    run = nc.train(config(epochs=1, test_measures=False), tmp_path / "run", progress=False)
    assert set(run.records()[-1].test) == {"loss", "accuracy"}


# Records


def test_old_records_have_no_test_layers_and_no_events():
    line = json.dumps(
        {"epoch": 1, "seconds": 0.0, "learning_rate": 0.1, "train": {"accuracy": 1.0}, "test": {"loss": 1.0}}
    )
    record = Record.from_json(line)
    assert (record.test_layers, record.events) == ({}, {})
    assert not {"test_layers", "events"} & set(record.to_dict())


def test_records_with_them_are_read_as_they_were_written():
    record = Record(
        1, 0.0, 0.1, {"accuracy": 1.0}, {"nc1": 0.5}, {"nc1": 0.4}, layers={"a.b": {"nc1": 1.0}},
        test_layers={"a.b": {"nc1": 2.0}}, events={"stopped": "enough"},
    )  # fmt: skip
    assert Record.from_json(record.to_json()) == record
    assert [record.value(key) for key in ("nc1", "test.nc1", "layers.a.b.nc1", "test_layers.a.b.nc1")] == [
        0.4,
        0.5,
        1,
        2,
    ]
    assert record.has("layers.a.b.nc1")
    assert not any(record.has(key) for key in ("nc2", "layers.a.nc1", "test_layers.a.b.nc2", "head.ratio"))


@pytest.mark.parametrize("events", [[], "x", {"stopped": 1}])
def test_events_that_are_no_words_by_name_are_refused(events):
    line = json.dumps({"epoch": 1, "seconds": 0.0, "learning_rate": 0.1, "train": {}, "events": events})
    with pytest.raises(ValueError, match="expected events by name, in words"):
        Record.from_json(line)
