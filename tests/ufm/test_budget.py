"""The sum of the classifier's rows shrinks as `row_sum_left` says, whatever the data; close to exp(-B)."""

import math
from itertools import repeat

import numpy as np
import pytest
import torch
from torch import nn

from neuralcollapse import InputError
from neuralcollapse.training.step import loss_function
from neuralcollapse.ufm import decay_budget, row_sum_left

F64 = torch.float64
K, D, STEPS, MOMENTUM = 5, 7, 60, 0.8
DECAY, RATE = 0.05, 0.1


def dropping(step: int) -> float:
    return RATE if step < 40 else RATE / 10


def warming(step: int) -> float:
    return DECAY / 10 if step < 20 else DECAY


def trained(make, loss: str = "cross_entropy", rate=dropping, decay=warming, clip: float | None = None):
    """|1'W| and |1'b| at the end over that at the start, of a network trained in a plain loop on random batches."""
    torch.manual_seed(0)
    head = nn.Linear(D, K, dtype=F64)
    body = nn.Sequential(nn.Linear(3, D, dtype=F64), nn.ReLU())
    optimizer = make([*body.parameters(), *head.parameters()])
    function = loss_function(loss)
    start = head.weight.detach().sum(0).norm(), head.bias.detach().sum().abs()
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"], group["weight_decay"] = rate(step), decay(step)
        size = 1 + step % 9
        logits = head(body(torch.randn(size, 3, dtype=F64)))
        optimizer.zero_grad()
        function(logits, torch.randint(K, (size,))).backward()
        if clip:
            nn.utils.clip_grad_norm_([*body.parameters(), *head.parameters()], clip)
        optimizer.step()
    return float(head.weight.detach().sum(0).norm() / start[0]), float(head.bias.detach().sum().abs() / start[1])


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=1.0, momentum=MOMENTUM)


PREDICTED = row_sum_left(warming, dropping, MOMENTUM, steps=STEPS)


@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("loss", ["cross_entropy", "label_smoothing:0.2", "focal:3"])
def test_sgd_leaves_of_the_rows_sum_what_is_predicted(loss, clip):
    assert trained(sgd, loss, clip=clip) == pytest.approx((PREDICTED, PREDICTED), rel=1e-9)
    assert 0.2 < PREDICTED < 0.8


def test_mse_and_other_optimisers_follow_another_law():
    assert trained(sgd, "mse")[0] != pytest.approx(PREDICTED, rel=0.05)
    left = {make: trained(make, rate=lambda _: 0.01, decay=lambda _: DECAY)[0] for make in (adam, adamw)}
    plain = row_sum_left(DECAY, 0.01, steps=STEPS)
    assert left[adam] < 0.95 * plain, "a coupled decay shrinks it, much faster than it does under SGD"
    assert left[adamw] > plain, "a decoupled one hardly does: the scaled gradient does not sum to 0"


def adam(parameters):
    return torch.optim.Adam(parameters)


def adamw(parameters):
    return torch.optim.AdamW(parameters)


def loop(decays, rates, momentum: float) -> float:
    left, velocity = 1.0, 0.0
    for decay, rate in zip(decays, rates, strict=False):
        velocity = momentum * velocity + decay * left
        left -= rate * velocity
    return abs(left)


@pytest.mark.parametrize(
    ("decay", "rate", "momentum", "steps"),
    [
        (1e-3, 0.05, 0.9, 3000),
        (0.5, 1.0, 0.99, 1000),  # it swings
        (1.0, 2.5, 0.5, 60),  # over 0 and back in each step
        (1.0, 4.0, 0.5, 200),  # and grows
        (0.1, 0.2, 0.0, 49),
        (0.1, 0.2, 0.9, 51),
        (1.0, 1.0, 0.0, 100),
        (0.3, 0.1, 0.9, 0),
    ],
)
def test_many_steps_at_once_are_what_one_by_one_gives(decay, rate, momentum, steps):
    expected = loop(repeat(decay, steps), repeat(rate, steps), momentum)
    assert row_sum_left(decay, rate, momentum, steps=steps) == pytest.approx(expected, rel=1e-9, abs=1e-300)


def test_ten_million_steps_are_those_of_the_slow_mode():
    """Its factor is 1 - y with the smaller root of y^2 - (1 - beta + e l) y + e l; the start is nearly all of it."""
    decay, rate, momentum, steps = 1e-4, 1e-3, 0.9, 10**7
    half = (1 - momentum + rate * decay) / 2
    slow = rate * decay / (half + math.sqrt(half**2 - rate * decay))
    expected = math.exp(steps * math.log1p(-slow))
    assert row_sum_left(decay, rate, momentum, steps=steps) == pytest.approx(expected, rel=1e-4)


def test_steps_too_large_grow_without_bound():
    assert row_sum_left(1.0, 100.0, steps=100_000) == math.inf


def test_schedules_can_be_given_in_any_way():
    rates, decays = [dropping(step) for step in range(STEPS)], [warming(step) for step in range(STEPS)]
    expected = (
        loop(decays, rates, MOMENTUM),
        math.fsum(map(math.prod, zip(rates, decays, strict=True))) / (1 - MOMENTUM),
    )
    for decay, rate in (
        (warming, dropping),
        (decays, rates),
        (warming, np.array(rates)),
        (torch.tensor(decays, dtype=F64), tuple(rates)),
    ):
        given = {"steps": STEPS} if callable(rate) else {}
        assert row_sum_left(decay, rate, MOMENTUM, **given) == pytest.approx(expected[0], rel=1e-12)
        assert decay_budget(decay, rate, MOMENTUM, **given) == pytest.approx(expected[1], rel=1e-12)
    assert decay_budget(DECAY, rates, MOMENTUM) == decay_budget(np.float64(DECAY), rates, MOMENTUM, steps=STEPS)
    assert decay_budget([], []) == 0
    assert row_sum_left([], []) == 1


@pytest.mark.parametrize(
    ("steps", "rate", "decay", "budget"),
    [(391, 0.05, 5e-4, 4.34), (469, 0.05, 5e-4, 5.21), (782, 0.01, 1e-4, 0.35)],
    ids=["CIFAR10", "MNIST", "random labels"],
)
def test_budgets_of_the_papers_runs(steps, rate, decay, budget):
    """200 epochs of SGD with momentum 0.9, the rate a tenth after every 40."""
    given = {"steps": 200 * steps}
    found = decay_budget(decay, lambda step: rate * 0.1 ** (step // (40 * steps)), 0.9, **given)
    assert found == pytest.approx(budget, abs=5e-3)
    left = row_sum_left(decay, lambda step: rate * 0.1 ** (step // (40 * steps)), 0.9, **given)
    assert left == pytest.approx(math.exp(-found), rel=0.02)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.1, 0.1), "expected steps=, the number of steps"),
        ((0.1, dropping), "expected steps="),
        (([0.1] * 3, [0.1] * 4), "3 in weight_decay, 4 in learning_rates: give one value"),
        ((-0.1, [0.1]), "weight_decay to be 0 or positive"),
        ((0.1, [0.1, math.nan]), "learning_rates to be 0 or positive and finite"),
        ((0.1, [[0.1]]), "a number or one for each step"),
        ((0.1, "fast"), "learning_rates as numbers"),
        ((0.1, [0.1], 1.0), "momentum as a number from 0 to below 1"),
        ((0.1, [0.1], -0.1), "momentum"),
        ((0.1, [0.1], None), "momentum"),
    ],
)
def test_what_is_no_schedule_is_refused(arguments, message):
    for function in (decay_budget, row_sum_left):
        with pytest.raises(InputError, match=message):
            function(*arguments)
    with pytest.raises(InputError, match=r"2 in learning_rates, 3 in steps"):
        decay_budget(0.1, [0.1, 0.2], steps=3)


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ((0.1 for _ in range(3)), "learning_rates as numbers, got generator, which can be read only once: give a list"),
        ([0.1] * 40 + [math.nan, -1], r"learning_rates to be 0 or positive and finite, got nan at step 40$"),
        (10**400, "learning_rates as numbers: int too large"),
        (torch.ones(3, device="meta"), "learning_rates as numbers: Cannot copy"),
    ],
)
def test_rates_that_are_no_numbers_are_refused_in_one_line(rates, message):
    with pytest.raises(InputError, match=message) as caught:
        decay_budget(0.01, rates)
    assert "\n" not in str(caught.value)
