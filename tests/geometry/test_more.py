"""The further measures by name: each is that of its own function, and all of them are described."""

import math

import pytest
import torch

import neuralcollapse as nc
from neuralcollapse.geometry.measures import measures
from neuralcollapse.geometry.more import MORE_MEASURES


def data(classes=6, dim=4, samples=9):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(classes).repeat_interleave(samples)
    features = torch.randn(len(labels), dim, generator=generator, dtype=torch.float64)
    features += 2 * torch.randn(classes, dim, generator=generator, dtype=torch.float64)[labels]
    weight = torch.randn(classes, dim, generator=generator, dtype=torch.float64)
    unit = torch.nn.functional.normalize(features, dim=1)
    return *(nc.ClassMoments.from_batch(each, labels, classes) for each in (features, unit)), weight


def test_each_number_is_that_of_its_function():
    moments, unit, weight = data()
    found = nc.more_measures(moments, weight, unit=unit, s=3)
    assert list(found) == list(MORE_MEASURES)
    uniformity, duality = nc.uniformity(moments, s=3), nc.uniform_duality(moments, weight)
    generalised = nc.gnc(unit, weight)
    expected = dict(zip(list(MORE_MEASURES)[:7], [*uniformity[:4], *duality], strict=True))
    expected |= {"gnc1": generalised.gnc1, "gnc2": generalised.gnc2, "gnc2_mean": float(generalised.margins.mean())}
    expected |= {"gnc3": 1 - duality.mean} | nc.spectra(moments, weight).values()
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.filterwarnings("ignore:K=6 classes in d=4")
def test_measures_keep_their_keys():
    moments, unit, weight = data()
    assert not set(measures(moments, weight)) & set(nc.more_measures(moments, weight, unit=unit))


def test_without_a_weight_there_is_nothing_of_the_classifier():
    moments, _, _ = data()
    found = nc.more_measures(moments)
    assert (
        found.keys()
        == {key for key in MORE_MEASURES if key.startswith("uniformity")} | nc.spectra(moments).values().keys()
    )


def test_pairs_can_be_left_out_or_drawn():
    moments, _, weight = data(classes=40)
    without = nc.more_measures(moments, weight, pairwise=False)
    assert not {key for key in without if key.startswith(("uniformity", "gnc2"))}
    drawn = nc.more_measures(moments, weight, pairwise=100)
    assert (drawn["num_pairs"], drawn["num_margins"]) == (100, 3)
    assert drawn["uniformity_log_error"] > 0
    assert drawn["gnc2_mean_error"] > 0
    every = nc.more_measures(moments, weight)
    assert drawn["gnc2"] >= every["gnc2"]
    assert not {"num_pairs", "num_margins", "gnc2_mean_error"} & every.keys()


def test_what_has_no_value_is_nan_with_one_warning_for_each_reason():
    with pytest.warns(nc.NeuralCollapseWarning) as caught:
        found = nc.more_measures(nc.ClassMoments.zeros(3, 4), torch.eye(3, 4))
    assert all(math.isnan(x) for name, x in found.items() if not name.startswith("rank_"))
    reasons = [str(each.message) for each in caught if str(each.message).startswith("undefined")]
    assert len(reasons) == len(set(reasons)) == 1
    moments = nc.ClassMoments.from_batch(torch.randn(20, 4), torch.arange(20) % 2, 3)
    with pytest.warns(nc.NeuralCollapseWarning, match="no samples of class 2: measured over the 2 classes seen"):
        nc.more_measures(moments)


def test_wrong_input_is_refused():
    moments, _, weight = data()
    with pytest.raises(nc.InputError, match="expected weight of shape"):
        nc.more_measures(moments, weight.T)
    with pytest.raises(nc.InputError, match="expected unit as moments"):
        nc.more_measures(moments, weight, unit=nc.ClassMoments.zeros(6, 5))
    with pytest.raises(nc.InputError, match="expected s as"):
        nc.more_measures(moments, weight, s=0)
