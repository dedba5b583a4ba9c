"""What is tried on the simulated device: each function takes a device and returns the numbers it found there.

python -m tests.far.verbs  # prints what each found on the CPU and on the device, and the waits of measuring passes
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import neuralcollapse as nc
from neuralcollapse import ufm

_GENERATOR = torch.Generator().manual_seed(0)
LABELS = torch.arange(400) % 6
FEATURES = torch.randn(400, 300, generator=_GENERATOR) + 3 * torch.randn(6, 300, generator=_GENERATOR)[LABELS]
WEIGHT, BIAS = torch.randn(6, 300, generator=_GENERATOR), torch.randn(6, generator=_GENERATOR)
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "layers": {"layers": ["1"]},
    "classes": {"classes": [0, 2, 3]},
    "min_count": {"min_count": 2},
    "ignore_index": {"ignore_index": 5},
    "errors": {"errors": True},
    "more": {"more": True},
}


def loader(size: int = 64, device: str = "cpu") -> list[tuple[Tensor, Tensor]]:
    parts = zip(FEATURES.split(size), LABELS.split(size), strict=True)
    return [(features.to(device), labels.to(device)) for features, labels in parts]


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(300, 16), nn.LayerNorm(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 6))


def moments(dtype: str, device: str) -> Any:
    found = nc.ClassMoments.zeros(6, 300, device)
    for features, labels in loader(device=device):
        found.update(features.to(DTYPES[dtype]), labels)
    found = found.merge(nc.ClassMoments.from_batch(FEATURES.to(device, DTYPES[dtype]), LABELS.to(device), 6))
    values = nc.measures(found, WEIGHT.to(device), BIAS.to(device))
    return [values, found.means, found.scatter[0], found.global_mean, found.counts, found.rounding]


def of_features(device: str) -> Any:
    parts = (each.to(device) for each in (FEATURES, LABELS, WEIGHT, BIAS))
    return nc.measure_features(*parts, errors=True, more=True)


def of_moments(device: str) -> Any:
    found, weight = nc.ClassMoments.from_batch(FEATURES.to(device), LABELS.to(device), 6), WEIGHT.to(device)
    unit = nc.ClassMoments.from_batch(F.normalize(FEATURES.to(device), dim=1), LABELS.to(device), 6)
    return {
        "more": nc.more_measures(found, weight),
        "classes": nc.per_class(found, weight, BIAS.to(device)).rows(),
        "uniformity": nc.uniformity(weight).riesz,
        "gnc": nc.gnc(unit, weight).margins,
        "nc5": nc.nc5(found, found),
        "directional": nc.directional_cdnv(found),
        "few shots": nc.few_shot_error(found, 1, 2).error,
        "nearest": nc.nearest_simplex_etf(weight)[0],
    }


def measured(option: str, at: str, device: str) -> Any:
    """A pass over batches that come on the CPU, or on the device itself."""
    return nc.measure(network().to(device), loader(device=device if at == "device" else "cpu"), **OPTIONS[option])


def metric(device: str) -> Any:
    found = nc.NeuralCollapse(6, 300, classes=[0, 2, 5]).to(device)
    for features, labels in loader(device=device):
        found.update(features, labels)
    return {name: float(value) for name, value in found.compute().items()}


def recorded(device: str) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        recorder = nc.Recorder(loader(), out=f"{folder}/run")
        return [recorder.measure(network().to(device), epoch).measures for epoch in (1, 2)]


def outliers(device: str) -> Any:
    scorer = nc.OODScorer.fit(network().to(device), loader())
    return scorer.score(network()[:4].eval()(FEATURES[:50]).detach().to(device) + 0.5)


def replaced(device: str) -> Any:
    layer = nc.fix_classifier(network().to(device)[-1])
    return [layer.weight, layer(torch.ones(3, 16, device=device))]


def head(make: Callable[[], nn.Module], device: str) -> Any:
    torch.manual_seed(3)
    layer = make().to(device)
    features, found = FEATURES[:50, : layer.in_features].to(device).requires_grad_(), []
    for _ in range(3):
        logits = layer(features)
        F.cross_entropy(logits, LABELS[:50].to(device) % layer.out_features).backward()
        found.append(logits)
    return [found, features.grad, layer.weight, [each.grad for each in layer.parameters()]]


def followed(device: str) -> Any:
    layer = nc.ETFClassifier(300, 6, rotation="nearest").to(device)
    for features, labels in loader(device=device):
        layer(features)
        layer.follow(labels)
    return layer.weight


def solved(counts: list[int], loss: str, device: str) -> Any:
    model = ufm.UnconstrainedFeatureModel(3, 4, counts, 0.01, 0.02, 0.01, loss=loss, device=device)
    point = model.random_point(0)
    found = [model.objective(point), model.gradient(point).W, model.measures(point)]
    hessian = model.hessian(point)
    found += [hessian.eigenvalues(3), hessian.negative()]
    for method in ("lbfgs", "newton", "gd", "sgd", "adam"):
        end = model.minimize(point, method, iterations=3, escapes=0, learning_rate=0.01).point
        assert end.W.device.type == device
        found.append(model.objective(end))
    assert model.many_starts(2, iterations=5).vectors.device.type == device
    found.append(model.certify(point).lower_bound)
    if loss != "focal" or model.balanced:
        found += [model.global_minimum(), model.certify(model.global_minimizer()).gap]
    if loss == "mse":
        found.append(len(model.atlas(starts=1)))
    return found


def nonnegative(device: str) -> Any:
    model = ufm.UnconstrainedFeatureModel(3, 4, [5, 3, 2], 0.01, 0.02, 0.01, features="nonnegative", device=device)
    end = model.minimize(model.random_point(0), iterations=5).point
    return [model.objective(end), ufm.minimum_bounds(model).lower, model.many_starts(2, iterations=5).objectives]


def certified_heads(device: str) -> Any:
    features, labels, weight, bias = (each.to(device) for each in (FEATURES, LABELS, WEIGHT, BIAS))
    found = nc.ClassMoments.from_batch(features, labels, 6)
    one = ufm.certify_head(features, labels, weight, bias, 0.01)
    other = ufm.certify_head_moments(found, 1.0, weight, bias, 0.01)
    return [one.objective, one.lower_bound, other.objective, other.lower_bound]


VERBS: dict[str, Callable[[str], Any]] = {
    **{f"moments of {dtype}": partial(moments, dtype) for dtype in DTYPES},
    "measure_features": of_features,
    "measures of moments": of_moments,
    **{
        f"measure, {name}, batches on the {at}": partial(measured, name, at)
        for name in OPTIONS
        for at in ("CPU", "device")
    },
    "metric": metric,
    "Recorder": recorded,
    "OODScorer": outliers,
    "fix_classifier": replaced,
    **{
        f"ETFClassifier, {rotation}, K={size}{', learnt scale' * learnt}": partial(
            head, partial(nc.ETFClassifier, 300, size, rotation=rotation, learn_scale=learnt, scale=3.0)
        )
        for rotation in ("blocks", "none", "fast", "nearest")
        for size in (6, 301)
        for learnt in (False, True)
    },
    "OrthoplexClassifier": partial(head, partial(nc.OrthoplexClassifier, 300, 500, rotation="fast")),
    "SoftmaxCodeClassifier": partial(head, partial(nc.SoftmaxCodeClassifier, 3, 6, steps=20)),
    "follow": followed,
    **{
        f"ufm, {loss}, {counts}": partial(solved, counts, loss)
        for loss, counts in (
            ("cross_entropy", [5, 3, 2]),
            ("label_smoothing", [4, 4, 4]),
            ("mse", [5, 3, 2]),
            ("focal", [4, 4, 4]),
        )
    },
    "ufm, nonnegative features": nonnegative,
    "certify_head": certified_heads,
}


def main() -> None:
    """Run everything on both devices."""
    from tests.far.device import World, numbers

    torch.set_num_threads(1)
    warnings.simplefilter("ignore", nc.NeuralCollapseWarning)
    found: dict[str, Any] = {}
    for name, verb in VERBS.items():
        found[name] = {"cpu": numbers(verb("cpu"))}
        try:
            with World():
                found[name]["far"] = numbers(verb("far"))
        except Exception as error:
            found[name]["error"] = f"{type(error).__name__}: {error}"
    waits: dict[str, list[int]] = {}
    for name, options in OPTIONS.items():
        for at in ("cpu", "far"):
            waits[f"{name}, batches on {at}"] = []
            for size in (80, 10):
                with World() as world:
                    nc.measure(network().to("far"), loader(size, at), **options)
                    waits[f"{name}, batches on {at}"].append(sum(world.waits.values()))
    print(json.dumps({"verbs": found, "waits": waits}))


if __name__ == "__main__":
    main()
