"""Few shots: the predicted error of nearest means is that of drawn episodes, and of the formula for two classes."""

import math

import pytest
import torch

import neuralcollapse as nc
from neuralcollapse.geometry.pairs import nc1_cdnv


def exact_moments(means, covariance, samples=10**12):
    """The moments of so many samples a class that nothing of them is noise, with this covariance in every class."""
    count, dim = means.shape
    parts = torch.full((count,), float(samples)), torch.full((count,), samples * float(covariance.trace()))
    state = [*parts, means.flatten(), (count * samples * covariance).flatten(), torch.zeros(1)]
    return nc.ClassMoments(torch.cat([part.double() for part in state]), count, dim)


def two_classes(cdnv, directional, square_trace, dim=60):
    """Two classes at distance 1 whose tr S is `cdnv`, u'Su is `directional`, tr S^2 is `square_trace`."""
    rest, squares = cdnv - directional, square_trace - directional**2
    # one large and dim - 2 small variances with the right sum and sum of squares
    others = dim - 2
    mean = rest / (others + 1)
    spread = math.sqrt((squares - rest**2 / (others + 1)) * others / (others + 1))
    values = [directional, mean + spread, *[mean - spread / others] * others]
    means = torch.zeros(2, dim, dtype=torch.float64)
    means[1, 0] = 1
    return exact_moments(means, torch.tensor(values, dtype=torch.float64).diag())


@pytest.mark.parametrize(
    ("cdnv", "directional", "square_trace", "expected"),
    [
        (4.77, 0.0225, 1.183, {1: 0.396, 5: 0.250, 50: 0.0302}),
        (0.28, 0.09, 0.0102, {1: 0.138, 5: 0.068, 50: 0.0498}),
    ],
)
def test_two_classes_follow_the_formula(cdnv, directional, square_trace, expected):
    moments = two_classes(cdnv, directional, square_trace)
    assert nc1_cdnv(moments) == pytest.approx(cdnv, rel=1e-7)
    assert nc.directional_cdnv(moments) == pytest.approx(directional, rel=1e-7)
    for shots, error in expected.items():
        found = nc.few_shot_error(moments, shots)
        assert found.error == pytest.approx(error, rel=5e-3)
        variance = 4 * directional * (1 + 1 / shots) + 8 * square_trace / shots + 4 * square_trace / shots**2
        assert found.error == pytest.approx(normal_below(-1 / math.sqrt(variance)), rel=1e-6)
        assert found.limit == pytest.approx(normal_below(-1 / (2 * math.sqrt(directional))), rel=1e-6)
        assert (found.shots, found.ways) == (shots, 2)


def normal_below(x):
    return 0.5 * math.erfc(-x / math.sqrt(2))


def drawn_error(means, roots, shots, ways, episodes, seed=0):
    """The share of wrong answers in episodes of normal features with covariances RR'."""
    generator = torch.Generator().manual_seed(seed)
    count, dim = means.shape
    wrong = 0
    for _ in range(episodes):
        chosen = torch.randperm(count, generator=generator)[:ways]
        noise = torch.randn(ways, shots + 4, dim, generator=generator, dtype=torch.float64)
        rows = means[chosen, None] + noise @ roots[chosen].mT
        centres, queries = rows[:, :shots].mean(1), rows[:, shots:]
        nearest = torch.cdist(queries.reshape(-1, dim), centres).argmin(1).view(ways, 4)
        wrong += int((nearest != torch.arange(ways)[:, None]).sum())
    return wrong / (episodes * ways * 4)


def features(means, roots, samples, seed=1):
    generator = torch.Generator().manual_seed(seed)
    count, dim = means.shape
    labels = torch.arange(count).repeat_interleave(samples)
    noise = torch.randn(count, samples, dim, generator=generator, dtype=torch.float64)
    return (means[:, None] + noise @ roots.mT).flatten(0, 1), labels


@pytest.fixture
def classes():
    """Twelve classes in 48 dimensions, with one covariance of uneven spectrum."""
    generator = torch.Generator().manual_seed(0)
    means = 0.55 * torch.randn(12, 48, generator=generator, dtype=torch.float64)
    turned = torch.linalg.qr(torch.randn(48, 48, generator=generator, dtype=torch.float64))[0]
    root = turned * (1 + torch.arange(48, dtype=torch.float64)) ** -0.4 * 1.7
    return means, root.expand(12, 48, 48)


@pytest.mark.parametrize("ways", [2, pytest.param(5, marks=pytest.mark.slow), None])
@pytest.mark.parametrize("shots", [1, 5, 20])
def test_the_prediction_is_near_drawn_episodes(classes, shots, ways):
    means, roots = classes
    moments = nc.ClassMoments.from_batch(*features(means, roots, 100), 12)
    found = nc.few_shot_error(moments, shots, ways)
    drawn = drawn_error(means, roots, shots, ways or 12, 1500 // (ways or 12))
    assert found.ways == (ways or 12)
    assert found.error == pytest.approx(drawn, abs=0.025)


@pytest.mark.slow
def test_few_samples_do_not_flatter_the_prediction(classes):
    means, roots = classes
    many = nc.few_shot_error(nc.ClassMoments.from_batch(*features(means, roots, 2000), 12), 1, None)
    errors = [
        nc.few_shot_error(nc.ClassMoments.from_batch(*features(means, roots, 8, seed), 12), 1, None).error
        for seed in range(8)
    ]
    assert sum(errors) / 8 == pytest.approx(many.error, rel=0.06)


@pytest.mark.slow
def test_classes_with_covariances_of_their_own(classes):
    means, roots = classes
    scales = torch.linspace(0.5, 1.6, 12, dtype=torch.float64)
    own = torch.stack([root.roll(3 * k, 0) * scale for k, (root, scale) in enumerate(zip(roots, scales, strict=True))])
    rows, labels = features(means, own, 300)
    moments = nc.ClassMoments.from_batch(rows, labels, 12)
    scatters = torch.stack([torch.cov(rows[labels == k].T) for k in range(12)])
    for shots, ways in ((1, 2), (5, 12)):
        found = nc.few_shot_error(moments, shots, ways, scatters=scatters)
        assert found.error == pytest.approx(drawn_error(means, own, shots, ways, 300), abs=0.025)


@pytest.mark.slow
def test_more_shots_err_less_and_more_ways_more(classes):
    moments = nc.ClassMoments.from_batch(*features(*classes, 60), 12)
    by_shots = [nc.few_shot_error(moments, shots, 12) for shots in (1, 2, 5, 20, 100)]
    assert [each.error for each in by_shots] == sorted((each.error for each in by_shots), reverse=True)
    assert by_shots[-1].error == pytest.approx(by_shots[-1].limit, abs=0.02)
    by_ways = [nc.few_shot_error(moments, 1, ways).error for ways in (3, 11, 12)]
    assert by_ways == sorted(by_ways)


def test_the_prediction_does_not_change_with_rotation_scale_and_offset(classes):
    rows, labels = features(*classes, 20)
    turn = torch.linalg.qr(torch.randn(48, 48, generator=torch.Generator().manual_seed(5), dtype=torch.float64))[0]
    plain = nc.few_shot_error(nc.ClassMoments.from_batch(rows, labels, 12), 5)
    moved = nc.few_shot_error(nc.ClassMoments.from_batch(1e-3 * rows @ turn + 100, labels, 12), 5)
    assert moved.error == pytest.approx(plain.error, rel=1e-6)


def test_collapsed_classes_are_never_confused():
    means = torch.eye(3, 5, dtype=torch.float64)
    moments = nc.ClassMoments.from_batch(means.repeat(4, 1), torch.arange(12) % 3, 3)
    for ways in (2, 3):
        assert nc.few_shot_error(moments, 1, ways) == (0.0, 0.0, 1, ways)


def test_equal_classes_are_guessed():
    rows = torch.randn(4000, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moments = nc.ClassMoments.from_batch(rows, torch.arange(4000) % 4, 4)
    assert nc.few_shot_error(moments, 5).error == pytest.approx(0.5, abs=0.06)
    assert nc.few_shot_error(moments, 5, None).error == pytest.approx(0.75, abs=0.1)


def test_classes_without_samples_are_left_out(classes):
    rows, labels = features(*classes, 20)
    plain = nc.few_shot_error(nc.ClassMoments.from_batch(rows, labels, 12), 5, None)
    gaps = nc.few_shot_error(nc.ClassMoments.from_batch(rows, 2 * labels + 1, 30), 5, None)
    assert gaps == pytest.approx(plain, rel=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shots": 0}, "shots"),
        ({"shots": 2.5}, "shots"),
        ({"ways": 1}, "ways"),
        ({"ways": 13}, "expected ways up to the 12 classes"),
        ({"scatters": torch.full((12, 48, 48), math.nan)}, "expected finite scatters"),
        ({"scatters": torch.zeros(12, 3, 3)}, r"expected scatters of shape \(K, d, d\)"),
    ],
)
def test_wrong_input_is_refused(classes, change, message):
    moments = nc.ClassMoments.from_batch(*features(*classes, 5), 12)
    with pytest.raises(nc.InputError, match=message):
        nc.few_shot_error(moments, **{"shots": 5, **change})


def test_one_sample_of_a_class_has_no_variance():
    moments = nc.ClassMoments.from_batch(torch.randn(5, 3), torch.tensor([0, 0, 1, 1, 2]), 3)
    with pytest.warns(nc.NeuralCollapseWarning, match="the variance of a class needs two samples, and class 2 has one"):
        found = nc.few_shot_error(moments, 1)
    assert math.isnan(found.error)
    assert math.isnan(found.limit)
    with pytest.warns(nc.NeuralCollapseWarning, match="no samples were seen: few_shot_error"):
        assert math.isnan(nc.few_shot_error(nc.ClassMoments.zeros(3, 2), 1).error)
