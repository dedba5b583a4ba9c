import re
from dataclasses import FrozenInstanceError, asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from neuralcollapse import InputError
from neuralcollapse.errors import RenamedWarning
from neuralcollapse.training.config import (
    CHANGEABLE,
    TrainConfig,
    check_names,
    descriptions,
    resumed,
    types,
)
from neuralcollapse.training.values import read


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "epochs to be at least 1, got 0"),
        ({"batch_size": 1}, "batch_size to be at least 2.*got 1"),
        ({"samples_per_class": 0}, "samples_per_class to be at least 1"),
        ({"lbfgs_history": 0}, "lbfgs_history to be at least 1"),
        ({"devices": 0}, "devices to be at least 1"),
        ({"learning_rate": float("nan")}, "learning_rate to be positive"),
        ({"learning_rate": 0.0}, "learning_rate to be positive"),
        ({"gradient_clip": float("inf")}, "gradient_clip to be positive"),
        ({"decay_factor": -0.1}, "decay_factor to be positive"),
        ({"momentum": 1.0}, "momentum to be from 0 to below 1"),
        ({"weight_decay": -1e-3}, "weight_decay to be 0 or positive"),
        ({"decay_warmup": -1}, "decay_warmup to be a number of epochs from 0 to below epochs=200, got -1"),
        ({"decay_warmup": 5, "epochs": 5}, "decay_warmup to be a number of epochs from 0 to below epochs=5, got 5"),
        ({"decay_warmup_factor": -0.1}, "decay_warmup_factor to be from 0 to 1"),
        ({"decay_warmup_factor": 1.1}, "decay_warmup_factor to be from 0 to 1"),
        ({"decay_warmup_factor": float("nan")}, "decay_warmup_factor to be from 0 to 1"),
        ({"save_seconds": float("nan")}, "save_seconds to be 0 or positive"),
        ({"milestones": (0,), "schedule": "multistep"}, "milestones to be a list of epochs of at least 1"),
        ({"measure_at": (3, -1)}, "measure_at to be a list of epochs of at least 1"),
        ({"channels": 2}, "channels to be 1 or 3, got 2"),
        ({"label_noise": 1.5}, "label_noise to be a share from 0 to 1"),
        ({"seed": -1}, "seed to be from 0"),
        ({"seed": 2**32}, "seed to be from 0"),
    ],
)
def test_a_value_out_of_range_says_what_was_expected_and_what_came(values, message):
    with pytest.raises(InputError, match=message):
        TrainConfig(**values)


@pytest.mark.parametrize(
    "values",
    [
        {"momentum": 0.0},
        {"label_noise": 1.0},
        {"seed": 2**32 - 1},
        {"batch_size": 2},
        {"save_seconds": 0},
        {"weight_decay": 0},
        {"decay_warmup": 4, "epochs": 5, "decay_warmup_factor": 0},
        {"learning_rate": 1},
        {"channels": None},
        {"milestones": [], "measure_at": []},
    ],
)
def test_a_value_at_the_edge_is_taken(values):
    config = TrainConfig(**values)
    for name, value in values.items():
        assert getattr(config, name) == (tuple(value) if isinstance(value, list) else value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimizer": "adm"}, "optimizer to be one of 'sgd', 'adam', 'adamw', 'lbfgs', got 'adm'.*mean 'adam'"),
        ({"schedule": "cosin"}, "schedule to be one of .*got 'cosin'.*mean 'cosine'"),
        ({"augment": None}, "augment to be one of .*got None$"),
        ({"loggers": 3}, "loggers to be a list, each one of 'csv'.*got 3"),
        ({"loggers": ("cvs",)}, r"loggers to be a list, each one of 'csv'.*got \('cvs',\)"),
        ({"milestones": (1.5,)}, "milestones to be a list, each of type int"),
        ({"milestones": (True,)}, "milestones to be a list, each of type int"),
        ({"layers": (1,)}, "layers to be a list, each of type str"),
        ({"image_size": "8"}, "image_size to be of type int, or left out, got '8'"),
        ({"gradient_clip": "1"}, "gradient_clip to be of type float, or left out"),
        ({"imbalance": 3}, "imbalance to be of type str, or left out"),
        ({"epochs": True}, "epochs to be of type int, got True"),
        ({"epochs": 2.0}, "epochs to be of type int, got 2.0"),
        ({"epochs": None}, "epochs to be of type int, got None"),
        ({"weight_decay": True}, "weight_decay to be of type float, got True"),
        ({"weight_decay": "1e-3"}, "weight_decay to be of type float"),
        ({"random_labels": 1}, "random_labels to be of type bool, got 1"),
        ({"compile": "true"}, "compile to be of type bool"),
        ({"data": None}, "data to be of type str"),
        ({"network_options": [("width", 3)]}, "network_options to be a mapping"),
        ({"network_options": {1: 2}}, "network_options to be a mapping"),
    ],
)
def test_a_value_of_another_type_says_the_type_and_what_came(values, message):
    with pytest.raises(InputError, match=message):
        TrainConfig(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"feature_decay": 0.1}, "feature_decay and bias_decay need decay_on=classifier"),
        ({"bias_decay": 0.1}, "feature_decay and bias_decay need decay_on=classifier"),
        ({"milestones": (5,)}, "milestones are for schedule=multistep, got schedule=step"),
        ({"schedule": "multistep"}, "needs milestones"),
        ({"learn_scale": True}, "learn_scale is for a fixed frame"),
        ({"rotation": "fast"}, "rotation=fast is for a fixed frame"),
        (
            {"frame": "simplex", "rotation": "nearest"},
            "rotation to be one of 'blocks', 'none', 'fast', or left out, got",
        ),
        ({"frame": "orthoplex", "rotation": "blocks"}, "rotation=blocks is for frame=simplex, got frame=orthoplex"),
        ({"frame": "softmax_code", "rotation": "fast"}, "a softmax code has no rotation"),
        ({"certify_head": True, "weight_decay": 0}, "certify_head needs weight_decay above 0"),
        ({"certify_head": True, "decay_on": "classifier"}, "needs feature_decay above 0"),
        ({"certify_head": True, "loss": "mse"}, "certify_head knows cross_entropy only, got loss=mse"),
        ({"measure": "online", "layers": ("features",)}, "layers are measured in the eval pass only"),
        ({"measure": "online", "optimizer": "lbfgs"}, "online.*L-BFGS"),
        ({"gradient_clip": 1.0, "optimizer": "lbfgs"}, "gradient_clip does not go with lbfgs"),
    ],
)
def test_options_that_do_not_go_together_say_why(values, message):
    with pytest.raises(InputError, match=message):
        TrainConfig(**values)


@pytest.mark.parametrize(
    "values",
    [
        {"decay_on": "classifier", "feature_decay": 0.1, "bias_decay": 0.1},
        {"schedule": "multistep", "milestones": (5,)},
        {"frame": "simplex", "learn_scale": True},
        {"certify_head": True, "decay_on": "classifier", "feature_decay": 0.1},
        {"measure": "eval", "layers": ("features",), "optimizer": "lbfgs"},
        {"measure": "online", "optimizer": "adam", "gradient_clip": 1.0},
    ],
)
def test_options_that_go_together_are_taken(values):
    TrainConfig(**values)


@pytest.mark.parametrize(("optimizer", "rate"), [("sgd", 0.05), ("adam", 1e-3), ("adamw", 1e-3), ("lbfgs", 0.1)])
def test_the_rate_is_the_optimisers_own_unless_given(optimizer, rate):
    assert TrainConfig(optimizer=optimizer).rate == rate
    assert TrainConfig(optimizer=optimizer, learning_rate=0.3).rate == 0.3


@pytest.mark.parametrize(
    ("values", "epochs"),
    [
        ({}, [0, 1, 2, 3, 4, 5, 6, 7]),
        ({"measure_every": 3}, [0, 3, 6, 7]),
        ({"measure_every": 100}, [0, 7]),
        ({"measure_at": (2, 5)}, [0, 2, 5, 7]),
        ({"measure_at": (2, 99), "measure_every": 3}, [0, 2, 7]),
    ],
)
def test_the_first_and_the_last_epoch_are_measured_whatever_else_is(values, epochs):
    config = TrainConfig(epochs=7, **values)
    assert [epoch for epoch in range(8) if config.measured(epoch)] == epochs


def test_a_config_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        TrainConfig().epochs = 3


def test_a_config_survives_yaml():
    config = TrainConfig(
        schedule="multistep",
        milestones=(3, 5),
        measure_at=(1, 2),
        layers=("features.0", "features.3"),
        loggers=(),
        network_options={"drop": 0.1, "sizes": [1, 2]},
        learning_rate=1e-4,
        imbalance="step:10",
    )
    assert TrainConfig(**yaml.safe_load(yaml.safe_dump(asdict(config)))) == config


def test_an_old_name_works_with_a_note_that_gives_the_new_one():
    with pytest.warns(RenamedWarning, match=r"^classifier=etf is now called frame=simplex; the old name"):
        config = TrainConfig(classifier="etf")
    assert config == TrainConfig(frame="simplex")
    with pytest.warns(RenamedWarning):
        assert replace(TrainConfig(width=3), classifier="etf") == TrainConfig(width=3, frame="simplex")
    assert (config.classifier, TrainConfig().classifier) == ("etf", "learned")


@pytest.mark.parametrize(
    ("values", "rotation"),
    [
        ({}, None),
        ({"frame": "simplex"}, "blocks"),
        ({"frame": "simplex", "rotation": "none"}, "none"),
        ({"frame": "orthoplex"}, "fast"),
        ({"frame": "softmax_code"}, None),
    ],
)
def test_each_frame_has_a_rotation_of_its_own(values, rotation):
    assert TrainConfig(**values).rotation == rotation


def test_each_option_is_described_once():
    assert list(descriptions()) == list(types())
    assert all(descriptions().values())


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("epochs", "3", 3),
        ("epochs", "3.0", "3.0"),
        ("width", "null", None),
        ("learning_rate", "1e-3", 1e-3),
        ("random_labels", "True", True),
        ("random_labels", "maybe", "maybe"),
        ("data", "null", "null"),
        ("layers", '["a.b", c]', ("a.b", "c")),
        ("milestones", "(3, 5)", (3, 5)),
        ("milestones", "3,x", (3, "x")),
        ("loggers", "[]", ()),
        ("loggers", "none", ()),
        ("milestones", "None", ()),
        ("measure_at", "null", ()),
        ("network_options", '{"a": [1]}', {"a": [1]}),
        ("network_options", "{a: 1}", {"a": 1}),
        ("network_options", "{", "{"),
        ("rotation", "null", None),
        ("rotation", "fast", "fast"),
    ],
)
def test_a_text_is_read_as_the_option_takes_it(name, text, value):
    assert read(types()[name], text) == value


def test_lists_become_tuples():
    assert TrainConfig(layers=["features"], loggers=["csv"]).layers == ("features",)


def test_the_names_are_those_of_the_fields():
    assert list(types()) == [item.name for item in fields(TrainConfig)]


def test_an_unknown_name_gets_the_nearest_known_one():
    check_names(dict.fromkeys(types()), "config.yaml")
    with pytest.raises(InputError, match=r"config.yaml: no option 'epoch'.*did you mean 'epochs'"):
        check_names({"epochs": 1, "epoch": 1}, "config.yaml")
    with pytest.raises(InputError, match=r"no option 3;"):
        check_names({3: 1}, "config.yaml")


OTHER = {
    "data": "mnist",
    "samples_per_class": 5,
    "imbalance": "step:2",
    "random_labels": True,
    "label_noise": 0.5,
    "image_size": 16,
    "channels": 3,
    "augment": "flip",
    "network": "resnet18",
    "width": 3,
    "depth": 2,
    "feature_dim": 20,
    "stem": "small",
    "network_options": {"a": 1},
    "frame": "learned",
    "learn_scale": False,
    "rotation": "fast",
    "loss": "mse",
    "optimizer": "adam",
    "epochs": 300,
    "batch_size": 32,
    "learning_rate": 0.1,
    "momentum": 0.5,
    "lbfgs_history": 3,
    "lbfgs_iterations": 3,
    "weight_decay": 0.1,
    "decay_on": "classifier",
    "feature_decay": 0.1,
    "bias_decay": 0.1,
    "decay_warmup": 3,
    "decay_warmup_factor": 0.5,
    "schedule": "constant",
    "decay_every": 3,
    "milestones": (7,),
    "decay_factor": 0.5,
    "gradient_clip": 1.0,
    "measure_every": 3,
    "measure_at": (4,),
    "measure": "online",
    "layers": ("features",),
    "test_measures": False,
    "errors": True,
    "certify_head": True,
    "stop_on": "test.nc1",
    "patience": 3,
    "stop_mode": "rising",
    "min_delta": 0.5,
    "checkpoint_every": 3,
    "save_seconds": 1.0,
    "loggers": (),
    "accelerator": "cpu",
    "devices": 2,
    "nodes": 2,
    "timeout": 60.0,
    "strategy": "ddp",
    "precision": "64-true",
    "cuda_graph": "off",
    "channels_last": True,
    "compile": True,
    "deterministic": False,
    "seed": 1,
}
NEEDS = {  # what another value of the option goes with
    **{name: {"stop_on": "nc1"} for name in ("patience", "stop_mode", "min_delta")},
    "frame": {"frame": "simplex"},
    "learn_scale": {"frame": "simplex", "learn_scale": True},
    "rotation": {"frame": "simplex"},
    "feature_decay": {"decay_on": "classifier"},
    "bias_decay": {"decay_on": "classifier"},
    "milestones": {"schedule": "multistep", "milestones": (5,)},
}


def test_every_option_is_tried_below():
    assert list(OTHER) == list(types())
    assert set(CHANGEABLE) <= set(OTHER)


@pytest.mark.parametrize("name", CHANGEABLE)
def test_what_does_not_make_the_weights_may_change_when_a_run_is_resumed(name):
    old = TrainConfig(**NEEDS.get(name, {}))
    new = resumed(old, {name: OTHER[name]})
    assert getattr(new, name) == OTHER[name] != getattr(old, name)
    assert replace(new, **{name: getattr(old, name)}) == old


@pytest.mark.parametrize("name", [name for name in OTHER if name not in CHANGEABLE])
def test_what_made_the_weights_may_not_change_when_a_run_is_resumed(name):
    old = TrainConfig(**NEEDS.get(name, {}))
    assert getattr(old, name) != OTHER[name]
    with pytest.raises(InputError, match=rf"^{name} was .* cannot become .*--out; what may change: epochs, measure_e"):
        resumed(old, {name: OTHER[name]})


def test_the_values_that_a_run_has_may_be_given_again():
    old = TrainConfig(layers=("features",), schedule="cosine", epochs=7)
    assert resumed(old, {"layers": ["features"], "schedule": "cosine", "epochs": 7, "seed": 0}) == old


def test_a_cosine_schedule_keeps_its_last_epoch():
    with pytest.raises(InputError, match="epochs cannot change under schedule=cosine"):
        resumed(TrainConfig(schedule="cosine"), {"epochs": 300})


def test_a_wrong_value_is_refused_when_a_run_is_resumed():
    with pytest.raises(InputError, match="epochs to be at least 1"):
        resumed(TrainConfig(), {"epochs": 0})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"imbalance": "step:10", "random_labels": True}, "imbalance does not go with random_labels"),
        ({"certify_head": True, "optimizer": "adamw"}, "certify_head needs a coupled decay"),
        ({"loggers": ("csv", "wanbd")}, "did you mean 'wandb'"),
    ],
)
def test_options_that_do_not_go_together_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        TrainConfig(**values)


@pytest.mark.parametrize("value", [None, False, "off", ("csv", "none"), ["null"], "no"])
def test_a_word_for_no_list_is_answered_by_how_an_empty_one_is_written(value):
    with pytest.raises(InputError, match=r"expected loggers to be a list.*an empty list is written none or \[\]"):
        TrainConfig(loggers=value)


def test_lbfgs_does_not_go_with_channels_last():
    with pytest.raises(InputError, match="lays all parameters in one row"):
        TrainConfig(optimizer="lbfgs", channels_last=True)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epoch": 3}, "TrainConfig: no option 'epoch' (did you mean 'epochs'?)"),
        ({"classifier": "etf", "frame": "learned"}, "classifier is now called frame, got both"),
        ({"samples_per_class": 10**20}, "expected samples_per_class to be below 2^31"),
        ({"lbfgs_history": 10**26}, "expected lbfgs_history to be below 2^31"),
    ],
)
def test_a_mistaken_keyword_or_number_is_one_line(values, message):
    with pytest.raises(InputError, match=re.escape(message)):
        TrainConfig(**values)


def test_numbers_of_numpy_and_one_name_for_a_list_are_taken():
    config = TrainConfig(epochs=np.int64(3), weight_decay=np.float32(0.5), measure_at=np.array([1, 2]), layers="fc")
    assert (type(config.epochs), config.weight_decay) == (int, 0.5)
    assert (config.measure_at, config.layers) == ((1, 2), ("fc",))


def test_the_note_on_an_old_name_points_to_the_users_line():
    with pytest.warns(RenamedWarning) as caught:
        TrainConfig(classifier="etf")
    assert [Path(warning.filename).name for warning in caught] == ["test_config.py"]
