import pytest

from neuralcollapse.ufm.model import Model
from neuralcollapse.ufm.solved import keeps_the_last


def test_the_last_few_models_are_remembered_and_no_more():
    solved = []
    solve = keeps_the_last(lambda model: solved.append(model) or len(solved))
    models = [Model(3, 4, [9, 5, count], 0.01, 0.01) for count in range(1, 10)]
    assert [solve(model) for model in models] == list(range(1, 10))
    assert solve(models[-1]) == 9
    assert solve(models[0]) == 10


@pytest.mark.parametrize(
    "change",
    [
        {"samples_per_class": [9, 5, 3]},
        {"feature_dim": 3},
        {"weight_decay": 0.02},
        {"feature_decay": 0.02},
        {"bias_decay": 0.2},
        {"bias": False},
        {"features": "nonnegative"},
        {"loss": "label_smoothing:0.1"},
    ],
)
def test_whatever_changes_the_minimum_is_another_model(change):
    model = Model(3, 4, [9, 5, 2], 0.01, 0.01, 0.1, loss="label_smoothing:0.2")
    solved = []
    solve = keeps_the_last(lambda model: solved.append(model) or 0)
    solve(model), solve(model.like()), solve(model.like(**change))
    assert len(solved) == 2
