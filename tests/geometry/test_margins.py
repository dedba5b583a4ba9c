"""One-vs-rest margins: exact values, SciPy's non-negative least squares, and bounds that meet."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import lsq_linear

import neuralcollapse as nc
from neuralcollapse.geometry import margins as module
from neuralcollapse.geometry.margins import one_vs_rest_margins


def by_nnls(rows, k):
    """min |R'u|^2 + (1 - 1'u)^2 over u >= 0 with R the rows w_j - w_k, and the length of R'u / sum u.

    Not by SciPy's `nnls`: that of 1.15, the last for Python 3.10, misses the minimum in one case of ten here.
    """
    unit = torch.nn.functional.normalize(rows.double(), dim=1).numpy()
    differences = np.delete(unit, k, 0) - unit[k]
    given = np.vstack([differences.T, np.ones(len(differences))]), np.eye(len(differences[0]) + 1)[-1]
    weights = lsq_linear(*given, bounds=(0, np.inf), method="bvls", tol=1e-15).x
    return float(np.linalg.norm(differences.T @ (weights / weights.sum())))


def normal(count, dim, seed=0):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(found, tolerance=1e-9):
    """The bounds meet: what was found is the margin, whatever the method."""
    assert bool((found.lower <= found.rho + 1e-12).all())
    assert bool((found.rho - found.lower <= tolerance).all())
    return found


@pytest.mark.parametrize(("count", "dim"), [(2, 1), (2, 5), (3, 2), (4, 3), (10, 9), (10, 30), (200, 199)])
def test_a_simplex(count, dim):
    etf = nc.simplex_etf(count, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = close(one_vs_rest_margins(3 * etf))
    assert found.rho.tolist() == pytest.approx([count / (count - 1)] * count, abs=1e-9)


@pytest.mark.parametrize("dim", [2, 3, 8, 40])
def test_an_orthoplex(dim):
    found = close(one_vs_rest_margins(nc.orthoplex(2 * dim, dim, dtype=torch.float64)))
    assert found.rho.tolist() == pytest.approx([1] * 2 * dim, abs=1e-9)


@pytest.mark.parametrize("axes", [4, 5, 7])
def test_part_of_an_orthoplex(axes):
    """All axes one way and some both ways: d+2 <= K <= 2d."""
    rows = torch.cat([torch.eye(7), -torch.eye(7)[:axes]]).double()
    found = close(one_vs_rest_margins(rows))
    assert float(found.rho.min()) == pytest.approx(1, abs=1e-9)
    assert found.rho.tolist() == pytest.approx([by_nnls(rows, k) for k in range(len(rows))], abs=1e-9)


@pytest.mark.parametrize("count", [3, 4, 5, 12, 100, 1_000])
def test_points_on_a_circle(count):
    found = close(one_vs_rest_margins(nc.softmax_code(count, 2, dtype=torch.float64)))
    assert found.rho.tolist() == pytest.approx([1 - math.cos(2 * math.pi / count)] * count, abs=1e-9)


@pytest.mark.parametrize(("count", "dim"), [(2, 3), (5, 8), (12, 12), (13, 12), (14, 12), (60, 4), (40, 39), (80, 20)])
@pytest.mark.parametrize("seed", [0, 1])
def test_random_rows_agree_with_non_negative_least_squares(count, dim, seed):
    rows = normal(count, dim, seed)
    found = close(one_vs_rest_margins(rows))
    assert found.rho.tolist() == pytest.approx([by_nnls(rows, k) for k in range(count)], abs=1e-9)


def test_rows_near_a_simplex_and_rows_close_together():
    etf = nc.simplex_etf(40, 60, dtype=torch.float64)
    for rows in (etf + 1e-3 * normal(40, 60), 1 + 1e-4 * normal(40, 60), 1 + 1e-3 * normal(40, 6)):
        found = close(one_vs_rest_margins(rows))
        assert found.rho.tolist() == pytest.approx([by_nnls(rows, k) for k in range(40)], abs=1e-9)


def test_shortlists_of_many_rows_give_the_same(monkeypatch):
    rows = normal(150, 6)
    whole = one_vs_rest_margins(rows)
    monkeypatch.setattr(module, "_WHOLE", 10)
    monkeypatch.setattr(module, "_NEAREST", 5)
    monkeypatch.setattr(module, "_BEYOND", 3)
    monkeypatch.setattr(module, "_BATCH", 40)
    found = close(one_vs_rest_margins(rows))
    assert found.rho.tolist() == pytest.approx(whole.rho.tolist(), abs=1e-9)


def test_some_classes_against_all_rows():
    rows = normal(30, 5)
    some = one_vs_rest_margins(rows, [7, 2])
    assert some.classes.tolist() == [2, 7]
    assert some.rho.tolist() == one_vs_rest_margins(rows).rho[[2, 7]].tolist()


@pytest.mark.parametrize("dim", [3, 30])
def test_rows_that_coincide_have_no_margin(dim):
    rows = normal(10, dim)
    rows[4] = 2 * rows[1]
    found = close(one_vs_rest_margins(rows))
    assert found.rho[[1, 4]].tolist() == pytest.approx([0, 0], abs=1e-12)
    assert float(found.rho[0]) == pytest.approx(by_nnls(rows, 0), abs=1e-9)


def test_a_margin_is_what_a_feature_attains():
    """No unit vector does better than rho (tried from many starts), and rows in half precision are measured too."""
    rows = torch.nn.functional.normalize(normal(8, 3), dim=1)
    rho = one_vs_rest_margins(rows.to(torch.bfloat16)).rho
    exact = one_vs_rest_margins(rows).rho
    torch.testing.assert_close(rho, exact, atol=0.05, rtol=0)
    tried = torch.nn.functional.normalize(normal(20_000, 3, seed=3), dim=1)
    for k in range(8):
        others = torch.cat([rows[:k], rows[k + 1 :]])
        best = float((tried @ (rows[k] - others).T).min(1).values.max())
        assert exact[k] - 0.05 < best <= exact[k] + 1e-12


def test_wrong_input_is_refused():
    with pytest.raises(nc.InputError, match="one class"):
        one_vs_rest_margins(torch.ones(1, 3))
    with pytest.raises(nc.InputError, match="zero length"):
        one_vs_rest_margins(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
    with pytest.raises(nc.InputError, match="expected classes from 0"):
        one_vs_rest_margins(torch.eye(3), [3])
