from dataclasses import FrozenInstanceError

import pytest

from neuralcollapse import InputError
from neuralcollapse.training.config import TrainConfig, check_names


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "epochs.*at least 1.*0"),
        ({"batch_size": 1}, "batch_size.*at least 2"),
        ({"learning_rate": float("nan")}, "learning_rate.*positive"),
        ({"learning_rate": 0.0}, "learning_rate.*positive"),
        ({"momentum": 1.0}, "momentum"),
        ({"weight_decay": -1e-3}, "weight_decay"),
        ({"classifier": "fixed"}, "'learned' or 'etf'.*'fixed'"),
        ({"seed": -1}, "seed"),
    ],
)
def test_a_wrong_value_says_what_was_expected_and_what_came(values, message):
    with pytest.raises(InputError, match=message):
        TrainConfig(**values)


def test_a_config_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        TrainConfig().epochs = 3


def test_an_unknown_name_gets_the_nearest_known_one():
    with pytest.raises(InputError, match=r"'epoch'.*did you mean 'epochs'"):
        check_names({"epoch": 1}, "config.yaml")
