"""What the orthoplex and the softmax code have for themselves; what all layers share is in test_invariants.py."""

import pytest
import torch

import neuralcollapse as nc
from neuralcollapse.errors import RenamedWarning


def test_classes_of_an_orthoplex_come_in_opposite_pairs_and_no_matrix_is_stored():
    layer = nc.OrthoplexClassifier(6, 10, rotation="fast", seed=3)
    assert float((layer.weight[0::2] + layer.weight[1::2]).abs().max()) < 1e-6
    assert max(value.numel() for value in layer.buffers()) == 12


def test_a_code_stores_its_rows():
    assert nc.SoftmaxCodeClassifier(3, 10, steps=20).state_dict()["rows"].shape == (10, 3)


def test_the_code_classifier_has_its_old_name_with_a_note():
    with pytest.warns(RenamedWarning, match="^CodeClassifier is now called SoftmaxCodeClassifier; "):
        assert nc.CodeClassifier is nc.SoftmaxCodeClassifier
    assert "CodeClassifier" not in nc.__all__


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: nc.OrthoplexClassifier(4, 9), "at most 2d = 8 classes .*got K=9: use a softmax code"),
        (lambda: nc.OrthoplexClassifier(4, 1), "num_classes"),
        (lambda: nc.OrthoplexClassifier(4, 6, rotation="nearest"), "rotation 'none' or 'fast', got 'nearest'"),
        (lambda: nc.SoftmaxCodeClassifier(4, 9, rotation="fast"), "rotation 'none', got 'fast'"),
        (lambda: nc.SoftmaxCodeClassifier(4, 9, scale=-1), "scale to be positive"),
        (lambda: nc.SoftmaxCodeClassifier(1, 9), "dim to be an integer of at least 2"),
        (lambda: nc.SoftmaxCodeClassifier(3, 10, steps=2)(torch.ones(2, 4)), r"features of dimension 3, got \(2, 4\)"),
    ],
)
def test_what_cannot_be_is_refused(build, message):
    with pytest.raises(nc.InputError, match=message):
        build()
