"""Every loop keeps the same: records, geometries by one rule, and one environment.json."""

import itertools
import json
import random
from types import SimpleNamespace

import lightning
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import neuralcollapse as nc
from neuralcollapse.capture.collect import Capture
from neuralcollapse.geometry.measures import WEIGHT_MEASURES
from neuralcollapse.loops.kept import certified, environment_of, geometry_of, spread
from neuralcollapse.runs.folder import RunFolder
from tests.processes import on_ranks

EPOCHS = 3


class Network(nn.Module):
    """Takes inputs as they are, or what a Trainer of transformers gives."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU())
        self.fc = nn.Linear(6, 3)

    def forward(self, inputs, labels=None):
        logits = self.fc(self.body(inputs))
        return logits if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = Network()

    def forward(self, inputs):
        return self.model(inputs)

    def training_step(self, batch, index):
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Classes(TensorDataset):
    classes = ("a", "b", "c")


def data() -> Classes:
    generator = torch.Generator().manual_seed(0)
    return Classes(torch.randn(30, 4, generator=generator), torch.arange(30) % 3)


def plain_loop(out, **options):
    model, loader = Network(), DataLoader(data(), batch_size=10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = nc.Recorder(loader, loader, out=out, progress=False, **options)
    recorder.measure(model, 0)
    for epoch in range(1, EPOCHS + 1):
        for inputs, labels in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
        recorder.measure(model, epoch, learning_rate=0.1)


def lightning_loop(out, **options):
    loader = DataLoader(data(), batch_size=10)
    trainer = lightning.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        callbacks=[nc.CollapseCallback(loader, loader, out=out, **options)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), loader)


def huggingface_loop(out, **options):
    from transformers import Trainer, TrainingArguments

    rows = [{"inputs": inputs, "labels": labels} for inputs, labels in data()]
    model = Network()
    model.config = None  # the callback asks a model of transformers for the names of its classes
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            str(out.parent / "trainer"), num_train_epochs=EPOCHS, per_device_train_batch_size=10, learning_rate=0.1,
            report_to="none", save_strategy="no", use_cpu=True, disable_tqdm=True,
        ),
        train_dataset=rows,
        eval_dataset=rows,
    )  # fmt: skip
    names = {"class_names": ["a", "b", "c"]}
    trainer.add_callback(nc.CollapseTrainerCallback(trainer, out=out, classifier="fc", **names, **options))
    trainer.train()


def command_loop(out, head_decay=None):
    config = nc.TrainConfig(
        epochs=EPOCHS, width=12, depth=2, feature_dim=9, weight_decay=head_decay or 0.01, samples_per_class=10,
        certify_head=head_decay is not None, loggers=(),
    )  # fmt: skip
    nc.train(config, out, progress=False)


LOOPS = {"plain": plain_loop, "lightning": lightning_loop, "huggingface": huggingface_loop, "train": command_loop}


@pytest.fixture(params=LOOPS)
def loop(request, tmp_path, monkeypatch):
    """loop(): a run folder of each of the loops."""
    torch.manual_seed(0)

    def run(**options) -> RunFolder:
        LOOPS[request.param](tmp_path / "run", **options)
        return RunFolder.open(tmp_path / "run")

    states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    yield run
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    random.setstate(states[2])


MACHINE = {"python", "neuralcollapse", "torch", "torchmetrics", "numpy", "lightning", "machine", "cpu_count", "threads"}
DATA = {"class_names", "class_counts", "num_classes", "feature_dim", "train_samples", "test_samples", "parameters"}
IMAGES = {"image_shape", "pixel_mean", "pixel_std"}
BUDGET = {"decay_budget", "row_sum_left"}
STEP = {"cuda_graph", "precision", "processes"}  # only `train` decides about the step


def test_every_loop_keeps_the_same_record_geometry_and_environment(loop):
    run = loop(head_decay=1e-3)
    records = run.records()
    assert [record.epoch for record in records] == list(range(EPOCHS + 1))
    moments = nc.ClassMoments.from_batch(torch.randn(12, 6), torch.arange(12) % 3, 3)
    capture = Capture(moments, torch.randn(3, 6), torch.zeros(3), 1.0, 0.1, nc4=0.0, ncc_accuracy=1.0)
    for record in records:
        assert record.source == "eval"
        assert set(record.train) == {"loss", "accuracy"}
        assert set(record.test) == {*record.train, *record.measures} - {*WEIGHT_MEASURES}
        assert set(record.measures) == set(capture.measures()) - {"loss", "accuracy", "num_samples"}
        assert set(record.head) == set(certified(capture, 1e-3))
    assert [geometry.epoch for geometry in run.geometries()] == list(range(EPOCHS + 1))

    environment = json.loads(run.read_text("environment.json"))
    assert set(environment) - STEP == MACHINE | DATA | IMAGES | BUDGET | {"gpu"}
    classes = environment["num_classes"]
    assert len(environment["class_names"]) == len(environment["class_counts"]) == classes
    assert sum(environment["class_counts"]) == environment["train_samples"]
    assert environment["test_samples"] > 0
    (*_, last) = run.geometries()
    assert last.means.shape == (classes, environment["feature_dim"])


def test_the_gpu_that_is_named_is_the_one_that_the_network_is_on(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: f"card {device}")
    moments = nc.ClassMoments.from_batch(torch.randn(12, 6), torch.arange(12) % 3, 3)
    capture = Capture(moments, torch.randn(3, 6), torch.zeros(3), 1.0, 0.1, nc4=0.0, ncc_accuracy=1.0)
    network = nn.Linear(6, 3)
    assert environment_of(network, capture, None, 0, {})["gpu"] is None

    class On(nn.Linear):
        def parameters(self, recurse=True):
            return iter([SimpleNamespace(device=torch.device("cuda:1"), requires_grad=False)])

    assert environment_of(On(6, 3), capture, None, 0, {})["gpu"] == "card cuda:1"


def test_no_loop_keeps_geometries_that_are_large(loop, monkeypatch):
    monkeypatch.setattr("neuralcollapse.loops.kept._GEOMETRY_VALUES", 17)
    run = loop()
    assert len(run.records()) == EPOCHS + 1
    assert list(run.geometries()) == []


def test_no_loop_keeps_more_geometries_than_its_share(loop, monkeypatch):
    monkeypatch.setattr("neuralcollapse.loops.kept._GEOMETRIES", 3)
    assert [geometry.epoch for geometry in loop().geometries()] == [0, 1, 3]


@pytest.mark.parametrize(
    ("classes", "dim", "kept"), [(200, 2048, True), (1000, 2048, False), (201, 2, False), (100, 10_000, True)]
)
def test_what_is_large(classes, dim, kept):
    class Moments:
        """As ClassMoments, without the (d, d) scatter."""

        num_classes = classes
        means = torch.zeros(classes, dim)
        counts = torch.ones(classes)
        global_mean = torch.zeros(dim)

    geometry = geometry_of(7, Capture(Moments(), torch.zeros(classes, dim), None, 1.0, 0.0))
    assert (geometry is not None) == kept
    assert geometry is None or geometry.means.shape == (classes, dim)


def test_kept_epochs_are_spread_evenly_in_the_root_of_the_epoch(monkeypatch):
    with monkeypatch.context() as fewer:
        fewer.setattr("neuralcollapse.loops.kept._GEOMETRIES", 11)
        kept = spread(range(101))
    assert (len(kept), kept[0], kept[-1]) == (11, 0, 100)
    assert kept[1] <= 4
    assert max(after - before for before, after in itertools.pairwise(kept)) <= 30
    assert spread(range(60)) == list(range(60))
    assert len(spread(range(1000))) == 60
    assert spread([5, 3]) == [3, 5]
    assert spread([]) == []


@pytest.mark.parametrize("rewound", [0, 40, 90])
def test_a_run_that_was_killed_and_rewound_keeps_what_one_that_ran_through_keeps(rewound):
    """Files that were dropped are gone: what a run keeps at its end must never be among them."""
    files: set[int] = set()
    for epoch in range(95):  # and killed
        files = (files | {epoch}) & set(spread(range(epoch + 1)))
    files = {epoch for epoch in files if epoch <= rewound}
    for epoch in range(rewound + 1, 200):
        files = (files | {epoch}) & set(spread(range(epoch + 1)))
    assert files == set(spread(range(200)))


def test_more_classes_than_a_reader_looks_at_are_counted_and_not_listed(tmp_path, monkeypatch):
    monkeypatch.setattr("neuralcollapse.loops.kept._LISTED_CLASSES", 2)
    nc.Recorder(DataLoader(data(), batch_size=10), out=tmp_path / "run", progress=False).measure(Network(), 0)
    environment = json.loads((tmp_path / "run/environment.json").read_text())
    assert (environment["class_names"], environment["class_counts"], environment["num_classes"]) == (None, None, 3)
    assert nc.read_run(tmp_path / "run").class_names == ["0", "1", "2"]


def test_what_the_caller_knows_of_the_data_is_written_too(tmp_path):
    more = {"image_shape": [1, 2, 2], "commit": "abc"}
    recorder = nc.Recorder(DataLoader(data(), batch_size=10), out=tmp_path / "run", environment=more, progress=False)
    recorder.measure(Network(), 0)
    environment = json.loads((tmp_path / "run/environment.json").read_text())
    assert environment.items() >= more.items()


# What a Recorder can be given beside a loader


def test_layers_are_named_from_within_a_part_of_the_network():
    loader = DataLoader(data(), batch_size=10)
    model = nn.Sequential()
    model.add_module("network", Network())
    record = nc.Recorder(loader, inside="network", layers=["body.0"], progress=False).measure(model, 0)
    expected = nc.Recorder(loader, layers="network.body.0", progress=False).measure(model, 0)
    assert record.layers == {"body.0": pytest.approx(expected.layers["network.body.0"])}


def test_a_capture_made_elsewhere_gives_a_record_without_a_pass(tmp_path):
    model = Network()
    moments = nc.ClassMoments.from_batch(torch.randn(12, 6), torch.arange(12) % 3, 3)
    capture = Capture(moments, model.fc.weight.detach(), model.fc.bias.detach(), 0.5, 1.25)
    recorder = nc.Recorder([], DataLoader(data(), batch_size=10), out=tmp_path / "run", online=lambda network: capture)
    record = recorder.measure(model, 4)
    assert (record.source, record.train) == ("online", {"loss": 1.25, "accuracy": 0.5})
    assert record.measures == pytest.approx(nc.measures(moments, model.fc.weight, model.fc.bias))
    assert set(record.test) == {"loss", "accuracy", "nc4", "ncc_accuracy", *record.measures} - {*WEIGHT_MEASURES}
    (geometry,) = RunFolder.open(tmp_path / "run").geometries()
    assert geometry.means == pytest.approx(moments.means.numpy(), rel=1e-6)


def test_a_folder_of_the_callers_gets_records_and_keeps_its_configuration(tmp_path):
    folder = RunFolder.create(tmp_path / "run")
    folder.write_text("config.yaml", "mine: 1\n")
    recorder = nc.Recorder(DataLoader(data(), batch_size=10), out=folder, progress=False)
    recorder.measure(Network(), 0)
    assert recorder.folder is folder
    assert len(folder.records()) == 1
    assert folder.read_text("config.yaml") == "mine: 1\n"


# The buffers of batch normalisation


def measure_in_two(rank: int, world: int) -> dict:
    torch.manual_seed(0)
    model = Network()
    model.body[1].running_mean.fill_(float(rank))
    share = [(inputs[rank::2], labels[rank::2]) for inputs, labels in DataLoader(data(), batch_size=10)]
    record = nc.Recorder(share, sharded=True, progress=False).measure(model, 0)
    return {"measures": record.measures, "after": model.body[1].running_mean.tolist()}


@pytest.mark.slow
def test_processes_measure_the_buffers_of_the_first_and_keep_their_own(tmp_path):
    first, second = on_ranks(2, tmp_path, measure_in_two)
    assert first["measures"] == second["measures"]
    assert (first["after"], second["after"]) == ([0.0] * 6, [1.0] * 6)
    torch.manual_seed(0)
    alone = nc.Recorder(DataLoader(data(), batch_size=10), progress=False).measure(Network(), 0)
    assert first["measures"] == pytest.approx(alone.measures, rel=1e-5, abs=1e-7)


def test_what_stays_follows_from_what_stayed_before():
    epochs = [*range(90), *range(95, 400, 5)]
    kept: list[int] = []
    for epoch in epochs:
        kept = spread([*kept, epoch])
    assert kept == spread(epochs)
    assert len(kept) == 60
