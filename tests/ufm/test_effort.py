"""The limit on the work of a certificate: at a small size with the limit lowered, every point still gets its answer."""

import pytest

from neuralcollapse.ufm import UnconstrainedFeatureModel, effort
from neuralcollapse.ufm.effort import FEWEST, Effort, OutOfEffort
from neuralcollapse.ufm.hessian import Hessian
from neuralcollapse.ufm.polish import polish
from neuralcollapse.ufm.units import Units

Model = UnconstrainedFeatureModel
MODEL = Model(30, 32, 2, 0.01, 0.005, 0.01)  # 1,950 variables when collapsed: too many for a dense Hessian


def allow(monkeypatch, products):
    monkeypatch.setattr(effort, "WORK", products * Effort(Units(MODEL).small).product)


def saddle(rank):
    """A critical point of fewer dimensions, whose features leave others free."""
    small = Model(30, rank, 2, 0.01, 0.005, 0.01)
    end = small.minimize(small.random_point(0), escapes=0).point
    point = MODEL.zero_point()
    point.W[:, :rank], point.H[:rank], point.b[:] = end.W, end.H, end.b
    return point


def nearly_the_minimum():
    """So near that the gradient counts as zero, but with a gap that does not."""
    best, noise = MODEL.global_minimizer(), MODEL.random_point(1)
    units = Units(MODEL)
    slope = units.gradient_norm(MODEL.gradient(best + noise * 1e-6)) / 1e-6
    return best + noise * (0.5e-6 * units.mu * (1 + units.norm(best)) / slope)


def test_a_nearly_critical_point_is_undecided_where_to_decide_it_costs_too_much(monkeypatch):
    point = nearly_the_minimum()
    assert MODEL.certify(point).verdict == "global_minimum"
    allow(monkeypatch, FEWEST - 1)
    taken = []
    product = Model.hessian_at
    monkeypatch.setattr(Model, "hessian_at", lambda model, at: taken.append(at) or product(model, at))
    found = MODEL.certify(point)
    assert found.verdict == "undecided"
    assert "30 classes in 32 dimensions" in found.reason
    assert "multiplications" in found.reason
    assert 0 <= found.gap < 1e-3
    assert not taken


def test_a_saddle_with_a_free_direction_needs_no_product_of_the_hessian(monkeypatch):
    allow(monkeypatch, 0)
    assert MODEL.certify(MODEL.zero_point()).verdict == "strict_saddle"


@pytest.mark.parametrize("products", [0, FEWEST - 1, 3 * FEWEST, 10 * FEWEST])
def test_the_limit_holds_for_any_point(products, monkeypatch):
    points = [saddle(3), nearly_the_minimum(), MODEL.random_point(3), MODEL.zero_point()]
    free = [MODEL.certify(point).verdict for point in points]
    allow(monkeypatch, products)
    count = 0
    whole = Hessian.product

    def counted(hessian, direction):
        nonlocal count
        count += 1
        return whole(hessian, direction)

    monkeypatch.setattr(Hessian, "product", counted)
    for point, verdict in zip(points, free, strict=True):
        count = 0
        found = MODEL.certify(point)
        assert found.verdict in (verdict, "undecided")
        assert count <= products


def test_a_search_for_curvature_ends_at_its_limit():
    small = Units(MODEL).small
    point = small.random_point(0)
    least = Effort(small)
    least.left = 60 * least.product
    with pytest.raises(OutOfEffort):
        Hessian(small, point, least).least_direction()
    assert least.ended
    none = Effort(small)
    none.left = (FEWEST - 1) * none.product
    with pytest.raises(OutOfEffort):
        Hessian(small, point, none).least_direction()
    assert none.left == (FEWEST - 1) * none.product


def test_polishing_without_work_returns_the_point_and_what_its_gradient_says_of_its_error(monkeypatch):
    allow(monkeypatch, 1)
    units = Units(MODEL)
    start = units.enter(nearly_the_minimum())
    end = polish(units, start)
    assert end.point is start
    assert end.error == pytest.approx(float(units.small.gradient(start).norm()) / (1e-6 * units.mu), rel=1e-9)
