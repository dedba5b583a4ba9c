import warnings
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from neuralcollapse.heads.etf import ETFClassifier
from neuralcollapse.networks.build import build_network
from neuralcollapse.training.config import TrainConfig
from neuralcollapse.training.optimizers import build_optimizer, decay_groups, learning_rate, penalty, set_epoch

F64 = torch.float64
EPOCHS = 50


@pytest.mark.parametrize(
    ("options", "twin"),
    [
        ({"schedule": "step", "decay_every": 7}, lambda o: lr_scheduler.StepLR(o, 7, 0.3)),
        ({"schedule": "step", "decay_every": 1}, lambda o: lr_scheduler.StepLR(o, 1, 0.3)),
        ({"schedule": "multistep", "milestones": (3, 20, 21)}, lambda o: lr_scheduler.MultiStepLR(o, [3, 20, 21], 0.3)),
        ({"schedule": "multistep", "milestones": (9, 2, 2)}, lambda o: lr_scheduler.MultiStepLR(o, [9, 2, 2], 0.3)),
        ({"schedule": "cosine"}, lambda o: lr_scheduler.CosineAnnealingLR(o, EPOCHS)),
        ({"schedule": "constant"}, lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 1.0)),
    ],
    ids=["step", "step each epoch", "multistep", "multistep unsorted", "cosine", "constant"],
)
@pytest.mark.parametrize("rate", [None, 0.7])
def test_the_learning_rate_is_that_of_torchs_schedule(options, twin, rate):
    config = TrainConfig(epochs=EPOCHS, decay_factor=0.3, learning_rate=rate, **options)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=config.rate)
    schedule = twin(optimizer)
    for epoch in range(EPOCHS):
        assert learning_rate(config, epoch) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimizer.step()
            schedule.step()


def network_and_head(**options) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    network = build_network("mlp", 4, 5, in_features=6, width=7, depth=2, **options)
    return network, network.fc


def names_by_decay(groups, network) -> dict[float, set[str]]:
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    return {group["weight_decay"]: {names[id(parameter)] for parameter in group["params"]} for group in groups}


def assert_each_once(groups, network):
    ids = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(parameter) for parameter in network.parameters() if parameter.requires_grad}


def test_decay_on_all_is_one_group_of_every_trainable_parameter():
    network, head = network_and_head()
    next(network.parameters()).requires_grad_(False)
    (group,) = decay_groups(network, head, TrainConfig(weight_decay=0.3))
    assert group["weight_decay"] == 0.3
    assert len(group["params"]) == len(list(network.parameters())) - 1
    assert_each_once([group], network)


def test_decay_on_the_classifier_tells_its_weight_its_bias_and_the_others_apart():
    network, head = network_and_head()
    config = TrainConfig(decay_on="classifier", weight_decay=0.3, bias_decay=0.2, feature_decay=0.1)
    groups = decay_groups(network, head, config)
    assert_each_once(groups, network)
    named = names_by_decay(groups, network)
    assert named.pop(0.3) == {"fc.weight"}
    assert named.pop(0.2) == {"fc.bias"}
    assert set(named) == {0.0}


@pytest.mark.parametrize(
    ("weight_decay", "bias_decay"), [(0.0, 0.0), (0.3, 0.3), (0.3, 0.0), (0.0, 0.2)], ids=lambda x: f"{x}"
)
def test_decays_that_are_equal_lose_no_parameter(weight_decay, bias_decay):
    network, head = network_and_head()
    config = TrainConfig(decay_on="classifier", weight_decay=weight_decay, bias_decay=bias_decay)
    groups = decay_groups(network, head, config)
    assert_each_once(groups, network)
    named = names_by_decay(groups, network)
    assert "fc.weight" in named[weight_decay]
    assert "fc.bias" in named[bias_decay]
    assert "features.1.weight" in named[0.0]


def test_a_fixed_classifiers_learnt_scale_decays_as_the_weight_that_it_stands_for():
    network, head = network_and_head(classifier="etf", learn_scale=True)
    assert isinstance(head, ETFClassifier)
    groups = decay_groups(network, head, TrainConfig(decay_on="classifier", weight_decay=0.3, bias_decay=0.2))
    assert_each_once(groups, network)
    named = names_by_decay(groups, network)
    assert named[0.2] == {"fc.bias"}
    assert named[0.3 * head.num_classes] == {"fc.scale"}
    size = head.weight.detach().square().sum()  # |W|^2 of the matrix that the layer stands for
    assert float(size) == pytest.approx(float(head.num_classes * head.scale.detach() ** 2), rel=1e-6)


def two_groups():
    """A weight with decay 0.3 and a bias with decay 0.05, in float64, with gradients."""
    generator = torch.Generator().manual_seed(0)
    parameters = [
        nn.Parameter(torch.randn(3, 2, dtype=F64, generator=generator)),
        nn.Parameter(torch.ones(3, dtype=F64)),
    ]
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, dtype=F64, generator=generator)
    groups = [{"params": [one], "weight_decay": decay} for one, decay in zip(parameters, (0.3, 0.05), strict=True)]
    return parameters, groups


def by_hand(kind: str, start: torch.Tensor, gradients: list[torch.Tensor], decay: float, rate: float) -> torch.Tensor:
    """Steps with given gradients of the loss alone."""
    value, first, second = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for step, gradient in enumerate(gradients, 1):
        coupled = gradient if kind == "adamw" else gradient + decay * value
        if kind == "sgd":
            first = 0.8 * first + coupled
            value = value - rate * first
            continue
        if kind == "adamw":
            value = value * (1 - rate * decay)
        first = 0.9 * first + 0.1 * coupled
        second = 0.999 * second + 0.001 * coupled**2
        value = value - rate * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
    return value


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_the_decay_is_part_of_the_gradient_but_for_adamw(kind):
    parameters, groups = two_groups()
    config = TrainConfig(optimizer=kind, learning_rate=0.1, momentum=0.8)
    optimizer = build_optimizer(groups, config)
    expected = [
        by_hand(kind, group["params"][0].detach(), [group["params"][0].grad] * 2, group["weight_decay"], 0.1)
        for group in groups
    ]
    optimizer.step()
    optimizer.step()
    for parameter, value in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.detach(), value, rtol=1e-12, atol=1e-12)


def test_each_optimiser_begins_with_the_schedules_first_rate():
    for kind in ("sgd", "adam", "adamw", "lbfgs"):
        config = TrainConfig(optimizer=kind, learning_rate=0.7)
        assert [group["lr"] for group in build_optimizer(two_groups()[1], config).param_groups] in ([0.7], [0.7, 0.7])


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw", "lbfgs"])
def test_an_epoch_gives_each_group_its_rate_and_its_decay(kind):
    config = TrainConfig(optimizer=kind, learning_rate=1, epochs=9, decay_every=4, decay_warmup=3)
    groups = two_groups()[1]
    groups[1]["weight_decay"] = 2
    optimizer = build_optimizer([dict(group) for group in groups], config)
    for epoch in (0, 2, 3, 4, 2):  # in any order: nothing is left of the epoch before
        set_epoch(optimizer, groups, config, epoch)
        found = optimizer.param_groups
        assert [group["lr"] for group in found] == [0.1 if epoch == 4 else 1.0] * len(found)
        if kind == "lbfgs":
            assert "weight_decay" not in found[0]
        else:
            part = 0.1 if epoch < 3 else 1.0
            assert [group["weight_decay"] for group in found] == [0.3 * part, 2 * part]
            assert [group["weight_decay"] for group in groups] == [0.3, 2]


def test_lbfgs_gets_every_parameter_strong_wolfe_its_history_and_iterations():
    parameters, groups = two_groups()
    config = TrainConfig(optimizer="lbfgs", lbfgs_history=7, lbfgs_iterations=13)
    optimizer = build_optimizer(groups, config)
    assert isinstance(optimizer, torch.optim.LBFGS)
    (group,) = optimizer.param_groups
    assert [id(parameter) for parameter in group["params"]] == [id(parameter) for parameter in parameters]
    assert group["line_search_fn"] == "strong_wolfe"
    assert group["history_size"] == 7
    assert group["max_iter"] == 13


def test_the_penalty_is_the_sum_of_half_the_decays_times_the_squares():
    parameters, groups = two_groups()
    wanted = sum(
        decay / 2 * value**2
        for parameter, decay in zip(parameters, (0.3, 0.05), strict=True)
        for value in parameter.flatten().tolist()
    )
    total = penalty(groups)
    assert total.item() == pytest.approx(wanted, rel=1e-12)
    total.backward()
    starts, _ = two_groups()
    for parameter, start, decay in zip(parameters, starts, (0.3, 0.05), strict=True):
        torch.testing.assert_close(parameter.grad - start.grad, decay * parameter.detach(), rtol=1e-12, atol=1e-12)


def test_without_decay_there_is_no_penalty():
    _, groups = two_groups()
    assert float(penalty([{**group, "weight_decay": 0.0} for group in groups])) == 0
    assert float(penalty([])) == 0


def test_the_rates_fall_and_never_rise():
    for schedule, options in (("step", {}), ("cosine", {}), ("multistep", {"milestones": (30, 120)})):
        config = TrainConfig(schedule=schedule, **options)
        rates = [learning_rate(config, epoch) for epoch in range(config.epochs)]
        assert all(earlier >= later > 0 for earlier, later in pairwise(rates))
        assert rates[0] == config.rate
