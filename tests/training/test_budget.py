"""The trainer leaves of 1'W what `run_budget` predicts from the configuration; if that is much, it is said before."""

import json
from dataclasses import replace

import lightning
import pytest
import torch
from safetensors.torch import load_file

from neuralcollapse import cli
from neuralcollapse.data.batches import Batches, training_starts
from neuralcollapse.data.load import load_data
from neuralcollapse.data.splits import Split
from neuralcollapse.runs.folder import RunFolder
from neuralcollapse.training.budget import Budget, run_budget
from neuralcollapse.training.config import TrainConfig
from neuralcollapse.training.network import network_for
from neuralcollapse.training.optimizers import decay_scale, learning_rate
from neuralcollapse.training.run import resume, train
from neuralcollapse.ufm import decay_budget, row_sum_left

SAMPLES, STEPS = 300, 5  # of an epoch; its last batch has 44 samples, the others 64
CONFIG = TrainConfig(
    epochs=6,
    width=12,
    depth=2,
    feature_dim=11,
    samples_per_class=SAMPLES // 10,
    batch_size=64,
    weight_decay=0.1,
    learning_rate=0.05,
    decay_every=4,
    precision="64-true",
    loggers=(),
    measure_every=6,
)
ON_CLASSIFIER = {"decay_on": "classifier", "feature_decay": 1e-5, "bias_decay": 0.3}


def found(run: RunFolder, config: TrainConfig) -> tuple[float, float]:
    """|1'W| and |1'b| at the end over that at the start."""
    lightning.seed_everything(config.seed, verbose=False)
    head = network_for(config, load_data(config.data, **config.data_options)).fc.double()
    last = {name: tensor.double() for name, tensor in load_file(run.checkpoint(config.epochs)).items()}
    rows = last["fc.weight"].sum(0).norm() / head.weight.detach().sum(0).norm()
    return float(rows), float((last["fc.bias"].sum() / head.bias.detach().sum()).abs())


def predicted_of_bias(config: TrainConfig) -> float:
    """By steps, where `run_budget` counts by epochs."""
    decay = config.weight_decay if config.decay_on == "all" else config.bias_decay
    decays = [decay * decay_scale(config, step // STEPS) for step in range(STEPS * config.epochs)]
    rates = [learning_rate(config, step // STEPS) for step in range(STEPS * config.epochs)]
    return row_sum_left(decays, rates, config.momentum)


KINDS = {
    "plain": {},
    "classifier": ON_CLASSIFIER,
    "label smoothing": {"loss": "label_smoothing:0.1", "momentum": 0.0, "schedule": "constant"},
    "focal": {"loss": "focal:3", "schedule": "cosine"},
    "warm-up": {**ON_CLASSIFIER, "decay_warmup": 3, "decay_warmup_factor": 0.2},
    "clipped and augmented": {"gradient_clip": 0.1, "augment": "crop+flip", "loss": "focal:2"},
    "32 bits": {"precision": "32-true"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_sgd_leaves_of_the_rows_sum_what_was_predicted(kind, tmp_path):
    config = replace(CONFIG, **KINDS[kind])
    budget = run_budget(config, SAMPLES)
    assert 0.05 < budget.row_sum_left < 0.95
    run = train(config, tmp_path / "run", progress=False)
    rows, bias = found(run, config)
    precise = 1e-5 if config.precision == "32-true" else 1e-9
    assert rows == pytest.approx(budget.row_sum_left, rel=precise)
    assert bias == pytest.approx(predicted_of_bias(config), rel=precise)
    environment = json.loads(run.read_text("environment.json"))
    assert environment["decay_budget"] == budget.decay_budget
    assert environment["row_sum_left"] == budget.row_sum_left


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"optimizer": "adam", "learning_rate": 0.01}, "Adam scales"),
        ({"optimizer": "adamw", "learning_rate": 0.01}, "AdamW scales"),
        ({"loss": "mse"}, "under MSE"),
    ],
    ids=["adam", "adamw", "mse"],
)
def test_where_no_law_holds_nothing_is_predicted(options, reason, tmp_path):
    config = replace(CONFIG, **options)
    budget = run_budget(config, SAMPLES)
    assert budget.reason.startswith(reason)
    assert (budget.decay_budget, budget.row_sum_left, budget.advice) == (None, None, "")
    run = train(config, tmp_path / "run", progress=False)
    environment = json.loads(run.read_text("environment.json"))
    assert environment["decay_budget"] is environment["row_sum_left"] is None
    as_sgd = run_budget(replace(CONFIG, learning_rate=config.learning_rate, momentum=0.0), SAMPLES)
    assert found(run, config)[0] != pytest.approx(as_sgd.row_sum_left, rel=1e-3)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"optimizer": "lbfgs"}, "L-BFGS chooses its steps"),
        ({"frame": "simplex"}, r"the rows of the classifier are fixed (frame=simplex)"),
        ({"weight_decay": 0.0}, "without weight decay"),
    ],
)
def test_the_reason_is_said_in_words(options, reason):
    assert run_budget(replace(CONFIG, **options), SAMPLES).reason.startswith(reason)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("count", [6, 7, 12, 13, 14, 18, 24])
def test_steps_are_counted_as_batches_are_made(count, world):
    split = Split(torch.zeros(count, 1), torch.zeros(count, dtype=torch.int64))
    for rank in range(world):
        batches = Batches(split, 6, shuffle_seed=0, rank=rank, world=world)
        assert len(batches) == len(training_starts(count, 6, world))
    config = TrainConfig(batch_size=6, epochs=3, schedule="constant", devices=world)
    steps = 3 * len(batches)
    assert run_budget(config, count).decay_budget == pytest.approx(decay_budget(0.01, 0.05, 0.9, steps=steps))


def test_a_budget_too_small_is_one_sentence_with_what_to_do():
    small = run_budget(replace(CONFIG, epochs=2, weight_decay=0.05), SAMPLES)
    assert small.advice == (
        "decay budget B = 0.25 of the 2 or more that NC2, self-duality and the bias need (|1'W| will end at 90 % of "
        "its start): train longer, decay more, or drop the learning rate later"
    )
    for options in ({"decay_on": "classifier", "feature_decay": 1e-4}, {"network_options": {"bias": False}}):
        late = run_budget(replace(CONFIG, epochs=2, weight_decay=0.05, **options), SAMPLES).advice
        assert "that NC2 and self-duality need (" in late  # the bias has a decay of its own, or is not there
    assert Budget(2.0, 0.135).advice == ""
    assert Budget(1.9999, 0.135).advice.startswith("decay budget B = 1.99 of the 2 or more")


SMALL = replace(CONFIG, epochs=2, weight_decay=1e-4)
FLAGS = ["--epochs=2", "--width=12", "--depth=2", "--feature-dim=11", "--samples-per-class=30", "--loggers=[]"]


def test_the_command_says_it_before_training_on_stderr(tmp_path, capsys):
    assert cli.main(["train", *FLAGS, "--weight-decay", "1e-4", "--out", str(tmp_path / "run"), "--json"]) == 0
    out, err = capsys.readouterr()
    assert err.startswith("decay budget B = 0.0")
    assert err.count("decay budget") == 1
    assert json.loads(out)["epoch"] == 2
    assert cli.main(["train", *FLAGS, "--weight-decay", "1", "--out", str(tmp_path / "other")]) == 0
    out, err = capsys.readouterr()
    assert "decay budget" not in err
    assert "decay budget 5: |1'W|, the sum of the classifier's rows, ends at 0." in out  # and what it was, at the end


def test_without_progress_it_is_not_said_unless_asked_for(tmp_path, capsys):
    train(SMALL, tmp_path / "silent", progress=False)
    assert capsys.readouterr() == ("", "")
    said: list[str] = []
    train(SMALL, tmp_path / "asked", progress=False, on_message=said.append)
    assert said == [run_budget(SMALL, SAMPLES).advice]
    assert capsys.readouterr() == ("", "")


def test_more_epochs_change_what_environment_json_says(tmp_path):
    run = train(SMALL, tmp_path / "run", progress=False)
    before = json.loads(run.read_text("environment.json"))
    said: list[str] = []
    longer = resume(run.path, {"epochs": 4}, progress=False, on_message=said.append)
    after = json.loads(longer.read_text("environment.json"))
    budget = run_budget(replace(SMALL, epochs=4), SAMPLES)
    assert said == [budget.advice]
    assert after == before | {"decay_budget": budget.decay_budget, "row_sum_left": budget.row_sum_left}
    assert after["decay_budget"] > before["decay_budget"]
    assert found(longer, replace(SMALL, epochs=4))[0] == pytest.approx(after["row_sum_left"], rel=1e-9)
