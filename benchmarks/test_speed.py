"""Speeds, each beside the baseline that its ratio is taken against; `run.py` writes the table."""

import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

import neuralcollapse as nc

N, D, K, BATCH = 50_000, 512, 10, 256
MANY, WIDE = 20_000, 1_024


@pytest.fixture(scope="module")
def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(0)
    labels = torch.randint(0, K, (N,))
    features = (10 * torch.randn(K, D) / D**0.5)[labels] + 1e-3 * torch.randn(N, D) + 100
    return list(zip(features.split(BATCH), labels.split(BATCH), strict=True))


@pytest.mark.benchmark(group="moments")
def test_bare_products(benchmark, batches):
    def run() -> None:
        for features, _ in batches:
            features.T @ features

    benchmark.pedantic(run, rounds=9, warmup_rounds=2)


@pytest.mark.benchmark(group="moments")
def test_moments(benchmark, batches):
    def run() -> nc.ClassMoments:
        moments = nc.ClassMoments.zeros(K, D)
        for features, labels in batches:
            moments.update(features, labels)
        return moments

    moments = benchmark.pedantic(run, rounds=9, warmup_rounds=2)
    exact = nc.ClassMoments.zeros(K, D)
    for features, labels in batches:
        exact.update(features.double(), labels)
    error = abs(nc.measures(moments)["nc1"] / nc.measures(exact)["nc1"] - 1)
    benchmark.extra_info["note"] = f"relative error of NC1 {error:.1e}"


@pytest.mark.benchmark(group="moments")
@pytest.mark.parametrize("form", ["outer", "column times row"])
def test_loop_of_outer_products(benchmark, batches, form):
    """A loop over samples, class means known from an earlier pass; the paper's code multiplies column by row."""
    sums, counts = torch.zeros(K, D), torch.zeros(K)
    for features, labels in batches:
        sums.index_add_(0, labels, features)
        counts += labels.bincount(minlength=K)
    means = sums / counts[:, None]

    def run() -> None:
        scatter = torch.zeros(D, D)
        for features, labels in batches:
            for row, label in zip(features, labels.tolist(), strict=True):
                centred = row - means[label]
                if form == "outer":
                    scatter += torch.outer(centred, centred)
                else:
                    scatter += centred.unsqueeze(1) @ centred.unsqueeze(0)

    benchmark.pedantic(run, rounds=3)


@pytest.fixture(scope="module")
def many() -> tuple[nc.ClassMoments, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    moments = nc.ClassMoments.zeros(MANY, WIDE)
    for _ in range(2):
        for labels in torch.arange(MANY).split(1_000):
            moments.update(torch.randn(len(labels), WIDE), labels)
    return moments, torch.randn(MANY, WIDE, dtype=torch.float64), torch.zeros(MANY, dtype=torch.float64)


@pytest.mark.benchmark(group="measures")
def test_two_bare_products(benchmark, many):
    moments, weight, _ = many
    benchmark.pedantic(lambda: (moments.means.T @ moments.means, weight.T @ weight), rounds=5, warmup_rounds=1)


@pytest.mark.benchmark(group="measures")
@pytest.mark.filterwarnings("ignore::neuralcollapse.NeuralCollapseWarning")
def test_measures_without_pairs(benchmark, many):
    benchmark.pedantic(lambda: nc.measures(*many, pairwise=False), rounds=5, warmup_rounds=1)
    benchmark.extra_info["note"] = f"peak of the whole process {_peak_gigabytes():.2f} GB"


@pytest.mark.benchmark(group="measures")
@pytest.mark.filterwarnings("ignore::neuralcollapse.NeuralCollapseWarning")
def test_measures_with_every_pair(benchmark, many):
    benchmark.pedantic(lambda: nc.measures(*many), rounds=1)


def _peak_gigabytes() -> float:
    """Peak memory of a fresh process that makes the moments and measures them."""
    code = f"""
        import resource, warnings, torch, neuralcollapse as nc
        warnings.simplefilter("ignore")
        moments = nc.ClassMoments.zeros({MANY}, {WIDE})
        for labels in torch.arange({MANY}).split(1000):
            moments.update(torch.randn(len(labels), {WIDE}), labels)
        nc.measures(moments, torch.randn({MANY}, {WIDE}), torch.zeros({MANY}), pairwise=False)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    return int(result.stdout) * (1 if sys.platform == "darwin" else 1024) / 1e9


def _step(layer: nn.Module):
    features = torch.randn(BATCH, 1_000, requires_grad=True)
    gradient = torch.randn(BATCH, 1_000)

    def run() -> None:
        features.grad = None
        layer.zero_grad()
        layer(features).backward(gradient)

    return run


@pytest.mark.benchmark(group="classifier")
def test_linear(benchmark):
    benchmark.pedantic(_step(nn.Linear(1_000, 1_000)), rounds=101, warmup_rounds=10)


@pytest.mark.benchmark(group="classifier")
@pytest.mark.parametrize(
    "options", [{}, {"learn_scale": True}, {"rotation": "fast"}], ids=["plain", "learnt scale", "rotated"]
)
def test_etf(benchmark, options):
    benchmark.pedantic(_step(nc.ETFClassifier(1_000, 1_000, **options)), rounds=101, warmup_rounds=10)


@pytest.mark.benchmark(group="start")
@pytest.mark.parametrize(
    "code",
    ["-c import torch", "-c import torch, neuralcollapse", "-m neuralcollapse --help"],
    ids=["import torch", "import torch, neuralcollapse", "neuralcollapse --help"],
)
def test_start(benchmark, code):
    arguments = code.split(" ") if code.startswith("-m") else code.split(" ", 1)
    run = [sys.executable, *arguments]
    benchmark.pedantic(lambda: subprocess.run(run, check=True, capture_output=True), rounds=7, warmup_rounds=1)


@pytest.fixture(scope="module")
def large_model() -> tuple[nc.ufm.UnconstrainedFeatureModel, nc.ufm.Point]:
    model = nc.ufm.UnconstrainedFeatureModel(100, 128, 100, 5e-4, 1e-5)
    return model, model.random_point(0, 0.3)


@pytest.mark.benchmark(group="certificate")
def test_gradient(benchmark, large_model):
    model, point = large_model
    benchmark.pedantic(lambda: model.gradient(point), rounds=21, warmup_rounds=3)


@pytest.mark.benchmark(group="certificate")
def test_spectral_norm(benchmark, large_model):
    model, point = large_model
    slopes = model.slopes(point)
    benchmark.pedantic(lambda: torch.linalg.matrix_norm(slopes, 2), rounds=21, warmup_rounds=3)


@pytest.mark.benchmark(group="certificate")
def test_certify(benchmark, large_model):
    model, point = large_model
    benchmark.pedantic(lambda: model.certify(point), rounds=21, warmup_rounds=3)


@pytest.mark.benchmark(group="landscape")
@pytest.mark.parametrize("counts", ["balanced", "long tail"])
def test_exact_minimum(benchmark, counts):
    sizes = [500] * 100 if counts == "balanced" else [max(1, round(500 * 0.01 ** (k / 99))) for k in range(100)]
    model = nc.ufm.UnconstrainedFeatureModel(100, 128, sizes, 5e-4, 1e-5, 0.01)
    point = benchmark.pedantic(model.global_minimizer, rounds=3)
    benchmark.extra_info["note"] = f"certified gap {model.certify(point).gap:.0e}"


@pytest.mark.benchmark(group="landscape")
def test_thousand_starts(benchmark):
    model = nc.ufm.UnconstrainedFeatureModel(4, 6, 10, 0.005, 0.005)
    ends = benchmark.pedantic(lambda: model.many_starts(1000), rounds=3)
    certified = sum(verdict == "global_minimum" for verdict in ends.verdicts)
    benchmark.extra_info["note"] = f"{certified} certified, largest gap {float(ends.gaps.max()):.0e}"


@pytest.mark.benchmark(group="landscape")
def test_atlas(benchmark):
    model = nc.ufm.UnconstrainedFeatureModel(10, 12, 10, 0.005, 0.005)
    entries = benchmark.pedantic(model.atlas, rounds=3)
    saddles = sum(entry.certificate.verdict == "strict_saddle" for entry in entries)
    benchmark.extra_info["note"] = f"{len(entries)} entries, {saddles} strict saddles"
