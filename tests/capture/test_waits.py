"""A measuring pass on an accelerator waits for the device a fixed number of times, however many batches there are."""

import pytest
import torch
from torch import nn

import neuralcollapse as nc
from neuralcollapse.capture.batches import to_device
from neuralcollapse.geometry import intake
from tests.helpers import Dispatched


@pytest.fixture
def accelerator(monkeypatch):
    """CPU tensors are treated as those of an accelerator."""
    monkeypatch.setattr(intake, "waits_for_nothing", lambda device: False)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def loader(batches, size=16):
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(size, 4, generator=generator), torch.arange(size) % 3) for _ in range(batches)]


@pytest.mark.parametrize("options", [{}, {"nc4": False}, {"layers": ["0"]}])
def test_no_batch_waits(accelerator, options):
    waits, operations = [], []
    for batches in (12, 42):
        with Dispatched() as seen:
            nc.measure(net(), loader(batches), **options)
        waits.append(len(seen.waits))
        operations.append(len(seen.names))
    assert waits[0] == waits[1] > 0
    assert operations[1] > operations[0]


def test_the_pass_of_an_accelerator_measures_the_same(monkeypatch):
    want = nc.measure(net(), loader(42), layers=["0"])
    monkeypatch.setattr(intake, "waits_for_nothing", lambda device: False)
    got = nc.measure(net(), loader(42), layers=["0"])
    inner = got.pop("layers"), want.pop("layers")
    assert got == pytest.approx(want, rel=1e-9)
    assert inner[0]["0"] == pytest.approx(inner[1]["0"], rel=1e-9)


class Head(nn.Linear):
    """A linear head that is none from the `after`-th call on."""

    def __init__(self, after):
        super().__init__(8, 3)
        self.after, self.calls = after, 0

    def forward(self, inputs):
        self.calls += 1
        outputs = super().forward(inputs)
        return (
            outputs if self.calls < self.after else outputs + inputs.square().sum(1, keepdim=True) * self.weight[:, 0]
        )


@pytest.mark.parametrize("after", [5, 70, 100])
def test_a_head_that_stops_being_linear_is_refused_with_the_number_of_the_batch(after):
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), Head(after))
    with pytest.raises(nc.InputError, match=f"^batch {after}: "):
        nc.measure(model, loader(100), nc4=False)


def test_a_batch_that_is_not_finite_is_named(accelerator):
    batches = loader(20)
    batches[6][0][3] = torch.nan
    with pytest.raises(nc.InputError, match=r"^batch 7: expected finite features"):
        nc.measure(net(), batches)


@pytest.mark.parametrize("wrong", [3, -1, 99])
@pytest.mark.parametrize("place", [0, 6])
def test_a_label_out_of_range_is_named_and_no_loss_is_asked_about_it(accelerator, wrong, place):
    """On a GPU the loss of such a label would end the process."""
    batches = loader(20)
    batches[place][1][3] = wrong
    with pytest.raises(nc.InputError, match=f"^batch {place + 1}: expected labels from 0 to 2"):
        nc.measure(net(), batches)


@pytest.mark.parametrize("size", [1, 100, 1500, 2049])
def test_batches_of_any_size_are_measured(size):
    inputs, labels = torch.randn(4100, 4, generator=torch.Generator().manual_seed(0)), torch.arange(4100) % 3
    count = 4100 if size > 1 else 40
    inputs, labels = inputs[:count], labels[:count]
    got = nc.measure(net(), list(zip(inputs.split(size), labels.split(size), strict=True)))
    want = nc.measure(net(), [(inputs, labels)])
    assert got == pytest.approx(want, rel=1e-6)


class Returning(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.body, self.head, self.change, self.calls = nn.Linear(4, 8), nn.Linear(8, 3), change, 0

    def forward(self, inputs):
        self.calls += 1
        return self.change(self.head(self.body(inputs).relu()), self.calls)


@pytest.mark.parametrize(
    ("change", "more"),
    [
        (lambda logits, _: logits, 0),
        (lambda logits, _: logits * 1.0, 0),
        (lambda logits, _: {"logits": logits}, 0),
        (lambda logits, _: (logits, 1), 0),
        (lambda logits, calls: logits if calls < 10 else logits.clone(), 1),
    ],
)
def test_the_network_runs_once_a_batch(change, more):
    model = Returning(change)
    nc.measure(model, loader(30), "head")
    assert model.calls == 30 + more


def test_a_loader_that_puts_the_model_into_train_mode_changes_nothing():
    model, batches = net().eval(), loader(20)

    def training():
        for number, batch in enumerate(batches):
            if number == 10:
                model.train()
            yield batch

    want = nc.measure(model, batches)
    assert nc.measure(model, training()) == pytest.approx(want, rel=1e-9)


class Elsewhere(torch.Tensor):
    """Notes whether a copy of it is waited for."""

    noted: list[bool]

    def to(self, device, *, non_blocking=False):
        self.noted.append(non_blocking)
        return torch.Tensor(self)


@pytest.mark.parametrize(("device", "freely"), [("cpu", False), ("cuda", True)])
def test_what_goes_to_the_cpu_is_waited_for(device, freely):
    """Otherwise the numbers would be read before they are there: batches on a GPU for a model that is not."""
    value = torch.ones(2).as_subclass(Elsewhere)
    value.noted = []
    to_device({"x": [value]}, torch.device(device))
    assert value.noted == [freely]
