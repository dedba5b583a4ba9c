"""What a Recorder says that theory expects."""

import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import neuralcollapse as nc
from neuralcollapse.loops.expected import decays_of
from neuralcollapse.report.single import state
from neuralcollapse.runs.records import Record
from neuralcollapse.ufm.expected import Decays, expected_at_minimum
from tests.helpers import SmallNet, small_loader


def unequal() -> DataLoader:
    labels = torch.tensor([0] * 20 + [1] * 10 + [2] * 6)
    return DataLoader(TensorDataset(torch.randn(36, 4, generator=torch.Generator().manual_seed(0)), labels), 8)


def measured(model: nn.Module, loader: DataLoader, **options) -> Record:
    return nc.Recorder(loader, progress=False, **options).measure(model, 0)


def zeros(record: Record) -> bool:
    return bool(record.minimizer) and all(record.minimizer[name] == 0 for name in ("nc1", "nc2", "nc2_means", "nc3"))


def test_equal_classes_need_no_decays():
    record = measured(SmallNet(seed=0), small_loader())
    assert zeros(record)
    assert record.minimizer["nonnegative"] == 1
    assert "nc_bias" not in record.minimizer
    assert record.untrained["nc0"] == pytest.approx(1 / 3)


def test_unequal_classes_have_the_minimum_of_their_decays():
    model = SmallNet(seed=0)
    record = measured(model, unequal(), decays=(0.01, 0.02, 0.5))
    expected = expected_at_minimum([20, 10, 6], 6, Decays(0.01, 0.02, 0.5), nonnegative=True)
    assert {name: record.minimizer[name] for name in expected} == expected
    assert record.minimizer["nc2"] > 0.1
    assert record.minimizer["feature_decay"] == 0.02
    assert not record.head
    assert not measured(model, unequal()).minimizer
    certified = measured(model, unequal(), head_decay=0.01)
    assert certified.head
    assert certified.minimizer["bias_decay"] == 0.01


def test_a_missing_feature_decay_is_that_of_the_balance():
    weight = torch.full((2, 3), 2.0)
    assert decays_of(0.01, weight, 12.0) == Decays(0.01, 0.02, 0.01)
    assert decays_of((0.01, None, 0.0), weight, 12.0) == Decays(0.01, 0.02, 0.0)
    assert decays_of(0.01, weight, 0.0) is None


def test_a_loss_without_a_name_has_no_known_minimum():
    def loss(logits, labels):
        return logits.square().mean()

    model = SmallNet(seed=0)
    assert not measured(model, small_loader(), loss=loss).minimizer
    assert zeros(measured(model, small_loader(), loss=loss, loss_name="focal:2"))
    with pytest.raises(nc.InputError, match="no loss"):
        nc.Recorder(small_loader(), loss_name="crossentropy")


def test_only_the_measures_that_were_taken_are_compared():
    record = measured(SmallNet(seed=0), small_loader(), pairwise=False, nc4=False)
    assert "nc1_cdnv" not in record.minimizer
    assert "nc4" not in record.minimizer


@pytest.mark.parametrize(("rotation", "reached"), [("blocks", True), ("none", True), ("fast", False)])
def test_a_fixed_simplex_behind_a_relu_collapses_only_where_it_is_reached(rotation, reached):
    model = SmallNet(seed=0)
    model.fc = nc.ETFClassifier(6, 3, rotation=rotation)
    record = measured(model, small_loader())
    assert zeros(record) == reached
    assert record.untrained["nc2"] == 0
    assert not measured(model, unequal(), decays=0.01).minimizer


def test_other_fixed_rows_keep_the_nc2_that_they_have():
    model = SmallNet(seed=0)
    model.fc = nc.OrthoplexClassifier(6, 3)
    record = measured(model, small_loader())
    assert record.untrained["nc2"] == record.measures["nc2"]
    assert not record.minimizer
    model = SmallNet(seed=0)
    model.fc.requires_grad_(False)
    assert not measured(model, small_loader()).minimizer


def test_classes_that_are_left_out_were_trained_too():
    assert not measured(SmallNet(seed=0), small_loader(), classes=[0, 1]).minimizer


def test_records_keep_it_and_loggers_get_the_minimum(tmp_path):
    record = measured(SmallNet(seed=0), small_loader())
    assert Record.from_json(record.to_json()) == record
    assert record.flat()["minimizer/nc2"] == 0
    assert not any(name.startswith("untrained") for name in record.flat())
    plain = Record(0, 1.0, 0.1, {})
    assert "minimizer" not in plain.to_dict()
    assert math.isnan(plain.value("minimizer.nc2"))


@pytest.mark.parametrize("options", [{"loss": lambda z, y: z.square().mean()}, {"loss_name": "mse"}])
def test_a_head_is_certified_for_cross_entropy_alone(options):
    with pytest.raises(nc.InputError, match="expected cross-entropy for the certificate of the head, got"):
        nc.Recorder(small_loader(), head_decay=0.01, **options)
    nc.Recorder(small_loader(), decays=0.01, **options)


def test_the_loss_of_torch_as_a_module_is_cross_entropy():
    assert measured(SmallNet(seed=0), small_loader(), head_decay=0.01, loss=nn.CrossEntropyLoss()).head
    with pytest.raises(nc.InputError, match="a loss without a name"):
        nc.Recorder(small_loader(), head_decay=0.01, loss=nn.CrossEntropyLoss(label_smoothing=0.1))


def test_a_head_is_certified_with_all_its_classes():
    with pytest.raises(nc.InputError, match="all classes for the certificate of the head, got 2 of them"):
        measured(SmallNet(seed=0), small_loader(), head_decay=0.01, classes=[0, 2])


def test_rows_that_are_frozen_beside_a_trained_bias_have_no_minimum():
    model = SmallNet(seed=0)
    head = next(module for module in reversed([*model.modules()]) if isinstance(module, nn.Linear))
    head.weight.requires_grad_(False)
    assert head.bias.requires_grad
    assert not measured(model, small_loader()).minimizer


@pytest.mark.filterwarnings("ignore:undefined")
@pytest.mark.parametrize("part", ["features", "rows"])
def test_a_dead_network_has_a_record_without_a_certificate(part):
    model = SmallNet(seed=0)
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    with torch.no_grad():
        linear[-1].weight.zero_() if part == "rows" else [x.zero_() for x in linear[-2].parameters()]
    record = measured(model, small_loader(), head_decay=0.01)
    assert record.head == {}
    assert state(record) == "Not collapsed"
    assert measured(model, small_loader(), head_decay=(0.01, 0.01, None)).head["ratio"] > 0
