import pytest
import torch
from torch import nn

import neuralcollapse as nc


@pytest.mark.parametrize(("classifier", "kind"), [("learned", nn.Linear), ("etf", nc.ETFClassifier)])
def test_the_mlp_has_its_classifier_at_fc(classifier, kind):
    network = nc.build_network("mlp", 5, 12, classifier, in_features=9, width=7, depth=2)
    assert isinstance(network.fc, kind)
    assert network.fc.weight.shape == (5, 12)
    assert network(torch.randn(4, 1, 3, 3)).shape == (4, 5)


def test_the_fixed_classifier_saves_exactly_the_weight():
    def trainable(classifier: str) -> int:
        network = nc.build_network("mlp", 10, 32, classifier)
        return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)

    assert trainable("learned") - trainable("etf") == 10 * 32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mpl", 10), "'mpl'.*did you mean 'mlp'"),
        (("mlp", 10, 8, "fixed"), "'learned' or 'etf'"),
        (("mlp", 10, 8, "etf"), "d >= K-1 = 9.*d=8"),
    ],
)
def test_what_cannot_be_built_says_why(arguments, message):
    with pytest.raises(nc.InputError, match=message):
        nc.build_network(*arguments)
