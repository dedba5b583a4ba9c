import argparse
import copy
import pickle

import lightning
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader

import neuralcollapse as nc
from neuralcollapse.checkpoints.weights import fit_weights, read_weights
from tests.helpers import Bomb


class Net(nn.Module):
    def __init__(self, width=6, classes=3):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, width))
        self.fc = nn.Linear(width, classes)

    def forward(self, inputs):
        return self.fc(self.body(inputs))


class Tied(nn.Module):
    """As a language model: the last layer has the embedding's weight."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embedding.weight


@pytest.fixture
def trained():
    torch.manual_seed(1)
    net = Net()
    net.train()(torch.randn(8, 4))  # moves the statistics of batch normalisation
    return net


def same(model, other):
    ours, theirs = model.state_dict().values(), other.state_dict().values()
    return all(torch.equal(one, two) for one, two in zip(ours, theirs, strict=True))


def prefixed(net, prefix):
    return {prefix + name: value for name, value in net.state_dict().items()}


def fitted(weights, model=None, **options):
    model = Net() if model is None else model
    fit_weights(model, weights, "the file", **options)
    return model


def refused(weights, model=None, **options):
    """The one line with which weights are refused; the model stays as it was."""
    model = Net() if model is None else model
    before = copy.deepcopy(model)
    with pytest.raises(nc.InputError) as error:
        fit_weights(model, weights, "the file", **options)
    assert same(model, before)
    assert "\n" not in str(error.value)
    return str(error.value)


# Reading


@pytest.mark.parametrize(
    "around",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}},
        lambda state: {"model": state, "args": {"lr": 0.1}},
        lambda state: {"model_state_dict": state, "loss": torch.tensor(1.0)},
        lambda state: {"module": state, "lr_schedulers": []},
        lambda state: {"network": {"weights": state}, "optim": state},
        lambda state: {"state": {"module." + name: value for name, value in state.items()}},
    ],
)
@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.ckpt", "w.bin", "w.pth.tar", "old.PT"])
def test_a_state_dict_is_found_in_whatever_training_scripts_save(tmp_path, trained, around, name):
    torch.save(around(trained.state_dict()), tmp_path / name, _use_new_zipfile_serialization=not name.startswith("old"))
    assert same(fitted(read_weights(tmp_path / name)), trained)


def test_safetensors_are_read(tmp_path, trained):
    save_file(trained.state_dict(), tmp_path / "w.safetensors")
    assert same(fitted(read_weights(str(tmp_path / "w.safetensors"))), trained)


def test_the_options_of_a_script_may_lie_beside_the_weights(tmp_path, trained):
    torch.save({"state_dict": trained.state_dict(), "args": argparse.Namespace(lr=0.1)}, tmp_path / "w.pth.tar")
    assert same(fitted(read_weights(tmp_path / "w.pth.tar")), trained)


@pytest.mark.parametrize("name", ["w.pt", "w.bin", "w.ckpt", "w.safetensors", "w.tar"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_something_never_runs(tmp_path, trained, name, zipped):
    if zipped:
        torch.save({"model": trained.state_dict(), "bomb": Bomb()}, tmp_path / name)
    else:
        (tmp_path / name).write_bytes(pickle.dumps({"model": None, "bomb": Bomb()}))
    with pytest.raises(nc.InputError, match=r"never loaded|cannot read") as error:
        read_weights(tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_whole_model_is_named_and_the_way_out_too(tmp_path, trained):
    torch.save(trained, tmp_path / "w.pt")
    with pytest.raises(nc.InputError, match=r"pickled objects \(.*Net\), which are never loaded: save the weights"):
        read_weights(tmp_path / "w.pt")


def test_a_torchscript_program_is_refused(tmp_path):
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "w.pt")
    with pytest.raises(nc.InputError, match="TorchScript"):
        read_weights(tmp_path / "w.pt")


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("keep", [0, 10, 1000, -1])
def test_a_damaged_file_is_one_line(tmp_path, trained, name, keep):
    path = tmp_path / name
    (torch.save if name == "w.pt" else save_file)(trained.state_dict(), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(nc.InputError, match=r"cannot read .*copy it again") as error:
        read_weights(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["w.npz", "w.pkl", "w.h5", "weights"])
def test_other_kinds_of_files_are_refused(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(nc.InputError, match=r"expected weights in \.safetensors, .*safetensors.torch.save_file"):
        read_weights(tmp_path / name)


def test_a_missing_file_and_one_without_tensors_are_refused(tmp_path):
    with pytest.raises(nc.InputError, match="no file"):
        read_weights(tmp_path / "w.pt")
    for number, content in enumerate([{"epoch": 3}, [torch.ones(2)], torch.ones(2), {0: torch.ones(2)}]):
        torch.save(content, tmp_path / f"{number}.pt")
        with pytest.raises(nc.InputError, match="no tensors by name"):
            read_weights(tmp_path / f"{number}.pt")


# Prefixes


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "network.", "module.network.", "a.b.c.d.", "_orig_mod."])
def test_any_prefix_is_found(trained, prefix):
    assert same(fitted(prefixed(trained, prefix)), trained)


def test_what_lies_beside_the_model_is_passed_over(trained):
    """As in a Lightning module with a loss and a metric of its own, and a smaller network."""
    others = prefixed(nn.Linear(6, 3), "teacher.fc.") | {"loss.weight": torch.ones(3), "metric.total": torch.ones(1)}
    assert same(fitted(prefixed(trained, "model.") | others), trained)


def test_compiled_models_and_their_weights_go_with_plain_ones(trained):
    compiled = torch.compile(trained)
    assert all(name.startswith("_orig_mod.") for name in compiled.state_dict())
    assert same(fitted(compiled.state_dict()), trained)
    assert same(fitted(trained.state_dict(), torch.compile(Net())), trained)
    assert same(fitted({"model._orig_mod." + name: value for name, value in trained.state_dict().items()}), trained)
    halfway = {name.replace("body.", "body._orig_mod."): value for name, value in trained.state_dict().items()}
    assert same(fitted(halfway), trained)
    with_parts = Net()
    with_parts.body = torch.compile(with_parts.body)
    assert same(fitted(trained.state_dict(), with_parts), trained)


@pytest.mark.parametrize("prefix", ["", "module.", "model.module."])
def test_a_wrapped_model_takes_plain_weights_and_those_of_a_wrapped_one(trained, prefix):
    assert same(fitted(prefixed(trained, prefix), nn.DataParallel(Net())), trained)
    assert same(fitted(prefixed(trained, prefix), torch.compile(nn.DataParallel(Net()))), trained)


def test_a_model_of_one_layer_is_found_too():
    layer = nn.Linear(4, 3)
    for model in (nn.Linear(4, 3), nn.DataParallel(nn.Linear(4, 3)), nn.Sequential(nn.Linear(4, 3))):
        assert same(fitted(layer.state_dict(), model), layer)


def test_parts_that_were_parallel_on_their_own_are_found(trained):
    """As in PyTorch's ImageNet script, where VGG's `features` alone are in DataParallel."""
    parallel = {name.replace("body.", "body.module."): value for name, value in trained.state_dict().items()}
    assert same(fitted(prefixed(trained, "x.") | {}), trained)
    assert same(fitted(parallel), trained)


def test_a_model_and_its_moving_average_are_told_apart_by_the_prefix(trained):
    average = Net()
    both = prefixed(trained, "model.") | prefixed(average, "ema.module.")
    message = refused(both)
    assert "'model.'" in message
    assert "'ema.module.'" in message
    for prefix in ("ema.module.", "ema.module"):
        assert same(fitted(both, prefix=prefix), average)
    assert same(fitted(both, prefix="model."), trained)
    assert "none of the model's weights under the prefix 'moduel.'" in refused(both, prefix="moduel")
    beside = trained.state_dict() | prefixed(average, "ema.")
    assert "''" in refused(beside)
    with pytest.warns(nc.NeuralCollapseWarning, match=r"ema\.body"):
        assert same(fitted(beside, prefix=""), trained)


def test_one_set_of_tensors_under_two_prefixes_is_no_choice(trained):
    assert same(fitted(prefixed(trained, "model.") | prefixed(trained, "alias.")), trained)


def test_the_prefix_in_the_models_shapes_wins(trained):
    other = prefixed(Net(width=7), "teacher.")
    assert same(fitted(other | prefixed(trained, "student.")), trained)


def test_a_real_lightning_checkpoint(tmp_path, trained):
    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.save_hyperparameters({"width": 6})
            self.model = trained
            self.teacher = nn.Linear(4, 3)
            self.weights = nn.Parameter(torch.ones(2))

        def training_step(self, batch, _):
            return self.model(batch).square().mean() + self.weights.sum()

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters())

    trainer = lightning.Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        accelerator="cpu",
    )  # fmt: skip
    trainer.fit(Module(), DataLoader(torch.randn(8, 4), batch_size=4))
    trainer.save_checkpoint(tmp_path / "epoch=0-step=2.ckpt")
    assert same(fitted(read_weights(tmp_path / "epoch=0-step=2.ckpt")), trained)


@pytest.mark.parametrize("wrap", [lambda model: model, nn.DataParallel, nn.Sequential, torch.compile])
def test_names_that_transformers_changes_when_it_saves_are_found(tmp_path, wrap):
    transformers = pytest.importorskip("transformers")
    options = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = transformers.ViTConfig(image_size=8, patch_size=4, num_channels=1, num_labels=3, **options)
    saved, model = (transformers.ViTForImageClassification(config) for _ in range(2))
    saved.save_pretrained(tmp_path)
    weights = read_weights(tmp_path / "model.safetensors")
    assert same(fitted(weights, wrap(model)), saved)
    del weights["classifier.bias"]
    assert "is missing 1 of the model's 24 weights: classifier.bias" in refused(weights, copy.deepcopy(model))
    assert same(fitted(prefixed(saved, "model."), wrap(model)), saved)  # as Lightning saves them


# Fitting


def test_missing_weights_are_named(trained):
    weights = trained.state_dict()
    del weights["fc.bias"], weights["fc.weight"]
    assert "the file is missing 2 of the model's 11 weights: fc.weight, fc.bias" in refused(weights)
    assert "under the prefix 'model.'" in refused({"model." + name: value for name, value in weights.items()})
    assert "holds none of the model's weights" in refused({"conv.kernel": torch.ones(2)})


def test_tied_weights_and_batch_counts_may_be_missing(trained):
    torch.manual_seed(0)
    tied, other = Tied(), Tied()
    for name in ("embedding.weight", "head.weight"):
        assert same(fitted({f"model.{name}": tied.state_dict()[name]}, other), tied)
        assert other.head.weight is other.embedding.weight
    assert "missing 1" not in refused({"x": torch.ones(2)}, Tied())
    weights = {name: value for name, value in trained.state_dict().items() if "num_batches" not in name}
    torch.testing.assert_close(fitted(weights).eval()(torch.ones(2, 4)), trained.eval()(torch.ones(2, 4)))


def test_other_shapes_are_refused_with_both(trained):
    message = refused(Net(classes=5).state_dict())
    assert "expected fc.weight as float32 (3, 6), got float32 (5, 6) in the file" in message


def test_whole_numbers_are_no_weights(trained):
    weights = trained.state_dict()
    weights["fc.weight"] = torch.ones(3, 6, dtype=torch.int8)
    assert "got int8 (3, 6)" in refused(weights)


def test_weights_that_the_model_does_not_have_are_named_and_left_out(trained):
    with pytest.warns(nc.NeuralCollapseWarning, match=r"does not have, left out: aux\.weight"):
        assert same(fitted(trained.state_dict() | {"aux.weight": torch.ones(2)}), trained)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_model_keeps_its_floating_type(trained, dtype):
    cast = copy.deepcopy(trained).to(dtype)
    model = fitted(cast.state_dict())
    assert model.fc.weight.dtype == torch.float32
    torch.testing.assert_close(model.fc.weight, cast.fc.weight.float())


def test_a_fixed_classifier_is_loaded_as_it_was_saved():
    model, other = nc.fix_classifier(Net(classes=7)), nc.fix_classifier(Net(classes=7), scale=3.0)
    assert same(fitted(prefixed(other, "module."), model), other)
    assert "fc.scale" in refused(Net(classes=7).state_dict(), model)


FRAMES = ("blocks", "none", "fast")


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("prefix", ["", "module.", "state_dict.model._orig_mod."])
@pytest.mark.parametrize("saved", FRAMES)
@pytest.mark.parametrize("own", FRAMES)
def test_a_fixed_classifier_of_another_frame_is_refused(own, saved, prefix, named):
    """Also where the entries have the same names and shapes, and in a file of version 0.1.0, which named no frame."""
    model, other = (nc.fix_classifier(Net(classes=3), rotation=rotation) for rotation in (own, saved))
    weights = {name: value for name, value in prefixed(other, prefix).items() if named or "_extra" not in name}
    if saved == "blocks" and not named:
        pytest.skip("version 0.1.0 had no blocks")
    if own == saved:
        assert same(fitted(weights, model), other)
        return
    message = refused(weights, model)
    if saved == "fast" or own != "fast":  # else the rotation's signs are missing before that
        assert "fc in the file" in message
        assert f"and this layer simplex, rotation='{own}'" in message


def test_a_model_without_weights_is_refused():
    with pytest.raises(nc.InputError, match="a ReLU without any"):
        fit_weights(nn.ReLU(), {"x": torch.ones(1)})
