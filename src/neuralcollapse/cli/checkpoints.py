"""`neuralcollapse measure --checkpoints`: the checkpoints of any training, given its network and data by name."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuralcollapse.cli import classes
from neuralcollapse.cli.parser import add_options
from neuralcollapse.cli.printing import (
    print_accuracies,
    print_events,
    print_json,
    print_measures,
    print_more,
    train_packages,
    unfitted,
)
from neuralcollapse.cli.train import file_name
from neuralcollapse.errors import InputError, one_line

if TYPE_CHECKING:
    from torch import nn

    from neuralcollapse.capture.collect import Capture
    from neuralcollapse.checkpoints.series import Checkpoint
    from neuralcollapse.data.load import Data
    from neuralcollapse.runs.records import Record
    from neuralcollapse.training.config import TrainConfig

_BATCH = 512
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_GUESSING = 1.2  # times 1/K: an accuracy up to here is as good as none

NETWORK_AND_DATA = (
    "network",
    "data",
    "feature_dim",
    "stem",
    "frame",
    "learn_scale",
    "rotation",
    "network_options",
    "image_size",
    "channels",
    "samples_per_class",
)
"""Options of `train` that say what the network is and what it is measured on; kept in the run folder."""

_OWN = ("checkpoints", "normalize", "layer", "batch_size", "prefix", "device", "out", "force")


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    group = parser.add_argument_group(
        "checkpoints of any training",
        "One record for each checkpoint, in the order of training, in a run folder with its\npage. The same command "
        "again goes on: it measures what is new or has changed.\nOnly weights are loaded, whatever prefix they have.",
    )
    add = group.add_argument
    add(
        "--checkpoints",
        nargs="+",
        metavar="GLOB",
        help=".safetensors, or files of torch (.pt, .pth, .ckpt, .bin, .tar) without pickled objects; quote patterns",
    )
    add_options(group, ["network", "data"], defaults=False)
    add(
        "--normalize",
        metavar="HOW",
        help="how pixels become inputs; must be what the training used, or the numbers are those of another network. "
        "data (default): less the mean and over the standard deviation of the training images, as 'train' does; "
        "imagenet: ImageNet's; unit: from 0 to 1; half: from -1 to 1; or your own, of pixels from 0 to 1, as in "
        "0.49,0.48,0.45/0.25,0.24,0.26",
    )
    add("--layer", metavar="NAME", help="the layer that makes the logits, by its dotted name (found if not given)")
    add_options(group, ["layers", *NETWORK_AND_DATA[2:]])
    add("--batch-size", type=int, metavar="N", help=f"samples at a time; the numbers do not depend on it ({_BATCH})")
    add("--prefix", metavar="TEXT", help="what comes before the network's names in the files, if several fit")
    add("--device", metavar="NAME", help="where to run: cpu, cuda, mps, ... (cuda if there is one)")
    add("--out", metavar="RUN", help="the run folder (runs/DATA-NETWORK-checkpoints)")
    add("--force", action="store_true", default=None, help="overwrite an earlier run in that folder")
    parser.set_defaults(values=None, sources=None)


def given(options: argparse.Namespace) -> dict[str, Any]:
    """The options above that were given."""
    own = {name: getattr(options, name) for name in _OWN if getattr(options, name) is not None}
    return own | (options.values or {})


def run(options: argparse.Namespace) -> int:
    """The command."""
    for name in ("checkpoints", "network", "data"):
        if name not in given(options):
            raise InputError(
                f"expected --network, --data and --checkpoints together, got no --{name}: add it, as in "
                "'neuralcollapse measure --network timm:resnet18 --data imagefolder:PATH --checkpoints "
                '"ckpts/*.safetensors"\''
            )
    if options.batch_size is not None and options.batch_size < 1:
        raise InputError(f"expected --batch-size to be at least 1, got {options.batch_size}")
    with train_packages(format="html"):
        from neuralcollapse.checkpoints.order import find_checkpoints
        from neuralcollapse.checkpoints.series import measure_checkpoints
        from neuralcollapse.data.batches import Batches
        from neuralcollapse.data.pixels import Pixels
        from neuralcollapse.report.single import write_page
        from neuralcollapse.runs.folder import RunFolder
        from neuralcollapse.runs.reading import read_run
        from neuralcollapse.training.config import TrainConfig
        from neuralcollapse.training.network import network_for
        from neuralcollapse.training.run_config import named_paths
    files = find_checkpoints(options.checkpoints)  # before the data are read
    names = classes.names(options)
    config = TrainConfig(**options.values)
    out = Path(options.out or f"runs/{file_name(config.data)}-{file_name(config.network)}-checkpoints")
    if options.force:
        RunFolder.check_free(out, force=True, given=[*files, *named_paths(config)])
    device = device_named(options.device)
    data = data_of(config, options)
    model, layer = unwrapped(network_for(config, data), options.layer)
    pixels = Pixels(*pixel_statistics(options.normalize or "data", data), data.channels).to(device)
    model.register_forward_pre_hook(lambda module, inputs: (pixels(inputs[0]),))  # so that it takes uint8 images
    paths: dict[int, str] = {}
    more: dict[int, dict[str, float]] = {}

    def look(record: Record, capture: Capture) -> None:
        if options.more:
            more[record.epoch] = capture.more_measures(labels_said=True)

    def show(checkpoint: Checkpoint) -> None:
        record = checkpoint.record
        paths[record.epoch] = str(checkpoint.path)
        if not options.json:
            print(line(checkpoint), flush=True)

    decay = (options.weight_decay, options.feature_decay, options.bias_decay)
    records = measure_checkpoints(
        model.to(device),
        options.checkpoints,
        Batches(data.train, options.batch_size or _BATCH, device=device),
        layer,
        test_loader=Batches(data.test, options.batch_size or _BATCH, device=device) if len(data.test.labels) else None,
        out=out,
        force=bool(options.force),
        given=named_paths(config),
        prefix=options.prefix,
        config=_described(config, options, data),
        class_names=names or data.class_names,
        on_checkpoint=show,
        on_record=look,
        layers=list(config.layers),
        ignore_index=options.ignore_index,
        min_count=options.min_count,
        pairwise=options.pairwise,
        errors=options.errors,
        head_decay=decay if options.certify_head else None,
        device=device,
    )
    page = write_page(RunFolder.open(out))
    unit = read_run(out).unit
    found = classes.of_run(RunFolder.open(out), names) if options.per_class is not None else None
    written = "" if found is None else classes.write(options, found)
    if options.json:
        print_records(out, page, unit, [(paths.get(record.epoch), record) for record in records], found, more)
        return 0
    last = records[-1]
    print_last(last, unit, len(data.train.labels))
    print_events(records, unit)
    if last.epoch in more:
        print_more(more[last.epoch])
    if found is not None:
        classes.show(found)
    print(f"{written}run   {out}\npage  {page}")
    if last.train["accuracy"] <= _GUESSING / data.num_classes:
        print(
            "next  the accuracy is that of guessing: check that --normalize, --image-size and the order of the classes "
            "are those of the training"
        )
    elif last.train["accuracy"] < 1:
        print(
            f"next  not fitted yet ({unfitted(last.train['accuracy'])}): open the page; the same command again adds "
            "the checkpoints of longer training"
        )
    else:
        print("next  open the page; when there are more checkpoints, the same command again adds them")
    return 0


def print_records(
    run: Path,
    page: Path | None,
    unit: str,
    records: Sequence[tuple[str | None, Record]],
    found: classes.Classes | None = None,
    more: Mapping[int, Mapping[str, float]] | None = None,
) -> None:
    """JSON of many records, each with its checkpoint and further measures; and the last one's classes."""
    listed: list[dict[str, Any]] = [{"checkpoint": path, **asdict(record)} for path, record in records]
    for each in listed:
        if more and each["epoch"] in more:
            each["more"] = more[each["epoch"]]
    about = {"run": str(run), "page": page and str(page), "unit": unit}
    print_json({**about, "records": listed, **classes.as_json(found)})


def line(checkpoint: Checkpoint) -> str:
    """A checkpoint and the first of its numbers."""
    record = checkpoint.record
    numbers = [f"accuracy {record.train.get('accuracy', math.nan):.4f}"]
    for name in ("nc1", "nc2", "nc3"):
        numbers.append(f"{name.upper()} {record.measures.get(name, math.nan):<8.3g}")
    before = "" if checkpoint.fresh else " (measured before)"
    return f"{checkpoint.unit} {record.epoch:<6} {'  '.join(numbers)}  {checkpoint.path}{before}"


def print_last(record: Record, unit: str, samples: int) -> None:
    """The last record as a table."""
    from neuralcollapse.runs.records import describe_epoch, goal

    print(f"\ncollapse {describe_epoch(record, unit)}, training set, {samples:,} samples ({goal(record)})\n")
    print_measures(record)
    print_accuracies(record)


def device_named(name: str | None) -> Any:
    """The device of --device; the first CUDA device, or the CPU, where none is named."""
    import torch

    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"expected --device to be one that this machine has, got {name!r} ({one_line(error, 120)})"
        ) from None
    return device


def data_of(config: TrainConfig, options: argparse.Namespace) -> Data:
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


def unwrapped(network: nn.Module, layer: str | None) -> tuple[nn.Module, str]:
    """A network from elsewhere without its wrapper, and the name of the layer in it that makes the logits."""
    from neuralcollapse.networks.build import classifier_name
    from neuralcollapse.networks.external import ExternalNetwork

    name = classifier_name(network)
    if isinstance(network, ExternalNetwork) and name.startswith("network."):
        network, name = network.network, name.removeprefix("network.")
    return network, layer or name


def pixel_statistics(how: str, data: Data) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation of each channel, of pixels from 0 to 255, for a value of --normalize."""
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
    kept = {name: getattr(config, name) for name in NETWORK_AND_DATA}
    if config.frame == "learned":
        del kept["rotation"]
    return {
        **kept,
        "stem": options.values.get("stem"),
        "learn_scale": options.values.get("learn_scale"),
        "num_classes": data.num_classes,
        "normalize": options.normalize or "data",
    }
