"""The library on one CUDA GPU beside bare torch, in under four minutes: python benchmarks/gpu.py [--out FOLDER]

Prints a table, and with --out writes it as DEVICE.md and DEVICE.json. Refuses on a device that others are using. Each
line compares work taken in alternation in this process; what is asked of a ratio stands beside it. `--device cpu
--quick` runs tiny sizes on the CPU, to see that all runs: such times mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import neuralcollapse as nc
from neuralcollapse.data.catalog import DATA_FOLDER

ROUNDS = 5
BUSY_PERCENT, BUSY_BYTES = 5, 2 * 2**30


@dataclass
class Line:
    """One comparison: seconds of the bare work and of ours, and what is asked of their ratio."""

    what: str
    bare: float
    ours: float
    asked: str = ""

    @property
    def ratio(self) -> float:
        return self.ours / self.bare


class Device:
    """The device that is measured, and whether sizes are tiny."""

    def __init__(self, name: str, *, quick: bool) -> None:
        self.name, self.quick = name, quick
        self.title = torch.cuda.get_device_name() if name == "cuda" else "CPU"

    def wait(self) -> None:
        if self.name == "cuda":
            torch.cuda.synchronize()

    def seconds(self, run: Callable[[], object]) -> float:
        self.wait()
        started = time.perf_counter()
        run()
        self.wait()
        return time.perf_counter() - started

    def alternate(self, *runs: Callable[[], object], rounds: int = ROUNDS) -> list[float]:
        """The median time of each, all of them once a round, after two rounds that do not count."""
        taken: list[list[float]] = []
        for _ in range(2 + (1 if self.quick else rounds)):
            taken.append([self.seconds(run) for run in runs])
        return [statistics.median(times) for times in zip(*taken[2:], strict=True)]


def busy(device: Device) -> str:
    """Why the device is not free; empty if it is."""
    if device.name != "cuda":
        return ""
    free, total = torch.cuda.mem_get_info()
    if total - free > BUSY_BYTES:
        return f"{(total - free) / 2**30:.1f} GiB of its memory are taken"
    try:
        query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        used = int(subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0])
    except (OSError, subprocess.CalledProcessError, ValueError, IndexError):
        return ""
    return f"it is {used} % busy" if used > BUSY_PERCENT else ""


# Number of classes, dimension, batch, batches.
MOMENTS = [(10, 512, 128, 400), (10, 512, 512, 200), (1_000, 2_048, 512, 80), (50_000, 1_024, 4_096, 40)]
MOMENTS += [(1_000, 1_024, 16_384, 10)]


def moments(device: Device) -> Iterator[Line]:
    """`ClassMoments.update`, a look at the end included, and the metric."""
    for num_classes, dim, batch, count in [(5, 16, 8, 4)] if device.quick else MOMENTS:
        torch.manual_seed(0)
        features = [torch.randn(batch, dim, device=device.name) for _ in range(4)]
        labels = [torch.randint(0, num_classes, (batch,), device=device.name) for _ in range(4)]
        total = torch.zeros(dim, dim, device=device.name)
        metric = nc.NeuralCollapse(num_classes, dim).to(device.name)
        found = nc.ClassMoments.zeros(num_classes, dim, device.name)

        def bare(features: list[Tensor] = features, total: Tensor = total, count: int = count) -> None:
            for number in range(count):
                total.addmm_(features[number % 4].T, features[number % 4])

        def update(
            found: nc.ClassMoments | nc.NeuralCollapse,
            features: list[Tensor] = features,
            labels: list[Tensor] = labels,
            count: int = count,
        ) -> None:
            for number in range(count):
                found.update(features[number % 4], labels[number % 4])

        times = device.alternate(bare, lambda: update(found), lambda: update(metric))  # noqa: B023 - called at once
        size = f"K={num_classes:,}, d={dim:,}, batch {batch:,}"
        yield Line(f"moments: `update`, {size}", times[0] / count, times[1] / count, "at most 2")
        yield Line(f"metric: `update`, {size}", times[0] / count, times[2] / count)


def measures(device: Device) -> Iterator[Line]:
    """The measures of many classes beside two float64 products."""
    num_classes, dim = (50, 16) if device.quick else (20_000, 1_024)
    found = nc.ClassMoments.zeros(num_classes, dim, device.name)
    for _ in range(4):
        labels = torch.randint(0, num_classes, (8_192,), device=device.name)
        found.update(torch.randn(8_192, dim, device=device.name), labels)
    weight = torch.randn(num_classes, dim, device=device.name)
    rows = weight.double()
    bare, ours = device.alternate(
        lambda: (rows.T @ rows, rows.T @ rows), lambda: nc.measures(found, weight, pairwise=False)
    )
    yield Line(f"measures without pairs, K={num_classes:,}, d={dim:,}; two float64 products", bare, ours)


def passes(device: Device) -> Iterator[Line]:
    """A measuring pass beside the bare forward pass over batches that lie on the device."""
    mlp = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    )
    networks = {
        "ResNet18, batch 512": (nc.build_network("resnet18", 10), (3, 32, 32), 512, 40, "at most 1.05"),
        "3-layer MLP, batch 128": (mlp, (1, 28, 28), 128, 200, "at most 2.5"),
    }
    for name, (network, shape, batch, count, asked) in networks.items():
        size, many = (4, 2) if device.quick else (batch, count)
        network.to(device.name).eval()
        images = torch.randn(size, *shape, device=device.name)
        labels = torch.arange(size, device=device.name) % 10
        loader = [(images, labels)] * many

        @torch.no_grad()
        def bare(network: nn.Module = network, loader: list[tuple[Tensor, Tensor]] = loader) -> None:
            for inputs, _ in loader:
                network(inputs)

        times = device.alternate(bare, lambda: nc.measure(network, loader, progress=False))  # noqa: B023
        yield Line(f"measuring pass with NC4: {name}", *times, asked)


# Number of classes, dimension, batch, and what is asked of the frames "blocks" and "none".
HEADS = [(10, 512, 128, "at most 1"), (1_000, 1_000, 256, "at most 1"), (10_000, 10_000, 1_024, "at most 0.2")]


def heads(device: Device) -> Iterator[Line]:
    """Forward and backward of the fixed heads beside `nn.Linear`."""
    dtypes = [torch.float32] if device.quick else [torch.float32, torch.bfloat16]
    for num_classes, dim, batch, asked in [(4, 8, 2, "")] if device.quick else HEADS:
        for dtype in dtypes:
            place = {"device": device.name, "dtype": dtype}
            features = torch.randn(batch, dim, requires_grad=True, **place)
            arrived = torch.randn(batch, num_classes, **place)
            layers: dict[str, nn.Module] = {"nn.Linear": nn.Linear(dim, num_classes, **place)}
            layers |= {
                rotation: nc.ETFClassifier(dim, num_classes, rotation=rotation, **place)
                for rotation in ("blocks", "none", "fast")
            }

            def steps(layer: nn.Module, features: Tensor = features, arrived: Tensor = arrived) -> Callable[[], None]:
                def run() -> None:
                    for _ in range(10):
                        features.grad = None
                        layer.zero_grad(set_to_none=True)
                        layer(features).backward(arrived)

                return run

            times = device.alternate(*(steps(layer) for layer in layers.values()))
            size = f"K={num_classes:,}, d={dim:,}, batch {batch:,}, {str(dtype).removeprefix('torch.')}"
            for (name, _), taken in zip(list(layers.items())[1:], times[1:], strict=True):
                wanted = asked if name != "fast" and dtype == torch.bfloat16 else "at most 1"
                yield Line(f"head `{name}`: {size}", times[0] / 10, taken / 10, wanted)


def training(device: Device) -> Iterator[Line]:
    """A step of `train` with ResNet18 (ImageNet stem, 32x32, batch 128) beside a bare CUDA graph of the same step."""
    if device.name != "cuda":
        return
    with tempfile.TemporaryDirectory() as folder:
        os.environ[DATA_FOLDER] = folder
        (Path(folder) / "mnist").mkdir()
        count = 60_000
        images = np.random.default_rng(0).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for stem, pictures, names in (
            ("train", images, labels),
            ("t10k", images[:10_000], labels[:10_000]),
        ):
            _write_idx(Path(folder) / f"mnist/{stem}-images-idx3-ubyte", pictures)
            _write_idx(Path(folder) / f"mnist/{stem}-labels-idx1-ubyte", names)
        seconds = {}
        for epochs in (2, 12):
            config = nc.TrainConfig(
                data="mnist",
                image_size=32,
                channels=3,
                network="resnet18",
                channels_last=True,
                batch_size=128,
                epochs=epochs,
                measure_at=[epochs],
                loggers=[],
            )
            seconds[epochs] = device.seconds(
                lambda config=config, epochs=epochs: nc.train(config, Path(folder) / f"run-{epochs}", progress=False)
            )
        bare = _bare_graph(torch.from_numpy(images).to(device.name), torch.from_numpy(labels).long().to(device.name))
        step = (seconds[12] - seconds[2]) / 10 / (count / 128)
        yield Line("training step of ResNet18, batch 128, bf16; bare CUDA graph", bare, step, "at most 1.11")


def _write_idx(file: Path, array: np.ndarray) -> None:
    header = bytes((0, 0, 8, array.ndim)) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    file.write_bytes(header + array.tobytes())


def _bare_graph(images: Tensor, labels: Tensor, batch: int = 128, steps: int = 400) -> float:
    """Seconds a step of a captured step, fed with random batches."""
    network = nc.build_network("resnet18", 10).to("cuda").to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    images = F.interpolate(images[:, None].float(), (32, 32)).byte()
    taken, wanted = images[:batch].clone(), labels[:batch].clone()

    def step() -> None:
        inputs = (taken.float() / 255).expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            loss = F.cross_entropy(network(inputs), wanted)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(11):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()

    def run() -> None:
        order = torch.randperm(len(labels), device="cuda")[: steps * batch]
        for rows in order.split(batch):
            taken.copy_(images[rows])
            wanted.copy_(labels[rows])
            graph.replay()

    device = Device("cuda", quick=False)
    return min(device.seconds(run) for _ in range(3)) / steps


PARTS = (moments, measures, passes, heads, training)


def page(device: Device, lines: list[Line]) -> str:
    """The table as Markdown."""
    rows = [
        f"| {line.what} | {1e6 * line.bare:,.1f} us | {1e6 * line.ours:,.1f} us | {line.ratio:.3g} | {line.asked} |"
        for line in lines
    ]
    head = f"# {device.title}\n\ntorch {torch.__version__}, written by `python benchmarks/gpu.py`.\n\n"
    return head + "\n".join(["| work | bare | ours | ratio | asked |", "| --- | --- | --- | --- | --- |", *rows]) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Run all parts; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for DEVICE.md and DEVICE.json")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("expected a CUDA GPU, found none: run this on a machine with one", file=sys.stderr)
        return 2
    device = Device(options.device, quick=options.quick)
    reason = busy(device)
    if reason:
        print(f"expected a free {device.title}, but {reason}: wait, or stop what is running", file=sys.stderr)
        return 2
    warnings.simplefilter("ignore", nc.NeuralCollapseWarning)
    lines: list[Line] = []
    for part in PARTS:
        for line in part(device):
            lines.append(line)
            print(f"{line.what}: {line.ratio:.3g}{f' ({line.asked})' if line.asked else ''}", flush=True)
    print("\n" + page(device, lines))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        stem = options.out / device.title.lower().replace(" ", "-")
        stem.with_suffix(".md").write_text(page(device, lines))
        stem.with_suffix(".json").write_text(json.dumps([asdict(line) for line in lines], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
