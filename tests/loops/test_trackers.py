"""What each kind of logger is given: TensorBoard itself, and stand-ins with the methods of W&B and MLflow."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

import neuralcollapse as nc
from neuralcollapse.loops.trackers import check_loggers, images_into, numbers_into

IMAGE = np.zeros((4, 6, 3), np.uint8)


class Heard:
    """Keeps every call."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: self.calls.append((name, args, kwargs))


class LightningWandb:
    experiment = object()

    def __init__(self):
        self.calls = []

    def log_metrics(self, numbers, step):
        self.calls.append((numbers, step))

    def save(self):
        pass

    def log_image(self, key, images, step):
        self.calls.append((key, images, step))


class Client:
    def __init__(self):
        self.calls = []

    def log_image(self, run_id, image, artifact_file=None, key=None, step=None):
        self.calls.append((run_id, artifact_file, key, step))


class OldClient(Client):
    def log_image(self, run_id, image, artifact_file):
        self.calls.append((run_id, artifact_file))


def test_tensorboard_itself_gets_numbers_and_pictures(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path) as writer:
        numbers_into(writer)({"collapse/nc1": 0.5}, 7)
        images_into(writer)({"figures/nc1": IMAGE}, 7)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("collapse/nc1")] == [(7, 0.5)]
    assert [(event.step, event.width, event.height) for event in events.Images("figures/nc1")] == [(7, 6, 4)]


@pytest.fixture
def wandb(monkeypatch):
    module = ModuleType("wandb")
    module.calls = []
    module.log = module.calls.append
    module.Image = lambda image: ("image", image.shape)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_a_run_of_wandb_and_its_module_get_both(wandb):
    run = type("Run", (), {"__module__": "wandb.sdk.wandb_run", "log": staticmethod(wandb.log)})()
    for logger in (wandb, run):
        wandb.calls.clear()
        numbers_into(logger)({"collapse/nc1": 0.5}, 7)
        images_into(logger)({"figures/nc1": IMAGE}, 7)
        assert wandb.calls == [{"collapse/nc1": 0.5}, {"figures/nc1": ("image", (4, 6, 3))}]


def test_mlflow_gets_both():
    heard = []
    module = ModuleType("mlflow")
    module.log_metrics = lambda numbers, step: heard.append((numbers, step))
    module.log_image = lambda image, artifact_file=None, key=None, step=None: heard.append((key, step))
    numbers_into(module)({"collapse/nc1": 0.5}, 7)
    images_into(module)({"figures/nc1": IMAGE}, 7)
    assert heard == [({"collapse/nc1": 0.5}, 7), ("figures/nc1", 7)]


def test_the_loggers_of_lightning_are_asked_for_what_they_stand_for():
    wandb = LightningWandb()
    images_into(wandb)({"figures/nc1": IMAGE}, 7)
    assert wandb.calls == [("figures/nc1", [IMAGE], 7)]
    for client, wanted in (
        (Client(), ("run", None, "figures/nc1", 7)),
        (OldClient(), ("run", "figures/nc1-00000007.png")),
    ):
        logger = SimpleNamespace(experiment=client, run_id="run", log_metrics=None)
        images_into(logger)({"figures/nc1": IMAGE}, 7)
        assert client.calls == [wanted]
    assert images_into(SimpleNamespace(experiment=object(), log_metrics=None)) is None  # one of CSV files


@pytest.mark.parametrize("wrong", ["tensorboard", LightningWandb(), [3], ["wandb"], [LightningWandb], [object()]])
def test_other_things_are_refused_in_a_line(wrong):
    with pytest.raises(nc.InputError, match="expected loggers as a list, each a SummaryWriter"):
        check_loggers(wrong)
    assert check_loggers(()) == []
    with pytest.raises(nc.InputError, match=r"got NoneType: write \[\], or leave it out"):
        check_loggers(None)
