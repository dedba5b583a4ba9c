import math

import lightning
import pytest
import torch
from torch.nn import functional as F

import neuralcollapse as nc
from neuralcollapse.loops.measuring import MeasuringCallback


class Plain(lightning.LightningModule):
    def __init__(self, rate: float = 0.1):
        super().__init__()
        self.body = torch.nn.Linear(4, 6)
        self.head = torch.nn.Linear(6, 3)
        self.rate = rate

    def forward(self, inputs):
        return self.head(self.body(inputs).relu())

    def training_step(self, batch, index):
        assert self.training
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=self.rate)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


@pytest.fixture
def loader():
    torch.manual_seed(0)
    data = torch.utils.data.TensorDataset(torch.randn(30, 4), torch.arange(30) % 3)
    return torch.utils.data.DataLoader(data, batch_size=10)


def fitted(callback, loader, module=None, **options) -> tuple[lightning.Trainer, Plain]:
    module = module or Plain()
    trainer = lightning.Trainer(
        **({"max_epochs": 3} | options),
        accelerator="cpu",
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader)
    return trainer, module


def test_the_callback_measures_any_lightning_module(loader):
    callback = MeasuringCallback(loader, classifier="head", every=2)
    trainer, module = fitted(callback, loader)
    assert [record.epoch for record in callback.records] == [0, 2, 3]
    last = callback.records[-1]
    assert float(trainer.callback_metrics["collapse/nc1"]) == pytest.approx(last.measures["nc1"])
    expected = nc.measure(module, loader, "head", progress=False)
    assert last.measures | last.train == pytest.approx({k: v for k, v in expected.items() if k != "num_samples"})
    assert last.source == "eval"


def test_every_may_be_a_function_of_the_epoch(loader):
    callback = MeasuringCallback(loader, classifier="head", every=lambda epoch: epoch in (1, 4))
    fitted(callback, loader, max_epochs=6)
    assert [record.epoch for record in callback.records] == [0, 1, 4, 6]


def test_the_end_is_measured_where_training_stops_early(loader):
    class StopAfter(MeasuringCallback):
        def on_train_epoch_end(self, trainer, pl_module):
            super().on_train_epoch_end(trainer, pl_module)
            trainer.should_stop = trainer.current_epoch == 2

    callback = StopAfter(loader, classifier="head", every=2)
    fitted(callback, loader, max_epochs=9)
    assert [record.epoch for record in callback.records] == [0, 2, 3]


def test_the_learning_rate_is_that_of_the_epoch_that_ended(loader):
    callback = MeasuringCallback(loader, classifier="head")
    fitted(callback, loader)
    assert [record.learning_rate for record in callback.records] == pytest.approx([0.1, 0.1, 0.05, 0.025])


def test_the_loss_is_the_one_given_and_the_test_loader_is_measured_with_it(loader):
    callback = MeasuringCallback(loader, loader, "head", loss=lambda logits, labels: logits.square().mean())
    _, module = fitted(callback, loader)
    inputs, _ = loader.dataset.tensors
    expected = float(module(inputs).square().mean().detach())
    assert callback.records[-1].train["loss"] == pytest.approx(expected)
    assert callback.records[-1].test == pytest.approx(callback.records[-1].train)


def test_inner_layers_are_recorded_by_name(loader):
    callback = MeasuringCallback(loader, classifier="head", layers=["body"])
    _, module = fitted(callback, loader)
    expected = nc.measure(module, loader, "head", layers=["body"], progress=False)["layers"]
    assert callback.records[-1].layers == {"body": pytest.approx(expected["body"])}


def test_on_record_gets_each_record_and_its_capture(loader):
    got = []
    callback = MeasuringCallback(loader, classifier="head", on_record=lambda *both: got.append(both))
    fitted(callback, loader)
    assert [record for record, _ in got] == callback.records
    for record, capture in got:
        assert capture.measures()["nc1"] == record.measures["nc1"]


def test_the_head_is_certified_with_the_decay_given(loader):
    callback = MeasuringCallback(loader, classifier="head", head_decay=(0.01, 0.02, 0.03))
    _, module = fitted(callback, loader)
    features = module.body(loader.dataset.tensors[0]).relu().detach()
    labels = loader.dataset.tensors[1]
    expected = nc.ufm.certify_head(features, labels, module.head.weight, module.head.bias, 0.01, 0.02, bias_decay=0.03)
    assert callback.records[-1].head["ratio"] == pytest.approx(expected.ratio, rel=1e-5)


def test_weights_that_are_not_finite_say_that_training_diverged(loader):
    callback = MeasuringCallback(loader, classifier="head")
    with pytest.raises(nc.InputError, match=r"training diverged by epoch 1 .*lower the learning rate"):
        fitted(callback, loader, Plain(rate=math.inf))


def test_a_callback_goes_on_from_its_state(loader):
    first = MeasuringCallback(loader, classifier="head")
    fitted(first, loader)
    state = first.state_dict()
    assert state["measured_epoch"] == 3
    second = MeasuringCallback(loader, classifier="head")
    second.load_state_dict({**state, "seconds": 1000.0})
    fitted(second, loader, max_epochs=1)
    assert [record.epoch for record in second.records] == [1], "what was measured before is not measured again"
    assert 1000 < second.records[0].seconds < 1100


@pytest.mark.parametrize("every", [0, -1, 1.5, True])
def test_every_is_a_count_or_a_function(every, loader):
    with pytest.raises(nc.InputError, match="every"):
        MeasuringCallback(loader, every=every)
