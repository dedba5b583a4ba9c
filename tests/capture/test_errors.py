"""measure(..., errors=True): the measures stay what they are, and get values without bias and standard errors."""

import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import neuralcollapse as nc
from neuralcollapse.capture.collect import collect
from neuralcollapse.geometry.standard_errors import errors_of

NAMES = ("nc1", "nc1_quotient", "nc1_cdnv")
KEYS = {f"{name}_{kind}" for name in NAMES for kind in ("corrected", "error")} | {"num_groups"}


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.fc = nn.Linear(6, 12), nn.Linear(12, 4)

    def forward(self, inputs):
        return self.fc(self.body(inputs).relu())


def samples(count=240, seed=0, wrong=False):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    means = 3 * torch.randn(4, 6, generator=torch.Generator().manual_seed(9))
    inputs = means[labels] + torch.randn(count, 6, generator=generator)
    if wrong:
        inputs[100] = math.nan
    return inputs, labels


def loader(data, size=16):
    return DataLoader(TensorDataset(*data), batch_size=size)


@pytest.mark.parametrize("size", [1, 16, 240])
def test_the_measures_are_the_same_and_the_errors_those_of_the_features(size):
    model, data = Network(), samples()
    plain = nc.measure(model, loader(data, size))
    found = nc.measure(model, loader(data, size), errors=True)
    assert found.keys() - plain.keys() == KEYS
    assert all(found[name] == pytest.approx(plain[name], rel=1e-9, abs=1e-12) for name in plain)
    with torch.no_grad():
        features = model.body(data[0]).relu()
    of_features = nc.measure_features(features, data[1], model.fc.weight, model.fc.bias, errors=True)
    assert all(found[key] == pytest.approx(of_features[key], rel=1e-4) for key in KEYS)  # other float32 products
    assert found["num_groups"] == 20


def test_the_errors_do_not_depend_on_batches_and_hardly_on_the_order():
    inputs, labels = samples()
    model = Network()
    by_class = labels.argsort(stable=True)
    one, other = (nc.measure(model, loader((inputs[i], labels[i])), errors=True) for i in (by_class, by_class.flip(0)))
    for name in NAMES:
        assert one[f"{name}_error"] == pytest.approx(other[f"{name}_error"], rel=0.6)
        assert one[f"{name}_corrected"] == pytest.approx(other[f"{name}_corrected"], rel=0.05)


def test_the_test_set_has_its_own():
    found = nc.measure(Network(), loader(samples()), test_loader=loader(samples(80, 1)), errors=True)
    assert found["test"].keys() > KEYS
    assert found["test"]["nc1_error"] > found["nc1_error"]


def test_inner_layers_and_a_subset_of_classes_have_them():
    rows, model = samples(), Network()
    found = nc.measure(model, loader(rows), layers=("body",), classes=[0, 2, 3], errors=True)
    assert found["nc1_error"] > 0
    inner = nc.measure_features(model.body(rows[0]).detach(), rows[1], classes=[0, 2, 3], errors=True)
    assert found["layers"]["body"].keys() >= KEYS
    for name in KEYS:
        assert found["layers"]["body"][name] == pytest.approx(inner[name], rel=1e-5), name
    plain = nc.measure(model, loader(rows), layers=("body",), classes=[0, 2, 3])
    assert found["layers"]["body"]["nc1"] == pytest.approx(plain["layers"]["body"]["nc1"], rel=1e-6)
    assert not KEYS & plain["layers"]["body"].keys()


def test_warnings_say_of_which_layer_they_are_and_nothing_of_the_samples_twice():
    (inputs, labels), model = samples(), Network()
    with torch.no_grad():
        model.body.weight.zero_()  # its outputs are all alike, as are the features
    with pytest.warns(nc.NeuralCollapseWarning) as caught:
        nc.measure(model, loader((inputs[labels > 0], labels[labels > 0])), layers=("body",), errors=True, more=True)
    said = [str(each.message) for each in caught]
    assert sum("no samples of class 0" in each for each in said) <= 2  # of the measures, and of more of them
    of_layer = [each for each in said if each.startswith("layer 'body': ")]
    assert any("nc1_cdnv" in each and "undefined" in each for each in of_layer)
    assert any("no standard error" in each for each in of_layer)
    assert any("uniformity_log" in each for each in of_layer)
    assert not any("no samples of class" in each for each in of_layer)


def test_a_wrong_batch_is_named():
    with pytest.raises(nc.InputError, match="batch 7: expected finite features"):
        nc.measure(Network(), loader(samples(wrong=True)), errors=True)


@pytest.mark.parametrize("wrong", [1, 0, 2.0, "yes", None])
def test_wrong_errors_are_refused_before_the_pass(wrong):
    with pytest.raises(nc.InputError, match="errors"):
        nc.measure(Network(), iter([]), errors=wrong)
    with pytest.raises(nc.InputError, match="errors"):
        nc.Recorder(loader(samples()), errors=wrong)


def test_a_capture_keeps_the_groups():
    capture = collect(Network(), loader(samples()), errors=8)
    assert len(capture.groups) == 8
    assert sum(part.num_samples for part in capture.groups) == capture.moments.num_samples == 240
    assert nc.standard_errors(capture.groups) == pytest.approx(errors_of(capture.moments, capture.groups), rel=1e-9)
    assert not collect(Network(), loader(samples())).groups


def test_records_and_the_page_have_them(tmp_path):
    from neuralcollapse.report.curves import run_curves
    from neuralcollapse.report.figure import Band

    recorder = nc.Recorder(loader(samples()), loader(samples(80, 1)), out=tmp_path / "run", errors=True)
    model = Network()
    for epoch in range(3):
        record = recorder.measure(model, epoch)
        with torch.no_grad():
            model.body.weight.mul_(1.2)
    assert record.measures.keys() >= KEYS
    run = nc.read_run(tmp_path / "run")
    assert run.last.measures == record.measures
    figure = next(each for each in run_curves(run.records) if each.name == "variability")
    bands = {mark.name: mark for mark in figure.marks if isinstance(mark, Band)}
    assert list(bands) == ["NC1", "NC1, quotient", "NC1, CDNV"]
    half = 2.093 * record.measures["nc1_error"]
    assert bands["NC1"].high[-1] == pytest.approx(record.measures["nc1_corrected"] + half, rel=1e-3)
    assert bands["NC1"].low[-1] == pytest.approx(record.measures["nc1_corrected"] - half, rel=1e-3)
    assert "95 % intervals" in figure.caption
    text = nc.write_page(tmp_path / "run").read_text()
    assert "After a semicolon: without the bias of few samples" in text


def test_without_errors_there_are_no_bands(tmp_path):
    from neuralcollapse.report.curves import run_curves
    from neuralcollapse.report.figure import Band

    recorder = nc.Recorder(loader(samples()))
    recorder.measure(Network(), 0)
    assert not any(isinstance(mark, Band) for figure in run_curves(recorder.records) for mark in figure.marks)


def test_inner_layers_have_more_measures_too():
    found = nc.measure(Network(), loader(samples()), layers=("body",), more=True)
    assert found["layers"]["body"]["more"]["rank_between"] == found["more"]["rank_between"] == 3
    assert not found["layers"]["body"]["more"].keys() & {"gnc2", "gnc3"}  # of a classifier


@pytest.mark.parametrize("option", ["errors", "more", "nc4"])
def test_a_metric_says_where_they_are(option):
    with pytest.raises(nc.InputError, match=f"no {option} of a metric.*neuralcollapse.measure"):
        nc.NeuralCollapse(4, 6, **{option: True})
