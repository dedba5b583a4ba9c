"""What several test files need alike."""

import torch

import neuralcollapse as nc

# -- heads


def etf_layer(num_classes, dim, **options):
    """A float64 ETFClassifier with a bias that is not zero."""
    torch.manual_seed(0)
    layer = nc.ETFClassifier(dim, num_classes, dtype=torch.float64, **options)
    if layer.bias is not None:
        torch.nn.init.normal_(layer.bias)
    return layer
