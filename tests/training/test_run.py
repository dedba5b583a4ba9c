import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

import neuralcollapse as nc
from neuralcollapse.data.load import load_data
from neuralcollapse.data.pixels import Pixels
from neuralcollapse.networks.build import build_network
from neuralcollapse.report.curves import run_curves
from neuralcollapse.report.single import write_page
from neuralcollapse.runs.folder import RunFolder
from neuralcollapse.training.config import TrainConfig, completed
from neuralcollapse.training.remeasure import remeasure
from neuralcollapse.training.run import known_decays, resume, train
from neuralcollapse.training.run_config import read_config
from neuralcollapse.training.trainer import with_precision
from tests.conftest import SHORT

BARE = replace(SHORT, loggers=())


@pytest.mark.slow
def test_the_default_run_collapses(default_run):
    last = default_run.records()[-1]
    assert last.train["accuracy"] == 1.0
    assert last.test["accuracy"] >= 0.975
    assert last.measures["nc1"] <= 5e-3
    assert last.measures["nc2"] <= 0.1
    assert last.measures["nc3"] <= 0.1
    assert last.measures["nc4"] <= 0.001


@pytest.mark.slow
def test_the_fixed_classifier_is_as_accurate_as_the_learned_one(default_run, tmp_path):
    fixed = train(TrainConfig(frame="simplex", feature_dim=10), tmp_path / "etf", progress=False).records()[-1]
    assert fixed.train["accuracy"] == 1.0
    assert abs(fixed.test["accuracy"] - default_run.records()[-1].test["accuracy"]) <= 0.01
    assert fixed.measures["nc1"] <= 5e-3
    assert fixed.measures["nc2"] <= 1e-6


def test_a_run_folder_holds_config_environment_records_geometry_and_weights(short_run):
    assert read_config(short_run) == with_precision(SHORT)
    assert [record.epoch for record in short_run.records()] == [0, 1, 2, 3, 4]
    assert [epoch for epoch, _ in short_run.checkpoints()] == [2, 4]
    assert [geometry.epoch for geometry in short_run.geometries()] == [0, 1, 2, 3, 4]
    environment = json.loads(short_run.read_text("environment.json"))
    assert environment["train_samples"] == 1437
    assert environment["torch"] == torch.__version__
    assert not list(short_run.path.rglob(".*")), "no temporary files are left"


def test_checkpoints_measure_as_the_records_say(short_run):
    records = {record.epoch: record for record in short_run.records()}
    found = remeasure(short_run, progress=False)
    assert [record.epoch for record in found] == [2, 4]
    for record in found:
        assert record.measures == pytest.approx(records[record.epoch].measures, rel=1e-6)
        assert record.train["accuracy"] == records[record.epoch].train["accuracy"]


def test_the_same_seed_gives_the_same_run_and_another_seed_another(short_run, tmp_path):
    def nc1(run: RunFolder) -> float:
        return run.records()[-1].measures["nc1"]

    assert nc1(train(SHORT, tmp_path / "same", progress=False)) == nc1(short_run)
    assert nc1(train(replace(SHORT, seed=1), tmp_path / "other", progress=False)) != nc1(short_run)


@pytest.mark.parametrize("wanted", [True, False])
def test_torch_chooses_its_algorithms_as_before_afterwards(wanted, tmp_path):
    was = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    try:
        torch.use_deterministic_algorithms(not wanted)
        torch.backends.cudnn.benchmark = True
        train(replace(SHORT, epochs=1, measure_at=(1,), deterministic=wanted), tmp_path / "run", progress=False)
        found = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    finally:
        torch.use_deterministic_algorithms(was[0])
        torch.backends.cudnn.benchmark = was[1]
    assert found == (not wanted, True)


def test_measure_every_skips_epochs_but_not_the_last(tmp_path):
    run = train(replace(SHORT, epochs=5, measure_every=2), tmp_path / "run", progress=False)
    assert [record.epoch for record in run.records()] == [0, 2, 4, 5]
    assert [epoch for epoch, _ in run.checkpoints()] == [2, 4, 5]


def test_the_heads_ratio_to_its_exact_minimum_is_recorded_and_falls(tmp_path):
    config = replace(SHORT, certify_head=True)
    run = train(config, tmp_path / "run", progress=False)
    heads = [record.head for record in run.records()]
    assert all(head["lower_bound"] <= head["minimum"] <= head["objective"] for head in heads)
    assert heads[-1]["ratio"] < heads[0]["ratio"] / 2
    assert heads[-1]["ratio"] == pytest.approx(heads[-1]["objective"] / heads[-1]["minimum"])
    (figure,) = [figure for figure in run_curves(run.records()) if figure.name == "head"]
    assert figure.marks[0].y == pytest.approx([head["objective"] for head in heads], rel=1e-4)
    again = remeasure(run, certify_head=True, progress=False)[-1].head
    assert again["ratio"] == pytest.approx(heads[-1]["ratio"], rel=1e-5)


def test_no_head_is_certified_afterwards_where_training_would_have_refused(short_run, tmp_path):
    run = RunFolder.create(tmp_path)
    run.write_text("config.yaml", short_run.read_text("config.yaml").replace("loss: cross_entropy", "loss: mse"))
    with pytest.raises(nc.InputError, match="certify_head knows cross_entropy only, got loss=mse"):
        remeasure(run, certify_head=True, progress=False)


def test_wrong_configurations_leave_no_folder(tmp_path):
    for config in (replace(SHORT, data="digit"), replace(SHORT, frame="simplex", feature_dim=3)):
        with pytest.raises(nc.InputError):
            train(config, tmp_path / "run", progress=False)
        assert not (tmp_path / "run").exists()


def test_weights_of_another_network_are_refused(short_run, tmp_path):
    run = RunFolder.create(tmp_path)
    run.write_text("config.yaml", short_run.read_text("config.yaml"))
    state = load_file(short_run.checkpoints()[0][1])
    state["fc.weight"] = torch.zeros(10, 99)
    save_file(state, run.checkpoint(1))
    with pytest.raises(
        nc.InputError, match=r"expected fc.weight .*got float32 \(10, 99\) in .*epoch-00001.safetensors"
    ):
        remeasure(run, progress=False)
    run.checkpoint(1).write_bytes(b"\x80\x04junk")
    with pytest.raises(nc.InputError, match=r"cannot read .*epoch-00001.safetensors"):
        remeasure(run, progress=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3\n", "'epoch'.*did you mean 'epochs'"),
        ("- 1\n", "mapping"),
        ("a: [\n", "not YAML"),
        ("epochs: many\n", "epochs"),
    ],
)
def test_a_wrong_config_file_says_what_is_wrong(tmp_path, text, message):
    run = RunFolder.create(tmp_path)
    run.write_text("config.yaml", text)
    with pytest.raises(nc.InputError, match=message):
        read_config(run)


def test_records_hold_the_learning_rate_of_the_epoch_that_ended(tmp_path):
    run = train(replace(SHORT, epochs=3, decay_every=1, learning_rate=0.1), tmp_path / "run", progress=False)
    assert [record.learning_rate for record in run.records()] == pytest.approx([0.1, 0.1, 0.01, 0.001])


def test_measure_at_names_the_epochs_beside_the_first_and_the_last(tmp_path):
    run = train(replace(BARE, epochs=5, measure_at=(1, 4)), tmp_path / "run", progress=False)
    assert [record.epoch for record in run.records()] == [0, 1, 4, 5]


# What is trained


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "sgd", "epochs": 20, "weight_decay": 1e-3},
        {"optimizer": "adam", "epochs": 20, "weight_decay": 1e-4, "learning_rate": 5e-3},
        {"optimizer": "lbfgs", "epochs": 8, "batch_size": 1437, "weight_decay": 1e-3, "learning_rate": 1.0},
    ],
    ids=lambda options: options["optimizer"],
)
def test_each_optimiser_reaches_collapse_on_the_digits(options, tmp_path):
    config = replace(BARE, width=64, measure_every=100, decay_every=15, **options)
    first, last = train(config, tmp_path / "run", progress=False).records()
    assert last.train["accuracy"] == 1.0
    assert last.measures["nc1"] < first.measures["nc1"] / 10


@pytest.mark.parametrize("loss", ["mse", "focal:3", "label_smoothing:0.2"])
def test_a_run_records_the_loss_that_it_trains(loss, tmp_path):
    config = replace(BARE, loss=loss, epochs=1)
    run = train(config, tmp_path / "run", progress=False)
    network = build_network("mlp", 10, 16, in_features=64, width=32, depth=2).eval()
    network.load_state_dict(load_file(run.checkpoint(1)))
    data = load_data(config.data, **config.data_options)
    for split, found in ((data.train, run.records()[-1].train), (data.test, run.records()[-1].test)):
        logits = network(Pixels(data.mean, data.std, data.channels)(split.images))
        columns, model = logits.detach().double().T, nc.ufm.losses.find_loss(loss)
        expected = float(model.value(columns, model.targets(split.labels, 10)).mean())
        assert found["loss"] == pytest.approx(expected, rel=1e-5)
    assert remeasure(run, progress=False)[0].train["loss"] == pytest.approx(run.records()[-1].train["loss"], rel=1e-5)


def test_with_its_own_decays_the_head_is_certified_against_them(tmp_path):
    decays = {"weight_decay": 5e-3, "feature_decay": 1e-5, "bias_decay": 1e-2}
    config = replace(BARE, decay_on="classifier", certify_head=True, epochs=2, **decays)
    run = train(config, tmp_path / "run", progress=False)
    network = build_network("mlp", 10, 16, in_features=64, width=32, depth=2).eval()
    network.load_state_dict(load_file(run.checkpoint(2)))
    data = load_data(config.data, **config.data_options)
    features = network.features(Pixels(data.mean, data.std, data.channels)(data.train.images)).detach()
    expected = nc.ufm.certify_head(
        features, data.train.labels, network.fc.weight, network.fc.bias, 5e-3, 1e-5, bias_decay=1e-2
    )
    head = run.records()[-1].head
    assert head["objective"] == pytest.approx(expected.objective, rel=1e-5)
    assert head["minimum"] == pytest.approx(expected.minimum, rel=1e-5)


@pytest.mark.slow
def test_a_narrow_resnet_trains_on_the_digits(tmp_path):
    config = TrainConfig(network="resnet18_width", width=4, stem="small", epochs=1, samples_per_class=20)
    run = train(config, tmp_path / "run", progress=False)
    assert len(run.records()) == 2
    assert json.loads(run.read_text("environment.json"))["image_shape"] == [1, 8, 8]
    (record,) = remeasure(run, progress=False)
    assert record.measures["nc1"] == pytest.approx(run.records()[-1].measures["nc1"], rel=1e-5)


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed"])
def test_other_precisions_train(precision, short_run, tmp_path):
    run = train(replace(BARE, precision=precision, epochs=1), tmp_path / "run", progress=False)
    found, wanted = run.records()[-1], short_run.records()[1]
    tolerance = 1e-3 if precision == "64-true" else 0.2
    assert found.measures["nc1"] == pytest.approx(wanted.measures["nc1"], rel=tolerance)
    assert found.measures["nc1"] != wanted.measures["nc1"]
    kind = torch.float64 if precision == "64-true" else torch.float32
    assert load_file(run.checkpoint(1))["fc.weight"].dtype == kind
    assert remeasure(run, progress=False)[0].measures["nc1"] == pytest.approx(found.measures["nc1"], rel=1e-4)


def test_channels_last_gives_the_same_run(tmp_path):
    config = TrainConfig(
        network="resnet18_width", width=2, stem="small", epochs=1, samples_per_class=10, loggers=(), batch_size=50
    )
    plain = train(config, tmp_path / "plain", progress=False).records()
    other = train(replace(config, channels_last=True), tmp_path / "other", progress=False).records()
    for one, two in zip(plain, other, strict=True):
        assert two.measures["nc1"] == pytest.approx(one.measures["nc1"], rel=1e-4)
        assert two.train["loss"] == pytest.approx(one.train["loss"], rel=1e-4)


def test_a_compiled_network_is_measured_as_it_stands(tmp_path, monkeypatch, short_run):
    """By dynamo with its "eager" backend: the hooks meet the same tracing, without a minute of compiling."""
    original, compiled = torch.nn.Module.compile, []

    def with_backend(self):
        compiled.append(self)
        original(self, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", with_backend)
    run = train(replace(BARE, compile=True), tmp_path / "run", progress=False)
    assert len(compiled) == 1
    for found, wanted in zip(run.records(), short_run.records(), strict=True):
        assert found.measures == pytest.approx(wanted.measures, rel=1e-4, abs=1e-6)
    assert load_file(run.checkpoint(4)).keys() == load_file(short_run.checkpoint(4)).keys()


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Two classes of grey images, without a test set."""
    generator = torch.Generator().manual_seed(0)
    for label, name in enumerate(("dark", "light")):
        folder = tmp_path / "pictures" / "train" / name
        folder.mkdir(parents=True)
        for number in range(6):
            pixels = torch.randint(100, (8, 8), generator=generator, dtype=torch.uint8) + 150 * label
            Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
    return tmp_path / "pictures"


def test_a_data_set_without_test_images_trains_and_has_its_page(pictures, tmp_path):
    run = train(replace(BARE, data=f"imagefolder:{pictures}", batch_size=4), tmp_path / "run", progress=False)
    assert all(record.test == {} for record in run.records())
    assert run.records()[-1].train["accuracy"] == 1.0
    assert write_page(run).read_text().startswith("<!doctype html>")


# Inner layers


def test_inner_layers_are_recorded_as_measure_gives_them(tmp_path):
    names = ("features.1", "features.3")
    run = train(replace(BARE, layers=names, epochs=1), tmp_path / "run", progress=False)
    network = build_network("mlp", 10, 16, in_features=64, width=32, depth=2)
    network.load_state_dict(load_file(run.checkpoint(1)))
    config = read_config(run)
    data = load_data(config.data, **config.data_options)
    images = Pixels(data.mean, data.std, data.channels)(data.train.images)
    expected = nc.measure(network, [(images, data.train.labels)], layers=names, progress=False)["layers"]
    layers = run.records()[-1].layers
    assert {name.removeprefix("network.") for name in layers} == set(names)
    for name, values in layers.items():
        assert values["nc1"] == pytest.approx(expected[name.removeprefix("network.")]["nc1"], rel=1e-5)
    again = remeasure(run, progress=False)[0].layers
    assert {name: part["nc1"] for name, part in again.items()} == pytest.approx(
        {name: part["nc1"] for name, part in layers.items()}, rel=1e-6
    )


def test_inner_layers_have_the_names_that_were_given(tmp_path):
    run = train(replace(BARE, layers=("features.1",), epochs=1), tmp_path / "run", progress=False)
    assert list(run.records()[-1].layers) == ["features.1"]


# What cannot be


NETWORKS = """
import torch
from torch import nn

def three_channels(num_classes):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, num_classes))

def ten_times_as_many(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes), nn.Unflatten(1, (num_classes, 1)), nn.Flatten(0))

def always_seven(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))

class HeadFirst(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.head = nn.Linear(num_classes, num_classes)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes), nn.ReLU())

    def forward(self, images):
        return self.head(self.body(images))

def head_first(num_classes):
    return HeadFirst(num_classes)

class OutputFirst(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.made = nn.Linear(num_classes, num_classes)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes), nn.ReLU())

    def forward(self, images):
        return self.made(self.body(images))

def output_first(num_classes):
    return OutputFirst(num_classes)

class TwoHeads(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.head = nn.Linear(64, num_classes)
        self.head_dist = nn.Linear(64, num_classes)

    def forward(self, images):
        return (self.head(images.flatten(1)) + self.head_dist(images.flatten(1))) / 2

def two_heads(num_classes):
    return TwoHeads(num_classes)

def tied(num_classes):
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
    network.again = network[1]
    network.forward = lambda images: network[1](network[0](images))
    return network

class Breaks(nn.Module):
    def __init__(self, num_classes, error):
        super().__init__()
        self.fc = nn.Linear(64, num_classes)
        self.error = RuntimeError("no luck") if error == "RuntimeError" else FileNotFoundError(2, "no file", "theirs")

    def forward(self, images):
        if self.training:
            raise self.error
        return self.fc(images.flatten(1))

def breaks(num_classes, error):
    return Breaks(num_classes, error)
"""


@pytest.fixture
def mine(tmp_path, monkeypatch) -> str:
    """A module with networks of the user's, in the current folder."""
    (tmp_path / "networks_for_test_run.py").write_text(NETWORKS)
    monkeypatch.chdir(tmp_path)
    return "networks_for_test_run"


def refused(config: TrainConfig, out: Path, message: str) -> None:
    with pytest.raises(nc.InputError, match=message) as error:
        train(config, out, progress=False)
    assert "\n" not in str(error.value)
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": ("features.99",)}, r"no layer .*features\.99"),
        ({"layers": ("featurs.1",)}, r"'featurs\.1'.*did you mean 'features\.\d'"),
        ({"loggers": ("wandb",)}, "the logger wandb is not installed .*: pip install wandb"),
        ({"loggers": ("csv", "mlflow")}, "the logger mlflow is not installed .*: pip install mlflow"),
        ({"optimizer": "lbfgs", "devices": 2, "accelerator": "cpu"}, "lbfgs runs in one process"),
        ({"strategy": "fsdp"}, "keeps the weights whole, or fsdp2, got fsdp: use one"),
        ({"strategy": "dpp"}, "cannot train with .*strategy=dpp"),
        ({"accelerator": "cdua"}, "cannot train with accelerator=cdua"),
        ({"precision": "31-true"}, "cannot train with .*precision=31-true"),
        ({"loss": "cross_entrpy"}, "mean 'cross_entropy'"),
        ({"network": "mpl"}, "mean 'mlp'"),
        ({"batch_size": 2, "devices": 2, "accelerator": "cpu", "strategy": "ddp_spawn"}, "at least 4 samples"),
        ({"random_labels": True, "samples_per_class": 500}, "samples_per_class of at most"),
        ({"channels": 3, "network_options": {"in_chanels": 3}}, "did you mean|no option"),
        ({"network_options": {"widht": 3}}, "no option 'widht'.*mean 'width'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_trained_is_one_line_and_leaves_no_folder(options, message, tmp_path):
    refused(replace(SHORT, **options), tmp_path / "run", message)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_without_cuda_is_one_line(tmp_path):
    refused(replace(SHORT, accelerator="cuda"), tmp_path / "run", "cannot train with accelerator=cuda")


def test_a_network_that_cannot_take_the_images_points_to_the_options(mine, tmp_path):
    config = TrainConfig(network=f"{mine}:three_channels", epochs=1, loggers=())
    message = r"three_channels cannot take images 1x8x8 \(.*channels.*\): see --channels, --image-size"
    refused(config, tmp_path / "run", message)
    assert len(train(replace(config, channels=3), tmp_path / "run", progress=False).records()) == 2


@pytest.mark.parametrize("name", ["always_seven", "ten_times_as_many"])
def test_a_network_with_other_outputs_than_classes_is_refused(name, mine, tmp_path):
    refused(TrainConfig(network=f"{mine}:{name}"), tmp_path / "run", r"10|num_classes")


def test_a_config_file_may_lack_what_has_a_default(tmp_path):
    run = RunFolder.create(tmp_path)
    run.write_text("config.yaml", yaml.safe_dump({"epochs": 7}))
    assert read_config(run) == TrainConfig(epochs=7)


OWN = {"width": None, "depth": None, "feature_dim": None}  # options of the MLP, which other networks do not take


def test_a_head_that_is_not_defined_last_is_found_by_its_name(mine, tmp_path):
    run = train(replace(BARE, **OWN, network=f"{mine}:head_first", epochs=1), tmp_path / "run", progress=False)
    assert remeasure(run, progress=False, trust_code=True)[0].measures["nc1"] == pytest.approx(
        run.records()[-1].measures["nc1"], rel=1e-6
    )


def test_a_layer_that_does_not_make_the_logits_is_refused(mine, tmp_path):
    refused(
        replace(BARE, **OWN, network=f"{mine}:output_first"),
        tmp_path / "run",
        "last nn.Linear .*'body.1', to make its logits, got other logits: define it after",
    )
    refused(
        replace(BARE, **OWN, network=f"{mine}:two_heads"),
        tmp_path / "run",
        "got other logits: it has 2 heads, head, head_dist",
    )


def test_a_network_that_holds_a_layer_twice_is_kept_and_read_again(mine, tmp_path):
    run = train(replace(BARE, **OWN, network=f"{mine}:tied", epochs=1), tmp_path / "run", progress=False)
    found = remeasure(run, progress=False, trust_code=True)
    assert found[0].measures["nc1"] == pytest.approx(run.records()[-1].measures["nc1"], rel=1e-6)


@pytest.mark.parametrize(("name", "error"), [("RuntimeError", RuntimeError), ("OSError", FileNotFoundError)])
def test_an_error_of_the_users_network_stays_what_it_is_and_leaves_nothing(name, error, mine, tmp_path):
    config = replace(BARE, **OWN, network=f"{mine}:breaks", network_options={"error": name})
    with pytest.raises(error):
        train(config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_run_of_the_first_version_keeps_its_fast_rotation(tmp_path):
    """Its config.yaml has no rotation and its files name no frame: it is measured and goes on as what it was."""
    quick = {"width": 12, "depth": 2, "feature_dim": 24, "samples_per_class": 20, "loggers": (), "checkpoint_every": 1}
    config = TrainConfig(frame="simplex", rotation="fast", epochs=2, **quick)
    whole = train(replace(config, epochs=3), tmp_path / "whole", progress=False)
    run = train(config, tmp_path / "old", progress=False)
    values = yaml.safe_load(run.read_text("config.yaml"))
    assert (values.pop("rotation"), values.pop("frame")) == ("fast", "simplex")
    values["classifier"] = "etf"
    run.write_text("config.yaml", yaml.safe_dump(values))
    for _, file in run.checkpoints():
        save_file({name: value for name, value in load_file(file).items() if "_extra_state" not in name}, file)
    state = torch.load(run.state, weights_only=True)
    state["network"] = {name: value for name, value in state["network"].items() if "_extra_state" not in name}
    origin = state["origin"].replace('"rotation": "fast", ', "")
    state["origin"] = origin.replace('"frame": "simplex"', '"classifier": "etf"')
    assert "frame" not in state["origin"]
    torch.save(state, run.state)

    assert read_config(run).rotation == "fast"
    again = remeasure(run, progress=False)
    assert again[-1].measures["nc1"] == pytest.approx(run.records()[-1].measures["nc1"], rel=1e-5)
    resumed = resume(run.path, {"epochs": 3}, progress=False)
    assert [record.measures for record in resumed.records()] == [record.measures for record in whole.records()]
    values["rotation"] = "blocks"
    run.write_text("config.yaml", yaml.safe_dump(values))
    with pytest.raises(nc.InputError, match="rotation='fast', K=10, d=24, and this layer simplex, rotation='blocks'"):
        remeasure(run, progress=False)


def test_only_what_the_first_version_left_unsaid_is_completed():
    assert completed({"classifier": "etf"}) == {"frame": "simplex", "rotation": "fast"}
    assert completed({"classifier": "etf", "rotation": "none"})["rotation"] == "none"
    assert completed({"classifier": "learned"}) == {"frame": "learned"}
    assert completed({}) == {}


@pytest.mark.parametrize(
    ("frame", "options"),
    [
        ("orthoplex", {}),
        ("orthoplex", {"rotation": "none", "learn_scale": True}),
        ("softmax_code", {"learn_scale": True}),
    ],
)
@pytest.mark.filterwarnings("ignore:.* hold no simplex ETF")
def test_more_classes_than_a_simplex_holds_train_with_another_frame(frame, options, tmp_path):
    """K = 10 classes in d = 6 features: measured, kept, measured again and resumed as what they are."""
    quick = {"width": 16, "depth": 2, "feature_dim": 6, "samples_per_class": 20, "loggers": (), "checkpoint_every": 1}
    run = train(TrainConfig(frame=frame, epochs=2, **quick, **options), tmp_path / "run", progress=False)
    values = yaml.safe_load(run.read_text("config.yaml"))
    assert values["frame"] == frame
    assert read_config(run) == with_precision(TrainConfig(frame=frame, epochs=2, **quick, **options))
    assert "fc.scale" in load_file(run.checkpoint(2))
    again = remeasure(run, progress=False)[-1]
    assert again.measures["nc1"] == pytest.approx(run.records()[-1].measures["nc1"], rel=1e-5)
    assert resume(run.path, {"epochs": 3}, progress=False).records()[-1].epoch == 3
    with pytest.raises(nc.InputError, match="d >= K-1 = 9"):
        train(TrainConfig(frame="simplex", **quick), tmp_path / "simplex", progress=False)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run: nc.train({"epochs": 1}, "x"), "expected a TrainConfig first"),
        (lambda run: nc.train(nc.TrainConfig, "x"), "expected a TrainConfig first"),
        (lambda run: nc.train("x", nc.TrainConfig()), "expected a TrainConfig first"),
        (lambda run: nc.train(nc.TrainConfig(), None), "expected the path of a run folder, got None"),
        (lambda run: nc.resume(None), "expected the path of a run folder, got None"),
        (lambda run: nc.read_run(3), "expected the path of a run folder, got 3"),
        (lambda run: nc.resume(run, {"epoch": 4}), "resume: no option 'epoch' (did you mean 'epochs'?)"),
        (lambda run: nc.resume(run, nc.TrainConfig()), "expected changes as a mapping"),
    ],
)
def test_a_mistake_at_the_door_is_one_line(call, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = train(replace(SHORT, epochs=1), tmp_path / "run", progress=False)
    with pytest.raises(nc.InputError) as error:
        call(run)
    assert str(error.value).startswith(message)


def test_a_run_folder_is_read_as_its_path_is(tmp_path):
    run = nc.train(replace(SHORT, epochs=1), tmp_path / "run", progress=False)
    assert nc.read_run(run).records == nc.read_run(run.path).records
    assert nc.resume(run, progress=False).path == run.path
    assert nc.write_page(run).is_file()


@pytest.mark.parametrize(
    ("options", "decays"),
    [
        ({"weight_decay": 0.01}, (0.01, None, None)),
        ({"weight_decay": 0.01, "decay_on": "classifier", "feature_decay": 1e-4, "bias_decay": 0.5}, (0.01, 1e-4, 0.5)),
        ({"weight_decay": 0.01, "decay_on": "classifier"}, None),
        ({"weight_decay": 0.0}, None),
        ({"weight_decay": 0.01, "optimizer": "adamw"}, None),
    ],
)
def test_the_decays_of_the_objective_are_known_where_it_has_them(options, decays):
    assert known_decays(TrainConfig(**options)) == decays


def test_each_record_of_a_run_holds_what_theory_expects(short_run):
    for record in short_run.records():
        assert record.minimizer["nc1"] == 0
        assert record.minimizer["weight_decay"] == 0.01
        assert record.untrained["nc0"] == 0.1
