"""Recorder: measures a network whenever it is asked to, in any training loop, and keeps the records in a folder."""

from __future__ import annotations

import json
import math
import os
import platform
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Subset

from neuralcollapse.capture.arguments import check_model, find_classifier
from neuralcollapse.capture.collect import Capture, collect
from neuralcollapse.checks import check_count
from neuralcollapse.errors import InputError
from neuralcollapse.heads.fixed import FixedClassifier
from neuralcollapse.loops.options import check_loader, check_names, check_values, options_of
from neuralcollapse.runs.files import as_builtin, nan_to_none
from neuralcollapse.runs.folder import RunFolder
from neuralcollapse.runs.records import Geometry, Record
from neuralcollapse.ufm.head import certify_head_moments

# Class means and classifier are kept for the page's figures where they are small.
_GEOMETRY_CLASSES = 200
_GEOMETRY_VALUES = 2**20
_GEOMETRIES = 60  # of so many measurements

HeadDecay = float | tuple[float, float | None, float | None]


class Recorder:
    """Measures a network whenever it is asked to, and keeps the records in a run folder.

    `neuralcollapse report` and `neuralcollapse.write_page` turn the folder into a page. Measuring leaves the training
    as it was: gradients, train and eval modes, autocast, and the random states of torch, numpy and Python are
    untouched.

    Args:
        loader: the un-augmented training set, as for `neuralcollapse.measure`. It is run through once for each
            measurement; an `IterableDataset` will do, in a DataLoader or as it is, but not a generator.
        test_loader: adds the loss and accuracy on the test set to the records.
        classifier: the dotted name of the last layer, or the layer itself; found when not given.
        out: the run folder, made at the first measurement; without it the records are kept in memory alone.
        force: overwrite an earlier run in `out`.
        resume: continue the run in `out`, if there is one; the method `resume` drops what came after an epoch.
        unit: what the records count: "epoch", "step" or "checkpoint".
        head_decay: the weight decay of the training, or (weight, feature, bias) decays; when given, each record
            compares the last layer with the exact optimum of the unconstrained feature model (see
            `neuralcollapse.ufm.certify_head`).
        pairwise: as for `neuralcollapse.measures`.
        nc4: measure NC4 too.
        config: what the page shows about the run, such as {"data": "my pictures", "learning_rate": 0.1}.
        class_names: the names of the K classes; those of the data set (`classes`) when not given.
        writes: False in all processes but one, where several share the run folder.
        on_record: called with each record and the capture that it was made from.
        options: of the measuring pass, as for `neuralcollapse.measure` (layers, ignore_index, sharded, device, ...),
            and `loss`, a function of logits (N, K) and labels (N,).

    Attributes:
        records: of all measurements, in order.

    Raises:
        InputError: `out` is in use, an option that does not exist (the message names the nearest that does), or a value
            of the wrong kind.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        test_loader: Iterable[Any] | None = None,
        classifier: str | nn.Module | None = None,
        *,
        out: str | Path | None = None,
        force: bool = False,
        resume: bool = False,
        unit: str = "epoch",
        head_decay: HeadDecay | None = None,
        pairwise: bool | int = True,
        nc4: bool = True,
        config: Mapping[str, Any] | None = None,
        class_names: Sequence[str] = (),
        writes: bool = True,
        on_record: Callable[[Record, Capture], None] | None = None,
        **options: Any,
    ) -> None:
        check_names(options, options_of(Recorder), "Recorder")
        check_values(
            {
                "classifier": classifier,
                "out": out,
                "force": force,
                "resume": resume,
                "unit": unit,
                "head_decay": head_decay,
                "pairwise": pairwise,
                "nc4": nc4,
                "config": config,
                "class_names": class_names,
                "writes": writes,
                "on_record": on_record,
                **options,
            }
        )
        self.loader = check_loader(loader)
        self.test_loader = None if test_loader is None else check_loader(test_loader, "test_loader")
        self.classifier = classifier
        self.out = None if out is None else Path(out)
        self.force = force
        self.unit = unit
        self.head_decay = head_decay
        self.pairwise = pairwise
        self.nc4 = nc4
        self.config = dict(config or {})
        self.class_names = list(class_names)
        self.writes = writes
        self.on_record = on_record
        self.options = options
        self.records: list[Record] = []
        self.folder: RunFolder | None = None
        self._started = time.perf_counter()
        if resume:
            self.resume()
        elif self.out is not None and writes:
            RunFolder.check_free(self.out, force=force)

    def measure(self, model: nn.Module, epoch: int, *, learning_rate: float = math.nan) -> Record:
        """Measure the network after `epoch` units of training and keep the record.

        A second measurement of the same epoch replaces the first.

        Args:
            model: the network.
            epoch: how many units (epochs, steps) it has been trained for.
            learning_rate: for the record.

        Raises:
            InputError: as `neuralcollapse.measure`; weights that are not finite; `out` is in use or cannot be written.
        """
        check_model(model)
        model = getattr(model, "_orig_mod", model)  # of torch.compile
        epoch = check_count(epoch, "epoch", 0)
        if not isinstance(learning_rate, Real):
            raise InputError(f"expected learning_rate as a number, got {learning_rate!r}: give one, or leave it out")
        check_weights(model, epoch, self.unit)
        test = {}
        with _undisturbed(model):
            capture = collect(model, self.loader, self.classifier, nc4=self.nc4, **self.options)
            if self.test_loader is not None:
                plain = {name: value for name, value in self.options.items() if name not in ("layers", "min_count")}
                if capture.classes is not None:
                    plain["classes"] = capture.classes  # those of the training set
                named = capture.layer if self.classifier is None else self.classifier
                seen = collect(model, self.test_loader, named, nc4=False, **plain)
                test = {"loss": seen.loss, "accuracy": seen.accuracy}
        record = record_of(
            capture,
            epoch,
            test=test,
            seconds=time.perf_counter() - self._started,
            learning_rate=float(learning_rate),
            head_decay=self.head_decay,
            pairwise=self.pairwise,
        )
        self.records = [*(old for old in self.records if old.epoch != epoch), record]
        if self.out is not None and self.writes:
            if self.folder is None:
                self.folder = self._create(model, capture)
            self.folder.insert(record)
            if _is_small(capture):
                self.folder.write_geometry(geometry_of(epoch, capture))
                self.folder.thin_geometries(_GEOMETRIES)
        if self.on_record is not None:
            self.on_record(record, capture)
        return record

    def resume(self, epoch: float = math.inf) -> None:
        """Continue the run in `out` after `epoch`, dropping what was measured later; if there is none, begin one."""
        if self.out is not None and (self.out / "records.jsonl").is_file():
            folder = RunFolder.open(self.out)
            if self.writes:
                folder.lock()
                folder.remove_temporary()
                folder.make_folders()
                folder.truncate(epoch)
                self.folder = folder
            text = folder.read_text("records.jsonl").strip()
            self.records = [record for record in folder.records() if record.epoch <= epoch] if text else []
            last = max((record.seconds for record in self.records), default=0.0)
            self._started = time.perf_counter() - last

    def describe(self, model: nn.Module) -> dict[str, Any]:
        """What config.yaml says of a run of this network.

        Raises:
            InputError: no such head.
        """
        head, _ = find_classifier(model, self.classifier, self.options.get("num_classes"))
        frame = head.module.frame.replace("_", " ") if isinstance(head.module, FixedClassifier) else "learned"
        return {
            "data": type(_data(self.loader)).__name__,
            "network": type(model).__name__,
            "classifier": frame,
            "layer": self.classifier if isinstance(self.classifier, str) else head.name,
            "unit": self.unit,
            **self.config,
        }

    def _create(self, model: nn.Module, capture: Capture) -> RunFolder:
        assert self.out is not None
        folder = RunFolder.create(self.out, force=self.force)
        config = nan_to_none(as_builtin(self.describe(model)))
        folder.write_text("config.yaml", json.dumps(config, indent=2) + "\n")  # JSON is YAML
        environment = as_builtin(self._environment(model, capture))
        folder.write_text("environment.json", json.dumps(environment, indent=2) + "\n")
        return folder

    def _environment(self, model: nn.Module, capture: Capture) -> dict[str, object]:
        few = capture.moments.num_classes <= _GEOMETRY_CLASSES
        found: Any = self.class_names or getattr(_data(self.loader), "classes", None) or ()
        names = [str(name) for name in found]
        if capture.classes is not None and len(names) > capture.moments.num_classes:
            names = [names[k] for k in capture.classes.tolist() if k < len(names)]
        return {
            **machine(),
            **({"class_names": names} if few and len(names) == capture.moments.num_classes else {}),
            **({"class_counts": capture.moments.counts.tolist()} if few else {}),
            "num_classes": capture.moments.num_classes,
            "feature_dim": capture.moments.feature_dim,
            "train_samples": capture.moments.num_samples,
            "parameters": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        }


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Without autocast inside; afterwards random numbers are drawn as if nothing had been measured."""
    first = next(model.parameters(), None)
    device = torch.device("cpu") if first is None else first.device
    states = random.getstate(), np.random.get_state()  # noqa: NPY002  the states that a data set's transforms may use
    try:
        with (
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            torch.autocast(device.type, enabled=False),
        ):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


def _data(loader: Any) -> Any:
    """The data set behind a loader, or the loader."""
    data = getattr(loader, "dataset", loader)
    while isinstance(data, Subset):
        data = data.dataset
    return data


def check_weights(model: nn.Module, epoch: int, unit: str = "epoch") -> None:
    """Raise unless all of a network's weights are finite.

    Raises:
        InputError: they are not: training diverged.
    """
    if not all(bool(torch.isfinite(value).all()) for value in model.parameters()):
        raise InputError(f"training diverged by {unit} {epoch} (weights are not finite): lower the learning rate")


def record_of(
    capture: Capture,
    epoch: int,
    *,
    test: Mapping[str, float] | None = None,
    seconds: float = math.nan,
    learning_rate: float = math.nan,
    head_decay: HeadDecay | None = None,
    pairwise: bool | int = True,
    source: str = "eval",
) -> Record:
    """The record of a capture."""
    values = capture.measures(pairwise=pairwise)
    return Record(
        epoch=epoch,
        seconds=seconds,
        learning_rate=learning_rate,
        train={"loss": values.pop("loss"), "accuracy": values.pop("accuracy")},
        test=dict(test or {}),
        layers=values.pop("layers", {}),
        measures={name: value for name, value in values.items() if name != "num_samples"},
        head={} if head_decay is None else head_record(capture, head_decay),
        source=source,
    )


def head_record(capture: Capture, decay: HeadDecay) -> dict[str, float]:
    """The head certificate of a capture, as a record keeps it; `decay` of the weight, or of (W, H, b)."""
    weight_decay, feature_decay, bias_decay = decay if isinstance(decay, tuple) else (decay, None, None)
    return certify_head_moments(
        capture.moments,
        capture.loss,
        capture.weight,
        capture.bias,
        weight_decay,
        feature_decay,
        bias_decay=bias_decay,
    ).record()


def geometry_of(epoch: int, capture: Capture) -> Geometry:
    """The class means and the classifier of a capture; NaN for the mean of a class that had no samples."""
    moments = capture.moments
    means = moments.means.cpu().numpy().copy()
    means[(moments.counts == 0).cpu().numpy()] = math.nan
    bias = np.zeros(moments.num_classes) if capture.bias is None else capture.bias.float().cpu().numpy()
    return Geometry(
        epoch,
        means,
        moments.global_mean.cpu().numpy(),
        capture.weight.float().cpu().numpy(),
        bias,
    )


def machine() -> dict[str, object]:
    """Versions and hardware, for the record."""
    packages = ("neuralcollapse", "torch", "torchmetrics", "numpy")
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "torch": str(torch.__version__),
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _is_small(capture: Capture) -> bool:
    moments = capture.moments
    return moments.num_classes <= _GEOMETRY_CLASSES and moments.means.numel() <= _GEOMETRY_VALUES
