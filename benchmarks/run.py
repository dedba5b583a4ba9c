"""Run the benchmarks in one process and write the table of benchmarks/README.md: `make bench`."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent

# (heading, baseline, [(benchmark, label, what is asked)]); ratios are medians over the baseline's median.
TABLES: list[tuple[str, str, list[tuple[str, str, str]]]] = [
    (
        "Moments: N=50,000, d=512, K=10, batches of 256, float32 features at offset 100, noise 1e-3",
        "test_bare_products",
        [
            ("test_bare_products", "bare float32 products H'H", ""),
            ("test_moments", "`ClassMoments.update`", "at most 2"),
            ("test_loop_of_outer_products[outer]", "loop over samples, `torch.outer`", "at least 8x `update`"),
            ("test_loop_of_outer_products[column times row]", "the same, column times row", "at least 8x `update`"),
        ],
    ),
    (
        "Measures: K=20,000, d=1,024",
        "test_two_bare_products",
        [
            ("test_two_bare_products", "bare float64 products M'M and W'W", ""),
            ("test_measures_without_pairs", "`measures(..., pairwise=False)`", "at most 3, under 1.5 GB"),
            ("test_measures_with_every_pair", "`measures(...)`, every pair of classes three times", ""),
        ],
    ),
    (
        "Classifier: forward and backward, batch 256, d=K=1,000",
        "test_linear",
        [
            ("test_linear", "`nn.Linear`", ""),
            ("test_etf[plain]", "`ETFClassifier`", "at most 0.1"),
            ("test_etf[learnt scale]", "the same, learnt scale", ""),
            ("test_etf[rotated]", "the same, fast rotation", ""),
        ],
    ),
    (
        "Certificate: K=100, n=100, d=128, a random point",
        "test_gradient",
        [
            ("test_gradient", "one gradient of the model", ""),
            ("test_spectral_norm", "one spectral norm, by SVD", ""),
            ("test_certify", "`certify`", "at most 5 gradients and one norm"),
        ],
    ),
    (
        "Landscape",
        "test_exact_minimum[balanced]",
        [
            ("test_exact_minimum[balanced]", "exact minimiser, K=100, 500 samples each", "at most 2 s"),
            ("test_exact_minimum[long tail]", "the same, counts from 500 down to 5", "at most 2 s"),
            ("test_thousand_starts", "1,000 starts, K=4, d=6, n=10, each end certified", "at most 60 s"),
            ("test_atlas", "atlas, K=10, d=12, n=10, with verdicts", "at most 60 s"),
        ],
    ),
    (
        "Training: ResNet18 of width 8, 3x3 stem, an epoch of 6,400 images 1x28x28, batches of 128, SGD",
        "test_bare_loop",
        [
            ("test_bare_loop", "bare PyTorch loop over tensors in memory", ""),
            ("test_loader_loop", "the same with a DataLoader", ""),
            ("test_our_loop", "an epoch of `neuralcollapse train`, trainer set up anew", "at most 1.1"),
        ],
    ),
    (
        "Measuring: the same network and images, batches of 512, with NC4",
        "test_bare_pass",
        [
            ("test_bare_pass", "bare forward pass", ""),
            ("test_measuring_pass", "measuring pass and measures", "at most 1.15"),
        ],
    ),
    (
        "Start-up: whole processes",
        "test_start[import torch]",
        [
            ("test_start[import torch]", "`import torch`", ""),
            ("test_start[import torch, neuralcollapse]", "`import torch, neuralcollapse`", "at most 0.3 s more"),
            ("test_start[neuralcollapse --help]", "`neuralcollapse --help`", "at most 1 s"),
        ],
    ),
]


def main() -> int:
    """Run, write, print."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pytest", str(HERE), "-q", f"--benchmark-json={report}"]
        code = subprocess.run(command, check=False).returncode
        if code:
            return code
        results = {result["name"]: result for result in json.loads(report.read_text())["benchmarks"]}
    update = results["test_moments"]["stats"]["median"]
    for name, result in results.items():
        if name.startswith("test_loop"):
            result["extra_info"]["note"] = f"{result['stats']['median'] / update:.1f}x `update`"
    text = render(results)
    (HERE / "README.md").write_text(text)
    print(text)
    return 0


def render(results: dict[str, dict[str, Any]]) -> str:
    """The page of tables."""
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench`: every number of a table comes from one run on the same machine. Ratios compare",
        "medians; times are noisy on shared machines, ratios less so.",
        "",
        f"Hardware: {_processor()}, {torch.get_num_threads()} threads, no GPU. Python {platform.python_version()}, "
        f"torch {torch.__version__}.",
    ]
    for heading, baseline, rows in TABLES:
        base = results[baseline]["stats"]["median"]
        lines += [
            "",
            f"## {heading}",
            "",
            "| | median | spread (min to max) | ratio | asked | |",
            "|---|---|---|---|---|---|",
        ]
        for name, label, asked in rows:
            stats = results[name]["stats"]
            spread = f"{_time(stats['min'])} to {_time(stats['max'])}"
            note = results[name]["extra_info"].get("note", "")
            ratio = stats["median"] / base
            lines.append(f"| {label} | {_time(stats['median'])} | {spread} | {ratio:.3g} | {asked} | {note} |")
    lines += [
        "",
        "The second loop is written as the paper's code has it. The measures that look at every pair",
        "of classes (CDNV and the two `max_equiangularity`) cost K^2 d multiplications each, 20 times those of one",
        "product M'M here, and a mean of absolute values has no shortcut: they are the last row.",
        "",
    ]
    return "\n".join(lines)


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.2e} s"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.exit(main())
