import gc
from dataclasses import replace

import pytest
import torch
from torch import nn

from neuralcollapse.errors import InputError
from neuralcollapse.training import cost
from neuralcollapse.training.config import TrainConfig
from neuralcollapse.training.cost import peak_of, step_costs
from neuralcollapse.training.step import Classification

CPU = torch.device("cpu")
TINY = TrainConfig(accelerator="cpu", width=24, depth=2, feature_dim=16, batch_size=32)
# linear 64 -> 24 -> 16 -> 10 with biases, and two parameters of batch normalisation for each of the 24 + 16 units
PARAMETERS = (64 * 24 + 24) + (24 * 16 + 16) + 2 * (24 + 16) + (16 * 10 + 10)
TENSORS = 2 * 2 + 2 * 2 + 2
# running means and variances in float32, and a count in int64 for each of the two layers
BUFFERS = 4 * 2 * (24 + 16) + 8 * 2


def costs(steps: int = 1, **configs: TrainConfig) -> dict[str, cost.Cost]:
    return step_costs(configs, steps=steps)


def test_the_bytes_are_those_counted_by_hand():
    found = costs(sgd=TINY, adam=replace(TINY, optimizer="adam"), adamw=replace(TINY, optimizer="adamw"))
    plain = costs(plain=replace(TINY, momentum=0.0))["plain"]
    for one in (*found.values(), plain):
        assert one.parameters == PARAMETERS
        assert one.weights == 4 * PARAMETERS + BUFFERS
        assert one.gradients == 4 * PARAMETERS
        assert one.device == "cpu"
    assert plain.optimizer_state == 0
    assert found["sgd"].optimizer_state == found["sgd"].gradients
    for name in ("adam", "adamw"):  # and a count of steps for each tensor
        assert found[name].optimizer_state == 2 * found[name].gradients + 4 * TENSORS


def test_the_fixed_classifier_has_no_weight_to_learn_or_to_keep():
    found = costs(learned=TINY, etf=replace(TINY, frame="simplex"))
    learned, fixed = found["learned"], found["etf"]
    assert learned.parameters - fixed.parameters == 16 * 10
    assert learned.gradients - fixed.gradients == 4 * 16 * 10
    assert learned.weights - fixed.weights == 4 * 16 * 10 - 4  # the scale in float32


def test_frozen_parameters_are_kept_but_cost_no_gradient(monkeypatch):
    def frozen(*args, real=cost.network_for) -> nn.Module:
        network = real(*args)
        network.fc.weight.requires_grad_(False)
        return network

    monkeypatch.setattr(cost, "network_for", frozen)
    one = costs(one=TINY)["one"]
    assert one.parameters == PARAMETERS - 16 * 10
    assert one.gradients == one.optimizer_state == 4 * one.parameters
    assert one.weights == 4 * PARAMETERS + BUFFERS


def test_a_resnet18_with_a_fixed_classifier_and_few_features_has_over_a_fifth_fewer_parameters():
    config = TrainConfig(accelerator="cpu", network="resnet18", channels=3, batch_size=2)
    found = costs(learned=config, etf=replace(config, frame="simplex", feature_dim=10))
    learned, fixed = found["learned"], found["etf"]
    assert learned.parameters == 11_181_642
    assert fixed.parameters == 8_867_442 < 0.8 * learned.parameters
    units = 5 * (64 + 128 + 256 + 512)  # of the 20 batch normalisations
    assert learned.weights == 4 * learned.parameters + 4 * 2 * units + 8 * 20
    units += 10 + 10 - 512  # the last block ends in 10 channels, and has a shortcut with one more
    assert fixed.weights == 4 * fixed.parameters + 4 * 2 * units + 8 * 21 + 4
    assert fixed.gradients == fixed.optimizer_state == 4 * fixed.parameters
    assert fixed.weights < 0.8 * learned.weights
    assert fixed.peak < learned.peak


def test_the_peak_holds_all_that_a_step_keeps_and_grows_with_the_batch():
    small, large = (costs(one=replace(TINY, batch_size=size))["one"] for size in (32, 96))
    more = 64 * (64 + 8)  # the batch: pixels in uint8, the label in int64
    more += 64 * 4 * (64 + 2 * (24 + 16) + 10)  # kept for the backward pass: the input, and of each layer in and out
    assert large.peak - small.peak >= more
    assert large.peak - small.peak <= 3 * more
    for one, size in ((small, 32), (large, 96)):
        assert one.peak >= one.weights + one.gradients + one.optimizer_state + more // 64 * size
    assert large.weights == small.weights


def test_the_peak_counts_the_optimisers_state():
    found = costs(sgd=TINY, adam=replace(TINY, optimizer="adam"))
    assert found["adam"].peak - found["sgd"].peak >= found["sgd"].gradients


def test_the_features_that_a_module_keeps_from_step_to_step_count():
    found = costs(eval=TINY, online=replace(TINY, measure="online"))
    assert found["online"].peak >= found["eval"].peak  # all that is held for "eval", and these


def test_the_peak_of_known_allocations_is_exact():
    def step() -> None:
        first = torch.empty(1000)
        second = torch.empty(500)
        del first
        third = torch.empty(250)
        del second, third

    assert peak_of(step, CPU) == 4 * 1500
    assert peak_of(lambda: None, CPU) == 0


@pytest.mark.parametrize(("free_first", "rise"), [(True, 0), (False, 4000)])
def test_what_a_step_replaces_counts_twice_only_while_both_are_there(free_first, rise):
    held: list[torch.Tensor] = [torch.empty(1000)]

    def step() -> None:
        if free_first:
            held.clear()
        new = torch.empty(1000)
        held[:] = [new]

    assert peak_of(step, CPU) == rise


def test_what_was_held_before_and_what_comes_after_do_not_count():
    before = torch.ones(10_000)
    assert peak_of(lambda: before + before, CPU) == before.nbytes
    assert peak_of(lambda: before.add_(before), CPU) == 0


def test_no_garbage_is_collected_in_the_midst_of_a_step():
    modes: list[bool] = []
    peak_of(lambda: modes.append(gc.isenabled()), CPU)
    assert modes == [False, False]
    assert gc.isenabled()


def test_blocks_inside_an_operation_count():
    values = torch.randn(100, 40)
    assert peak_of(lambda: values.sum(), CPU) == 4
    inside = peak_of(lambda: torch.sort(values, stable=True).values, CPU)
    assert inside >= values.nbytes + 8 * values.numel()  # the order in int64 is no value of the step


def test_the_peak_of_a_linear_layers_step_is_exact():
    samples, inputs, outputs = 50, 30, 20
    layer = nn.Linear(inputs, outputs, bias=False)
    batch, slope = torch.randn(samples, inputs), torch.randn(samples, outputs)

    def step(early: bool) -> None:
        if early:
            layer.weight.grad = None
        logits = layer(batch)
        layer.weight.grad = None
        logits.backward(slope)

    weight, logits = 4 * inputs * outputs, 4 * samples * outputs
    # the old gradient is held already: freed late, it is gone when the new one comes; freed early, all the same
    assert peak_of(lambda: step(False), CPU) == logits
    assert peak_of(lambda: step(True), CPU) == max(logits - weight, logits)
    layer.weight.grad = None

    def forgets() -> None:
        step(True)
        layer.weight.grad = None

    assert peak_of(forgets, CPU) == logits + weight


def test_a_trace_that_is_not_understood_is_an_error():
    probe = torch.empty(8, dtype=torch.uint8)
    args = {"Device Type": 0, "Bytes": 8, "Addr": probe.data_ptr(), "Total Allocated": 100}
    event = {"name": "[memory]", "ts": 1.0, "args": args}
    later = [
        {**event, "ts": 2.0 + i, "args": {**args, "Addr": 0, "Total Allocated": x}} for i, x in enumerate((9, 130))
    ]
    assert cost._rise([*later, event, {"name": "aten::add"}], probe) == 30
    for wrong in ([], later, [{"name": "[memory]", "ts": 1.0, "args": {"Bytes": 8}}]):
        with pytest.raises(RuntimeError, match="no allocations"):
            cost._rise(wrong, probe)


def test_steps_go_in_turns_and_the_time_is_the_median_of_those_after_the_warm_up(monkeypatch):
    took = {"a": [900.0, 900.0, 1.0, 9.0, 2.0], "b": [900.0, 900.0, 5.0, 3.0, 4.0]}
    waiting = {name: list(values) for name, values in took.items()}
    order: list[str] = []
    now = [0.0]

    def training_step(self, *args, real=Classification.training_step):
        name = "a" if self.config.seed == 1 else "b"
        order.append(name)
        now[0] += waiting[name].pop(0) if waiting[name] else 0.0
        return real(self, *args)

    monkeypatch.setattr(Classification, "training_step", training_step)
    monkeypatch.setattr(cost.time, "perf_counter", lambda: now[0])
    found = step_costs({"a": replace(TINY, seed=1), "b": replace(TINY, seed=2)}, steps=3)
    assert [found[name].step_seconds for name in ("a", "b")] == [2.0, 4.0]
    assert "".join(order[:10]) == "abbaabbaab"


def test_a_step_trains_as_the_config_says(monkeypatch):
    """The decays of the unconstrained feature model, a clipped gradient, deterministic algorithms."""
    losses, modes, norms = [], [], []
    before = torch.are_deterministic_algorithms_enabled()

    def training_step(self, *args, real=Classification.training_step):
        loss = real(self, *args)
        losses.append(float(loss.detach()))
        modes.append(torch.are_deterministic_algorithms_enabled())
        return loss

    def step(self, *args, real=torch.optim.SGD.step):
        slopes = [parameter.grad for group in self.param_groups for parameter in group["params"]]
        norms.append(float(torch.cat([slope.flatten() for slope in slopes]).norm()))
        return real(self, *args)

    monkeypatch.setattr(Classification, "training_step", training_step)
    monkeypatch.setattr(torch.optim.SGD, "step", step)
    decays = {"decay_on": "classifier", "feature_decay": 1e-7, "bias_decay": 0.01}
    costs(8, one=replace(TINY, gradient_clip=0.125, learning_rate=0.1, **decays))
    assert losses[-1] < losses[0]
    assert norms == pytest.approx([0.125] * len(norms), rel=1e-4)
    assert all(modes)
    assert torch.are_deterministic_algorithms_enabled() == before
    modes.clear()
    norms.clear()
    costs(8, one=replace(TINY, deterministic=False, learning_rate=1e-9, weight_decay=0.0))
    assert not any(modes)
    assert norms == pytest.approx([norms[0]] * len(norms), rel=1e-3), "no gradient is left from the step before"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "lbfgs"}, "one: expected optimizer sgd, adam or adamw, got lbfgs"),
        ({"devices": 2}, "expected one process, got devices=2, nodes=1"),
        ({"nodes": 3}, "expected one process, got devices=1, nodes=3"),
        ({"precision": "bf16-mixed"}, "expected precision 32-true, got bf16-mixed"),
        ({"accelerator": "mps"}, "expected accelerator auto"),
        ({"batch_size": 1438}, "at most the 1437 training samples, got 1438"),
        ({"frame": "simplex", "feature_dim": 8}, "simplex ETF"),
    ],
)
def test_what_cannot_be_measured_is_an_input_error(options, message):
    with pytest.raises(InputError, match=message):
        costs(one=replace(TINY, **options))


def test_there_must_be_configurations_and_steps():
    with pytest.raises(InputError, match="at least one configuration, got none"):
        step_costs({})
    with pytest.raises(InputError, match="expected steps to be an integer of at least 1, got 0"):
        costs(0, one=TINY)


def test_times_on_different_devices_are_not_compared(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(InputError, match=r"one device for all.*'one': 'cpu', 'two': 'cuda'"):
        costs(one=TINY, two=replace(TINY, accelerator="cuda"))


def test_without_a_gpu_there_is_none_to_measure_on(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="there is no CUDA GPU here"):
        costs(one=replace(TINY, accelerator="cuda"))


def test_a_storage_that_tensors_share_counts_once_and_whole():
    whole, other = torch.zeros(10, 4), torch.zeros(3)
    assert cost._bytes([whole, whole[2:], whole.T, other]) == 4 * 40 + 4 * 3
    assert cost._bytes([whole[:1]]) == 4 * 40
