"""Exact spherical codes: unit rows that have the inner products of the literature and no others."""

import math

import pytest
import torch

from neuralcollapse.geometry import sharp_codes

# The inner products of two different rows (Cohn and Kumar 2007, table 1; root systems).
PRODUCTS = {
    (12, 3): (-1, -1 / math.sqrt(5), 1 / math.sqrt(5)),
    (24, 4): (-1, -1 / 2, 0, 1 / 2),
    (120, 4): (-1, *(math.cos(math.pi * k / 5) for k in range(1, 5)), -1 / 2, 0, 1 / 2),
    (10, 4): (-2 / 3, 1 / 6),
    (16, 5): (-3 / 5, 1 / 5),
    (40, 5): (-1, -1 / 2, 0, 1 / 2),
    (27, 6): (-1 / 2, 1 / 4),
    (72, 6): (-1, -1 / 2, 0, 1 / 2),
    (56, 7): (-1, -1 / 3, 1 / 3),
    (126, 7): (-1, -1 / 2, 0, 1 / 2),
    (240, 8): (-1, -1 / 2, 0, 1 / 2),
    (112, 21): (-1 / 3, 1 / 9),
    (162, 21): (-2 / 7, 1 / 7),
    (100, 22): (-4 / 11, 1 / 11),
    (275, 22): (-1 / 4, 1 / 6),
    (891, 22): (-1 / 2, -1 / 8, 1 / 4),
    (552, 23): (-1, -1 / 5, 1 / 5),
    (4600, 23): (-1, -1 / 3, 0, 1 / 3),
    (196560, 24): (-1, -1 / 2, -1 / 4, 0, 1 / 4, 1 / 2),
}


def test_every_code_is_tested():
    assert set(PRODUCTS) == set(sharp_codes._CODES)
    assert sharp_codes.known_codes(4) == [10, 24, 120]
    assert sharp_codes.known_codes(9) == []


@pytest.mark.parametrize(("count", "dim"), PRODUCTS)
def test_the_inner_products_are_those_of_the_literature(count, dim):
    rows = sharp_codes.sharp_code(count, dim)
    assert rows.shape == (count, dim)
    assert rows.dtype == torch.float64
    some = torch.arange(count) if count < 1000 else torch.arange(0, count, count // 13)
    found = rows[some] @ rows.T
    assert torch.allclose(found[torch.arange(len(some)), some], torch.ones(len(some), dtype=torch.float64), atol=1e-12)
    found[torch.arange(len(some)), some] = PRODUCTS[count, dim][0]
    expected = torch.tensor(sorted(PRODUCTS[count, dim]), dtype=torch.float64)
    distances = torch.stack([(found - value).abs().flatten() for value in expected])
    assert float(distances.amin(0).max()) < 1e-12
    assert float(distances.amin(1).max()) < 1e-12  # each of them occurs
    assert float(rows.sum(0).abs().max()) < 1e-12 * count
    assert torch.allclose(rows.T @ rows * dim / count, torch.eye(dim, dtype=torch.float64), atol=1e-10)  # a tight frame
