import pytest
import torch

from neuralcollapse import InputError
from neuralcollapse.training.data import Batches, Split, load_data


def test_digits_are_split_in_a_fixed_stratified_way():
    first, second = load_data("digits"), load_data("digits")
    assert first.num_classes == 10
    assert (len(first.train.labels), len(first.test.labels)) == (1437, 360)
    assert torch.equal(first.train.images, second.train.images)
    assert first.train.images.shape[1:] == (1, 8, 8)
    assert first.test.labels.bincount().min() >= 34
    assert abs(float(first.train.images.mean())) < 1e-5


def test_an_unknown_data_set_gets_the_nearest_name():
    with pytest.raises(InputError, match=r"'digit'.*did you mean 'digits'"):
        load_data("digit")


def numbered(count: int) -> Split:
    return Split(torch.arange(count, dtype=torch.float32)[:, None], torch.arange(count))


@pytest.mark.parametrize("count", [1, 5, 6, 7, 12, 13])
def test_every_sample_comes_once_and_in_order(count):
    batches = Batches(numbered(count), 6)
    seen = list(batches)
    assert len(seen) == len(batches)
    assert torch.cat([labels for _, labels in seen]).tolist() == list(range(count))


@pytest.mark.parametrize("count", [2, 7, 12, 13])
def test_shuffled_batches_hold_every_sample_once_and_none_alone(count):
    batches = Batches(numbered(count), 6, torch.Generator().manual_seed(0))
    first, second = list(batches), list(batches)
    assert len(first) == len(batches)
    assert min(len(labels) for _, labels in first) > 1
    assert sorted(torch.cat([labels for _, labels in first]).tolist()) == list(range(count))
    assert all(torch.equal(images[:, 0].long(), labels) for images, labels in first)
    if count > 6:
        assert [labels.tolist() for _, labels in first] != [labels.tolist() for _, labels in second]
