"""Recorder: measures a network in any training loop, and keeps the records in a run folder."""

from __future__ import annotations

import json
import math
import time
import weakref
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from neuralcollapse.capture.arguments import check_model, find_classifier
from neuralcollapse.capture.class_by_class import measured_names
from neuralcollapse.capture.class_names import data_behind
from neuralcollapse.capture.collect import Capture, collect, collect_test
from neuralcollapse.capture.team import Team
from neuralcollapse.errors import InputError
from neuralcollapse.heads.fixed import FixedClassifier
from neuralcollapse.heads.split import own_part
from neuralcollapse.loops.asked import asked
from neuralcollapse.loops.expected import HeadDecay, at_minimum, before_training, is_cross_entropy
from neuralcollapse.loops.kept import certified, classes_of, environment_of, geometry_of, names_of, spread
from neuralcollapse.loops.loaders import check_loader
from neuralcollapse.loops.options import check_names, check_values, options_of
from neuralcollapse.loops.trackers import check_loggers
from neuralcollapse.loops.undisturbed import undisturbed
from neuralcollapse.loops.views import Views
from neuralcollapse.report.glance import Glance
from neuralcollapse.runs.events import StopMode, StopRule, Watch
from neuralcollapse.runs.files import as_builtin, nan_to_none
from neuralcollapse.runs.folder import RunFolder
from neuralcollapse.runs.records import MEASURES, Geometry, Record


class Recorder:
    """Measures a network whenever it is asked to, and keeps the records in a run folder.

    Everything in this package that measures while a network trains does so through a Recorder. The folder gets a record
    of each measurement; class means and classifier of at most 60 of them, spread over the run, if there are at most 200
    classes and K d is at most 2^20; the numbers of each class (`neuralcollapse.per_class`) at the last one, if there
    are at most 10,000 classes; config.yaml and environment.json. While the training goes on, for at most 5 % of its
    time, report.html there shows how far it is and reloads itself; `finish` writes the page of the end, as
    `neuralcollapse report` and `neuralcollapse.write_page` do. In a notebook `show` shows the figures in place.

    Measuring leaves the training as it was: gradients, buffers, train and eval modes, autocast, and the random states
    of torch, numpy and Python are untouched.

    Args:
        loader: the un-augmented training set, as for `neuralcollapse.measure`. It is run through once for each
            measurement, so a generator will not do; an `IterableDataset` will, in a DataLoader or by itself.
        test_loader: adds the test set to the records: loss, accuracy, and the measures of its features, with its
            samples compared with the class means of the training set ("test" of `neuralcollapse.measure`).
        classifier: the dotted name of the last layer, or the layer itself; found when not given.
        out: the run folder, made at the first measurement; without it the records are kept in memory only. A
            `RunFolder` that the caller has made, locked and given its config.yaml gets everything else.
        force: overwrite an earlier run in `out`.
        resume: continue the run in `out`, if there is one; the method `resume` drops what came after an epoch.
        unit: what the records count: "epoch", "step" or "checkpoint".
        head_decay: the weight decay of the training, or (weight, feature, bias) decays; when given, each record
            compares the last layer with the exact optimum of the unconstrained feature model (see
            `neuralcollapse.ufm.certify_head`).
        decays: of the training, as in `head_decay` but without a certificate; those of `head_decay` when not given.
            For unequal classes they say what theory expects of the measures (`Record.minimizer`); equal classes need
            none. Leave them out where the optimiser does not add the decay to the gradient (AdamW).
        loss_name: the loss of the training, as `neuralcollapse.ufm.UnconstrainedFeatureModel` names it;
            "cross_entropy" when neither it nor `loss` is given, the only one that `head_decay` goes with.
        pairwise: as for `neuralcollapse.measures`.
        nc4: measure NC4 and the accuracy of the nearest class mean too.
        test_measures: False leaves the test set with loss and accuracy.
        stop_on: a number of the records, such as "nc1", "test.accuracy" or "layers.body.0.nc1": `should_stop` turns
            true when it gets no better, and the record says why (`events`).
        patience: of `stop_on`: so many measurements in a row without a better value.
        stop_mode: which values are better: "falling", "rising", or "auto": accuracies rise, everything else falls.
        min_delta: by how much a better value has to be better.
        config: what the page shows about the run, such as {"data": "my pictures", "learning_rate": 0.1}.
        environment: more about the machine and the data for environment.json, such as {"image_shape": [3, 32, 32]}.
        class_names: the names of the K classes, in their order or by number; when not given, those of the model's
            configuration (`id2label`) or of the data set (`classes`, or a label column of the Hugging Face hub).
        inside: the dotted name of a part of the network: `layers` are named from there, in the records too.
        online: gives a capture of the network, in place of a pass over `loader`: of features that were seen while it
            trained, for example. The records then have the source "online".
        writes: False in all processes but one, where several share the run folder.
        on_record: called with each record and the capture that it was made from.
        page: keep report.html in `out` up to date.
        loggers: get the numbers of each record, and figures (cosines between class means as a map and as a histogram,
            NC1 with its band): SummaryWriters of TensorBoard, runs of wandb, mlflow, or loggers of Lightning.
        options: of the measuring pass, as for `neuralcollapse.measure` (layers, ignore_index, sharded, device, ...),
            and `loss`, a function of logits (N, K) and labels (N,). With `sharded`, all processes measure the buffers
            of the first.

    Attributes:
        records: of all measurements, in order.

    Raises:
        InputError: `out` is in use, an option does not exist (the message names the nearest that does), or has a value
            of the wrong kind.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        test_loader: Iterable[Any] | None = None,
        classifier: str | nn.Module | None = None,
        *,
        out: str | Path | RunFolder | None = None,
        force: bool = False,
        resume: bool = False,
        unit: str = "epoch",
        head_decay: HeadDecay | None = None,
        decays: HeadDecay | None = None,
        loss_name: str | None = None,
        pairwise: bool | int = True,
        nc4: bool = True,
        test_measures: bool = True,
        stop_on: str | None = None,
        patience: int = 5,
        stop_mode: StopMode = "auto",
        min_delta: float = 0.0,
        config: Mapping[str, Any] | None = None,
        environment: Mapping[str, Any] | None = None,
        class_names: Sequence[str] | Mapping[int, str] = (),
        inside: str = "",
        online: Callable[[nn.Module], Capture] | None = None,
        writes: bool = True,
        on_record: Callable[[Record, Capture], None] | None = None,
        page: bool = True,
        loggers: Sequence[Any] = (),
        **options: Any,
    ) -> None:
        check_names(options, options_of(Recorder), "Recorder")
        self._made = out if isinstance(out, RunFolder) else None
        self.out: Any = None if self._made else out
        self.classifier = classifier
        self.force = force
        self.unit = unit
        self.head_decay = head_decay
        self.decays = decays
        self.loss_name = loss_name
        self.pairwise = pairwise
        self.nc4 = nc4
        self.test_measures = test_measures
        self.stop_on: Any = stop_on
        self.patience = patience
        self.stop_mode = stop_mode
        self.min_delta = min_delta
        self.config: Any = config
        self.environment: Any = environment
        self.class_names: Any = class_names
        self.inside = inside
        self.online = online
        self.writes = writes
        self.on_record = on_record
        check_values({**vars(self), "resume": resume, "page": page, **options})
        self.loader = check_loader(loader)
        self.test_loader = None if test_loader is None else check_loader(test_loader, "test_loader")
        self.out = out.path if isinstance(out, RunFolder) else None if out is None else Path(out)
        self.config = dict(config or {})
        self.environment = dict(environment or {})
        self.class_names = class_names if isinstance(class_names, Mapping) else list(class_names)
        self.options = options
        self.records: list[Record] = []
        self._watch = Watch(None if stop_on is None else StopRule(stop_on, patience, stop_mode, min_delta))
        self._spread: list[int] = []  # the epochs that keep their geometry
        self._glance: Glance | None = None
        self._names: Any = None  # of the classes, once they were looked for
        self.views = Views(page=page, loggers=check_loggers(loggers))
        weakref.finalize(self, self.views.abandon)
        self.folder = self._made if writes else None
        if inside:
            layers = options.get("layers", ())
            options["layers"] = [f"{inside}.{name}" for name in ([layers] if isinstance(layers, str) else layers)]
        if decays is None:
            self.decays = head_decay
        if loss_name is None and is_cross_entropy(options.get("loss", F.cross_entropy)):
            self.loss_name = "cross_entropy"
        if head_decay is not None and self.loss_name != "cross_entropy":
            given = self.loss_name or "a loss without a name"
            raise InputError(
                f"expected cross-entropy for the certificate of the head, got {given}: "
                "leave head_decay out, or say loss_name='cross_entropy' where the loss is that"
            )
        self._started = time.perf_counter()
        if resume:
            self.resume()
        elif self.out is not None and writes and not self._made:
            RunFolder.check_free(self.out, force=force)

    @property
    def seconds(self) -> float:
        """Seconds since the run began, those before it was resumed included."""
        return time.perf_counter() - self._started

    @property
    def stop_reason(self) -> str:
        """Why training may stop now by `stop_on`, in a sentence; empty to go on."""
        return self._watch.reason(self.unit)

    @property
    def should_stop(self) -> bool:
        """Whether training may stop now by `stop_on`; what it says depends on the records alone."""
        return bool(self.stop_reason)

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
        team = Team.of(model, sharded=bool(self.options.get("sharded")))
        team.agree(None, lambda: asked(self, model, epoch, learning_rate))
        model = check_model(model)
        parts = (own_part(value) for value in model.parameters())
        if not all(team.exchanged(lambda: all(bool(torch.isfinite(part).all()) for part in parts))):
            raise InputError(
                f"training diverged by {self.unit} {epoch} (weights are not finite): lower the learning rate"
            )
        with undisturbed(model):
            if self.online is None:
                capture = collect(model, self.loader, self.classifier, nc4=self.nc4, **self.options)
            else:
                capture = self.online(model)
            test = capture.test = self._test(model, capture)
        values = capture.measures(pairwise=self.pairwise)
        minimizer, untrained = self._expected(model, capture, values)
        tested = {} if test is None else self._tested(test)
        record = Record(
            epoch=epoch,
            seconds=self.seconds,
            learning_rate=float(learning_rate),
            train={"loss": values.pop("loss"), "accuracy": values.pop("accuracy")},
            layers=self._named(values.pop("layers", {})),
            test_layers=self._named(tested.pop("layers", {})),
            test=tested,
            measures={name: value for name, value in values.items() if name != "num_samples"},
            head={} if self.head_decay is None else certified(capture, self.head_decay),
            source="eval" if self.online is None else "online",
            minimizer=minimizer,
            untrained=untrained,
        )
        place = bisect_left(self.records, epoch, key=lambda each: each.epoch)
        follows = place == len(self.records)
        if not follows:  # measured again, or out of order
            self._watch.restart(self.records[:place])
        record = replace(record, events=self._watch.see(record, self.unit))
        geometry = geometry_of(epoch, capture)
        if self._names is None:
            self._names = self.class_names or names_of(model, self.loader, capture)
        team.exchanged(lambda: self._keep(record, model, capture, test, geometry))
        if not follows:
            self._watch.restart(self.records)
        if self.on_record is not None:
            self.on_record(record, capture)
        if self.writes:
            names = measured_names(self._names, capture.classes, capture.moments.num_classes)
            self._glance = Glance(self.records, geometry, names or (), self.unit, self.folder)
            self.views.log(record, self.unit)
            self.views.update(self._glance)
        return record

    def show(self) -> None:
        """Show the figures in this cell of a notebook, and keep them up to date from here on.

        Raises:
            InputError: there is no notebook.
        """
        self.views.show(self._glance)

    def finish(self) -> None:
        """Show the last record everywhere: on the page, in the loggers and in the notebook. More may follow."""
        self.views.finish()

    def resume(self, epoch: float = math.inf, *, seconds: float | None = None) -> None:
        """Continue the run in `out` after `epoch`, dropping what was measured later; if there is none, begin one.

        Args:
            epoch: the last that counts.
            seconds: what the run had taken by then; as its last record says when not given.
        """
        if self.out is not None and (self.out / "records.jsonl").is_file():
            folder = self._made or RunFolder.open(self.out)
            if self.writes and not self._made:
                folder.lock()
                folder.remove_temporary()
                folder.make_folders()
                folder.truncate(epoch)
                self.folder = folder
            self.records = [record for record in folder.records(allow_none=True) if record.epoch <= epoch]
        self._spread = spread(record.epoch for record in self.records)
        self._watch.restart(self.records)
        last = max((record.seconds for record in self.records), default=0.0)
        self._started = time.perf_counter() - (last if seconds is None else seconds)

    def describe(self, model: nn.Module) -> dict[str, Any]:
        """What config.yaml says of a run of this network.

        Raises:
            InputError: no such head.
        """
        head, _ = find_classifier(model, self.classifier, self.options.get("num_classes"))
        frame = head.module.frame if isinstance(head.module, FixedClassifier) else "learned"
        return {
            "data": type(data_behind(self.loader)).__name__,
            "network": type(model).__name__,
            "frame": frame,
            "layer": self.classifier if isinstance(self.classifier, str) else head.name,
            "unit": self.unit,
            **self.config,
        }

    def _expected(
        self, model: nn.Module, capture: Capture, values: Mapping[str, float]
    ) -> tuple[dict[str, float], dict[str, float]]:
        """What theory expects of the measures: at the exact minimiser, and before any training."""
        name = (capture.layer or None) if self.classifier is None else self.classifier
        head = find_classifier(model, name, self.options.get("num_classes"))[0].module
        # of the rows: a bias may be trained beside frozen ones
        trained = [parameter.requires_grad for parameter in head.parameters() if parameter.dim() > 1]
        frozen = bool(trained) and not any(trained) and any(each.requires_grad for each in model.parameters())
        minimizer = at_minimum(capture, head, self.decays, self.loss_name, frozen=frozen)
        unmeasured = MEASURES.keys() - values.keys()
        known = {key: value for key, value in minimizer.items() if key not in unmeasured}
        return known, before_training(capture, head, values)

    def _test(self, model: nn.Module, train: Capture) -> Capture | None:
        """A pass over the test set, with the classes, the head and the class means of the training set."""
        if self.test_loader is None:
            return None
        options = dict(self.options) | {"nc4": self.nc4 and self.test_measures}
        if not self.test_measures:
            options.pop("layers", None)
        return collect_test(model, self.test_loader, train, self.classifier, **options)

    def _tested(self, test: Capture) -> dict[str, Any]:
        """What the record says of the test set."""
        found = {"loss": test.loss, "accuracy": test.accuracy}
        if not self.test_measures:
            return found
        values = test.measures(pairwise=self.pairwise, held_out=True)
        del values["num_samples"]
        return found | values

    def _named(self, layers: Mapping[str, dict[str, float]]) -> dict[str, dict[str, float]]:
        """The layers by their names inside `inside`."""
        prefix = f"{self.inside}." if self.inside else ""
        return {name.removeprefix(prefix): values for name, values in layers.items()}

    def _keep(
        self, record: Record, model: nn.Module, capture: Capture, test: Capture | None, geometry: Geometry | None
    ) -> None:
        """Add the record to those in memory and, in the process that writes, to the folder."""
        place = bisect_left(self.records, record.epoch, key=lambda each: each.epoch)
        follows = place == len(self.records)
        again = not follows and self.records[place].epoch == record.epoch
        self.records[place : place + again] = [record]
        if self.out is None or not self.writes:
            return
        folder = self.folder = self.folder or self._create(model)
        if not (folder.path / "environment.json").exists():
            tested = 0 if test is None else test.moments.num_samples
            environment = environment_of(model, capture, self._names, tested, self.environment)
            folder.write_text("environment.json", json.dumps(as_builtin(environment), indent=2) + "\n")
        folder.append(record)
        if geometry is not None:
            folder.write_geometry(geometry)
            # what stays follows from what stayed before: the work for a record does not grow with the run
            if follows:
                self._spread = spread([*self._spread, record.epoch])
            elif not again:
                self._spread = spread(each.epoch for each in self.records)
            folder.keep_geometries(self._spread)
        if record.epoch == self.records[-1].epoch:
            classes = classes_of(record.epoch, capture, pairwise=self.pairwise is True)
            if classes is not None:
                folder.write_classes(classes)

    def _create(self, model: nn.Module) -> RunFolder:
        assert self.out is not None
        folder = RunFolder.create(self.out, force=self.force)
        config = nan_to_none(as_builtin(self.describe(model)))
        folder.write_text("config.yaml", json.dumps(config, indent=2) + "\n")  # JSON is YAML
        return folder
