"""`neuralcollapse measure --checkpoints`: those of any training, with the network and the data that names stand for."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuralcollapse.cli.printing import needs_train, pairwise, print_head, print_json, print_layers, print_table
from neuralcollapse.cli.train import file_name
from neuralcollapse.errors import InputError, one_line

if TYPE_CHECKING:
    from torch import nn

    from neuralcollapse.checkpoints.series import Checkpoint
    from neuralcollapse.data.load import Data
    from neuralcollapse.runs.records import Record
    from neuralcollapse.training.config import TrainConfig

_BATCH = 512
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_GUESSING = 1.2  # times 1/K: an accuracy up to here is as good as none


def add(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    group = parser.add_argument_group(
        "checkpoints of any training",
        "One record for each checkpoint, in the order of training, in a run folder with its page. The same command "
        "again goes on: it measures what is new or has changed. Only weights are loaded, whatever prefix they have.",
    )
    add = group.add_argument
    add(
        "--checkpoints",
        nargs="+",
        metavar="GLOB",
        help=".safetensors, or files of torch (.pt, .pth, .ckpt, .bin, .tar) without pickled objects; quote patterns",
    )
    add("--model", metavar="NAME", help="the network, by a name that 'train --network' takes, as in timm:resnet18")
    add("--data", metavar="NAME", help="the training set, by a name that 'train --data' takes, as in imagefolder:PATH")
    add(
        "--normalize",
        metavar="HOW",
        help="how pixels become inputs; must be what the training used, or the numbers are those of another network. "
        "data (default): less the mean and over the standard deviation of the training images, as 'train' does; "
        "imagenet: ImageNet's; unit: from 0 to 1; half: from -1 to 1; or your own, of pixels from 0 to 1, as in "
        "0.49,0.48,0.45/0.25,0.24,0.26",
    )
    add("--classifier", metavar="LAYER", help="the layer that makes the logits, by its name (found by itself)")
    add("--layers", nargs="+", metavar="LAYER", help="inner layers to measure too, by their names in the model")
    add("--feature-dim", type=int, metavar="D", help="of the features that the classifier sees, as in 'train'")
    add("--stem", choices=("imagenet", "small"), help="first layers of a ResNet, as in 'train' (imagenet)")
    add("--head", choices=("learned", "etf"), help="the classifier that was trained: learned (default), or a fixed ETF")
    add("--learn-scale", action="store_true", default=None, help="with --head etf: the length of its rows was learned")
    add("--rotation", choices=("blocks", "none", "fast"), help="with --head etf: its frame (blocks; fast in 0.1.0)")
    add("--network-options", metavar="JSON", help="more options of the network, as in '{\"width\": 64}'")
    add("--image-size", type=int, metavar="N", help="resize images to N x N pixels")
    add("--channels", type=int, metavar="C", help="3 repeats grey images to three channels")
    add("--samples-per-class", type=int, metavar="N", help="measure on N samples of each class only, for a quick look")
    add("--batch-size", type=int, metavar="N", help=f"samples at a time; the numbers do not depend on it ({_BATCH})")
    add("--prefix", metavar="TEXT", help="what stands before the model's names in the files, where several would do")
    add("--device", metavar="NAME", help="where to run: cpu, cuda, mps, ... (cuda if there is one)")
    add("--out", metavar="RUN", help="the run folder (runs/DATA-MODEL-checkpoints)")
    add("--force", action="store_true", default=None, help="overwrite an earlier run in that folder")


OPTIONS = (
    "checkpoints",
    "model",
    "data",
    "normalize",
    "classifier",
    "layers",
    "feature_dim",
    "stem",
    "head",
    "learn_scale",
    "rotation",
    "network_options",
    "image_size",
    "channels",
    "samples_per_class",
    "batch_size",
    "prefix",
    "device",
    "out",
    "force",
)
"""The options above, None where they were not given."""


def run(options: argparse.Namespace) -> int:
    """The command."""
    for name in ("checkpoints", "model", "data"):
        if getattr(options, name) is None:
            raise InputError(
                f"expected --model, --data and --checkpoints together, got no --{name}: add it, as in 'neuralcollapse "
                'measure --model timm:resnet18 --data imagefolder:PATH --checkpoints "ckpts/*.safetensors"\''
            )
    if options.batch_size is not None and options.batch_size < 1:
        raise InputError(f"expected --batch-size to be at least 1, got {options.batch_size}")
    try:
        from neuralcollapse.checkpoints.order import find_checkpoints
        from neuralcollapse.checkpoints.series import measure_checkpoints
        from neuralcollapse.data.batches import Batches
        from neuralcollapse.report.single import write_page
        from neuralcollapse.runs.folder import RunFolder
        from neuralcollapse.training.network import network_for
        from neuralcollapse.training.run import named_paths
    except ImportError as error:
        raise needs_train(error) from None
    files = find_checkpoints(options.checkpoints)  # before the data are read
    config = _config(options)
    out = Path(options.out or f"runs/{file_name(options.data)}-{file_name(options.model)}-checkpoints")
    if options.force:
        RunFolder.check_free(out, force=True, given=[*files, *named_paths(config)])
    device = _device(options.device)
    data = _data(config, options)
    model, classifier = _inside(network_for(config, data), options.classifier)
    _normalised(model, options.normalize or "data", data, device)
    paths: dict[int, str] = {}

    def show(checkpoint: Checkpoint) -> None:
        record = checkpoint.record
        paths[record.epoch] = str(checkpoint.path)
        if not options.json:
            print(_line(checkpoint), flush=True)

    decay = (options.weight_decay, options.feature_decay, options.bias_decay)
    records = measure_checkpoints(
        model.to(device),
        options.checkpoints,
        Batches(data.train, options.batch_size or _BATCH, device=device),
        classifier,
        test_loader=Batches(data.test, options.batch_size or _BATCH, device=device) if len(data.test.labels) else None,
        out=out,
        force=bool(options.force),
        given=named_paths(config),
        prefix=options.prefix,
        config=_described(config, options, data),
        class_names=data.class_names,
        on_checkpoint=show,
        layers=list(config.layers),
        ignore_index=options.ignore_index,
        min_count=options.min_count,
        pairwise=pairwise(options),
        head_decay=decay if options.certify_head else None,
        device=device,
    )
    page = write_page(RunFolder.open(out))
    if options.json:
        listed = [{"checkpoint": paths.get(record.epoch), **asdict(record)} for record in records]
        print_json({"run": str(out), "page": str(page), "unit": _unit(out), "records": listed})
    else:
        _print_last(records[-1], _unit(out), data, out, page)
    return 0


def _config(options: argparse.Namespace) -> TrainConfig:
    """The network and the data, as a training here would have them."""
    from neuralcollapse.training.config import TrainConfig

    try:
        network_options = json.loads(options.network_options or "{}")
    except ValueError as error:
        raise InputError(
            f"expected --network-options as JSON, as in '{{\"width\": 64}}', got {options.network_options!r} ({error})"
        ) from None
    given = {
        "samples_per_class": options.samples_per_class,
        "image_size": options.image_size,
        "channels": options.channels,
        "feature_dim": options.feature_dim,
        "stem": options.stem,
        "classifier": options.head,
        "learn_scale": options.learn_scale,
        "rotation": options.rotation,
        "layers": tuple(name for text in options.layers or () for name in text.split(",") if name),
    }
    return TrainConfig(
        data=options.data,
        network=options.model,
        network_options=network_options,
        **{name: value for name, value in given.items() if value is not None},
    )


def _device(name: str | None) -> Any:
    import torch

    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"expected --device to be one that this machine has, got {name!r} ({one_line(error, 120)})"
        ) from None
    return device


def _data(config: TrainConfig, options: argparse.Namespace) -> Data:
    """The data; a subset keeps the mean and standard deviation of all training images, as the training saw them."""
    from neuralcollapse.data import label_changes
    from neuralcollapse.data.load import load_data
    from neuralcollapse.data.splits import Split

    data = load_data(config.data, **config.data_options | {"samples_per_class": None})
    if config.samples_per_class is not None:
        images, labels = data.train.images, data.train.labels
        chosen = label_changes.samples_per_class(labels, config.samples_per_class, data.class_names, config.seed)
        data = replace(data, train=Split(images[chosen], labels[chosen]))
    if options.num_classes is None:
        return data
    if options.num_classes < data.num_classes:
        raise InputError(
            f"expected --num-classes of at least {data.num_classes}, the classes of {config.data}, got "
            f"{options.num_classes}"
        )
    others = [f"class {number}" for number in range(data.num_classes, options.num_classes)]
    return replace(data, class_names=(*data.class_names, *others))


def _inside(network: nn.Module, classifier: str | None) -> tuple[nn.Module, str]:
    """The network itself, where one from elsewhere came wrapped, and the name of its classifier in it."""
    from neuralcollapse.networks.build import classifier_name
    from neuralcollapse.networks.external import ExternalNetwork

    name = classifier_name(network)
    if isinstance(network, ExternalNetwork) and name.startswith("network."):
        network, name = network.network, name.removeprefix("network.")
    return network, classifier or name


def _normalised(model: nn.Module, how: str, data: Data, device: Any) -> None:
    """Have the model take uint8 images."""
    from neuralcollapse.data.pixels import Pixels

    pixels = Pixels(*pixel_statistics(how, data), data.channels).to(device)
    model.register_forward_pre_hook(lambda module, inputs: (pixels(inputs[0]),))


def pixel_statistics(how: str, data: Data) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation of each channel, of pixels from 0 to 255, that --normalize stands for.

    Raises:
        InputError: neither a name nor numbers, or as many as there are no channels.
    """
    if how == "data":
        return data.mean, data.std
    named = {"imagenet": _IMAGENET, "unit": ((0.0,), (1.0,)), "half": ((0.5,), (0.5,))}
    mean, std = named[how] if how in named else _numbers(how)
    counts = sorted({1, data.channels})
    if len(mean) not in counts or len(std) not in counts:
        raise InputError(
            f"--normalize {how} has {len(mean)} means and {len(std)} standard deviations, and the network sees "
            f"{data.channels} channels: give {' or '.join(map(str, counts))} of each, or see --channels"
        )
    return [255 * value for value in mean], [255 * value for value in std]


def _numbers(how: str) -> tuple[Sequence[float], Sequence[float]]:
    halves = how.split("/")
    try:
        mean, std = ([float(text) for text in half.split(",")] for half in halves)
    except ValueError:
        raise InputError(
            f"expected --normalize to be data, imagenet, unit, half, or numbers as in 0.49,0.48,0.45/0.25,0.24,0.26, "
            f"got {how!r}"
        ) from None
    if not all(0 <= value <= 1 for value in mean) or not all(0 < value <= 1 for value in std):
        raise InputError(f"expected means and standard deviations of pixels from 0 to 1, got --normalize {how}")
    return mean, std


def _described(config: TrainConfig, options: argparse.Namespace, data: Data) -> dict[str, Any]:
    """What the run folder keeps of how it was measured; None for what was not asked for."""
    kept = (
        "data",
        "network",
        "classifier",
        "feature_dim",
        "network_options",
        "image_size",
        "channels",
        "samples_per_class",
    )
    return {
        **{name: getattr(config, name) for name in kept},
        "stem": options.stem,
        "learn_scale": options.learn_scale,
        **({"rotation": config.rotation} if config.classifier == "etf" else {}),
        "num_classes": data.num_classes,
        "normalize": options.normalize or "data",
    }


def _unit(out: Path) -> str:
    from neuralcollapse.runs.reading import read_run

    return read_run(out).unit


def _line(checkpoint: Checkpoint) -> str:
    record = checkpoint.record
    numbers = [f"accuracy {record.train.get('accuracy', math.nan):.4f}"]
    for name in ("nc1", "nc2", "nc3"):
        numbers.append(f"{name.upper()} {record.measures.get(name, math.nan):<8.3g}")
    before = "" if checkpoint.fresh else " (measured before)"
    return f"{checkpoint.unit} {record.epoch:<6} {'  '.join(numbers)}  {checkpoint.path}{before}"


def _print_last(record: Record, unit: str, data: Data, out: Path, page: Path) -> None:
    from neuralcollapse.runs.words import describe_epoch

    samples = len(data.train.labels)
    print(f"\ncollapse {describe_epoch(record, unit)}, training set, {samples:,} samples (all but NC bias go to 0)\n")
    print_table(record.measures)
    print_head({"head": record.head} if record.head else {})
    print_layers(record.layers)
    test = f"   test accuracy {record.test['accuracy']:.4f}" if record.test else ""
    print(f"\ntrain accuracy {record.train['accuracy']:.4f}{test}")
    print(f"run   {out}\npage  {page}")
    if record.train["accuracy"] <= _GUESSING / data.num_classes:
        print(
            "next  the accuracy is that of guessing: check that --normalize, --image-size and the order of the classes "
            "are those of the training"
        )
    else:
        print("next  open the page; when there are more checkpoints, the same command again adds them")
