"""The numbers on the page "coming from neural-collapse": that package's formulas written out, and ours beside them.

That package's own code gave the same numbers when the page was written; here its definitions are written from scratch.
"""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import neuralcollapse as nc

PAGE = Path(__file__).parents[2] / "docs/guides/coming-from-neural-collapse.md"


def table():
    """(key, theirs, theirs about our centre, ours) of the page's last table."""
    text = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.*`.*`) \| (-?\d\.\d{9}) \| (-?\d\.\d{9}) \| (-?\d\.\d{9}) \|$", text, re.MULTILINE)
    return {name.split("`")[1]: tuple(map(float, numbers)) for name, *numbers in rows}


def data():
    """What the page makes."""
    code = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)[0]
    namespace: dict = {}
    exec(code, namespace)
    return [namespace[name] for name in ("features", "labels", "weight", "bias", "outside")]


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def by_their_definitions(features, labels, weight, outside, centre=None):
    """With the mean of the class means as the centre, unless one is given."""
    count = len(weight)
    means = np.stack([features[labels == k].mean(0) for k in range(count)])
    centred = means - (means.mean(0) if centre is None else centre)
    deviations = features - means[labels]
    within, between = deviations.T @ deviations / len(features), centred.T @ centred / count
    variances = np.array([np.square(deviations[labels == k]).sum(1).mean() for k in range(count)])
    etf = (np.eye(count) - 1 / count) / np.sqrt(count - 1)
    lengths = np.linalg.norm(centred, axis=1)
    pairs = list(itertools.combinations(range(count), 2))
    nearest = np.linalg.norm(features[:, None] - means, axis=2).argmin(1)
    away = outside.mean(0)

    def error(product):
        return np.linalg.norm(product / np.linalg.norm(product) - etf)

    return {
        "nc1": np.trace(np.linalg.pinv(between) @ within) / count,
        "nc1_quotient": np.trace(within) / np.trace(between),
        "nc1_cdnv": np.mean([(variances[i] + variances[j]) / 2 / np.sum((means[i] - means[j]) ** 2) for i, j in pairs]),
        "nc2": error(weight @ weight.T),
        "nc2_means": error(centred @ centred.T),
        "nc3": error(weight @ centred.T),
        "equinorm_means": lengths.std() / lengths.mean(),
        "uniformity_log": np.mean([-np.log(np.linalg.norm(unit(centred)[i] - unit(centred)[j])) for i, j in pairs]),
        "uniform_duality": np.mean(np.sum(unit(weight) * unit(centred), axis=1)),
        "1 - nc4": np.mean((features @ weight.T).argmax(1) == nearest),
        "nc5": np.mean(np.abs(unit(means) @ away / np.linalg.norm(away))),
    }


def test_the_table_is_what_both_give():
    features, labels, weight, bias, outside = data()
    shown = table()
    theirs = by_their_definitions(features, labels, weight, outside.numpy())
    about_ours = by_their_definitions(features, labels, weight, outside.numpy(), features.mean(0))
    values = nc.measure_features(features, labels, weight, bias, more=True)
    moments = nc.ClassMoments.from_batch(torch.from_numpy(features), torch.from_numpy(labels), 8)
    outliers = nc.ClassMoments.from_batch(outside, torch.zeros(200, dtype=torch.int64), 1)
    ours = values | values["more"] | {"1 - nc4": 1 - values["nc4"], "nc5": nc.nc5(moments, outliers)}
    assert shown.keys() == theirs.keys()
    for name, numbers in shown.items():
        assert numbers == pytest.approx((theirs[name], about_ours[name], ours[name]), abs=1e-7), name
        if name != "1 - nc4":  # theirs leaves out the bias
            assert ours[name] == pytest.approx(about_ours[name], rel=1e-9), name


def test_with_equal_classes_and_no_bias_the_two_agree():
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(6), 30)
    features = rng.standard_normal((6, 9))[labels] + 0.3 * rng.standard_normal((180, 9))
    weight, outside = rng.standard_normal((6, 9)), rng.standard_normal((40, 9))
    theirs = by_their_definitions(features, labels, weight, outside)
    values = nc.measure_features(features, labels, weight, more=True)
    ours = values | values["more"] | {"1 - nc4": 1 - values["nc4"]}
    for name in theirs.keys() - {"nc5"}:
        assert ours[name] == pytest.approx(theirs[name], rel=1e-9), name


def test_the_riesz_kernel_and_the_distances_are_powers_of_ours():
    """`kernel_stats` gives mean and variance of |u_i - u_j|^-(d-2), and of |u_i - u_j|."""
    rows = unit(np.random.default_rng(2).standard_normal((7, 6)))
    distances = np.array([np.linalg.norm(rows[i] - rows[j]) for i, j in itertools.combinations(range(7), 2)])
    found, plain = (nc.uniformity(torch.from_numpy(rows), s=s) for s in (4, -1))
    assert found.riesz**4 == pytest.approx((distances**-4.0).mean(), rel=1e-12)
    assert (found.riesz_cov * found.riesz**4) ** 2 == pytest.approx((distances**-4.0).var(), rel=1e-9)
    assert 1 / plain.riesz == pytest.approx(distances.mean(), rel=1e-12)
    assert plain.riesz_cov / plain.riesz == pytest.approx(distances.std(), rel=1e-9)
