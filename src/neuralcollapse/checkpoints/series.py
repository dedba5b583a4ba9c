"""Checkpoints measured one after another: those of any training, into a run folder that later ones can join."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from neuralcollapse.capture.arguments import check_model
from neuralcollapse.capture.team import Team
from neuralcollapse.checkpoints.distributed import METADATA
from neuralcollapse.checkpoints.ledger import NAME, Done, append_to_ledger, read_ledger, write_ledger
from neuralcollapse.checkpoints.order import TrainingOrder, find_checkpoints, short_name, training_order
from neuralcollapse.checkpoints.weights import fit_weights, read_weights
from neuralcollapse.errors import InputError, NeuralCollapseWarning, listed
from neuralcollapse.heads.meshes import split_at_once
from neuralcollapse.loops.loaders import check_loader
from neuralcollapse.loops.options import check_names, check_values, options_of
from neuralcollapse.loops.recorder import Recorder
from neuralcollapse.runs.files import as_builtin, nan_to_none, parse_json, read_text
from neuralcollapse.runs.folder import RunFolder
from neuralcollapse.runs.records import Record
from neuralcollapse.runs.renamed import with_new_names

# What the records depend on.
_OPTIONS = (
    "layers",
    "ignore_index",
    "num_classes",
    "classes",
    "min_count",
    "next_token",
    "pairwise",
    "errors",
    "nc4",
    "test_measures",
    "head_decay",
    "decays",
    "loss_name",
)


class Checkpoint(NamedTuple):
    """A checkpoint that was measured, in this call or in an earlier one.

    Attributes:
        path: the file.
        unit: what the record's `epoch` counts.
        record: what it gave.
        fresh: it was measured in this call.
    """

    path: Path
    unit: str
    record: Record
    fresh: bool


def measure_checkpoints(
    model: nn.Module,
    checkpoints: str | Path | Sequence[str | Path],
    loader: Iterable[Any],
    classifier: str | nn.Module | None = None,
    *,
    test_loader: Iterable[Any] | None = None,
    out: str | Path | None = None,
    force: bool = False,
    prefix: str | None = None,
    progress: bool = True,
    config: Mapping[str, Any] | None = None,
    class_names: Sequence[str] | Mapping[int, str] = (),
    on_checkpoint: Callable[[Checkpoint], None] | None = None,
    given: Iterable[str | Path] = (),
    **options: Any,
) -> list[Record]:
    """Measure checkpoints in the order of training: one record for each, in a run folder if asked for.

    With `out`, a later call goes on: what was measured stays, and checkpoints that are new or have changed are measured
    and put in their place. Afterwards the model has the weights that it had before.

    Args:
        model: the network that was trained; the prefix of its weights' names in a file is found (see `fit_weights`).
        checkpoints: a glob pattern, a path, or a list of them: .safetensors files or torch files (.pt, .pth, .ckpt,
            .bin, .tar), from which only tensors and plain values are ever loaded.
        loader: the un-augmented training set, as for `neuralcollapse.measure`.
        classifier: dotted name of the last layer, or the layer itself; found when not given.
        test_loader: adds the test set to the records: loss, accuracy and the measures of its features.
        out: the run folder, new or one of an earlier call with the same model, data and options.
        force: overwrite what is in `out`, if it holds nothing that others made or that is still needed.
        prefix: of the weights' names in the files, where several would fit.
        progress: show a progress bar for each checkpoint (on a terminal only).
        config: what the page shows about the run, such as {"data": "my pictures"}; the same in later calls.
        class_names: of the K classes, as for `neuralcollapse.Recorder`.
        on_checkpoint: called with each `Checkpoint`, in order, as soon as its record is kept.
        given: files and folders beside the checkpoints that are still needed, such as the data: an `out` that holds
            one of them is not overwritten.
        options: of `neuralcollapse.Recorder` (layers, ignore_index, pairwise, head_decay, device, ...).

    Returns:
        The records in the order of training, those of earlier calls included. What their `epoch` counts is read from
        the names of the files (see `training_order`).

    Raises:
        InputError: there are no checkpoints, one cannot be read or does not fit the model (those before it are kept in
            `out`), `out` is in use, written by another process, or was measured with other options; as
            `neuralcollapse.measure`.
    """
    model = check_model(model)
    known = options_of(measure_checkpoints, Recorder, without=("stop_on", "patience", "stop_mode", "min_delta"))
    check_names(options, known, "measure_checkpoints", ("resume", "unit", "writes"))
    own = {"classifier": classifier, "out": out, "force": force, "progress": progress, "prefix": prefix}
    check_values({**own, "config": config, "class_names": class_names, "on_checkpoint": on_checkpoint, **options})
    loader = check_loader(loader)
    files = find_checkpoints(checkpoints)
    recorder = Recorder(
        loader,
        test_loader,
        classifier,
        force=force,
        config={
            "checkpoints": str(checkpoints) if isinstance(checkpoints, str | os.PathLike) else listed(checkpoints, 3),
            "prefix": prefix,
            **{name: _plain(options.get(name)) for name in _OPTIONS},
            **(config or {}),
        },
        class_names=class_names,
        progress=progress,
        **options,
    )
    recorder.describe(model)  # an early error where there is no such classifier
    team = Team.of(model, sharded=bool(options.get("sharded")))
    team.agree(None, lambda: {"checkpoints": files, "out": out is not None})
    mine = out if team.rank == 0 else None  # one process writes, and tells the others what was measured before
    with _locked(mine, recorder):
        run = _opened(team, recorder, model, mine, [*given, *files])
        records = _measured(run, model, files, prefix, on_checkpoint)
        return team.exchanged(lambda: records)[0]


def _opened(
    team: Team, recorder: Recorder, model: nn.Module, out: str | Path | None, given: Sequence[str | Path]
) -> _Run:
    """The run, with what was measured before in all processes."""
    own = _Run(recorder, {}, given)

    def done() -> dict[str, Done]:
        nonlocal own
        if out is not None:
            own = _Run.opened(recorder, model, Path(out), given)
        return own.done

    before = team.exchanged(done)[0]
    return own if out is not None else replace(own, done=before)


def measure_run(recorder: Recorder, model: nn.Module, run: RunFolder) -> Iterator[Record]:
    """The record of each checkpoint that a run folder keeps, in order; afterwards the model is as before."""
    checkpoints = run.checkpoints()
    if not checkpoints:
        raise InputError(f"{run.path} holds no checkpoints: train with a smaller checkpoint_every or to the end")
    with _weights_restored(model):
        for epoch, path in checkpoints:
            yield _measure_file(recorder, model, epoch, path)


def _measure_file(recorder: Recorder, model: nn.Module, number: int, path: Path, prefix: str | None = None) -> Record:
    team = Team.of(model, sharded=bool(recorder.options.get("sharded")))
    team.exchanged(lambda: fit_weights(model, read_weights(path), path, prefix=prefix))
    try:
        return recorder.measure(model, number)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _measured(
    run: _Run,
    model: nn.Module,
    files: Sequence[Path],
    prefix: str | None,
    on_checkpoint: Callable[[Checkpoint], None] | None,
) -> list[Record]:
    order = run.take_in(files)
    if order.counted and len(order.checkpoints) > 1:
        names = listed([path.name for _, path in order.checkpoints], 3)
        warnings.warn(
            f"the names of the checkpoints do not say when they were made ({names}): counted from 1 to "
            f"{len(order.checkpoints)} in this order",
            NeuralCollapseWarning,
            stacklevel=3,
        )
    given = set(files)
    with _weights_restored(model):
        for number, path in order.checkpoints:
            if path not in given:  # of an earlier call
                continue
            fresh = not run.has(path)
            if fresh:
                run.measure(model, number, path, prefix)
            if on_checkpoint is not None:
                on_checkpoint(Checkpoint(path, order.unit, run.done[short_name(path)].record, fresh))
    if run.recorder.folder is not None:
        run.recorder.folder.truncate(math.inf)  # puts the records in order
    return run.records


@dataclass
class _Run:
    """What was measured, by checkpoint. The ledger on disk decides, and records.jsonl is written from it."""

    recorder: Recorder
    done: dict[str, Done]
    given: Sequence[str | Path] = ()

    @classmethod
    def opened(cls, recorder: Recorder, model: nn.Module, out: Path, given: Sequence[str | Path]) -> _Run:
        """The run in a folder, with what an earlier call measured there."""
        recorder.out = out
        described = None if recorder.force else _read_json(out / "config.yaml")
        if not isinstance(described, dict) or "checkpoints" not in described:
            RunFolder.check_free(out, force=recorder.force, given=given)
            return cls(recorder, {}, given)
        described = with_new_names(described, "train", quiet=True)
        wanted = nan_to_none(as_builtin(recorder.describe(model)))
        for key, value in wanted.items():
            if key not in ("checkpoints", "unit") and described.get(key) != value:
                raise InputError(
                    f"{out} was measured with {key}={described.get(key)!r:.80}, got {value!r:.80}: "
                    + RunFolder(out).way_out(given)
                )
        ledger = out / NAME
        done = read_ledger(ledger) if ledger.is_file() else {}
        return cls(recorder, done, given)

    @property
    def records(self) -> list[Record]:
        """All records, in order."""
        return sorted((done.record for done in self.done.values()), key=lambda record: record.epoch)

    @property
    def _place(self) -> Path:
        assert self.recorder.out is not None
        return self.recorder.out

    def take_in(self, files: Sequence[Path]) -> TrainingOrder:
        """The order of what was measured before and is given now; earlier records get new numbers if need be."""
        given = {short_name(path) for path in files}
        gone = [name for name in self.done if name not in given]
        order = training_order([*files, *(Path("/", name) for name in gone)])
        if gone and order.counted and (len(gone) == len(self.done) or not training_order(files).counted):
            raise InputError(
                f"{self.recorder.out} holds {gone[0]} and others, and the names of those given do not say how they go "
                f"together: {RunFolder(self._place).way_out(self.given)}"
            )
        self.recorder.unit = order.unit
        if self.recorder.out is not None and not self.recorder.force and (self._place / "records.jsonl").is_file():
            self._renumber({short_name(path): number for number, path in order.checkpoints})
            self.recorder.resume()
        return order

    def _renumber(self, numbers: Mapping[str, int]) -> None:
        folder = RunFolder.open(self._place)
        folder.remove_temporary()
        moves = []  # a kill in between may lose a geometry, but never leaves one under a wrong number
        for name, done in self.done.items():
            old, new = done.record.epoch, numbers[name]
            self.done[name] = replace(done, record=replace(done.record, epoch=new))
            for kind in ("geometry", "classes"):
                file = _epoch_file(folder, kind, old)
                if old != new and file.is_file():
                    moves.append((file.rename(file.with_name(f".{new}.tmp")), _epoch_file(folder, kind, new)))
        write_ledger(self._place / NAME, self.done)
        for file, place in moves:
            file.replace(place)
        folder.write_text("records.jsonl", "".join(record.to_json() + "\n" for record in self.records))
        described = _read_json(folder.path / "config.yaml")
        if isinstance(described, dict) and described.get("unit") != self.recorder.unit:
            described["unit"] = self.recorder.unit
            folder.write_text("config.yaml", json.dumps(described, indent=2) + "\n")

    def has(self, path: Path) -> bool:
        """Whether the file was measured as it is now."""
        done = self.done.get(short_name(path))
        return done is not None and (done.size, done.mtime_ns) == _stamp(path)

    def measure(self, model: nn.Module, number: int, path: Path, prefix: str | None) -> None:
        """Load a checkpoint into the model, measure it and keep the record."""
        stamp = _stamp(path)  # before it is read: a file that changes meanwhile is measured again
        try:
            record = _measure_file(self.recorder, model, number, path, prefix)
            done = self.done[short_name(path)] = Done(*stamp, record)
            team = Team.of(model, sharded=bool(self.recorder.options.get("sharded")))
            team.exchanged(lambda: self._write(short_name(path), done))
        except InputError as error:
            raise InputError(f"{error}{self._kept()}") from None
        except OSError as error:
            raise InputError(f"{path}: {error.strerror or error} ({error.filename}){self._kept()}") from None

    def _write(self, name: str, done: Done) -> None:
        if self.recorder.out is not None and not append_to_ledger(self._place / NAME, name, done):
            write_ledger(self._place / NAME, self.done)

    def _kept(self) -> str:
        if self.recorder.out is None or not self.done:
            return ""
        return (
            f" (the {len(self.done)} measured before are kept in {self._place}: repair it, or leave it out, and go on)"
        )


def _stamp(path: Path) -> tuple[int, int]:
    try:
        stat = (path / METADATA if path.is_dir() else path).stat()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    return stat.st_size, stat.st_mtime_ns


def _plain(value: object) -> object:
    return value.tolist() if isinstance(value, Tensor) else value


def _epoch_file(folder: RunFolder, kind: str, number: int) -> Path:
    return folder.path / kind / f"epoch-{number:05d}.npz"


def _read_json(path: Path) -> Any:
    try:
        return parse_json(read_text(path))
    except ValueError:
        return None


@contextmanager
def _locked(out: str | Path | None, recorder: Recorder) -> Iterator[None]:
    """Keep other writers out of an existing folder; a new one is locked when it is made."""
    folder = RunFolder(out) if out is not None and RunFolder(out).path.is_dir() else None
    if folder is not None and not os.path.lexists(folder.path / "records.jsonl"):
        folder = None  # it holds nothing that this call could join
    if folder is not None:
        folder.lock()
    try:
        yield
    finally:
        for held in (folder, recorder.folder):
            if held is not None:
                held.unlock()


@contextmanager
def _weights_restored(model: nn.Module) -> Iterator[None]:
    """Afterwards the model's parameters and buffers are what they were."""
    split_at_once(model)
    own: list[Tensor] = list(chain(model.parameters(), model.buffers()))
    copies = [value.detach().to("cpu", copy=True) for value in own]
    try:
        yield
    finally:
        with torch.no_grad():
            for value, copy in zip(own, copies, strict=True):
                value.copy_(copy)
