"""What a run keeps beside the measures: the certificate of the head, the geometry, and environment.json."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from torch import nn

from neuralcollapse.capture.class_by_class import confused, measured_names
from neuralcollapse.capture.class_names import find_class_names
from neuralcollapse.capture.collect import Capture
from neuralcollapse.errors import InputError
from neuralcollapse.loops.expected import HeadDecay, decays_of, squares
from neuralcollapse.runs.class_record import ClassRecord
from neuralcollapse.runs.records import Geometry
from neuralcollapse.ufm.head import certify_head_moments

_GEOMETRY_CLASSES = 200  # as many as the page's figures can show
_GEOMETRY_VALUES = 2**20  # K d: a file of at most 8 MB, for the means and the weight
_GEOMETRIES = 60  # at most 500 MB in all
_LISTED_CLASSES = 10_000  # a list of more makes environment.json slow to read
_PAIRED_CLASSES = 2_000  # at d = 2,048, all pairs of so many take 0.4 s on a core
_PAIRS = 20  # of classes that are hard to tell apart


def certified(capture: Capture, decay: HeadDecay) -> dict[str, float]:
    """The certificate of the last layer, for a decay of its weight or for those of (weight, features, bias).

    A dead network has none where its features' decay would follow from a balance, rather than an error that ends the
    training.

    Raises:
        InputError: only some classes were measured; as `neuralcollapse.ufm.certify_head`.
    """
    if capture.classes is not None:
        raise InputError(
            f"expected all classes for the certificate of the head, got {len(capture.classes)} of them, whose loss is "
            "among all: leave out head_decay (--certify-head), or the choice of classes"
        )
    weight_decay, feature_decay, bias_decay = decay if isinstance(decay, tuple) else (decay, None, None)
    if decays_of(decay, capture.weight, squares(capture.moments)) is None:
        return {}
    return certify_head_moments(
        capture.moments,
        capture.loss,
        capture.weight,
        capture.bias,
        weight_decay,
        feature_decay,
        bias_decay=bias_decay,
        features_sign="nonnegative" if capture.nonnegative else "real",
    ).record()


def names_of(model: nn.Module, loader: Any, capture: Capture) -> tuple[str, ...]:
    """The names of the classes: the capture's or, where it was not made by a pass over the loader, the data set's."""
    if capture.class_names or capture.classes is not None:
        return capture.class_names or ()
    return find_class_names(model, loader, capture.moments.num_classes) or ()


def geometry_of(epoch: int, capture: Capture) -> Geometry | None:
    """The class means and the classifier of a capture, or None where they are too large to be kept.

    They are kept for the page's figures: where there are at most 200 classes and K d is at most 2^20. The mean of a
    class without samples is NaN. `spread` says at which epochs they stay.
    """
    moments = capture.moments
    if moments.num_classes > _GEOMETRY_CLASSES or moments.means.numel() > _GEOMETRY_VALUES:
        return None
    means = moments.means.cpu().numpy().copy()
    means[(moments.counts == 0).cpu().numpy()] = math.nan
    bias = np.zeros(moments.num_classes) if capture.bias is None else capture.bias.float().cpu().numpy()
    return Geometry(epoch, means, moments.global_mean.cpu().numpy(), capture.weight.float().cpu().numpy(), bias)


def classes_of(epoch: int, capture: Capture, *, pairwise: bool) -> ClassRecord | None:
    """The numbers of each class of a capture and its worst pairs, or None where there are more classes than are listed.

    What needs all pairs of classes is left out without `pairwise`, and where it would take longer than the pass: with
    more than 2,000 classes.
    """
    count = capture.moments.num_classes
    if count > _LISTED_CLASSES:
        return None
    pairwise = pairwise and count <= _PAIRED_CLASSES
    table, _ = capture.quiet_per_class(pairwise=pairwise)
    columns = {"number": table.number, **table.columns}
    if table.nearest is not None:
        columns["nearest"] = table.nearest
    pairs = confused(capture.means, names=None, pairwise=pairwise, count=_PAIRS)
    return ClassRecord(
        epoch,
        {name: np.asarray(values, np.float64) for name, values in columns.items()},
        np.array(pairs, np.float64).reshape(-1, 3),
    )


def spread(epochs: Iterable[int]) -> list[int]:
    """Which of the measured epochs keep their geometry: at most 60 of them.

    The first and the last stay. When there is one too many, the one goes whose neighbours are nearest to each other in
    the square root of the epoch, so that early epochs, in which more happens, lie closer together.

    What stays depends on the epochs alone, and what was dropped once never comes back as more epochs follow. So a run
    that was killed and resumed ends with the same files as one that ran through.
    """
    kept: list[int] = []
    for epoch in sorted(epochs):
        kept.append(epoch)
        if len(kept) > _GEOMETRIES:
            place = [math.sqrt(each) for each in kept]
            kept.pop(min(range(1, len(kept) - 1), key=lambda at: place[at + 1] - place[at - 1]))
    return kept


def environment_of(
    model: nn.Module,
    capture: Capture,
    class_names: Sequence[str] | Mapping[int, str] | None,
    test_samples: int,
    more: Mapping[str, Any],
) -> dict[str, Any]:
    """What environment.json says: the same keys for every run, None where something is not known.

    `class_names` are those of all classes of the data set, or of those that were measured. `more` goes before what is
    found here.
    """
    moments = capture.moments
    names = measured_names(class_names, capture.classes, moments.num_classes)
    few = moments.num_classes <= _LISTED_CLASSES
    gpus = [parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"]
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in ("neuralcollapse", "torch", "torchmetrics", "numpy", "lightning")},
        "torch": str(torch.__version__),
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(gpus[0]) if gpus else None,
        "class_names": list(names) if few and names is not None else None,
        "class_counts": moments.counts.tolist() if few else None,
        "num_classes": moments.num_classes,
        "feature_dim": moments.feature_dim,
        "train_samples": moments.num_samples,
        "test_samples": test_samples,
        "image_shape": None,
        "pixel_mean": None,
        "pixel_std": None,
        "decay_budget": None,
        "row_sum_left": None,
        "parameters": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        **more,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
