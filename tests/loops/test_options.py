"""Options of what measures while a network trains, checked as it is made."""

import itertools
import math
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import neuralcollapse as nc
from neuralcollapse.capture.arguments import check_model
from neuralcollapse.loops.loaders import IterableBatches, check_loader
from neuralcollapse.loops.options import options_of


def data(count: int = 30) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(count, 4, generator=generator), torch.arange(count) % 3)


def loader(**options) -> DataLoader:
    return DataLoader(data(), **({"batch_size": 8} | options))


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU())
    model.add_module("fc", nn.Linear(6, 3))
    return model


MAKERS = {
    "Recorder": lambda **options: nc.Recorder(loader(), **options),
    "CollapseCallback": lambda **options: nc.CollapseCallback(loader(), **options),
    "CollapseTrainerCallback": lambda **options: nc.CollapseTrainerCallback(None, **options),
    "measure_checkpoints": lambda **options: nc.measure_checkpoints(network(), "nowhere-*.pt", loader(), **options),
}
every_maker = pytest.mark.parametrize("owner", MAKERS)


@every_maker
@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("pairwse", "pairwise"),
        ("ignore_indx", "ignore_index"),
        ("ignoreindex", "ignore_index"),
        ("layer", "layers"),
        ("NC4", None),
        ("nc_4", "nc4"),
        ("next_tokens", "next_token"),
        ("min_counts", "min_count"),
        ("class_name", "class_names"),
        ("headdecay", "head_decay"),
        ("means_type", "means_dtype"),
        ("num_class", "num_classes"),
        ("onrecord", "on_record"),
        ("devices", "device"),
        ("zzz", None),
    ],
)
def test_a_misspelt_option_is_refused_with_the_nearest_name(owner, wrong, right):
    with pytest.raises(nc.InputError) as error:
        MAKERS[owner](**{wrong: 1})
    text = str(error.value)
    assert text.startswith(f"{owner} has no option {wrong!r}")
    assert "\n" not in text
    if right is not None:
        assert f"did you mean {right!r}?" in text
    else:
        assert "expected one of" in text or "did you mean" in text


@pytest.mark.parametrize(
    ("owner", "taken"),
    [
        ("CollapseCallback", ["resume", "unit", "writes"]),
        ("CollapseTrainerCallback", ["resume", "sharded", "unit", "writes"]),
        ("measure_checkpoints", ["resume", "unit", "writes"]),
    ],
)
def test_what_a_callback_sets_itself_is_refused(owner, taken):
    for name in taken:
        with pytest.raises(nc.InputError, match=f"^{owner} sets the option '{name}' itself: leave it out"):
            MAKERS[owner](**{name: True})


def test_arguments_with_a_place_are_among_the_nearest_names():
    for make in (nc.Recorder, nc.CollapseCallback):
        with pytest.raises(nc.InputError, match=r"'test_loadr' \(did you mean 'test_loader'\?\)"):
            make(loader(), test_loadr=loader())
    with pytest.raises(nc.InputError, match=r"'clasifier' \(did you mean 'classifier'\?\)"):
        MAKERS["CollapseTrainerCallback"](clasifier="fc")


def test_a_loader_is_no_option_of_the_callback_that_takes_data_sets():
    with pytest.raises(nc.InputError, match=r"^CollapseTrainerCallback has no option 'loader'"):
        MAKERS["CollapseTrainerCallback"](loader=loader())


@every_maker
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairwise": -1}, "pairwise"),
        ({"pairwise": 0}, "pairwise"),
        ({"pairwise": 0.5}, "pairwise"),
        ({"pairwise": "yes"}, "pairwise"),
        ({"pairwise": None}, "pairwise"),
        ({"nc4": "yes"}, "expected nc4 True or False, got 'yes'"),
        ({"nc4": 1}, "expected nc4 True or False, got 1"),
        ({"next_token": "labels"}, "expected next_token True or False"),
        ({"force": "yes"}, "expected force True or False"),
        ({"progress": None}, "expected progress True or False"),
        ({"num_classes": 0}, "num_classes"),
        ({"num_classes": "ten"}, "num_classes"),
        ({"ignore_index": 0.5}, "expected ignore_index as an integer, got 0.5"),
        ({"ignore_index": "pad"}, "expected ignore_index as an integer, got 'pad'"),
        ({"ignore_index": True}, "ignore_index"),
        ({"min_count": 0}, "min_count"),
        ({"classes": 3}, "expected classes as a list of class numbers, got 3"),
        ({"classes": []}, "expected classes as a list of class numbers"),
        ({"classes": ["cat"]}, "classes"),
        ({"classes": [0.5]}, "expected classes as a list of class numbers"),
        ({"classes": [0, 1], "min_count": 2}, "got both: give one"),
        ({"means_dtype": torch.float16}, "expected means_dtype torch.float64 or torch.float32"),
        ({"means_dtype": "float32"}, "expected means_dtype torch.float64 or torch.float32"),
        ({"device": "gpu"}, "expected a device that this machine has, got 'gpu'"),
        ({"loss": "cross_entropy"}, "expected loss as a function, got 'cross_entropy'"),
        ({"loss": nn.CrossEntropyLoss}, "expected loss as a function"),
        ({"on_record": 3}, "expected on_record as a function, got 3"),
        ({"layers": None}, "expected layers as dotted names of inner layers"),
        ({"layers": 4}, "expected layers as dotted names"),
        ({"layers": [nn.Linear(1, 1)]}, "expected layers as dotted names"),
        ({"layers": [4]}, "expected layers as dotted names"),
        ({"head_decay": -1e-3}, "head_decay"),
        ({"head_decay": 0}, "head_decay"),
        ({"head_decay": "5e-4"}, "head_decay"),
        ({"head_decay": math.nan}, "head_decay"),
        ({"head_decay": (1e-3, 1e-3)}, "head_decay"),
        ({"head_decay": [1e-3, None, None]}, "head_decay"),
        ({"head_decay": (1e-3, -1.0, None)}, "head_decay's feature decay"),
        ({"head_decay": (1e-3, 1e-3, -1.0)}, "head_decay's bias decay"),
        ({"config": "mine"}, "expected config as a dict"),
        ({"class_names": "cat"}, "expected class_names as a list of names, got 'cat'"),
        ({"class_names": 3}, "expected class_names as a list of names"),
        ({"classifier": 3}, "expected classifier as the dotted name of the last layer"),
        ({"out": 3}, "expected out as the path of a run folder, got 3"),
        ({"out": ""}, "expected out as the path of a run folder, got ''"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_when_it_is_given(owner, options, message):
    with pytest.raises(nc.InputError, match=re.escape(message)) as error:
        MAKERS[owner](**options)
    assert "\n" not in str(error.value)


@every_maker
def test_a_file_is_no_run_folder(owner, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(nc.InputError, match=r"path of a run folder, got the file .*notes.txt: choose another"):
        MAKERS[owner](out=tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(nc.InputError, match=r"a device that this machine has, got .cuda."):
        nc.Recorder(loader(), device="cuda")


def test_what_is_right_is_taken():
    nc.Recorder(
        loader(),
        loader(),
        "fc",
        pairwise=np.int64(3),
        nc4=np.bool_(True),
        ignore_index=np.int64(-100),
        classes=torch.tensor([0, 2]),
        means_dtype=torch.float32,
        device=torch.device("cpu"),
        loss=nn.CrossEntropyLoss(),
        layers="0",
        head_decay=(1e-3, None, 0.0),
        class_names=("a", "b"),
        config=None,
    )
    for classes in ([0, 2], (0, 2), {0, 2}, range(2), np.array([0, 2])):
        nc.Recorder(loader(), classes=classes)


def test_the_known_names_are_those_of_the_functions():
    def function(one, loader, *rest, two=1, **others):
        pass

    assert {"one", "two", "loader", "layers", "ignore_index", "sharded", "loss"} <= set(options_of(function))
    assert not {"model", "self", "rest", "others", "options"} & set(options_of(function, nc.Recorder))
    assert "loader" not in options_of(function, without=["loader"])


class Samples(IterableDataset):
    def __iter__(self):
        return iter(data())


class Batches(IterableDataset):
    def __iter__(self):
        return iter(loader())


class Dicts(IterableDataset):
    def __iter__(self):
        return ({"input": inputs, "label": int(label)} for inputs, label in data())


class Rewinds:
    """Hands itself back, and begins anew."""

    def __iter__(self):
        self.rest = list(loader())
        return self

    def __next__(self):
        if not self.rest:
            raise StopIteration
        return self.rest.pop(0)


class Kept(IterableDataset):
    """Hands out one iterator again and again."""

    def __init__(self, kept):
        self.kept = kept

    def __iter__(self):
        return self.kept


class Plain(Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return data()[index]


@pytest.mark.parametrize(
    "source",
    [
        loader,
        Samples,
        Batches,
        Rewinds,
        lambda: DataLoader(Samples(), batch_size=8),
        lambda: DataLoader(Samples(), batch_size=8, num_workers=1),
        lambda: DataLoader(Batches(), batch_size=None),
        lambda: list(loader()),
        lambda: tuple(loader()),
    ],
)
def test_whatever_begins_anew_is_a_loader(source):
    expected = nc.measure(network(), loader(), test_loader=loader(), progress=False)
    test = expected.pop("test")
    recorder = nc.Recorder(source(), source(), progress=False)
    for epoch in range(2):
        record = recorder.measure(network(), epoch)
        for name, value in record.measures.items():
            assert value == pytest.approx(expected[name], rel=1e-5, abs=1e-9), name
        for name, value in record.test.items():
            assert value == pytest.approx(test[name], rel=1e-5, abs=1e-9), name


def test_an_iterable_data_set_of_samples_comes_in_batches():
    batches = list(IterableBatches(Samples()))
    assert len(batches) == 1
    torch.testing.assert_close(batches[0][0], data().tensors[0])
    assert batches[0][1].tolist() == data().tensors[1].tolist()
    assert [batch["label"].tolist() for batch in IterableBatches(Dicts())] == [data().tensors[1].tolist()]
    assert [len(labels) for _, labels in IterableBatches(Batches())] == [8, 8, 8, 6]
    assert list(IterableBatches(Kept(iter(())))) == []


@pytest.mark.parametrize(
    "source",
    [
        lambda: (batch for batch in loader()),
        lambda: iter(loader()),
        lambda: iter(loader(num_workers=1)),
        lambda: iter(list(loader())),
        lambda: map(tuple, loader()),
        lambda: zip(*data().tensors, strict=True),
        lambda: itertools.islice(loader(), 2),
        lambda: Kept(batch for batch in loader()),
        lambda: DataLoader(Kept(iter(data())), batch_size=8),
    ],
)
def test_what_can_be_run_through_only_once_is_refused_and_nothing_is_taken_from_it(source):
    for make in (
        nc.Recorder,
        nc.CollapseCallback,
        lambda given: nc.Recorder(loader(), given),
        lambda given: nc.CollapseCallback(loader(), given),
    ):
        given = source()
        with pytest.raises(nc.InputError, match=r"that can be run through for each measurement, got a .* used up"):
            make(given)
        assert len(list(given)) > 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "got None: give a torch.utils.data.DataLoader"),
        (DataLoader, r"got the class DataLoader: make one first, as in DataLoader\(...\)"),
        (network(), "got the network Sequential: are the arguments in order"),
        (data(), "got the data set TensorDataset: wrap it in torch.utils.data.DataLoader"),
        (Plain(), "got the data set Plain: wrap it"),
        ("train", "got 'train': give a torch.utils.data.DataLoader"),
        ({"train": loader()}, "got dict: give a torch"),
        (data().tensors[0], "got Tensor: give a torch"),
        (np.zeros((3, 4)), "got ndarray: give a torch"),
        (data().tensors, "got a tuple of arrays: give DataLoader"),
        ((np.zeros((3, 4)), np.zeros(3)), "got a tuple of arrays: give DataLoader"),
        (3, "got 3: give a torch"),
        (True, "got True: give a torch"),
        (print, "got builtin_function_or_method: give a torch"),
    ],
)
def test_what_is_no_loader_is_named(given, message):
    with pytest.raises(nc.InputError, match=f"^expected loader as a loader that gives batches .*{message}"):
        nc.Recorder(given)
    with pytest.raises(nc.InputError, match=f"^expected loader as a loader that gives batches .*{message}"):
        check_loader(given)
    if given is not None:
        with pytest.raises(nc.InputError, match=message):
            nc.CollapseCallback(given)
        with pytest.raises(nc.InputError, match=f"^expected test_loader as .*{message}"):
            nc.Recorder(loader(), given)
        with pytest.raises(nc.InputError, match=f"^expected test_loader as .*{message}"):
            nc.CollapseCallback(loader(), given)


def test_a_data_set_of_hugging_face_is_no_loader():
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"x": [[0.0]], "label": [0]})
    with pytest.raises(nc.InputError, match="got the data set Dataset: wrap it in"):
        nc.Recorder(rows)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (nn.Sequential, r"got the class Sequential: make one first, as in Sequential\(...\)"),
        (network().state_dict(), "got a state dict: load it into a network with load_state_dict"),
        (loader(), "got a DataLoader: give the network itself"),
        (None, "got a NoneType: give the network"),
        (3, "got a int: give the network"),
    ],
)
def test_what_is_no_network_is_named(given, message):
    for use in (
        check_model,
        lambda model: nc.Recorder(loader()).measure(model, 0),
        lambda model: nc.measure_checkpoints(model, "nowhere-*.pt", loader()),
    ):
        with pytest.raises(nc.InputError, match=f"^expected the network as a torch.nn.Module, {message}"):
            use(given)
