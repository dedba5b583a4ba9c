import itertools
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from datasets import ClassLabel, Dataset, DatasetDict
from sklearn.datasets import load_digits
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import DataLoader, IterableDataset
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    DistilBertConfig,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
)

import neuralcollapse as nc
from neuralcollapse.heads.search import find_head
from neuralcollapse.runs.folder import RunFolder
from neuralcollapse.runs.reading import read_run
from tests.helpers import as_held_out

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def alone():
    """Mixed precision of one trainer does not reach the next: older versions keep it in the process."""
    yield
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
    AcceleratorState._reset_state(reset_partial_state=True)


class Logs(TrainerCallback):
    """A logger that keeps all it gets."""

    def __init__(self):
        self.seen = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.seen.append((state.global_step, dict(logs)))


def digits(count: int = 96) -> Dataset:
    images, labels = load_digits(return_X_y=True)
    pixels = (images[:count] / 16).reshape(-1, 1, 8, 8).tolist()
    data = Dataset.from_dict({"pixel_values": pixels, "label": labels[:count], "file": ["x.png"] * count})
    return data.cast_column("label", ClassLabel(names=[f"digit {i}" for i in range(10)])).with_format("torch")


def vit() -> torch.nn.Module:
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=8, patch_size=4, num_channels=1, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=32, num_labels=10, hidden_dropout_prob=0.1,
    )  # fmt: skip
    return AutoModelForImageClassification.from_config(config)


def trained(tmp_path, callbacks=(), model=None, data=None, test=None, collator=None, resume=None, **options) -> Trainer:
    """Train; `callbacks` make a callback of the trainer."""
    arguments = {
        "output_dir": str(tmp_path / "trainer"), "num_train_epochs": 2, "per_device_train_batch_size": 32,
        "per_device_eval_batch_size": 50, "learning_rate": 1e-2, "report_to": "none", "save_strategy": "no",
        "use_cpu": True, "disable_tqdm": True, "logging_steps": 1,
    }  # fmt: skip
    trainer = Trainer(
        model=model or vit(),
        args=TrainingArguments(**arguments | options),
        train_dataset=data if data is not None else digits(),
        eval_dataset=test,
        data_collator=collator,
    )
    for make in callbacks:
        trainer.add_callback(make(trainer))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def watched(out, **options):
    return lambda trainer: nc.CollapseTrainerCallback(trainer, out=out, **options)


def by_hand(model, data: Dataset, classifier: str = "classifier", test: Dataset | None = None) -> dict:
    def batches(rows):
        return DataLoader([{"pixel_values": row["pixel_values"], "labels": int(row["label"])} for row in rows], 97)

    loader = None if test is None else batches(test)
    values = nc.measure(model, batches(data), classifier, test_loader=loader, progress=False)
    for part in (values, values.get("test", values)):
        part.pop("num_samples", None)
    return values


def test_three_lines_give_the_record_and_the_page_of_an_image_classifier(tmp_path):
    logs = Logs()
    trainer = trained(tmp_path, [lambda _: logs, watched(tmp_path / "run")], test=digits(30), eval_strategy="epoch")
    run = read_run(tmp_path / "run")
    assert [record.epoch for record in run.records] == [0, 1, 2]
    expected = by_hand(trainer.model, digits())
    assert run.last.measures | run.last.train == pytest.approx(expected, rel=1e-3, abs=1e-6)
    expected = by_hand(trainer.model, digits(), test=digits(30))["test"]
    assert run.last.test == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert by_hand(vit(), digits())["nc1"] == pytest.approx(run.first.measures["nc1"], rel=1e-4)
    assert (run.unit, run.config["layer"], run.config["network"]) == (
        "epoch",
        "classifier",
        "ViTForImageClassification",
    )
    assert run.class_names == [f"digit {i}" for i in range(10)]
    assert [record.learning_rate for record in run.records] == pytest.approx([1e-2, 1e-2 * 4 / 6, 1e-2 / 6])
    page = (tmp_path / "run/report.html").read_text()
    assert "<h1>Neural collapse: ViTForImageClassification</h1>" in page
    assert "after 2 epochs" in page

    own = [(step, line) for step, line in logs.seen if "collapse/nc1" in line]
    assert [step for step, _ in own] == [0, 3, 6]
    assert [line["collapse/nc1"] for _, line in own] == [record.measures["nc1"] for record in run.records]
    assert {"train/accuracy", "test/loss"} <= set(own[-1][1])
    assert [step for step, line in logs.seen if "loss" in line] == [1, 2, 3, 4, 5, 6], "the trainer's own numbers too"
    assert [line["step"] for line in trainer.state.log_history if "collapse/nc1" in line] == [0, 3, 6]


def sentences():
    """A small text classifier, its data, and the collator that pads them."""
    words = ["[PAD]", "[UNK]", "good", "bad", "very", "film", "a", "dull", "bright", "day"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    texts = ["a good film", "very very bright day", "a bad film", "dull", "very good", "a very bad dull film"] * 4
    data = Dataset.from_dict({"text": texts, "label": [0, 0, 1, 1, 0, 1] * 4})
    data = data.map(lambda rows: tokenizer(rows["text"]), batched=True)
    torch.manual_seed(0)
    names = {0: "praise", 1: "blame"}
    config = DistilBertConfig(vocab_size=10, dim=16, n_layers=1, n_heads=2, hidden_dim=16, num_labels=2, id2label=names)
    return AutoModelForSequenceClassification.from_config(config), data, DataCollatorWithPadding(tokenizer)


def test_a_text_classifier_with_padding_is_measured_by_steps(tmp_path):
    model, data, collator = sentences()
    logs = Logs()
    callbacks = [lambda _: logs, watched(tmp_path / "run", every=2)]
    options = {"per_device_train_batch_size": 8, "max_steps": 5, "logging_steps": 2}
    trainer = trained(tmp_path, callbacks, model, data, collator=collator, **options)
    run = read_run(tmp_path / "run")
    assert [record.epoch for record in run.records] == [0, 2, 4, 5]
    rows = data.select_columns(["input_ids", "attention_mask", "label"]).to_list()
    loader = DataLoader(rows, batch_size=24, collate_fn=collator)
    expected = nc.measure(trainer.model, loader, "classifier", progress=False)
    for name, value in run.last.measures.items():
        assert value == pytest.approx(expected[name], rel=1e-3, abs=1e-6), name
    assert (run.unit, run.class_names) == ("step", ["praise", "blame"])
    assert "after 5 steps" in (tmp_path / "run/report.html").read_text()
    assert [step for step, line in logs.seen if "collapse/nc1" in line] == [0, 2, 4, 5]
    assert [step for step, line in logs.seen if "loss" in line] == [2, 4]


def test_training_goes_bit_for_bit_as_without(tmp_path):
    options = {"eval_strategy": "epoch", "test": digits(30), "dataloader_persistent_workers": False}
    alone = trained(tmp_path / "a", **options)
    with_it = trained(tmp_path / "b", [watched(tmp_path / "run")], **options)
    for name, value in alone.model.state_dict().items():
        assert torch.equal(value, with_it.model.state_dict()[name]), name
    losses = [[line["loss"] for line in trainer.state.log_history if "loss" in line] for trainer in (alone, with_it)]
    assert losses[0] == losses[1]


def test_training_goes_on_from_a_checkpoint_in_its_folder(tmp_path):
    def run(**options):
        model, data, collator = sentences()
        saving = {"save_strategy": "steps", "save_steps": 2, "num_train_epochs": 3, "per_device_train_batch_size": 8}
        trained(tmp_path, [watched(tmp_path / "run", every="save")], model, data, None, collator, **saving, **options)
        return RunFolder.open(tmp_path / "run").records()

    before = run()
    assert [record.epoch for record in before] == [0, 2, 4, 6, 8, 9]
    with pytest.raises(nc.InputError, match="not empty"):
        run()
    after = run(resume=str(tmp_path / "trainer/checkpoint-4"))
    assert [record.epoch for record in after] == [0, 2, 4, 6, 8, 9]
    assert after[:3] == before[:3]
    assert after[3].seconds != before[3].seconds
    for made, again in zip(before, after, strict=True):
        assert again.measures == pytest.approx(made.measures, rel=1e-4, abs=1e-6)


@pytest.mark.slow
def test_epochs_go_on_from_a_checkpoint_within_one(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 4, "num_train_epochs": 3}
    trained(tmp_path, [watched(tmp_path / "run")], **options)
    before = RunFolder.open(tmp_path / "run").records()
    trained(tmp_path, [watched(tmp_path / "run")], resume=str(tmp_path / "trainer/checkpoint-4"), **options)
    after = RunFolder.open(tmp_path / "run").records()
    assert [record.epoch for record in after] == [0, 1, 2, 3]
    assert after[:2] == before[:2]


def test_data_and_options_may_be_given(tmp_path):
    options = {"dataset": digits(40), "test_dataset": False, "nc4": False, "pairwise": False, "force": True}
    trained(tmp_path, [watched(tmp_path / "run", config={"data": "forty"}, **options)], test=digits(30))
    run = read_run(tmp_path / "run")
    assert (run.environment["train_samples"], run.config["data"], run.last.test) == (40, "forty", {})
    assert not {"nc4", "nc1_cdnv"} & set(run.last.measures)


@pytest.mark.slow
def test_evaluation_is_not_given_the_training_set(tmp_path):
    """With workers that stay, the trainer keeps the loader of an evaluation for all later ones."""
    trainer = trained(
        tmp_path, [watched(None)], test=digits(30), dataloader_num_workers=1, dataloader_persistent_workers=True,
        num_train_epochs=1,
    )  # fmt: skip
    assert trainer.get_eval_dataloader().dataset.num_rows == 30


@pytest.mark.slow
def test_mixed_precision_does_not_reach_the_measuring(tmp_path):
    callbacks = []

    def make(trainer):
        callbacks.append(nc.CollapseTrainerCallback(trainer))
        return callbacks[0]

    trainer = trained(tmp_path, [make], bf16=True, num_train_epochs=1)
    trainer.model.forward = trainer.model._original_forward
    expected = by_hand(trainer.model, digits())
    assert callbacks[0].records[-1].train["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert callbacks[0].records[-1].measures == pytest.approx(
        {name: value for name, value in expected.items() if name not in ("loss", "accuracy")}, rel=1e-3, abs=1e-6
    )


def test_a_language_model_is_measured_by_its_next_tokens(tmp_path):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=12, n_positions=8, n_embd=16, n_layer=1, n_head=2))
    assert find_head(model) == "lm_head"
    tokens = torch.randint(0, 12, (20, 8)).tolist()
    data = Dataset.from_dict({"input_ids": tokens, "labels": tokens})
    options = {"next_token": True, "ignore_index": -100, "nc4": False, "pairwise": 20}
    trainer = trained(tmp_path, [watched(tmp_path / "run", **options)], model, data, num_train_epochs=1)
    loader = DataLoader(data.with_format("torch"), batch_size=20)
    expected = nc.measure(trainer.model, loader, "lm_head", progress=False, **options)
    last = RunFolder.open(tmp_path / "run").records()[-1]
    assert last.measures["nc1"] == pytest.approx(expected["nc1"], rel=1e-3)
    assert read_run(tmp_path / "run").environment["train_samples"] == 140


def test_a_model_without_such_a_layer_is_told_to_name_one():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4))
    model.config = ViTConfig(num_labels=7)
    with pytest.raises(
        nc.InputError, match=r"last nn.Linear of 7 outputs .the classes., got 4 outputs at .0.: .*name its head"
    ):
        find_head(model)
    model.append(nc.ETFClassifier(8, 7))
    assert find_head(model) == "1"


@pytest.mark.parametrize("every", ["steps", 0, 1.5, True, None])
def test_every_is_checked_at_once(every):
    with pytest.raises(nc.InputError, match="every"):
        nc.CollapseTrainerCallback(None, every=every)


def test_no_data_are_named(tmp_path):
    trainer = Trainer(vit(), TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"))
    callback = nc.CollapseTrainerCallback(trainer)
    with pytest.raises(nc.InputError, match="expected a data set to measure on, got none"):
        callback.on_train_begin(trainer.args, trainer.state, trainer.control)


@pytest.mark.slow
def test_weights_that_are_not_finite_end_the_training(tmp_path):
    with pytest.raises(nc.InputError, match=r"diverged by step [12] "):
        trained(tmp_path, [watched(None, every=1)], learning_rate=math.inf, max_grad_norm=0.0)


TWO = """
import os
import sys
from pathlib import Path
import neuralcollapse as nc
from tests.loops.test_huggingface import digits, trained, vit, watched

trainer = trained(
    Path(sys.argv[1]), [watched(sys.argv[1] + "/run")], data=digits(97), test=digits(31), num_train_epochs=1,
    ddp_backend="gloo",
)
if trainer.is_world_process_zero():
    trainer.save_model(sys.argv[1] + "/saved")
sys.stdout.flush()
os._exit(0)  # a thread of gloo may hold a tensor, and would abort the process while Python ends: torch issue 190489
"""


@pytest.mark.slow
def test_two_processes_measure_each_sample_once_and_one_writes(tmp_path):
    (tmp_path / "script.py").write_text(TWO)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    place |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "", "LOCAL_WORLD_SIZE": "2"}
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path)]
    both = [
        subprocess.Popen(command, env={**clean, **place, "RANK": rank, "LOCAL_RANK": rank}, stderr=subprocess.PIPE)
        for rank in "01"
    ]
    try:
        for process in both:
            _, err = process.communicate(timeout=120)
            assert process.returncode == 0, err.decode()[-3000:]
    finally:
        for process in both:
            process.kill()
    run = read_run(tmp_path / "run")
    assert [record.epoch for record in run.records] == [0, 1]
    assert run.environment["train_samples"] == 97
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "saved")
    expected = by_hand(model, digits(97))
    assert run.last.measures | run.last.train == pytest.approx(expected, rel=1e-3, abs=1e-6)
    expected = by_hand(model, digits(97), test=digits(31))["test"]
    assert run.last.test == pytest.approx(expected, rel=1e-3, abs=1e-6)


class Stream(IterableDataset):
    """The digits, one after the other, again and again if asked to."""

    def __init__(self, endless: bool = False):
        self.endless = endless

    def __iter__(self):
        rows = [{"pixel_values": row["pixel_values"], "labels": int(row["label"])} for row in digits(40)]
        return itertools.cycle(rows) if self.endless else iter(rows)


@pytest.mark.slow
def test_data_sets_that_can_only_be_iterated_will_do(tmp_path):
    trainer = trained(tmp_path, [watched(tmp_path / "run")], data=Stream(), test=Stream(), max_steps=2)
    last = RunFolder.open(tmp_path / "run").records()[-1]
    expected = by_hand(trainer.model, digits(40))
    assert last.measures | last.train == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert last.test == pytest.approx(as_held_out(last), rel=1e-4, abs=1e-6)
    test = digits(40).with_format(None).to_iterable_dataset()
    given = {"dataset": Stream(), "test_dataset": test, "every": 1, "config": None}
    trainer = trained(tmp_path, [watched(tmp_path / "given", **given)], max_steps=1)
    last = RunFolder.open(tmp_path / "given").records()[-1]
    assert last.train["loss"] == pytest.approx(by_hand(trainer.model, digits(40))["loss"], rel=1e-4)
    assert last.test == pytest.approx(as_held_out(last), rel=1e-4, abs=1e-6)


@pytest.mark.slow
def test_of_a_stream_no_more_is_measured_than_the_training_takes(tmp_path):
    options = {"per_device_train_batch_size": 10, "gradient_accumulation_steps": 2, "per_device_eval_batch_size": 20}
    trained(tmp_path, [watched(tmp_path / "run")], data=Stream(endless=True), max_steps=2, **options)
    assert read_run(tmp_path / "run").environment["train_samples"] == 40


def test_a_stream_that_is_used_up_is_refused_before_training(tmp_path):
    class Kept(IterableDataset):
        def __init__(self):
            self.rows = (row for row in digits(40))

        def __iter__(self):
            return self.rows

    with pytest.raises(nc.InputError, match=r"run through for each measurement, got a Kept"):
        trained(tmp_path, [watched(None)], data=Kept(), max_steps=1)
    with pytest.raises(nc.InputError, match=r"expected dataset as a loader .* got a Kept"):
        trained(tmp_path, [watched(None, dataset=Kept())], max_steps=1)


class Casting(torch.nn.Module):
    """As a user writes it: nothing in it converts its inputs."""

    def __init__(self, dtype):
        super().__init__()
        torch.manual_seed(0)
        self.config = ViTConfig(num_labels=10)
        self.body = torch.nn.Linear(64, 12)
        self.classifier = torch.nn.Linear(12, 10)
        self.to(dtype)

    def forward(self, pixel_values, labels=None):
        logits = self.classifier(self.body(pixel_values.flatten(1)).relu())
        loss = None if labels is None else torch.nn.functional.cross_entropy(logits.float(), labels)
        return {"loss": loss, "logits": logits} if labels is not None else {"logits": logits}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_half_precision_weights_under_mixed_precision_are_measured_as_they_are(tmp_path, dtype):
    model = Casting(dtype)
    trained(tmp_path, [watched(tmp_path / "run")], model, bf16=True, num_train_epochs=1, learning_rate=1e-2)
    own = Casting(dtype)
    own.load_state_dict(model.state_dict())
    rows = [{"pixel_values": row["pixel_values"].to(dtype), "labels": int(row["label"])} for row in digits()]
    expected = nc.measure(own, DataLoader(rows, batch_size=50), "classifier", progress=False)
    del expected["num_samples"]
    last = RunFolder.open(tmp_path / "run").records()[-1]
    assert last.measures | last.train == pytest.approx(expected, rel=1e-4, abs=1e-6)


class Prepares(Trainer):
    """Scales the inputs of every batch, in training and evaluation."""

    def _prepare_inputs(self, inputs):
        inputs = super()._prepare_inputs(inputs)
        return {**inputs, "pixel_values": 2 * inputs["pixel_values"]}


def test_batches_are_prepared_as_the_trainer_does(tmp_path):
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", max_steps=1, save_strategy="no")
    trainer = Prepares(vit(), arguments, train_dataset=digits())
    callback = nc.CollapseTrainerCallback(trainer)
    callback.on_train_begin(trainer.args, trainer.state, trainer.control)
    rows = [{"pixel_values": 2 * row["pixel_values"], "labels": int(row["label"])} for row in digits()]
    expected = nc.measure(vit(), DataLoader(rows, batch_size=96), "classifier", progress=False)
    assert callback.records[0].measures["nc1"] == pytest.approx(expected["nc1"], rel=1e-4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "got a NoneType: give it first"),
        (Trainer, "got the class Trainer: give it first"),
        (vit(), "got a ViTForImageClassification: give it first"),
        ("runs/mine", "got a str: give it first"),
    ],
)
def test_what_is_no_trainer_is_named(given, message):
    with pytest.raises(nc.InputError, match=f"^expected the trainer, a transformers.Trainer that was made, {message}"):
        nc.CollapseTrainerCallback(given)


@pytest.mark.parametrize("name", ["dataset", "test_dataset"])
def test_what_is_no_data_set_is_named(tmp_path, name):
    trainer = Trainer(vit(), TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"))
    for given, message in [
        (DataLoader(digits(4)), "got a DataLoader: give its data set, as in loader.dataset"),
        (DatasetDict(train=digits(4), test=digits(4)), "got a DatasetDict of train, test: give one of them"),
        (Dataset, "got the class Dataset: give one with __getitem__"),
        (vit(), "got a ViTForImageClassification: give one"),
        ("mnist", "got a str: give one"),
        (3, "got a int: give one"),
        (iter([1]), "got a list_iterator: give one"),
    ]:
        with pytest.raises(nc.InputError, match=f"^expected {name} as one data set of samples, {message}"):
            nc.CollapseTrainerCallback(trainer, **{name: given})


def test_figures_go_to_what_the_integrations_log_to():
    from types import SimpleNamespace

    from neuralcollapse.loops.huggingface import _loggers

    def integration(name, **places):
        return type(name, (), places)()

    callbacks = [
        integration("TensorBoardCallback", tb_writer="writer"),
        integration("WandbCallback", _wandb="wandb"),
        integration("MLflowCallback", _ml_flow=None),  # not set up
        integration("PrinterCallback"),
    ]
    trainer = SimpleNamespace(callback_handler=SimpleNamespace(callbacks=callbacks))
    assert _loggers(trainer) == ["writer", "wandb"]
