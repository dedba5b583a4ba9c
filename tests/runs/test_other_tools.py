import dataclasses

import pytest

from neuralcollapse import errors
from neuralcollapse.errors import InputError, did_you_mean, nearest
from neuralcollapse.runs import other_tools
from neuralcollapse.runs.other_tools import needless, option_hint, option_meant
from neuralcollapse.training.config import TrainConfig

LOSSES = ["cross_entropy", "label_smoothing", "focal", "mse"]
TRAIN = [each.name for each in dataclasses.fields(TrainConfig)]


@pytest.mark.parametrize(
    ("word", "ours"),
    [
        ("lr", "learning_rate"),
        ("--wd", "weight_decay"),
        ("bs", "batch_size"),
        ("--num-epochs", "epochs"),
        ("BATCH_SIZE", "batch_size"),
        ("batch-sise", "batch_size"),
        ("device", "accelerator"),
        ("model", "network"),
        ("dataset", "data"),
        ("xyz", ""),
        ("verbose", ""),
        ("temperature", ""),
        ("interpolation", ""),
        ("bn-momentum", ""),
        ("min-lr", ""),
        ("score", ""),
        ("deepspeed", ""),
    ],
)
def test_a_word_of_another_tool_is_an_option_of_training(word, ours):
    assert option_meant(word, TRAIN) == ours


@pytest.mark.parametrize(
    ("word", "value", "known"),
    [
        ("ce", "cross_entropy", LOSSES),
        ("XEnt", "cross_entropy", LOSSES),
        ("softmax", "cross_entropy", LOSSES),
        ("softmax", "msp", ["msp", "energy"]),
        ("L2", "mse", LOSSES),
        ("none", "constant", ["step", "cosine", "constant"]),
        ("none", "learned", ["learned", "simplex"]),
        ("fmnist", "fashion-mnist", ["mnist", "fashion-mnist"]),
        ("label smoothing", "label_smoothing", LOSSES),
        ("linear", "", ["step", "cosine", "constant"]),
        ("hinge", "", LOSSES),
        ("mae", "", LOSSES),
        ("fokal", "focal", LOSSES),
        ("lenet", "", ["mlp", "resnet50"]),
        ("entropy", "", ["msp", "energy"]),
        ("sdg", "sgd", ["sgd", "adam"]),
        ("fcc", "fc", ["backbone", "fc"]),
        ("f", "", ["fc"]),
    ],
)
def test_a_value_is_offered_by_what_it_is_called_elsewhere(word, value, known):
    assert nearest(word, known) == value


@pytest.mark.parametrize(
    ("word", "other", "slips"),
    [("", "", 0), ("", "ab", 2), ("abc", "abc", 0), ("abc", "acb", 1), ("abc", "ab", 1), ("abc", "abd", 1.5)],
)
def test_slips_are_letters_left_out_added_or_swapped(word, other, slips):
    assert errors._slips(word, other) == errors._slips(other, word) == slips


def test_what_a_value_is_called_elsewhere_is_written_as_it_is_compared():
    for ours, theirs in errors._CALLED.items():
        for name in [ours, *theirs.split()]:
            assert errors._plain(name) == name
        assert ours not in theirs.split()


def test_an_option_is_meant_only_where_it_exists():
    assert option_meant("device", ["device", "data"]) == "device"
    assert option_meant("optimizer", ["method", "seed"]) == "method"
    assert option_meant("lr", ["method", "seed"]) == ""
    assert option_hint("lr", ["method", "seed"]) == ""


def test_no_word_of_another_tool_is_an_option_of_training_itself_with_another_meaning():
    """`--width` is never answered by another option than width."""
    for name in TRAIN:
        assert option_meant(name, TRAIN) == name


def test_every_name_is_plain():
    for names in [*other_tools._CALLED.values(), *other_tools._NEEDLESS.values()]:
        assert [other_tools.plain(name) for name in names.split()] == names.split()


def test_capitals_and_hyphens_make_no_difference():
    assert nearest("SGD", ["adam", "sgd"]) == "sgd"
    assert did_you_mean("Softmax Code", ["simplex", "softmax_code"]) == " (did you mean 'softmax_code'?)"
    assert nearest("qqq", ["adam", "sgd"]) == ""


def test_trainconfig_offers_the_option_that_is_meant():
    with pytest.raises(InputError, match=r"no option 'lr' \(did you mean 'learning_rate'\?\)"):
        TrainConfig(lr=0.1)
    with pytest.raises(InputError, match="the data say how many"):
        TrainConfig(num_classes=10)
    assert needless("num-workers")
