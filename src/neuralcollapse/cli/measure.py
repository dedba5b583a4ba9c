"""`neuralcollapse measure`: a file of features, the checkpoints of a run, or those of any training."""

from __future__ import annotations

import argparse
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuralcollapse.cli import checkpoints, classes
from neuralcollapse.cli.checkpoints import line, print_last, print_records
from neuralcollapse.cli.printing import (
    print_json,
    print_measures,
    print_more,
    record_of_features,
    train_packages,
    unfitted,
)
from neuralcollapse.errors import InputError
from neuralcollapse.runs.files import read_mapping
from neuralcollapse.runs.folder import Record, RunFolder
from neuralcollapse.runs.records import goal

if TYPE_CHECKING:
    from torch import Tensor

    from neuralcollapse.capture.collect import Capture

_ARRAYS = ("features", "labels", "weight", "bias")
_INFLATED_BYTES = 2**30  # of a file's arrays, or so many times the file:
_INFLATED = 200
_DECAYS = ("weight_decay", "feature_decay", "bias_decay")
_OF_FILES = (*_DECAYS, "features_sign")  # options of --certify-head


def add(commands: Any) -> None:
    """Add the command and its options."""
    parser = commands.add_parser(
        "measure",
        help="measure a file of features, the checkpoints of a run, or those of any training",
        description="Measure collapse in a file of features (.npz or .safetensors with arrays features (N, d) and "
        "labels (N,), and the classifier's weight (K, d), bias (K,) and class_names (K,) where it has them), in the "
        "checkpoints of a run folder, or in those of any training, given its network and data.",
        epilog="examples:\n"
        "  neuralcollapse measure features.npz --json\n"
        "  neuralcollapse measure features.npz --per-class classes.csv --class-names names.txt\n"
        "  neuralcollapse measure runs/digits-mlp-learned\n"
        "  neuralcollapse measure --network timm:resnet18 --checkpoints 'ckpts/*.safetensors' --data imagefolder:PATH "
        "--image-size 224 --normalize imagenet\n",
    )
    parser.add_argument("path", type=Path, nargs="?", help="a .npz or .safetensors file, or a run folder")
    parser.add_argument(
        "--num-classes", type=int, metavar="K", help="number of classes, if it cannot be read from the weight or data"
    )
    parser.add_argument(
        "--test-data",
        type=Path,
        metavar="FILE",
        help="of a file: another one with the features and labels of a test set, measured beside it",
    )
    parser.add_argument("--ignore-index", type=int, metavar="LABEL", help="leave out samples with this label")
    parser.add_argument("--min-count", type=int, metavar="N", help="leave out classes with fewer samples than N")
    parser.add_argument("--no-pairwise", action="store_true", help="skip the measures whose cost grows with K^2")
    parser.add_argument("--pairs", type=int, metavar="P", help="take those over a sample of P pairs of classes")
    parser.add_argument(
        "--errors",
        action="store_true",
        help="add values of NC1 without the bias of few samples, and standard errors",
    )
    parser.add_argument(
        "--more",
        action="store_true",
        help="add spectra and ranks, uniformity, one-vs-rest margins (GNC) and uniform duality (of checkpoints: of "
        "those that this call measures)",
    )
    parser.add_argument(
        "--scree", type=Path, metavar="FILE", help="of a file: draw the spectra as a .png, .svg or .pdf figure"
    )
    parser.add_argument(
        "--certify-head",
        action="store_true",
        help="compare the last layer with the exact optimum of the unconstrained feature model",
    )
    parser.add_argument("--weight-decay", type=float, metavar="L", help="of the training, for --certify-head")
    parser.add_argument(
        "--feature-decay", type=float, metavar="L", help="of the features (from the balance of W and H)"
    )
    parser.add_argument("--bias-decay", type=float, metavar="L", help="of the bias (the weight decay)")
    parser.add_argument(
        "--features-sign",
        choices=("auto", "real", "nonnegative"),
        help="of a file, for --certify-head: the sign of the model's features (auto: that of the measured ones)",
    )
    parser.add_argument(
        "--trust-code",
        action="store_true",
        help="of a run folder: import the code that its configuration names, as in network: my_module:function",
    )
    classes.add(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    checkpoints.add(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """The command."""
    options.pairwise = _pairwise(options)
    classes.check(options)
    given = checkpoints.given(options)
    if options.test_data is not None and (options.path is None or options.path.is_dir()):
        raise InputError(
            "--test-data is for a file of features: leave it out, as the test set of a run folder or of --data is "
            "measured by itself"
        )
    if options.path is None:
        if not given:
            raise InputError(
                "expected a file of features, a run folder, or --network, --data and --checkpoints; see "
                "'neuralcollapse measure --help'"
            )
        _check_decays(options)
        if options.features_sign is not None:
            raise InputError("--features-sign is for files: a pass over the data sees the sign of the features itself")
        if options.certify_head and options.weight_decay is None:
            raise InputError("--certify-head needs --weight-decay of the training: add it")
        if options.scree is not None:
            raise InputError("--scree is for files: leave it out")
        return checkpoints.run(options)
    if given:
        flags = ", ".join("--" + name.replace("_", "-") for name in given)
        raise InputError(
            f"expected either {options.path} or the checkpoints of a training ({flags}), got both: leave one out"
        )
    return _run_folder(options) if options.path.is_dir() else _file(options)


def _run_folder(options: argparse.Namespace) -> int:
    """Measure the kept checkpoints of a run again."""
    folder = RunFolder.open(options.path)
    for_files = [options.num_classes, options.ignore_index, options.min_count, options.pairs]
    for_files += [options.scree, *(getattr(options, name) for name in _OF_FILES)]
    if options.no_pairwise or options.errors or any(value is not None for value in for_files):
        raise InputError(
            "only --certify-head, --more, --per-class, --class-names, --trust-code and --json are for runs, the other "
            "options for files: leave them out"
        )
    with train_packages():
        from neuralcollapse.checkpoints.series import Checkpoint
        from neuralcollapse.training.remeasure import remeasure
    if (folder.path / "checkpoints.json").is_file():
        raise InputError(
            f"expected the run folder of a training, got that of measured checkpoints: 'neuralcollapse report "
            f"{options.path}' shows it"
        )
    if not folder.checkpoints():
        raise InputError(
            f"{options.path} holds no checkpoints to measure: 'neuralcollapse report {options.path}' shows its "
            "records; weights kept elsewhere are measured by --network, --checkpoints and --data"
        )
    files = dict(folder.checkpoints())
    names = classes.names(options) or read_mapping(folder.path / "environment.json").get("class_names")
    last: list[Capture] = []
    more: dict[int, dict[str, float]] = {}

    def show(record: Record, capture: Capture) -> None:
        last[:] = [capture]
        if options.more:
            more[record.epoch] = capture.more_measures(labels_said=True)
        if not options.json:
            print(line(Checkpoint(files[record.epoch], "epoch", record, True)), flush=True)

    records = remeasure(folder, certify_head=options.certify_head, trust_code=options.trust_code, on_record=show)
    found = classes.of_capture(last[0], names) if options.per_class is not None else None
    written = "" if found is None else classes.write(options, found)
    if options.json:
        page = folder.path / "report.html"
        named = [(str(files[record.epoch]), record) for record in records]
        print_records(options.path, page if page.is_file() else None, "epoch", named, found, more)
        return 0
    print_last(records[-1], "epoch", last[0].moments.num_samples)
    if options.more:
        print_more(more[records[-1].epoch])
    if found is not None:
        classes.show(found)
    accuracy = records[-1].train.get("accuracy", math.nan)
    first = f"not fitted yet ({unfitted(accuracy)}): train longer; or " if accuracy < 1 else ""
    print(f"{written}run   {options.path}\nnext  {first}neuralcollapse report {options.path}")
    return 0


def _file(options: argparse.Namespace) -> int:
    _check_decays(options)
    named = options.per_class is not None and options.class_names is None
    arrays, unused = read_features(options.path, ["class_names"] if named else [])
    values, found = _measured(arrays, options)
    if options.scree is not None:
        values["scree"] = str(_draw_scree(arrays, options))
    if options.certify_head:
        values["head"] = _certify_head(arrays, options)
    if "weight" in arrays and options.min_count is None:
        values["minimizer"] = _at_minimum(arrays, options)
    record = record_of_features(values)
    written = "" if found is None else classes.write(options, found)
    if options.json:
        nothing = {"epoch": None}  # nobody knows how long the network was trained
        about = {"file": str(options.path), "num_samples": values["num_samples"]}
        beside = {name: values[name] for name in ("more", "scree") if name in values}
        print_json({**about, **asdict(record), **nothing, **beside, **classes.as_json(found)})
        return 0
    accuracy = f", accuracy {values['accuracy']:.4f}" if "accuracy" in values else ""
    if "accuracy" in record.test:
        accuracy += f", test accuracy {record.test['accuracy']:.4f}"
    print(f"{options.path}: {values['num_samples']} samples{accuracy} (under collapse {goal(record)})\n")
    print_measures(record)
    if options.more:
        print_more(values["more"])
    if found is not None:
        classes.show(found)
    if written:
        print(f"\n{written}", end="")
    if options.scree is not None:
        print(f"\nfile  {values['scree']}")
    if unused:
        print(f"\nnot used: the arrays {', '.join(unused)}")
    if values.get("accuracy", 1.0) < 1:
        print(f"\nnext  not fitted yet ({unfitted(values['accuracy'])}): train longer, or measure later weights")
    elif "nc2" not in values:
        print("\nnext  add the classifier's weight (K, d) and bias (K,) to the file to measure NC2, NC3 and NC4")
    return 0


def _measured(arrays: Mapping[str, Any], options: argparse.Namespace) -> tuple[dict[str, Any], classes.Classes | None]:
    """The measures of a file's arrays, and its classes where they are asked for."""
    from neuralcollapse.capture.features import measure_features, measure_features_by_class

    given = [arrays["features"], arrays["labels"], arrays.get("weight"), arrays.get("bias"), options.num_classes]
    how = {name: getattr(options, name) for name in ("ignore_index", "min_count", "pairwise", "more", "errors")}
    if options.test_data is not None:
        how |= _test_arrays(options.test_data)
    if options.per_class is None:
        return measure_features(*given, **how), None
    names = classes.names(options)
    if names is None and "class_names" in arrays:
        names = _texts(arrays["class_names"])
    values, table, pairs = measure_features_by_class(*given, names=names, **how)
    return values, classes.Classes.of(table, pairs)


def _texts(names: Any) -> list[str]:
    """The names in a file's array class_names."""
    if getattr(names, "dtype", None) is None or names.ndim != 1 or names.dtype.kind not in "US":
        raise InputError("expected the array class_names as K texts: leave it out, or give --class-names FILE")
    return [name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in names.tolist()]


def _test_arrays(path: Path) -> dict[str, Any]:
    """The arrays of a file of test features, as arguments of `measure_features`."""
    arrays, _ = read_features(path)
    return {"test_features": arrays["features"], "test_labels": arrays["labels"]}


def _draw_scree(arrays: Mapping[str, Any], options: argparse.Namespace) -> Path:
    """The figure of the spectra, over the samples that are measured."""
    import torch

    from neuralcollapse.geometry.moments import ClassMoments
    from neuralcollapse.geometry.spectra import spectra
    from neuralcollapse.report.scree import write_scree

    if options.scree.exists() and options.scree.resolve() == options.path.resolve():
        raise InputError(f"expected --scree to be another file than {options.path}: it would be replaced")
    features, labels = _kept(arrays, options)
    counts = labels.long().bincount()
    kept = counts[labels.long()] >= (options.min_count or 0)
    weight = torch.as_tensor(arrays["weight"]) if "weight" in arrays else None
    num_classes = options.num_classes or (len(counts) if weight is None else len(weight))
    moments = ClassMoments.from_batch(features[kept], labels[kept], num_classes)
    return write_scree(spectra(moments, weight), options.scree)


def _pairwise(options: argparse.Namespace) -> bool | int:
    """The value of `pairwise=` in Python for --no-pairwise and --pairs."""
    if options.pairs is None:
        return not options.no_pairwise
    if options.no_pairwise:
        raise InputError("expected --pairs or --no-pairwise, got both: give one")
    pairs: int = options.pairs
    if pairs < 2:
        raise InputError(f"expected --pairs of at least 2 pairs of classes, got {pairs}: give a larger sample")
    return pairs


def _check_decays(options: argparse.Namespace) -> None:
    if not options.certify_head and any(getattr(options, name) is not None for name in _OF_FILES):
        raise InputError("the decays and --features-sign are for --certify-head: add it, or leave them out")


def _certify_head(arrays: Mapping[str, Any], options: argparse.Namespace) -> dict[str, float]:
    import torch

    from neuralcollapse.ufm.head import certify_head

    if options.weight_decay is None or "weight" not in arrays:
        raise InputError("--certify-head needs the array weight in the file, and --weight-decay of the training")
    features, labels = _kept(arrays, options)
    weight = torch.as_tensor(arrays["weight"])
    bias = torch.as_tensor(arrays["bias"]) if "bias" in arrays else None
    decays = (options.weight_decay, options.feature_decay)
    sign = options.features_sign or "auto"
    found = certify_head(features, labels, weight, bias, *decays, bias_decay=options.bias_decay, features_sign=sign)
    return found.record()


def _at_minimum(arrays: Mapping[str, Any], options: argparse.Namespace) -> dict[str, float]:
    """The measures at the exact minimiser, as far as the class counts and the decays that were given determine it."""
    import torch

    from neuralcollapse.loops.expected import decays_of, model_numbers
    from neuralcollapse.ufm.expected import expected_at_minimum

    features, labels = _kept(arrays, options)
    weight, decay, decays = torch.as_tensor(arrays["weight"]), tuple(getattr(options, name) for name in _DECAYS), None
    if options.weight_decay is not None:
        decays = decays_of(decay, weight, float(features.double().square().sum()))
    counts = labels.long().bincount(minlength=len(weight)).tolist()
    bias, nonnegative = "bias" in arrays, bool(features.min() >= 0)
    found = expected_at_minimum(counts, features.shape[1], decays, bias=bias, nonnegative=nonnegative)
    return found | model_numbers(decays, nonnegative) if found else {}


def _kept(arrays: Mapping[str, Any], options: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """The features and the labels of the samples that are measured."""
    import torch

    features, labels = torch.as_tensor(arrays["features"]), torch.as_tensor(arrays["labels"])
    if options.ignore_index is None:
        return features, labels
    kept = labels != options.ignore_index
    return features[kept], labels[kept]


def read_features(
    path: Path, more: Sequence[str] = (), *, required: Sequence[str] = ("features", "labels")
) -> tuple[dict[str, Any], list[str]]:
    """The arrays of a .npz or .safetensors file that are measured, and the names of its others, which are not read.

    `more` are names of arrays that are read beside those that every call reads, `required` those that it must hold.
    Nothing in it is ever unpickled.

    Raises:
        InputError: no such file, another kind of file, pickled data, or a required array missing.
    """
    if not path.is_file():
        raise InputError(f"no file or run folder {path}")
    how = "save plain arrays with numpy.savez(path, features=..., labels=...) or safetensors.torch.save_file"
    if path.suffix not in (".npz", ".safetensors"):
        raise InputError(
            f"expected a .npz or .safetensors file, got {path.name} (pickled files are never loaded): {how}"
        )
    arrays: Mapping[str, Any]
    try:
        if path.suffix == ".npz":
            from neuralcollapse.runs.arrays import read_arrays

            if not zipfile.is_zipfile(path):
                raise InputError(
                    f"{path} is no .npz file, or cut off (pickled files are never loaded): copy it again, or {how}"
                )
            most = max(_INFLATED_BYTES, _INFLATED * path.stat().st_size)
            arrays, others = read_arrays(path, [*_ARRAYS, *more], most=most)
        else:
            from neuralcollapse.runs.tensors import read_tensors

            arrays, others = read_tensors(path, [*_ARRAYS, *more])
    except InputError:
        raise
    except ValueError as error:
        if "pickle" in str(error):
            raise InputError(f"{path} holds pickled data, which is never loaded: {how}") from None
        raise InputError(f"cannot read {path}: {error}; {how}") from None
    except Exception as error:  # zip and safetensors raise kinds of their own
        raise InputError(f"cannot read {path} as {path.suffix}: {error}; {how}") from None
    missing = [name for name in required if name not in arrays]
    if missing:
        found = ", ".join(sorted([*arrays, *others])) or "none"
        raise InputError(f"{path} has no array {' or '.join(map(repr, missing))} (it has: {found}): {how}")
    return dict(arrays), others
