"""Softmax codes: unit rows as far apart as the best known, in any number of parts."""

import math

import pytest
import torch

import neuralcollapse as nc
from neuralcollapse.geometry import code_search
from neuralcollapse.geometry import softmax_code as formulas
from neuralcollapse.geometry.code_search import search


def largest_cosine(rows):
    cosines = (rows.double() @ rows.double().T).fill_diagonal_(-2)
    return float(cosines.max())


def spread(num_classes, dim, **options):
    return nc.softmax_code(num_classes, dim, dtype=torch.float64, **options)


def degrees(cosine):
    return math.degrees(math.acos(cosine))


@pytest.mark.parametrize(
    ("num_classes", "dim", "best", "near"),
    [
        (5, 2, math.cos(2 * math.pi / 5), 1e-12),  # the regular polygon
        (50, 2, math.cos(2 * math.pi / 50), 1e-12),
        (4, 3, -1 / 3, 2e-3),  # the simplex
        (6, 3, 0.0, 2e-3),  # the orthoplex
        (12, 3, 1 / math.sqrt(5), 1e-3),  # the icosahedron
        (24, 3, 0.7230, 2e-3),  # the snub cube, the best known
        (16, 15, -1 / 15, 2e-3),
        (32, 16, 0.0, 2e-2),
    ],
)
def test_known_best_codes_are_reached(num_classes, dim, best, near):
    for steps in (None, 300):
        rows = spread(num_classes, dim, steps=steps)
        assert rows.shape == (num_classes, dim)
        assert torch.allclose(rows.norm(dim=1), torch.ones(num_classes, dtype=torch.float64), atol=1e-12)
        assert best - 1e-9 <= largest_cosine(rows) <= best + near


@pytest.mark.parametrize(
    ("num_classes", "dim", "best"),
    [
        (7, 3, 77.8695),
        (9, 3, 70.5288),
        (13, 3, 57.1367),
        (11, 4, 76.6791),
        (24, 4, 60.0),
        (56, 7, degrees(1 / 3)),
        (72, 6, 60.0),
        (126, 7, 60.0),
        (240, 8, 60.0),
        (100, 22, degrees(1 / 11)),
        (162, 21, degrees(1 / 7)),
    ],
)
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_by_default_the_best_known_angle_is_reached_to_a_tenth_of_a_degree(num_classes, dim, best, seed):
    angle = degrees(largest_cosine(spread(num_classes, dim, seed=seed)))
    assert best - 0.1 < angle < best + 1e-4


@pytest.mark.parametrize(("num_classes", "dim", "best"), [(16, 5, 1 / 5), (56, 7, 1 / 3), (240, 8, 1 / 2)])
def test_the_search_finds_exact_codes_by_itself(num_classes, dim, best):
    rows = search(num_classes, dim, torch.Generator().manual_seed(0))
    assert best - 1e-9 <= largest_cosine(rows) <= best + 1e-3


@pytest.mark.slow
def test_the_default_is_rotated_by_the_seed_and_no_worse_than_part_of_a_larger_exact_code():
    for num_classes, dim in ((4, 4), (8, 4), (24, 4)):
        one, same, other = (spread(num_classes, dim, seed=seed) for seed in (1, 1, 2))
        assert torch.equal(one, same)
        assert not torch.allclose(one, other, atol=0.1)
        assert torch.allclose(one @ one.T, other @ other.T, atol=1e-12)
    assert largest_cosine(spread(71, 6)) <= 0.5 + 1e-12  # the search alone ends above 0.52


def test_a_search_of_many_classes_does_fewer_iterations_of_one_start(monkeypatch):
    done = []
    monkeypatch.setattr(code_search, "_minimised", lambda rows, _, iterations: done.append(iterations) or rows)
    code_search.search(1900, 100, torch.Generator())
    assert done == [20] * 6
    done.clear()
    code_search.search(9, 3, torch.Generator())
    assert len([most for most in done if most == 400]) == 18


def test_a_search_leaves_the_number_of_threads_as_it_was(monkeypatch):
    used, before = [], torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        monkeypatch.setattr(code_search, "_minimised", lambda rows, *_: used.append(torch.get_num_threads()) or rows)
        code_search.search(9, 3, torch.Generator())
        assert set(used) == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_soft_maximum_has_its_gradient():
    torch.manual_seed(0)
    vectors = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    rows = nn_unit(vectors)
    cosines = (rows @ rows.T).masked_fill(torch.eye(6, dtype=torch.bool), -math.inf)
    expected = 0.2 * (cosines / 0.2).flatten().logsumexp(0)
    expected.backward()
    value, gradient = code_search.soft_maximum(vectors.detach(), 0.2)
    assert value == pytest.approx(float(expected.detach()), rel=1e-12)
    assert torch.allclose(gradient, vectors.grad, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(("num_classes", "dim"), [(100, 16), (300, 64), (2_000, 128)])
def test_a_code_is_between_the_bound_and_far_below_random_rows(num_classes, dim):
    steps = 300 if num_classes < 1_000 else 15
    found = largest_cosine(nc.softmax_code(num_classes, dim, steps=steps))
    random = torch.randn(num_classes, dim, generator=torch.Generator().manual_seed(0))
    assert -1 / (num_classes - 1) < found < 0.6 * largest_cosine(nn_unit(random))
    if num_classes > 2 * dim:
        assert found > 0  # Rankin: no K > 2d vectors have a largest cosine of 0


def test_a_long_descent_lets_no_two_rows_coincide():
    """A mean over rows of their own soft largest cosines does, from this seed."""
    assert largest_cosine(spread(240, 8, seed=2, steps=1000)) < 0.6


def nn_unit(rows):
    return torch.nn.functional.normalize(rows, dim=1)


def test_the_same_seed_gives_the_same_code_and_leaves_the_global_state_alone():
    state = torch.get_rng_state()
    one, same, other = (spread(9, 4, seed=seed, steps=20) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.allclose(one, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_push_is_the_gradient_by_shares_in_any_number_of_parts(monkeypatch):
    torch.manual_seed(0)
    rows = nn_unit(torch.randn(11, 4, dtype=torch.float64)).requires_grad_()
    cosines = (rows @ rows.T).masked_fill(torch.eye(11, dtype=torch.bool), -math.inf)
    (0.3 * (cosines / 0.3).flatten().logsumexp(0)).backward()
    shares = (cosines / 0.3).flatten().softmax(0).view(11, 11).sum(1, keepdim=True)
    expected = rows.grad / (2 * shares)  # each pair is in the sum twice
    for held in (2**24, 30, 1):
        monkeypatch.setattr("neuralcollapse.geometry.softmax_code._COSINES", held)
        assert torch.allclose(formulas._push(rows.detach(), 0.3), expected, rtol=1e-12)


def test_types_and_no_steps():
    assert nc.softmax_code(7, 3, steps=3).dtype == torch.float32
    assert nc.softmax_code(7, 3, steps=3, dtype=torch.bfloat16).dtype == torch.bfloat16
    assert spread(7, 3, steps=0).shape == (7, 3)
    assert spread(7, 3, steps=1).isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((1, 3), {}, "num_classes to be an integer of at least 2"),
        ((4, 1), {}, "dim to be an integer of at least 2"),
        ((4, 3), {"steps": -1}, "steps to be an integer of at least 0"),
        ((4, 3), {"dtype": torch.int64}, "floating-point dtype"),
    ],
)
def test_codes_that_cannot_be_are_refused(arguments, options, message):
    with pytest.raises(nc.InputError, match=message):
        nc.softmax_code(*arguments, **options)


@pytest.mark.parametrize("tile", [1024, 4])
def test_coherence_is_the_largest_cosine(monkeypatch, tile):
    monkeypatch.setattr("neuralcollapse.geometry.matrix._TILE", tile)
    torch.manual_seed(0)
    rows = torch.randn(13, 5)
    assert nc.coherence(rows) == pytest.approx(largest_cosine(nn_unit(rows.double())), rel=1e-12)
    assert nc.coherence(nc.simplex_etf(6, dtype=torch.float64)) == pytest.approx(-0.2)
    assert nc.coherence(nc.orthoplex(6, 3)) == 0
    for wrong in (rows[:1], torch.zeros(3, 2)):
        with pytest.raises(nc.InputError, match="at least two rows, none of zero length"):
            nc.coherence(wrong)
