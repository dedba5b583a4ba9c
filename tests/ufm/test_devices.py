"""Every verb computes where the points are, so that nothing is created on the default device."""

import pytest
import torch

from neuralcollapse import InputError
from neuralcollapse.geometry.moments import ClassMoments
from neuralcollapse.ufm import Point, UnconstrainedFeatureModel, certify_head, certify_head_moments, minimum_bounds
from neuralcollapse.ufm import grouped as grouped_module
from neuralcollapse.ufm.head import balanced_decay
from neuralcollapse.ufm.model import Model as BaseModel
from neuralcollapse.ufm.solvers import leave

Model = UnconstrainedFeatureModel


@pytest.fixture
def elsewhere(monkeypatch):
    """A default device on which whatever names no device ends, as it would beside points on an accelerator.

    The moments of features on the CPU are left out: those on an accelerator go another way, which has its own tests.
    """
    measures = BaseModel.measures

    def on_the_cpu(model, point):
        with torch.device("cpu"):
            return measures(model, point)

    monkeypatch.setattr(BaseModel, "measures", on_the_cpu)
    with torch.device("meta"):
        yield


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("loss", ["cross_entropy", "label_smoothing", "mse", "focal"])
@pytest.mark.parametrize("counts", [[4, 4, 4], [5, 3, 2]])
def test_every_verb_names_the_device_of_what_it_makes(counts, loss):
    model = Model(3, 4, counts, 0.01, 0.02, 0.01, loss=loss)
    point = model.random_point(0)
    assert model.objective(point) > 0
    assert model.gradient(point).W.device.type == "cpu"
    hessian = model.hessian(point)
    assert hessian.eigenvalues(3).device.type == "cpu"
    assert hessian.least_direction()[1].W.device.type == "cpu"
    assert isinstance(hessian.negative(), int)
    assert model.measures(point)["nc1"] > 0
    for method in ("lbfgs", "newton", "gd", "sgd", "adam"):
        assert model.minimize(point, method, iterations=20, escapes=1, learning_rate=0.01).point.W.device.type == "cpu"
    assert model.many_starts(3, iterations=50).vectors.device.type == "cpu"
    zero = model.minimize(model.zero_point(), iterations=50, escapes=0)
    if zero.certificate.verdict == "strict_saddle":
        assert leave(model, zero.point, zero.certificate).W.device.type == "cpu"
    if loss != "focal" or model.balanced:
        assert model.certify(model.global_minimizer()).objective == pytest.approx(model.global_minimum(), rel=1e-12)
        assert all(entry.point.W.device.type == "cpu" for entry in model.atlas(starts=4))


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("loss", ["cross_entropy", "label_smoothing", "mse"])
def test_nonnegative_verbs_too(loss):
    model = Model(3, 4, [5, 3, 2], 0.01, 0.02, 0.01, loss=loss, features="nonnegative")
    assert minimum_bounds(model).point.W.device.type == "cpu"
    assert model.minimize(model.random_point(0), iterations=30).point.W.device.type == "cpu"
    assert model.many_starts(2, iterations=30).vectors.device.type == "cpu"


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("nonnegative", [False, True])
def test_heads_too(nonnegative):
    generator = torch.Generator("cpu").manual_seed(0)
    features = torch.randn(30, 8, generator=generator, device="cpu").abs()
    labels = torch.arange(30, device="cpu") % 3
    weight, bias = torch.randn(3, 8, generator=generator, device="cpu"), torch.zeros(3, device="cpu")
    sign = "nonnegative" if nonnegative else "real"
    found = certify_head(features, labels, weight, bias, 0.01, features_sign=sign)
    with torch.device("cpu"):
        moments = ClassMoments.from_batch(features, labels, 3)
        assert moments.counts.tolist() == [10, 10, 10]
    loss = torch.nn.functional.cross_entropy(features.double() @ weight.double().T, labels)
    same = certify_head_moments(moments, float(loss), weight, bias, 0.01, features_sign=sign)
    assert found.objective == pytest.approx(same.objective, rel=1e-6)
    assert found.lower_bound == pytest.approx(same.lower_bound, rel=1e-6)


def test_points_may_be_on_another_device_than_the_model():
    model = Model(3, 4, [5, 3, 2], 0.01, 0.02, 0.01, device="meta")  # stands for any other device
    point = model.on("cpu").random_point(0)
    assert model.gradient(point).W.device.type == "cpu"
    assert model.certify(point).verdict == "not_critical"
    assert model.minimize(point).point.W.device.type == "cpu"
    assert model.hessian(point).least() < 0
    assert model.collapse(point).H.device.type == "cpu"
    assert model.measures(point)["nc1"] > 0
    assert model.many_starts(2, device="cpu").vectors.device.type == "cpu"
    assert model.device.type == "meta"


class Single(torch.Tensor):
    """A tensor as on Apple's MPS: it names that device, refuses float64, and can be moved to the CPU."""

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), named=None):
        named = named or {}
        if function == torch.Tensor.device.__get__:
            return torch.device("mps")
        name = getattr(function, "__name__", "")
        asked = (*arguments[1:], *named.values())
        if name == "cpu" or (name == "to" and any(str(part) == "cpu" for part in asked)):
            plain = arguments[0].as_subclass(torch.Tensor)
            return plain.to(*arguments[1:], **named) if name == "to" else plain
        if name == "double" or torch.float64 in [part for part in asked if isinstance(part, torch.dtype)]:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        if any(type(part) is torch.Tensor and part.dim() for part in arguments):
            raise RuntimeError("expected all tensors to be on the same device")
        return super().__torch_function__(function, types, arguments, named)


@pytest.mark.parametrize("nonnegative", [False, True])
def test_heads_on_a_device_without_float64_are_certified_on_the_cpu(nonnegative):
    generator = torch.Generator().manual_seed(0)
    features, weight, bias = (torch.randn(*shape, generator=generator) for shape in ((30, 8), (3, 8), (3,)))
    features, labels = features.abs() if nonnegative else features, torch.arange(30) % 3
    expected = certify_head(features, labels, weight, bias, 0.01)
    parts = [part.as_subclass(Single) for part in (features, labels, weight, bias)]
    with pytest.raises(TypeError, match="float64"):
        parts[0].double()
    with pytest.raises(RuntimeError, match="same device"):
        parts[0] @ weight.T
    assert parts[0].device.type == "mps"
    assert certify_head(*parts, 0.01) == expected
    assert certify_head(*parts[:3], None, 0.01) == certify_head(features, labels, weight, None, 0.01)
    moments = ClassMoments.from_batch(features, labels, 3)
    same = certify_head_moments(moments, 1.0, weight, bias, 0.01)
    assert certify_head_moments(moments, 1.0, *parts[2:], 0.01) == same
    assert balanced_decay(0.01, parts[2], 3.0) == balanced_decay(0.01, weight, 3.0)


def test_devices_without_float64_give_way_to_the_cpu():
    assert Model(3, 4, 5, 0.01, 0.02, device="mps").device.type == "cpu"
    point = Point(*(torch.zeros(shape) for shape in ((3, 4), (4, 6), (3,))))
    with pytest.raises(InputError, match=r"convert it with .double\(\)"):
        Model(3, 4, 2, 0.01, 0.02).certify(point)


@pytest.mark.usefixtures("elsewhere")
def test_many_distinct_counts_too(monkeypatch):
    monkeypatch.setattr("neuralcollapse.ufm.convex.FINE", 6)
    monkeypatch.setattr("neuralcollapse.ufm.decoupled.FINE", 6)
    monkeypatch.setattr("neuralcollapse.ufm.coarse._COARSE", 4)
    model = Model(12, 12, list(range(20, 32)), 0.005, 0.001, 0.01)
    assert isinstance(grouped_module.GroupedModel(model).start(0), torch.Tensor)
    assert model.certify(model.global_minimizer()).verdict == "global_minimum"
    assert minimum_bounds(model.like(features="nonnegative")).exact
