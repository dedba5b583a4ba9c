"""Whoever has called `torch.set_default_device("cuda")` still measures tensors and models that are on the CPU.

With "meta" as the default, a tensor that the library makes without naming its device holds nothing and may not meet the
others, so that each of these calls fails if there is one.
"""

import pytest
import torch
from torch import nn

import neuralcollapse as nc
from neuralcollapse.geometry import margins
from neuralcollapse.geometry.margins import one_vs_rest_margins

DRAWN = torch.Generator().manual_seed(0)
FEATURES, LABELS = torch.randn(200, 6, generator=DRAWN), torch.arange(200) % 4
WEIGHT, BIAS = torch.randn(4, 6, generator=DRAWN), torch.randn(4, generator=DRAWN)
LOADER = [(FEATURES[:120], LABELS[:120]), (FEATURES[120:], LABELS[120:])]


@pytest.fixture(autouse=True)
def elsewhere(request):
    """The network is made on the CPU before each test, and "meta" is the default during it."""
    request.instance.network = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    with torch.device("meta"):
        yield


class TestElsewhere:
    @pytest.mark.parametrize("num_classes", [4, 400])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_moments_also_of_outliers_and_few_classes_of_many(self, num_classes, dtype):
        features = torch.cat([FEATURES[:1] + 1e6, FEATURES]).to(dtype)
        moments = nc.ClassMoments.from_batch(features, torch.cat([LABELS[:1], LABELS]), num_classes)
        assert moments.merge(moments).means.device.type == "cpu"

    def test_measures_of_features(self):
        moments = nc.ClassMoments.from_batch(FEATURES, LABELS, 4)
        assert nc.measure_features(FEATURES, LABELS, WEIGHT, BIAS)["nc1"] == nc.measures(moments, WEIGHT, BIAS)["nc1"]
        assert "CDNV" in str(nc.per_class(moments, WEIGHT, BIAS, accuracy=[0.5] * 4).worst(2))
        with pytest.warns(nc.NeuralCollapseWarning, match="no samples of classes 4"):
            assert len(nc.per_class(nc.ClassMoments.from_batch(FEATURES, LABELS, 9)).rows()) == 9
        assert len(nc.worst_pairs(moments, 2)) == len(nc.worst_pairs(moments, 2, pairwise=3)) == 2

    @pytest.mark.parametrize("pairwise", [True, 3])
    def test_more_measures(self, pairwise, monkeypatch):
        moments = nc.ClassMoments.from_batch(FEATURES, LABELS, 4)
        assert nc.more_measures(moments, WEIGHT, pairwise=pairwise)["gnc2"] > 0
        assert nc.measure_features(FEATURES, LABELS, WEIGHT, more=True)["more"]["gnc1"] > 0
        assert nc.uniformity(WEIGHT, pairwise=pairwise).riesz > 0.5
        unit = nc.ClassMoments.from_batch(torch.nn.functional.normalize(FEATURES, dim=1), LABELS, 4)
        assert len(nc.gnc(unit, WEIGHT, classes=[1, 2]).margins) == 2
        assert 0 < nc.nc5(moments, moments) < 1
        monkeypatch.setattr(margins, "_WHOLE", 2)
        assert one_vs_rest_margins(WEIGHT).rho.min() > 0

    @pytest.mark.parametrize("options", [{}, {"layers": ["0"]}, {"classes": [0, 2, 3]}, {"min_count": 2}])
    def test_measure(self, options):
        assert nc.measure(self.network, LOADER, **options)["nc1"] > 0

    @pytest.mark.parametrize("options", [{}, {"classes": [0, 2]}, {"ignore_index": -100}])
    def test_metric(self, options):
        metric = nc.NeuralCollapse(4, 6, **options)
        metric.update(FEATURES, LABELS)
        assert metric.compute()["nc1"] > 0

    def test_recorder(self, tmp_path):
        recorder = nc.Recorder(LOADER, out=tmp_path / "run")
        assert recorder.measure(self.network, 1).measures["nc1"] > 0

    def test_landscape(self):
        model = nc.ufm.UnconstrainedFeatureModel(3, 4, [4, 4, 4], 0.01, 0.01)
        assert model.atlas()

    def test_train(self, tmp_path):
        config = nc.TrainConfig(
            data="digits", network="mlp", epochs=1, samples_per_class=5, network_options={"width": 8}
        )
        assert nc.read_run(nc.train(config, tmp_path / "run", progress=False).path).records
