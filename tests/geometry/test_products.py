"""Sums of products of rows, by blocks of columns."""

import pytest
import torch

from neuralcollapse.geometry.products import add_gram


@pytest.mark.parametrize("dim", [1, 127, 513, 2049])  # one block, several, and more than four
def test_the_upper_triangle_has_every_block(dim):
    rows = torch.randn(3, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    upper = torch.ones(dim, dim, dtype=torch.float64)
    add_gram(upper, rows, -1)
    torch.testing.assert_close(upper.triu(), (1 - rows.T @ rows).triu())
