import json
import math
import random
from collections import UserList

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

import neuralcollapse as nc
from neuralcollapse.runs import record_lines
from neuralcollapse.runs.folder import RunFolder
from neuralcollapse.runs.reading import read_run


def network(seed: int = 0, num_classes: int = 3) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential()
    model.add_module("body", nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.ReLU()))
    model.add_module("fc", nn.Linear(6, num_classes))
    return model


@pytest.fixture
def loader():
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(30, 4, generator=generator), torch.arange(30) % 3)
    return DataLoader(data, batch_size=8, shuffle=True)


def test_a_record_is_what_measure_says(loader, tmp_path):
    model = network()
    recorder = nc.Recorder(loader, loader, out=tmp_path / "run", layers=["body"], progress=False)
    record = recorder.measure(model, 3, learning_rate=0.5)
    expected = nc.measure(model, loader, layers=["body"], test_loader=loader, progress=False)
    test = expected.pop("test")
    assert record.layers["body"] == pytest.approx(expected.pop("layers")["body"])
    assert record.measures | record.train == pytest.approx({k: v for k, v in expected.items() if k != "num_samples"})
    assert record.test_layers["body"] == pytest.approx(test.pop("layers")["body"])
    assert record.test == pytest.approx({k: v for k, v in test.items() if k != "num_samples"})
    assert (record.epoch, record.learning_rate) == (3, 0.5)
    assert recorder.records == [record] == RunFolder.open(tmp_path / "run").records()


def test_without_a_place_the_records_are_in_memory_alone(loader, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recorder = nc.Recorder(loader, progress=False)
    recorder.measure(network(), 0)
    assert len(recorder.records) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_folder_says_what_was_measured(loader, tmp_path):
    recorder = nc.Recorder(
        Subset_loader(loader), out=tmp_path / "run", unit="step", config={"data": "mine", "rate": math.nan},
        class_names=["a", "b", "😀"], progress=False,
    )  # fmt: skip
    recorder.measure(network(), 500)
    run = read_run(tmp_path / "run")
    assert run.config["data"] == "mine"
    assert run.config["network"] == "Sequential"
    assert (run.unit, run.config["layer"], run.config["frame"]) == ("step", "fc", "learned")
    assert run.class_names == ["a", "b", "😀"]
    assert (run.environment["num_classes"], run.environment["feature_dim"]) == (3, 6)
    assert run.environment["train_samples"] == 20
    (geometry,) = run.geometries
    assert geometry.epoch == 500


def Subset_loader(loader):
    return DataLoader(Subset(loader.dataset, range(20)), batch_size=8)


def test_the_data_set_gives_its_name_and_those_of_the_classes(tmp_path):
    class Pets(TensorDataset):
        classes = ("cat", "dog", "eel")

    data = Subset(Pets(torch.randn(9, 4), torch.arange(9) % 3), range(9))
    nc.Recorder(DataLoader(data, batch_size=3), out=tmp_path / "run", progress=False).measure(network(), 0)
    run = read_run(tmp_path / "run")
    assert (run.config["data"], run.class_names) == ("Pets", ["cat", "dog", "eel"])


def test_the_numbers_of_each_class_are_kept_of_the_last_record(loader, tmp_path):
    net = network()
    recorder = nc.Recorder(loader, out=tmp_path / "run", class_names={0: "a", 1: "b", 2: "c"}, progress=False)
    for epoch in (0, 4, 2):
        recorder.measure(net, epoch)
    run = read_run(tmp_path / "run")
    table = nc.collect(net, loader, progress=False).per_class(["a", "b", "c"])
    assert (run.classes.epoch, run.class_names) == (4, ["a", "b", "c"])
    for name, values in table.columns.items():
        assert run.classes.columns[name] == pytest.approx(values.numpy(), nan_ok=True), name
    assert run.classes.rows(run.class_names)[1]["nearest_name"] == table.rows()[1]["nearest_name"]
    pairs = nc.worst_pairs(nc.collect(net, loader, progress=False).moments)
    assert run.classes.pairs == pytest.approx(np.array(pairs))


def test_of_many_classes_the_nearest_are_not_looked_for(loader, tmp_path, monkeypatch):
    monkeypatch.setattr("neuralcollapse.loops.kept._PAIRED_CLASSES", 2)
    nc.Recorder(loader, out=tmp_path / "run", progress=False).measure(network(), 0)
    classes = read_run(tmp_path / "run").classes
    assert {"cdnv", "nearest"}.isdisjoint(classes.columns)
    assert len(classes.pairs) == 0
    monkeypatch.setattr("neuralcollapse.loops.kept._LISTED_CLASSES", 2)
    nc.Recorder(loader, out=tmp_path / "many", progress=False).measure(network(), 0)
    assert read_run(tmp_path / "many").classes is None


@pytest.mark.parametrize("classes", [3, torch.arange(3), ["a"], "abc"])
def test_data_sets_whose_classes_are_no_names_are_measured_too(classes, tmp_path):
    data = TensorDataset(torch.randn(9, 4), torch.arange(9) % 3)
    data.classes = classes
    nc.Recorder(DataLoader(data, batch_size=3), out=tmp_path / "run", progress=False).measure(network(), 0)
    assert read_run(tmp_path / "run").class_names == ["0", "1", "2"]


def test_names_that_are_not_one_for_each_class_are_left_out(loader, tmp_path):
    nc.Recorder(loader, out=tmp_path / "run", class_names=["a", "b"], progress=False).measure(network(), 0)
    assert read_run(tmp_path / "run").class_names == ["0", "1", "2"]


def test_a_used_folder_is_refused_before_anything_is_measured(loader, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(nc.InputError, match=r"not empty and holds no run .*: choose another \(--out, out=\)$"):
        nc.Recorder(loader, out=tmp_path)
    with pytest.raises(nc.InputError, match="holds no run"):
        nc.Recorder(loader, out=tmp_path, force=True)
    nc.Recorder(loader, out=tmp_path, writes=False)
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_making_a_recorder_writes_nothing(loader, tmp_path):
    nc.Recorder(loader, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_force_overwrites_an_earlier_run(loader, tmp_path):
    nc.Recorder(loader, out=tmp_path / "run", progress=False).measure(network(), 7)
    nc.Recorder(loader, out=tmp_path / "run", force=True, progress=False).measure(network(), 1)
    assert [record.epoch for record in RunFolder.open(tmp_path / "run").records()] == [1]


def measured(loader, out, epochs=4):
    recorder = nc.Recorder(loader, out=out, progress=False)
    for epoch in range(epochs):
        recorder.measure(network(epoch), epoch)
    return recorder


def test_a_run_goes_on_after_the_epoch_that_is_asked_for(loader, tmp_path):
    measured(loader, tmp_path / "run")
    recorder = nc.Recorder(loader, out=tmp_path / "run", resume=True, progress=False)
    assert [record.epoch for record in recorder.records] == [0, 1, 2, 3]
    recorder.resume(1)
    recorder.measure(network(9), 2)
    epochs = [record.epoch for record in recorder.records]
    assert epochs == [record.epoch for record in RunFolder.open(tmp_path / "run").records()] == [0, 1, 2]
    assert [geometry.epoch for geometry in recorder.folder.geometries()] == [0, 1, 2]
    assert recorder.records[-1].seconds > recorder.records[1].seconds


def test_where_there_is_no_run_to_go_on_with_one_begins(loader, tmp_path):
    recorder = nc.Recorder(loader, out=tmp_path / "run", resume=True, progress=False)
    recorder.resume(5)
    recorder.measure(network(), 6)
    assert [record.epoch for record in RunFolder.open(tmp_path / "run").records()] == [6]


def test_a_second_measurement_takes_the_place_of_the_first(loader, tmp_path):
    recorder = measured(loader, tmp_path / "run", epochs=3)
    record = recorder.measure(network(8), 1)
    found = RunFolder.open(tmp_path / "run").records()
    assert [each.epoch for each in found] == [0, 1, 2]
    assert found[1] == record


def test_a_record_neither_reads_nor_rewrites_those_before_it(loader, tmp_path, monkeypatch):
    def never(*_):
        raise AssertionError("the records before are none of its business")

    measured(loader, tmp_path / "run").folder.unlock()
    recorder = nc.Recorder(loader, out=tmp_path / "run", resume=True, progress=False)
    with monkeypatch.context() as patch:
        for name in ("_bytes", "write_atomically"):
            patch.setattr(record_lines, name, never)
        for epoch in (4, 2, 5):
            recorder.measure(network(), epoch)
    assert [record.epoch for record in recorder.records] == [0, 1, 2, 3, 4, 5]
    assert recorder.records == RunFolder.open(tmp_path / "run").records()


def test_records_made_out_of_order_are_in_order_in_memory_and_on_disk(loader, tmp_path):
    recorder = nc.Recorder(loader, out=tmp_path / "run", progress=False)
    for epoch in (5, 1, 3, 1):
        recorder.measure(network(epoch), epoch)
    assert [record.epoch for record in recorder.records] == [1, 3, 5]
    assert recorder.records == RunFolder.open(tmp_path / "run").records()
    assert [geometry.epoch for geometry in recorder.folder.geometries()] == [1, 3, 5]


def test_an_epoch_measured_again_leaves_the_choice_of_geometries_as_it_was(loader, tmp_path, monkeypatch):
    monkeypatch.setattr("neuralcollapse.loops.kept._GEOMETRIES", 4)
    recorder = measured(loader, tmp_path / "run", epochs=9)
    kept = [geometry.epoch for geometry in recorder.folder.geometries()]
    for epoch in range(8):
        recorder.measure(network(), epoch)
        assert [geometry.epoch for geometry in recorder.folder.geometries()] == kept


def test_weights_that_are_not_finite_are_named_in_the_unit(loader):
    model = network()
    model.fc.weight.data[0] = math.inf
    with pytest.raises(nc.InputError, match="diverged by step 40"):
        nc.Recorder(loader, unit="step").measure(model, 40)


def states():
    return [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()]  # noqa: NPY002


class Noisy(torch.utils.data.Dataset):
    """Draws from all three generators."""

    def __len__(self):
        return 12

    def __getitem__(self, i):
        noise = torch.randn(4) + np.random.rand() + random.random()  # noqa: NPY002
        return noise.float(), i % 3


def test_measuring_leaves_training_as_it_was():
    model = network().train()
    model.body[1].eval()
    before, modes = states(), [module.training for module in model.modules()]
    nc.Recorder(DataLoader(Noisy(), batch_size=4, shuffle=True), progress=False).measure(model, 0)
    assert states() == before
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    with pytest.raises(nc.InputError):
        nc.Recorder(DataLoader(Noisy(), batch_size=4, shuffle=True), num_classes=2, progress=False).measure(model, 0)
    assert states() == before


def test_autocast_outside_does_not_reach_the_measuring(loader):
    model = network()
    expected = nc.Recorder(loader, progress=False).measure(model, 0).measures
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert nc.Recorder(loader, progress=False).measure(model, 0).measures == pytest.approx(expected, rel=1e-6)


def test_options_reach_the_measuring_and_captures_come_back(loader):
    seen = []
    recorder = nc.Recorder(
        loader, nc4=False, pairwise=False, ignore_index=2, progress=False, on_record=lambda *both: seen.append(both)
    )
    with pytest.warns(nc.NeuralCollapseWarning, match="class"):
        record = recorder.measure(network(), 0)
    assert not {"nc4", "nc1_cdnv"} & set(record.measures)
    ((same, capture),) = seen
    assert same is record
    assert capture.moments.counts.tolist() == [10, 10, 0]


def test_classes_without_samples_have_no_mean_on_the_page(loader, tmp_path):
    recorder = nc.Recorder(loader, out=tmp_path / "run", ignore_index=1, progress=False)
    with pytest.warns(nc.NeuralCollapseWarning, match="class"):
        recorder.measure(network(), 0)
    (geometry,) = recorder.folder.geometries()
    assert np.isnan(geometry.means).all(1).tolist() == [False, True, False]
    text = nc.write_page(tmp_path / "run").read_text()
    assert '"x":["0","2"]' in text


def test_geometries_are_thinned_and_the_ends_kept(loader, tmp_path, monkeypatch):
    monkeypatch.setattr("neuralcollapse.loops.kept._GEOMETRIES", 5)
    recorder = measured(loader, tmp_path / "run", epochs=12)
    kept = [geometry.epoch for geometry in recorder.folder.geometries()]
    assert len(kept) == 5
    assert (kept[0], kept[-1]) == (0, 11)
    assert len(recorder.folder.records()) == 12


def test_a_loader_without_a_data_set_is_called_by_its_own_kind(tmp_path):
    batches = UserList([(torch.randn(6, 4), torch.arange(6) % 3)])
    nc.Recorder(batches, out=tmp_path / "run", progress=False).measure(network(), 0)
    assert json.loads((tmp_path / "run/config.yaml").read_text())["data"] == "UserList"


def test_a_page_is_written_from_a_path_or_a_folder(loader, tmp_path):
    recorder = measured(loader, tmp_path / "run", epochs=2)
    assert nc.write_page(str(tmp_path / "run")) == tmp_path / "run/report.html"
    other = nc.write_page(recorder.folder, tmp_path / "other.html")
    assert other.read_text() == (tmp_path / "run/report.html").read_text()
    with pytest.raises(nc.InputError, match="no run folder"):
        nc.write_page(tmp_path / "missing")


def test_a_page_without_its_packages_says_what_to_install(loader, tmp_path, monkeypatch):
    import sys

    measured(loader, tmp_path / "run", epochs=1)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    for name in [name for name in sys.modules if name.startswith("neuralcollapse.report")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("neuralcollapse.report", raising=False)
    with pytest.raises(nc.InputError, match=r"needs more packages.*neuralcollapse\[train\]"):
        nc.write_page(tmp_path / "run")


def test_the_test_set_is_measured_on_the_classes_that_are_frequent_in_training():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4))
    train = [(torch.randn(9, 3), torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 3]))]
    test = [(torch.randn(7, 3), torch.tensor([0, 1, 0, 1, 2, 2, 2]))]
    record = nc.Recorder(train, test, "0", min_count=3).measure(model, 0)
    inputs, labels = test[0][0][:4], test[0][1][:4]  # classes 0 and 1
    assert record.test["accuracy"] == float((model(inputs).argmax(1) == labels).float().mean())


def test_the_head_is_found_or_given_as_the_layer_itself(loader, tmp_path):
    model = network()
    expected = nc.Recorder(loader, progress=False).measure(model, 0).measures
    for number, classifier in enumerate((None, model.fc)):
        recorder = nc.Recorder(loader, classifier=classifier, out=tmp_path / str(number), progress=False)
        assert recorder.measure(model, 0).measures == pytest.approx(expected, rel=1e-6)
        assert read_run(tmp_path / str(number)).config["layer"] == "fc"


def test_a_compiled_network_is_measured_by_the_names_of_its_own(loader, tmp_path):
    model = network()
    recorder = nc.Recorder(loader, out=tmp_path / "run", progress=False)
    recorder.measure(torch.compile(model, backend="eager"), 0)
    assert read_run(tmp_path / "run").config["network"] == "Sequential"


@pytest.mark.parametrize(
    ("epoch", "got"),
    [(1.5, "1.5"), (-1, "-1"), ("last", "'last'"), (True, "True"), (None, "None")],
)
def test_an_epoch_is_a_count(loader, epoch, got):
    with pytest.raises(nc.InputError, match=f"expected epoch to be an integer of at least 0, got {got}"):
        nc.Recorder(loader).measure(network(), epoch)
    with pytest.raises(nc.InputError, match=r"expected learning_rate as a number, got \[0.1\]"):
        nc.Recorder(loader).measure(network(), 0, learning_rate=[0.1])
