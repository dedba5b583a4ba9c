import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neuralcollapse import InputError
from neuralcollapse.data.label_changes import (
    choose_per_class,
    imbalance,
    imbalanced_counts,
    label_noise,
    random_labels,
    samples_per_class,
)

NAMES = ("ant", "bee", "cat")


def mixed(*sizes):
    """Labels of so many samples of each class, in a fixed random order."""
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=5), st.data())
def test_kept_takes_so_many_of_each_class_in_the_original_order(sizes, data):
    counts = data.draw(st.lists(st.integers(0, 12), min_size=len(sizes), max_size=len(sizes)))
    labels = mixed(*sizes)
    chosen = choose_per_class(labels, counts, seed=0).tolist()
    assert chosen == sorted(set(chosen))
    got = Counter(labels[chosen].tolist()) if chosen else Counter()
    assert [got[label] for label in range(len(sizes))] == [min(*pair) for pair in zip(sizes, counts, strict=True)]


def test_kept_is_a_function_of_the_seed_and_the_purpose():
    labels = mixed(40, 40, 40)
    first = choose_per_class(labels, [10] * 3, 0)
    assert torch.equal(first, choose_per_class(labels, [10] * 3, 0))
    assert not torch.equal(first, choose_per_class(labels, [10] * 3, 1))
    assert not torch.equal(first, choose_per_class(labels, [10] * 3, 0, "imbalance"))


def test_a_smaller_subset_lies_in_a_larger_one():
    labels = mixed(40, 40, 40)
    assert set(choose_per_class(labels, [3, 5, 7], 0).tolist()) < set(choose_per_class(labels, [10] * 3, 0).tolist())


def test_every_sample_is_as_likely_to_be_kept():
    labels = mixed(6, 6)
    hits = torch.zeros(12)
    for seed in range(600):
        hits[choose_per_class(labels, [2, 3], seed)] += 1
    expected = torch.where(labels == 0, 200.0, 300.0)
    assert (hits - expected).abs().max() < 5 * math.sqrt(150)  # five standard deviations of the binomial


def test_samples_per_class_names_the_class_with_too_few():
    labels = mixed(9, 4, 8)
    assert labels[samples_per_class(labels, 4, NAMES, 0)].bincount().tolist() == [4, 4, 4]
    with pytest.raises(InputError, match=r"samples_per_class of at most 4, the training samples of class 'bee', got 5"):
        samples_per_class(labels, 5, NAMES, 0)


@given(st.floats(1, 1e6), st.integers(1, 5000), st.integers(1, 100))
def test_imbalanced_counts_follow_their_formulas(ratio, largest, num_classes):
    exponential = imbalanced_counts("exponential", ratio, largest, num_classes)
    step = imbalanced_counts("step", ratio, largest, num_classes)
    for k in range(num_classes):
        size = largest * ratio ** (-k / (num_classes - 1)) if num_classes > 1 else largest
        assert abs(exponential[k] - max(size, 1)) <= 0.5 + 1e-9 * size
        wanted = largest if k < math.ceil(num_classes / 2) else max(round(largest / ratio), 1)
        assert step[k] == wanted
    assert exponential == sorted(exponential, reverse=True)
    assert exponential[0] == step[0] == largest
    assert min(exponential + step) >= 1


def test_imbalance_starts_from_the_smallest_class():
    labels = mixed(30, 20, 25)
    assert labels[imbalance(labels, "exponential:100", 3, 0)].bincount().tolist() == [20, 2, 1]
    assert labels[imbalance(labels, "step:4", 3, 0)].bincount().tolist() == [20, 20, 5]
    assert labels[imbalance(labels, "step:1", 3, 0)].bincount().tolist() == [20, 20, 20]


@pytest.mark.parametrize(
    "text", ["", "step", "step:", "step:x", "step:0.5", "step:-2", "step:inf", "step:nan", "linear:2", "exponential:0"]
)
def test_a_wrong_imbalance_shows_the_two_spellings(text):
    with pytest.raises(InputError, match=r"'exponential:R' or 'step:R' with a number R of at least 1, got ") as caught:
        imbalance(mixed(5, 5), text, 2, 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("count", "num_classes"), [(0, 3), (2, 3), (9, 3), (10, 3), (100, 7)])
def test_random_labels_are_balanced(count, num_classes):
    sizes = random_labels(count, num_classes, 0).bincount(minlength=num_classes)
    assert sizes.sum() == count
    assert {int(sizes.min()), int(sizes.max())} <= {count // num_classes, math.ceil(count / num_classes)}


def test_random_labels_depend_on_the_seed_and_on_nothing_else():
    first = random_labels(4000, 4, 0)
    assert torch.equal(first, random_labels(4000, 4, 0))
    assert not torch.equal(first, random_labels(4000, 4, 1))
    true = torch.arange(4000) % 4
    table = (4 * true + first).bincount(minlength=16)
    assert (table - 250).abs().max() < 5 * math.sqrt(250)  # independent of the true labels


@given(st.integers(0, 60), st.floats(0, 1), st.integers(2, 5), st.integers(0, 2**32 - 1))
def test_label_noise_changes_exactly_its_share_to_other_classes(count, share, num_classes, seed):
    labels = torch.arange(count) % num_classes
    before = labels.clone()
    noisy = label_noise(labels, share, num_classes, seed)
    assert torch.equal(labels, before)
    assert int((noisy != labels).sum()) == round(share * count)
    assert count == 0 or (noisy.min() >= 0 and noisy.max() < num_classes)


def test_label_noise_is_uniform_over_the_other_classes_and_seeded():
    labels = torch.zeros(3000, dtype=torch.int64)
    noisy = label_noise(labels, 1.0, 4, 0)
    assert (noisy.bincount(minlength=4)[1:] - 1000).abs().max() < 5 * math.sqrt(1000)
    assert torch.equal(noisy, label_noise(labels, 1.0, 4, 0))
    assert not torch.equal(noisy, label_noise(labels, 1.0, 4, 1))
    less = label_noise(labels, 0.2, 4, 0)
    assert torch.equal(less[less != 0], noisy[less != 0])  # less noise lies in more


def test_label_noise_needs_another_class():
    with pytest.raises(InputError, match="at least two classes"):
        label_noise(torch.zeros(3, dtype=torch.int64), 0.5, 1, 0)
