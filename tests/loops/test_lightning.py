import csv
import math
import os
import subprocess
import sys
from pathlib import Path

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import nn
from torch.nn import functional as F
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler, TensorDataset

import neuralcollapse as nc
from neuralcollapse.loops.loaders import sequential
from neuralcollapse.runs.folder import RunFolder
from neuralcollapse.runs.reading import read_run
from tests.helpers import as_held_out


class Plain(lightning.LightningModule):
    """As a user writes it: dropout, batch normalisation, a schedule."""

    def __init__(self, width: int = 6):
        super().__init__()
        self.save_hyperparameters()
        self.model = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.2))
        self.head = nn.Linear(width, 3)

    def forward(self, inputs):
        return self.head(self.model(inputs))

    def training_step(self, batch, index):
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, index):
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, weight_decay=0.01)


class Dicts(Plain):
    """Batches are dicts; there is no validation."""

    validation_step = None

    def training_step(self, batch, index):
        return F.cross_entropy(self(batch["inputs"]), batch["labels"])


def samples(count: int = 30) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(count, 4, generator=generator), torch.arange(count) % 3)


def loader(**options) -> DataLoader:
    return DataLoader(samples(), **({"batch_size": 8, "shuffle": True} | options))


def fitted(callbacks, data=None, module=None, test=None, ckpt_path=None, **options):
    torch.manual_seed(3)
    module = Plain() if module is None else module
    trainer = lightning.Trainer(
        **({"max_epochs": 2, "logger": False, "enable_checkpointing": False} | options),
        accelerator="cpu",
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(module, loader() if data is None else data, test, ckpt_path=ckpt_path)
    return trainer, module


def test_three_lines_give_the_record_and_the_page(tmp_path):
    callback = nc.CollapseCallback(classifier="head", out=tmp_path / "run")
    trainer, module = fitted([callback], test=DataLoader(samples(9), batch_size=4))
    run = read_run(tmp_path / "run")
    assert [record.epoch for record in run.records] == [0, 1, 2]
    expected = nc.measure(module, DataLoader(samples(), batch_size=30), "head", progress=False)
    del expected["num_samples"]
    assert run.last.measures | run.last.train == pytest.approx(expected, rel=1e-4)
    train, test = (DataLoader(samples(*count), batch_size=30) for count in ((), (9,)))
    expected = nc.measure(module, train, "head", test_loader=test, progress=False)["test"]
    del expected["num_samples"]
    assert run.last.test == pytest.approx(expected, rel=1e-4)
    assert run.config["network"] == "Plain"
    assert (run.config["optimizer"], run.config["weight_decay"], run.config["width"]) == ("SGD", 0.01, 6)
    assert run.config["batch_size"] == 8
    page = (tmp_path / "run/report.html").read_text()
    assert "<h1>Neural collapse: Plain</h1>" in page
    assert "after 2 epochs" in page
    assert float(trainer.callback_metrics["collapse/nc1"]) == pytest.approx(run.last.measures["nc1"])


def test_every_logger_gets_every_measurement(tmp_path):
    loggers = [CSVLogger(tmp_path / "csv"), TensorBoardLogger(tmp_path / "tensorboard")]
    callback = nc.CollapseCallback(classifier="head", every=2)
    fitted([callback], max_epochs=3, logger=loggers)
    with open(f"{loggers[0].log_dir}/metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["collapse/nc1"]]
    assert [float(row["epochs"]) for row in rows] == [0, 2, 3]
    assert [int(row["step"]) for row in rows] == [0, 8, 12]
    wanted = [record.measures["nc1"] for record in callback.records]
    assert [float(row["collapse/nc1"]) for row in rows] == pytest.approx(wanted)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(loggers[1].log_dir)
    events.Reload()
    assert [event.value for event in events.Scalars("collapse/nc1")] == pytest.approx(wanted)
    for name in ("nc1", "cosines", "cosine-histogram"):  # those of the end, whatever the pace
        assert events.Images(f"figures/{name}")[-1].step == 12


def test_training_goes_bit_for_bit_as_without(tmp_path):
    _, alone = fitted([], test=DataLoader(samples(9), batch_size=4))
    callback = nc.CollapseCallback(classifier="head", out=tmp_path / "run")
    _, watched = fitted([callback], test=DataLoader(samples(9), batch_size=4))
    for name, value in alone.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name]), name


def test_a_fit_goes_on_from_a_checkpoint_in_its_folder(tmp_path):
    keep = {"enable_checkpointing": True, "default_root_dir": tmp_path}

    def callbacks():
        checkpoint = ModelCheckpoint(tmp_path / "saved", save_top_k=-1, filename="{epoch}")
        return [nc.CollapseCallback(classifier="head", out=tmp_path / "run"), checkpoint]

    fitted(callbacks(), max_epochs=3, **keep)
    before = RunFolder.open(tmp_path / "run").records()
    with pytest.raises(nc.InputError, match="not empty"):
        fitted(callbacks(), **keep)
    fitted(callbacks(), max_epochs=4, ckpt_path=tmp_path / "saved/epoch=1.ckpt", **keep)
    after = RunFolder.open(tmp_path / "run").records()
    assert [record.epoch for record in after] == [0, 1, 2, 3, 4]
    assert after[:3] == before[:3]
    assert after[3].seconds > after[2].seconds


def test_force_overwrites_and_a_trial_run_leaves_no_folder(tmp_path):
    def callback(**options):
        return nc.CollapseCallback(classifier="head", out=tmp_path / "run", **options)

    fitted([callback()], fast_dev_run=True)
    assert not (tmp_path / "run").exists()
    fitted([callback()])
    fitted([callback(force=True)], max_epochs=1)
    assert [record.epoch for record in RunFolder.open(tmp_path / "run").records()] == [0, 1]


def test_data_and_options_may_be_given(tmp_path):
    given = [(samples().tensors[0][:15], samples().tensors[1][:15])]
    seen = []
    callback = nc.CollapseCallback(
        given,
        False,
        "head",
        nc4=False,
        pairwise=False,
        layers=["model.0"],
        config={"data": "half of it"},
        out=tmp_path / "run",
        on_record=lambda record, capture: seen.append(capture.moments.num_samples),
    )
    fitted([callback], test=DataLoader(samples(9), batch_size=4))
    run = read_run(tmp_path / "run")
    assert seen == [15, 15, 15]
    assert not {"nc4", "nc1_cdnv"} & set(run.last.measures)
    assert (run.last.test, run.config["data"], list(run.last.layers)) == ({}, "half of it", ["model.0"])


def test_batches_may_be_dicts():
    rows = [{"inputs": x, "labels": y} for x, y in zip(*samples().tensors, strict=True)]
    callback = nc.CollapseCallback(classifier="head")
    _, module = fitted([callback], DataLoader(rows, batch_size=8), Dicts())
    expected = nc.measure(module, loader(), "head", progress=False)
    assert callback.records[-1].measures["nc1"] == pytest.approx(expected["nc1"], rel=1e-4)


class TakesTwo(Plain):
    def forward(self, inputs, labels):
        return F.cross_entropy(self.head(self.model(inputs)), labels)

    def training_step(self, batch, index):
        return self(*batch)


class NoForward(Plain):
    forward = lightning.LightningModule.forward

    def training_step(self, batch, index):
        return F.cross_entropy(self.head(self.model(batch[0])), batch[1])


@pytest.mark.parametrize("kind", [TakesTwo, NoForward])
def test_a_forward_that_takes_other_things_is_named(kind):
    with pytest.raises(nc.InputError, match=rf"expected {kind.__name__}.forward to take a batch's inputs alone"):
        fitted([nc.CollapseCallback(classifier="head", test_loader=False)], module=kind())


def test_a_layer_that_is_not_there_is_named_as_training_begins():
    with pytest.raises(nc.InputError, match=r"no layer 'fc'.*head"):
        fitted([nc.CollapseCallback(classifier="fc")])


def test_data_that_are_no_loader_are_refused():
    with pytest.raises(nc.InputError, match=r"as a DataLoader, got dict"):
        fitted([nc.CollapseCallback(classifier="head")], {"a": loader(), "b": loader()}, Dicts())


class Stream(IterableDataset):
    def __iter__(self):
        return iter(samples())


def test_loaders_are_put_in_order_and_shared_so_that_each_sample_comes_once():
    data = TensorDataset(torch.arange(11))
    for options in ({"batch_size": 3, "shuffle": True, "drop_last": True}, {"batch_size": 20}):
        seen = []
        for rank in range(3):
            batches = list(sequential(DataLoader(data, **options), rank, 3))
            assert all(len(batch[0]) <= options["batch_size"] for batch in batches)
            seen += torch.cat([batch[0] for batch in batches]).tolist()
        assert sorted(seen) == list(range(11))
    own = sequential(DataLoader(data, batch_sampler=BatchSampler(SequentialSampler(data), 4, True)))
    assert [len(batch[0]) for batch in own] == [4, 4, 3]
    whole = DataLoader(data, batch_size=None, sampler=BatchSampler(SequentialSampler(data), 4, True))
    assert [len(batch[0]) for batch in sequential(whole, 1, 2)] == [4, 1]
    assert len(list(sequential(DataLoader(Stream(), batch_size=8)))) == 4
    with pytest.raises(nc.InputError, match=r"in 2 processes, got the iterable Stream"):
        sequential(DataLoader(Stream(), batch_size=8), 0, 2)


DDP = """
import sys
import lightning
from torch.utils.data import DataLoader
import neuralcollapse as nc
from tests.loops.test_lightning import Plain, samples

if __name__ == "__main__":
    lightning.seed_everything(0)
    callback = nc.CollapseCallback(classifier="head", out=sys.argv[1])
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, callbacks=[callback],
    )
    trainer.fit(Plain(), DataLoader(samples(31), batch_size=4, shuffle=True), DataLoader(samples(9), batch_size=4))
    trainer.save_checkpoint(sys.argv[1] + "/last.ckpt", weights_only=True)
    print("records", len(callback.records))
"""


@pytest.mark.slow
def test_two_processes_measure_each_sample_once_and_one_writes(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(DDP)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "run")],
        capture_output=True, text=True, timeout=120, env=environment(), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    run = read_run(tmp_path / "run")
    assert [record.epoch for record in run.records] == [0, 1]
    assert run.environment["train_samples"] == 31
    module = Plain()
    module.load_state_dict(torch.load(tmp_path / "run/last.ckpt", weights_only=True)["state_dict"])
    expected = nc.measure(module, DataLoader(samples(31), batch_size=31), "head", progress=False)
    del expected["num_samples"]
    assert run.last.measures | run.last.train == pytest.approx(expected, rel=1e-4)
    assert (tmp_path / "run/report.html").is_file()


def environment():
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**clean, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.slow
def test_the_package_of_the_other_name_is_served_too():
    code = """
import pytorch_lightning, torch
from torch.utils.data import DataLoader, TensorDataset
import neuralcollapse as nc

class Plain(pytorch_lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(4, 3)
    def forward(self, inputs):
        return self.fc(inputs)
    def training_step(self, batch, index):
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

callback = nc.CollapseCallback()
trainer = pytorch_lightning.Trainer(
    max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
    enable_model_summary=False, callbacks=[callback],
)
trainer.fit(Plain(), DataLoader(TensorDataset(torch.randn(9, 4), torch.arange(9) % 3), batch_size=3))
assert [record.epoch for record in callback.records] == [0, 1]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def cast(dtype, count: int = 30) -> DataLoader:
    inputs, labels = samples(count).tensors
    return DataLoader(TensorDataset(inputs.to(dtype), labels), batch_size=8)


def assert_by_hand(record, module, data, **options):
    """The record is what `measure` says of the module."""
    expected = nc.measure(module, data, "head", progress=False, **options)
    del expected["num_samples"]
    assert record.measures | record.train == pytest.approx(expected, rel=1e-5, abs=1e-9)


PRECISIONS = {
    "bf16-true": torch.bfloat16,
    "16-true": torch.float16,
    "64-true": torch.float64,
    "32-true": torch.float32,
    "bf16-mixed": torch.float32,
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("given", [True, False])
def test_a_module_is_measured_in_its_own_precision(precision, given):
    dtype = PRECISIONS[precision]
    data = (loader(), DataLoader(samples(9), batch_size=4)) if given else (None, None)
    callback = nc.CollapseCallback(*data, classifier="head", layers=["model.0"])
    _, module = fitted([callback], test=DataLoader(samples(9), batch_size=4), precision=precision, max_epochs=1)
    assert module.head.weight.dtype == dtype
    last = callback.records[-1]
    assert_by_hand(last, module, cast(dtype))
    assert last.test["loss"] == pytest.approx(nc.measure(module, cast(dtype, 9), "head", progress=False)["loss"], 1e-5)
    assert "forward" not in vars(module)


class Says(Plain):
    """`forward` says in which surroundings it ran."""

    def forward(self, inputs):
        if not self.training:
            self.said = (torch.ones(1).dtype, torch.is_autocast_enabled("cpu"))
        return super().forward(inputs)


@pytest.mark.parametrize("precision", ["bf16-true", "64-true", "bf16-mixed"])
def test_forward_runs_with_the_default_type_of_the_precision_and_without_autocast(precision):
    callback = nc.CollapseCallback(classifier="head")
    _, module = fitted([callback], module=Says(), precision=precision, max_epochs=1)
    assert module.said == (PRECISIONS[precision], False)
    assert torch.get_default_dtype() == torch.float32


class Hooks(Plain):
    """Batches are of a kind of its own until they are transferred, and are augmented and scaled afterwards."""

    def __init__(self):
        super().__init__()
        self.augment = nn.Dropout(0.5)
        self.seen = []

    def on_before_batch_transfer(self, batch, dataloader_idx):
        return {"kept": batch}

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        assert isinstance(batch, dict)
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        inputs, labels = batch["kept"]
        self.seen.append((self.trainer.training, self.trainer.validating, self.training))
        if self.trainer.training:
            inputs = inputs + 100
        return 3 * self.augment(inputs), labels


def tripled() -> DataLoader:
    inputs, labels = samples().tensors
    return DataLoader(TensorDataset(3 * inputs, labels), batch_size=8)


@pytest.mark.parametrize("given", [True, False])
def test_batches_go_through_the_hooks_of_the_module_as_in_validation(given):
    callback = nc.CollapseCallback(loader() if given else None, classifier="head")
    trainer, module = fitted([callback], module=Hooks(), max_epochs=1, num_sanity_val_steps=0)
    assert_by_hand(callback.records[-1], module, tripled())
    assert module.seen == [(False, True, False)] * 4 + [(True, False, True)] * 4 + [(False, True, False)] * 4
    assert not trainer.validating


def test_the_hooks_of_a_data_module_count_too():
    class Data(lightning.LightningDataModule):
        def train_dataloader(self):
            return loader()

        def on_after_batch_transfer(self, batch, dataloader_idx):
            return 3 * batch[0], batch[1]

    callback = nc.CollapseCallback(classifier="head")
    _, module = fitted([callback], Data(), max_epochs=1)
    assert_by_hand(callback.records[-1], module, tripled())


class Endless(Stream):
    def __iter__(self):
        while True:
            yield from samples()


def test_data_sets_that_can_only_be_iterated_will_do():
    for stream in (DataLoader(Stream(), batch_size=8), Stream()):
        callback = nc.CollapseCallback(stream, stream, classifier="head")
        _, module = fitted([callback], max_epochs=1)
        assert_by_hand(callback.records[-1], module, loader())
        assert callback.records[-1].test == pytest.approx(as_held_out(callback.records[-1]), rel=1e-5, abs=1e-9)


def test_the_trainers_own_data_may_be_a_stream():
    callback = nc.CollapseCallback(classifier="head")
    streams = [DataLoader(Stream(), batch_size=8), DataLoader(Stream(), batch_size=5)]
    _, module = fitted([callback], streams[0], test=streams[1], max_epochs=1)
    assert_by_hand(callback.records[-1], module, loader())
    assert callback.records[-1].test == pytest.approx(as_held_out(callback.records[-1]), rel=1e-5, abs=1e-9)


def test_of_a_stream_as_much_is_measured_as_the_trainer_takes():
    seen = []
    callback = nc.CollapseCallback(classifier="head", on_record=lambda _, capture: seen.append(capture))
    streams = [DataLoader(Endless(), batch_size=8), DataLoader(Endless(), batch_size=5)]
    fitted([callback], streams[0], test=streams[1], max_epochs=1, limit_train_batches=3, limit_val_batches=2)
    assert [capture.moments.num_samples for capture in seen] == [24, 24]


def test_any_iterable_that_begins_anew_will_do_but_no_generator():
    class Own:
        def __iter__(self):
            return iter(loader(shuffle=False))

    callback = nc.CollapseCallback(classifier="head")
    _, module = fitted([callback], Own(), max_epochs=1)
    assert_by_hand(callback.records[-1], module, loader())
    with pytest.raises(nc.InputError, match=r"the trainer's data as a loader that can be run .* got a generator"):
        fitted([nc.CollapseCallback(classifier="head")], (batch for batch in loader()))


def test_a_compiled_module_is_measured():
    class Bare(Plain):
        def training_step(self, batch, index):
            return F.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module, callback = Bare(), nc.CollapseCallback(classifier="head")
    fitted([callback], module=torch.compile(module, backend="eager"), max_epochs=1)
    assert_by_hand(callback.records[-1], module, loader())


def test_the_layer_itself_names_the_classifier(tmp_path):
    module = Plain()
    callback = nc.CollapseCallback(classifier=module.head, out=tmp_path / "run", config=None)
    fitted([callback], module=module, max_epochs=1)
    assert read_run(tmp_path / "run").config["layer"] == "head"
    assert_by_hand(callback.records[-1], module, loader())


@pytest.mark.parametrize("every", [0, -1, 1.5, "epoch", True, None])
def test_every_is_checked_at_once(every):
    with pytest.raises(nc.InputError, match="every"):
        nc.CollapseCallback(every=every)


class Scheduled(Plain):
    """Its learning rate halves after each epoch."""

    def __init__(self, rate: float = 0.1):
        super().__init__()
        self.rate = rate

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=self.rate)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


def test_every_may_be_a_function_of_the_epoch():
    callback = nc.CollapseCallback(classifier="head", every=lambda epoch: epoch in (1, 4))
    fitted([callback], max_epochs=6)
    assert [record.epoch for record in callback.records] == [0, 1, 4, 6]


def test_the_end_is_measured_where_training_stops_early():
    class StopAfter(lightning.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.should_stop = trainer.current_epoch == 2

    callback = nc.CollapseCallback(classifier="head", every=2)
    fitted([callback, StopAfter()], max_epochs=9)
    assert [record.epoch for record in callback.records] == [0, 2, 3]


def test_the_learning_rate_is_that_of_the_epoch_that_ended():
    callback = nc.CollapseCallback(classifier="head")
    fitted([callback], module=Scheduled(), max_epochs=3)
    assert [record.learning_rate for record in callback.records] == pytest.approx([0.1, 0.1, 0.05, 0.025])


def test_the_loss_is_the_one_given_on_both_sets():
    data = loader(shuffle=False)
    callback = nc.CollapseCallback(data, data, "head", loss=lambda logits, labels: logits.square().mean())
    _, module = fitted([callback], max_epochs=1)
    expected = float(module.eval()(data.dataset.tensors[0]).square().mean().detach())
    assert callback.records[-1].train["loss"] == pytest.approx(expected)
    assert callback.records[-1].test == pytest.approx(as_held_out(callback.records[-1]))


def test_the_head_is_certified_with_the_decays_given():
    callback = nc.CollapseCallback(classifier="head", head_decay=(0.01, 0.02, 0.03))
    _, module = fitted([callback], max_epochs=1)
    inputs, labels = samples().tensors
    features = module.eval().model(inputs).detach()
    expected = nc.ufm.certify_head(features, labels, module.head.weight, module.head.bias, 0.01, 0.02, bias_decay=0.03)
    assert callback.records[-1].head["ratio"] == pytest.approx(expected.ratio, rel=1e-5)


def test_weights_that_are_not_finite_say_that_training_diverged():
    with pytest.raises(nc.InputError, match=r"training diverged by epoch 1 .*lower the learning rate"):
        fitted([nc.CollapseCallback(classifier="head")], module=Scheduled(rate=math.inf))


def test_a_callback_goes_on_from_its_state():
    first = nc.CollapseCallback(classifier="head")
    fitted([first], max_epochs=3)
    state = first.state_dict()
    assert state["measured_epoch"] == 3
    second = nc.CollapseCallback(classifier="head")
    second.load_state_dict({**state, "seconds": 1000.0})
    fitted([second], max_epochs=1)
    assert [record.epoch for record in second.records] == [1], "what was measured before is not measured again"
    assert 1000 < second.records[0].seconds < 1100
    assert second.state_dict()["seconds"] >= second.records[0].seconds


def test_a_fit_that_fails_leaves_no_page_that_says_that_the_run_goes_on(tmp_path, monkeypatch):
    from neuralcollapse.loops import pace

    class Failing(lightning.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            assert "This run is going on" in (tmp_path / "run/report.html").read_text()
            raise RuntimeError("of the user's")

    monkeypatch.setattr(pace.Pace, "due", True)
    with pytest.raises(RuntimeError, match="of the user's"):
        fitted([nc.CollapseCallback(classifier="head", out=tmp_path / "run"), Failing()])
    text = (tmp_path / "run/report.html").read_text()
    assert "This run is going on" not in text
    assert "The records end after 0 of 2 epochs." in text
