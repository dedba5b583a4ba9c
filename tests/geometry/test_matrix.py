"""BlockedMatrix gives float64 blocks of vectors as they are stored, and the products of all of them."""

import pytest
import torch

from neuralcollapse.errors import Undefined
from neuralcollapse.geometry.matrix import BlockedMatrix, between_directions, inverse_gram, quadratic_forms


@pytest.fixture
def parts():
    torch.manual_seed(0)
    vectors = torch.randn(23, 5)
    return vectors, torch.tensor([1, 2, 5, 9, 11, 12, 17, 20, 22]), torch.randn(5, dtype=torch.float64)


@pytest.mark.parametrize("tile", [4, 1024])
@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("shifted", [False, True])
def test_blocks_and_products_are_those_of_the_rows_that_are_meant(parts, monkeypatch, tile, indexed, shifted):
    monkeypatch.setattr("neuralcollapse.geometry.matrix._TILE", tile)
    vectors, index, shift = parts
    rows = BlockedMatrix(vectors, index if indexed else None, shift if shifted else None)
    expected = (vectors[index] if indexed else vectors).double() - (shift if shifted else 0)
    assert (rows.count, rows.dim) == tuple(expected.shape)
    assert torch.equal(rows.block(slice(None)), expected)
    assert torch.equal(rows.block(slice(2, 6)), expected[2:6])
    assert torch.equal(rows.block(torch.tensor([3, 0])), expected[[3, 0]])
    assert torch.allclose(rows.gram, expected.T @ expected, rtol=1e-13)
    assert torch.allclose(rows.norms, expected.norm(dim=1), rtol=1e-13)
    assert rows.largest == float(expected.abs().max())
    unit = rows.unit(slice(1, 4))
    assert torch.allclose(unit, expected[1:4] / expected[1:4].norm(dim=1, keepdim=True), rtol=1e-13)
    before = vectors.clone()
    rows.unit(slice(None))
    assert torch.equal(vectors, before)  # made at length one elsewhere


def test_a_row_of_rounding_has_no_direction():
    rows = BlockedMatrix(torch.tensor([[1.0, 0], [1e-9, 0]]), rounding=1e-6)
    assert rows.norms.tolist() == [1, 0]
    with pytest.raises(Undefined, match="number 1"):
        rows.unit(slice(None))


@pytest.mark.parametrize("tile", [3, 8, 1024])
def test_the_triangle_has_the_singular_values_and_right_vectors_of_all_rows(monkeypatch, tile):
    monkeypatch.setattr("neuralcollapse.geometry.matrix._TILE", tile)
    torch.manual_seed(0)
    vectors = torch.randn(29, 6, dtype=torch.float64) @ torch.diag(torch.tensor([1, 1, 1e-3, 1e-6, 1e-9, 0.0]).double())
    upper = BlockedMatrix(vectors).triangle
    assert upper.shape == (6, 6)
    assert torch.allclose(upper.T @ upper, vectors.T @ vectors, rtol=1e-12, atol=1e-15)
    found, expected = torch.linalg.svdvals(upper), torch.linalg.svdvals(vectors)
    assert torch.allclose(found[:5], expected[:5], rtol=1e-6)  # the squares of the last would be lost in a Gram matrix


def test_directions_of_many_narrow_means_come_from_the_triangle(monkeypatch):
    """A spectrum too wide for the Gram matrix: its smallest direction has a share of 1e-12 of the squares."""
    monkeypatch.setattr("neuralcollapse.geometry.matrix._EXACT_SVD", 4)
    torch.manual_seed(0)
    scales = torch.diag(torch.logspace(0, -6, 6, dtype=torch.float64))
    vectors = torch.randn(40, 6, dtype=torch.float64) @ scales
    directions, squares, _ = between_directions(BlockedMatrix(vectors), lambda _, squares: squares < 0)
    _, singular, right = torch.linalg.svd(vectors, full_matrices=False)
    assert torch.allclose(squares.sort(descending=True).values, singular.square(), rtol=1e-8)
    assert torch.allclose((directions.T @ right.T).abs(), torch.eye(6, dtype=torch.float64), atol=1e-7)


@pytest.mark.parametrize("dim", [4, 300, 700])
def test_quadratic_forms_read_the_upper_triangle_alone(dim):
    torch.manual_seed(0)
    upper, vectors = torch.randn(dim, dim, dtype=torch.float64), torch.randn(dim, 3, dtype=torch.float64)
    symmetric = upper.triu() + upper.triu(1).T
    expected = ((symmetric @ vectors) * vectors).sum(0)
    assert torch.allclose(quadratic_forms(upper, vectors), expected, rtol=1e-10)


@pytest.mark.parametrize(("count", "dim"), [(6, 9), (9, 6)])
def test_the_inverse_has_bounds_on_its_eigenvalues(count, dim):
    torch.manual_seed(0)
    counts = torch.arange(1.0, count + 1, dtype=torch.float64)
    vectors = torch.randn(count, dim, dtype=torch.float64)
    matrix = BlockedMatrix(vectors, shift=counts @ vectors / counts.sum())
    rows = matrix.block(slice(None))
    inverse, least, most = inverse_gram(matrix, counts)
    if count > dim:
        assert torch.allclose(inverse, torch.linalg.inv(rows.T @ rows), rtol=1e-9)
    else:
        assert torch.allclose(inverse @ rows, torch.linalg.pinv(rows).T, rtol=1e-9, atol=1e-12)
    values = torch.linalg.svdvals(rows).square()[: min(count - 1, dim)]
    assert 0 < least <= values.min() * (1 + 1e-12)
    assert most >= values.max() * (1 - 1e-12)
    zeros = BlockedMatrix(torch.zeros(count, dim))
    assert not float(inverse_gram(zeros, counts)[1]) > 0


@pytest.mark.parametrize("size", [1e-200, 1.0, 1e200])
def test_lengths_and_directions_of_rows_of_any_size(size):
    rows = size * torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.float64)
    lengths, unit = BlockedMatrix(rows).polar
    assert lengths.tolist() == pytest.approx([5 * size, 0])
    assert torch.allclose(unit, torch.tensor([[0.6, 0.8], [0, 0]], dtype=torch.float64))
