"""`neuralcollapse ood`: how well outlier scores tell other data from that of a network; a table and a page."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuralcollapse.cli import checkpoints
from neuralcollapse.cli.measure import read_features
from neuralcollapse.cli.parser import add_options
from neuralcollapse.cli.printing import print_json, train_packages
from neuralcollapse.errors import InputError, NeuralCollapseWarning

if TYPE_CHECKING:
    from torch import Tensor, nn

    from neuralcollapse.data.load import Data
    from neuralcollapse.ood.scorer import OODScorer

_OF_SCORES = ("scores", "neco_dim", "neco_standardize", "neco_max_logit", "nci_alpha", "vim_dim", "fdbd_center")
_OF_NETWORK = ("checkpoints", "normalize", "layer", "prefix", "device", "batch_size")
_BATCH = 512
_BRIGHTER = 2.0  # times the brightest pixel of the inside images: beyond that, brightness alone tells images apart
Scores = dict[str, "Tensor"]
# What was scored: title, subtitle, scorer, scores inside and outside, and the AUROC of mean brightness alone of images.
_Scored = tuple[str, str, "OODScorer", Scores, dict[str, Scores], dict[str, float]]


def add(commands: Any) -> None:
    """Add the command and its options."""
    parser = commands.add_parser(
        "ood",
        help="how well outlier scores tell other data from that of a network",
        description="Fit outlier scores (NECO, NCI, fDBD, ViM, residual, Mahalanobis, energy, MSP and others) to the "
        "training set of a network, and see how well they tell its test set from other data: AUROC, AUPR and FPR95, "
        "and a page with histograms. Of a run folder, of any network with its checkpoints and data, or of files of "
        "features.",
        epilog="examples:\n"
        "  neuralcollapse ood runs/fashion-mnist-resnet18-learned --outside mnist:FOLDER\n"
        "  neuralcollapse ood --network timm:resnet18 --checkpoints 'ckpts/*.safetensors' --data imagefolder:PATH "
        "--outside imagefolder:OTHER --image-size 224 --normalize imagenet\n"
        "  neuralcollapse ood train.npz --inside test.npz --outside other.npz\n",
    )
    parser.add_argument(
        "path",
        type=Path,
        nargs="?",
        help="a run folder, or a .npz or .safetensors file of the training set's features, labels, weight and bias",
    )
    parser.add_argument(
        "--outside", nargs="+", metavar="DATA", help="other data, named as for --data; their test set is scored if any"
    )
    parser.add_argument(
        "--inside", type=Path, metavar="FILE", help="with a file of features: those of held-out inputs like them"
    )
    group = parser.add_argument_group("the scores").add_argument
    group("--scores", metavar="NAMES", help="some of them, as in neco,vim (all)")
    group("--neco-dim", metavar="Q", help="NECO's directions (K-1), or a share of the variance, as in 0.9")
    group("--neco-standardize", action="store_true", default=None, help="NECO of features over their deviation")
    group("--neco-max-logit", action="store_true", default=None, help="NECO times the largest logit")
    group("--nci-alpha", type=float, metavar="A", help="weight of |h|_1 in NCI (0)")
    group("--vim-dim", type=int, metavar="D", help="directions that the residual leaves out (some half of d)")
    group("--fdbd-center", metavar="WHERE", help="mean or origin: what fDBD measures lengths from (mean)")
    group = parser.add_argument_group("any network")
    group.add_argument(
        "--checkpoints", nargs="+", metavar="GLOB", help="weights; of several files the last in the order of training"
    )
    add_options(group, ["network", "data"], defaults=False)
    group.add_argument("--normalize", metavar="HOW", help="as for 'measure': data, imagenet, unit, half or numbers")
    group.add_argument("--layer", metavar="NAME", help="the layer that makes the logits (found if not given)")
    add_options(group, checkpoints.NETWORK_AND_DATA[2:])
    group.add_argument("--prefix", metavar="TEXT", help="what comes before the network's names in the files")
    group.add_argument("--batch-size", type=int, metavar="N", help=f"samples at a time ({_BATCH})")
    group.add_argument("--device", metavar="NAME", help="where to run: cpu, cuda, mps, ... (cuda if there is one)")
    parser.add_argument(
        "--trust-code", action="store_true", help="of a run folder: import the code that its configuration names"
    )
    parser.add_argument("--save", type=Path, metavar="FILE", help="keep the fitted scorer (.safetensors)")
    parser.add_argument("--out", type=Path, metavar="PAGE", help="the page (outliers.html)")
    parser.add_argument("--force", action="store_true", help="overwrite what is there")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run, values=None, sources=None, num_classes=None)


def run(options: argparse.Namespace) -> int:
    """The command."""
    if not options.outside:
        raise InputError("expected other data with --outside, as in 'neuralcollapse ood RUN --outside mnist:FOLDER'")
    if len(set(options.outside)) < len(options.outside):
        raise InputError(f"--outside names the same data twice: {' '.join(options.outside)}")
    page = options.out or Path("outliers.html")
    for place in (page, options.save):
        if place is not None and place.is_dir():
            raise InputError(f"expected a file to write, got the folder {place}: name a file in it")
        if place is not None and place.exists() and not options.force:
            raise InputError(f"{place} exists: choose another with --out or --save, or overwrite with --force")
    with train_packages(format="html"):
        from neuralcollapse.ood.evaluation import evaluate
        from neuralcollapse.ood.page import advice, outliers_page
        from neuralcollapse.report.page import save_text

    of_network = [name for name in _OF_NETWORK if getattr(options, name) is not None] + list(options.values or {})
    is_file = options.path is not None and not options.path.is_dir()
    if options.path is not None:
        allowed = () if is_file else ("device", "batch_size")
        wrong = ["--" + name.replace("_", "-") for name in of_network if name not in allowed]
        if wrong:
            raise InputError(
                f"expected either {options.path} or a network ({', '.join(wrong)}), got both: leave one out"
            )
    if is_file != (options.inside is not None):
        raise InputError(
            "--inside is for files of features: a network's own test set is scored as inside"
            if options.inside is not None
            else "expected held-out features with --inside, as in 'neuralcollapse ood train.npz --inside test.npz "
            "--outside other.npz'"
        )
    title, subtitle, scorer, inside, outside, bright = _of_files(options) if is_file else _of_network(options)
    results = {name: evaluate(inside, found) for name, found in outside.items()}
    if options.save is not None:
        scorer.save(options.save)
    called = _called(list(outside))
    told = ", ".join(f"{called[name]} {value:.4f}" for name, value in bright.items())
    told = told and f"A baseline without a network: mean brightness alone has the AUROC {told}."
    arrays = {called[name]: {key: value.numpy() for key, value in found.items()} for name, found in outside.items()}
    made = outliers_page(
        title,
        f"{subtitle}. {told}" if told else subtitle,
        {called[name]: found for name, found in results.items()},
        {key: value.numpy() for key, value in inside.items()},
        arrays,
        scorer.undefined,
    )
    save_text(made.html(), page)
    if options.json:
        print_json(
            {
                "page": str(page),
                "scorer": options.save and str(options.save),
                "advice": advice(results),
                "undefined": scorer.undefined,
                "outside": results,
                "brightness": bright,
            }
        )
        return 0
    print(f"{title}: {subtitle}")
    _print(results)
    for name, reason in scorer.undefined.items():
        print(f"\nleft out: {name}: {reason}")
    print(f"\n{advice(results)}")
    if told:
        print(told)
    print()
    if options.save is not None:
        print(f"file  {options.save}")
    print(f"page  {page}\nnext  open the page")
    return 0


def _called(names: Sequence[str]) -> dict[str, str]:
    """What a page calls data by: their kind, or the last part of their path, where that tells them apart."""
    kinds = {name: name.partition(":")[0] for name in names}
    lasts = {name: Path(name.partition(":")[2] or name).name or name for name in names}
    generic = {"idx", "imagefolder"}
    short = {name: kinds[name] if ":" in name and kinds[name] not in generic else lasts[name] for name in names}
    return short if len(set(short.values())) == len(names) else {name: name for name in names}


def _print(results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    for outside, found in results.items():
        print(f"\n  {'outside: ' + outside:<34} {'AUROC':>18} {'AUPR in':>9} {'AUPR out':>9} {'FPR95':>8}")
        for name in sorted(found, key=lambda name: -found[name]["auroc"]):
            each = found[name]
            print(
                f"  {name:<34} {each['auroc']:>9.4f} ± {each['auroc_error']:.4f} {each['aupr_in']:>9.4f} "
                f"{each['aupr_out']:>9.4f} {each['fpr95']:>8.4f}"
            )


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """The options of the scores that were given."""
    values = {name: getattr(options, name) for name in _OF_SCORES if getattr(options, name) is not None}
    if "scores" in values:
        values["scores"] = [name.strip().replace("-", "_") for name in values["scores"].split(",") if name.strip()]
    if "neco_dim" in values:
        try:
            values["neco_dim"] = int(values["neco_dim"]) if values["neco_dim"].isdigit() else float(values["neco_dim"])
        except ValueError:
            raise InputError(f"expected --neco-dim as a number, got {values['neco_dim']!r}") from None
    return values


def _of_files(options: argparse.Namespace) -> _Scored:
    import torch

    from neuralcollapse.geometry.moments import ClassMoments
    from neuralcollapse.ood.scorer import OODScorer

    arrays, _ = read_features(options.path, required=("features", "labels", "weight"))
    tensors = {name: torch.as_tensor(array) for name, array in arrays.items()}
    weight = tensors["weight"]
    moments = ClassMoments.from_batch(tensors["features"], tensors["labels"], len(weight))
    scorer = OODScorer.from_moments(
        moments, weight, tensors.get("bias"), features=tensors["features"], **_given(options)
    )

    def scored(path: Path) -> Scores:
        features = torch.as_tensor(read_features(path, required=("features",))[0]["features"])
        if len(features) == 0:
            raise InputError(f"{path}: expected features of at least one input, got none: give another file")
        try:
            return scorer.score(features)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    inside = scored(options.inside)
    outside = {name: scored(Path(name)) for name in options.outside}
    count = len(next(iter(inside.values())))
    subtitle = f"fitted to {moments.num_samples:,} training features, inside: {count:,} of {options.inside}"
    return f"Outliers: {options.path.name}", subtitle, scorer, inside, outside, {}


def _of_network(options: argparse.Namespace) -> _Scored:
    with train_packages():
        from neuralcollapse.data.batches import Batches
        from neuralcollapse.ood.scorer import OODScorer
    device, size = checkpoints.device_named(options.device), options.batch_size or _BATCH
    if size < 1:
        raise InputError(f"expected --batch-size to be at least 1, got {size}")
    find = _run_folder if options.path is not None else _named
    title, data, model, layer, weights = find(options)
    if not len(data.test.labels):
        raise InputError(f"the data have no test images to score as inside: give data with a test set, {title}")
    others = {name: _outside(name, data) for name in options.outside}
    model = model.to(device)
    scorer = OODScorer.fit(model, Batches(data.train, size, device=device), layer, device=device, **_given(options))
    inside = scorer.score_loader(model, Batches(data.test, size, device=device), device=device)
    outside = {
        name: scorer.score_loader(model, Batches(split, size, device=device), device=device)
        for name, split in others.items()
    }
    subtitle = (
        f"fitted to {len(data.train.labels):,} training images, inside: {len(data.test.labels):,} test images, "
        f"weights: {weights}"
    )
    bright = {name: _brightness_alone(data.test, split) for name, split in others.items()}
    return f"Outliers: {title}", subtitle, scorer, inside, outside, bright


def _brightness_alone(inside: Any, outside: Any) -> float:
    """The AUROC of the mean pixel, taken as a score for or against: a baseline that needs no network."""
    import torch

    from neuralcollapse.ood.evaluation import evaluate

    means = (
        torch.cat([images.double().flatten(1).mean(1) for images in each.images.split(_BATCH)])
        for each in (inside, outside)
    )
    found: float = evaluate(*means)["auroc"]
    return max(found, 1 - found)


def _run_folder(options: argparse.Namespace) -> tuple[str, Data, nn.Module, str, str]:
    """The data of a run, its network with the weights of the last checkpoint, taking uint8 images, and its head."""
    with train_packages():
        from neuralcollapse.checkpoints.weights import fit_weights, read_weights
        from neuralcollapse.data.load import load_data
        from neuralcollapse.report.single import data_name
        from neuralcollapse.runs.folder import RunFolder
        from neuralcollapse.training.network import network_for
        from neuralcollapse.training.run_config import check_trusted, read_config
        from neuralcollapse.training.step import Classification
    folder = RunFolder.open(options.path)
    if not folder.checkpoints():
        raise InputError(
            f"{folder.path} holds no checkpoints: give its weights with --network, --data and --checkpoints"
        )
    config = read_config(folder)
    check_trusted(config, folder, options.trust_code)
    data = load_data(config.data, **config.data_options)
    module = Classification(network_for(config, data), config, data)
    epoch, path = folder.checkpoints()[-1]
    fit_weights(module.network, read_weights(path), path)
    return (
        f"{data_name(config.data)}, {config.network}",
        data,
        module,
        f"network.{module.classifier_name}",
        f"epoch {epoch}",
    )


def _named(options: argparse.Namespace) -> tuple[str, Data, nn.Module, str, str]:
    """The same for a network by name with its checkpoints and data."""
    values = options.values or {}
    for name in ("network", "data", "checkpoints"):
        if name not in values and getattr(options, name, None) is None:
            raise InputError(
                f"expected a run folder, files of features, or --network, --data and --checkpoints together, got no "
                f"--{name}: see 'neuralcollapse ood --help'"
            )
    with train_packages():
        from neuralcollapse.checkpoints.order import find_checkpoints, training_order
        from neuralcollapse.checkpoints.weights import fit_weights, read_weights
        from neuralcollapse.data.pixels import Pixels
        from neuralcollapse.report.single import data_name
        from neuralcollapse.training.config import TrainConfig
        from neuralcollapse.training.network import network_for
    path = training_order(find_checkpoints(options.checkpoints)).checkpoints[-1][1]
    weights = read_weights(path)
    config = TrainConfig(**values)
    data = checkpoints.data_of(config, options)
    model, layer = checkpoints.unwrapped(network_for(config, data), options.layer)
    fit_weights(model, weights, path, prefix=options.prefix)
    pixels = Pixels(*checkpoints.pixel_statistics(options.normalize or "data", data), data.channels)
    model.register_forward_pre_hook(lambda module, inputs: (pixels.to(inputs[0].device)(inputs[0]),))
    return f"{data_name(config.data)}, {config.network}", data, model, layer, str(path)


def _outside(name: str, inside: Data) -> Any:
    """The images of other data, in the shape of the inside ones."""
    from neuralcollapse.data.load import load_data

    shape = inside.train.images.shape[1:]
    square = shape[1] == shape[2]
    try:
        found = load_data(name, image_size=shape[1] if square else None)
    except InputError as error:
        raise InputError(f"--outside {name}: {error}") from None
    split = found.test if len(found.test.labels) else found.train
    if split.images.shape[1:] != shape:
        got, wanted = ("x".join(map(str, each)) for each in (split.images.shape[1:], shape))
        raise InputError(
            f"expected images {wanted} (channels, height, width) outside as inside, got {got} from {name}: "
            "convert them, or see --image-size"
        )
    brightest = [max(float(each.max()), 1.0) for each in (inside.train.images, split.images)]
    if not 1 / _BRIGHTER <= brightest[1] / brightest[0] <= _BRIGHTER:
        warnings.warn(
            f"the pixels of {name} reach {brightest[1]:.0f} and those inside {brightest[0]:.0f}: brightness alone may "
            "tell them apart, which is no merit of a score",
            NeuralCollapseWarning,
            stacklevel=2,
        )
    return split
