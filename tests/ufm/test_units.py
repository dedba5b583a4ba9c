import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralcollapse.ufm import Point, UnconstrainedFeatureModel
from neuralcollapse.ufm.units import Units

Model = UnconstrainedFeatureModel
LOSSES = st.sampled_from(["cross_entropy", "label_smoothing", "mse", "focal"])


@st.composite
def twins(draw):
    """A model, and the same in other units, with the map of points."""
    K = draw(st.integers(2, 5))
    counts = draw(st.lists(st.integers(1, 6), min_size=K, max_size=K))
    if draw(st.booleans()):
        counts = [counts[0]] * K
    bias = draw(st.booleans())
    decays = [10.0 ** draw(st.integers(-5, 0)), 10.0 ** draw(st.integers(-5, 0))]
    bias_decay = draw(st.sampled_from([0.0, 1e-4, 0.1])) if bias else 0.0
    dim, loss = draw(st.integers(1, K + 2)), draw(LOSSES)
    model = Model(K, dim, counts, *decays, bias_decay, bias, loss)
    samples, balance = draw(st.integers(1, 3)), 10.0 ** draw(st.floats(-3, 3))
    other = Model(
        K,
        dim,
        [n * samples for n in counts],
        decays[0] / balance**2,
        decays[1] * balance**2 / samples,
        bias_decay,
        bias,
        loss,
    )
    return model, other, lambda p: Point(p.W * balance, (p.H / balance).repeat_interleave(samples, -1), p.b)


@settings(deadline=None, max_examples=40)
@given(pair=twins(), seed=st.integers(0, 100), scale=st.sampled_from([1e-8, 1e-3, 1.0, 30.0]))
def test_models_that_are_the_same_have_the_same_units_verdicts_and_distances(pair, seed, scale):
    model, other, move = pair
    here, there = Units(model), Units(other)
    point = model.random_point(seed, scale)
    assert model.objective(point) == pytest.approx(other.objective(move(point)), rel=1e-10)
    assert here.mu == pytest.approx(there.mu, rel=1e-12)
    assert here.norm(point) == pytest.approx(there.norm(move(point)), rel=1e-10)
    slope = here.gradient_norm(model.gradient(point))
    assert slope == pytest.approx(there.gradient_norm(other.gradient(move(point))), rel=1e-7, abs=1e-14)
    first, second = model.certify(point), other.certify(move(point))
    assert first.verdict == second.verdict
    assert first.spectral_ratio == pytest.approx(second.spectral_ratio, rel=1e-6)
    torch.testing.assert_close(here.enter(point).W, there.enter(move(point)).W)
    torch.testing.assert_close(here.enter(point).H, there.enter(move(point)).H)


@pytest.mark.slow
@settings(deadline=None, max_examples=8)
@given(pair=twins(), seed=st.integers(0, 100))
def test_a_descent_ends_the_same_in_any_units(pair, seed):
    model, other, move = pair
    start = model.random_point(seed)
    first, second = model.minimize(start, iterations=100), other.minimize(move(start), iterations=100)
    assert first.certificate.verdict == second.certificate.verdict or "undecided" in (
        first.certificate.verdict,
        second.certificate.verdict,
    )


@pytest.mark.parametrize("bias", [True, False])
def test_the_canonical_model_is_the_model(bias):
    model = Model(3, 4, [5, 2, 1], 0.03, 0.0002, 0.01 if bias else 0.0, bias)
    units = Units(model)
    point = model.expand(model.collapse(model.random_point(2)))
    small = units.enter(point)
    assert float(units.small.value(small)) == pytest.approx(model.objective(point), rel=1e-13)
    assert units.small.gradient(small).norm() == pytest.approx(units.gradient_norm(model.gradient(point)), rel=1e-12)
    assert small.norm() == pytest.approx(units.norm(point), rel=1e-12)
    torch.testing.assert_close(units.leave(small).vector(), point.vector())
    again = Units(units.small)  # canonical units of a canonical model change nothing
    assert (again.weight, again.feature) == pytest.approx((1.0, 1.0))
    collapsed = Units(model.collapsed())
    torch.testing.assert_close(collapsed.enter(model.collapse(point)).vector(), small.vector())
    values, gradients = units.objective(point.vector() / units.scales())
    assert float(values) == pytest.approx(model.objective(point))
    assert float(gradients.norm()) == pytest.approx(units.gradient_norm(model.gradient(point)))
