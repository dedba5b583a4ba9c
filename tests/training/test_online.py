from dataclasses import replace

import pytest
import torch

import neuralcollapse as nc
from neuralcollapse.training.callbacks import SaveState
from neuralcollapse.training.config import TrainConfig
from neuralcollapse.training.online import OnlineFeatures
from neuralcollapse.training.run import train
from neuralcollapse.training.step import Classification
from tests.conftest import SHORT

ONLINE = replace(SHORT, epochs=3, measure="online", loggers=())

PLAIN = """
from torch import nn

def build(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, num_classes))
"""


@pytest.fixture
def plain(tmp_path, monkeypatch) -> str:
    """A network without batch normalisation."""
    (tmp_path / "plain_network_for_online.py").write_text(PLAIN)
    monkeypatch.chdir(tmp_path)
    return "plain_network_for_online:build"


@pytest.fixture
def steps(monkeypatch) -> list[tuple[int, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """(epoch, features, logits, labels) of each training step, as the classifier met them."""
    seen = []
    original = Classification.training_step

    def training_step(self, batch, index):
        met = {}

        def look(_, inputs, logits):
            met["features"], met["logits"] = inputs[0].detach().clone(), logits.detach().clone()

        hook = self.get_submodule(self.classifier).register_forward_hook(look)
        loss = original(self, batch, index)
        hook.remove()
        seen.append((self.current_epoch, met["features"], met["logits"], batch[1].clone()))
        return loss

    monkeypatch.setattr(Classification, "training_step", training_step)
    return seen


@pytest.fixture
def captures(monkeypatch) -> list[nc.ClassMoments]:
    kept = []
    original = OnlineFeatures.__call__
    monkeypatch.setattr(OnlineFeatures, "__call__", lambda *args: kept.append(original(*args)) or kept[-1])
    return kept


def test_an_epochs_record_is_of_the_features_of_its_steps(tmp_path, steps, captures):
    run = train(replace(ONLINE, augment="flip", loss="mse"), tmp_path / "run", progress=False)
    for record, capture in zip(run.records(), captures, strict=True):
        parts = [part[1:] for part in steps if part[0] == record.epoch - 1]
        features, logits, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        assert len(labels) == 1437
        for label in range(10):
            own = features[labels == label].double()
            torch.testing.assert_close(capture.moments.means[label], own.mean(0), rtol=1e-6, atol=1e-6)
        means = torch.stack([features[labels == label].double().mean(0) for label in range(10)])
        scatter = (features.double() - means[labels]).T @ (features.double() - means[labels]) / len(labels)
        torch.testing.assert_close(capture.moments.within_covariance, scatter, rtol=1e-5, atol=1e-7)
        assert record.train["accuracy"] == float((logits.argmax(1) == labels).double().mean())
        squares = (logits.double() - torch.nn.functional.one_hot(labels, 10)).square().sum(1)
        assert record.train["loss"] == pytest.approx(float(squares.mean()) / 2, rel=1e-5)


def test_where_the_weights_hardly_move_it_is_the_measure_of_the_eval_pass(tmp_path, plain):
    still = replace(ONLINE, network=plain, width=None, depth=None, feature_dim=None, learning_rate=1e-9, epochs=1)
    (online,) = train(still, tmp_path / "online", progress=False).records()
    evaluated = train(replace(still, measure="eval"), tmp_path / "eval", progress=False).records()[-1]
    assert online.train["accuracy"] == evaluated.train["accuracy"]
    assert online.train["loss"] == pytest.approx(evaluated.train["loss"], rel=1e-4)
    assert online.test == pytest.approx(evaluated.test, rel=1e-4)
    for name, value in online.measures.items():
        assert value == pytest.approx(evaluated.measures[name], rel=1e-3), name


def test_where_the_weights_move_it_is_another_measure(tmp_path):
    online = train(ONLINE, tmp_path / "online", progress=False).records()[0]
    evaluated = train(replace(ONLINE, measure="eval"), tmp_path / "eval", progress=False).records()[1]
    assert online.measures["nc1"] > 1.5 * evaluated.measures["nc1"]


def test_online_records_say_so_and_lack_epoch_0_and_nc4(tmp_path):
    run = train(ONLINE, tmp_path / "run", progress=False)
    assert [record.epoch for record in run.records()] == [1, 2, 3]
    assert {record.source for record in run.records()} == {"online"}
    assert all("nc4" not in record.measures and "nc1" in record.measures for record in run.records())
    assert all("nc4" in record.test and "nc1" in record.test for record in run.records())


def test_measuring_online_changes_nothing_of_the_training(tmp_path):
    runs = [train(replace(ONLINE, measure=how), tmp_path / how, progress=False) for how in ("online", "eval")]
    (online, evaluated) = (run.checkpoint(3).read_bytes() for run in runs)
    assert online == evaluated


def test_each_record_is_of_its_own_epoch_alone(tmp_path):
    every = train(replace(ONLINE, epochs=5), tmp_path / "every", progress=False).records()
    some = train(replace(ONLINE, epochs=5, measure_at=(2,)), tmp_path / "some", progress=False).records()
    assert [record.epoch for record in some] == [2, 5]
    for record in some:
        (same,) = [other for other in every if other.epoch == record.epoch]
        assert (record.measures, record.train) == (same.measures, same.train)


def test_a_head_is_certified_online(tmp_path):
    run = train(replace(ONLINE, certify_head=True, epochs=1), tmp_path / "run", progress=False)
    (head,) = [record.head for record in run.records()]
    assert head["lower_bound"] <= head["minimum"] <= head["objective"]


def test_online_measuring_is_not_the_default():
    assert TrainConfig().measure == "eval"


@pytest.mark.parametrize("primary", [True, False])
def test_only_the_first_process_takes_up_the_sums_of_all(primary, monkeypatch):
    monkeypatch.setattr("neuralcollapse.training.online.is_primary", lambda: primary)
    first, second = OnlineFeatures(), OnlineFeatures()
    first._moments = nc.ClassMoments.from_batch(torch.randn(6, 3), torch.arange(6) % 2, 2)
    first._totals = torch.tensor([4.0, 1.5], dtype=torch.float64)
    second.load_state_dict(first.state_dict())
    state = second.state_dict()
    assert (state["sums"] is not None, state["correct"]) == ((True, 4.0) if primary else (False, 0.0))


def test_the_sign_of_the_features_goes_with_the_sums(tmp_path, captures):
    train(replace(ONLINE, epochs=1), tmp_path / "run", progress=False)  # its features come from a ReLU
    assert [capture.nonnegative for capture in captures] == [True]
    online = OnlineFeatures()
    online._moments = nc.ClassMoments.from_batch(torch.rand(6, 3), torch.arange(6) % 2, 2)
    state = online.state_dict()
    old = {name: value for name, value in state.items() if name != "nonnegative"}
    for given, nonnegative in ((state, True), (old, False)):  # 0.1.0 did not keep it: not known
        again = OnlineFeatures()
        again.load_state_dict(given)
        assert again.state_dict()["nonnegative"] is nonnegative


def test_sums_are_joined_by_all_processes_and_only_within_an_epoch(tmp_path, monkeypatch):
    """Else one process waits for others that never come: each writes its state at a time of its own."""
    written = []
    original = SaveState._write

    def write(self, trainer, module, epoch, step):
        (online,) = [callback for callback in trainer.callbacks if isinstance(callback, OnlineFeatures)]
        written.append((step, online._moments))
        monkeypatch.setattr(type(trainer), "is_global_zero", property(lambda _: False))
        with monkeypatch.context() as patch:
            asked = []
            patch.setattr(self, "measuring", lambda: asked.append(1) or {})
            original(self, trainer, module, epoch, step)
        written[-1] += (len(asked),)

    monkeypatch.setattr(SaveState, "_write", write)
    train(replace(ONLINE, save_seconds=0), tmp_path / "run", progress=False)
    assert written == [(0, None, 1)] * 3
