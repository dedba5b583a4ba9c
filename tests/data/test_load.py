import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from neuralcollapse import InputError
from neuralcollapse.data import batches as module
from neuralcollapse.data.batches import Batches
from neuralcollapse.data.load import Data, load_data
from neuralcollapse.data.splits import Split
from tests.helpers import write_idx


def test_digits_are_split_in_a_fixed_stratified_way():
    data = load_data("digits")
    pixels, labels = load_digits(return_X_y=True)
    train, test, train_labels, test_labels = train_test_split(
        pixels, labels, test_size=360, random_state=0, stratify=labels
    )
    assert (data.num_classes, data.channels, data.image_shape) == (10, 1, (1, 8, 8))
    assert data.train.images.dtype == torch.uint8
    for split, images, classes in ((data.train, train, train_labels), (data.test, test, test_labels)):
        assert np.array_equal(split.images.flatten(1).numpy(), images)
        assert np.array_equal(split.labels.numpy(), classes)
    assert data.mean == pytest.approx([train.mean()], rel=1e-12)
    assert data.std == pytest.approx([train.std()], rel=1e-12)


def test_an_unknown_data_set_gets_the_nearest_name():
    with pytest.raises(InputError, match=r"'digit'.*did you mean 'digits'"):
        load_data("digit")


def idx_folder(folder, images, labels):
    """A folder with a training set of `images` (N, H, W) or (N, H, W, C) and no test set."""
    folder.mkdir()
    for array, name in ((images, f"images-idx{images.ndim}"), (labels, "labels-idx1")):
        write_idx(folder / f"train-{name}-ubyte.gz", array)
    return f"idx:{folder}"


@pytest.fixture
def colours(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (20, 5, 7, 3))
    images[..., 2] = 9
    return idx_folder(tmp_path / "colours", images, np.arange(20) % 2), images


@pytest.fixture
def greys(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (20, 5, 7))
    return idx_folder(tmp_path / "greys", images, np.arange(20) % 2), images


def test_statistics_are_those_of_each_channel(colours):
    name, images = colours
    data = load_data(name)
    assert data.mean == pytest.approx(images.mean((0, 1, 2)), rel=1e-12)
    assert data.std == pytest.approx([*images.std((0, 1, 2))[:2], 1.0], rel=1e-12)
    assert len(data.test.labels) == 0
    assert data.test.images.shape == (0, 3, 5, 7)


def test_channels_repeat_grey_images_only_for_the_network(greys):
    data = load_data(greys[0], channels=3)
    assert data.train.images.shape == (20, 1, 5, 7)
    assert (data.channels, data.image_shape, len(data.mean)) == (3, (3, 5, 7), 1)
    assert load_data(greys[0], channels=1).channels == 1


def test_colour_images_keep_their_channels(colours):
    assert load_data(colours[0], channels=3).image_shape == (3, 5, 7)
    with pytest.raises(InputError, match=r"channels=1 is for grey images, and those of idx:.* have 3 channels"):
        load_data(colours[0], channels=1)


def test_images_are_resized(greys):
    data = load_data(greys[0], image_size=10)
    assert data.image_shape == (1, 10, 10)
    assert data.train.images.dtype == torch.uint8


CHANGES = {"samples_per_class": 90, "imbalance": "exponential:10", "label_noise": 0.2}


def test_the_changes_come_in_their_order_and_to_the_training_set_only():
    plain, data = load_data("digits"), load_data("digits", **CHANGES)
    subset = load_data("digits", samples_per_class=90)
    counts = [90, 70, 54, 42, 32, 25, 19, 15, 12, 9]
    assert subset.train.labels.bincount().tolist() == [90] * 10
    imbalanced = load_data("digits", samples_per_class=90, imbalance="exponential:10")
    assert imbalanced.train.labels.bincount().tolist() == counts
    assert torch.equal(data.train.images, imbalanced.train.images)  # relabelling moves no image
    assert int((data.train.labels != imbalanced.train.labels).sum()) == round(0.2 * sum(counts))
    assert torch.equal(data.test.labels, plain.test.labels)
    assert torch.equal(data.test.images, plain.test.images)
    assert data.mean == pytest.approx([float(data.train.images.double().mean())])


def test_random_labels_are_balanced_and_then_made_noisy():
    plain, random, noisy = (
        load_data("digits", samples_per_class=90, **more)
        for more in ({}, {"random_labels": True}, {"random_labels": True, "label_noise": 0.2})
    )
    assert random.train.labels.bincount().tolist() == [90] * 10
    assert 0.02 < float((plain.train.labels == random.train.labels).double().mean()) < 0.2
    assert int((random.train.labels != noisy.train.labels).sum()) == 180


def test_the_changes_are_a_function_of_the_seed():
    first, again, other = (load_data("digits", **CHANGES, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.train.images, again.train.images)
    assert torch.equal(first.train.labels, again.train.labels)
    assert not torch.equal(first.train.images, other.train.images)
    assert not torch.equal(first.train.labels, other.train.labels)


def test_the_samples_kept_are_images_with_their_own_labels():
    plain, data = load_data("digits"), load_data("digits", samples_per_class=5)
    places = [int((plain.train.images == image).flatten(1).all(1).nonzero()[0]) for image in data.train.images]
    assert places == sorted(places)
    assert torch.equal(plain.train.labels[places], data.train.labels)


def test_too_few_samples_of_a_class_are_named():
    with pytest.raises(InputError, match=r"samples_per_class of at most 13\d, the training samples of class '8'"):
        load_data("digits", samples_per_class=500)


def test_noise_that_empties_a_class_is_an_error(greys):
    one_of_each = {"samples_per_class": 1, "label_noise": 0.5}
    with pytest.raises(InputError, match=r"training samples of all 2 classes, got none of [01]"):
        load_data(greys[0], **one_of_each)


def numbered(count: int) -> Split:
    numbers = torch.arange(count)
    return Split((numbers % 256).to(torch.uint8).view(-1, 1, 1, 1), numbers)


def numbers(batches) -> list[list[int]]:
    seen = list(batches)
    assert all(torch.equal(images[:, 0, 0, 0].long(), labels % 256) for images, labels in seen)
    return [labels.tolist() for _, labels in seen]


def flat(batches) -> list[int]:
    return list(itertools.chain.from_iterable(batches))


@given(st.integers(0, 60), st.integers(2, 20), st.integers(1, 4))
def test_in_order_every_sample_comes_once_over_all_processes(count, size, world):
    shares = [Batches(numbered(count), size, rank=rank, world=world) for rank in range(world)]
    seen = [numbers(share) for share in shares]
    assert [len(share) for share in shares] == [len(batches) for batches in seen]
    assert all(batch for batches in seen for batch in batches)
    for step in range(len(seen[0])):
        union = sorted(number for batches in seen for batch in batches[step : step + 1] for number in batch)
        assert union == list(range(step * size, min((step + 1) * size, count)))
    if world == 1:
        assert flat(seen[0]) == list(range(count))


@given(st.integers(2, 80), st.integers(2, 24), st.integers(1, 4), st.integers(0, 3), st.integers(0, 3))
def test_shuffled_batches_share_every_sample_among_the_processes(count, size, world, seed, epoch):
    least = 2 * world
    if min(count, size) < least:
        with pytest.raises(InputError, match=f"at least {least} samples in a training batch, 2 for each of {world}"):
            Batches(numbered(count), size, shuffle_seed=seed, world=world)
        return
    shares = [Batches(numbered(count), size, shuffle_seed=seed, rank=rank, world=world) for rank in range(world)]
    for share in shares:
        share.set_epoch(epoch)
    seen = [numbers(share) for share in shares]
    assert {len(share) for share in shares} == {len(batches) for batches in seen} == {len(seen[0])}
    assert min(len(batch) for batches in seen for batch in batches) >= 2
    assert sorted(number for batches in seen for batch in batches for number in batch) == list(range(count))
    sizes = [sum(len(batches[step]) for batches in seen) for step in range(len(seen[0]))]
    assert sizes[:-1] == [size] * (len(sizes) - 1)
    assert sizes[-1] < size + least
    whole = Batches(numbered(count), size, shuffle_seed=seed)
    whole.set_epoch(epoch)
    order = flat(numbers(whole))
    place = {number: index for index, number in enumerate(order)}
    for step in range(len(sizes)):  # the batches are those of one process
        together = sorted(place[number] for batches in seen for number in batches[step])
        assert together == list(range(step * size, step * size + sizes[step]))


def test_the_order_is_a_function_of_seed_and_epoch_alone():
    def order(seed, epoch):
        batches = Batches(numbered(50), 8, shuffle_seed=seed)
        batches.set_epoch(epoch)
        return numbers(batches)

    orders = [str(order(seed, epoch)) for seed in range(4) for epoch in range(4)]
    assert len(set(orders)) == 16
    batches = Batches(numbered(50), 8, shuffle_seed=1)
    torch.manual_seed(5)
    assert numbers(batches) == numbers(batches) == order(1, 0)
    assert torch.initial_seed() == 5
    assert not torch.equal(torch.tensor(flat(order(0, 0))), torch.arange(50))


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize("skip", [0, 1, 3, 4, 9])
def test_skip_begins_the_next_pass_later(seed, skip):
    batches = Batches(numbered(31), 8, shuffle_seed=seed)
    full = numbers(batches)
    batches.skip = skip
    assert len(batches) == len(full) == 4
    assert numbers(batches) == full[skip:]
    assert batches.skip == 0
    assert numbers(batches) == full


def test_batches_in_order_are_views_on_the_cpu():
    split = numbered(10)
    images, labels = next(iter(Batches(split, 4, device="cpu")))
    assert images.data_ptr() == split.images.data_ptr()
    assert labels.data_ptr() == split.labels.data_ptr()


@pytest.mark.parametrize(("free", "moved"), [(10 * 9 * 2 + 1, True), (10 * 9 * 2, False)])
def test_a_cuda_device_holds_what_takes_less_than_half_of_its_memory(monkeypatch, free, moved):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**9))
    assert module._fits(numbered(10), torch.device("cuda")) is moved


def test_batches_that_do_not_fit_are_cut_on_the_cpu_and_pinned(monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10, 10))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    assert numbers(Batches(numbered(6), 3, device="cuda")) == [[0, 1, 2], [3, 4, 5]]
    assert len(pinned) == 4


class OnDevice:
    """A tensor of ten samples on a CUDA device, as far as batches look at it before they are cut."""

    device, nbytes = torch.device("cuda:0"), 10**9

    def __len__(self):
        return 10

    def to(self, device):
        return self


def test_a_split_that_is_on_the_device_already_is_not_pinned(monkeypatch):
    """That of the training is measured too, when less memory is free than it has taken."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10, 10))
    split = Split(OnDevice(), OnDevice())
    batches = Batches(split, 3, device="cuda")
    assert not batches._pinned
    assert batches.split.images is split.images


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_device_holds_the_split():
    on_device = Batches(numbered(50), 8, shuffle_seed=0, device="cuda")
    assert on_device.split.images.is_cuda
    assert numbers(on_device) == numbers(Batches(numbered(50), 8, shuffle_seed=0))


def test_data_knows_its_shape():
    split = Split(torch.zeros(4, 1, 5, 6, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]))
    data = Data(split, split, ("a", "b"), (0.0,), (1.0,), 3)
    assert (data.num_classes, data.image_shape) == (2, (3, 5, 6))


@pytest.mark.parametrize(
    "values",
    [
        {"name": None},
        {"name": Path("digits")},
        {"channels": 2},
        {"label_noise": 2},
        {"label_noise": float("nan")},
        {"seed": -1},
        {"seed": "a", "random_labels": True},
        {"random_labels": "no"},
        {"samples_per_class": "3"},
        {"samples_per_class": 0},
        {"image_size": -1},
        {"image_size": 8.5},
        {"imbalance": 3},
    ],
)
def test_wrong_values_are_refused_in_one_line(values):
    with pytest.raises(InputError, match=r"^expected "):
        load_data(**{"name": "digits"} | values)
