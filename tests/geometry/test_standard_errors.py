"""Values without the bias of few samples, and standard errors: intervals hold the true value as often as they say."""

import math
import warnings

import numpy as np
import pytest
import torch
from scipy import stats

import neuralcollapse as nc
from neuralcollapse.geometry.groups import GroupedMoments
from neuralcollapse.geometry.standard_errors import errors_of
from tests import oracles

NAMES = ("nc1", "nc1_quotient", "nc1_cdnv")


def parts_of(rows, labels, classes, groups):
    """Moments of groups: every `groups`-th sample of a class is in the same."""
    ranks = [int((labels[:place] == label).sum()) for place, label in enumerate(labels)]
    numbers = torch.tensor(ranks) % groups
    return [nc.ClassMoments.from_batch(rows[numbers == g], labels[numbers == g], classes) for g in range(groups)]


def corrected_by_hand(rows, labels, classes):
    """The measures with unbiased variances, and squared distances without their noise."""
    given = oracles.moments(rows, labels, classes)
    counts, shares = given.counts, given.counts / given.counts.sum()
    traces = given.spreads / (counts - 1)
    centred = given.means - given.global_mean
    centre = np.eye(classes) - np.outer(np.ones(classes), shares)
    lost = np.trace(centre @ np.diag(traces / counts) @ centre.T) / classes
    ratios = [
        (traces[i] + traces[j])
        / (2 * (np.sum((given.means[i] - given.means[j]) ** 2) - traces[i] / counts[i] - traces[j] / counts[j]))
        for i in range(classes)
        for j in range(classes)
        if i != j
    ]
    total = counts.sum()
    return {
        "nc1": oracles.nc1(rows, labels, classes) * total / (total - classes),
        "nc1_quotient": shares @ traces / ((centred**2).sum() / classes - lost),
        "nc1_cdnv": np.mean(ratios),
    }


@pytest.mark.parametrize(("classes", "dim", "samples"), [(4, 6, 23), (9, 4, 23), (2, 5, 23), (6, 8, 4)])
def test_they_are_the_jackknife_of_the_corrected_measures(classes, dim, samples):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(samples * classes) % classes
    labels = torch.cat([labels, torch.zeros(10, dtype=torch.int64)])  # classes of unequal counts
    means = 5 * torch.randn(classes, dim, generator=generator, dtype=torch.float64)
    rows = means[labels] + torch.randn(len(labels), dim, generator=generator, dtype=torch.float64)
    parts = parts_of(rows, labels, classes, 5)
    ranks = np.array([int((labels[:place] == label).sum()) for place, label in enumerate(labels)]) % 5
    full = corrected_by_hand(rows.numpy(), labels.numpy(), classes)
    left = [corrected_by_hand(rows.numpy()[ranks != g], labels.numpy()[ranks != g], classes) for g in range(5)]
    sizes = len(labels) / np.array([(ranks == g).sum() for g in range(5)])
    spare = np.mean(1 - 1 / np.bincount(labels))
    reach = stats.t.ppf(0.975, 4)
    found = nc.standard_errors(parts)
    assert found["num_groups"] == 5
    for name in NAMES:
        whole, values = np.log(full[name]), np.log([each[name] for each in left])
        value = 5 * whole - ((1 - 1 / sizes) * values).sum()
        moved = (sizes * whole - (sizes - 1) * values - value) / np.sqrt(sizes - 1)
        skewness = max((moved**3).mean() / (moved**2).mean() ** 1.5, 0)
        spread = math.sqrt(spare * min(1, spare / 0.8) * (moved**2).mean()) * (1 + skewness / (2 * math.sqrt(5)))
        assert found[f"{name}_corrected"] == pytest.approx(math.exp(value), rel=1e-8)
        upper = found[f"{name}_corrected"] + reach * found[f"{name}_error"]
        assert upper == pytest.approx(math.exp(value + reach * spread), rel=1e-7)


def test_more_samples_come_nearer_and_are_surer():
    rows, labels = drawn(np.random.default_rng(0), 8, 12, 400, 5.0, "normal")
    few = nc.measure_features(rows[::20], labels[::20], errors=True)
    many = nc.measure_features(rows, labels, errors=True)
    for name in NAMES:
        assert few[f"{name}_error"] > 2 * many[f"{name}_error"] > 0
        assert abs(many[f"{name}_corrected"] / many[name] - 1) < 0.03
    assert many["num_groups"] == 20


def test_scale_rotation_and_offset_change_what_they_should():
    rows, labels = drawn(np.random.default_rng(1), 5, 9, 30, 5.0, "normal")
    turn = torch.linalg.qr(torch.randn(9, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    plain = nc.measure_features(rows, labels, errors=True)
    moved = nc.measure_features(1e-3 * rows @ turn + 100, labels, errors=True)
    for name in NAMES:
        for kind in ("corrected", "error"):
            assert moved[f"{name}_{kind}"] == pytest.approx(plain[f"{name}_{kind}"], rel=1e-6)


def test_collapsed_classes_are_sure():
    means = torch.eye(4, 6, dtype=torch.float64)
    found = nc.measure_features(means.repeat(10, 1), torch.arange(40) % 4, errors=True)
    assert all(found[f"{name}_{kind}"] == 0 for name in NAMES for kind in ("corrected", "error"))


def test_a_sample_of_pairs_adds_its_own_error():
    rows, labels = drawn(np.random.default_rng(2), 40, 60, 12, 20.0, "normal")
    every = nc.measure_features(rows, labels, errors=True)
    some = nc.measure_features(rows, labels, errors=True, pairwise=50)
    assert some["num_pairs"] == 50
    assert some["nc1_cdnv_error"] > every["nc1_cdnv_error"]
    assert abs(some["nc1_cdnv_corrected"] - every["nc1_cdnv_corrected"]) < 4 * some["nc1_cdnv_error"]
    assert some["nc1_error"] == every["nc1_error"]
    none = nc.measure_features(rows, labels, errors=True, pairwise=False)
    assert "nc1_cdnv_error" not in none
    assert none["nc1_error"] == every["nc1_error"]


def test_classes_without_samples_are_left_out():
    rows, labels = drawn(np.random.default_rng(3), 4, 6, 20, 5.0, "normal")
    plain = errors_of(*_grouped(rows, labels, 4))
    gaps = errors_of(*_grouped(rows, labels * 2, 9))
    assert gaps["nc1_corrected"] == pytest.approx(plain["nc1_corrected"], rel=0.05)  # dealt in another way


def _grouped(rows, labels, classes):
    grouped = GroupedMoments(classes, rows.shape[1], 10)
    grouped.update(rows, labels)
    return grouped.whole(), grouped.parts()


def test_a_class_of_two_samples_is_named():
    rows, labels = drawn(np.random.default_rng(4), 4, 6, 20, 5.0, "normal")
    rows, labels = rows[: 3 * 20 + 2], labels[: 3 * 20 + 2]
    with pytest.warns(nc.NeuralCollapseWarning, match="too few samples of class 3 to leave some out"):
        found = nc.measure_features(rows, labels, errors=True)
    assert all(math.isnan(found[f"{name}_{kind}"]) for name in NAMES for kind in ("corrected", "error"))
    assert math.isfinite(found["nc1"])
    kept = nc.measure_features(rows, labels, errors=True, min_count=3)
    assert math.isfinite(kept["nc1_error"])


def test_means_within_their_noise_are_refused():
    rows, labels = drawn(np.random.default_rng(5), 6, 40, 5, 0.3, "normal")
    with pytest.warns(nc.NeuralCollapseWarning) as caught:
        found = nc.measure_features(rows, labels, errors=True)
    assert all(math.isnan(found[f"{name}_error"]) for name in NAMES)
    said = " ".join(str(each.message) for each in caught)
    assert "noise of so few samples explains" in said
    assert "lost in the noise" in said


def test_groups_are_needed():
    rows, labels = drawn(np.random.default_rng(6), 3, 4, 20, 5.0, "normal")
    whole = nc.ClassMoments.from_batch(rows, labels, 3)
    with pytest.raises(nc.InputError, match="at least two groups"):
        nc.standard_errors([whole, nc.ClassMoments.zeros(3, 4)])
    for wrong in (whole, 3, [1, 2]):
        with pytest.raises(nc.InputError, match=r"expected (a list of )?moments"):
            nc.standard_errors(wrong)
    for wrong in (1, 2.5, "yes"):
        with pytest.raises(nc.InputError, match="errors"):
            nc.measure_features(rows, labels, errors=wrong)
    assert nc.measure_features(rows, labels, errors=4)["num_groups"] == 4


# Simulated draws


def drawn(rng, classes, dim, counts, distance, kind, means=None):
    """Features by class, their means about `distance` from the origin, with noise of variance 1 in each dimension."""
    counts = np.broadcast_to(counts, classes)
    if means is None:
        means = distance * rng.standard_normal((classes, dim)) / math.sqrt(dim)
    labels = np.repeat(np.arange(classes), counts)
    noise = rng.standard_normal((len(labels), dim))
    if kind == "heavy":  # Student's t with five degrees of freedom, of variance 1
        noise *= np.sqrt(3 / rng.chisquare(5, (len(labels), 1)))
    rows = means[labels] + noise
    if kind == "relu":
        rows = np.maximum(rows, 0)
    return torch.tensor(rows), torch.tensor(labels)


def truth(classes, dim, counts, means, kind):
    """The measures of the population, with the classes' shares of the samples."""
    counts = np.broadcast_to(counts, classes)
    centres, variances = means, np.ones((classes, dim))
    if kind == "relu":
        below, density = stats.norm.cdf(-means), stats.norm.pdf(means)
        centres = means * (1 - below) + density
        variances = (means**2 + 1) * (1 - below) + means * density - centres**2
    shares = counts / counts.sum()
    centred = centres - shares @ centres
    within = np.diag(shares @ variances)
    traces = variances.sum(1)
    inverse = np.linalg.pinv(centred.T @ centred / classes, rcond=1e-9)
    distances = ((centres[:, None] - centres[None]) ** 2).sum(2)
    np.fill_diagonal(distances, np.inf)
    return np.array(
        [
            np.trace(within @ inverse) / classes,
            shares @ traces / ((centred**2).sum() / classes),
            ((traces[:, None] + traces) / (2 * distances)).sum() / (classes * (classes - 1)),
        ]
    )


@pytest.mark.slow
def test_two_means_that_may_be_one_are_refused_in_two_dimensions():
    rng = np.random.default_rng(0)
    means = np.array([[0.0, 0.0], [0.0, 0.0], [9.0, 3.0]])  # in a few draws the first two lie apart by chance
    given = 0
    for _ in range(200):
        rows, labels = drawn(rng, 3, 2, 20, 1.0, "normal", means)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            given += math.isfinite(errors_of(*_grouped(rows, labels, 3))["nc1_cdnv_error"])
    assert given <= 2


def test_what_varies_in_some_samples_alone_is_refused():
    rows = torch.eye(4, 6, dtype=torch.float64).repeat(10, 1)
    rows[5] += 0.1
    with pytest.warns(nc.NeuralCollapseWarning, match="without some of the samples the value is another altogether"):
        found = nc.measure_features(rows, torch.arange(40) % 4, errors=True)
    assert all(math.isnan(found[f"{name}_error"]) for name in NAMES)


# K, d, samples a class, distance, kind: means far from and near to each other for the noise in them, `2 d / (n D^2)`.
SETTINGS = {
    "five samples": (10, 32, 5, 12.0, "normal"),
    "five samples, near": (20, 64, 5, 8.0, "normal"),
    "five samples, heavy tails": (10, 32, 5, 12.0, "heavy"),
    "twenty, near": (10, 32, 20, 4.0, "normal"),
    "twenty, heavy tails": (10, 32, 20, 6.0, "heavy"),
    "twenty, after a ReLU": (10, 32, 20, 8.0, "relu"),
    "unequal counts": (9, 32, (40, 20, 10) * 3, 8.0, "normal"),
    "more classes than dimensions": (30, 16, 20, 6.0, "relu"),
    "more classes than dimensions, heavy tails": (10, 6, 20, 8.0, "heavy"),
    "two classes": (2, 16, 20, 4.0, "normal"),
    "three classes, five samples": (3, 32, 5, 12.0, "normal"),
    "three classes, heavy tails": (3, 8, 10, 12.0, "heavy"),
    "two hundred": (10, 64, 200, 3.0, "relu"),
    "two hundred, heavy tails": (10, 32, 200, 3.0, "heavy"),
}

SHARP = (
    "five samples, heavy tails",
    "twenty, after a ReLU",
    "unequal counts",
    "two hundred, heavy tails",
)  # more draws


def simulated(setting, draws):
    """Over so many draws: the share of intervals with the true value in them, bias with and without correction."""
    classes, dim, counts, distance, kind = SETTINGS[setting]
    rng = np.random.default_rng(0)
    means = distance * rng.standard_normal((classes, dim)) / math.sqrt(dim)
    true = truth(classes, dim, counts, means, kind)
    inside, plain, corrected = [], [], []
    for _ in range(draws):
        rows, labels = drawn(rng, classes, dim, counts, distance, kind, means)
        whole, parts = _dealt(rows, labels, classes)
        values = nc.measures(whole) | errors_of(whole, parts)
        found, errors = (np.array([values[f"{name}_{key}"] for name in NAMES]) for key in ("corrected", "error"))
        reach = stats.t.ppf(0.975, values["num_groups"] - 1)
        inside.append(np.abs(found - true) <= reach * errors)
        plain.append([values[name] for name in NAMES] / true - 1)
        corrected.append(found / true - 1)
    given = np.isfinite(corrected).mean(0)
    spread = np.nanstd(corrected, 0)
    return np.mean(inside, 0) / given, np.mean(plain, 0), np.nanmean(corrected, 0), given, spread


def _dealt(rows, labels, classes):
    grouped = GroupedMoments(classes, rows.shape[1], 20)
    grouped.update(rows, labels)
    return grouped.whole(), grouped.parts()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::neuralcollapse.NeuralCollapseWarning")
@pytest.mark.parametrize("setting", SETTINGS)
def test_intervals_hold_the_true_value(setting):
    draws = 500 if setting in SHARP else 150
    inside, plain, corrected, given, spread = simulated(setting, draws)
    print(f"\n{setting}: given {given}, inside {inside.round(3)}, bias {plain.round(3)} -> {corrected.round(3)}")
    assert (given > 0.5).all()  # the others were refused: means too near to each other for the noise in them
    assert (inside >= 0.9 - 2 * math.sqrt(0.09 / draws)).all()  # within two standard errors of so many draws
    assert (inside <= 0.97 + 2 * math.sqrt(0.03 / draws)).all()
    biased = np.abs(plain) > 0.03
    if setting.startswith("three"):  # some fifteen samples tell too little for the mean: a third of the spread is left
        assert (np.abs(corrected) < spread / 3).all()
        return
    assert (np.abs(corrected)[biased] < 0.4 * np.abs(plain)[biased]).all()
    assert (np.abs(corrected) < 0.06).all()
